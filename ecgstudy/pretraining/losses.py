"""What arms minimise, by name; nothing here knows an arm.

A loss takes the training state, a batch of embedded views, and its row `Loss`, and
returns a scalar. What is logged of it is put into the batch's log.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

from ecgstudy.models.heads import class_scores, label_loss
from ecgstudy.pretraining.arm_type import WHOLE_BATCH, Loss
from ecgstudy.pretraining.contrast import weighted_contrastive_loss
from ecgstudy.pretraining.pairs import Pairs
from ecgstudy.pretraining.state import Batch, State
from ecgstudy.pretraining.weighting import compose, risk_distance

LossFunction = Callable[[Batch, Loss], Tensor]
LOSSES: dict[str, LossFunction] = {}
PARTS: dict[str, tuple[str, ...]] = {}
"""Loss → parts of the model that it needs beside the encoder."""


def register(name: str, *parts: str) -> Callable[[LossFunction], LossFunction]:
    """Decorator that adds a loss under `name`, which needs `parts` of the model."""

    def add(function: LossFunction) -> LossFunction:
        LOSSES[name], PARTS[name] = function, parts
        return function

    return add


@register("contrast", "projector")
def contrast(batch: Batch, loss: Loss) -> Tensor:
    """The weighted contrastive loss (`ecgstudy.pretraining.contrast`)."""
    state, arm = batch.state, batch.state.arm
    embedded, rows = batch.stacked(loss.names)
    schemes = () if loss.plain else arm.weighting
    options = {"detach_candidates": arm.adversary is not None} | arm.loss_options
    if any(name in WHOLE_BATCH for name, _ in schemes):
        options["block"] = len(rows)
    value, log = weighted_contrastive_loss(
        embedded,
        rows,
        compose(schemes),
        temperature=state.temperature,
        tau_plus=0.0 if loss.plain else arm.tau_plus,
        **options,
    )
    batch.log = log | batch.log  # what an arm's first contrastive loss logs stays
    return value


# ---- Labels and predictions -------------------------------------------------------


@register("ce", "head")
def label_cross_entropy(batch: Batch, loss: Loss) -> Tensor:
    """Cross-entropy of the labels, mean over the views."""
    return _mean_label_loss([batch.logits(view) for view in loss.names], batch)


@register("head", "head")
def head_only(batch: Batch, loss: Loss) -> Tensor:
    """Cross-entropy that trains the head alone, without the encoder (CLAF)."""
    features = [batch.features[view].detach() for view in loss.names]
    return _mean_label_loss(
        [batch.state.model["head"](each) for each in features], batch
    )


def _mean_label_loss(logits: list[Tensor], batch: Batch) -> Tensor:
    losses = [label_loss(each, batch.labels, batch.multilabel) for each in logits]
    return torch.stack([each.mean() for each in losses]).mean()


@register("kl", "head")
def prediction_shift(batch: Batch, loss: Loss) -> Tensor:
    """Mean KL divergence from the first view's predictions to the second's (TRADES)."""
    clean, attacked = (batch.logits(view) for view in loss.names)
    return divergence(clean, attacked, batch.multilabel).mean()


def divergence(clean: Tensor, attacked: Tensor, multilabel: bool) -> Tensor:
    """KL(clean ‖ attacked) of the predictions, per record, with gradient through both.

    Of the softmax, or summed over labels of which each is a Bernoulli variable.

    Parameters
    ----------
    clean, attacked
        Logits (records, classes).
    multilabel
        Whether a record may have several labels.
    """
    return _label_divergence(clean, attacked, multilabel).sum(1)


def _label_divergence(clean: Tensor, attacked: Tensor, multilabel: bool) -> Tensor:
    p, q = (_log_probabilities(logits, multilabel) for logits in (clean, attacked))
    return (p.exp() * (p - q)).sum(-1)


def _log_probabilities(logits: Tensor, multilabel: bool) -> Tensor:
    """(records, labels, outcomes): one softmax, or yes and no of each label."""
    if multilabel:
        return torch.stack([logits, torch.zeros_like(logits)], -1).log_softmax(-1)
    return logits.log_softmax(-1)[:, None]


@register("mart", "head")
def misclassification_aware(batch: Batch, loss: Loss, beta: float = 6.0) -> Tensor:
    """MART: −log p′_y − log(1 − max_{k≠y} p′_k) + β KL(p ‖ p′) (1 − p_y).

    Wang et al. 2020; authors' code read. p are the probabilities of the clean view, p′
    of the attacked one. Each of several labels is a two-class problem (ours).

    Parameters
    ----------
    batch, loss
        As of every loss.
    beta
        Weight of the divergence.
    """
    multilabel = batch.multilabel
    clean, attacked = (batch.logits(view) for view in loss.names)
    p, q = (_log_probabilities(logits, multilabel) for logits in (clean, attacked))
    truth = batch.labels[:, None]
    if multilabel:
        truth = torch.stack([batch.labels, 1 - batch.labels], -1)
    largest_other = q.exp().masked_fill(truth > 0, 0.0).amax(-1)
    boosted = -(q * truth).sum(-1) - torch.log(1.0001 - largest_other)
    unsure = 1 - (p.exp() * truth).sum(-1)
    shift = _label_divergence(clean, attacked, multilabel)
    return (boosted + beta * shift * unsure).sum(1).mean()


def predicted_labels(logits: Tensor, multilabel: bool) -> Tensor:
    """Multi-hot predictions (records, classes): every likely label, or one class."""
    if multilabel:
        return (logits > 0).float()
    likeliest = class_scores(logits, False).argmax(1)
    return one_hot(likeliest, logits.shape[1]).float()


# ---- Pairs of embeddings ----------------------------------------------------------


@register("margin", "projector")
def pair_margin(
    batch: Batch, loss: Loss, near: float = 0.5, far: float = 1.0
) -> Tensor:
    """Mean of max(0, d − near)² over pairs that share labels, of max(0, far − d)² else.

    d is the Euclidean distance of unit vectors. Wang et al. 2024 (abstract only): form
    and margins are a reconstruction.

    Parameters
    ----------
    batch, loss
        As of every loss.
    near, far
        Margins.
    """
    embedded, rows = batch.stacked(loss.names)
    pairs, labels = Pairs(rows, rows), rows.metadata["labels"]
    squared = 2 - 2 * embedded @ embedded.T
    distance = squared.clamp(min=1e-12).sqrt()  # the root has no gradient at 0
    same = ((labels @ labels.T > 0) | pairs.match("record")) & ~pairs.itself()
    other = ~same & ~pairs.match("patient")
    pulled = ((distance - near).clamp(min=0) ** 2 * same).sum()
    pushed = ((far - distance).clamp(min=0) ** 2 * other).sum()
    return pulled / same.sum().clamp(min=1) + pushed / other.sum().clamp(min=1)


@register("risk-similarity", "projector")
def risk_similarity(batch: Batch, loss: Loss) -> Tensor:
    """Squared difference of scaled cosines and 1 − D′, mean over all pairs (CLEF).

    arXiv 2512.02180, authors' code read. Cosines are scaled to [0, 1] over the whole
    matrix; D′ is `risk_distance`, 0 within a record.
    """
    embedded, rows = batch.stacked(loss.names)
    cosine, pairs = embedded @ embedded.T, Pairs(rows, rows)
    scaled = (cosine - cosine.min()) / (cosine.max() - cosine.min() + 1e-6)
    distance = risk_distance(pairs).masked_fill(pairs.match("record"), 0.0)
    return ((scaled - (1 - distance)) ** 2).mean().to(embedded.dtype)


# ---- Teachers and clusters --------------------------------------------------------


@register("distil")
def distil(batch: Batch, loss: Loss) -> Tensor:
    """−cosine between the features of student and teacher, of one view (DeACL)."""
    (view,) = loss.names
    return -cosine_similarity(batch.features[view], batch.teacher[view]).mean()


@register("agree")
def agree(batch: Batch, loss: Loss) -> Tensor:
    """−cosine between the features of two views, with gradient through both (DeACL)."""
    first, second = (batch.features[view] for view in loss.names)
    return -cosine_similarity(first, second).mean()


@register("pseudo-labels", "clusters")
def pseudo_labels(batch: Batch, loss: Loss) -> Tensor:
    """Cross-entropy of the record's cluster, mean over k-means of several k (AdvCL)."""
    (view,) = loss.names
    losses = []
    for head, cluster in zip(
        batch.state.model["clusters"], batch.pseudo_labels.T, strict=True
    ):
        losses.append(cross_entropy(head(batch.features[view]), cluster))
    return torch.stack(losses).mean()


