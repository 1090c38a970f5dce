"""What an attack maximises, per record, from a model's logits.

The score of class c is the same in attack, selection and storage: the logit for multi-label models,
the log-softmax margin f_c − logsumexp_{k≠c} f_k for single-label ones. AUROC depends on the scores'
order only, so that signed scores are the right objectives for it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ecgstudy.contrast import MASKED

Objective = Callable[[Tensor, Tensor], Tensor]
"""(scores (records, classes), targets (records, classes)) -> value per record, to be maximised."""


def class_scores(logits: Tensor, multilabel: bool) -> Tensor:
    """Scores (records, classes) whose order gives each class's AUROC.

    Parameters
    ----------
    logits
        (records, classes) outputs of the model.
    multilabel
        True: the logits themselves. False: log(p_c / (1 − p_c)) of the softmax, in log space.
    """
    if multilabel:
        return logits
    classes = logits.shape[1]
    itself = torch.eye(classes, dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].masked_fill(itself, MASKED)
    return logits - torch.logsumexp(others, 2)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the true class (softmax), or summed binary cross-entropies (multi-label).

    Both are the sum over true classes of softplus(−score) here: a softmax margin's sigmoid is the
    class's probability. `targets` are multi-hot for multi-label and one-hot for single-label data;
    NaN targets are left out of the sum.
    """
    counted = ~targets.isnan()
    loss = binary_cross_entropy_with_logits(scores, targets.nan_to_num(), reduction="none")
    return (loss * counted).sum(1)


def signed_scores(scores: Tensor, targets: Tensor) -> Tensor:
    """Σ_c targets_c · score_c: with the targets of `auroc_targets` or `label_targets`."""
    return (scores * targets).sum(1)


def cross_entropy_targets(labels: Tensor, multilabel: bool) -> Tensor:
    """Targets of `cross_entropy`: multi-hot labels, or the true class alone (others NaN)."""
    return labels if multilabel else torch.where(labels > 0, labels, torch.nan)


def auroc_targets(labels: Tensor) -> Tensor:
    """Targets of the AUROC-weighted margin objective, for one perturbation against all labels.

    Record i counts in the macro AUROC of class c with y/|P_c| + (1−y)/|N_c|; positives shall score
    low and negatives high. Classes that lack positives or negatives have weight 0.

    Parameters
    ----------
    labels
        Multi-hot (records, classes) of the whole attacked sample.
    """
    positives, negatives = labels.sum(0), (1 - labels).sum(0)
    defined = (positives > 0) & (negatives > 0)
    weights = labels / positives.clamp(min=1) + (1 - labels) / negatives.clamp(min=1)
    return (1 - 2 * labels) * weights * defined * len(labels) / 2


def label_targets(labels: Tensor, label: int) -> Tensor:
    """Targets of the attack on one label: its positives minimise, its negatives maximise its score."""
    targets = torch.zeros_like(labels)
    targets[:, label] = 1 - 2 * labels[:, label]
    return targets


OBJECTIVES: dict[str, tuple[Objective, Callable[[Tensor, bool], Tensor]]] = {
    "ce": (cross_entropy, cross_entropy_targets),
    "margin": (signed_scores, lambda labels, multilabel: auroc_targets(labels)),
}
"""Name → objective and its targets from (multi-hot labels, multilabel)."""
