"""From a row of factors to a loss: the parts of the model, the views of a batch, the inner attack."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW

from ecgstudy.attacks.ball import Ball, ascend
from ecgstudy.devices import pick_device, pick_precision
from ecgstudy.models.checkpoints import load_encoder
from ecgstudy.models.encoders import Encoder, Projector, build_encoder
from ecgstudy.models.heads import zero_head
from ecgstudy.pretraining.arms import Adversary, Arm, Loss
from ecgstudy.pretraining.augment import ViewNoise, draw_view, high_pass, render_view
from ecgstudy.pretraining.distributed import (
    all_rows,
    broadcast_first,
    like_all_rows,
    own_rows,
)
from ecgstudy.pretraining.losses import (
    ADVERSARIES,
    LOSSES,
    MODULES,
    adaptive_alpha,
    predicted_labels,
    stack_views,
)
from ecgstudy.pretraining.state import Batch, Data, Log, RunningMean, State
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, TrainingOptions, derived_seed

CLUSTERS = (2, 10, 50, 100, 500)
"""Sizes of AdvCL's k-means; those with under 10 records a cluster are left out."""
PROTOTYPES = 64
"""SwARo's clusters (a reconstruction: the paper's number was not available)."""


def _projector(run: Run, encoder: Encoder, classes: int, dual: bool) -> nn.Module:
    return Projector(encoder.features, run.study.encoder.projection, dual)


PARTS: dict[str, Callable[[Run, Encoder, int, bool], nn.Module]] = {
    "projector": _projector,
    "head": lambda run, encoder, classes, dual: zero_head(encoder.features, classes),
    "prototypes": lambda run, encoder, classes, dual: nn.Linear(
        run.study.encoder.projection, PROTOTYPES, bias=False
    ),
    "running-distance": lambda run, encoder, classes, dual: RunningMean(),
}
"""Parts of a model beside the encoder, by the name that losses ask for them."""


def use_original(arm: Arm, training: TrainingOptions) -> Arm:
    """`arm` with its source's own loss or attack, where the study's options ask for them."""
    if training.loss == "original":
        options = dict(arm.original)
        factor = options.pop("temperature_factor", arm.temperature_factor)
        options = arm.loss_options | options
        arm = replace(arm, loss_options=options, temperature_factor=factor)
    if training.attack == "original" and arm.adversary:
        arm = replace(arm, adversary=replace(arm.adversary, **arm.original_attack))
    return arm


def make_state(
    run: Run, data: Data, records: EcgRecords, teacher: Encoder | None = None
) -> State:
    """Fresh weights, optimiser and random streams; weights and views depend on the seed, not the arm."""
    study, device = run.study, data.device
    arm = use_original(get_arm(run.arm), study.training)
    mean, std = data.signals.mean((0, 2)), data.signals.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(run.dataset, run.seed, "weights"))
        encoder = build_encoder(
            study.encoder.name, study.encoder.options, mean.cpu(), std.cpu(), arm.dual
        )
        model = nn.ModuleDict({"encoder": encoder})
        for name in _parts(arm):
            model[name] = PARTS[name](run, encoder, len(records.classes), arm.dual)
        if "clusters" in _wanted(arm):
            sizes = data.pseudo_labels.amax(0) + 1
            model["clusters"] = nn.ModuleList(
                zero_head(encoder.features, int(k)) for k in sizes
            )
        if arm.momentum:
            model["momentum"] = copy.deepcopy(nn.ModuleDict(model)).requires_grad_(
                False
            )
    model = model.to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(
        trained,
        lr=study.training.learning_rate,
        weight_decay=study.training.weight_decay,
        fused=True,
    )
    streams = {
        name: Generator(device).manual_seed(derived_seed(run.dataset, run.seed, name))
        for name in ("batches", "views", "crops", "attack", "shuffle")
    }
    precision = pick_precision(study.training.precision, device)
    return State(arm, run, model, optimizer, streams, device, precision, teacher)


def _wanted(arm: Arm) -> set[str]:
    return {part for loss in arm.losses for part in MODULES[loss.name]}


def _parts(arm: Arm) -> list[str]:
    """Parts of the arm's model in a fixed order, so that arms draw equal initial weights for equal parts."""
    wanted = _wanted(arm) - ({"projector"} if not arm.projector else set())
    if dict(arm.weighting).get("inferior-positives", {}).get("adaptive"):
        wanted.add("running-distance")
    return [name for name in PARTS if name in wanted]