SINKHORN_ROUNDS, CODE_TEMPERATURE, PREDICTION_TEMPERATURE = 3, 0.05, 0.1
"""Of SwAV (Caron et al. 2020), for SwARo."""


@register("codes", "projector", "prototypes")
def swapped_codes(batch: Batch, loss: Loss) -> Tensor:
    """Each view predicts the codes of the record's other view, attacked or not (SwARo).

    Wahed et al. 2022: a reconstruction, only the abstract was available.
    """
    codes = {}
    for view, other in (("1", "2"), ("2", "1")):
        codes[other] = sinkhorn(batch.state.prototype_scores(batch.embedded[view]))
    losses = []
    for view in loss.names:
        each = code_loss(batch.state, batch.embedded[view], codes[view[0]])
        losses.append(each.mean())
    return torch.stack(losses).mean()


def code_loss(state: State, embedded: Tensor, codes: Tensor) -> Tensor:
    """−Σ q log p per record: q its codes, p the softmax over prototypes.

    Parameters
    ----------
    state
        Has the prototypes.
    embedded
        Unit vectors (records, dimensions).
    codes
        (records, prototypes).
    """
    logits = state.prototype_scores(embedded) / PREDICTION_TEMPERATURE
    return -(codes * logits.log_softmax(1)).sum(1)


@torch.no_grad()
def sinkhorn(scores: Tensor, rounds: int = SINKHORN_ROUNDS) -> Tensor:
    """Codes (rows, prototypes): rows sum to 1, prototypes are used equally often."""
    codes = torch.exp((scores - scores.max()) / CODE_TEMPERATURE)
    for _ in range(rounds):
        codes = codes / codes.sum(0, keepdim=True).clamp(min=1e-12)
        codes = codes / codes.sum(1, keepdim=True).clamp(min=1e-12)
    return codes
