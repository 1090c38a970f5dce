"""What is here, what is missing, and the command that fixes it: ``ecgstudy doctor``.

Imports nothing that may be missing, so that it also runs where the installation is
broken or Python too old.
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

from ecgstudy.files import ROOT
from ecgstudy.running.provenance import git_commit

INSTALL = "rm -rf .venv && make .venv/installed"
RECORDS = {"mitdb": ("*.hea", 48), "ptbxl": ("records100/*/*.hea", 21_799)}
"""Data set → where its headers are, and how many the complete one has."""
NEEDED_GB = 5
"""Free space that downloads of both data sets and a study take, with room."""
PACKAGES_GB = 8
"""Free space that packages take which are not installed yet: torch with CUDA above
all."""
FEW = 10
"""More packages than these that are not as pinned are one line."""


class Finding(NamedTuple):
    """One line: `good` None is information, not a fault."""

    what: str
    found: str
    good: bool | None = True
    fix: str = ""


def print_findings() -> int:
    """Print all findings; 1 if anything has to be fixed."""
    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = {True: "ok", False: "!!", None: "  "}[finding.good]
        print(f"{mark}  {finding.what:<{width}}  {finding.found}")
        if finding.fix and not finding.good:
            print(f"    {'':<{width}}  → {finding.fix}")
    faults = [finding.what for finding in findings if finding.good is False]
    print(f"\nto fix: {', '.join(faults)}" if faults else "\nall checks passed")
    return 1 if faults else 0


def examine() -> list[Finding]:
    """All findings, in the order in which they are printed."""
    return [*_python(), *_packages(), *_device(), *_data(), *_disk(), *_checkout()]


def _python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    fix = f"install Python 3.11 or later, then {INSTALL}"
    yield Finding("Python", platform.python_version(), good, fix)


def _packages(lock: Path = ROOT / "requirements.lock") -> Iterator[Finding]:
    """One line if all are as pinned, or most are missing; else one for each."""
    text = lock.read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    installed = {name: _version(name) for name in pins}
    wrong = [name for name, pin in pins.items() if installed[name] != pin]
    if not wrong:
        yield Finding("packages", f"all {len(pins)} as in {lock.name}")
    elif len(wrong) > FEW or ("torch" in wrong and installed["torch"] is None):
        found = f"{len(wrong)} of {len(pins)} missing or not as in {lock.name}"
        yield Finding("packages", found, False, INSTALL)
    else:
        for name in wrong:
            found = f"{installed[name] or 'missing'}; pinned is {pins[name]}"
            yield Finding(name, found, False, INSTALL)


def _version(name: str) -> str | None:
    """Without a local suffix: torch's says which build it is."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def _device() -> Iterator[Finding]:
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    yield Finding("processor", f"{cores} cores, {platform.machine()}", None)
    if _version("torch") is None:
        return
    import torch

    from ecgstudy.devices import pick_device, pick_precision
    from ecgstudy.running.gpus import default_profile, visible_gpus

    listed = visible_gpus() if default_profile() == "gpu" else []
    if listed and not torch.cuda.is_available():
        found = f"nvidia-smi lists {', '.join(listed)}, but torch "
        found += f"{torch.__version__} finds none"
        fix = f"{INSTALL} without PIP_EXTRA_INDEX_URL, or a newer driver, or make "
        yield Finding("GPU", found, False, fix + "study PROFILE=local")
    else:
        count = torch.cuda.device_count()
        names = [torch.cuda.get_device_name(index) for index in range(count)]
        found = ", ".join(names) or "none that torch finds; studies run on the CPU"
        yield Finding("GPU", found, None)
    device = pick_device("auto")
    precision = pick_precision("auto", device)
    yield Finding("training precision", f"{precision} on {device.type}", None)


def _data() -> Iterator[Finding]:
    """Where each real data set is; others are downloaded when a study needs them."""
    shared = os.environ.get("ECGSTUDY_DATA")
    if shared and not Path(shared).is_dir():
        fix = "set it to the folder that holds mitdb/ and ptbxl/, or unset it"
        yield Finding("ECGSTUDY_DATA", f"{shared} is no folder", False, fix)
    for name, (pattern, complete) in RECORDS.items():
        places = [Path(shared) / name] if shared else []
        places.append(ROOT / "outputs" / "downloads" / name)
        there = [place for place in places if place.is_dir()]
        fix = f"`make study STUDY={name}` downloads it, or set ECGSTUDY_DATA"
        if not there:
            yield Finding(name, "not on disk", None, fix)
            continue
        count = sum(1 for _ in there[0].glob(pattern))
        found = f"{count:,} of {complete:,} records in {there[0]}"
        if 0 < count < complete:
            fix = f"`make study STUDY={name}` uses what is there"
        yield Finding(name, found, None if count else False, fix)


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(ROOT).free / 1e9
    needed = NEEDED_GB + (PACKAGES_GB if _version("torch") is None else 0)
    fix = f"free {needed} GB, or clone elsewhere"
    yield Finding("disk", f"{free:.0f} GB free", free >= needed, fix)
    folder = ROOT / "outputs" if (ROOT / "outputs").exists() else ROOT
    writable = os.access(folder, os.W_OK)
    found = "writable" if writable else "read-only"
    yield Finding("outputs", found, writable, "clone where you may write")


def _checkout() -> Iterator[Finding]:
    commit = git_commit(ROOT) or "no git checkout: provenance will not name a commit"
    yield Finding("commit", commit, None)
