"""PGD-20 and APGD-100 beside torchattacks, foolbox and ART: one frozen model, one batch, one problem.

Single-label ECGs in mV, cross-entropy, ℓ∞, PGD from δ = 0 with steps of ε/8, APGD with one random start.
torchattacks clamps to [0, 1]: it gets the model behind a rescaling (`Rescaled`) whose ends no ECG reaches,
with ε and step rescaled too. Each peer gets the same folded float32 model, and of `BATCHES` the size at which
it is fastest; the loss that each reaches stands beside its time.
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
from benchmarks.timing import Row, compared, side_by_side
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
            f"the benchmark of peers needs {error.name}; run `.venv/bin/pip install --no-deps"
            " torchattacks==3.5.1` (the others are in requirements.lock)"
        ) from error

EPSILON_MV, STEP_MV, REACH_MV = 0.02, 0.02 / 8, 10.0
PGD_STEPS, APGD_STEPS = 20, 100
RECORDS = {"cpu": 256, "cuda": 8192}
BATCHES = {"cpu": (64, 128, 256), "cuda": (256, 512, 1024, 2048, 4096, 8192)}
"""A GPU is at its best with batches that would fill a processor's memory."""
BFLOAT16 = "ours, gradients in bfloat16"
Attack = Callable[[Tensor, Tensor], Tensor]
"""(signals in mV, classes) → perturbed signals in mV."""


class Rescaled(nn.Module):
    """The model for signals of values from 0, which is −`REACH_MV`, to 1, which is `REACH_MV`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, scaled: Tensor) -> Tensor:
        return self.model((2 * scaled - 1) * REACH_MV)


def peers(device: torch.device, repeats: int) -> list[Row]:
    """Milliseconds a record and the mean cross-entropy reached, of PGD-20 and of APGD-100."""
    rows = []
    for name in STUDIES:
        shapes = case(name)
        victim = Victim(shapes.victim(device).model, False)
        signals = shapes.signals(RECORDS[device.type], device)
        with torch.no_grad():
            y = victim.model(signals).argmax(1)
        best: dict[str, int] = {}  # batch size of each library
        for title, attacks in _attacks(victim, device).items():
            rows += _compared(
                f"{name} {title}", victim, attacks, signals, y, best, repeats
            )
    return rows


def _compared(
    what: str, victim: Victim, attacks: dict[str, Callable[[int], Attack]],
    signals: Tensor, y: Tensor, best: dict[str, int], repeats: int,
) -> list[Row]:  # fmt: skip
    """Rows of each attack at its library's best batch size, which is found with the first attack (PGD)."""
    device = signals.device
    for name, made in attacks.items():
        if name in best:
            continue
        tried = {
            str(size): partial(made(size), signals, y) for size in BATCHES[device.type]
        }
        if device.type == "cuda":
            tried = {size: call for size, call in tried.items() if _fits(call)}
        seconds = side_by_side(tried, 3, device)
        best[name] = int(min(seconds, key=lambda size: seconds[size].min()))
    calls = {
        name: partial(made(best[name]), signals, y) for name, made in attacks.items()
    }
    seconds = side_by_side(calls, repeats, device)
    rows = compared(
        "attacks beside other libraries",
        what,
        seconds,
        dict.fromkeys(calls, len(y)),
        "ours",
        "record",
    )
    for each in rows:
        perturbed = calls[each["variant"]]()
        with torch.no_grad():
            each["loss"] = cross_entropy(victim.model(perturbed), y).item()
        each["largest_mv"], each["batch"] = (
            (perturbed - signals).abs().max().item(),
            best[each["variant"]],
        )
    return rows


def _fits(call: Callable[[], object]) -> bool:
    try:
        call()
    except torch.OutOfMemoryError:
        return False
    return True


def _attacks(
    victim: Victim, device: torch.device
) -> dict[str, dict[str, Callable[[int], Attack]]]:
    """PGD and APGD of each library, for a batch size."""
    makers = {
        "PGD": {
            "ours": _ours_pgd,
            BFLOAT16: lambda victim, *rest: _ours_pgd(
                replace(victim, gradients="bfloat16"), *rest
            ),
            "torchattacks": _torchattacks_pgd,
            "foolbox": _foolbox_pgd,
            "ART": _art_pgd,
        },
        "APGD": {
            "ours": _ours_apgd,
            BFLOAT16: lambda victim, *rest: _ours_apgd(
                replace(victim, gradients="bfloat16"), *rest
            ),
            "torchattacks": _torchattacks_apgd,
            "ART": _art_apgd,
        },
    }
    titles = {"PGD": f"PGD-{PGD_STEPS}", "APGD": f"APGD-{APGD_STEPS}"}
    return {
        titles[kind]: {
            name: (lambda size, m=made: m(victim, device, size))
            for name, made in all_.items()
        }
        for kind, all_ in makers.items()
    }