def prepare_training(run: Run, records: EcgRecords, folder: Path) -> tuple[State, Data]:
    """A fresh state and the data of `run`, with the teacher's features where its arm needs another.

    Parameters
    ----------
    folder
        The run's folder; the needed arm's is its neighbour ``../../<arm>/seed<k>``.
    """
    arm, device = get_arm(run.arm), pick_device(run.study.device)
    shuffle = (
        np.random.default_rng(derived_seed(run.dataset, run.seed, "risk"))
        if arm.permuted_risk
        else None
    )
    data, teacher = Data.of(records, device, shuffle), None
    if arm.needs:
        teacher, _, _ = load_encoder(
            folder.parents[1] / arm.needs / folder.name, str(device)
        )
    if "clusters" in _wanted(arm):
        data.pseudo_labels = broadcast_first(
            cluster_features(
                teacher, data, derived_seed(run.dataset, run.seed, "clusters")
            )
        )
    return make_state(run, data, records, teacher), data


@torch.no_grad()
def cluster_features(teacher: Encoder, data: Data, seed: int) -> Tensor:
    """Cluster (records, sizes) of each training record in k-means of the teacher's features (AdvCL)."""
    from sklearn.cluster import MiniBatchKMeans

    features = (
        torch.cat([teacher(part.to(data.device)) for part in data.signals.split(512)])
        .cpu()
        .numpy()
    )
    sizes = [k for k in CLUSTERS if 10 * k <= len(features)] or [2]
    found = [
        MiniBatchKMeans(k, n_init=3, batch_size=4096, random_state=seed % 2**32)
        .fit(features)
        .labels_
        for k in sizes
    ]
    return torch.tensor(np.stack(found, 1), device=data.device).long()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards the mode from before, so that blocks nest."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def arm_loss(state: State, data: Data, index: Tensor) -> tuple[Tensor, Log]:
    """The arm's loss on the chosen training records: its summands with their weights, and their logs."""
    views = tuple(
        dict.fromkeys(view for loss in state.arm.losses for view in loss.names)
    )
    batch = embed_batch(state, data, index, views, state.arm.adversary)
    total, log = torch.zeros((), device=state.device), {}
    for loss in state.arm.losses:
        value, details = LOSSES[loss.name](state, batch, loss)
        total = total + _weight(loss, state.progress) * value
        log = details | log  # the first contrastive loss speaks for the arm
        if len(state.arm.losses) > 1:
            log[f"{loss.name} {loss.views}"] = value.detach()
    return total, log


def _weight(loss: Loss, progress: float) -> float:
    return (
        loss.weight
        if loss.last is None
        else loss.weight + progress * (loss.last - loss.weight)
    )


def embed_batch(
    state: State,
    data: Data,
    index: Tensor,
    views: tuple[str, ...],
    adversary: Adversary | None,
) -> Batch:
    """The chosen records with their views, features and unit vectors, attacked by `adversary`."""
    batch = _clean_batch(
        state,
        data,
        index,
        {
            v.rstrip("*")
            for v in (*views, *(adversary.views.split() if adversary else ()))
        },
    )
    if adversary:
        batch.signals |= attack_views(state, batch, adversary)
    for adversarial in (False, True):
        _embed(
            state,
            batch,
            [v for v in views if v.endswith("*") == adversarial],
            adversarial,
        )
    _describe(state, batch)
    return batch


def _clean_batch(state: State, data: Data, index: Tensor, views: set[str]) -> Batch:
    """Those of `views` that are not attacked, of the chosen records.

    The numbers of both random ones are always drawn, so that arms see the same.
    """
    signals = data.take(own_rows(index, len(index)))
    options, streams = state.run.study.views, state.streams
    strength = 1 - state.progress if state.arm.fading_views else 1.0
    found = {}
    for name in ("1", "2"):
        chance = ViewNoise.of(signals, data.fs, options, streams["views"])
        if name in views:
            found[name] = render_view(signals, data.fs, options, chance, strength)
    if views & {"0", "h"}:
        found["0"] = draw_view(
            signals, data.fs, options, streams["crops"], strength=0.0
        )
    if "h" in views:
        found["h"] = high_pass(found["0"], data.fs)
    pseudo = None if data.pseudo_labels is None else data.pseudo_labels[index]
    batch = Batch(
        index,
        data.rows[index],
        data.labels[index],
        data.multilabel,
        found,
        pseudo_labels=pseudo,
    )
    if state.teacher is not None:
        with torch.no_grad():
            seen = {name: state.teacher(found[name]) for name in views & {"0"}}
            batch.teacher = {
                name: all_rows(features, len(index)) for name, features in seen.items()
            }
    return batch


