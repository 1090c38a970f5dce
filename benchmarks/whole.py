"""The whole quick study in a fresh clone: from nothing, and with nothing to do."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.timing import Row, row
from ecgstudy.files import ROOT


def measure(device: torch.device, repeats: int) -> list[Row]:
    """Seconds of `make study` (``params/quick.yaml``), at first and once it is done.

    Without installing, on all cores.
    """
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(
            ["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", str(clone)],
            check=True,
        )
        cores = f"{len(os.sched_getaffinity(0))} cores"
        cold = row("whole quick study", "from nothing", cores, _seconds(clone), "s")
        again = [_seconds(clone) for _ in range(3)]
        return [
            cold,
            row(
                "whole quick study", "with nothing to do", cores, sorted(again)[1], "s"
            ),
        ]


def _seconds(clone: Path) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "ecgstudy", "study", "params/quick.yaml"]
    subprocess.run(
        command,
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started
