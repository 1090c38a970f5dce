"""Protocols and transfer in a study: which run is evaluated how, on what data, and
where it ends up."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from toy import toy_records, toy_run

from ecgstudy.analysis.claims import judge_claims
from ecgstudy.analysis.scores import read_scores
from ecgstudy.analysis.tables import contrasts, robust_auroc
from ecgstudy.datasets.prepare import prepare
from ecgstudy.datasets.resample import adapt_records
from ecgstudy.errors import StudyError
from ecgstudy.evaluation import runner as robustness
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.params import AttackOptions, DatasetOptions
from ecgstudy.records import load_records, save_records
from ecgstudy.running import cache
from ecgstudy.running.launch import pretrain
from ecgstudy.study import Paths, Run, Study


def study(protocols=("slf",), arms=("supervised", "rocl"), **datasets):
    sections = datasets or {"ptbxl": {}, "mitdb": {"headline_epsilon_mv": 0.05}}
    return Study.model_validate(
        {
            "study": "small",
            "title": "Small",
            "datasets": {
                name: {"headline_epsilon_mv": 0.02, **s} for name, s in sections.items()
            },
            "arms": list(arms),
            "seeds": [0],
            "protocols": list(protocols),
            "training": {"epochs": 1},
        }
    )


# ---- which runs, which protocols -------------------------------------------------


def test_a_run_is_not_transferred_to_its_own_data():
    found = {
        run.dataset: run.protocols
        for run in study(["slf", "aff", "slf@mitdb", "alf@ptbxl"]).runs()
    }
    assert found == {
        "ptbxl": ["slf", "aff", "slf@mitdb"],
        "mitdb": ["slf", "aff", "alf@ptbxl"],
    }


def test_a_data_set_may_be_a_target_alone():
    one = study(["slf", "slf@mitdb"], ptbxl={}, mitdb={"pretrain": False})
    assert {run.dataset for run in one.runs()} == {"ptbxl"}
    steps = [folder.name for folder in cache.steps(one, Paths("small"))]
    assert steps == [
        "ptbxl",
        "mitdb",
        "seed0",
        "seed0",
        *["slf", "slf@mitdb"] * 2,
        "tables",
    ]


def test_arms_on_engineered_features_are_not_fine_tuned():
    runs = study(["slf", "alf", "slf@mitdb"], arms=["supervised", "features-lr"]).runs()
    assert {r.arm: r.protocols for r in runs if r.dataset == "ptbxl"}[
        "features-lr"
    ] == ["slf"]


def test_a_run_is_tested_at_the_headline_budget_of_the_target():
    run = Run(study(["slf@mitdb"]), "ptbxl", "rocl", 0)
    assert run.tested_on("slf") == run
    assert run.tested_on("slf@mitdb").headline_epsilon_mv == 0.05
    assert run.tested_on("slf@mitdb").tested_on("slf@mitdb") == run.tested_on(
        "slf@mitdb"
    )


@pytest.mark.parametrize(
    ("protocols", "datasets", "says"),
    [
        (
            ["slf@other"],
            {},
            "protocols: 'other' is not among the datasets ['ptbxl', 'mitdb']",
        ),
        (
            ["slf@mitdb"],
            {"mitdb": {}},
            "protocols: '@mitdb' needs another data set than 'mitdb'",
        ),
        (
            ["slf"],
            {"ptbxl": {}, "mitdb": {"pretrain": False}},
            "datasets.mitdb.pretrain is false, and no protocol ends in @mitdb",
        ),
        (
            ["slf@mitdb"],
            {"ptbxl": {"fs": 100}, "mitdb": {"fs": 360}},
            "the same fs in datasets.ptbxl (100.0) and datasets.mitdb (360.0)",
        ),
        (
            ["alf@mitdb"],
            {"ptbxl": {"leads": ["II"]}, "mitdb": {"leads": ["MLII"]}},
            "the same leads in datasets.ptbxl (['II']) and datasets.mitdb (['MLII'])",
        ),
    ],
)
def test_impossible_transfers_are_one_error_before_anything_runs(
    protocols, datasets, says
):
    with pytest.raises(StudyError) as caught:
        study(protocols, **datasets)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "protocol", ["linear", "SLF", "slf@", "@mitdb", "slf mitdb", ""]
)
def test_an_unknown_protocol_is_an_error_that_names_those_there_are(protocol):
    with pytest.raises(
        ValueError,
        match="protocols are 'slf', 'alf', 'aff', or one of them as in 'slf@mitdb'",
    ):
        study([protocol])


# ---- keys ------------------------------------------------------------------------


def evaluation_key(protocol, dataset="ptbxl", **changes):
    one = study(["slf", "alf", "aff", "slf@mitdb"])
    datasets = {
        k: v.model_copy(update=changes.get(k, {})) for k, v in one.datasets.items()
    }
    sections = {
        k: getattr(one, k).model_copy(update=changes.get(k, {}))
        for k in ("probe", "alf", "aff")
    }
    run = Run(
        one.model_copy(update={"datasets": datasets, **sections}), dataset, "rocl", 0
    )
    return cache.evaluate_step(run, protocol, Paths("small")).key


@pytest.mark.parametrize(
    ("section", "concerned"), [("probe", "slf"), ("alf", "alf"), ("aff", "aff")]
)
def test_settings_of_one_protocol_concern_no_other(section, concerned):
    for protocol in ("slf", "alf", "aff"):
        changed = evaluation_key(
            protocol, **{section: {"epochs": 3}}
        ) != evaluation_key(protocol)
        assert changed == (protocol == concerned)


def test_an_evaluation_on_other_data_depends_on_how_these_are_prepared():
    cut = {"mitdb": {"options": {"before_s": 0.5}}}
    assert evaluation_key("slf@mitdb", **cut) != evaluation_key("slf@mitdb")
    assert evaluation_key("slf", **cut) == evaluation_key("slf")
    assert evaluation_key(
        "slf@mitdb", mitdb={"headline_epsilon_mv": 0.1}
    ) != evaluation_key("slf@mitdb")


def test_options_for_transfer_leave_preparation_as_it_was_where_they_are_not_used():
    step = cache.prepare_step(study(), "ptbxl", Paths("small"))
    assert step.parameters == {"dataset": "ptbxl", "options": {}}
    other = study(ptbxl={"leads": ["II"], "fs": 100})
    step = cache.prepare_step(other, "ptbxl", Paths("small"))
    assert (step.parameters["leads"], step.parameters["fs"]) == (["II"], 100)


# ---- one form --------------------------------------------------------------------


def tones(fs, *hertz, seconds=4.0):
    time = np.arange(round(seconds * fs)) / fs
    return np.stack([np.sin(2 * np.pi * f * time) for f in hertz]).astype(np.float32)


def recorded(fs=360.0, leads=("V1", "MLII"), **card):
    signals = np.stack([tones(fs, 5, 8), tones(fs, 3, 12)])
    records = replace(
        toy_records(train=80), signals=signals, fs=fs, leads=leads, card=card
    )
    return replace(records, labels=records.labels[:2], table=records.table.iloc[:2])


def test_resampling_keeps_slow_tones_and_lets_fast_ones_alias_into_nothing():
    found = adapt_records(recorded(), None, 100.0)
    assert (found.fs, found.signals.shape, found.signals.dtype) == (
        100.0,
        (2, 2, 400),
        np.float32,
    )
    inner = slice(20, -20)
    np.testing.assert_allclose(
        found.signals[0, 1, inner], tones(100, 8)[0, inner], atol=0.01
    )
    fast = replace(recorded(), signals=np.stack([tones(360, 70, 120)] * 2))
    assert np.abs(adapt_records(fast, None, 100.0).signals[:, :, inner]).max() < 0.01


def test_ends_of_a_shifted_signal_do_not_ring():
    flat = replace(
        recorded(),
        signals=np.full((2, 2, 648), 3, np.float32)
        + np.linspace(0, 1, 648, dtype=np.float32),
    )
    expected = 3 + np.arange(180) * 3.6 / 647
    np.testing.assert_allclose(
        adapt_records(flat, None, 100.0).signals[0, 0], expected, atol=1e-3
    )


def test_resampling_moves_the_r_peak_and_drops_adc_units():
    signals = np.zeros((2, 2, 648), np.float32)
    signals[:, :, 324] = 1
    records = replace(
        recorded(adc_mv=0.005, window_samples=[324, 324], version="1"), signals=signals
    )
    found = adapt_records(records, None, 100.0)
    assert found.card["window_samples"] == [90, 90]
    assert (found.signals.argmax(2) == 90).all()
    assert found.card["adc_mv"] is None
    assert found.card["version"] == "1"
    assert found.card["adaptations"] == ["Resampled from 360 to 100 Hz."]
    assert records.card["adc_mv"] == 0.005
    assert adapt_records(records, None, 360).card == records.card


def test_mlii_is_taken_for_lead_ii_and_said_to_be():
    found = adapt_records(recorded(adaptations=["Cut."]), ["II"], None)
    assert found.leads == ("II",)
    np.testing.assert_array_equal(found.signals[:, 0], recorded().signals[:, 1])
    notes = ["Cut.", "Lead MLII is taken for lead II.", "Leads II of V1, MLII only."]
    assert found.card["adaptations"] == notes
    assert adapt_records(recorded(), ["MLII", "V1"], None).leads == ("MLII", "V1")
    both = adapt_records(recorded(leads=("II", "MLII")), ["II"], None)
    np.testing.assert_array_equal(both.signals[:, 0], recorded().signals[:, 0])


def test_a_lead_that_is_not_there_is_an_error():
    with pytest.raises(
        StudyError,
        match=r"datasets\.toy\.leads: there is no lead 'V5'; it has V1, MLII",
    ):
        adapt_records(recorded(), ["V5"], None)


def test_prepared_data_have_the_leads_and_rate_asked_for(tmp_path):
    options = {"patients": 27, "records_per_patient": 1, "fs": 250}
    section = DatasetOptions(
        headline_epsilon_mv=0.02, options=options, leads=["II"], fs=100
    )
    save_records(prepare("builtin", section, tmp_path), tmp_path)
    found = load_records(tmp_path)
    assert (found.leads, found.fs, found.signals.shape[1:]) == (
        ("II",),
        100.0,
        (1, 1000),
    )
    assert found.card["adaptations"][-1] == "Resampled from 250 to 100 Hz."


# ---- transfer --------------------------------------------------------------------


@pytest.fixture(scope="module")
def transferred(tmp_path_factory):
    """Runs of two arms on `toy`, tested there and on `other`, of four multi-label
    classes."""
    paths = Paths("toy", tmp_path_factory.mktemp("outputs"))
    attacks = AttackOptions(
        ensemble=["apgd-margin"],
        attacks=["transfer"],
        epsilons_mv=[0.05, 0.1],
        steps=2,
        label_steps=1,
    )
    base = toy_run("rocl", epochs=2, learning_rate=0.005).study
    other = DatasetOptions(headline_epsilon_mv=0.1, pretrain=False)
    update = {
        "datasets": {**base.datasets, "other": other},
        "arms": ["supervised", "rocl", "rocl-ip-hn"],
    }
    update |= {"protocols": ["slf", "slf@other"], "evaluation": attacks}
    one = base.model_copy(update=update)
    records = {"toy": toy_records(), "other": other_records()}
    for run in one.runs():
        folder = paths.run(run.dataset, run.arm, run.seed)
        pretrain(run, records["toy"], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            robustness, "check_masking", lambda *_: []
        )  # costs more than all else here
        for run in one.runs():
            for protocol in run.protocols:
                folder = paths.protocol(run.dataset, run.arm, run.seed, protocol)
                evaluate(
                    run, records[run.tested_on(protocol).dataset], folder, protocol
                )
    return one, paths, records


def other_records():
    records = toy_records(multilabel=True)
    labels = np.concatenate([records.labels, 1 - records.labels[:, :1]], 1)
    table = records.table.assign(record=[f"o{i}" for i in range(len(records))])
    return replace(
        records, name="other", labels=labels, classes=("W", "X", "Y", "Z"), table=table
    )


def test_transfer_is_fine_tuned_and_tested_on_the_target(transferred):
    _, paths, records = transferred
    folder = paths.protocol("toy", "rocl", 0, "slf@other")
    scores = pd.read_parquet(folder / "scores.parquet")
    assert set(scores["target"]) == {"other"}
    assert set(scores["protocol"]) == {"slf@other"}
    assert [c for c in scores if c.startswith("score_")] == [
        f"score_{c}" for c in "WXYZ"
    ]
    at_headline = scores[scores["attack"] == "transfer"]
    assert set(at_headline["epsilon_mv"]) == {0.1}  # the target's
    summary = json.loads((folder / "evaluation.json").read_text())
    assert set(summary["clean_all"]) == {"macro", *"WXYZ"}
    model, form = load_classifier(folder)
    assert (form["classes"], form["multilabel"]) == (list("WXYZ"), True)
    test = records["other"].split("test")
    clean = scores[(scores["attack"] == "none") & (scores["split"] == "test")]
    found = clean[[f"score_{c}" for c in "WXYZ"]].to_numpy()
    np.testing.assert_allclose(
        model(torch.tensor(test.signals)).detach(), found, rtol=1e-3, atol=1e-3
    )


def test_an_arm_with_its_own_head_gets_another_for_other_data(transferred):
    _, paths, _ = transferred
    heads = [
        load_classifier(paths.protocol("toy", "supervised", 0, p))[0].head
        for p in ("slf", "slf@other")
    ]
    assert [head.out_features for head in heads] == [3, 4]


def test_the_pretrained_encoder_is_the_same_file_after_all_evaluations(transferred):
    _, paths, _ = transferred
    encoder = paths.run("toy", "rocl", 0)
    for protocol in ("slf", "slf@other"):
        assert not (encoder / protocol / "encoder.safetensors").exists()


def test_tables_and_claims_find_transfer(transferred):
    one, paths, _ = transferred
    scores = read_scores(paths, one.runs())
    assert {(key[1], key[3]) for key in scores.evaluations} == {
        (arm, protocol) for arm in one.arms for protocol in one.protocols
    }
    table = robust_auroc(scores)
    rows = table[table["protocol"] == "slf@other"]
    assert set(rows["dataset"]) == {"toy"}
    found = contrasts(scores, [("rocl-ip-hn", "rocl")], 0.95)
    main = found[found["headline"] & (found["adaptive"] == "rocl-ip-hn")]
    assert dict(zip(main["protocol"], main["epsilon_mv"], strict=True)) == {
        "slf": 0.05,
        "slf@other": 0.1,
    }
    assert main.loc[main["protocol"] == "slf@other", "family"].tolist() == [
        "exploratory"
    ]
    no_cost = pd.DataFrame(columns=["dataset", "arm", "seed", "protocol"])
    claims, _ = judge_claims(found, no_cost)
    ninth = claims.set_index("number").loc[9]
    assert ninth["verdict"] == "inconclusive"  # one seed
    assert ninth["evidence"] == "rocl-ip-hn − rocl, robust, toy slf@other"


# ---- the whole workflow ----------------------------------------------------------

PLUGIN = """
from dataclasses import replace

