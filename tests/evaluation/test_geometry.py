"""Measures of embeddings against double loops over records."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from toy import toy_records, toy_run

from ecgstudy.analysis.scores import Scores
from ecgstudy.analysis.tables import cost, perturbations
from ecgstudy.evaluation import embedding as gm
from ecgstudy.evaluation.embedding import compare_embeddings
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.models.checkpoints import load_encoder
from ecgstudy.running.launch import pretrain
from ecgstudy.study import AttackOptions


def some(n=40, seed=0, spread=0.3):
    """Clean and attacked features, multi-hot labels and patients of two records
    each."""
    stream = torch.Generator().manual_seed(seed)
    clean = torch.randn(n, 5, generator=stream)
    attacked = clean + spread * torch.randn(n, 5, generator=stream)
    labels = (torch.rand(n, 3, generator=stream) < 0.4).float()
    return clean, attacked, labels, np.array([f"p{i // 2}" for i in range(n)])


def unit(x):
    return (x / x.norm(dim=1, keepdim=True)).double().numpy()


def mean_distances(x, column):
    """(a, b) of the silhouette of every record of the class `column`."""
    for i in np.flatnonzero(column):
        same = [np.linalg.norm(x[i] - x[j]) for j in np.flatnonzero(column) if j != i]
        other = [np.linalg.norm(x[i] - x[j]) for j in np.flatnonzero(~column)]
        yield np.mean(same), np.mean(other)


@pytest.mark.parametrize("block", [7, 1024])
def test_every_measure_equals_a_double_loop(monkeypatch, block):
    monkeypatch.setattr(gm, "BLOCK", block)
    clean, attacked, labels, patients = some(spread=1.0)
    found, x, z = (
        compare_embeddings(clean, attacked, labels, patients),
        unit(clean),
        unit(attacked),
    )
    n = len(x)
    assert found["alignment"] == pytest.approx(
        np.mean([((a - b) ** 2).sum() for a, b in zip(x, z, strict=True)]), rel=1e-5
    )
    for name, f in (("", x), ("_attacked", z)):
        pairs = [
            np.exp(-2 * ((f[i] - f[j]) ** 2).sum())
            for i in range(n)
            for j in range(n)
            if i != j
        ]
        assert found["uniformity" + name] == pytest.approx(
            np.log(np.mean(pairs)), rel=1e-5
        )
        silhouettes = [
            np.mean([(b - a) / max(a, b) for a, b in mean_distances(f, column)])
            for column in labels.numpy().astype(bool).T
        ]
        assert found["class_separation" + name] == pytest.approx(
            np.mean(silhouettes), rel=1e-5
        )
    nearest = [
        int(np.argmin([((z[i] - x[j]) ** 2).sum() for j in range(n)])) for i in range(n)
    ]
    confused = np.mean([patients[i] != patients[j] for i, j in enumerate(nearest)])
    assert found["identity_confusion"] == pytest.approx(confused)
    assert 0.1 < confused < 1


def test_without_attack_nothing_moves_and_nobody_is_confused():
    clean, _, labels, patients = some()
    found = compare_embeddings(clean, clean, labels, patients)
    assert found["alignment"] == 0
    assert found["identity_confusion"] == 0
    assert found["uniformity"] == found["uniformity_attacked"]


def test_a_record_taken_for_another_of_its_own_patient_is_not_confused():
    clean, _, labels, patients = some()
    swapped = clean.reshape(-1, 2, 5).flip(1).reshape(-1, 5)
    assert (
        compare_embeddings(clean, swapped, labels, patients)["identity_confusion"] == 0
    )
    assert (
        compare_embeddings(clean, clean.roll(2, 0), labels, patients)[
            "identity_confusion"
        ]
        == 1
    )


def test_the_scale_of_features_does_not_matter():
    clean, attacked, labels, patients = some()
    assert compare_embeddings(
        5 * clean, 0.1 * attacked, labels, patients
    ) == pytest.approx(compare_embeddings(clean, attacked, labels, patients), rel=1e-5)


def test_two_classes_give_the_silhouette_of_scikit_learn():
    clean, _, labels, _ = some()
    labels = torch.stack([labels[:, 0], 1 - labels[:, 0]], 1)
    labels = labels[:20].repeat(2, 1)  # halves of equal composition
    x = torch.nn.functional.normalize(clean.double(), dim=1)
    each = gm.silhouette(x, labels)
    # The mean over classes weighs classes alike, scikit-learn's score records: equal
    # for equal classes.
    order = torch.cat([labels[:, 0].nonzero()[:8, 0], labels[:, 1].nonzero()[:8, 0]])
    equal = gm.silhouette(x[order], labels[order])
    assert equal == pytest.approx(
        silhouette_score(x[order].numpy(), labels[order, 0].numpy())
    )
    assert -1 <= each <= 1


def test_what_a_sample_does_not_define_is_left_out():
    clean, attacked, labels, patients = some(1)
    assert set(compare_embeddings(clean, attacked, labels, patients)) == {
        "alignment",
        "identity_confusion",
    }
    clean, attacked, labels, patients = some(6)
    assert "class_separation" not in compare_embeddings(
        clean, attacked, torch.ones(6, 2), patients
    )


def test_an_evaluation_keeps_the_geometry_and_the_profiles_of_its_headline_attacks(
    tmp_path,
):
    options = AttackOptions(
        attacks=["noise"],
        epsilons_mv=[0.02, 0.05],
        steps=2,
        label_steps=1,
        check_steps=2,
        check_restarts=1,
        queries=4,
        corruptions=[],
    )
    run, records = toy_run("random"), toy_records()
    run = dataclasses.replace(
        run, study=run.study.model_copy(update={"evaluation": options})
    )
    pretrain(run, records, tmp_path)
    evaluate(run, records, tmp_path / "slf", "slf")
    summary = json.loads((tmp_path / "slf" / "evaluation.json").read_text())
    test = records.split("test")
    with torch.no_grad():
        x = unit(load_encoder(tmp_path)[0](torch.tensor(test.signals)))
    pairs = [
        np.exp(-2 * ((a - b) ** 2).sum())
        for i, a in enumerate(x)
        for j, b in enumerate(x)
        if i != j
    ]
    assert summary["uniformity"] == pytest.approx(np.log(np.mean(pairs)), rel=1e-4)
    assert 0 < summary["alignment"] < 4
    assert 0 <= summary["identity_confusion"] <= 1
    assert {r["attack"] for r in summary["profiles"]} == {
        "apgd-ce",
        "apgd-margin",
        "noise",
        "ensemble",
    }
    stored = Scores([], {("toy", "random", 0, "slf"): summary})
    table = perturbations(stored)
    assert table.groupby(["attack", "kind"])["share"].sum().to_numpy() == pytest.approx(
        1
    )
    assert cost(stored)["identity_confusion"].tolist() == [
        summary["identity_confusion"]
    ]
    assert (table["masking_ok"] == summary["masking_ok"]).all()
