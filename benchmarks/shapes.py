"""Simulated ECGs and untrained networks of exactly the studies' shapes."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ecgstudy.attacks.api import Victim
from ecgstudy.datasets.prepare import prepare
from ecgstudy.files import ROOT
from ecgstudy.models.encoders import build_encoder, fold_batch_norms
from ecgstudy.models.heads import Classifier
from ecgstudy.pretraining.setup import prepare_training
from ecgstudy.pretraining.state import Data, State
from ecgstudy.records import EcgRecords
from ecgstudy.study import DatasetOptions, Run, Study, load_study

STUDIES = ("mitdb", "ptbxl")
"""Their params say encoder, batch, views and attack steps."""


@dataclass(frozen=True)
class Case:
    """One study's shapes: its params with simulated records in place of its data."""

    name: str
    study: Study
    records: EcgRecords

    @property
    def dataset(self) -> str:
        """The data set that the study's params describe."""
        return next(iter(self.study.datasets))

    def training(
        self, arm: str, device: torch.device, **options: object
    ) -> tuple[State, Data]:
        """A fresh training state and the data, for an arm that needs no other.

        Parameters
        ----------
        arm
            Name of the arm.
        device
            Where it trains.
        options
            Training options that differ from the study's.
        """
        changed = {
            "training": self.study.training.model_copy(update=options),
            "device": str(device),
        }
        run = Run(self.study.model_copy(update=changed), self.dataset, arm, 0)
        return prepare_training(run, self.records, Path("unused"))

    def victim(self, device: torch.device) -> Victim:
        """The study's encoder with a random head, frozen and folded as if evaluated."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            leads, options = len(self.records.leads), self.study.encoder
            encoder = build_encoder(
                options.name,
                options.options,
                torch.zeros(leads),
                torch.tensor(0.3),
                False,
            )
            head = torch.nn.Linear(encoder.features, len(self.records.classes))
        _settle(encoder, self.signals(64, torch.device("cpu")))
        model = (
            Classifier(fold_batch_norms(encoder), head)
            .eval()
            .requires_grad_(False)
            .to(device)
        )
        return Victim(model, self.records.multilabel, model.encoder, self.records.fs)

    def signals(self, records: int, device: torch.device) -> Tensor:
        """So many ECGs (records, leads, samples) in mV."""
        return torch.tensor(
            np.resize(self.records.signals, (records, *self.records.signals.shape[1:]))
        ).to(device)

    def labels(self, records: int, device: torch.device) -> Tensor:
        """Their labels, multi-hot."""
        hot = self.records.multi_hot()
        return torch.tensor(np.resize(hot, (records, hot.shape[1]))).to(device)


def _settle(encoder: torch.nn.Module, signals: Tensor) -> None:
    """Statistics of the batch norms as after training: activations of usual size."""
    encoder.train()
    with torch.no_grad():
        for _ in range(20):
            encoder(signals)


def case(name: str, records: int = 640) -> Case:
    """The shapes of `params/<name>.yaml`, with `records` simulated ECGs."""
    study = load_study(ROOT / "params" / f"{name}.yaml")
    options = DatasetOptions(
        headline_epsilon_mv=0.02,
        options={"patients": records // 2, "records_per_patient": 2},
    )
    simulated = prepare("builtin", options, ROOT / "outputs" / "downloads")
    if name == "mitdb":  # one lead, 1.8 s at 360 Hz
        simulated = replace(
            simulated,
            signals=simulated.signals[:, :1, :648].copy(),
            leads=("MLII",),
            fs=360.0,
        )
    else:
        simulated = replace(simulated, signals=simulated.signals[:, :, 5:985].copy())
    return Case(name, study, simulated)
