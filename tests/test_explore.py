"""What the exploration notebook shows of one ECG: attacked within ε, weighed as the loss weighs, redrawn."""

import numpy as np
import pytest
import torch

from ecgstudy.errors import StudyError
from ecgstudy.plots import explore as ex
from ecgstudy.robustness import evaluate
from ecgstudy.running import workflow
from ecgstudy.study import ROOT, Paths, Run, load_study
from ecgstudy.training import pretrain


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    study = load_study(ROOT / "params/tiny.yaml")
    budget = {"attacks": [], "corruptions": [], "epsilons_mv": [0.01, 0.02], "steps": 3, "check_steps": 2}
    budget |= {"check_restarts": 1, "label_steps": 2, "queries": 2}
    study = study.model_copy(update={"evaluation": study.evaluation.model_copy(update=budget)})
    paths, run = (
        Paths(study.study, tmp_path_factory.mktemp("outputs")),
        Run(study, "builtin", "rocl-ip-hn", 0),
    )
    records, folder = (
        workflow.prepared_records(study, "builtin", paths),
        paths.run("builtin", "rocl-ip-hn", 0),
    )
    pretrain(run, records, folder)
    evaluate(run, records, folder / "slf", "slf")
    return ex.Explorer.of(run, paths)


def test_the_ecg_is_attacked_within_the_budget_and_scored_before_and_after(explorer):
    record = explorer.test.table["record"].iloc[3]
    ecg = explorer.attacked(record, "apgd-margin", 0.02)
    np.testing.assert_array_equal(ecg.signal, explorer.test.signals[3])
    delta = ecg.deltas["apgd-margin"]
    assert 0.01 < np.abs(delta).max() <= 0.02 * (1 + 1e-6)
    for column, signal in (("before", ecg.signal), ("after", ecg.signal + delta)):
        scores = explorer.victim.scores(torch.tensor(signal)[None])[0]
        np.testing.assert_allclose(ecg.scores[column], scores, rtol=1e-4, atol=1e-5)
    assert ecg.scores["true"].tolist() == (explorer.test.multi_hot()[3] > 0).tolist()
    moved = (ecg.scores["after"] - ecg.scores["before"]) * np.where(ecg.scores["true"], -1, 1)
    assert moved.sum() > 0


def test_the_energy_of_a_perturbation_is_shared_out_completely(explorer):
    ecg = explorer.attacked(explorer.test.table["record"].iloc[0], "pgd-ce[II]", 0.02)
    energy = explorer.energy(ecg)
    assert energy.groupby("kind")["share"].sum().to_numpy() == pytest.approx(1)
    assert energy.set_index("name")["share"]["II"] == pytest.approx(1)


def test_schemes_weigh_the_negatives_of_the_record_with_a_mean_of_one(explorer):
    record = explorer.test.table["record"].iloc[0]
    frame = explorer.weights(record, ["uniform", "hard-negatives", "clinical-risk"], size=24)
    assert frame.groupby("scheme")["weight"].mean().to_numpy() == pytest.approx(1)
    by = dict(list(frame.groupby("scheme")))
    assert by["uniform"]["weight"].to_numpy() == pytest.approx(1)
    hard = by["hard-negatives"]
    expected = np.exp(hard["similarity"] / explorer.run.study.training.temperature)
    np.testing.assert_allclose(hard["weight"], expected / expected.mean(), rtol=1e-4)
    effective = ex.effective_negatives(frame).set_index("scheme")["effective negatives"]
    assert effective["uniform"] == pytest.approx(len(by["uniform"]))
    assert effective["hard-negatives"] == pytest.approx(expected.sum() ** 2 / (expected**2).sum(), rel=1e-4)
    patient = explorer.test.table["patient"].iloc[0]
    strangers = (explorer._batch(record, 24).table["patient"] != patient).sum()
    assert len(hard) == 3 * strangers


def test_controls_redraw_when_a_choice_changes(explorer, monkeypatch):
    drawn = []
    monkeypatch.setattr(ex, "display", drawn.append)
    ex.controls(explorer, ["apgd-margin", "fgsm"])
    first = len(drawn)
    panel = drawn[-1].children[0].children
    assert [box.description for box in panel] == ["record", "attack", "ε (mV)"]
    panel[1].value = "fgsm"
    assert len(drawn) == first + 3  # ECG, scores, energy


def test_an_unknown_record_is_named_with_some_that_there_are(explorer):
    with pytest.raises(StudyError, match=r"'nobody' is none of the \d+ attacked test records, such as"):
        explorer.attacked("nobody", "fgsm", 0.02)


def test_a_run_that_is_not_there_is_named_with_the_command_that_makes_it(explorer, tmp_path):
    with pytest.raises(StudyError, match=r"slf holds no evaluated model; run `make study STUDY=tiny`"):
        ex.Explorer.of(explorer.run, Paths("tiny", tmp_path))
