"""How close a step of pretraining and of an attack comes to its bare network passes."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from benchmarks.shapes import STUDIES, Case, case
from benchmarks.timing import Row, compare_times, side_by_side
from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.named import get_attack
from ecgstudy.pretraining.loop import train_step
from ecgstudy.pretraining.state import Data, State, evaluation_mode

ATTACKS = ("pgd-margin", "apgd-margin")
ARMS = ("supervised", "pgd-at", "simclr", "clef", "rocl", "rocl-ip-hn", "acl")
"""One or two of each family: without and with labels, adversary, and weighting."""


def measure(device: torch.device, repeats: int) -> list[Row]:
    """Bare passes over our step: pretraining of each family of arms, main attacks."""
    rows = []
    for name in STUDIES:
        shapes = case(name)
        for arm in ARMS:
            rows += _measure_training(shapes, arm, device, repeats)
        for attack in ATTACKS:
            rows += _measure_attack(shapes, attack, device, repeats)
    return rows


def _measure_training(
    shapes: Case, arm: str, device: torch.device, repeats: int
) -> list[Row]:
    what, calls = training_step(shapes, arm, device)
    seconds, units = side_by_side(calls, repeats, device), dict.fromkeys(calls, 1)
    title = "efficiency of a pretraining step"
    return compare_times(title, what, seconds, units, "bare", "step")


def training_step(
    shapes: Case, arm: str, device: torch.device
) -> tuple[str, dict[str, Callable[[], object]]]:
    """Title of a pretraining step, and the step: its bare passes, and ours.

    Parameters
    ----------
    shapes
        The study's.
    arm
        Name of the arm.
    device
        Where it trains.
    """
    state, data = shapes.training(arm, device)
    size = min(state.options.batch_size, len(data.signals))
    index = torch.arange(size, device=device)
    calls = {
        "bare": bare_step(state, data, index),
        "ours": lambda: train_step(state, data, index, 1e-4),
    }
    return f"{shapes.name} {arm}, batch {size}", calls


def bare_step(state: State, data: Data, index: Tensor) -> Callable[[], None]:
    """A step's network passes alone.

    Those of views that are not attacked, K for the input's gradient, training, and the
    optimiser.

    Parameters
    ----------
    state, data
        Of a fresh training.
    index
        Records of the batch.
    """
    adversary, options = state.arm.adversary, state.run.study.views
    crop = data.signals.shape[2]
    if options.crop_s is not None:
        crop = round(options.crop_s * data.fs)
    signals = data.signals[index][:, :, :crop]
    names = dict.fromkeys(view for loss in state.arm.losses for view in loss.names)
    # A star marks the views that go through the adversarial batch norms.
    starred = sum(name.endswith("*") for name in names)
    attacked = adversary.views.split() if adversary else []
    moved = sum(view.endswith("*") for view in attacked)
    held = len(attacked) - moved
    steps = (adversary.steps or state.options.attack_steps) if adversary else 0

    def out(features: Tensor, adversarial: bool) -> Tensor:
        if "head" in state.model:
            return state.model["head"](features.float())
        if "projector" in state.model:
            return state.project(features, adversarial)
        return features.float()

    def step() -> None:
        with evaluation_mode(state.model):
            if held:
                with torch.no_grad():
                    out(state.features(signals.repeat(held, 1, 1), False), False)
            for _ in range(steps):
                leaf = signals.repeat(moved, 1, 1).requires_grad_()
                torch.autograd.grad(out(state.features(leaf, True), True).sum(), leaf)
        total = 0
        for n, adversarial in ((len(names) - starred, False), (starred, True)):
            if n:
                features = state.features(signals.repeat(n, 1, 1), adversarial)
                total = total + out(features, adversarial).square().sum()
        state.optimizer.zero_grad(set_to_none=True)
        total.backward()
        state.optimizer.step()

    return step


def _measure_attack(
    shapes: Case, attack: str, device: torch.device, repeats: int
) -> list[Row]:
    what, calls = whole_attack(shapes, attack, device)
    seconds = side_by_side(calls, repeats, device)
    units = dict.fromkeys(calls, shapes.study.evaluation.steps)
    title = "efficiency of an attack step"
    return compare_times(title, what, seconds, units, "bare", "step")


def whole_attack(
    shapes: Case, attack: str, device: torch.device
) -> tuple[str, dict[str, Callable[[], object]]]:
    """Title of the study's attack, and the attack: its bare passes, and ours.

    With the study's number of steps and, as there, the scores of the unchanged records
    known before.

    Parameters
    ----------
    shapes
        The study's.
    attack
        Name of the attack.
    device
        Where it searches.
    """
    options = shapes.study.evaluation
    steps, records = options.steps, options.batch_size
    budget, victim = Budget(0.02, steps, batch_size=records), shapes.victim(device)
    signals, labels = shapes.signals(records, device), shapes.labels(records, device)
    with torch.no_grad():
        victim = replace(victim, clean_scores=(signals, victim.scores(signals)))
    stream = Generator(device).manual_seed(0)
    calls = {
        "bare": bare_attack(victim, signals, steps),
        "ours": lambda: get_attack(attack)(victim, signals, labels, budget, stream),
    }
    return f"{shapes.name} {attack}, {records} records", calls


def bare_attack(victim: Victim, signals: Tensor, steps: int) -> Callable[[], None]:
    """As many forward passes and input gradients.

    Parameters
    ----------
    victim
        The model.
    signals
        (records, leads, samples) in mV.
    steps
        How many.
    """

    def passes() -> None:
        for _ in range(steps):
            leaf = signals.detach().requires_grad_()
            torch.autograd.grad(victim.model(leaf).sum(), leaf)

    return passes
