"""The inner attack of adversarial arms: what it raises, and its steps."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ecgstudy.attacks.ball import Ball, ascend
from ecgstudy.models.heads import label_loss
from ecgstudy.pretraining.arm_type import Adversary, Schemes
from ecgstudy.pretraining.contrast import keep_weights, weighted_contrastive_loss
from ecgstudy.pretraining.distributed import draw
from ecgstudy.pretraining.losses import code_loss, divergence, sinkhorn
from ecgstudy.pretraining.state import (
    Batch,
    evaluation_mode,
    split_views,
    stack_views,
)
from ecgstudy.pretraining.weighting import compose
from ecgstudy.registry import Registry

Objective = Callable[[Tensor], Tensor]
OBJECTIVES: Registry = Registry("objective of an inner attack", "", "")
"""Name → function of (batch, adversary), called once a batch with the held views
embedded. It returns what the attack raises: a function of the attacked signals, the
starred views one below the other."""


def attack_views(batch: Batch, adversary: Adversary) -> dict[str, Tensor]:
    """The starred views of `adversary`: signals (records, leads, samples) in mV.

    K steps of projected steepest ascent on the adversary's objective, within ±ε of the
    clean views.

    Parameters
    ----------
    batch
        Has the signals of all clean views.
    adversary
        Which views are attacked, from which start, by how many steps, and what is
        raised.
    """
    state, starred, held = batch.state, adversary.starred, adversary.held
    clean = stack_views([batch.signals[view[:-1]] for view in starred])

    epsilon_mv = state.run.headline_epsilon_mv
    steps = adversary.steps or state.options.attack_steps
    step = adversary.step or state.options.attack_step
    width = float(adversary.random_start)
    # From a wider start than ε nothing is clipped: the ball holds all that can be
    # reached.
    ball = Ball(epsilon_mv * (width + steps * step if width > 1 else 1))
    delta = torch.zeros_like(clean)
    if width:
        stream = state.streams["attack"]
        noise = draw(torch.rand, clean.shape, clean, stream, views=len(starred))
        delta = width * epsilon_mv * (2 * noise - 1)
    if adversary.loss == "noise":
        return split_views(clean + delta, starred)

    mode = nullcontext() if adversary.train_mode else evaluation_mode(state.model)
    # The outermost autocast turns weights into bfloat16 once, for all steps.
    with torch.autocast(state.device.type, enabled=False), mode:
        inside = replace(batch, features={}, embedded={})
        with torch.no_grad():
            inside.embed(held, adversarial=False)
            objective = OBJECTIVES.find(adversary.loss)(inside, adversary)
        step_mv = step * epsilon_mv
        delta = ascend(objective, clean, delta, ball, steps=steps, step_mv=step_mv)
    return split_views(clean + delta, starred)


@OBJECTIVES.register("contrast")
def leave_positives(batch: Batch, adversary: Adversary) -> Objective:
    """The contrastive loss with uniform weights, as in RoCL, ACL, AdvCL and CLAE."""
    return _contrastive(batch, adversary, schemes=())


@OBJECTIVES.register("labelled-contrast")
def leave_same_labels(batch: Batch, adversary: Adversary) -> Objective:
    """The supervised contrastive loss (RSupCon)."""
    return _contrastive(batch, adversary, schemes=(("labels", {}),))


def _contrastive(batch: Batch, adversary: Adversary, schemes: Schemes) -> Objective:
    """Contrastive loss among the adversary's views, of which some are held.

    Where gradients come from the anchors alone, only attacked rows are anchors: the
    terms of the others are constant.
    """
    state, starred, held = batch.state, adversary.starred, adversary.held
    rows = batch.rows_of((*starred, *held))
    anchors = None if adversary.both_sides else len(starred) * len(batch.rows)
    weighting = keep_weights(compose(schemes))

    def objective(signals: Tensor) -> Tensor:
        attacked = state.embed(signals, adversarial=True)
        loss, _ = weighted_contrastive_loss(
            torch.cat([attacked, *(batch.embedded[view] for view in held)]),
            rows,
            weighting,
            temperature=state.options.temperature,
            detach_candidates=not adversary.both_sides,
            anchors=anchors,
            logged=False,
        )
        return loss

    return objective


@OBJECTIVES.register("labels")
def miss_labels(batch: Batch, adversary: Adversary) -> Objective:
    """Cross-entropy of the labels, per record (Madry et al. 2018)."""
    logits, labels = batch.state.logits, batch.labels
    return lambda signals: label_loss(logits(signals), labels, batch.multilabel)


@OBJECTIVES.register("kl")
def shift_predictions(batch: Batch, adversary: Adversary) -> Objective:
    """KL divergence from the clean view's predictions, per record (TRADES)."""
    (view,) = adversary.held
    logits, clean = batch.state.logits, batch.logits(view)
    return lambda signals: divergence(clean, logits(signals), batch.multilabel)


@OBJECTIVES.register("teacher")
def leave_teacher(batch: Batch, adversary: Adversary) -> Objective:
    """−cosine to the teacher's features of the clean view, per record (DeACL)."""
    (view,) = adversary.starred
    features, target = batch.state.features, batch.teacher[view[:-1]]
    return lambda signals: -cosine_similarity(features(signals, True).float(), target)


@OBJECTIVES.register("permuted-codes")
def reach_other_codes(batch: Batch, adversary: Adversary) -> Objective:
    """−loss of another record's codes, per record: towards another cluster (SwARo).

    The other record is the next one in the batch of which the largest code is at
    another prototype.
    """
    state, targets = batch.state, []
    for view in adversary.starred:
        codes = sinkhorn(state.prototype_scores(batch.embedded[view[:-1]]))
        targets.append(codes[next_of_another_cluster(codes.argmax(1))])
    target = stack_views(targets)
    return lambda signals: -code_loss(state, state.embed(signals, True), target)


def next_of_another_cluster(clusters: Tensor) -> Tensor:
    """For each row the next one, cyclically, of another cluster; itself without any."""
    place = torch.arange(len(clusters), device=clusters.device)
    ahead = (place[:, None] + place) % len(clusters)
    other = clusters[ahead] != clusters[:, None]
    return ahead.gather(1, other.int().argmax(1, keepdim=True)).squeeze(1)
