"""One ECG attacked within ε, and weighed as the loss weighs."""

import numpy as np
import pytest
import torch
from explored import evaluated_run

from ecgstudy.attacks.api import Victim
from ecgstudy.errors import StudyError
from ecgstudy.evaluation import diagnostics, explore
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.registry import WEIGHTINGS


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return evaluated_run(tmp_path_factory.mktemp("outputs"))


def attacked(done, row, attack="apgd-margin"):
    record = done.test.table["record"].iloc[row]
    return explore.attack_record(
        done.run, done.records, done.folder, record, [attack], 0.02
    )


def test_the_ecg_is_attacked_within_the_budget_and_scored_before_and_after(done):
    ecg = attacked(done, 3)
    np.testing.assert_array_equal(ecg.signal, done.test.signals[3])
    delta = ecg.deltas["apgd-margin"]
    assert 0.01 < np.abs(delta).max() <= 0.02 * (1 + 1e-6)
    model, form = load_classifier(done.folder)
    victim = Victim(model, form["multilabel"])
    for column, signal in (("before", ecg.signal), ("after", ecg.signal + delta)):
        scores = victim.scores(torch.tensor(signal)[None])[0]
        np.testing.assert_allclose(ecg.scores[column], scores, rtol=1e-4, atol=1e-5)
    truth = done.test.multi_hot()[3] > 0
    assert ecg.scores["true"].tolist() == truth.tolist()
    moved = (ecg.scores["after"] - ecg.scores["before"]) * np.where(truth, -1, 1)
    assert moved.sum() > 0


def test_the_energy_of_a_perturbation_is_shared_out_completely(done):
    ecg = attacked(done, 0, "pgd-ce[II]")
    energy = explore.perturbation_energy(ecg, done.records)
    assert energy.groupby("kind")["share"].sum().to_numpy() == pytest.approx(1)
    assert energy.set_index("name")["share"]["II"] == pytest.approx(1)


def of(frame, scheme, role, anchor="clean view"):
    return frame[
        (frame["scheme"] == scheme)
        & (frame["role"] == role)
        & (frame["anchor"] == anchor)
    ]


@pytest.fixture(scope="module")
def weighed(done):
    record = done.test.table["record"].iloc[0]
    return diagnostics.weigh_record(
        done.run, done.records, done.folder, record, size=24
    )


def test_every_scheme_pulls_and_pushes_both_views_of_the_record(weighed):
    alone = [name for name in WEIGHTINGS if name != "shuffled"]
    assert list(weighed["scheme"].unique()) == [
        "uniform",
        *alone,
        "rocl-ip-hn (this run)",
    ]
    pushes = weighed[weighed["role"] == "push"]
    means = pushes.groupby(["scheme", "anchor"])["weight"].mean()
    assert len(means) == 2 * (len(alone) + 2)
    assert means.to_numpy() == pytest.approx(1)
    assert of(weighed, "uniform", "push")["weight"].to_numpy() == pytest.approx(1)


def test_hard_negatives_push_by_the_exponential_of_similarity(weighed, done):
    hard = of(weighed, "hard-negatives", "push")
    expected = np.exp(hard["similarity"] / done.run.study.training.temperature)
    np.testing.assert_allclose(hard["weight"], expected / expected.mean(), rtol=1e-4)
    table = diagnostics.summarise_weights(done.run, weighed).set_index("scheme")
    assert table["effective"]["uniform"] == pytest.approx(len(hard))
    assert table["negatives"]["uniform"] == len(hard)
    effective = expected.sum() ** 2 / (expected**2).sum()
    assert table["effective"]["hard-negatives"] == pytest.approx(effective, rel=1e-4)


def test_other_patients_push_and_nobody_else(weighed, done):
    record = done.test.table["record"].iloc[0]
    batch = diagnostics._draw_batch(done.run, done.records, record, 24)
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


def test_an_unknown_record_is_named_with_some_that_there_are(done):
    with pytest.raises(
        StudyError, match=r"'nobody' is none of the \d+ records, such as"
    ):
        explore.attack_record(
            done.run, done.records, done.folder, "nobody", ["fgsm"], 0.02
        )


def test_a_run_that_is_not_evaluated_is_named(done, tmp_path):
    record = done.test.table["record"].iloc[0]
    with pytest.raises(StudyError, match=r"slf/head\.safetensors: no such file"):
        explore.attack_record(
            done.run, done.records, tmp_path / "slf", record, ["fgsm"], 0.02
        )
