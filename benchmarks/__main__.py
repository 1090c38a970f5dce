"""``python -m benchmarks``: measure, and write ``outputs/bench/<device>`` as table, JSON and plot.

Each part (`PARTS`) compares variants side by side in one run; times are medians over repeats, with quartiles.
"""

import argparse
import importlib
import json
import os
import platform
from pathlib import Path

import pandas as pd
import torch

from benchmarks.plot import plotted
from benchmarks.timing import Row
from ecgstudy.devices import pick_device
from ecgstudy.files import ROOT, whole_file, write_json
from ecgstudy.plots.style import save_figure
from ecgstudy.running.provenance import git_commit

PARTS = {
    "steps": "efficiency", "launches": "launches", "peers": "peers", "loss": "losses",
    "resampling": "resampling", "growth": "growth", "whole": "whole",
}  # fmt: skip
"""Module of this package → its function (device, repeats) → rows."""


def machine(device: torch.device) -> dict[str, object]:
    """What the numbers were measured on."""
    cores = len(os.sched_getaffinity(0))
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": gpu or f"{_cpu()}, {cores} cores, {torch.get_num_threads()} thread", "cores": cores,
        "capability": torch.backends.cpu.get_cpu_capability(), "system": platform.platform(),
        "python": platform.python_version(), "torch": torch.__version__, "commit": git_commit(ROOT),
    }  # fmt: skip


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [
        line.split(":")[1].strip() for line in lines if line.startswith("model name")
    ]
    return found[0] if found else platform.processor()


def main() -> None:
    """Run the parts named, or all of them; those measured before stay in the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], help="all of them unless named"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # as in a study: one thread a job
    device = pick_device(chosen.device)
    path = chosen.out / f"{device.type}.json"
    known = json.loads(path.read_text())["parts"] if path.exists() else {}
    for part in chosen.parts or PARTS:
        rows: list[Row] = getattr(
            importlib.import_module(f"benchmarks.{part}"), PARTS[part]
        )(device, chosen.repeats)
        known[part] = {
            "machine": machine(device),
            "repeats": chosen.repeats,
            "rows": rows,
        }
        print(pd.DataFrame(rows).to_string(index=False, max_colwidth=60), flush=True)
        write_json(path, {"parts": known})
    table = pd.DataFrame(
        [
            {"part": name, **each}
            for name, found in known.items()
            for each in found["rows"]
        ]
    )
    with whole_file(path.with_suffix(".csv")) as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    figure = plotted(table, machine(device)["device"])
    caption = "Ratios of the benchmarks (1: alike)"
    save_figure(figure, chosen.out, device.type, table, caption)


if __name__ == "__main__":
    main()
