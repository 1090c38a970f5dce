"""The worst of several attacks for AUROC: which record takes which perturbation."""

import torch
from torch import Tensor

from ecgstudy.attacks.objectives import auroc_targets
from ecgstudy.errors import StudyError

ROUNDING = 1e-12
"""Rank losses that differ by less are ties."""


def combine(scores: Tensor, labels: Tensor, sweeps: int = 3) -> Tensor:
    """Choose one of several perturbations for each record, so that macro AUROC is low.

    Starting from the member of lowest macro AUROC, every record takes the candidate
    that loses most ranks against the current scores of all records (among ties, the one
    of largest AUROC-weighted margin). Such a sweep is kept only if macro AUROC falls,
    so the result is never above a member. With one label it is the lowest AUROC that
    any choice has; with more it need not be.

    Parameters
    ----------
    scores
        (members, records, classes) under each member's perturbations; NaN for records
        that a member did not attack. At least one member is complete.
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
    aurocs = torch.stack([pairwise_auroc(labels, scores[m]) for m in complete])
    lowest = aurocs.min()
    chosen = complete[aurocs.argmin()].repeat(len(labels))

    records = torch.arange(len(labels), device=labels.device)
    margins = (scores * auroc_targets(labels)).sum(2)
    for _ in range(sweeps):
        losses = rank_losses(scores, scores[chosen, records], labels)
        losses = losses.nan_to_num(-torch.inf)
        tied = losses >= losses.amax(0) - ROUNDING
        tried = margins.where(tied, -torch.inf).argmax(0)
        auroc = pairwise_auroc(labels, scores[tried, records])
        if not auroc < lowest:
            break
        chosen, lowest = tried, auroc
    return chosen


def rank_losses(scores: Tensor, current: Tensor, labels: Tensor) -> Tensor:
    """How much macro AUROC each record loses by each candidate.

    A positive loses the share of negatives whose `current` score is above its own, over
    the number of positives; a negative the share of positives below, over the number of
    negatives. Ties count half; mean over the classes that have both.

    Parameters
    ----------
    scores
        Candidates, (members, records, classes).
    current, labels
        (records, classes).

    Returns
    -------
    Tensor
        (members, records) in float64, NaN where `scores` are.
    """
    total = torch.zeros(scores.shape[:2], dtype=torch.float64, device=scores.device)
    classes = _classes_with_both(labels)
    for c in classes:
        positive = labels[:, c] > 0
        above = 1 - _share_below(current[~positive, c], scores[:, :, c])
        below = _share_below(current[positive, c], scores[:, :, c])
        n_positive, n_negative = positive.sum(), (~positive).sum()
        loss = torch.where(positive, above / n_positive, below / n_negative)
        total += loss / len(classes)
    return torch.where(scores.isnan().any(2), torch.nan, total)


def pairwise_auroc(labels: Tensor, scores: Tensor) -> Tensor:
    """Macro AUROC, exact (ties half), on the scores' device; NaN if undefined.

    Over the classes that have positives and negatives.
    """
    each = []
    for c in _classes_with_both(labels):
        positive = labels[:, c] > 0
        each.append(_share_below(scores[~positive, c], scores[positive, c]).mean())
    return torch.stack(each).mean() if each else scores.new_tensor(torch.nan)


def _classes_with_both(labels: Tensor) -> list[int]:
    """Classes that have positives and negatives."""
    both = (labels > 0).any(0) & (labels <= 0).any(0)
    return both.nonzero()[:, 0].tolist()


def _share_below(reference: Tensor, values: Tensor) -> Tensor:
    """Share of `reference` (records,) below each value, ties half, in float64."""
    order = reference.sort().values
    low = torch.searchsorted(order, values.contiguous())
    high = torch.searchsorted(order, values.contiguous(), right=True)
    return (low + high).double() / (2 * len(order))
