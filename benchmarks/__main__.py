"""``python -m benchmarks``: measure, and write ``outputs/bench/<device>``.

As table, JSON and plot. Each part compares variants side by side in one run; times are
medians over repeats, with quartiles.
"""

import argparse
import json
import os
import platform
from importlib import import_module
from pathlib import Path

import pandas as pd
import torch

from benchmarks.plot import plot_ratios
from ecgstudy.devices import pick_device
from ecgstudy.files import ROOT, whole_file, write_json
from ecgstudy.plots.style import save_figure
from ecgstudy.running.provenance import git_commit

PARTS = ("steps", "launches", "peers", "loss", "resampling", "growth", "whole")
"""Modules of this package with a function `measure` (device, repeats) → rows."""


def describe_machine(device: torch.device) -> dict[str, object]:
    """What the numbers were measured on."""
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    name = f"{_cpu_name()}, {cores} cores, {threads} thread"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": name,
        "cores": cores,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": git_commit(ROOT),
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main() -> None:
    """Run the parts named, or all of them; those measured before stay in the table."""
    summary = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=summary)
    choices = [*PARTS, []]
    parser.add_argument("parts", nargs="*", choices=choices, help="all unless named")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # as in a study: one thread a job
    device = pick_device(chosen.device)
    path = chosen.out / f"{device.type}.json"
    known = json.loads(path.read_text())["parts"] if path.exists() else {}
    for part in chosen.parts or PARTS:
        rows = import_module(f"benchmarks.{part}").measure(device, chosen.repeats)
        machine = describe_machine(device)
        known[part] = {"machine": machine, "repeats": chosen.repeats, "rows": rows}
        print(pd.DataFrame(rows).to_string(index=False, max_colwidth=60), flush=True)
        write_json(path, {"parts": known})
    write_table(known, path, describe_machine(device)["device"])


def write_table(parts: dict[str, dict], path: Path, machine: str) -> None:
    """Table and plot of all parts, beside their JSON file `path`.

    Parameters
    ----------
    parts
        Content of the JSON file.
    path
        ``<device>.json``.
    machine
        Title of the plot.
    """
    rows = [
        {"part": name, **row} for name, part in parts.items() for row in part["rows"]
    ]
    table = pd.DataFrame(rows)
    with whole_file(path.with_suffix(".csv")) as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    if "ratio" in table:
        caption = "Ratios of the benchmarks (1: alike)"
        figure = plot_ratios(table, machine)
        save_figure(figure, path.parent, path.stem, table, caption)


if __name__ == "__main__":
    main()
