"""Evaluation under attack: brute force on tiny problems, and files of tiny runs
recomputed from disk."""

import dataclasses
import itertools
import json
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Generator
from toy import toy_records, toy_run
from victims import as_records, attack_run

from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.named import get_attack
from ecgstudy.evaluation import runner as robustness
from ecgstudy.evaluation.attack_run import take_worst
from ecgstudy.evaluation.classifier import fit_victim
from ecgstudy.evaluation.runner import evaluate, validation_curve
from ecgstudy.evaluation.sample import (
    apply_in_batches,
    macro_auroc,
    pick_evenly,
    select_attacked,
)
from ecgstudy.models.checkpoints import load_classifier, load_encoder
from ecgstudy.running.launch import pretrain
from ecgstudy.study import AttackOptions

GRID = [0.02, 0.05, 0.2]
OPTIONS = AttackOptions(
    ensemble=["apgd-ce", "apgd-margin"],
    attacks=["noise", "fgsm", "square"],
    epsilons_mv=GRID,
    steps=3,
    label_steps=3,
    queries=20,
    query_records=6,
    check_steps=4,
    check_restarts=1,
    check_records=8,
    batch_size=7,
    max_records=13,
)
SHORT = OPTIONS.model_copy(
    update={"ensemble": ["fgsm"], "attacks": [], "epsilons_mv": [0.05]}
)
Evaluated = namedtuple("Evaluated", "run records folder scores summary")


def seeded(seed=0):
    return Generator().manual_seed(seed)


def records_with_sensitivity(multilabel=False):
    """The toy records; four test records move to the sensitivity split, two test
    records are not attacked."""
    records = toy_records(multilabel=multilabel)
    table = records.table.copy()
    table.loc[96:99, "split"] = "sensitivity"
    table.loc[110:, "attacked"] = False
    return dataclasses.replace(records, table=table, card={"adc_mv": 0.005})


def evaluated(arm, folder, multilabel=False, seed=0, options=OPTIONS):
    run = toy_run(arm, seed, epochs=4, learning_rate=0.005)
    run = dataclasses.replace(
        run, study=run.study.model_copy(update={"evaluation": options})
    )
    records = records_with_sensitivity(multilabel)
    pretrain(run, records, folder)
    scores = evaluate(run, records, folder / "slf", "slf")
    summary = json.loads((folder / "slf" / "evaluation.json").read_text())
    return Evaluated(run, records, folder / "slf", scores, summary)


@pytest.fixture(scope="module", params=["supervised", "rocl-hn"])
def done(request, tmp_path_factory):
    """A supervised single-label and a contrastive multi-label run, evaluated once."""
    return evaluated(
        request.param,
        tmp_path_factory.mktemp("run"),
        multilabel=request.param == "rocl-hn",
    )


def rows(done, attack, view="shared", epsilon_mv=0.05, split="test"):
    """Stored scores (records, classes) of one attack, in the order of the sample."""
    s = done.scores
    frame = s[
        (s.attack == attack)
        & (s.view == view)
        & (s.epsilon_mv == epsilon_mv)
        & (s.split == split)
    ]
    return frame[[f"score_{c}" for c in done.records.classes]].to_numpy()


def record_ids(done, split):
    return done.scores.loc[done.scores["split"] == split, "record"].unique().tolist()


def truth(done, split="test"):
    """Stored labels (records, classes), in the order of the sample."""
    clean = done.scores[
        (done.scores["attack"] == "none") & (done.scores["split"] == split)
    ]
    return clean[["y_A", "y_B", "y_C"]].to_numpy()