def _ours(search: Callable, steps: int, victim: Victim, size: int) -> Attack:
    budget = Budget(EPSILON_MV, steps, step=STEP_MV / EPSILON_MV, batch_size=size)

    def attack(signals: Tensor, y: Tensor) -> Tensor:
        hot = torch.eye(victim.model(signals[:1]).shape[1], device=signals.device)[y]
        stream = Generator(signals.device).manual_seed(0)
        return signals + search(
            scores_problem("ce", victim, signals, hot), budget, stream
        )

    return attack


def _ours_pgd(victim: Victim, device: torch.device, size: int) -> Attack:
    return _ours(lambda *args: pgd(*args, random_start=False), PGD_STEPS, victim, size)


def _ours_apgd(victim: Victim, device: torch.device, size: int) -> Attack:
    return _ours(apgd, APGD_STEPS, victim, size)


def _in_parts(attack: Attack, size: int) -> Attack:
    def parts(signals: Tensor, y: Tensor) -> Tensor:
        return torch.cat(
            [
                attack(x, labels)
                for x, labels in zip(signals.split(size), y.split(size), strict=True)
            ]
        )

    return parts


def _torchattacks(
    made: Callable[[nn.Module], object], victim: Victim, size: int
) -> Attack:
    peer = made(Rescaled(victim.model))

    def attack(signals: Tensor, y: Tensor) -> Tensor:
        return (2 * peer((signals / REACH_MV + 1) / 2, y) - 1) * REACH_MV

    return _in_parts(attack, size)


def _torchattacks_pgd(victim: Victim, device: torch.device, size: int) -> Attack:
    scaled = {"eps": EPSILON_MV / REACH_MV / 2, "alpha": STEP_MV / REACH_MV / 2}
    return _torchattacks(
        lambda model: torchattacks.PGD(
            model, steps=PGD_STEPS, random_start=False, **scaled
        ),
        victim,
        size,
    )


def _torchattacks_apgd(victim: Victim, device: torch.device, size: int) -> Attack:
    class Pictures(nn.Module):  # its APGD takes pictures only
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def forward(self, pictures: Tensor) -> Tensor:
            return self.model(pictures[:, :, 0])

    peer = torchattacks.APGD(
        Pictures(Rescaled(victim.model)),
        eps=EPSILON_MV / REACH_MV / 2,
        steps=APGD_STEPS,
    )

    def attack(signals: Tensor, y: Tensor) -> Tensor:
        return (
            2 * peer(((signals / REACH_MV + 1) / 2)[:, :, None], y)[:, :, 0] - 1
        ) * REACH_MV

    return _in_parts(attack, size)


def _foolbox_pgd(victim: Victim, device: torch.device, size: int) -> Attack:
    known = foolbox.PyTorchModel(
        victim.model, bounds=(-REACH_MV, REACH_MV), device=device
    )
    peer = foolbox.attacks.LinfPGD(
        abs_stepsize=STEP_MV, steps=PGD_STEPS, random_start=False
    )

    def attack(signals: Tensor, y: Tensor) -> Tensor:
        return peer.run(
            known, signals, foolbox.criteria.Misclassification(y), epsilon=EPSILON_MV
        )

    return _in_parts(attack, size)


def _art(
    made: Callable[[PyTorchClassifier], object], victim: Victim, device: torch.device
) -> Attack:
    def attack(signals: Tensor, y: Tensor) -> Tensor:
        classes = victim.model(signals[:1]).shape[1]
        kind = "gpu" if device.type == "cuda" else "cpu"
        known = PyTorchClassifier(
            victim.model,
            nn.CrossEntropyLoss(),
            tuple(signals.shape[1:]),
            classes,
            device_type=kind,
        )
        found = made(known).generate(signals.cpu().numpy(), np.eye(classes)[y.cpu()])
        return torch.tensor(found).to(device)

    return attack


def _art_pgd(victim: Victim, device: torch.device, size: int) -> Attack:
    options = {"max_iter": PGD_STEPS, "batch_size": size, "verbose": False}
    return _art(
        lambda known: ProjectedGradientDescent(
            known, np.inf, EPSILON_MV, STEP_MV, **options
        ),
        victim,
        device,
    )


def _art_apgd(victim: Victim, device: torch.device, size: int) -> Attack:
    options = {
        "max_iter": APGD_STEPS,
        "batch_size": size,
        "nb_random_init": 1,
        "loss_type": "cross_entropy",
    }
    made = lambda known: AutoProjectedGradientDescent(  # noqa: E731
        known, np.inf, EPSILON_MV, 2 * EPSILON_MV, verbose=False, **options
    )
    return _art(made, victim, device)
