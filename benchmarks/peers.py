"""PGD-20 and APGD-100 beside torchattacks, foolbox and ART, on one model and batch.

Single-label ECGs in mV, cross-entropy, ℓ∞, PGD from δ = 0 with steps of ε/8, APGD with
one random start. torchattacks clamps to [0, 1]: it gets the model behind a rescaling
(`Rescaled`) whose ends no ECG reaches, with ε and step rescaled too. Each library gets
the same folded float32 model, and of `BATCHES` the size at which it is fastest; the
loss that each reaches stands beside its time.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.shapes import STUDIES, case
from benchmarks.timing import Row, compare_times, side_by_side
from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.gradient import apgd, pgd
from ecgstudy.attacks.named import scores_problem
from ecgstudy.errors import StudyError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import foolbox
        import torchattacks
        from art.attacks.evasion import (
            AutoProjectedGradientDescent,
            ProjectedGradientDescent,
        )
        from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        raise StudyError(
            f"the benchmark of peers needs {error.name}; run `.venv/bin/pip install"
            " --no-deps torchattacks==3.5.1` (the others are in requirements.lock)"
        ) from error

EPSILON_MV, STEP_MV, REACH_MV = 0.02, 0.02 / 8, 10.0
PGD_STEPS, APGD_STEPS = 20, 100
RECORDS = {"cpu": 256, "cuda": 8192}
BATCHES = {"cpu": (64, 128, 256), "cuda": (256, 512, 1024, 2048, 4096, 8192)}
"""A GPU is at its best with batches that would fill a processor's memory."""
BFLOAT16 = "ours, gradients in bfloat16"
Attack = Callable[[Tensor, Tensor], Tensor]
"""(signals in mV, classes) → perturbed signals in mV."""
Makers = dict[str, Callable[[int], Attack]]
"""Library → batch size → its attack."""


class Rescaled(nn.Module):
    """The model for signals in [0, 1], which stands for ±`REACH_MV`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, scaled: Tensor) -> Tensor:
        return self.model((2 * scaled - 1) * REACH_MV)


def measure(device: torch.device, repeats: int) -> list[Row]:
    """Milliseconds a record and the mean cross-entropy reached, of PGD and APGD."""
    rows = []
    for name in STUDIES:
        shapes = case(name)
        victim = Victim(shapes.victim(device).model, False)
        signals = shapes.signals(RECORDS[device.type], device)
        with torch.no_grad():
            y = victim.model(signals).argmax(1)
        best: dict[str, int] = {}
        for title, makers in make_attacks(victim, device).items():
            for library, make in makers.items():
                if library not in best:
                    best[library] = _find_fastest(make, signals, y)
            attacks = {library: makers[library](best[library]) for library in makers}
            found = _compare(f"{name} {title}", victim, attacks, signals, y, repeats)
            for row in found:
                row["batch"] = best[row["variant"]]
            rows += found
    return rows


def _find_fastest(make: Callable[[int], Attack], signals: Tensor, y: Tensor) -> int:
    """The batch size at which an attack is fastest, of those that fit the memory."""
    device = signals.device
    calls = {n: partial(make(n), signals, y) for n in BATCHES[device.type]}
    if device.type == "cuda":
        calls = {n: call for n, call in calls.items() if _fits(call)}
    seconds = side_by_side(calls, 3, device)
    return min(seconds, key=lambda n: seconds[n].min())


def _compare(
    what: str,
    victim: Victim,
    attacks: dict[str, Attack],
    signals: Tensor,
    y: Tensor,
    repeats: int,
) -> list[Row]:
    calls = {name: partial(attack, signals, y) for name, attack in attacks.items()}
    seconds = side_by_side(calls, repeats, signals.device)
    units, title = dict.fromkeys(calls, len(y)), "attacks beside other libraries"
    rows = compare_times(title, what, seconds, units, "ours", "record")
    for row in rows:
        perturbed = calls[row["variant"]]()
        with torch.no_grad():
            row["loss"] = cross_entropy(victim.model(perturbed), y).item()
        row["largest_mv"] = (perturbed - signals).abs().max().item()
    return rows


def _fits(call: Callable[[], object]) -> bool:
    try:
        call()
    except torch.OutOfMemoryError:
        return False
    return True


def make_attacks(victim: Victim, device: torch.device) -> dict[str, Makers]:
    """PGD and APGD of each library."""
    rounded = replace(victim, gradients="bfloat16")
    return {
        f"PGD-{PGD_STEPS}": {
            "ours": lambda size: _ours_pgd(victim, size),
            BFLOAT16: lambda size: _ours_pgd(rounded, size),
            "torchattacks": lambda size: _torchattacks_pgd(victim, size),
            "foolbox": lambda size: _foolbox_pgd(victim, device, size),
            "ART": lambda size: _art_pgd(victim, device, size),
        },
        f"APGD-{APGD_STEPS}": {
            "ours": lambda size: _ours(apgd, APGD_STEPS, victim, size),
            BFLOAT16: lambda size: _ours(apgd, APGD_STEPS, rounded, size),
            "torchattacks": lambda size: _torchattacks_apgd(victim, size),
            "ART": lambda size: _art_apgd(victim, device, size),
        },
    }


def _ours(search: Callable, steps: int, victim: Victim, size: int) -> Attack:
    budget = Budget(EPSILON_MV, steps, step=STEP_MV / EPSILON_MV, batch_size=size)

    def attack(signals: Tensor, y: Tensor) -> Tensor:
        hot = torch.eye(victim.model(signals[:1]).shape[1], device=signals.device)[y]
        stream = Generator(signals.device).manual_seed(0)
        problem = scores_problem("ce", victim, signals, hot)
        return signals + search(problem, budget, stream)

    return attack


def _ours_pgd(victim: Victim, size: int) -> Attack:
    return _ours(partial(pgd, random_start=False), PGD_STEPS, victim, size)


def _in_parts(attack: Attack, size: int) -> Attack:
    def attack_parts(signals: Tensor, y: Tensor) -> Tensor:
        parts = zip(signals.split(size), y.split(size), strict=True)
        return torch.cat([attack(x, labels) for x, labels in parts])

    return attack_parts


def _scale(signals: Tensor) -> Tensor:
    return (signals / REACH_MV + 1) / 2


def _unscale(scaled: Tensor) -> Tensor:
    return (2 * scaled - 1) * REACH_MV


def _torchattacks_pgd(victim: Victim, size: int) -> Attack:
    peer = torchattacks.PGD(
        Rescaled(victim.model),
        eps=EPSILON_MV / REACH_MV / 2,
        alpha=STEP_MV / REACH_MV / 2,
        steps=PGD_STEPS,
        random_start=False,
    )
    return _in_parts(lambda signals, y: _unscale(peer(_scale(signals), y)), size)


class Pictures(nn.Module):
    """The model for pictures of height 1: torchattacks' APGD takes nothing else."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pictures[:, :, 0])