def auroc_of_pairs(y, score):
    """Share of positive-negative pairs in the right order, ties half; leading axes of
    `score` are kept."""
    difference = score[..., y > 0][..., :, None] - score[..., y <= 0][..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((-1, -2))


# ---- the sample ------------------------------------------------------------------


def test_the_attacked_sample_is_drawn_once_for_the_data_set():
    records = records_with_sensitivity()
    torch.manual_seed(1)
    one = select_attacked(records, "test", 5).table["record"].tolist()
    torch.manual_seed(2)
    np.random.default_rng(3).random()
    assert select_attacked(records, "test", 5).table["record"].tolist() == one
    assert one == [r for r in records.table["record"] if r in one]
    assert len(one) == 5
    other = dataclasses.replace(records, name="other")
    assert select_attacked(other, "test", 5).table["record"].tolist() != one


def test_only_records_marked_for_attack_are_in_the_sample():
    records = records_with_sensitivity()
    found = select_attacked(records, "test", None).table
    assert found["record"].tolist() == [f"r{i}" for i in range(100, 110)]
    assert (
        select_attacked(records, "test", 10).table["record"].tolist()
        == found["record"].tolist()
    )
    assert select_attacked(records, "sensitivity", None).table["record"].tolist() == [
        "r96",
        "r97",
        "r98",
        "r99",
    ]


# ---- per-label and shared worst cases against enumeration ------------------------


CORNERS = torch.tensor([[0.0, 0], [1, 1], [1, -1], [-1, 1], [-1, -1]])


def tiny_problem(seed, epsilon=0.3):
    """Six records of two samples, a linear model of two labels; scores under every
    corner of the ball."""
    weight = torch.randn(2, 2, generator=seeded(seed))
    signals = torch.randn(6, 1, 2, generator=seeded(seed + 100))
    labels = torch.tensor([[1.0, 0], [1, 1], [1, 0], [0, 1], [0, 0], [0, 1]])
    victim = Victim(lambda x: x.flatten(1) @ weight.T, True)
    corners = torch.stack(
        [victim.scores(signals + epsilon * c) for c in CORNERS]
    ).numpy()
    choices = np.array(
        list(itertools.product(range(5), repeat=6))
    )  # every joint choice of the six records
    joint = corners[choices, np.arange(6)]  # (5⁶, records, labels)
    aurocs = np.stack(
        [auroc_of_pairs(labels[:, c].numpy(), joint[..., c]) for c in range(2)], -1
    )
    return victim, signals, labels, aurocs


@pytest.mark.parametrize("seed", range(4))
def test_per_label_auroc_is_the_smallest_over_all_joint_perturbations(seed):
    victim, signals, labels, aurocs = tiny_problem(seed)
    records = as_records(signals, labels, ("I",))
    one = attack_run(victim, records, AttackOptions(label_steps=20))
    scores = one.attack_each_label(0.3, seeded())
    for c in range(2):
        assert (
            auroc_of_pairs(labels[:, c].numpy(), scores[:, c].numpy())
            == aurocs[:, c].min()
        )
    assert macro_auroc(labels, scores) == pytest.approx(aurocs.min(0).mean())


@pytest.mark.parametrize("seed", range(4))
def test_per_label_auroc_bounds_every_shared_attack_and_shared_pgd_is_near_its_best(
    seed,
):
    victim, signals, labels, aurocs = tiny_problem(seed)
    one = attack_run(victim, as_records(signals, labels, ("I",)), AttackOptions())
    scores = one.attack_each_label(0.3, seeded())
    delta = get_attack("pgd-margin")(victim, signals, labels, Budget(0.3), seeded())
    shared, best = (
        macro_auroc(labels, victim.scores(signals + delta)),
        aurocs.mean(1).min(),
    )
    clean = macro_auroc(labels, victim.scores(signals))
    assert macro_auroc(labels, scores) <= best + 1e-12 <= shared + 2e-12
    assert shared <= best + 0.25 * (clean - best)


def test_worst_scores_are_lowest_for_positives_and_highest_for_negatives():
    labels = torch.tensor([[1.0, 0], [0, 1]])
    candidates = [
        torch.tensor([[1.0, 2], [3, 4]]),
        torch.tensor([[0.0, 5], [7, 3]]),
        torch.tensor([[9.0, 1], [2, 8]]),
        torch.full((2, 2), torch.nan),
    ]
    assert take_worst(candidates, labels).tolist() == [[0, 5], [7, 3]]


def test_rows_of_the_few_records_of_a_black_box_attack_keep_the_order_of_the_sample(
    done,
):
    s = done.scores
    found, all_ids = (
        s.loc[(s["attack"] == "square") & (s["split"] == "test"), "record"].tolist(),
        record_ids(done, "test"),
    )
    assert found == [record for record in all_ids if record in found]


def test_few_records_are_even_over_classes_and_drawn_from_the_whole_sample():
    labels = torch.eye(3)[torch.arange(300) // 100]
    rows = pick_evenly(labels, 60)
    assert labels[rows].sum(0).tolist() == [20, 20, 20]
    for c in range(
        3
    ):  # the first twenty of each class would all lie in its first fifth
        places = rows[labels[rows][:, c] > 0] - 100 * c
        assert places.max() > 60
        assert places.min() < 40
    assert torch.equal(rows, pick_evenly(labels, 60))
    assert pick_evenly(labels, 1000).tolist() == list(range(300))


def test_transfer_is_made_on_the_source_arm_and_never_on_itself(tmp_path):
    """δ of the source's own APGD, shown to another model: recomputed from the files of
    both."""
    options = SHORT.model_copy(update={"attacks": ["transfer"]})
    done = {}
    for arm in ("supervised", "random"):
        done[arm] = evaluated(arm, tmp_path / "toy" / arm / "seed0", options=options)
    assert "transfer" not in set(done["supervised"].scores["attack"])
    test = select_attacked(done["random"].records, "test", 13)
    signals, labels = torch.tensor(test.signals), torch.tensor(test.multi_hot())
    models = {
        arm: Victim(load_classifier(found.folder)[0], False)
        for arm, found in done.items()
    }
    budget = Budget(0.05, steps=200)
    delta = get_attack("apgd-margin")(
        models["supervised"], signals, labels, budget, seeded()
    )
    y = torch.tensor(truth(done["random"]))
    with torch.no_grad():
        again = models["random"].scores(signals + delta)
    clean, found = (
        torch.tensor(rows(done["random"], a, epsilon_mv=e))
        for a, e in (("none", 0.0), ("transfer", 0.05))
    )
    assert macro_auroc(y, found) == pytest.approx(macro_auroc(y, again), abs=0.1)
    assert not torch.equal(found, clean)


def test_single_label_scores_attacked_per_label_are_near_the_best_of_a_grid():
    """One sample a record, three classes: the margin is curved, so compare with a fine
    grid."""
    weight = torch.tensor([[2.0], [-1.0], [0.5]])
    victim = Victim(
        lambda x: x.flatten(1) @ weight.T + torch.tensor([0.0, 0.3, 0.1]), False
    )
    signals = torch.linspace(-1, 1, 9)[:, None, None]
    labels = torch.eye(3)[torch.arange(9) % 3]
    records = as_records(signals, labels, ("I",), multilabel=False)
    one = attack_run(victim, records, AttackOptions(label_steps=40))
    found = one.attack_each_label(0.5, seeded())
    grid = [victim.scores(signals + d) for d in torch.linspace(-0.5, 0.5, 1001)]
    torch.testing.assert_close(found, take_worst(grid, labels), rtol=0, atol=2e-3)


def test_macro_auroc_leaves_out_classes_of_one_kind():
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 1, 0], [0, 1, 0]])
    scores = torch.randn(4, 3, generator=seeded())
    expected = [roc_auc_score(labels[:, c], scores[:, c]) for c in (0, 2)]
    assert macro_auroc(labels, scores) == pytest.approx(np.mean(expected))


