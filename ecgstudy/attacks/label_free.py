"""An attack without labels: away from the record's own place among all features."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, normalize

from ecgstudy.attacks.api import Budget, Problem, Victim
from ecgstudy.attacks.gradient import apgd
from ecgstudy.errors import StudyError
from ecgstudy.registry import ATTACKS

TEMPERATURE = 0.5


@ATTACKS.register("label-free")
def label_free(
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """APGD on the contrastive loss of perturbed against clean features.

    After Kim et al. 2020 (NeurIPS): record i raises −log( exp(s_ii) / Σ_j exp(s_ij) )
    with s_ij = cos(f(x_i + δ_i), f(x_j)) / 0.5, and j over all records of the sample.
    The attacker knows the encoder, and neither its head nor the labels.

    Parameters
    ----------
    victim, signals, labels, budget, generator
        As of `ecgstudy.attacks.named.Attack`; `labels` are not used.

    Raises
    ------
    StudyError
        When the victim has no features.
    """
    if victim.features is None:
        raise StudyError(
            "label-free needs the features of a frozen encoder; this model has none"
        )
    loss = contrastive_loss(victim.features, signals, budget.batch_size)
    return apgd(Problem(signals, loss), budget, generator)


def contrastive_loss(
    features: Callable[[Tensor], Tensor], signals: Tensor, batch_size: int
) -> Callable[[Tensor, slice | Tensor], Tensor]:
    """The objective: perturbed signals of some records, and which → loss of each.

    Parameters
    ----------
    features
        Signals in mV → features (records, features).
    signals
        All clean signals, (records, leads, samples) in mV; their features, computed
        once and without gradient, are the candidates.
    batch_size
        Records at a time.
    """
    with torch.no_grad():
        parts = [features(part).float() for part in signals.split(batch_size)]
    clean = normalize(torch.cat(parts), dim=1)
    own = torch.arange(len(signals), device=signals.device)

    def loss(perturbed: Tensor, rows: slice | Tensor) -> Tensor:
        embedded = normalize(features(perturbed).float(), dim=1)
        similarity = embedded @ clean.T / TEMPERATURE
        return cross_entropy(similarity, own[rows], reduction="none")

    return loss
