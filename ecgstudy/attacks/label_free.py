"""An attack that needs no labels: away from the record's own place among the features of all records."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, normalize

from ecgstudy.attacks.api import Budget, Problem, Victim
from ecgstudy.attacks.gradient import apgd
from ecgstudy.errors import StudyError

TEMPERATURE = 0.5


def label_free(
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """APGD on the contrastive loss of perturbed against clean features (after Kim et al. 2020, NeurIPS).

    Record i raises −log( exp(s_ii) / Σ_j exp(s_ij) ) with s_ij = cos(f(x_i + δ_i), f(x_j)) / 0.5 and j over
    all records of the sample, itself among them. `labels` are not looked at: this is the attack of someone
    who knows the encoder, and neither its head nor the truth.

    Raises
    ------
    StudyError
        When the victim has no features.
    """
    if victim.features is None:
        raise StudyError(
            "the label-free attack needs the features of a frozen encoder; this model has none"
        )
    away = away_from_itself(victim.features, signals, budget.batch_size)
    return apgd(Problem(signals, away), budget, generator)


def away_from_itself(
    features: Callable[[Tensor], Tensor], signals: Tensor, batch_size: int
) -> Callable[[Tensor, slice | Tensor], Tensor]:
    """The objective: perturbed signals of some records, and which they are → contrastive loss of each.

    The candidates, features of all clean `signals`, are computed once, without gradient.
    """
    with torch.no_grad():
        parts = [features(part).float() for part in signals.split(batch_size)]
    clean = normalize(torch.cat(parts), dim=1)
    place = torch.arange(len(signals), device=signals.device)

    def away(perturbed: Tensor, rows: slice | Tensor) -> Tensor:
        similarity = (
            normalize(features(perturbed).float(), dim=1) @ clean.T / TEMPERATURE
        )
        return cross_entropy(similarity, place[rows], reduction="none")

    return away
