"""What arms minimise and what their inner attacks raise, by name; nothing here knows an arm.

A loss takes the training state, a batch of embedded views and its `Loss` row, and gives a scalar and
a log. An adversary's objective takes the state, the batch and the attacked signals by view, and gives
values that the attack raises.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from ecgstudy.models.heads import class_scores, label_loss
from ecgstudy.pretraining.arm_type import WHOLE_BATCH, Loss
from ecgstudy.pretraining.contrast import keep_weights, weighted_contrastive_loss
from ecgstudy.pretraining.state import Batch, Log, State
from ecgstudy.pretraining.weighting import compose

LOSSES: dict[str, Callable[[State, Batch, Loss], tuple[Tensor, Log]]] = {}
ADVERSARIES: dict[str, Callable[[State, Batch, dict[str, Tensor]], Tensor]] = {}
MODULES: dict[str, tuple[str, ...]] = {}
"""Loss → the parts of the model that it needs beside the encoder (`ecgstudy.pretraining.step.PARTS`)."""


def loss(name: str, *modules: str) -> Callable:
    """Register a loss under `name`, with the parts of the model that it needs."""

    def register(function: Callable) -> Callable:
        LOSSES[name], MODULES[name] = function, modules
        return function

    return register


def adversary(name: str) -> Callable:
    """Register what an inner attack raises under `name`."""

    def register(function: Callable) -> Callable:
        ADVERSARIES[name] = function
        return function

    return register


@loss("contrast", "projector")
def contrast(state: State, batch: Batch, term: Loss) -> tuple[Tensor, Log]:
    """The weighted contrastive loss among the term's views (`ecgstudy.pretraining.contrast`)."""
    arm = state.arm
    embedded, rows = batch.stacked(term.names)
    schemes = () if term.plain else arm.weighting
    options = {"detach_candidates": arm.adversary is not None, **arm.loss_options}
    if any(name in WHOLE_BATCH for name, _ in schemes):
        options["block"] = len(rows)
    return weighted_contrastive_loss(
        embedded, rows, compose(schemes),
        temperature=state.temperature, tau_plus=0.0 if term.plain else arm.tau_plus, **options,
    )  # fmt: skip


@loss("ce", "head")
def label_cross_entropy(state: State, batch: Batch, term: Loss) -> tuple[Tensor, Log]:
    """Cross-entropy of the labels, averaged over the term's views."""
    return _label_loss(state, batch, [batch.features[view] for view in term.names]), {}


@loss("head", "head")
def head_only(state: State, batch: Batch, term: Loss) -> tuple[Tensor, Log]:
    """Cross-entropy that trains the head alone: no gradient reaches the encoder (CLAF, reconstructed)."""
    return _label_loss(
        state, batch, [batch.features[view].detach() for view in term.names]
    ), {}


def _label_loss(state: State, batch: Batch, features: list[Tensor]) -> Tensor:
    logits = [state.model["head"](f) for f in features]
    return torch.stack(
        [label_loss(logit, batch.labels, batch.multilabel).mean() for logit in logits]
    ).mean()


def divergence(clean: Tensor, attacked: Tensor, multilabel: bool) -> Tensor:
    """KL(clean ‖ attacked) of the predictions, per record: softmax, or the sum of label-wise Bernoullis.

    Of logits (records, classes); gradients pass through both (Zhang et al. 2019).
    """
    return _each_divergence(clean, attacked, multilabel).sum(1)


def _each_divergence(clean: Tensor, attacked: Tensor, multilabel: bool) -> Tensor:
    """Summands of `divergence`: one a label when multi-label, else one (records, 1)."""
    p, q = (
        _log_probabilities(clean, multilabel),
        _log_probabilities(attacked, multilabel),
    )
    return (p.exp() * (p - q)).sum(-1)


def _log_probabilities(logits: Tensor, multilabel: bool) -> Tensor:
    """(records, labels, outcomes): one softmax over the classes, or yes and no for each label."""
    if multilabel:
        return torch.stack([logits, torch.zeros_like(logits)], -1).log_softmax(-1)
    return logits.log_softmax(-1)[:, None]


@loss("kl", "head")
def prediction_shift(state: State, batch: Batch, term: Loss) -> tuple[Tensor, Log]:
    """Mean KL from the clean view's predictions to the attacked view's (TRADES; ASCL)."""
    clean, attacked = (state.model["head"](batch.features[view]) for view in term.names)
    return divergence(clean, attacked, batch.multilabel).mean(), {}


@loss("mart", "head")
def misclassification_aware(
    state: State, batch: Batch, term: Loss, beta: float = 6.0
) -> tuple[Tensor, Log]:
    """MART: −log p′_y − log(1 − max_{k≠y} p′_k) + β KL(p ‖ p′)(1 − p_y).

    Wang et al. 2020; authors' code read. For several labels each is a two-class problem of its own (ours).
    """
    clean, attacked = (state.model["head"](batch.features[view]) for view in term.names)
    p, q = (
        _log_probabilities(logits, batch.multilabel) for logits in (clean, attacked)
    )
    truth = (
        torch.stack([batch.labels, 1 - batch.labels], -1)
        if batch.multilabel
        else batch.labels[:, None]
    )
    others = q.exp().masked_fill(truth > 0, 0.0).amax(-1)
    boosted = -(q * truth).sum(-1) - torch.log(1.0001 - others)
    unsure = 1 - (p.exp() * truth).sum(-1)
    stressed = (
        boosted + beta * _each_divergence(clean, attacked, batch.multilabel) * unsure
    )
    return stressed.sum(1).mean(), {}


