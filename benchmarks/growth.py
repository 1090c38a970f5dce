"""Time and memory against records, batch, attack steps and leads."""

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

RECORDS = (256, 512, 1024, 2048)
BATCHES = (64, 128, 256, 512)
STEPS = (5, 10, 20, 40)
LEADS = (1, 2, 4, 12)
Calls = dict[int, Callable[[], object]]


def measure(device: torch.device, repeats: int) -> list[Row]:
    """Seconds and peak MB of each size, and the fitted exponents (1: proportional)."""
    shapes = case("ptbxl", records=max(BATCHES) * 2)
    grids: dict[str, Calls] = {
        "attacked records": {n: _attack(shapes, device, records=n) for n in RECORDS},
        "attack steps": {n: _attack(shapes, device, steps=n) for n in STEPS},
        "leads attacked": {n: _attack(_first_leads(shapes, n), device) for n in LEADS},
        "batch of a pretraining step": {n: _train(shapes, device, n) for n in BATCHES},
    }
    rows = []
    for what, calls in grids.items():
        rows += fit_growth(what, calls, device, max(3, repeats // 3))
    return rows


def fit_growth(
    what: str, calls: Calls, device: torch.device, repeats: int
) -> list[Row]:
    """Rows of time and memory at each size, with the exponent of each.

    Parameters
    ----------
    what
        What grows.
    calls
        Size → work of that size.
    device
        Where it is done.
    repeats
        How often each is timed.
    """
    named = {str(size): call for size, call in calls.items()}
    seconds = side_by_side(named, repeats, device)
    found = {
        ("time", "s"): [np.median(values) for values in seconds.values()],
        ("memory", "MB"): [peak_mb(call, device) for call in calls.values()],
    }
    rows = []
    for (measure, unit), values in found.items():
        logs = np.log(list(calls)), np.log(np.maximum(values, 1e-9))
        more = {"exponent": float(np.polyfit(*logs, 1)[0])}
        for size, value in zip(calls, values, strict=True):
            more["size"] = int(size)
            name = f"growth, {measure}"
            rows.append(row(name, what, str(size), float(value), unit, **more))
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


def _first_leads(shapes: Case, n: int) -> Case:
    signals, leads = shapes.records.signals[:, :n].copy(), shapes.records.leads[:n]
    return replace(
        shapes, records=replace(shapes.records, signals=signals, leads=leads)
    )
