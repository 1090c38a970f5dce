"""What the exploration notebook shows of one ECG: attacked within ε, weighed as the loss weighs, redrawn."""

import numpy as np
import pytest
import torch

from ecgstudy.errors import StudyError
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.plots import explore as ex
from ecgstudy.pretraining.loop import pretrain
from ecgstudy.pretraining.weighting import SCHEMES
from ecgstudy.running import workflow
from ecgstudy.study import ROOT, Paths, Run, load_study


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    study = load_study(ROOT / "params/tiny.yaml")
    budget = {
        "attacks": [],
        "corruptions": [],
        "epsilons_mv": [0.01, 0.02],
        "steps": 3,
        "check_steps": 2,
    }
    budget |= {"check_restarts": 1, "label_steps": 2, "queries": 2}
    study = study.model_copy(
        update={"evaluation": study.evaluation.model_copy(update=budget)}
    )
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
    moved = (ecg.scores["after"] - ecg.scores["before"]) * np.where(
        ecg.scores["true"], -1, 1
    )
    assert moved.sum() > 0


def test_the_energy_of_a_perturbation_is_shared_out_completely(explorer):
    ecg = explorer.attacked(explorer.test.table["record"].iloc[0], "pgd-ce[II]", 0.02)
    energy = explorer.energy(ecg)
    assert energy.groupby("kind")["share"].sum().to_numpy() == pytest.approx(1)
    assert energy.set_index("name")["share"]["II"] == pytest.approx(1)


def of(frame, scheme, role, anchor="clean view"):
    return frame[
        (frame["scheme"] == scheme)
        & (frame["role"] == role)
        & (frame["anchor"] == anchor)
    ]


@pytest.fixture(scope="module")
def weighed(explorer):
    return explorer.weights(explorer.test.table["record"].iloc[0], size=24)


def test_every_scheme_pulls_and_pushes_both_views_of_the_record(weighed):
    alone = [name for name in SCHEMES if name != "shuffled"]
    assert list(weighed["scheme"].unique()) == [
        "uniform",
        *alone,
        "rocl-ip-hn (this run)",
    ]
    means = (
        weighed[weighed["role"] == "push"]
        .groupby(["scheme", "anchor"])["weight"]
        .mean()
    )
    assert len(means) == 2 * (len(alone) + 2)
    assert means.to_numpy() == pytest.approx(1)
    assert of(weighed, "uniform", "push")["weight"].to_numpy() == pytest.approx(1)


def test_hard_negatives_push_by_the_exponential_of_similarity(weighed, explorer):
    hard = of(weighed, "hard-negatives", "push")
    expected = np.exp(hard["similarity"] / explorer.run.study.training.temperature)
    np.testing.assert_allclose(hard["weight"], expected / expected.mean(), rtol=1e-4)
    table = explorer.summary(weighed).data.set_index("scheme")
    assert (
        table["effective"]["uniform"]
        == pytest.approx(len(hard))
        == table["negatives"]["uniform"]
    )
    effective = expected.sum() ** 2 / (expected**2).sum()
    assert table["effective"]["hard-negatives"] == pytest.approx(effective, rel=1e-4)


def test_other_patients_push_and_nobody_else(weighed, explorer):
    batch = explorer._batch(explorer.test.table["record"].iloc[0], 24)
    strangers = (batch.table["patient"] != batch.table["patient"].iloc[0]).sum()
    assert len(of(weighed, "uniform", "push")) == 3 * strangers


@pytest.mark.parametrize("scheme", ["inferior-positives", "rocl-ip-hn (this run)"])
def test_inferior_positives_pull_the_attacked_view_to_clean_ones_more_than_the_reverse(
    scheme, weighed
):
    for anchor, expected in (
        ("clean view", {"its clean views": 0.5, "its attacked view": 0.5 * 2 * 0.2}),
        ("attacked view", {"its clean views": 2 * 0.5 * 2 * 0.8}),
    ):
        pulls = of(weighed, scheme, "pull", anchor).groupby("kind")["weight"].sum()
        assert pulls.to_dict() == pytest.approx(expected)


def test_labels_let_other_ecgs_pull(weighed):
    pulls = of(weighed, "labels", "pull")
    assert set(pulls["kind"]) == {"its clean views", "its attacked view", "other ECGs"}
    assert pulls["weight"].sum() == pytest.approx(1)


def test_every_figure_is_described_by_its_values(explorer, weighed):
    ecg = explorer.attacked(explorer.test.table["record"].iloc[0], "apgd-margin", 0.02)
    drawn = [
        explorer.draw(ecg, 0.02),
        explorer.draw_energy(ecg),
        explorer.draw_weights(weighed),
    ]
    shown = [figure._repr_mimebundle_()[1]["image/png"]["alt"] for figure in drawn]
    name, scores = next(ecg.scores.iterrows())
    assert "ε = 20 µV: 10.0 s, 12 leads" in shown[0]
    said = f"{scores['before']:+.2f} to {scores['after']:+.2f}".replace("-", "−")
    assert name + " (true)" * scores["true"] + f" {said}" in shown[0]
    assert "apgd-margin most in" in shown[1]
    assert (
        "inferior-positives: pull of its clean view 0.70, attacked view 1.60; push 1 to 1."
        in shown[2]
    )


def test_controls_redraw_what_a_choice_changes(explorer, monkeypatch):
    drawn = []
    monkeypatch.setattr(ex, "display", drawn.append)
    ex.controls(explorer, ["apgd-margin", "fgsm"])
    first = len(drawn)
    panel = drawn[-1].children[0].children
    assert [box.description for box in panel] == ["record", "attack", "ε (mV)"]
    panel[1].value = "fgsm"
    assert len(drawn) == first + 3  # ECG, scores, energy
    panel[0].value = panel[0].options[1]
    assert len(drawn) == first + 3 + 5  # and weights with their table


def test_an_unknown_record_is_named_with_some_that_there_are(explorer):
    with pytest.raises(
        StudyError, match=r"'nobody' is none of the \d+ attacked test records, such as"
    ):
        explorer.attacked("nobody", "fgsm", 0.02)


def test_a_run_that_is_not_there_is_named_with_the_command_that_makes_it(
    explorer, tmp_path
):
    with pytest.raises(
        StudyError, match=r"slf holds no evaluated model; run `make study STUDY=tiny`"
    ):
        ex.Explorer.of(explorer.run, Paths("tiny", tmp_path))
