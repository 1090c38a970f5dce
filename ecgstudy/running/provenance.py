"""What a result rests on: stamps of parameters and code, versions, commit, machine."""

from __future__ import annotations  # `make doctor` speaks in Python 3.9 too

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from ecgstudy.files import read_json, stamp

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "wfdb",
    "neurokit2",
    "matplotlib",
)


STAMP = re.compile("[0-9a-f]{16}")
"""What `stamp` returns."""


def settings(content: dict) -> str:
    """Short hash of what a ``run.json`` asks for, without the stamps of code in it."""
    return stamp(_without_stamps(content))


def _without_stamps(content: object) -> object:
    if isinstance(content, dict):
        return {key: _without_stamps(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_stamps(value) for value in content]
    return None if isinstance(content, str) and STAMP.fullmatch(content) else content


def is_done(folder: Path) -> bool:
    """Whether the step in `folder` was done for what its ``run.json`` asks for now."""
    stamps = [
        read_json(folder / name).get("stamp")
        for name in ("run.json", "provenance.json")
    ]
    return stamps[0] is not None and stamps[0] == stamps[1]


def git_commit(folder: str | Path = ".") -> str | None:
    """Commit of the checkout at `folder`, with ``+`` when files differ from it; None outside git."""
    try:
        call = [
            "git",
            "-C",
            str(folder),
            "describe",
            "--always",
            "--abbrev=12",
            "--dirty=+",
            "--match=",
        ]
        return subprocess.run(
            call, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment(folder: str | Path = ".") -> dict:
    """Versions, commit and machine, as plain JSON types."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": git_commit(folder),
        "machine": f"{platform.system()} {platform.machine()}",
    }
