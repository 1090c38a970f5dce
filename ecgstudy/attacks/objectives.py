"""What an attack maximises, per record, from the victim's class scores.

The score of class c is the same in attack, selection and storage
(`ecgstudy.models.heads.class_scores`): the logit for multi-label models, the
log-softmax margin f_c − logsumexp_{k≠c} f_k for single-label ones. AUROC depends on the
order of scores only, so that signed scores are the right objective for it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ecgstudy.errors import StudyError

Objective = Callable[[Tensor, Tensor], Tensor]
"""(scores, targets), both (records, classes) → value per record, to be maximised."""
SMALLEST_SPREAD = 1e-12
"""Smallest denominator of the difference of logits ratio."""


def signed_scores(scores: Tensor, targets: Tensor) -> Tensor:
    """Σ_c targets_c · score_c, for `auroc_targets` or `label_targets`."""
    return (scores * targets).sum(1)


def auroc_targets(labels: Tensor) -> Tensor:
    """Targets of the AUROC-weighted margin: one perturbation against all labels.

    A record counts in the macro AUROC of class c with y/|P_c| + (1 − y)/|N_c|;
    positives should score low, negatives high. Classes that lack positives or negatives
    have weight 0. `labels` are multi-hot (records, classes) of the whole sample.
    """
    positives, negatives = labels.sum(0), (1 - labels).sum(0)
    defined = (positives > 0) & (negatives > 0)
    weights = labels / positives.clamp(min=1) + (1 - labels) / negatives.clamp(min=1)
    return (1 - 2 * labels) * weights * defined * len(labels) / 2


def label_targets(labels: Tensor, label: int) -> Tensor:
    """Targets of the attack on one label: lower its positives, raise its negatives."""
    targets = torch.zeros_like(labels)
    targets[:, label] = 1 - 2 * labels[:, label]
    return targets


def true_class_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """−log p of the true class, for one-hot `targets`.

    As `ecgstudy.models.heads.cross_entropy`, for searches in float32: the derivative of
    softplus stays exact where that of the other, a sigmoid minus 1, has become 0 (from
    a margin of 17 on).
    """
    return (softplus(-scores) * targets).sum(1)


def one_against_rest(scores: Tensor, targets: Tensor) -> Tensor:
    """Sum over classes of binary cross-entropies, for multi-hot `targets`."""
    return softplus((1 - 2 * targets) * scores).sum(1)


def best_wrong_margin(scores: Tensor, targets: Tensor) -> Tensor:
    """log p of the likeliest wrong class less log p of the true, one-hot `targets`."""
    log_p = logsigmoid(scores)
    wrong = log_p.masked_fill(targets > 0, -torch.inf).amax(1)
    return wrong - (log_p * targets).sum(1)


def dlr(scores: Tensor, targets: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, equation 6), one-hot `targets`.

    −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3), with π the order of the logits z. Only
    differences enter, so that log-probabilities do as well as logits.
    """
    first, _, third = logsigmoid(scores).topk(3).values.unbind(1)
    spread = (first - third).clamp(min=SMALLEST_SPREAD)
    return best_wrong_margin(scores, targets) / spread


def targeted_dlr(scores: Tensor, targets: Tensor) -> Tensor:
    """−(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2) (their equation 7).

    `targets` are −1 at the true class y, 1 at the target class t, and else 0.
    """
    log_p = logsigmoid(scores)
    first, _, third, fourth = log_p.topk(4).values.unbind(1)
    spread = (first - (third + fourth) / 2).clamp(min=SMALLEST_SPREAD)
    return (log_p * targets).sum(1) / spread


def check_classes(name: str, classes: int, multilabel: bool, least: int) -> None:
    """Refuse data that an objective of one true class is not defined for.

    Parameters
    ----------
    name
        Of the objective or attack.
    classes, multilabel
        Of the data.
    least
        Number of classes that are needed.

    Raises
    ------
    StudyError
        For multi-label data, or fewer classes.
    """
    if multilabel or classes < least:
        kind = "multi-label" if multilabel else "single-label"
        raise StudyError(
            f"{name} needs single-label data of at least {least} classes; "
            f"these are {kind}, of {classes}"
        )


OBJECTIVES = ("ce", "bce", "margin", "margin-even", "dlr")
"""Cross-entropy; every class against the rest (for multi-label data the same); the
AUROC-weighted margin; a margin that counts all pairs alike (all scores, or the best
wrong class against the true one); the difference of logits ratio."""


def make_objective(
    name: str, labels: Tensor, multilabel: bool
) -> tuple[Objective, Tensor]:
    """The objective called `name`, and its targets.

    Parameters
    ----------
    name
        One of `OBJECTIVES`.
    labels
        Multi-hot (records, classes) of the whole attacked sample.
    multilabel
        Whether a record may have several classes or none.

    Raises
    ------
    StudyError
        For an unknown name, or data that the objective is not defined for.
    """
    match name:
        case "ce":
            return (one_against_rest if multilabel else true_class_loss), labels
        case "bce":
            return one_against_rest, labels
        case "margin":
            return signed_scores, auroc_targets(labels)
        case "margin-even" if multilabel:
            return signed_scores, 1 - 2 * labels
        case "margin-even":
            return best_wrong_margin, labels
        case "dlr":
            check_classes("objective 'dlr'", labels.shape[1], multilabel, 3)
            return dlr, labels
    raise StudyError(f"unknown objective {name!r}; known: {', '.join(OBJECTIVES)}")