# ---- evaluation of a run ---------------------------------------------------------


def test_an_evaluation_writes_three_files_and_returns_its_scores(done):
    assert {p.name for p in done.folder.iterdir()} == {
        "head.safetensors",
        "scores.parquet",
        "evaluation.json",
        "SHA256SUMS",
    }
    pd.testing.assert_frame_equal(
        pd.read_parquet(done.folder / "scores.parquet"), done.scores
    )
    columns = "record patient split age sex target protocol y_A y_B y_C"
    assert done.scores.columns.tolist() == [
        *columns.split(),
        "attack",
        "view",
        "epsilon_mv",
        "severity",
        "score_A",
        "score_B",
        "score_C",
    ]
    assert done.scores[["score_A", "score_B", "score_C"]].dtypes.eq(np.float32).all()


def test_every_attack_is_stored_once_at_its_epsilons(done):
    per_attack = done.scores.groupby(["split", "attack", "view", "epsilon_mv"])[
        "record"
    ].agg(["size", "nunique"])
    assert (per_attack["size"] == per_attack["nunique"]).all()
    sizes = {"test": 10, "sensitivity": 4}
    if done.run.arm == "supervised":
        sizes["validation"] = 13
    expected = {}
    for split, size in sizes.items():
        attacks = (
            ["pgd-margin"] if split == "validation" else ["apgd-ce", "apgd-margin"]
        )
        expected |= {(split, "none", "shared", 0.0): size}
        for attack in (*attacks, "ensemble"):
            expected |= {(split, attack, "shared", epsilon): size for epsilon in GRID}
    few = {
        ("sensitivity", attack, "shared", 0.05): 4
        for attack in ("noise", "fgsm", "square")
    }
    expected |= few  # attacked as test records are, which they are put beside
    expected |= {
        ("test", attack, "shared", 0.05): 10
        for attack in ("noise", "fgsm", "ensemble-adc")
    }
    expected |= {
        ("test", "square", "shared", 0.05): 6,
        ("test", "ensemble", "label", 0.05): 10,
    }
    assert per_attack["size"].to_dict() == expected


def test_an_attack_named_twice_is_run_once(tmp_path):
    options = SHORT.model_copy(update={"attacks": ["fgsm"]})
    found = evaluated("random", tmp_path, options=options).scores
    assert not found.duplicated(["record", "attack", "view", "epsilon_mv"]).any()


