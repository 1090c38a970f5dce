"""Variants timed side by side: in turn, so that what slows the machine slows all."""

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

Row = dict[str, object]
"""A line of the table; see `row`."""


def row(
    benchmark: str, case: str, variant: str, value: float, unit: str, **more: object
) -> Row:
    """One measured value, as a line of the table.

    Parameters
    ----------
    benchmark, case
        What was measured, and in which situation.
    variant
        One of two or more that are compared.
    value, unit
        What was found.
    more
        Further columns.
    """
    named = {"benchmark": benchmark, "case": case, "variant": variant}
    return {**named, "value": value, "unit": unit, **more}


def side_by_side(
    variants: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, np.ndarray]:
    """Seconds of each call, (repeats,), after one call of each that is not counted.

    In every round each variant is called once, in an order that rotates.

    Parameters
    ----------
    variants
        What to call, by name.
    repeats
        Number of rounds.
    device
        Where they compute: a GPU is waited for.
    """
    names = list(variants)
    for name in names:
        _seconds(variants[name], device)
    found = {name: np.empty(repeats) for name in names}
    for turn in range(repeats):
        for name in np.roll(names, turn):
            found[name][turn] = _seconds(variants[name], device)
    return found


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare_times(
    benchmark: str,
    case: str,
    seconds: dict[str, np.ndarray],
    units: dict[str, float],
    base: str,
    unit: str,
) -> list[Row]:
    """Rows of medians with quartiles, and the median over rounds of base / variant.

    Parameters
    ----------
    benchmark, case
        As for `row`.
    seconds
        Variant → seconds of each round, (repeats,).
    units
        How much work one call of each variant does (steps, records, …), in `unit`.
    base
        The variant that the others are compared with: `ratio` is its time over theirs,
        in the same round.
    unit
        Of the work.
    """
    each = {name: values / units[name] for name, values in seconds.items()}
    rows = []
    for name, values in each.items():
        low, middle, high = 1000 * np.quantile(values, [0.25, 0.5, 0.75])
        ratio = float(np.median(each[base] / values))
        more = {"low": low, "high": high, "ratio": ratio, "base": base}
        rows.append(row(benchmark, case, name, middle, f"ms / {unit}", **more))
    return rows


def peak_mb(call: Callable[[], object], device: torch.device) -> float:
    """Memory in MB that `call` needs at its peak, beyond what was taken before.

    On a CPU the call runs in a forked process of its own, whose high-water mark is
    read.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(call, theirs))
    process.start()
    theirs.close()
    megabytes = ours.recv()
    process.join()
    return megabytes


def _measured(
    call: Callable[[], object], answer: multiprocessing.connection.Connection
) -> None:
    # What earlier calls left free in the heap would be used again, unseen.
    ctypes.CDLL(None).malloc_trim(0)
    # 5: the high-water mark falls to what is taken now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_kb()
    call()
    answer.send((_peak_kb() - before) / 1024)


def _peak_kb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return float(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM")
