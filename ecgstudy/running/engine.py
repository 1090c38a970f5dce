"""Snakemake as a subprocess: its profile, what every run of it must do, what it
left."""

import hashlib
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT, read_json
from ecgstudy.running.cache import Step, steps
from ecgstudy.running.gpus import default_profile, visible_gpus
from ecgstudy.running.processes import at_work, await_jobs
from ecgstudy.running.progress import Progress
from ecgstudy.study import Study


def make(
    study: Study,
    wanted: list[Step],
    *,
    profile: str | None = None,
    cores: int | None = None,
) -> None:
    """Have Snakemake make `wanted`, whose markers are not there; the caller has the
    lock.

    Parameters
    ----------
    study
        The study, read from a params file.
    wanted
        Steps, which may need each other.
    profile
        Where jobs run: a folder of ``profiles/``, or a path to your own; None: on
        this machine's GPUs, or its CPU.
    cores
        Jobs at a time, instead of the profile's.

    Raises
    ------
    StudyError
        When a step failed.
    """
    profile, logs = profile or default_profile(), study.paths.home / "logs"
    if profile == "gpu":
        visible_gpus()  # one error here instead of one from each job
    call = snakemake(study, wanted, profile, cores)
    for status in logs.glob("*.status"):
        status.unlink()
    seconds: dict[str, list[float]] = {}
    for step in steps(study).values():
        if done := read_json(step.marker):
            seconds.setdefault(step.name, []).append(done.get("seconds", 0.0))
    progress = Progress(wanted, logs, seconds)
    with at_work(logs) as held, open(logs / "snakemake.log", "w") as log:
        process = subprocess.Popen(call, pass_fds=[held], stdout=log, stderr=log)
        try:
            while process.poll() is None:
                progress.look()
                time.sleep(0.3)
            progress.look()
        finally:
            progress.clear()
            end(process)
    if progress.left:
        failed = [*progress.failed.values()] or [last_line(logs / "snakemake.log")]
        raise StudyError(
            f"{failed[0]} ({len(failed)} failed, {len(progress.left) - len(failed)} "
            f"wait; what is done is kept; details: {logs / 'snakemake.log'})"
        )


def snakemake(
    study: Study, wanted: list[Step], profile: str, cores: int | None
) -> list[str]:
    """The call of Snakemake that makes `wanted`.

    Parameters
    ----------
    study, wanted, profile, cores
        As for `make`.
    """
    home, file = study.paths.home, study.file
    if file.is_relative_to(ROOT):  # keeps the checkout's place out of committed files
        file = file.relative_to(ROOT)
    call = [sys.executable, "-m", "snakemake"]
    call += [str(step.marker.relative_to(home)) for step in wanted]
    call += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(home)]
    call += ["--workflow-profile", str(profile_folder(profile))]
    call += ["--cores", str(cores)] if cores else []
    # A marker is there or not, and whole: neither times nor Snakemake's records count.
    call += ["--rerun-triggers", "mtime", "--ignore-incomplete", "--nolock"]
    call += ["--keep-going", "--slurm-jobname-prefix", job_prefix(home)]
    return [*call, "--config", f"params={file}"]


def end(process: subprocess.Popen) -> None:
    """Wait for Snakemake, which Ctrl-C reaches too; after a while, stop its jobs."""
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        for job in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                job.terminate()
        process.send_signal(signal.SIGINT)
        process.wait()


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "Snakemake could not be started"


def profile_folder(name: str) -> Path:
    """Folder of a Snakemake profile: one of ``profiles/``, or a path to your own.

    Raises
    ------
    StudyError
        When there is none.
    """
    for folder in (ROOT / "profiles" / name, Path(name).resolve()):
        if (folder / "config.yaml").is_file():
            return folder
    known = sorted(path.parent.name for path in ROOT.glob("profiles/*/config.yaml"))
    raise StudyError(
        f"profile {name!r} is neither one of {', '.join(known)} nor a folder with a "
        "config.yaml"
    )


def await_left_over_jobs(home: Path, killed: bool) -> None:
    """Let the jobs of a killed run end, and cancel those that it sent to SLURM.

    Parameters
    ----------
    home
        Folder of the study.
    killed
        Whether the last run was killed.

    Raises
    ------
    StudyError
        When SLURM does not answer, or the study's folder cannot be written.
    """
    if killed and (home / ".snakemake/slurm_logs").exists():
        cancel_left_over_jobs(home)
    await_jobs(home / "logs")


def job_prefix(home: Path) -> str:
    """What the names of the study's SLURM jobs begin with: no other study's do."""
    place = hashlib.sha256(bytes(home.resolve())).hexdigest()[:8]
    return f"{home.name[:40]}-{place}"


def cancel_left_over_jobs(home: Path) -> None:
    """Cancel the SLURM jobs of a killed run, which would write the same files.

    Raises
    ------
    StudyError
        When SLURM does not answer.
    """
    queue = ["squeue", "--me", "--noheader", "--format", "%i %j"]
    asked = {"capture_output": True, "text": True, "timeout": 60}
    try:
        while True:
            jobs = subprocess.run(queue, check=True, **asked).stdout.splitlines()
            ours = f" {job_prefix(home)}_"
            left = [job.split()[0] for job in jobs if ours in job]
            if not left:
                return
            subprocess.run(["scancel", *left], **asked)
            time.sleep(1)
    except (OSError, subprocess.SubprocessError) as error:
        raise StudyError(
            f"{home}: a killed run may have left jobs in SLURM, but: {error}"
        ) from error