from ecgstudy.datasets.prepare import DATASETS
from ecgstudy.datasets import builtin


def load(patients: int = 30, records_per_patient: int = 2):
    records = builtin.load(1, patients, records_per_patient, 250.0)
    leads = tuple("MLII" if lead == "II" else lead for lead in records.leads)
    return replace(records, name="other", leads=leads)


DATASETS["other"] = load
"""


@pytest.mark.slow
def test_every_protocol_goes_through_the_whole_workflow(tmp_path):
    from test_workflow import checkout

    folder = checkout(tmp_path / "copy")
    (folder / "other.py").write_text(PLUGIN)
    path = folder / "params/tiny.yaml"
    content = yaml.safe_load(path.read_text())
    shared = {"leads": ["II"], "fs": 100, "headline_epsilon_mv": 0.02}
    content["datasets"]["builtin"] |= shared
    content["datasets"]["other"] = {**shared, "pretrain": False}
    content["arms"] = ["rocl", "rocl-ip-hn", "supervised"]
    content["evaluation"]["attacks"] = ["transfer"]
    content["protocols"] = ["slf", "alf", "aff", "slf@other"]
    content |= {name: {"epochs": 1, "attack_steps": 1} for name in ("alf", "aff")}
    path.write_text(yaml.safe_dump(content))
    call = [sys.executable, "-m", "ecgstudy", "study", "params/tiny.yaml"]
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    env["ECGSTUDY_PLUGINS"] = str(folder / "other.py")
    done = subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    robust = pd.read_csv(folder / "outputs/tiny/tables/robust_auroc.csv")
    assert set(robust["protocol"]) == set(content["protocols"])
    evidence = pd.read_csv(folder / "outputs/tiny/tables/claim_evidence.csv")
    tested = evidence.dropna(subset="value").groupby("number")["protocol"].unique()
    assert {"alf", "aff"} <= set(tested[8])
    assert "slf@other" in tested[9]
    again = subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True)
    assert again.returncode == 0
    assert "evaluate" not in again.stdout + again.stderr
    assert (
        folder
        / "outputs/tiny/report/03_evaluate-builtin-supervised-seed0-slf@other.html"
    ).exists()
