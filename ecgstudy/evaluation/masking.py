"""Does a model only hide its gradients? Signs of gradient masking in one evaluated model."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from ecgstudy.attacks.api import Victim
from ecgstudy.attacks.ball import Ball
from ecgstudy.attacks.ensemble import combine
from ecgstudy.attacks.named import get_attack
from ecgstudy.attacks.objectives import auroc_targets, signed_scores
from ecgstudy.evaluation.sample import (
    Sample,
    budget_of,
    label_scores,
    macro_auroc,
    spread,
    victim_scores,
    worst_scores,
)
from ecgstudy.params import BLACK_BOX, split_leads
from ecgstudy.study import ENSEMBLE, AttackOptions

EXTREME_MV = 1.0
"""Extra budget at which a sound attack must have driven AUROC to about 0."""
NO_GRADIENT = ("transfer", *BLACK_BOX)
"""Attacks that never see the attacked model's gradient."""
NOT_APPLICABLE = {
    "check": "gradient masking",
    "value": None,
    "limit": None,
    "verdict": "not applicable",
}
"""The only check of a model without gradients."""


def masking_checks(
    victim: Victim, sample: Sample, options: AttackOptions, headline: float, seed: int
) -> list[dict]:
    """Signs of gradient masking (Athalye et al. 2018, Carlini et al. 2019) in one evaluated model.

    Six checks with limits, and the share of single samples whose gradient is 0 for information: behind
    ReLUs and max-pooling quiet stretches of an ECG may have none, which hinders an attack only where
    whole records have none (Croce & Hein 2020 count records, too).

    Parameters
    ----------
    sample
        With the scores of the study's attacks at every ε.
    headline
        Headline ε in mV.

    Returns
    -------
    list of dict
        `check`, `value`, `limit`, `verdict` ("pass", "fail", or "no limit").
    """
    return [
        {
            "check": name,
            "value": float(value),
            "limit": limit,
            "verdict": _verdict(float(value), limit),
        }
        for name, value, limit in _measured_checks(
            victim, sample, options, headline, seed
        )
    ]


def _verdict(value: float, limit: float | None) -> str:
    if limit is None:
        return "no limit"
    return "pass" if value <= limit else "fail"


def _measured_checks(
    victim: Victim, sample: Sample, options: AttackOptions, headline: float, seed: int
) -> Iterator[tuple[str, float, float | None]]:
    generator = Generator(sample.signals.device).manual_seed(seed)
    clean, grid = sample.clean_scores(), sorted(options.epsilons_mv)
    attacked = [_of_members(sample, options.ensemble, epsilon) for epsilon in grid]
    curve = [macro_auroc(sample.labels, scores) for scores in (clean, *attacked)]
    yield "largest rise of AUROC with ε", max(np.diff(curve).max(), 0.0), 0.005

    rows = spread(sample.labels, options.check_records)
    few = sample.part(rows)
    extreme = label_scores(
        victim, few.signals, few.labels, options, EXTREME_MV, generator
    )
    extreme = macro_auroc(few.labels, worst_scores([clean[rows], extreme], few.labels))
    yield f"per-label AUROC at {EXTREME_MV:g} mV", extreme, 0.05

    budget = budget_of(options, headline, options.check_steps, options.check_restarts)
    delta = get_attack("pgd-margin")(victim, few.signals, few.labels, budget, generator)
    longer = macro_auroc(
        few.labels, victim_scores(victim, few.signals + delta, options)
    )
    found = macro_auroc(few.labels, sample.scores(ENSEMBLE, headline)[rows])
    name = (
        f"gain of PGD-{budget.steps} with {budget.restarts} restarts over the ensemble"
    )
    yield name, max(found - longer, 0.0), 0.02

    blind = _blind_gain(victim, sample, few, options, headline, generator)
    yield "gain of black-box over gradient attacks", blind, 0.01

    records, samples = zero_gradients(
        victim, sample.signals, sample.labels, options.batch_size
    )
    yield "share of records without input gradient", records, 0.01
    yield "share of samples without input gradient", samples, None

    noise = Ball(headline).draw(sample.signals, generator)
    noisy = macro_auroc(
        sample.labels, victim_scores(victim, sample.signals + noise, options)
    )
    yield "change of AUROC under noise of the headline ε", abs(noisy - curve[0]), 0.02


def _blind_gain(
    victim: Victim,
    sample: Sample,
    few: Sample,
    options: AttackOptions,
    headline: float,
    generator: Generator,
) -> float:
    """How much lower AUROC is under an attack that sees no gradient than under the best that does.

    The study's own black-box attacks and transfer are judged, on the records that they attacked; without
    any of them Square is run on `few`.
    """
    names = [
        name
        for name in (*options.ensemble, *options.attacks)
        if _follows_gradient(name)
    ]
    seen = [sample.stored(name, headline)[1] for name in names]
    blind = [name for name in options.attacks if split_leads(name)[0] in NO_GRADIENT]
    found = [
        sample.stored(name, headline) for name in blind if sample.stored(name, headline)
    ]
    if not found:
        budget = budget_of(options, headline)
        delta = get_attack("square")(victim, few.signals, few.labels, budget, generator)
        found = [
            (
                sample.index(few.columns),
                victim_scores(victim, few.signals + delta, options),
            )
        ]
    gains = [
        min(macro_auroc(sample.labels[rows], scores[rows]) for scores in seen)
        - macro_auroc(sample.labels[rows], blind)
        for rows, blind in found
    ]
    return max(*gains, 0.0)


def _follows_gradient(name: str) -> bool:
    """Whether an attack follows the attacked model's gradient inside the ℓ∞ ball (ℓ2's is larger)."""
    name = split_leads(name)[0]
    return name not in (*NO_GRADIENT, "noise") and not name.endswith("-l2")


def _of_members(sample: Sample, names: list[str], epsilon_mv: float) -> Tensor:
    """Scores under the worst of the attacks that are run at every ε: the same ones at each."""
    scores = torch.stack([sample.scores(name, epsilon_mv) for name in names])
    return scores[combine(scores, sample.labels), sample.every]


def zero_gradients(
    victim: Victim, signals: Tensor, labels: Tensor, batch_size: int = 256
) -> tuple[float, float]:
    """Shares of records and of single samples whose gradient of the margin objective is exactly 0."""
    targets, zero = auroc_targets(labels), []
    for rows in torch.arange(len(signals)).split(batch_size):
        leaf = signals[rows].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            signed_scores(victim.scores(leaf), targets[rows]).sum(), leaf
        )
        zero.append(gradient == 0)
    zero = torch.cat(zero)
    return float(zero.flatten(1).all(1).float().mean()), float(zero.float().mean())
