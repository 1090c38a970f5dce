"""Operations that a GPU would be asked to do in a step, and waits for their outcome.

Counted without a GPU. One that a small network leaves idle waits to be asked: its
steps then take as long as they have operations, and the network's own share of these
is what the efficiency of a step would be.
"""

from collections.abc import Callable

import torch

from benchmarks.mock_gpu import MockGpu, mock_gpu
from benchmarks.shapes import STUDIES, case
from benchmarks.steps import ARMS, ATTACKS, training_step, whole_attack
from benchmarks.timing import Row, row

GPU = torch.device("cuda")


def measure(device: torch.device, repeats: int) -> list[Row]:
    """Operations and waits of our steps, beside those of their bare passes.

    They are counted, not timed: neither `device` nor `repeats` matter.
    """
    rows = []
    for name in STUDIES:
        shapes = case(name)
        steps = shapes.study.evaluation.steps
        with mock_gpu() as gpu:
            for arm in ARMS:
                what, calls = training_step(shapes, arm, GPU)
                rows += _count(gpu, "pretraining", what, calls, 1)
            for attack in ATTACKS:
                what, calls = whole_attack(shapes, attack, GPU)
                rows += _count(gpu, "attack", what, calls, steps)
    return rows


def _count(
    gpu: MockGpu, kind: str, what: str, calls: dict[str, Callable], steps: int
) -> list[Row]:
    rows, bare = [], None
    for name, call in calls.items():
        call()  # the first one makes the optimiser's moments
        gpu.launches.clear()
        gpu.waits.clear()
        call()
        n, waits = gpu.launches.total() / steps, gpu.waits.total() / steps
        bare = n if bare is None else bare
        more = {"ratio": bare / n, "base": "bare", "waits": waits}
        benchmark = f"operations of {kind} steps"
        rows.append(row(benchmark, what, name, n, "a step", **more))
    return rows
