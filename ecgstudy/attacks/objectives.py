"""What an attack maximises, per record, from a model's logits.

The score of class c is the same in attack, selection and storage: the logit for multi-label models,
the log-softmax margin f_c − logsumexp_{k≠c} f_k for single-label ones. AUROC depends on the scores'
order only, so that signed scores are the right objectives for it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ecgstudy.errors import StudyError

Objective = Callable[[Tensor, Tensor], Tensor]
"""(scores (records, classes), targets (records, classes)) -> value per record, to be maximised."""
SMALLEST_SPREAD = 1e-12
"""Smallest denominator of the difference of logits ratio."""


def signed_scores(scores: Tensor, targets: Tensor) -> Tensor:
    """Σ_c targets_c · score_c: with the targets of `auroc_targets` or `label_targets`."""
    return (scores * targets).sum(1)


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


def true_class_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """−log p of the true class, for one-hot `targets`; as `cross_entropy`, for searches in float32.

    The derivative of softplus stays exact where that of `cross_entropy`, a sigmoid minus 1, has become 0:
    from a margin of 17 on.
    """
    return (softplus(-scores) * targets).sum(1)


def one_against_rest(scores: Tensor, targets: Tensor) -> Tensor:
    """Sum over classes of the binary cross-entropies, for multi-hot `targets`; exact as `true_class_loss`."""
    return softplus((1 - 2 * targets) * scores).sum(1)


def best_wrong_margin(scores: Tensor, targets: Tensor) -> Tensor:
    """log p of the likeliest wrong class minus log p of the true one, for one-hot `targets`."""
    log_p = logsigmoid(scores)
    return log_p.masked_fill(targets > 0, -torch.inf).amax(1) - (log_p * targets).sum(1)


def dlr(scores: Tensor, targets: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, equation 6), for one-hot `targets`.

    −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3) with π the order of the logits. Log-probabilities do as well as
    logits: only differences enter.
    """
    first, _, third = logsigmoid(scores).topk(3).values.unbind(1)
    return best_wrong_margin(scores, targets) / (first - third).clamp(
        min=SMALLEST_SPREAD
    )


def targeted_dlr(scores: Tensor, targets: Tensor) -> Tensor:
    """−(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2) (Croce & Hein 2020, equation 7); targets −1 at y, 1 at t."""
    log_p = logsigmoid(scores)
    first, _, third, fourth = log_p.topk(4).values.unbind(1)
    return (log_p * targets).sum(1) / (first - (third + fourth) / 2).clamp(
        min=SMALLEST_SPREAD
    )


def check_classes(name: str, classes: int, multilabel: bool, least: int) -> None:
    """Raise a `StudyError` unless one of at least `least` classes is true of each record."""
    if multilabel or classes < least:
        kind = "multi-label" if multilabel else "single-label"
        raise StudyError(
            f"{name} needs single-label data of at least {least} classes; these are {kind}, of {classes}"
        )


def _margin_even(labels: Tensor, multilabel: bool) -> tuple[Objective, Tensor]:
    return (
        (signed_scores, 1 - 2 * labels) if multilabel else (best_wrong_margin, labels)
    )


def _dlr(labels: Tensor, multilabel: bool) -> tuple[Objective, Tensor]:
    check_classes("objective 'dlr'", labels.shape[1], multilabel, 3)
    return dlr, labels


OBJECTIVES: dict[str, Callable[[Tensor, bool], tuple[Objective, Tensor]]] = {
    "ce": lambda labels, multilabel: (
        one_against_rest if multilabel else true_class_loss,
        labels,
    ),
    # Every class against the rest, for single-label data too; for multi-label data the same as "ce".
    "bce": lambda labels, multilabel: (one_against_rest, labels),
    "margin": lambda labels, multilabel: (signed_scores, auroc_targets(labels)),
    # The sum of the wrong way's scores, or the best wrong class against the true one: all pairs alike.
    "margin-even": _margin_even,
    "dlr": _dlr,
}
"""Name → (multi-hot labels, multilabel) → objective and its targets."""
