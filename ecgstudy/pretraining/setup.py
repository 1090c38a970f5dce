"""From a run to what training begins with: data, teacher, model, optimiser, streams."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW

from ecgstudy.devices import pick_device, pick_precision
from ecgstudy.models.checkpoints import load_encoder
from ecgstudy.models.encoders import Encoder, Projector, build_encoder
from ecgstudy.models.heads import zero_head
from ecgstudy.params import TrainingOptions
from ecgstudy.pretraining.arm_type import Arm
from ecgstudy.pretraining.distributed import broadcast_first
from ecgstudy.pretraining.losses import PARTS
from ecgstudy.pretraining.state import Data, RunningMean, State
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, derived_seed

CLUSTERS = (2, 10, 50, 100, 500)
"""k of AdvCL's k-means; those with under 10 records a cluster are left out."""
PROTOTYPES = 64
"""SwARo's clusters (a reconstruction: the paper's number was not available)."""
STREAMS = ("batches", "views", "crops", "attack", "shuffle")
"""Purposes that have a random generator of their own."""


def prepare_training(run: Run, records: EcgRecords, folder: Path) -> tuple[State, Data]:
    """A fresh state and the training data of `run`.

    Parameters
    ----------
    run
        What is trained.
    records
        The prepared records of its data set.
    folder
        The run's folder. That of an arm that it needs is ``../../<arm>/seed<k>``.
    """
    arm, device = get_arm(run.arm), pick_device(run.study.device)
    data = Data.of(records, device)
    if arm.permuted_risk:
        permute_risk(data, derived_seed(run.dataset, run.seed, "risk"))
    teacher = None
    if arm.needs:
        needed = folder.parents[1] / arm.needs / folder.name
        teacher, _, _ = load_encoder(needed, str(device))
    if "clusters" in _parts_of(arm):
        seed = derived_seed(run.dataset, run.seed, "clusters")
        data.pseudo_labels = broadcast_first(cluster_features(teacher, data, seed))
    return make_state(run, data, teacher), data


def permute_risk(data: Data, seed: int) -> None:
    """Give each patient the clinical risk of another: of the first of its records."""
    patients = data.rows.patient.cpu().numpy()
    _, first = np.unique(patients, return_index=True)
    donor = np.random.default_rng(seed).permutation(first)[patients]
    for name in ("risk", "missing"):
        values = data.rows.metadata[name]
        data.rows.metadata[name] = values[torch.tensor(donor, device=data.device)]


@torch.no_grad()
def cluster_features(teacher: Encoder, data: Data, seed: int) -> Tensor:
    """Clusters (records, sizes) of the teacher's features, by k-means (AdvCL).

    Parameters
    ----------
    teacher
        Frozen encoder.
    data
        The training records.
    seed
        Of k-means.
    """
    from sklearn.cluster import MiniBatchKMeans

    parts = [teacher(part.to(data.device)) for part in data.signals.split(512)]
    features = torch.cat(parts).cpu().numpy()
    clusters = []
    for k in [k for k in CLUSTERS if 10 * k <= len(features)] or [2]:
        means = MiniBatchKMeans(k, n_init=3, batch_size=4096, random_state=seed % 2**32)
        clusters.append(means.fit(features).labels_)
    return torch.tensor(np.stack(clusters, 1), device=data.device).long()


def make_state(run: Run, data: Data, teacher: Encoder | None = None) -> State:
    """Fresh weights, optimiser and random streams.

    Weights and streams depend on data set and seed, not on the arm.

    Parameters
    ----------
    run
        What is trained.
    data
        The training records: their mean and deviation standardise the signals.
    teacher
        Encoder of the arm that this one needs.
    """
    study, device = run.study, data.device
    arm = use_original(get_arm(run.arm), study.training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(run.dataset, run.seed, "weights"))
        model = _build_model(run, arm, data).to(device).train()
    optimizer = AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=study.training.learning_rate,
        weight_decay=study.training.weight_decay,
        fused=True,
    )
    streams = {}
    for name in STREAMS:
        seed = derived_seed(run.dataset, run.seed, name)
        streams[name] = Generator(device).manual_seed(seed)
    precision = pick_precision(study.training.precision, device)
    return State(arm, run, model, optimizer, streams, device, precision, teacher)


def _build_model(run: Run, arm: Arm, data: Data) -> nn.ModuleDict:
    """The encoder and the parts that the arm's losses need.

    They are made in one order, so that arms draw equal weights for equal parts.
    """
    options, parts = run.study.encoder, _parts_of(arm)
    mean, std = data.signals.mean((0, 2)).cpu(), data.signals.std().cpu()
    encoder = build_encoder(options.name, options.options, mean, std, arm.dual)
    features, model = encoder.features, nn.ModuleDict({"encoder": encoder})
    if "projector" in parts and arm.projector:
        model["projector"] = Projector(features, options.projection, arm.dual)
    if "head" in parts:
        model["head"] = zero_head(features, data.labels.shape[1])
    if "prototypes" in parts:
        model["prototypes"] = nn.Linear(options.projection, PROTOTYPES, bias=False)
    if dict(arm.weighting).get("inferior-positives", {}).get("adaptive"):
        model["running-distance"] = RunningMean()
    if "clusters" in parts:
        sizes = data.pseudo_labels.amax(0) + 1
        heads = [zero_head(features, int(size)) for size in sizes]
        model["clusters"] = nn.ModuleList(heads)
    if arm.momentum:
        model["momentum"] = copy.deepcopy(model).requires_grad_(False)
    return model


def _parts_of(arm: Arm) -> set[str]:
    return {part for loss in arm.losses for part in PARTS[loss.name]}


def use_original(arm: Arm, training: TrainingOptions) -> Arm:
    """`arm` with its source's own loss or attack, where the study asks for them."""
    if training.loss == "original":
        options = dict(arm.original)
        factor = options.pop("temperature_factor", arm.temperature_factor)
        options = arm.loss_options | options
        arm = replace(arm, loss_options=options, temperature_factor=factor)
    if training.attack == "original" and arm.adversary:
        arm = replace(arm, adversary=replace(arm.adversary, **arm.original_attack))
    return arm
