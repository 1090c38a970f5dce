"""Tables of a small synthetic study, against scikit-learn and values by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgstudy.analysis import tables as tb
from ecgstudy.analysis.columns import COLUMNS
from ecgstudy.analysis.scores import read_scores
from ecgstudy.analysis.statistics import holm
from ecgstudy.errors import StudyError
from ecgstudy.study import Paths, Study

CLASSES = ["N", "S", "F"]
ARMS = ["supervised", "simclr", "rocl", "rocl-ip", "rocl-hn"]
FACTORS = pd.DataFrame(
    {"adversary": [0, 1, 1, 1], "pull": [0, 0, 1, 0], "push": [0, 0, 0, 1]},
    index=ARMS[1:],
).astype(bool)


def make_study(
    datasets=("mitdb",), seeds=(0, 1, 2), protocols=("slf",), headline=0.02
) -> Study:
    return Study(
        study="small",
        title="Synthetic scores",
        datasets={name: {"headline_epsilon_mv": headline} for name in datasets},
        arms=ARMS,
        seeds=list(seeds),
        protocols=list(protocols),
        training={"epochs": 1},
        evaluation={"attacks": ["fgsm", "pgd-margin"], "epsilons_mv": [0.01, 0.02]},
        statistics={"resamples": 20},
    )


def sample(split: str, n: int, seed: int) -> pd.DataFrame:
    """Records of eight patients; all but one of the F records belong to patient 0."""
    rng = np.random.default_rng(seed)
    patient = np.arange(n) % 8
    label = np.where(rng.random(n) < 0.6, 0, 1)
    label[(patient == 0) & (np.arange(n) % 16 == 0)] = 2
    label[1] = 2
    truth = {f"y_{c}": (label == i).astype(np.int8) for i, c in enumerate(CLASSES)}
    table = pd.DataFrame(
        {
            "record": [f"{split}{i}" for i in range(n)],
            "patient": [f"p{k}" for k in patient],
        }
    )
    ages, sexes = 40.0 + 5 * patient, np.where(patient % 2, "female", "male")
    return table.assign(
        split=split, age=ages, sex=sexes, target="mitdb", protocol="slf", **truth
    )


def attacked(
    records: pd.DataFrame,
    attack: str,
    view: str,
    epsilon: float,
    strength: float,
    seed: int,
):
    rng = np.random.default_rng(
        [seed, *attack.encode(), len(view), int(1000 * epsilon)]
    )
    truth = records[[f"y_{c}" for c in CLASSES]].to_numpy(float)
    scores = (strength * truth + rng.normal(size=truth.shape)).astype(np.float32)
    named = {f"score_{c}": scores[:, i] for i, c in enumerate(CLASSES)}
    how = {"attack": attack, "view": view, "epsilon_mv": epsilon, "severity": np.nan}
    return records.assign(**how, **named)


def write_run(paths: Paths, dataset: str, arm: str, seed: int, n: int = 160) -> None:
    test, extra, validation = (
        sample("test", n, 0),
        sample("sensitivity", 24, 1),
        sample("validation", 40, 2),
    )
    gain, noise = 2 + 0.3 * ARMS.index(arm), 100 * seed + ARMS.index(arm)
    parts = [attacked(test, "none", "shared", 0.0, gain, noise)]
    for epsilon in (0.01, 0.02):
        left = gain - 60 * epsilon
        parts += [
            attacked(test, a, "shared", epsilon, left, noise)
            for a in ("fgsm", "ensemble")
        ]
        parts.append(attacked(test, "ensemble", "label", epsilon, left - 0.5, noise))
        parts.append(attacked(extra, "ensemble", "shared", epsilon, left, noise))
        if arm == "supervised":
            # 0.01 mV leaves the ranking intact, 0.02 mV turns it round
            parts.append(
                attacked(
                    validation,
                    "pgd-margin",
                    "shared",
                    epsilon,
                    5.0 - 300 * (epsilon > 0.01),
                    0,
                )
            )
    parts.append(attacked(test, "ensemble-adc", "shared", 0.02, gain - 1, noise))
    folder = paths.protocol(dataset, arm, seed, "slf")
    folder.mkdir(parents=True)
    pd.concat(parts, ignore_index=True).to_parquet(folder / "scores.parquet")
    check = {"check": "zero gradients", "value": 0.0, "limit": 0.01, "verdict": "pass"}
    content = {
        "checks": [check],
        "masking_ok": arm != "rocl-hn",
        "seconds": {"attacks": 2.0},
        "step_ms": 10.0 + seed,
        "parameters": 7,
        "clean_all": {"macro": 0.9},
        "something_new": {"nested": 1},
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    known = {} if arm == "supervised" else {"negatives": 30}
    epochs = [{"epoch": k, "loss": 4.0 - k, "seconds": 1.0} | known for k in (1, 2)]
    lines = "".join(json.dumps(epoch) + "\n" for epoch in epochs)
    (folder.parent / "history.jsonl").write_text(lines * (arm != "simclr"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    study = make_study()
    paths = Paths("small", tmp_path_factory.mktemp("outputs"))
    for run in study.runs():
        write_run(paths, run.dataset, run.arm, run.seed)
    return study, paths, tb.write_tables(study, paths)


def raw(paths, arm, seed, attack, view="shared", epsilon=0.02, split="test"):
    frame = pd.read_parquet(
        paths.protocol("mitdb", arm, seed, "slf") / "scores.parquet"
    )
    epsilon = 0.0 if attack == "none" else epsilon
    query = "attack == @attack and view == @view and split == @split"
    query += " and epsilon_mv == @epsilon"
    frame = frame.query(query)
    y, scores = (
        frame[[f"{kind}_{c}" for c in CLASSES]].to_numpy() for kind in ("y", "score")
    )
    return frame, y, scores


def pick(table, **wanted):
    rows = table
    for key, value in wanted.items():
        rows = rows[rows[key] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_robust_auroc_is_scikit_learns_macro_auroc_of_the_stored_scores(stored):
    _, paths, tables = stored
    where = {"arm": "rocl", "attack": "ensemble", "epsilon_mv": 0.02}
    row = pick(tables["robust_auroc"], seed=1, **where)
    _, y, shared = raw(paths, "rocl", 1, "ensemble")
    _, _, label = raw(paths, "rocl", 1, "ensemble", "label")
    assert row["auroc_shared"] == pytest.approx(
        roc_auc_score(y, shared, average="macro")
    )
    assert row["auroc_label"] == pytest.approx(roc_auc_score(y, label, average="macro"))
    assert (row["n_records"], row["n_patients"], row["masking_ok"]) == (160, 8, True)
    assert row["ci_low"] < row["auroc_shared"] < row["ci_high"]
    seeds = tables["robust_auroc"].query(
        "arm == 'rocl' and attack == 'ensemble' and epsilon_mv == 0.02"
    )
    alone = seeds.loc[seeds["seed"] != "all", "auroc_shared"]
    assert pick(seeds, seed="all")["auroc_shared"] == pytest.approx(alone.mean())


def test_clean_auroc_is_the_same_in_both_views(stored):
    clean = stored[2]["robust_auroc"].query("attack == 'none'")
    assert len(clean) == len(ARMS) * 4
    np.testing.assert_array_equal(clean["auroc_shared"], clean["auroc_label"])


def test_an_attack_without_label_view_has_no_label_auroc(stored):
    assert (
        stored[2]["robust_auroc"].query("attack == 'fgsm'")["auroc_label"].isna().all()
    )


def test_per_class_marks_the_label_that_hangs_on_one_patient(stored):
    _, paths, tables = stored
    rows = (
        tables["per_class"]
        .query("arm == 'simclr' and seed == 0 and attack == 'none'")
        .set_index("class")
    )
    _, y, scores = raw(paths, "simclr", 0, "none")
    for i, name in enumerate(CLASSES):
        assert rows.loc[name, "auroc"] == pytest.approx(
            roc_auc_score(y[:, i], scores[:, i])
        )
        assert rows.loc[name, "auprc"] == pytest.approx(
            average_precision_score(y[:, i], scores[:, i])
        )
        assert rows.loc[name, "positives"] == y[:, i].sum()
    assert rows["dominated"].to_dict() == {"N": False, "S": False, "F": True}
    assert rows.loc["F", "patients"] == 2
    assert rows.loc["F", "largest_share"] == pytest.approx(10 / 11)


def test_subgroups_are_those_of_age_and_sex_and_name_their_labels(stored):
    _, paths, tables = stored
    rows = (
        tables["subgroups"]
        .query("arm == 'rocl' and seed == 2 and attack == 'none'")
        .set_index("value")
    )
    assert list(rows.index) == ["<50", "50–69", "≥70", "female", "male"]
    frame, y, scores = raw(paths, "rocl", 2, "none")
    women = (frame["sex"] == "female").to_numpy()
    assert rows.loc["female", "auroc_shared"] == pytest.approx(
        roc_auc_score(y[women], scores[women])
    )
    assert rows.loc["female", "n_patients"] == 4
    assert rows.loc["≥70", "labels"] == "N, S"  # no F there
    elderly = (frame["age"] >= 70).to_numpy()
    expected = np.mean(
        [roc_auc_score(y[elderly, c], scores[elderly, c]) for c in (0, 1)]
    )
    assert rows.loc["≥70", "auroc_shared"] == pytest.approx(expected)


def test_contrasts_are_paired_differences_with_holm_over_the_primary_family(stored):
    _, paths, tables = stored
    row = pick(
        tables["contrasts"], adaptive="rocl-ip", attack="ensemble", epsilon_mv=0.02
    )
    each = [
        roc_auc_score(*raw(paths, "rocl-ip", seed, "ensemble")[1:])
        - roc_auc_score(*raw(paths, "rocl", seed, "ensemble")[1:])
        for seed in (0, 1, 2)
    ]
    assert row["delta"] == pytest.approx(np.mean(each))
    assert row["delta"] - row["ci_low"] == pytest.approx(row["ci_high"] - row["delta"])
    assert row["se"] > 0
    primary = tables["contrasts"].query("family == 'primary'")
    assert primary[["adaptive", "attack", "headline"]].values.tolist() == [
        ["rocl-ip", "ensemble", True],
        ["rocl-hn", "ensemble", True],
        ["rocl-ip", "none", False],
        ["rocl-hn", "none", False],
    ]
    assert set(primary["epsilon_mv"]) == {0.0, 0.02}
    assert set(primary["seed_list"]) == {"0 1 2"}
    np.testing.assert_allclose(primary["p_holm"], holm(primary["p"].to_numpy()))
    assert tables["contrasts"].query("family != 'primary'")["p_holm"].isna().all()
    assert not pick(primary, adaptive="rocl-hn", attack="none")["masking_ok"]


def test_verdicts_are_those_of_the_primary_family(stored):
    verdicts = stored[2]["verdicts"]
    assert len(verdicts) == 3 * 4
    planned = verdicts[verdicts["margin"] == 0.01]
    assert list(planned["measure"]) == ["robust", "robust", "clean", "clean"]
    primary = stored[2]["contrasts"].query("family == 'primary'")
    for name in ("delta", "p_holm", "joint_low", "satterthwaite_high"):
        np.testing.assert_array_equal(planned[name], primary[name])


def test_a_study_without_primary_family_is_all_exploratory(stored):
    study, paths, _ = stored
    scores = read_scores(paths, study.runs())
    table = tb.contrasts(scores, [], 0.95, primary=False)
    assert set(table["family"]) == {"exploratory"}
    assert table["p_holm"].isna().all()


def test_clean_differences_stand_beside_robust_ones(stored):
    contrasts = stored[2]["contrasts"]
    clean = pick(contrasts, adaptive="rocl-ip", attack="none")
    robust = pick(contrasts, adaptive="rocl-ip", attack="ensemble", epsilon_mv=0.01)
    assert (robust["clean_delta"], robust["clean_ci_low"]) == (
        clean["delta"],
        clean["ci_low"],
    )
    assert robust["equal_clean"] == (clean["ci_low"] > -0.01)


def test_holm_runs_over_all_data_sets(tmp_path):
    study, paths = make_study(("mitdb", "ptbxl")), Paths("small", tmp_path)
    for run in study.runs():
        write_run(
            paths,
            run.dataset,
            run.arm,
            run.seed,
            n=160 if run.dataset == "mitdb" else 176,
        )
    scores = read_scores(paths, study.runs(), study.protocols)
    primary = tb.contrasts(scores, [], 0.95).query("family == 'primary'")
    assert list(primary["dataset"]) == ["mitdb"] * 4 + ["ptbxl"] * 4
    np.testing.assert_allclose(primary["p_holm"], holm(primary["p"].to_numpy()))


def test_factor_effects_equal_least_squares_on_the_arms_mean_auroc(stored):
    tables = stored[2]
    effects = tables["factor_effects"].query(
        "attack == 'ensemble' and epsilon_mv == 0.02 and design == 'kinds'"
    )
    outcome = tables["robust_auroc"].query(
        "attack == 'ensemble' and epsilon_mv == 0.02 and seed == 'all'"
    )
    outcome = outcome.set_index("arm").loc[ARMS[1:], "auroc_shared"].to_numpy()
    design = np.column_stack([np.ones(4), FACTORS.to_numpy(float)])
    expected = np.linalg.lstsq(design, outcome, rcond=None)[0][1:]
    np.testing.assert_allclose(effects["delta"], expected)
    assert list(effects["effect"]) == ["adversary", "pull", "push"]
    assert (effects["arms"] == 4).all()


def test_sensitivity_table_recomputes_the_outcome_under_other_choices(stored):
    _, paths, tables = stored
    rows = (
        tables["sensitivity"]
        .query("arm == 'rocl' and attack == 'ensemble'")
        .set_index("variant")
    )
    per_seed = [raw(paths, "rocl", seed, "ensemble") for seed in (0, 1, 2)]
    without = np.mean(
        [roc_auc_score(y[:, :2], s[:, :2], average="macro") for _, y, s in per_seed]
    )
    assert rows.loc["without dominated labels", "auroc"] == pytest.approx(without)
    assert rows.loc["without dominated labels", "note"] == "without F"
    added = [
        raw(paths, "rocl", seed, "ensemble", split="sensitivity") for seed in (0, 1, 2)
    ]
    both = [
        roc_auc_score(np.r_[y, z], np.r_[s, t], average="macro")
        for (_, y, s), (_, z, t) in zip(per_seed, added, strict=True)
    ]
    assert rows.loc["with sensitivity records", "auroc"] == pytest.approx(np.mean(both))
    lowest = min(
        np.mean(
            [
                roc_auc_score(y[keep], s[keep])
                for f, y, s in per_seed
                for keep in [f["patient"] != f"p{k}"]
            ]
        )
        for k in range(8)
    )
    assert rows.loc["one patient left out, lowest", "auroc"] == pytest.approx(lowest)
    rounded = [
        roc_auc_score(*raw(paths, "rocl", seed, "ensemble-adc")[1:])
        for seed in (0, 1, 2)
    ]
    assert rows.loc["rounded to ADC units", "auroc"] == pytest.approx(np.mean(rounded))
    bootstrap = rows.loc["percentile bootstrap of patients"]
    assert bootstrap["ci_low"] < bootstrap["auroc"] < bootstrap["ci_high"]


def difference(sets):
    """Mean over seeds of rocl-ip − rocl, macro AUROC of (y, scores) by arm and seed."""
    auroc = [[roc_auc_score(*one, average="macro") for one in arm] for arm in sets]
    return np.mean(np.subtract(*auroc))


def test_contrasts_are_recomputed_by_seed_label_subgroup_and_patient(stored):
    _, paths, tables = stored
    rows = tables["contrast_sensitivity"].query(
        "adaptive == 'rocl-ip' and attack == 'ensemble'"
    )
    rows = rows.set_index("variant")
    sets = [
        [raw(paths, arm, k, "ensemble") for k in (0, 1, 2)]
        for arm in ("rocl-ip", "rocl")
    ]
    whole = [[one[1:] for one in arm] for arm in sets]
    primary = pick(
        tables["contrasts"],
        adaptive="rocl-ip",
        standard="rocl",
        attack="ensemble",
        epsilon_mv=0.02,
    )
    columns = ["delta", "ci_low", "ci_high"]
    assert rows.loc["primary analysis", columns].tolist() == pytest.approx(
        primary[columns].tolist()
    )
    assert rows.loc["seed 2", "delta"] == pytest.approx(
        difference([arm[2:] for arm in whole])
    )
    few = difference([[(y[:, :2], s[:, :2]) for y, s in arm] for arm in whole])
    assert rows.loc["without dominated labels", "delta"] == pytest.approx(few)
    assert rows.loc["without dominated labels", "note"] == "without F"
    women = [
        [(y[m], s[m]) for f, y, s in arm for m in [(f["sex"] == "female").to_numpy()]]
        for arm in sets
    ]
    assert rows.loc["female", "delta"] == pytest.approx(difference(women))
    assert rows.loc["female", "note"] == "4 patients; labels N, S, F"
    old = [
        [
            (y[m][:, :2], s[m][:, :2])
            for f, y, s in arm
            for m in [(f["age"] >= 70).to_numpy()]
        ]
        for arm in sets
    ]
    assert rows.loc["≥70", "delta"] == pytest.approx(difference(old))
    assert rows.loc["≥70", "note"].endswith("labels N, S")
    without = [
        difference(
            [
                [(y[f["patient"] != p], s[f["patient"] != p]) for f, y, s in arm]
                for arm in sets
            ]
        )
        for p in [f"p{k}" for k in range(8)]
    ]
    assert rows.loc["one patient left out, lowest", "delta"] == pytest.approx(
        min(without)
    )
    assert (
        rows.loc["one patient left out, highest", "note"]
        == f"without p{np.argmax(without)}"
    )
    added = [
        [raw(paths, arm, k, "ensemble", split="sensitivity") for k in (0, 1, 2)]
        for arm in ("rocl-ip", "rocl")
    ]
    both = [
        [(np.r_[y, z], np.r_[s, t]) for (_, y, s), (_, z, t) in zip(*arms, strict=True)]
        for arms in zip(sets, added, strict=True)
    ]
    assert rows.loc["with sensitivity records", "delta"] == pytest.approx(
        difference(both)
    )
    assert rows.loc["with sensitivity records", "ci_low"] < difference(both)


def test_headline_check_picks_the_smallest_epsilon_that_brings_validation_to_chance(
    stored,
):
    rows = stored[2]["headline_check"].set_index("epsilon_mv")
    assert rows["chosen"].to_dict() == {0.01: False, 0.02: True}
    assert rows["in_params"].to_dict() == {0.01: False, 0.02: True}
    assert rows.loc[0.01, "auroc_shared"] > 0.9
    assert rows.loc[0.02, "auroc_shared"] == 0


def test_headline_check_falls_back_to_the_largest_epsilon(tmp_path):
    paths = Paths("small", tmp_path)
    records = sample("validation", 40, 0)
    parts = [attacked(records, "pgd-margin", "shared", e, 5.0, 0) for e in (0.01, 0.05)]
    folder = paths.protocol("mitdb", "supervised", 0, "slf")
    folder.mkdir(parents=True)
    pd.concat(parts).to_parquet(folder / "scores.parquet")
    scores = read_scores(paths, make_study(headline=0.01).runs(), ["slf"])
    rows = tb.headline_check(scores).set_index("epsilon_mv")
    assert rows["chosen"].to_dict() == {0.01: False, 0.05: True}
    assert rows["in_params"].to_dict() == {0.01: True, 0.05: False}


def test_cost_and_masking_checks_list_every_run(stored):
    _, _, tables = stored
    cost = pick(tables["cost"], arm="rocl", seed=2)
    assert (cost["step_ms"], cost["seconds_attacks"], cost["parameters"]) == (12, 2, 7)
    assert len(tables["masking_checks"]) == len(tables["cost"]) == len(ARMS) * 3
    assert set(tables["masking_checks"]["verdict"]) == {"pass"}


def test_pretraining_is_told_by_its_last_epoch(stored):
    table = stored[2]["pretraining"].set_index(["arm", "seed"])
    assert len(table) == (len(ARMS) - 1) * 3  # an encoder without epochs has none
    assert table.loc[
        ("rocl", 1), ["dataset", "epochs", "loss", "negatives"]
    ].tolist() == [
        "mitdb",
        2,
        2.0,
        30,
    ]
    assert table.loc["supervised", "negatives"].isna().all()


def test_records_without_a_patient_id_are_counted(tmp_path):
    paths, records = Paths("small", tmp_path), sample("test", 40, 0)
    records.loc[records["patient"] == "p3", "patient"] = "record-3"
    folder = paths.protocol("mitdb", "rocl", 0, "slf")
    folder.mkdir(parents=True)
    attacked(records, "none", "shared", 0.0, 2.0, 0).to_parquet(
        folder / "scores.parquet"
    )
    rows = tb.robust_auroc(read_scores(paths, make_study().runs(), ["slf"]))
    assert rows[["n_patients", "n_unidentified"]].drop_duplicates().values.tolist() == [
        [8, 1]
    ]


def test_tables_are_written_whole_and_bit_identical_each_time(stored):
    study, paths, tables = stored
    before = {path.name: path.read_bytes() for path in paths.tables.iterdir()}
    assert set(before) == {"SHA256SUMS", *(f"{name}.csv" for name in tables)}
    tb.write_tables(study, paths)
    assert {path.name: path.read_bytes() for path in paths.tables.iterdir()} == before
    again = pd.read_csv(paths.tables / "contrasts.csv")
    np.testing.assert_allclose(
        again["delta"], tables["contrasts"]["delta"].to_numpy(float), rtol=1e-5
    )


def test_a_study_without_results_gives_empty_tables_with_the_contracts_columns(
    tmp_path,
):
    tables = tb.write_tables(make_study(), Paths("small", tmp_path))
    assert set(tables) == set(COLUMNS)
    for name, table in tables.items():
        assert list(table) == COLUMNS[name]
        assert table.empty != name.startswith("claim")
    assert set(tables["claims"]["verdict"]) == {"not tested"}


def test_two_seeds_make_no_claim_beyond_them(tmp_path):
    study, paths = make_study(seeds=(0, 1)), Paths("small", tmp_path)
    for run in study.runs():
        write_run(paths, run.dataset, run.arm, run.seed)
    tables = tb.write_tables(study, paths)
    assert not tables["contrasts"]["beyond_seeds"].any()
    assert set(tables["claims"]["verdict"]) <= {"inconclusive", "not tested"}


def test_contrasts_use_only_the_seeds_that_both_arms_have(tmp_path):
    paths = Paths("small", tmp_path)
    for arm, seeds in (("rocl", (0, 1, 2)), ("rocl-ip", (1, 2))):
        for seed in seeds:
            write_run(paths, "mitdb", arm, seed)
    scores = read_scores(paths, make_study().runs(), ["slf"])
    assert set(tb.contrasts(scores, [], 0.95)["seeds"]) == {2}


def test_a_single_seed_is_listed_alone_and_as_all(tmp_path):
    paths = Paths("small", tmp_path)
    write_run(paths, "mitdb", "rocl", 1)
    rows = tb.robust_auroc(read_scores(paths, make_study().runs(), ["slf"])).query(
        "attack == 'none'"
    )
    assert list(rows["seed"]) == [1, "all"]
    assert rows["auroc_shared"].nunique() == rows["ci_low"].nunique() == 1


def test_arms_scored_on_other_records_are_refused(tmp_path):
    paths = Paths("small", tmp_path)
    write_run(paths, "mitdb", "rocl", 0)
    write_run(paths, "mitdb", "rocl-ip", 0, n=144)
    scores = read_scores(paths, make_study().runs(), ["slf"])
    with pytest.raises(
        StudyError, match="rocl seed 0 scored other records than rocl-ip seed 0"
    ):
        tb.contrasts(scores, [], 0.95)


def test_scores_without_age_and_sex_have_no_subgroups(tmp_path):
    paths = Paths("small", tmp_path)
    write_run(paths, "mitdb", "rocl", 0)
    path = paths.protocol("mitdb", "rocl", 0, "slf") / "scores.parquet"
    pd.read_parquet(path).drop(columns=["age", "sex"]).to_parquet(path)
    scores = read_scores(paths, make_study().runs(), ["slf"])
    assert tb.subgroup_auroc(scores).empty
    assert len(tb.robust_auroc(scores))


def test_scores_that_changed_after_they_were_written_are_refused(tmp_path):
    paths = Paths("small", tmp_path)
    write_run(paths, "mitdb", "rocl", 0)
    folder = paths.protocol("mitdb", "rocl", 0, "slf")
    for name in ("scores.parquet", "evaluation.json"):
        (folder / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
        with pytest.raises(StudyError, match=f"{name}: damaged"):
            read_scores(paths, make_study().runs(), ["slf"])


def test_scores_that_are_not_finite_are_named(tmp_path):
    paths = Paths("small", tmp_path)
    write_run(paths, "mitdb", "rocl", 0)
    path = paths.protocol("mitdb", "rocl", 0, "slf") / "scores.parquet"
    pd.read_parquet(path).assign(score_N=np.nan).to_parquet(path)
    message = "record 'test0' has a score under 'none' that is not finite"
    with pytest.raises(StudyError, match=message):
        read_scores(paths, make_study().runs(), ["slf"])
