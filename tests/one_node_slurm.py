"""A real SLURM of one node on loopback, from Debian's packages, for as long as a test needs it."""

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CONFIG = Path("/etc/slurm/slurm.conf")
MARK = "# Written by the tests of ecgstudy, which delete it when they end.\n"
SLURM_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=86400
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=32000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = "Name=gpu File=/dev/zero\nName=gpu File=/dev/full\n"
"""Two fake GPUs: SLURM only counts and hands out the files."""


def why_not() -> str:
    """Why SLURM cannot be started here; empty when it can."""
    missing = [
        name
        for name in ("munged", "slurmctld", "slurmd", "sbatch")
        if not shutil.which(name)
    ]
    if missing:
        return f"no {', '.join(missing)}: SLURM is not installed (Debian: apt-get install slurm-wlm munge)"
    if os.geteuid():
        return "only root may start SLURM's daemons"
    if CONFIG.exists() and not CONFIG.read_text().startswith(MARK):
        return f"this machine has a SLURM of its own ({CONFIG})"
    return ""


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running(*call: str | Path, log: Path) -> Iterator[None]:
    """A daemon in the foreground, stopped at the end."""
    with (
        open(log, "w") as out,
        subprocess.Popen(call, stdout=out, stderr=out) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


def wait_for(*call: str, until: Callable[[str], bool], seconds: float = 60) -> None:
    """Until what the command prints is as wanted."""
    end = time.monotonic() + seconds
    while not until(
        text := subprocess.run(call, capture_output=True, text=True).stdout
    ):
        assert time.monotonic() < end, f"{call} still prints {text!r} after {seconds} s"
        time.sleep(0.2)


@contextmanager
def one_node_slurm(folder: Path) -> Iterator[None]:
    """Start munge and SLURM with state in `folder` and configuration in /etc/slurm; stop both, delete it."""
    with ExitStack() as stack:
        turn = stack.enter_context(open("/run/ecgstudy-tests-slurm", "w"))
        fcntl.flock(turn, fcntl.LOCK_EX)  # one test process at a time
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_bytes(os.urandom(1024))
        own = {
            name: f"{folder}/{name}"
            for name in ("socket", "pid-file", "seed-file", "log-file")
        }
        own |= {"key-file": f"{folder}/key", "socket": f"{folder}/munge.socket"}
        munge = [f"--{option}={path}" for option, path in own.items()]
        host = socket.gethostname().partition(".")[0]
        stack.callback(CONFIG.unlink)
        CONFIG.write_text(
            MARK + SLURM_CONF.format(host=host, folder=folder, ports=free_ports(2))
        )
        gres = CONFIG.with_name("gres.conf")
        stack.callback(gres.unlink)
        gres.write_text(GRES_CONF)
        stack.enter_context(
            running(
                "munged", "--foreground", "--force", *munge, log=folder / "munged.txt"
            )
        )
        wait_for("ls", str(folder), until=lambda text: "munge.socket" in text)
        for daemon in ("slurmctld", "slurmd"):
            stack.enter_context(running(daemon, "-D", log=folder / f"{daemon}.txt"))
        wait_for(
            "sinfo", "--noheader", "--format=%t", until=lambda text: "idle" in text
        )
        stack.callback(wait_for, "squeue", "--noheader", until=lambda text: not text)
        stack.callback(subprocess.run, ["scancel", "--user", "root"])  # called first
        yield
