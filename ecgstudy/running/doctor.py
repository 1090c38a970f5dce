"""What is here, what is missing, and the command that mends it: ``make doctor``.

Imports nothing that may be missing, so that it also speaks where the installation is broken
or Python too old.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT
from ecgstudy.running.provenance import git_commit

INSTALL = "rm -rf .venv && make .venv/installed"
RECORDS = {"mitdb": ("*.hea", 48), "ptbxl": ("records100/*/*.hea", 21_799)}
"""Data set → where its headers are, and how many the complete one has."""
NEEDED_GB = 5
"""Free space that downloads of both data sets and a study take, with room."""
PACKAGES_GB = 8
"""Free space that the packages take where they are not installed yet: torch with CUDA is most of it."""
FEW = 10
"""More packages than these that are not as pinned are one line."""


class Finding(NamedTuple):
    """One line: `good` None is worth knowing, and no fault."""

    what: str
    found: str
    good: bool | None = True
    mend: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which they are printed."""
    return [*_python(), *_packages(), *_device(), *_data(), *_disk(), *_checkout()]


def _python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield Finding(
        "Python",
        platform.python_version(),
        good,
        "install Python 3.11 or later, then " + INSTALL,
    )


def _packages(lock: Path = ROOT / "requirements.lock") -> Iterator[Finding]:
    """One line if every package is as pinned, or most of them are missing; else one for each that is not."""
    pins = dict(
        re.findall(
            r"^([\w.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    wrong = {
        name: found for name, pin in pins.items() if (found := _version(name)) != pin
    }
    if not wrong:
        yield Finding("packages", f"all {len(pins)} as in {lock.name}")
    if len(wrong) > FEW or wrong.get("torch", "") is None:
        found = f"{len(wrong)} of {len(pins)} missing or not as in {lock.name}"
        yield Finding("packages", found, False, INSTALL)
        return
    for name, found in wrong.items():
        yield Finding(
            name, f"{found or 'missing'}; pinned is {pins[name]}", False, INSTALL
        )


def _version(name: str) -> str | None:
    """Without a local suffix: torch's says which build it is."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def _device() -> Iterator[Finding]:
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    yield Finding("processor", f"{cores} cores, {platform.machine()}", None)
    if _version("torch") is None:
        return
    import torch

    from ecgstudy.devices import pick_device, pick_precision

    device = pick_device("auto")
    precision = pick_precision("auto", device)
    gpus, listed = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        _listed_gpus(),
    )
    if listed and not torch.cuda.is_available():
        found = f"nvidia-smi lists {', '.join(listed)}, but torch {torch.__version__} finds none"
        mend = f"{INSTALL} without PIP_EXTRA_INDEX_URL, or a newer driver, or make study PROFILE=local"
        yield Finding("GPU", found, False, mend)
    else:
        yield Finding(
            "GPU",
            ", ".join(gpus) or "none that torch finds; studies run on the CPU",
            None,
        )
    yield Finding("training precision", f"{precision} on {device.type}", None)


def _listed_gpus() -> list[str]:
    """Those of nvidia-smi that are not hidden."""
    from ecgstudy.running.gpus import listed_gpus, visible_gpus

    try:
        return visible_gpus() if listed_gpus() else []
    except StudyError:  # all are hidden
        return []


def _data() -> Iterator[Finding]:
    """Where each real data set is; one that is not on disk is downloaded when a study needs it."""
    shared = os.environ.get("ECGSTUDY_DATA")
    if shared and not Path(shared).is_dir():
        mend = "set it to the folder that holds mitdb/ and ptbxl/, or unset it"
        yield Finding("ECGSTUDY_DATA", f"{shared} is no folder", False, mend)
    for name, (pattern, complete) in RECORDS.items():
        places = [Path(shared) / name] if shared else []
        places.append(ROOT / "outputs" / "downloads" / name)
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            mend = f"`make study STUDY={name}` downloads it, or set ECGSTUDY_DATA"
            yield Finding(name, "not on disk", None, mend)
            continue
        count = sum(1 for _ in folder.glob(pattern))
        mend = (
            "" if count >= complete else f"`make study STUDY={name}` uses what is there"
        )
        yield Finding(
            name,
            f"{count:,} of {complete:,} records in {folder}",
            None if count else False,
            mend,
        )


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(ROOT).free / 1e9
    needed = NEEDED_GB + PACKAGES_GB * (_version("torch") is None)
    yield Finding(
        "disk",
        f"{free:.0f} GB free",
        free >= needed,
        f"free {needed} GB, or clone elsewhere",
    )
    writable = os.access(
        ROOT / "outputs" if (ROOT / "outputs").exists() else ROOT, os.W_OK
    )
    yield Finding(
        "outputs",
        "writable" if writable else "read-only",
        writable,
        "clone where you may write",
    )


def _checkout() -> Iterator[Finding]:
    commit = git_commit(ROOT) or "no git checkout: provenance will not name a commit"
    yield Finding("commit", commit, None)


def main() -> int:
    """Print the findings; 1 if anything has to be mended."""
    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for what, found, good, mend in findings:
        mark = {True: "ok", False: "!!", None: "  "}[good]
        print(f"{mark}  {what:<{width}}  {found}")
        if mend and not good:
            print(f"    {'':<{width}}  → {mend}")
    faults = sum(finding.good is False for finding in findings)
    print(f"\n{faults or 'nothing'} to mend" if faults != 1 else "\n1 thing to mend")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