@pytest.mark.parametrize("epsilon", GRID)
def test_the_ensemble_is_made_of_its_members_and_never_above_one(done, epsilon):
    y, ensemble = torch.tensor(truth(done)), rows(done, "ensemble", epsilon_mv=epsilon)
    attacks = [
        "apgd-ce",
        "apgd-margin",
        *(["noise", "fgsm"] if epsilon == 0.05 else []),
    ]
    members = [rows(done, attack, epsilon_mv=epsilon) for attack in attacks]
    lowest = min(macro_auroc(y, torch.tensor(member)) for member in members)
    assert macro_auroc(y, torch.tensor(ensemble)) <= lowest + 1e-12
    if epsilon == 0.05:
        few, ids = rows(done, "square"), record_ids(done, "test")
        whole = np.full_like(ensemble, np.nan)
        s = done.scores
        whole[
            [
                ids.index(r)
                for r in s.loc[
                    (s["attack"] == "square") & (s["split"] == "test"), "record"
                ]
            ]
        ] = few
        members.append(whole)
    assert (np.stack(members) == ensemble).all(2).any(0).all()


def test_stored_scores_are_those_of_the_model_on_disk(done):
    model, form = load_classifier(done.folder)
    assert form["multilabel"] == done.records.multilabel
    test = select_attacked(done.records, "test", 13)
    signals, labels = torch.tensor(test.signals), torch.tensor(test.multi_hot())
    victim = Victim(model, form["multilabel"])
    np.testing.assert_allclose(
        victim.scores(signals).detach(),
        rows(done, "none", epsilon_mv=0.0),
        rtol=1e-4,
        atol=1e-5,
    )
    delta = get_attack("fgsm")(victim, signals, labels, Budget(0.05), seeded())
    np.testing.assert_allclose(
        victim.scores(signals + delta).detach(),
        rows(done, "fgsm"),
        rtol=1e-3,
        atol=1e-4,
    )
    assert np.abs(rows(done, "fgsm") - rows(done, "none", epsilon_mv=0.0)).max() > 0.01


def test_a_score_is_the_logit_or_the_log_odds(done):
    model, form = load_classifier(done.folder)
    with torch.no_grad():
        logits = model(torch.tensor(select_attacked(done.records, "test", 13).signals))
    p = logits.sigmoid() if form["multilabel"] else logits.softmax(1)
    found = torch.tensor(rows(done, "none", epsilon_mv=0.0))
    torch.testing.assert_close(found, (p / (1 - p)).log(), rtol=1e-3, atol=1e-4)


def test_the_head_is_stored_as_it_is_used(done):
    head = load_file(done.folder / "head.safetensors")
    assert head["weight"].dtype == torch.float16
    assert head["bias"].dtype == torch.float32
    victim, _ = fit_victim(done.run, done.records, done.folder.parent)
    assert torch.equal(victim.model.head.weight, head["weight"].float())
    assert not any(p.requires_grad for p in victim.model.parameters())
    assert not victim.model.training


def test_a_supervised_arm_keeps_the_head_it_was_trained_with(done):
    own = load_encoder(done.folder.parent)[1]
    head = load_file(done.folder / "head.safetensors")
    assert (own is None) == (done.run.arm != "supervised")
    if own is not None:
        assert torch.equal(own.weight, head["weight"].float())


def test_per_label_auroc_never_exceeds_any_shared_one(done):
    y = truth(done)
    label, attacks = (
        rows(done, "ensemble", "label"),
        ("noise", "fgsm", "apgd-ce", "apgd-margin", "ensemble"),
    )
    for attack in attacks:
        shared = rows(done, attack)
        assert (np.where(y > 0, shared - label, label - shared) >= 0).all()
    for c in range(3):
        lowest = min(roc_auc_score(y[:, c], rows(done, a)[:, c]) for a in attacks)
        assert roc_auc_score(y[:, c], label[:, c]) <= lowest


def test_sensitivity_records_stay_out_of_the_primary_sample(done):
    test = select_attacked(done.records, "test", 13).table["record"].tolist()
    assert not set(test) & {"r96", "r97", "r98", "r99"}
    assert record_ids(done, "test") == test
    assert record_ids(done, "sensitivity") == ["r96", "r97", "r98", "r99"]


def test_the_checks_look_at_test_records_alone(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        robustness,
        "check_masking",
        lambda one, *_: seen.append(one.records.table) or [],
    )
    evaluated("random", tmp_path, options=SHORT)
    assert [columns["split"].unique().tolist() for columns in seen] == [["test"]]


