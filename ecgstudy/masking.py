"""Does a model only hide its gradients? Signs of gradient masking in one evaluated model."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from ecgstudy.attacked import Sample, label_scores, macro_auroc, victim_scores, worst_scores
from ecgstudy.attacks.ball import Ball
from ecgstudy.attacks.objectives import auroc_targets, signed_scores
from ecgstudy.attacks.problem import Victim
from ecgstudy.study import ENSEMBLE, AttackOptions

EXTREME_MV = 1.0
"""Extra budget at which a sound attack must have driven AUROC to about 0."""
NOT_APPLICABLE = {"check": "gradient masking", "value": None, "limit": None, "verdict": "not applicable"}
"""The only check of a model without gradients."""


def masking_checks(
    victim: Victim, sample: Sample, options: AttackOptions, headline: float, seed: int
) -> list[dict]:
    """Signs of gradient masking (Athalye et al. 2018, Carlini et al. 2019) in one evaluated model.

    Returns
    -------
    list of dict
        `check`, `value`, `limit`, `verdict` ("pass" or "fail").
    """
    return [
        {
            "check": name,
            "value": float(value),
            "limit": limit,
            "verdict": "pass" if value <= limit else "fail",
        }
        for name, value, limit in _measured_checks(victim, sample, options, headline, seed)
    ]


def _measured_checks(
    victim: Victim, sample: Sample, options: AttackOptions, headline: float, seed: int
) -> Iterator[tuple[str, float, float]]:
    generator = Generator(sample.signals.device).manual_seed(seed)
    clean, grid = sample.clean_scores(), sorted(options.epsilons_mv)
    attacked = [sample.scores(ENSEMBLE, epsilon) for epsilon in grid]
    curve = [macro_auroc(sample.labels, scores) for scores in (clean, *attacked)]
    yield "largest rise of AUROC with ε", max(np.diff(curve).max(), 0.0), 0.005
    extreme = label_scores(victim, sample.signals, sample.labels, options, EXTREME_MV, generator)
    extreme = worst_scores([clean, extreme], sample.labels)
    yield f"per-label AUROC at {EXTREME_MV:g} mV", macro_auroc(sample.labels, extreme), 0.05
    noise = Ball(headline).start(sample.signals, generator)
    noisy = macro_auroc(sample.labels, victim_scores(victim, sample.signals + noise, options))
    yield "change of AUROC under noise of the headline ε", abs(noisy - curve[0]), 0.02
    yield (
        "share of exactly zero input gradients",
        zero_gradients(victim, sample.signals[:256], sample.labels),
        0.01,
    )


def zero_gradients(victim: Victim, signals: Tensor, labels: Tensor) -> float:
    """Share of samples whose input gradient of the margin objective is exactly 0."""
    leaf = signals.clone().requires_grad_()
    value = signed_scores(victim.scores(leaf), auroc_targets(labels)[: len(signals)]).sum()
    (gradient,) = torch.autograd.grad(value, leaf)
    return float((gradient == 0).float().mean())
