"""Every arm learns: its linear probe beats that of an untrained encoder (half an hour)."""

import numpy as np
import pytest
import torch

from ecgstudy.analysis import statistics
from ecgstudy.datasets.prepare import prepare
from ecgstudy.evaluation.blackbox import fit_features
from ecgstudy.evaluation.classifier import fit_victim
from ecgstudy.evaluation.sample import apply_in_batches
from ecgstudy.models.feature_models import FeatureVictim
from ecgstudy.pretraining.loop import pretrain
from ecgstudy.pretraining.suffixes import arm_names, get_arm
from ecgstudy.study import ROOT, Run, load_study

CPU = torch.device("cpu")
EPOCHS = {"dynacl": 100}
"""Its momentum encoder has hardly moved after 40 epochs of 15 steps."""


@pytest.fixture(scope="module")
def study():
    """The quick study with 400 patients, 40 epochs and a long probe."""
    quick = load_study(ROOT / "params/quick.yaml")
    data = quick.datasets["builtin"]
    options = {"patients": 400, "records_per_patient": 4}
    return quick.model_copy(
        update={
            "datasets": {"builtin": data.model_copy(update={"options": options})},
            "training": quick.training.model_copy(update={"epochs": 40}),
            "probe": quick.probe.model_copy(update={"epochs": 300}),
        }
    )


@pytest.fixture(scope="module")
def records(study, tmp_path_factory):
    return prepare(
        "builtin", study.datasets["builtin"], tmp_path_factory.mktemp("data")
    )


@pytest.fixture(scope="module")
def auroc(study, records, tmp_path_factory):
    """Arm → clean macro AUROC of its linear probe or engineered features."""
    root = tmp_path_factory.mktemp("runs")

    def train(name):
        if needed := get_arm(name).needs:
            train(needed)
        training = study.training.model_copy(
            update={"epochs": EPOCHS.get(name, study.training.epochs)}
        )
        run = Run(study.model_copy(update={"training": training}), "builtin", name, 0)
        pretrain(run, records, root / name / "seed0")
        return run, root / name / "seed0"

    def measured(name):
        run, folder = train(name)
        if get_arm(name).features:
            model, _ = fit_features(run, folder)
            victim = FeatureVictim(model, records.fs, records.leads, records.centre)
        else:
            victim, _ = fit_victim(run, records, folder)
        scores = apply_in_batches(victim.scores, test.signals, CPU)
        return np.nanmean(statistics.auroc(test.multi_hot(), scores.numpy()))

    test = records.split("test")
    return measured


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in arm_names() if name != "random"])
def test_every_arm_beats_an_untrained_encoder(name, auroc, untrained):
    assert auroc(name) > untrained


@pytest.fixture(scope="module")
def untrained(auroc):
    return auroc("random")
