"""What pretraining works on: training records, a batch of them, and its state."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize
from torch.optim import AdamW

from ecgstudy.datasets.clinical_risk import clinical_risk
from ecgstudy.devices import resident
from ecgstudy.models.encoders import Encoder
from ecgstudy.params import TrainingOptions
from ecgstudy.pretraining.arm_type import Arm
from ecgstudy.pretraining.distributed import all_rows
from ecgstudy.pretraining.pairs import Rows
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run

Log = dict[str, Tensor]


@dataclass
class Data:
    """The training records, as tensors (records, …).

    Attributes
    ----------
    signals
        (records, leads, samples) in mV; on the device if they fit.
    labels
        Multi-hot (records, classes), on the device.
    rows
        Record, patient, clinical risk and labels of each.
    fs
        Sampling rate in Hz.
    multilabel
        Whether a record may have several labels.
    pseudo_labels
        Clusters (records, clusterings), for arms that need them.
    """

    signals: Tensor
    labels: Tensor
    rows: Rows
    fs: float
    multilabel: bool
    pseudo_labels: Tensor | None = None

    @staticmethod
    def of(records: EcgRecords, device: torch.device) -> "Data":
        """The training split of `records`, for `device`."""
        train = records.split("train")
        patient = train.table["patient"].astype("category").cat.codes.to_numpy()
        is_training = train.table["split"].eq("train").to_numpy()
        risk, missing = clinical_risk(train.table, is_training)
        labels = torch.tensor(train.multi_hot(), device=device)
        index = torch.arange(len(train), device=device)
        rows = Rows(
            record=index,
            patient=torch.tensor(patient, device=device).long(),
            adversarial=torch.zeros_like(index, dtype=torch.bool),
            metadata={
                "risk": torch.tensor(risk, device=device),
                "missing": torch.tensor(missing, device=device),
                "labels": labels,
            },
        )
        signals = resident(train.signals, device)
        return Data(signals, labels, rows, train.fs, train.multilabel)

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.labels.device

    def take(self, index: slice | Tensor) -> Tensor:
        """Signals of some records, on the device."""
        if isinstance(index, Tensor):
            index = index.to(self.signals.device)
        return self.signals[index].to(self.device)


class RunningMean(nn.Module):
    """Mean of the values so far, kept in checkpoints; 0 before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def add(self, value: Tensor) -> None:
        """Include `value` in the mean."""
        self.total += value
        self.count += 1

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.total / self.count.clamp(min=1)


@dataclass
class State:
    """All that changes during pretraining, and what the arm's losses need to know.

    Attributes
    ----------
    arm, run
        What is trained.
    model
        ``encoder``, and the parts that the arm's losses need.
    optimizer, streams
        The optimiser, and random generators by purpose.
    precision
        ``float32`` or ``bfloat16``: of the encoder.
    teacher
        The frozen encoder that the arm needs, if any.
    progress
        Share of the training that is done, in steps of 1/20: what schedules follow.
    """

    arm: Arm
    run: Run
    model: nn.ModuleDict
    optimizer: AdamW
    streams: dict[str, Generator]
    device: torch.device
    precision: str
    teacher: Encoder | None = None
    progress: float = 0.0

    @property
    def options(self) -> TrainingOptions:
        """The study's training options."""
        return self.run.study.training

    @property
    def temperature(self) -> float:
        """τ of this arm."""
        return self.options.temperature * self.arm.temperature_factor

    @property
    def epochs(self) -> int:
        """Epochs of this arm."""
        names = {loss.name for loss in self.arm.losses}
        if not names:
            return 0
        epochs = self.options.epochs
        if names <= {"ce", "kl", "mart"} and self.options.label_epochs:
            epochs = self.options.label_epochs
        return max(1, round(epochs * self.arm.epochs))

    def features(self, signals: Tensor, adversarial: bool) -> Tensor:
        """The encoder's output in the training precision, of all processes' records."""
        is_bfloat16 = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bfloat16):
            own = self.model["encoder"](signals, adversarial)
            return all_rows(own, self.options.batch_size)

    def project(self, features: Tensor, adversarial: bool) -> Tensor:
        """Unit vectors, float32: of the projector, or of the features without one."""
        if "projector" not in self.model:
            return normalize(features.float(), dim=1)
        return self.model["projector"](features.float(), adversarial)

    def embed(self, signals: Tensor, adversarial: bool) -> Tensor:
        """Unit vectors of `signals`."""
        return self.project(self.features(signals, adversarial), adversarial)

    def logits(self, signals: Tensor) -> Tensor:
        """Logits (records, classes) of attacked `signals`."""
        return self.model["head"](self.features(signals, True).float())

    def prototype_scores(self, embedded: Tensor) -> Tensor:
        """Cosines (rows, prototypes)."""
        return embedded @ normalize(self.model["prototypes"].weight, dim=1).T

    def batch(self, data: Data, index: Tensor) -> "Batch":
        """Some records of `data`, without signals."""
        clusters = data.pseudo_labels
        if clusters is not None:
            clusters = clusters[index]
        rows, labels = data.rows[index], data.labels[index]
        return Batch(self, rows, labels, data.multilabel, clusters)


