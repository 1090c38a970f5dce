"""What pretraining works on: the training records, one batch of them, and all that changes."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW

from ecgstudy.datasets.clinical_risk import clinical_risk
from ecgstudy.devices import resident
from ecgstudy.models.encoders import Encoder
from ecgstudy.params import TrainingOptions
from ecgstudy.pretraining.arms import Adversary, Arm
from ecgstudy.pretraining.contrast import Rows, Weighting
from ecgstudy.pretraining.distributed import all_rows
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run

Log = dict[str, Tensor]


@dataclass
class Batch:
    """One batch of training records.

    Attributes
    ----------
    rows, labels
        What is known of the records: (records,) and multi-hot (records, classes).
    signals
        View → (records, leads, samples) in mV; of several processes, each has its own records' alone.
    features, embedded
        View → (records, features) of the encoder, and unit vectors (records, dimensions).
    teacher
        View → features of the teacher, where the arm has one.
    known
        View → metadata of that view alone, for weighting schemes.
    adversary, attack_weighting
        The inner attack that is going on, and its weights, the same at every step.
    """

    index: Tensor
    rows: Rows
    labels: Tensor
    multilabel: bool
    signals: dict[str, Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)
    embedded: dict[str, Tensor] = field(default_factory=dict)
    teacher: dict[str, Tensor] = field(default_factory=dict)
    known: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    pseudo_labels: Tensor | None = None
    adversary: Adversary | None = None
    attack_weighting: Weighting | None = None

    def stacked(self, views: tuple[str, ...]) -> tuple[Tensor, Rows]:
        """Embeddings of `views`, one below the other, and their rows."""
        return torch.cat([self.embedded[v] for v in views]), self.rows_of(views)

    def rows_of(self, views: tuple[str, ...]) -> Rows:
        """Rows of `views`, one below the other; starred ones are marked as adversarial."""
        return Rows.of_views([self._rows(view) for view in views])

    def _rows(self, view: str) -> Rows:
        marked = torch.full_like(self.rows.adversarial, view.endswith("*"))
        return replace(
            self.rows,
            adversarial=marked,
            metadata=self.rows.metadata | self.known.get(view, {}),
        )


@dataclass
class Data:
    """The training records; every tensor is (records, …), on the device but for signals that are too many."""

    signals: Tensor
    labels: Tensor
    rows: Rows
    fs: float
    multilabel: bool
    pseudo_labels: Tensor | None = None

    @staticmethod
    def of(
        records: EcgRecords,
        device: torch.device,
        shuffle: np.random.Generator | None = None,
    ) -> "Data":
        """The training split for `device`; `shuffle` permutes clinical risk over patients."""
        train = records.split("train")
        patients = train.table["patient"].astype("category").cat.codes.to_numpy()
        known = np.stack(
            clinical_risk(train.table, train.table["split"].eq("train").to_numpy())
        )
        if (
            shuffle is not None
        ):  # each patient gets the values of the first record of another
            _, first = np.unique(patients, return_index=True)
            known = known[:, shuffle.permutation(first)[patients]]
        labels = torch.tensor(train.multi_hot(), device=device)
        risk, missing = torch.tensor(known, device=device)
        n = torch.arange(len(train), device=device)
        rows = Rows(
            n, torch.tensor(patients, device=device).long(), torch.zeros_like(n, dtype=torch.bool),
            {"risk": risk, "missing": missing, "labels": labels},
        )  # fmt: skip
        return Data(
            resident(train.signals, device), labels, rows, train.fs, train.multilabel
        )

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.labels.device

    def take(self, index: slice | Tensor) -> Tensor:
        """Signals of some records, on the device."""
        index = index.to(self.signals.device) if isinstance(index, Tensor) else index
        return self.signals[index].to(self.device)


class RunningMean(nn.Module):
    """Mean of the values so far, kept in checkpoints."""

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
        """The mean; 0 before the first value."""
        return self.total / self.count.clamp(min=1)


@dataclass
class State:
    """All that changes during pretraining, and what the arm's losses need to know."""

    arm: Arm
    run: Run
    model: nn.ModuleDict
    optimizer: AdamW
    streams: dict[str, Generator]
    device: torch.device
    precision: str
    teacher: Encoder | None = None
    progress: float = 0.0
    """Share of training that is done, in 20 steps: what schedules go by (DynACL)."""
    log: Log = field(default_factory=dict)

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
        if not self.arm.losses:
            return 0
        labels_only = {loss.name for loss in self.arm.losses} <= {"ce", "kl", "mart"}
        epochs = (labels_only and self.options.label_epochs) or self.options.epochs
        return max(1, round(epochs * self.arm.epochs))

    def features(self, signals: Tensor, adversarial: bool) -> Tensor:
        """Encoder output in the training precision; of all processes, where each gives its own records."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        ):
            return all_rows(
                self.model["encoder"](signals, adversarial), self.options.batch_size
            )

    def project(self, features: Tensor, adversarial: bool) -> Tensor:
        """Unit vectors, float32: of the projector, or of the features where there is none."""
        if "projector" not in self.model:
            return nn.functional.normalize(features.float(), dim=1)
        return self.model["projector"](features.float(), adversarial)

    def embed(self, signals: Tensor, adversarial: bool) -> Tensor:
        """Unit vectors of `signals`."""
        return self.project(self.features(signals, adversarial), adversarial)

    def logits(self, signals: Tensor) -> Tensor:
        """Logits (records, classes) of attacked `signals`."""
        return self.model["head"](self.features(signals, True).float())

    def prototype_scores(self, embedded: Tensor) -> Tensor:
        """Cosines (rows, prototypes)."""
        return (
            embedded @ nn.functional.normalize(self.model["prototypes"].weight, dim=1).T
        )
