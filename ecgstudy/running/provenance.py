"""What a result was made with: versions, commit, machine."""

from __future__ import annotations  # `make doctor` runs on Python 3.9 too

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from ecgstudy.files import ROOT, read_json, write_json

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


def write_provenance(folder: Path, parameters: dict, seconds: float) -> None:
    """Write ``provenance.json``: the step that ``run.json`` in `folder` asks for is
    done.

    Parameters
    ----------
    folder
        The step's folder.
    parameters
        Those of its notebook.
    seconds
        How long it took.
    """
    done = {
        "key": read_json(folder / "run.json").get("key"),
        "parameters": parameters,
        "seconds": round(seconds, 1),
    }
    write_json(folder / "provenance.json", done | environment(ROOT))


def git_commit(folder: str | Path = ".") -> str | None:
    """Commit of the checkout at `folder`, with ``+`` when files differ from it."""
    call = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12"]
    call += ["--dirty=+", "--match="]
    try:
        found = subprocess.run(
            call, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def environment(folder: str | Path = ".") -> dict:
    """Versions, commit and machine, as plain JSON types."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": git_commit(folder),
        "machine": f"{platform.system()} {platform.machine()}",
    }
