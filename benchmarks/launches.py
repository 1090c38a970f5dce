"""What a GPU would be asked to do in a step, counted without one: operations, and waits for their outcome.

A GPU that a small network leaves idle waits to be asked: its steps then take as long as they have operations,
and the network's own share of these is what the efficiency of a step would be.
"""

from collections.abc import Callable

import torch

from benchmarks.mock_gpu import MockGpu, mock_gpu
from benchmarks.shapes import STUDIES, case
from benchmarks.steps import ARMS, ATTACKS, training_step, whole_attack
from benchmarks.timing import Row, row

GPU = torch.device("cuda")


def launches(device: torch.device, repeats: int) -> list[Row]:
    """Operations and waits of a pretraining step and of an attack's step, beside those of its bare passes.

    They are counted, not timed: neither `device` nor `repeats` matter.
    """
    rows = []
    for name in STUDIES:
        shapes = case(name)
        with mock_gpu() as gpu:
            for arm in ARMS:
                rows += _counted(
                    gpu, "pretraining", *training_step(shapes, arm, GPU), 1
                )
            for attack in ATTACKS:
                rows += _counted(
                    gpu,
                    "attack",
                    *whole_attack(shapes, attack, GPU),
                    shapes.study.evaluation.steps,
                )
    return rows


def _counted(
    gpu: MockGpu,
    kind: str,
    what: str,
    calls: dict[str, Callable[[], object]],
    steps: int,
) -> list[Row]:
    counts = {}
    for name, call in calls.items():
        call()  # the first one makes the optimiser's moments
        gpu.launches.clear()
        gpu.waits.clear()
        call()
        counts[name] = gpu.launches.total() / steps, gpu.waits.total() / steps
    bare, _ = counts["bare"]
    return [
        row(
            f"operations of {kind} steps",
            what,
            name,
            n,
            "a step",
            ratio=bare / n,
            base="bare",
            waits=waits,
        )
        for name, (n, waits) in counts.items()
    ]