@dataclass
class Batch:
    """One batch of training records; dictionaries are by the name of a view.

    Attributes
    ----------
    state
        The state of training, of which the model embeds the batch.
    rows, labels, multilabel, pseudo_labels
        As in `Data`, of the batch's records.
    signals
        (records, leads, samples) in mV; of several processes, each has its own
        records'.
    features, embedded
        The encoder's output (records, features), and unit vectors (records,
        dimensions).
    teacher
        Features of the teacher, where the arm has one.
    known
        Metadata of one view alone, for weighting schemes.
    log
        What is logged of the step.
    """

    state: State
    rows: Rows
    labels: Tensor
    multilabel: bool
    pseudo_labels: Tensor | None
    signals: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    embedded: dict[str, Tensor] = field(default_factory=dict)
    teacher: dict[str, Tensor] = field(default_factory=dict)
    known: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    log: Log = field(default_factory=dict)

    def stacked(self, views: tuple[str, ...]) -> tuple[Tensor, Rows]:
        """Embeddings of `views`, one below the other, and their rows."""
        return torch.cat([self.embedded[view] for view in views]), self.rows_of(views)

    def rows_of(self, views: tuple[str, ...]) -> Rows:
        """Rows of `views`, one below the other; starred ones are marked adversarial."""
        parts = []
        for view in views:
            starred = torch.full_like(self.rows.adversarial, view.endswith("*"))
            metadata = self.rows.metadata | self.known.get(view, {})
            parts.append(replace(self.rows, adversarial=starred, metadata=metadata))
        return Rows.of_views(parts)

    def logits(self, view: str) -> Tensor:
        """Logits (records, classes) of the features of `view`."""
        return self.state.model["head"](self.features[view])

    def embed(self, views: list[str], adversarial: bool) -> None:
        """Compute features and unit vectors of `views`, from their signals.

        In one pass: in training they share the statistics of batch norms, which are
        those of adversarial views if `adversarial`. The second view is the momentum
        encoder's, in arms that have one.
        """
        model = self.state.model
        second = [v for v in views if v[0] == "2" and "momentum" in model]
        self._embed(self.state, [v for v in views if v not in second], adversarial)
        if second:
            follower = replace(self.state, model=model["momentum"])
            self._embed(follower, second, adversarial)

    def _embed(self, state: State, views: list[str], adversarial: bool) -> None:
        if not views:
            return
        signals = stack_views([self.signals[view] for view in views])
        features = state.features(signals, adversarial).float()
        embedded = state.project(features, adversarial)
        self.features |= split_views(features, views)
        self.embedded |= split_views(embedded, views)


def stack_views(views: list[Tensor]) -> Tensor:
    """Tensors of all views, one below the other; without a copy of a single one."""
    return torch.cat(views) if len(views) > 1 else views[0]


def split_views(stacked: Tensor, views: list[str]) -> dict[str, Tensor]:
    """The inverse of `stack_views`, by the names of the views."""
    return dict(zip(views, stacked.chunk(len(views)), strict=True))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, and then the mode from before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
