"""How close a step of pretraining and of an attack comes to its bare network passes."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from benchmarks.shapes import STUDIES, Case, case
from benchmarks.timing import Row, compared, side_by_side
from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.named import get_attack
from ecgstudy.pretraining.loop import train_step
from ecgstudy.pretraining.state import Data, State
from ecgstudy.pretraining.step import evaluation_mode

ATTACKS = ("pgd-margin", "apgd-margin")
ARMS = ("supervised", "pgd-at", "simclr", "clef", "rocl", "rocl-ip-hn", "acl")
"""One or two of each family: without and with labels, adversary, and weighting."""


def efficiency(device: torch.device, repeats: int) -> list[Row]:
    """Bare passes over our step, for pretraining of each family of arms and for the two main attacks."""
    rows = []
    for name in STUDIES:
        shapes = case(name)
        for arm in ARMS:
            rows += _of_training(shapes, arm, device, repeats)
        for attack in ATTACKS:
            rows += _of_attack(shapes, attack, device, repeats)
    return rows


def _of_training(
    shapes: Case, arm: str, device: torch.device, repeats: int
) -> list[Row]:
    what, calls = training_step(shapes, arm, device)
    seconds, units = side_by_side(calls, repeats, device), dict.fromkeys(calls, 1)
    return compared(
        "efficiency of a pretraining step", what, seconds, units, "bare", "step"
    )


def training_step(
    shapes: Case, arm: str, device: torch.device
) -> tuple[str, dict[str, Callable[[], object]]]:
    """What a pretraining step is called, and the step: its bare passes, and ours."""
    state, data = shapes.training(arm, device)
    size = min(state.options.batch_size, len(data.signals))
    index = torch.arange(size, device=device)
    calls = {
        "bare": bare_step(state, data, index),
        "ours": lambda: train_step(state, data, index, 1e-4),
    }
    return f"{shapes.name} {arm}, batch {size}", calls


def bare_step(state: State, data: Data, index: Tensor) -> Callable[[], None]:
    """A step's network passes alone: held views, K for the input's gradient, training, optimiser."""
    adversary, options = state.arm.adversary, state.run.study.views
    crop = (
        data.signals.shape[2]
        if options.crop_s is None
        else round(options.crop_s * data.fs)
    )
    signals = data.signals[index][:, :, :crop]
    names = dict.fromkeys(view for loss in state.arm.losses for view in loss.names)
    standard = sum(not name.endswith("*") for name in names)
    attacked = adversary.views.split() if adversary else []
    starred = sum(view.endswith("*") for view in attacked)
    held = len(attacked) - starred
    parts = [(standard, False), (len(names) - standard, True)]
    steps = (adversary.steps or state.options.attack_steps) if adversary else 0
    out = (
        state.project
        if "projector" in state.model
        else (lambda features, _: features.float())
    )
    if "head" in state.model:
        out = lambda features, _: state.model["head"](features.float())  # noqa: E731

    def step() -> None:
        with evaluation_mode(state.model):
            if held:
                with torch.no_grad():
                    out(state.features(signals.repeat(held, 1, 1), False), False)
            for _ in range(steps):
                leaf = signals.repeat(starred, 1, 1).requires_grad_()
                torch.autograd.grad(out(state.features(leaf, True), True).sum(), leaf)
        total = sum(
            out(state.features(signals.repeat(n, 1, 1), starry), starry).square().sum()
            for n, starry in parts if n
        )  # fmt: skip
        state.optimizer.zero_grad(set_to_none=True)
        total.backward()
        state.optimizer.step()

    return step


def _of_attack(
    shapes: Case, attack: str, device: torch.device, repeats: int
) -> list[Row]:
    what, calls = whole_attack(shapes, attack, device)
    seconds, units = (
        side_by_side(calls, repeats, device),
        dict.fromkeys(calls, shapes.study.evaluation.steps),
    )
    return compared(
        "efficiency of an attack step", what, seconds, units, "bare", "step"
    )


def whole_attack(
    shapes: Case, attack: str, device: torch.device
) -> tuple[str, dict[str, Callable[[], object]]]:
    """What the study's attack is called, and the attack: its bare passes, and ours.

    With the study's number of steps and, as there, the scores of the unchanged records known before.
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
    """As many forward passes and input gradients."""

    def passes() -> None:
        for _ in range(steps):
            leaf = signals.detach().requires_grad_()
            torch.autograd.grad(victim.model(leaf).sum(), leaf)

    return passes