def test_the_first_check_is_the_largest_rise_of_the_stored_curve(done):
    y, stored = truth(done), [rows(done, "none", epsilon_mv=0.0)]
    stored += [rows(done, "ensemble", epsilon_mv=epsilon) for epsilon in GRID]
    curve = [macro_auroc(torch.tensor(y), torch.tensor(scores)) for scores in stored]
    assert done.summary["checks"][0]["value"] == pytest.approx(max(0, *np.diff(curve)))


def test_clean_auroc_covers_the_whole_test_split(done):
    test = done.records.split("test")
    assert len(test) == 12 > len(select_attacked(done.records, "test", None))
    model, form = load_classifier(done.folder)
    scores = (
        Victim(model, form["multilabel"]).scores(torch.tensor(test.signals)).detach()
    )
    each = {
        c: roc_auc_score(test.multi_hot()[:, i], scores[:, i])
        for i, c in enumerate(test.classes)
    }
    assert done.summary["clean_all"] == pytest.approx(
        {"macro": np.mean(list(each.values())), **each}
    )


def test_a_class_of_every_test_record_has_no_clean_auroc_but_stops_nothing(tmp_path):
    records = records_with_sensitivity(multilabel=True)
    labels = records.labels.copy()
    labels[96:, 1] = 1
    records, run = dataclasses.replace(records, labels=labels), toy_run("random")
    run = dataclasses.replace(
        run, study=run.study.model_copy(update={"evaluation": SHORT})
    )
    pretrain(run, records, tmp_path)
    evaluate(run, records, tmp_path / "slf", "slf")
    clean = json.loads((tmp_path / "slf" / "evaluation.json").read_text())["clean_all"]
    assert clean["B"] is None
    assert clean["macro"] == pytest.approx((clean["A"] + clean["C"]) / 2)


def test_the_summary_tells_cost_and_verdict(done):
    summary = done.summary
    assert summary["masking_ok"] == all(
        check["verdict"] != "fail" for check in summary["checks"]
    )
    assert [check["limit"] for check in summary["checks"]].count(None) == 1
    assert len(summary["checks"]) == 7
    history = [
        json.loads(line)
        for line in (done.folder.parent / "history.jsonl").read_text().splitlines()
    ]
    assert summary["training_seconds"] == pytest.approx(
        sum(epoch["seconds"] for epoch in history)
    )
    assert summary["step_ms"] == pytest.approx(
        1000 * np.median([epoch["seconds"] / epoch["steps"] for epoch in history])
    )
    assert summary["attack_steps_per_second"] > 0
    assert summary["peak_memory_mb"] > 50
    encoder = load_encoder(done.folder.parent)[0]
    assert summary["parameters"] == sum(p.numel() for p in encoder.parameters())


def test_an_evaluation_repeats_exactly_and_arms_and_seeds_share_the_sample(
    done, tmp_path
):
    again = evaluate(done.run, done.records, done.folder, "slf")
    pd.testing.assert_frame_equal(again, done.scores)
    other = evaluated("random", tmp_path, done.records.multilabel, seed=1)
    for split in ("test", "sensitivity"):
        assert record_ids(other, split) == record_ids(done, split)
    assert other.summary["training_seconds"] == 0
    assert other.summary["step_ms"] is None


def test_rounding_to_adc_units_is_scored_too(done):
    """5 µV steps under a 50 µV attack move scores a little, and only under the headline
    attack."""
    change = np.abs(rows(done, "ensemble-adc") - rows(done, "ensemble")).max()
    attack = np.abs(rows(done, "ensemble") - rows(done, "none", epsilon_mv=0.0)).max()
    assert 0 < change < 0.5 * attack


def test_the_validation_curve_follows_the_grid_on_validation_records(done):
    curve = validation_curve(done.run, done.records, done.folder.parent)
    assert list(curve) == GRID
    assert curve[0.2] < curve[0.02]
    if done.run.arm == "supervised":
        y = truth(done, "validation")
        stored = rows(done, "pgd-margin", epsilon_mv=0.2, split="validation")
        assert curve[0.2] == pytest.approx(
            macro_auroc(torch.tensor(y), torch.tensor(stored)), abs=0.1
        )


def test_in_batches_equals_all_at_once():
    signals = np.random.default_rng(0).normal(size=(1100, 2, 4)).astype(np.float32)
    found = apply_in_batches(lambda x: x.sum(2), signals, torch.device("cpu"))
    np.testing.assert_allclose(found, signals.sum(2), rtol=1e-6)
    assert not found.requires_grad
