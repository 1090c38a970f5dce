"""The worst of several attacks for AUROC: which record takes which attack's perturbation."""

import torch
from torch import Tensor

from ecgstudy.attacks.objectives import auroc_targets
from ecgstudy.errors import StudyError

ROUNDING = 1e-12
"""Rank losses that differ by less are alike."""


def combine(scores: Tensor, labels: Tensor, sweeps: int = 3) -> Tensor:
    """Choose for each record one of several perturbations, so that macro AUROC is low.

    From the member of lowest macro AUROC on, every record takes the candidate that loses most ranks against
    the current attacked scores of all records (of those alike the one of largest AUROC-weighted margin);
    such a sweep is kept only if macro AUROC falls. So the result is never above a member; with one label it
    is the lowest AUROC that any choice has, with more it need not be.

    Parameters
    ----------
    scores
        (members, records, classes) under each member's perturbations; NaN for records that a member did
        not attack. At least one member is complete.
    labels
        Multi-hot (records, classes).
    sweeps
        At most so many.

    Returns
    -------
    Tensor
        Index of the chosen member, (records,).

    Raises
    ------
    StudyError
        When no member has the scores of every record.
    """
    complete = (~scores.isnan()).all(2).all(1).nonzero()[:, 0]
    if not len(complete):
        raise StudyError(
            f"none of the {len(scores)} attacks has scores of all {len(labels)} records"
        )
    aurocs = torch.stack(
        [pairwise_auroc(labels, scores[member]) for member in complete]
    )
    lowest, chosen = aurocs.min(), complete[aurocs.argmin()].repeat(len(labels))
    records = torch.arange(len(labels), device=labels.device)
    margins = (scores * auroc_targets(labels)).sum(2)
    for _ in range(sweeps):
        losses = rank_losses(scores, scores[chosen, records], labels).nan_to_num(
            -torch.inf
        )
        alike = losses >= losses.amax(0) - ROUNDING
        tried = margins.where(alike, -torch.inf).argmax(0)
        auroc = pairwise_auroc(labels, scores[tried, records])
        if not auroc < lowest:
            break
        chosen, lowest = tried, auroc
    return chosen


def rank_losses(scores: Tensor, current: Tensor, labels: Tensor) -> Tensor:
    """How much macro AUROC each candidate of each record loses against the others' `current` scores.

    For a positive the share of negatives that rank above it, for a negative the share of positives below,
    each over the other kind's number and its own, ties half; mean over the classes that have both.

    Of `scores` (members, records, classes), `current` and `labels` (records, classes): (members, records) in
    float64, NaN where the scores are.
    """
    total = torch.zeros(scores.shape[:2], dtype=torch.float64, device=scores.device)
    classes = _defined(labels)
    for c in classes:
        positive = labels[:, c] > 0
        n_positive, n_negative = positive.sum(), (~positive).sum()
        above = 1 - _share_below(current[~positive, c], scores[:, :, c])
        below = _share_below(current[positive, c], scores[:, :, c])
        total += torch.where(positive, above / n_positive, below / n_negative) / len(
            classes
        )
    return torch.where(scores.isnan().any(2), torch.nan, total)


def pairwise_auroc(labels: Tensor, scores: Tensor) -> Tensor:
    """Macro AUROC over the classes with positives and negatives, exact (ties half), on the scores' device.

    NaN when there is no such class.
    """
    each = [
        _share_below(scores[labels[:, c] <= 0, c], scores[labels[:, c] > 0, c]).mean()
        for c in _defined(labels)
    ]
    return torch.stack(each).mean() if each else scores.new_tensor(torch.nan)


def _defined(labels: Tensor) -> list[int]:
    return ((labels > 0).any(0) & (labels <= 0).any(0)).nonzero()[:, 0].tolist()


def _share_below(reference: Tensor, values: Tensor) -> Tensor:
    """Share of `reference` (records,) below each value, ties half, in float64."""
    order = reference.sort().values
    low = torch.searchsorted(order, values.contiguous())
    high = torch.searchsorted(order, values.contiguous(), right=True)
    return (low + high).double() / (2 * len(order))
