"""Time and memory against records, batch, attack steps and leads, with the exponent of each."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Generator

from benchmarks.shapes import Case, case
from benchmarks.timing import Row, peak_mb, row, side_by_side
from ecgstudy.attacks.api import Budget
from ecgstudy.attacks.named import get_attack
from ecgstudy.pretraining.loop import train_step

RECORDS, BATCHES, STEPS, LEADS = (
    (256, 512, 1024, 2048),
    (64, 128, 256, 512),
    (5, 10, 20, 40),
    (1, 2, 4, 12),
)


def growth(device: torch.device, repeats: int) -> list[Row]:
    """Seconds and peak MB of each size, and the fitted exponents (1: proportional)."""
    shapes, rows = case("ptbxl", records=max(BATCHES) * 2), []
    grids: dict[str, dict[int, Callable[[], object]]] = {
        "attacked records": {n: _attack(shapes, device, records=n) for n in RECORDS},
        "attack steps": {n: _attack(shapes, device, steps=n) for n in STEPS},
        "leads attacked": {n: _attack(_first_leads(shapes, n), device) for n in LEADS},
        "batch of a pretraining step": {n: _train(shapes, device, n) for n in BATCHES},
    }
    for what, calls in grids.items():
        rows += _grown(what, calls, device, max(3, repeats // 3))
    return rows


def _grown(
    what: str,
    calls: dict[int, Callable[[], object]],
    device: torch.device,
    repeats: int,
) -> list[Row]:
    seconds = side_by_side({str(n): call for n, call in calls.items()}, repeats, device)
    sizes, times = (
        np.array(list(calls)),
        np.array([np.median(values) for values in seconds.values()]),
    )
    memory = np.array([peak_mb(call, device) for call in calls.values()])
    rows = []
    for measure, values, unit in (("time", times, "s"), ("memory", memory, "MB")):
        slope = float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])
        rows += [
            row(
                f"growth, {measure}",
                what,
                str(n),
                float(v),
                unit,
                size=int(n),
                exponent=slope,
            )
            for n, v in zip(sizes, values, strict=True)
        ]
    return rows


def _attack(
    shapes: Case, device: torch.device, records: int = 256, steps: int = 10
) -> Callable[[], object]:
    victim, budget = shapes.victim(device), Budget(0.02, steps)
    signals, labels = shapes.signals(records, device), shapes.labels(records, device)
    stream = Generator(device).manual_seed(0)
    return lambda: get_attack("apgd-margin")(victim, signals, labels, budget, stream)


def _train(shapes: Case, device: torch.device, batch: int) -> Callable[[], object]:
    state, data = shapes.training("rocl-ip-hn", device)
    index = torch.arange(batch, device=device) % len(data.signals)
    return lambda: train_step(state, data, index, 1e-4)


def _first_leads(shapes: Case, leads: int) -> Case:
    records = shapes.records
    return replace(
        shapes,
        records=replace(
            records,
            signals=records.signals[:, :leads].copy(),
            leads=records.leads[:leads],
        ),
    )
