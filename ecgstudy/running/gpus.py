"""Slots on the GPUs of one machine: several jobs share each GPU, and none is oversubscribed.

A slot is a file; whoever holds its lock may use the GPU. The kernel lets go of the lock when the process
dies, however it dies, so there is nothing to clean up. ``CUDA_VISIBLE_DEVICES`` is set before the job's
program starts, so that torch sees no other GPU, and `HELD`, so that the job does not compute on the CPU while
it holds one. All studies of a user on the machine share the slots.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from ecgstudy.errors import StudyError, command
from ecgstudy.files import HELD, lock

SLOTS = Path("/dev/shm") / f"ecgstudy-gpus-{os.getuid()}"
"""Where the slots are: on this machine in every case, unlike home and temporary folders of clusters."""


def listed_gpus() -> dict[str, str]:
    """Number → UUID of the machine's GPUs, as ``nvidia-smi`` lists them; none where that does not run."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(
            query, check=True, capture_output=True, text=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split(", ", 1) for line in listed.splitlines() if ", " in line)


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: UUIDs, which mean the same to all programs.

    Numbers in ``CUDA_VISIBLE_DEVICES`` are understood as those of ``nvidia-smi``. A negative one ends the
    list, as in CUDA, and a GPU named twice is one.

    Raises
    ------
    StudyError
        When there is none.
    """
    known = listed_gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [*known] if chosen is None else [name.strip() for name in chosen.split(",")]
    names = itertools.takewhile(lambda name: not re.fullmatch("-[0-9]+", name), names)
    gpus = list(dict.fromkeys(known.get(name, name) for name in names if name))
    if not gpus:
        raise StudyError(
            f"no GPU to run on: nvidia-smi lists {len(known)}, CUDA_VISIBLE_DEVICES is {chosen!r};"
            " use the profile 'local'"
        )
    return gpus


def claim(
    gpus: list[str], jobs_per_gpu: int, wanted: int, folder: Path
) -> dict[str, list[TextIO]]:
    """Take a slot of the emptiest GPU, or for several wanted GPUs all slots of each; empty if they are taken.

    Parameters
    ----------
    jobs_per_gpu
        Slots of each GPU.
    folder
        Where the slots are.

    Returns
    -------
    dict
        Name of each claimed GPU → its locked files. It is held until they are closed, here and in the
        programs that inherit them.

    Raises
    ------
    StudyError
        When there are fewer GPUs than wanted.
    """
    if wanted > len(gpus):
        raise StudyError(
            f"a job asks for {wanted} GPUs (resources in the params file), but {len(gpus)} are here"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / "choosing", "w") as choosing:
        lock(choosing)  # one at a time, so that nobody takes what another looks at
        free = {
            gpu: _free_slots(folder / gpu.replace("/", "_"), jobs_per_gpu)
            for gpu in gpus
        }
        each = 1 if wanted == 1 else jobs_per_gpu
        emptiest = sorted(gpus, key=lambda gpu: -len(free[gpu]))[:wanted]
        enough = all(len(free[gpu]) >= each for gpu in emptiest)
        claimed = {gpu: free[gpu][:each] for gpu in emptiest} if enough else {}
        for gpu, slots in free.items():
            for slot in slots[len(claimed.get(gpu, [])) :]:
                slot.close()
    return claimed


def _free_slots(stem: Path, jobs_per_gpu: int) -> list[TextIO]:
    slots = [open(f"{stem}.{number}", "w") for number in range(jobs_per_gpu)]  # noqa: SIM115
    free = []
    for slot in slots:
        if lock(slot, wait=False):
            free.append(slot)
        else:
            slot.close()
    return free


def run(jobs_per_gpu: int, wanted: int, command: list[str], folder: Path) -> None:
    """Become `command` once there is room for it; with no slots to share (0 jobs) at once, on any GPU.

    Raises
    ------
    StudyError
        When there is no GPU, or fewer than wanted.
    """
    os.environ.pop(HELD, None)
    if jobs_per_gpu and not wanted:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif jobs_per_gpu:
        gpus = visible_gpus()
        while not (claimed := claim(gpus, jobs_per_gpu, wanted, folder)):
            time.sleep(0.5)
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[HELD] = ",".join(claimed)
        for slot in itertools.chain(*claimed.values()):
            os.set_inheritable(slot.fileno(), True)
    os.execvp(command[0], command)


@command
def main(arguments: list[str] | None) -> None:
    """Command line: ``JOBS_PER_GPU GPUS COMMAND…``."""
    parser = argparse.ArgumentParser(
        prog="python -m ecgstudy.running.gpus", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--slots", type=Path, default=SLOTS, help="folder of the slots")
    parser.add_argument("jobs_per_gpu", type=int)
    parser.add_argument("gpus", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)
    run(chosen.jobs_per_gpu, chosen.gpus, chosen.command, chosen.slots)


if __name__ == "__main__":
    sys.exit(main())
