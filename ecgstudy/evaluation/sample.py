"""Which records are attacked, and scores of records without attack."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ecgstudy import metrics
from ecgstudy.attacks.api import Victim
from ecgstudy.records import EcgRecords
from ecgstudy.study import derived_seed


def select_attacked(records: EcgRecords, split: str, most: int | None) -> EcgRecords:
    """Select the records of a split that are attacked: the same for every arm and seed.

    Parameters
    ----------
    records
        All records of a data set.
    split
        One of `ecgstudy.records.SPLITS`.
    most
        At most so many are drawn, with a seed that depends on the data set alone.
    """
    chosen = records.table["split"].eq(split) & records.table["attacked"]
    rows = np.flatnonzero(chosen)
    if most is not None and len(rows) > most:
        seed = derived_seed(records.name, split, "attacked sample")
        rows = np.random.default_rng(seed).choice(rows, most, replace=False)
    return records.select(np.isin(np.arange(len(records)), rows))


def pick_evenly(labels: Tensor, most: int) -> Tensor:
    """Indices of at most `most` records in which classes are as even as they can be.

    Records are taken in turn from each class, in a random order that is the same for
    all arms (the sample's own order is that of its patients).
    """
    hot, chosen = labels.cpu().numpy() > 0, set()
    order = np.random.default_rng(derived_seed("few records")).permutation(len(hot))
    queues = [iter(order[column[order]]) for column in (*hot.T, ~hot.any(1))]
    while len(chosen) < min(most, len(hot)):
        for queue in queues:
            row = next((row for row in queue if row not in chosen), None)
            if row is not None and len(chosen) < most:
                chosen.add(row)
    return torch.tensor(sorted(chosen), device=labels.device)


@torch.no_grad()
def apply_in_batches(
    function: Callable[[Tensor], Tensor], signals: np.ndarray, device: torch.device
) -> Tensor:
    """Apply `function` to signals, 512 at a time.

    Parameters
    ----------
    function
        Signals (records, leads, samples) in mV → a tensor with one row a record.
    signals
        (records, leads, samples) in mV, perhaps a memory map.
    device
        Where to compute.
    """
    parts = []
    for start in range(0, len(signals), 512):
        part = torch.tensor(signals[start : start + 512], device=device)
        parts.append(function(part))
    return torch.cat(parts)


def macro_auroc(labels: Tensor, scores: Tensor) -> float:
    """Mean AUROC over the labels that have positives and negatives."""
    return float(np.nanmean(metrics.auroc(labels.cpu().numpy(), scores.cpu().numpy())))


def clean_auroc(
    victim: Victim, records: EcgRecords, device: torch.device
) -> dict[str, float | None]:
    """Clean AUROC of each class on the whole test split, and `macro`, their mean.

    Parameters
    ----------
    victim
        The model, on `device`.
    records
        All records of a data set.
    device
        Where to compute.

    Returns
    -------
    dict
        None for a class that every test record has, or none.
    """
    test = records.split("test")
    scores = apply_in_batches(victim.scores, test.signals, device).cpu().numpy()
    each = metrics.auroc(test.multi_hot(), scores)
    known = [None if np.isnan(value) else float(value) for value in each]
    macro = {"macro": float(np.nanmean(each))}
    return macro | dict(zip(records.classes, known, strict=True))