def _embed(state: State, batch: Batch, views: list[str], adversarial: bool) -> None:
    """Features and unit vectors of `views` in one pass; the second view's by the momentum encoder, if any."""
    followed = [v for v in views if v[0] == "2" and "momentum" in state.model]
    for names, model in (
        ([v for v in views if v not in followed], state.model),
        (followed, state.model),
    ):
        if not names:
            continue
        own = replace(state, model=model["momentum"]) if names is followed else state
        features = own.features(
            stack_views([batch.signals[v] for v in names]), adversarial
        ).float()
        embedded = own.project(features, adversarial)
        batch.features |= dict(zip(names, features.chunk(len(names)), strict=True))
        batch.embedded |= dict(zip(names, embedded.chunk(len(names)), strict=True))


def attack_views(state: State, batch: Batch, adversary: Adversary) -> dict[str, Tensor]:
    """Starred views of `adversary`: K steps from a uniform start that raise its loss, in evaluation mode."""
    names = adversary.views.split()
    starred, held = (
        [v for v in names if v.endswith("*")],
        [v for v in names if not v.endswith("*")],
    )
    clean = stack_views([batch.signals[v[:-1]] for v in starred])
    epsilon_mv, wide = state.run.headline_epsilon_mv, float(adversary.random_start)
    steps = adversary.steps or state.options.attack_steps
    step = adversary.step or state.options.attack_step
    noise, ball = (
        Ball(wide * epsilon_mv),
        Ball(epsilon_mv * (wide + steps * step if wide > 1 else 1)),
    )
    noise_of_all = (
        noise.draw(like_all_rows(clean), state.streams["attack"]) if wide else None
    )
    start = (
        torch.zeros_like(clean)
        if noise_of_all is None
        else own_rows(noise_of_all, len(batch.index))
    )
    if adversary.loss == "noise":
        return dict(zip(starred, (clean + start).chunk(len(starred)), strict=True))

    def value(signals: Tensor) -> Tensor:
        return ADVERSARIES[adversary.loss](
            state, at, dict(zip(starred, signals.chunk(len(starred)), strict=True))
        )

    # Weights are turned into bfloat16 once for all steps: that is kept until the outermost autocast ends.
    together = torch.autocast(state.device.type, enabled=False)
    with (
        together,
        nullcontext() if adversary.train_mode else evaluation_mode(state.model),
    ):
        at = replace(batch, features={}, embedded={}, adversary=adversary)
        with torch.no_grad():
            _embed(state, at, held, adversarial=False)
        attacked = clean + ascend(
            value, clean, start, ball, steps=steps, step_mv=step * epsilon_mv
        )
    return dict(zip(starred, attacked.chunk(len(starred)), strict=True))


@torch.no_grad()
def _describe(state: State, batch: Batch) -> None:
    """What weighting schemes of this arm want to know of each view."""
    schemes, device = dict(state.arm.weighting), state.device
    adaptive = "running-distance" in state.model
    alpha = (
        _alpha(state, batch, schemes["inferior-positives"]["alpha"])
        if adaptive
        else None
    )
    batch.known = {name: {} for name in batch.features}
    for name, known in batch.known.items():
        if "leaked-local" in schemes:
            logits = state.model["head"](batch.features[name])
            known["predictions"] = predicted_labels(logits, batch.multilabel)
        if "shuffled" in schemes:
            stream = state.streams["shuffle"]
            known["noise"] = torch.rand(
                len(batch.index), generator=stream, device=device, dtype=torch.float64
            )
        if alpha is not None:
            known["alpha"] = alpha


def _alpha(
    state: State,
    batch: Batch,
    alpha: float,
    smallest: float = 0.4,
    until: float = 0.075,
) -> Tensor:
    """A-InfoNCE's adaptive α (records,): fixed in the first `until` of training, which averages distances."""
    starred = next(view for view in batch.features if view.endswith("*"))
    with evaluation_mode(state.model):
        clean, attacked = (
            state.features(batch.signals[v], False).float()
            for v in (starred[:-1], starred)
        )
    distance, running = (
        (clean - attacked).norm(dim=1).mean(),
        state.model["running-distance"],
    )
    if state.progress < until:
        running.add(distance)
        return torch.full_like(batch.index, alpha, dtype=torch.float32)
    return adaptive_alpha(distance, running.mean, smallest, alpha).expand(
        len(batch.index)
    )


@torch.no_grad()
def follow(state: State) -> None:
    """Move the momentum encoder towards the encoder, after a step."""
    if "momentum" in state.model:
        online = dict(state.model.named_parameters())
        for name, parameter in state.model["momentum"].named_parameters():
            parameter.lerp_(online[name], 1 - state.arm.momentum)
