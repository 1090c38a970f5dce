"""The tables behind the notebooks' looks at one run, recomputed from its files."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from toy import toy_records, toy_run

from ecgstudy.evaluation.diagnostics import inspect_batch
from ecgstudy.evaluation.embedding import embedding_plane
from ecgstudy.evaluation.explore import most_fragile
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.evaluation.sample import select_attacked
from ecgstudy.models.checkpoints import load_classifier, load_encoder
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.running.launch import pretrain
from ecgstudy.study import AttackOptions, DatasetOptions, ViewOptions

STILL = ViewOptions(
    stretch=0,
    shift_s=0,
    amplitude=0,
    noise_mv=0,
    wander_mv=0,
    powerline_mv=0,
    timeout=0,
)
OPTIONS = AttackOptions(
    attacks=["square"],
    epsilons_mv=[0.05],
    steps=4,
    label_steps=1,
    check_steps=5,
    check_restarts=1,
    queries=20,
)


def trained(arm, folder, views=STILL, attacks=OPTIONS):
    run, records = (
        toy_run(arm, epochs=3, learning_rate=0.005),
        toy_records(train=32, multilabel=True),
    )
    study = run.study.model_copy(update={"views": views, "evaluation": attacks})
    run = dataclasses.replace(run, study=study)
    pretrain(run, records, folder)
    return run, records


def test_a_batch_is_seen_with_the_stored_weights_in_evaluation_mode(tmp_path):
    """Without augmentation and at ε ≈ 0 every view is the record, so the stored encoder
    gives each cosine."""
    run, records = trained("supervised", tmp_path)
    tiny = {"toy": DatasetOptions(headline_epsilon_mv=1e-9)}
    run = dataclasses.replace(
        run, study=run.study.model_copy(update={"datasets": tiny})
    )
    found = inspect_batch(run, records, tmp_path)
    encoder, _, _ = load_encoder(tmp_path)
    train = records.split("train")
    z = torch.nn.functional.normalize(encoder(torch.tensor(train.signals)), dim=1)
    patient = train.table["patient"].to_numpy()
    other = torch.triu(torch.tensor(patient[:, None] != patient[None, :]), 1)
    expected = (z @ z.T)[other].repeat(9).sort().values  # three views on either side
    negative = found["kind"].str.startswith("negative")
    np.testing.assert_allclose(
        found["similarity"][negative].sort_values(), expected, atol=1e-4
    )
    assert expected.std() > 0.01
    assert found["similarity"][~negative].to_numpy() == pytest.approx(1, abs=1e-5)
    assert (~negative).sum() == 32 * 3  # three pairs of views a record


def test_weights_of_a_batch_have_mean_one_and_grow_with_similarity(tmp_path):
    run, records = trained("rocl-hn", tmp_path, ViewOptions())
    found = inspect_batch(run, records, tmp_path)
    negative = found["kind"].str.startswith("negative")
    assert set(found["kind"]) == {
        "positive",
        "clean–adversarial",
        "negative: same class",
        "negative: other class",
    }
    assert found.loc[~negative, "weight"].isna().all()
    weights = found.loc[negative, ["similarity", "weight"]]
    assert weights["weight"].mean() == pytest.approx(
        1, abs=0.15
    )  # half of each row is shown
    assert weights.corr("spearman").iloc[0, 1] > 0.7
    assert found.groupby("kind")["same_class"].mean()[
        ["negative: same class", "negative: other class"]
    ].tolist() == [1, 0]
    assert (found["kind"] == "positive").sum() == 32
    assert (found["kind"] == "clean–adversarial").sum() == 64


def test_uniform_arms_weigh_every_negative_one(tmp_path):
    run, records = trained("simclr", tmp_path)
    weights = inspect_batch(run, records, tmp_path)["weight"].dropna().to_numpy()
    assert weights == pytest.approx(1, abs=1e-5)


KINDS = (
    "supervised",
    "clae",
    "claf",
    "ascl",
    "rocl-hn-shuffled",
    "acl",
    "advcl",
    "deacl",
    "swaro",
    "dynacl",
)


@pytest.mark.parametrize("arm", KINDS)
def test_every_kind_of_arm_can_be_looked_at(arm, tmp_path):
    """Whatever views its own loss and adversary take, the batch is two views and an
    attack on the first."""
    if needed := get_arm(arm).needs:
        trained(needed, tmp_path / needed / "seed0")
    run, records = trained(arm, tmp_path / arm / "seed0", ViewOptions())
    found = inspect_batch(run, records, tmp_path / arm / "seed0")
    assert found["similarity"].between(-1.001, 1.001).all()
    positive = found[~found["kind"].str.startswith("negative")]
    assert positive["kind"].value_counts().to_dict() == {
        "clean–adversarial": 64,
        "positive": 32,
    }
    assert positive["similarity"].mean() < 0.9999


def test_looking_at_a_batch_repeats_and_changes_no_file(tmp_path):
    run, records = trained("rocl", tmp_path, ViewOptions())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    pd.testing.assert_frame_equal(
        inspect_batch(run, records, tmp_path), inspect_batch(run, records, tmp_path)
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_embedding_plane_holds_the_principal_components_of_the_features(tmp_path):
    _, records = trained("random", tmp_path)
    found, test = (
        embedding_plane(records, tmp_path),
        select_attacked(records, "test", None),
    )
    features = load_encoder(tmp_path)[0](torch.tensor(test.signals)).double().numpy()
    standard = (features - features.mean(0)) / (features.std(0) + 1e-6)
    u, s, _ = np.linalg.svd(standard, full_matrices=False)
    for axis, column in enumerate("xy"):
        np.testing.assert_allclose(
            np.abs(found[column]), np.abs(u[:, axis] * s[axis]), rtol=1e-2, atol=1e-2
        )
    first = [
        next((c for c, y in zip(test.classes, row, strict=True) if y), "none")
        for row in test.multi_hot()
    ]
    assert found["class"].tolist() == first
    assert "none" in first
    assert found["patient"].tolist() == test.table["patient"].tolist()


@pytest.mark.parametrize("attacks", [["apgd-ce"], ["apgd-ce", "apgd-margin", "square"]])
def test_the_most_fragile_ecg_is_the_sound_one_that_loses_most(attacks, tmp_path):
    names = {"ensemble": attacks[:2], "attacks": attacks[2:]}
    options = OPTIONS.model_copy(update=names)
    run, records = trained("supervised", tmp_path, attacks=options)
    scores = evaluate(run, records, tmp_path / "slf", "slf")
    found = most_fragile(run, records, tmp_path / "slf", scores)
    frames = {
        a: scores.query("split == 'test' and view == 'shared' and attack == @a")
        for a in ("none", "ensemble")
    }
    columns = ["score_A", "score_B", "score_C"]
    before, after = (frames[a].set_index("record")[columns] for a in frames)
    losses = {}
    for record, y in zip(
        before.index, frames["none"][["y_A", "y_B", "y_C"]].to_numpy() > 0, strict=True
    ):
        sound = [
            (before[c] <= before.loc[record, c]).mean() >= 0.5
            for c in before.columns[y]
        ]
        if sound and all(sound):
            losses[record] = (before - after).loc[record][y].sum()
    assert found.record == max(losses, key=losses.get)
    row = records.table["record"].tolist().index(found.record)
    np.testing.assert_array_equal(found.signal, records.signals[row])
    assert list(found.deltas) == [*attacks, "ensemble"]
    assert all(
        0 < np.abs(delta).max() <= np.float32(0.05) for delta in found.deltas.values()
    )
    after = found.signal + found.deltas["ensemble"]
    model, _ = load_classifier(tmp_path / "slf")
    with torch.no_grad():
        logits = model(torch.tensor(np.stack([found.signal, after]))).numpy()
    np.testing.assert_allclose(
        found.scores[["before", "after"]].to_numpy(), logits.T, rtol=1e-4, atol=1e-5
    )
    assert found.scores["true"].tolist() == (records.labels[row] > 0).tolist()
    lost = found.scores[found.scores["true"]]
    assert (lost["before"] - lost["after"]).sum() > 0
    # A positive that was misread before the attack is not fragile, however much it
    # loses.
    misread = frames["none"].loc[frames["none"]["y_A"] > 0, "record"].iloc[0]
    doctored, row = scores.copy(), scores["record"] == misread
    doctored.loc[row, "score_A"] = np.where(
        doctored.loc[row, "attack"] == "none", -1e3, -1e6
    )
    assert most_fragile(run, records, tmp_path / "slf", doctored).record != misread
