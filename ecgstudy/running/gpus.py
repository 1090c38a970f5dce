"""Slots on the GPUs of one machine: several jobs share each GPU.

A slot is a file; whoever holds its lock may use the GPU. The kernel releases the lock
when the process ends, however it ends, so there is nothing to clean up.
``CUDA_VISIBLE_DEVICES`` is set before torch is loaded, so that it sees no other GPU,
and `HELD`, so that the job does not compute on the CPU while it holds a GPU. All
studies of a user on the machine share the slots.
"""

import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ecgstudy.errors import StudyError
from ecgstudy.files import HELD, lock

SLOTS = Path("/dev/shm") / f"ecgstudy-gpus-{os.getuid()}"
"""Folder of the slots, on this machine alone: clusters share home folders."""


def listed_gpus() -> dict[str, str]:
    """Number → UUID of the machine's GPUs, as ``nvidia-smi`` lists them, if it runs."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(
            query, check=True, capture_output=True, text=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split(", ", 1) for line in listed.splitlines() if ", " in line)


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: UUIDs, which all programs know.

    Numbers in ``CUDA_VISIBLE_DEVICES`` are those of ``nvidia-smi``. A negative one ends
    the list, as in CUDA, and a GPU named twice is one.

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
            f"no GPU to run on: nvidia-smi lists {len(known)}, CUDA_VISIBLE_DEVICES is "
            f"{chosen!r}; use the profile 'local'"
        )
    return gpus


def default_profile() -> str:
    """The profile of this machine: ``gpu`` where there are some that are not hidden."""
    with suppress(StudyError):
        if listed_gpus() and visible_gpus():
            return "gpu"
    return "local"


@contextmanager
def held(jobs_per_gpu: int, wanted: int, folder: Path = SLOTS) -> Iterator[None]:
    """Wait for slots, and hold them; this process and its children see no other GPU.

    Parameters
    ----------
    jobs_per_gpu
        Slots of each GPU; 0: GPUs are not shared, take any at once.
    wanted
        GPUs that the job asks for; 0: it sees none.
    folder
        Where the slots are.

    Raises
    ------
    StudyError
        When there is no GPU, or fewer than wanted.
    """
    os.environ.pop(HELD, None)
    with ExitStack() as slots:
        if jobs_per_gpu and not wanted:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif jobs_per_gpu:
            gpus = visible_gpus()
            while not (claimed := claim(gpus, jobs_per_gpu, wanted, folder)):
                time.sleep(0.5)
            for slot in itertools.chain(*claimed.values()):
                slots.enter_context(slot)
            names = ",".join(claimed)
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[HELD] = names
        yield


def claim(
    gpus: list[str], jobs_per_gpu: int, wanted: int, folder: Path
) -> dict[str, list[TextIO]]:
    """Take a slot of the GPU with most free ones, or all slots of several GPUs.

    Parameters
    ----------
    gpus
        Names of the GPUs.
    jobs_per_gpu
        Slots of each GPU.
    wanted
        GPUs that the job asks for.
    folder
        Where the slots are.

    Returns
    -------
    dict
        Name of each claimed GPU → its locked files, held until they are closed. Empty
        if the slots are taken.

    Raises
    ------
    StudyError
        When there are fewer GPUs than wanted.
    """
    if wanted > len(gpus):
        raise StudyError(
            f"a job asks for {wanted} GPUs (resources in the params file), but "
            f"{len(gpus)} are here"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    each = 1 if wanted == 1 else jobs_per_gpu
    with open(folder / "choosing", "w") as choosing:
        lock(choosing)  # one at a time, so that nobody takes what another looks at
        free = {gpu: _free_slots(folder, gpu, jobs_per_gpu) for gpu in gpus}
        emptiest = sorted(gpus, key=lambda gpu: -len(free[gpu]))[:wanted]
        claimed = {gpu: free[gpu][:each] for gpu in emptiest}
        if any(len(slots) < each for slots in claimed.values()):
            claimed = {}
        for gpu, slots in free.items():
            for slot in slots[len(claimed.get(gpu, [])) :]:
                slot.close()
    return claimed


def _free_slots(folder: Path, gpu: str, jobs_per_gpu: int) -> list[TextIO]:
    free = []
    for number in range(jobs_per_gpu):
        slot = open(folder / f"{gpu.replace('/', '_')}.{number}", "w")  # noqa: SIM115
        if lock(slot, wait=False):
            free.append(slot)
        else:
            slot.close()
    return free