@loss("margin", "projector")
def pair_margin(
    state: State, batch: Batch, term: Loss, near: float = 0.5, far: float = 1.0
) -> tuple[Tensor, Log]:
    """Mean of max(0, d − near)² over pairs with a common label and of max(0, far − d)² over the others.

    d is the Euclidean distance of unit vectors. Wang et al. 2024 (abstract only): form and margins are a
    reconstruction.
    """
    embedded, rows = batch.stacked(term.names)
    squared = (2 - 2 * embedded @ embedded.T).clamp(
        min=1e-12
    )  # the root has no gradient at 0
    distance, labels = squared.sqrt(), rows.metadata["labels"]
    itself = torch.eye(len(rows), dtype=torch.bool, device=distance.device)
    same = (
        (labels @ labels.T > 0) | (rows.record[:, None] == rows.record[None, :])
    ) & ~itself
    other = ~same & (rows.patient[:, None] != rows.patient[None, :])
    pulled = ((distance - near).clamp(min=0) ** 2 * same).sum() / same.sum().clamp(
        min=1
    )
    pushed = ((far - distance).clamp(min=0) ** 2 * other).sum() / other.sum().clamp(
        min=1
    )
    return pulled + pushed, {}


@loss("risk-similarity", "projector")
def risk_similarity(state: State, batch: Batch, term: Loss) -> tuple[Tensor, Log]:
    """CLEF's regression (arXiv 2512.02180, authors' code read): MSE of scaled cosines and 1 − D″.

    Cosines are scaled to [0, 1] over the whole matrix; D″ is 0.8 D + 0.2 between records and 0 within one.
    """
    embedded, rows = batch.stacked(term.names)
    cosine, risk = embedded @ embedded.T, rows.metadata["risk"]
    scaled = (cosine - cosine.min()) / (cosine.max() - cosine.min() + 1e-6)
    difference = (risk[:, None] - risk[None, :]) ** 2
    distance = 0.8 * difference / (difference.max() + 1e-6) + 0.2
    distance = distance.masked_fill(rows.record[:, None] == rows.record[None, :], 0.0)
    return ((scaled - (1 - distance)) ** 2).mean().to(embedded.dtype), {}


@loss("pseudo-labels", "clusters")
def pseudo_labels(state: State, batch: Batch, term: Loss) -> tuple[Tensor, Log]:
    """Mean cross-entropy of the clusters that the record has in k-means of several sizes (AdvCL)."""
    (view,) = term.names
    logits = [head(batch.features[view]) for head in state.model["clusters"]]
    losses = [
        cross_entropy(logit, target)
        for logit, target in zip(logits, batch.pseudo_labels.T, strict=True)
    ]
    return torch.stack(losses).mean(), {}


@loss("distil")
def distil(state: State, batch: Batch, term: Loss) -> tuple[Tensor, Log]:
    """−cos(student, teacher) of one view's features (DeACL)."""
    (view,) = term.names
    return -cosine_similarity(batch.features[view], batch.teacher[view]).mean(), {}


@loss("agree")
def agree(state: State, batch: Batch, term: Loss) -> tuple[Tensor, Log]:
    """−cos of two views' features, gradient through both (DeACL)."""
    first, second = (batch.features[view] for view in term.names)
    return -cosine_similarity(first, second).mean(), {}


SINKHORN_ROUNDS, CODE_TEMPERATURE, PREDICTION_TEMPERATURE = 3, 0.05, 0.1
"""SwAV's Sinkhorn rounds and temperatures, for SwARo."""


@torch.no_grad()
def sinkhorn(scores: Tensor, rounds: int = SINKHORN_ROUNDS) -> Tensor:
    """Codes (rows, prototypes): each row sums to 1 and prototypes are used equally (Caron et al. 2020)."""
    codes = torch.exp((scores - scores.max()) / CODE_TEMPERATURE)
    for _ in range(rounds):
        codes = codes / codes.sum(0, keepdim=True).clamp(min=1e-12)
        codes = codes / codes.sum(1, keepdim=True).clamp(min=1e-12)
    return codes


@loss("codes", "projector", "prototypes")
def swapped_codes(state: State, batch: Batch, term: Loss) -> tuple[Tensor, Log]:
    """Each view predicts the codes of the other view of its record; attacked views do so too (SwARo).

    Wahed et al. 2022: only the abstract was available, so that all of this is a reconstruction.
    """
    codes = {
        view: sinkhorn(state.prototype_scores(batch.embedded[view]))
        for view in ("1", "2")
    }
    other = {"1": "2", "2": "1"}
    losses = [
        _code_loss(state, batch.embedded[v], codes[other[v[0]]]).mean()
        for v in term.names
    ]
    return torch.stack(losses).mean(), {}


