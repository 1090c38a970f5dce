"""The loss of one training step: draw views, attack them, embed them, compare them."""

import torch
from torch import Tensor

from ecgstudy.pretraining.arm_type import Adversary, Loss
from ecgstudy.pretraining.augment import draw_view, high_pass
from ecgstudy.pretraining.distributed import all_rows, own_rows
from ecgstudy.pretraining.inner_attack import attack_views
from ecgstudy.pretraining.losses import LOSSES, predicted_labels
from ecgstudy.pretraining.state import Batch, Data, Log, State, evaluation_mode


def arm_loss(state: State, data: Data, index: Tensor) -> tuple[Tensor, Log]:
    """The arm's loss on some training records: the weighted sum of its losses.

    Parameters
    ----------
    state, data
        What is trained, on what.
    index
        (batch,): the training records.

    Returns
    -------
    loss : Tensor
        Scalar.
    log : dict of Tensor
        What its first contrastive loss logs, and each of several losses.
    """
    losses, adversary = state.arm.losses, state.arm.adversary
    batch = embed_batch(state, data, index, state.arm.views, adversary)
    total = torch.zeros((), device=state.device)
    for loss in losses:
        value = LOSSES[loss.name](batch, loss)
        total = total + _weight(loss, state.progress) * value
        if len(losses) > 1:
            batch.log[f"{loss.name} {loss.views}"] = value.detach()
    return total, batch.log


def _weight(loss: Loss, progress: float) -> float:
    if loss.last is None:
        return loss.weight
    return loss.weight + progress * (loss.last - loss.weight)


def embed_batch(
    state: State,
    data: Data,
    index: Tensor,
    views: tuple[str, ...],
    adversary: Adversary | None,
) -> Batch:
    """Some training records with their views, features and unit vectors.

    Parameters
    ----------
    state, data
        Model and records.
    index
        (batch,): the training records.
    views
        Names of the views to embed.
    adversary
        Makes the starred ones.
    """
    wanted = set(views)
    if adversary:
        wanted |= {*adversary.starred, *adversary.held}
    clean = {view.rstrip("*") for view in wanted}
    batch = draw_views(state, data, index, clean)
    if adversary:
        batch.signals |= attack_views(batch, adversary)
    for adversarial in (False, True):
        chosen = [view for view in views if view.endswith("*") == adversarial]
        batch.embed(chosen, adversarial)
    _add_metadata(batch)
    return batch


def draw_views(state: State, data: Data, index: Tensor, views: set[str]) -> Batch:
    """Some training records with those of `views` that are not attacked.

    Random numbers of the views 1 and 2 are always drawn, so that all arms see the same.

    Parameters
    ----------
    state, data
        Options and random streams, and the records.
    index
        (batch,): the training records.
    views
        Names of views.
    """
    signals = data.take(own_rows(index, len(index)))
    options, fs, streams = state.run.study.views, data.fs, state.streams
    strength = 1 - state.progress if state.arm.fading_views else 1.0
    drawn = {}
    for view in ("1", "2"):
        render = view in views
        x = draw_view(signals, fs, options, streams["views"], strength, render)
        if render:
            drawn[view] = x
    if views & {"0", "h"}:
        drawn["0"] = draw_view(signals, fs, options, streams["crops"], strength=0.0)
    if "h" in views:
        drawn["h"] = high_pass(drawn["0"], fs)
    batch = state.batch(data, index)
    batch.signals = drawn
    if state.teacher is not None and "0" in views:
        with torch.no_grad():
            batch.teacher["0"] = all_rows(state.teacher(drawn["0"]), len(index))
    return batch


@torch.no_grad()
def _add_metadata(batch: Batch) -> None:
    """What the arm's weighting schemes need to know of each view."""
    state, count, shared = batch.state, len(batch.rows), {}
    if "running-distance" in state.model:
        options = dict(state.arm.weighting)["inferior-positives"]
        shared["alpha"] = _adapt_alpha(batch, **options).expand(count)
    noise = {"generator": state.streams["shuffle"], "device": state.device}
    for view in batch.features:
        known = batch.known[view] = dict(shared)
        if "leaked-local" in state.arm.schemes:
            known["predictions"] = predicted_labels(
                batch.logits(view), batch.multilabel
            )
        if "shuffled" in state.arm.schemes:
            known["noise"] = torch.rand(count, dtype=torch.float64, **noise)


NEAREST, AVERAGED_UNTIL = 0.4, 0.075
"""A-InfoNCE's adaptive α: distance below which it is ½, and share of training in which
it is fixed while distances are averaged."""


def _adapt_alpha(batch: Batch, alpha: float = 0.2, adaptive: bool = True) -> Tensor:
    """A-InfoNCE's α of this step, from how far adversarial features are off."""
    state = batch.state
    starred = next(view for view in batch.features if view.endswith("*"))
    features = []
    with evaluation_mode(state.model):
        for view in (starred[:-1], starred):
            features.append(state.features(batch.signals[view], False).float())
    distance = (features[0] - features[1]).norm(dim=1).mean()
    running = state.model["running-distance"]
    if state.progress < AVERAGED_UNTIL:
        running.add(distance)
        return torch.full_like(distance, alpha)
    return adaptive_alpha(distance, running.mean, alpha)


def adaptive_alpha(distance: Tensor, mean: Tensor, alpha: float) -> Tensor:
    """α of a step from the mean distance between clean and adversarial features.

    `alpha` where the adversary is farther than on average so far (`mean`), ½ where it
    is nearer than `NEAREST`, linear between (Yu et al. 2022; authors' code read).

    Parameters
    ----------
    distance, mean
        Scalars.
    alpha
        The smallest α.
    """
    share = (mean - distance) / (mean - NEAREST).clamp(min=1e-12)
    between = alpha + (0.5 - alpha) * share
    nearer = torch.where(distance < NEAREST, 0.5, between)
    return torch.where(distance > mean, alpha, nearer)


@torch.no_grad()
def follow(state: State) -> None:
    """Move the momentum encoder towards the encoder, after a step."""
    if "momentum" in state.model:
        online = dict(state.model.named_parameters())
        for name, parameter in state.model["momentum"].named_parameters():
            parameter.lerp_(online[name], 1 - state.arm.momentum)