def _torchattacks_apgd(victim: Victim, size: int) -> Attack:
    model = Pictures(Rescaled(victim.model))
    peer = torchattacks.APGD(model, eps=EPSILON_MV / REACH_MV / 2, steps=APGD_STEPS)

    def attack(signals: Tensor, y: Tensor) -> Tensor:
        return _unscale(peer(_scale(signals)[:, :, None], y)[:, :, 0])

    return _in_parts(attack, size)


def _foolbox_pgd(victim: Victim, device: torch.device, size: int) -> Attack:
    bounds = (-REACH_MV, REACH_MV)
    model = foolbox.PyTorchModel(victim.model, bounds=bounds, device=device)
    peer = foolbox.attacks.LinfPGD(
        abs_stepsize=STEP_MV, steps=PGD_STEPS, random_start=False
    )

    def attack(signals: Tensor, y: Tensor) -> Tensor:
        goal = foolbox.criteria.Misclassification(y)
        return peer.run(model, signals, goal, epsilon=EPSILON_MV)

    return _in_parts(attack, size)


def _art(
    make: Callable[[PyTorchClassifier], object], victim: Victim, device: torch.device
) -> Attack:
    kind = "gpu" if device.type == "cuda" else "cpu"

    def attack(signals: Tensor, y: Tensor) -> Tensor:
        classes, form = victim.model(signals[:1]).shape[1], tuple(signals.shape[1:])
        loss = nn.CrossEntropyLoss()
        model = PyTorchClassifier(victim.model, loss, form, classes, device_type=kind)
        found = make(model).generate(signals.cpu().numpy(), np.eye(classes)[y.cpu()])
        return torch.tensor(found).to(device)

    return attack


def _art_pgd(victim: Victim, device: torch.device, size: int) -> Attack:
    def make(model: PyTorchClassifier) -> ProjectedGradientDescent:
        return ProjectedGradientDescent(
            model,
            np.inf,
            EPSILON_MV,
            STEP_MV,
            max_iter=PGD_STEPS,
            batch_size=size,
            verbose=False,
        )

    return _art(make, victim, device)


def _art_apgd(victim: Victim, device: torch.device, size: int) -> Attack:
    def make(model: PyTorchClassifier) -> AutoProjectedGradientDescent:
        return AutoProjectedGradientDescent(
            model,
            np.inf,
            EPSILON_MV,
            2 * EPSILON_MV,
            max_iter=APGD_STEPS,
            batch_size=size,
            nb_random_init=1,
            loss_type="cross_entropy",
            verbose=False,
        )

    return _art(make, victim, device)