def _code_loss(state: State, embedded: Tensor, codes: Tensor) -> Tensor:
    """−Σ q log p per record, p the softmax of the prototype scores."""
    predicted = (state.prototype_scores(embedded) / PREDICTION_TEMPERATURE).log_softmax(
        1
    )
    return -(codes * predicted).sum(1)


@adversary("contrast")
def leave_positives(state: State, batch: Batch, attacked: dict[str, Tensor]) -> Tensor:
    """The plain contrastive loss of the adversary's views, those without a star held (RoCL, ACL, …).

    Where gradients come from anchors alone, attacked rows are the anchors: the others' terms are constant.
    """
    return _attacked_contrast(state, batch, attacked, ())


@adversary("labelled-contrast")
def leave_own_labels(state: State, batch: Batch, attacked: dict[str, Tensor]) -> Tensor:
    """The supervised contrastive loss of the adversary's views (RSupCon)."""
    return _attacked_contrast(state, batch, attacked, (("labels", {}),))


def stack_views(views: list[Tensor]) -> Tensor:
    """Signals of all views, one below the other; a single view's as they are, without a copy."""
    return torch.cat(views) if len(views) > 1 else views[0]


def _attacked_contrast(
    state: State,
    batch: Batch,
    attacked: dict[str, Tensor],
    weighting: tuple[tuple[str, dict], ...],
) -> Tensor:
    held = tuple(view for view in batch.adversary.views.split() if view not in attacked)
    ours = state.embed(stack_views(list(attacked.values())), adversarial=True)
    batch.attack_weighting = batch.attack_weighting or keep_weights(compose(weighting))
    both = batch.adversary.both_sides
    return weighted_contrastive_loss(
        torch.cat([ours, *(batch.embedded[view] for view in held)]), batch.rows_of((*attacked, *held)),
        batch.attack_weighting, temperature=state.options.temperature, detach_candidates=not both,
        anchors=None if both else len(ours),  # no gradient comes from the others
        logged=False,
    )[0]  # fmt: skip


@adversary("labels")
def miss_labels(state: State, batch: Batch, attacked: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the labels, per record (Madry et al. 2018)."""
    (signals,) = attacked.values()
    return label_loss(state.logits(signals), batch.labels, batch.multilabel)


@adversary("kl")
def shift_predictions(
    state: State, batch: Batch, attacked: dict[str, Tensor]
) -> Tensor:
    """KL from the clean view's predictions, per record (TRADES)."""
    ((view, signals),) = attacked.items()
    clean = state.model["head"](batch.features[view[:-1]])
    return divergence(clean, state.logits(signals), batch.multilabel)


@adversary("teacher")
def leave_teacher(state: State, batch: Batch, attacked: dict[str, Tensor]) -> Tensor:
    """−cos to the teacher's features of the unattacked view, per record (DeACL)."""
    ((view, signals),) = attacked.items()
    return -cosine_similarity(
        state.features(signals, True).float(), batch.teacher[view[:-1]]
    )


@adversary("permuted-codes")
def reach_other_codes(
    state: State, batch: Batch, attacked: dict[str, Tensor]
) -> Tensor:
    """Negative loss of another record's codes, per record: the attack moves towards another cluster (SwARo).

    The record is the next in the batch, or further on, whose largest code is at another prototype.
    """
    values = []
    for view, signals in attacked.items():
        codes = sinkhorn(state.prototype_scores(batch.embedded[view[:-1]]))
        embedded = state.embed(signals, adversarial=True)
        values.append(
            -_code_loss(state, embedded, codes[of_another_cluster(codes.argmax(1))])
        )
    return torch.stack(values).sum(0)


def of_another_cluster(clusters: Tensor) -> Tensor:
    """For each row the next row, cyclically, of another cluster; the row itself when there is none."""
    n = len(clusters)
    ahead = (
        torch.arange(n, device=clusters.device)[:, None]
        + torch.arange(n, device=clusters.device)
    ) % n
    other = clusters[ahead] != clusters[:, None]
    return ahead.gather(1, other.int().argmax(1, keepdim=True)).squeeze(1)


def adaptive_alpha(
    distance: Tensor, mean: Tensor, smallest: float, alpha: float
) -> Tensor:
    """A-InfoNCE's α of a step from the mean distance between clean and adversarial features.

    `alpha` where the adversary is farther than on average so far (`mean`), ½ where it is nearer than
    `smallest`, linear between (Yu et al. 2022; authors' code read).
    """
    between = alpha + (0.5 - alpha) * (mean - distance) / (mean - smallest).clamp(
        min=1e-12
    )
    return torch.where(
        distance > mean, alpha, torch.where(distance < smallest, 0.5, between)
    )


def predicted_labels(logits: Tensor, multilabel: bool) -> Tensor:
    """Multi-hot predictions (records, classes): the likeliest class, or every label above one half."""
    if multilabel:
        return (logits > 0).float()
    return torch.nn.functional.one_hot(
        class_scores(logits, False).argmax(1), logits.shape[1]
    ).float()
