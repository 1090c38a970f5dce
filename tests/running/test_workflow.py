"""Stamps, plans and locks; the tiny study end to end is in the slow tests and in CI."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from ecgstudy.analysis.tables import COLUMNS
from ecgstudy.files import write_json
from ecgstudy.pretraining import weighting
from ecgstudy.pretraining.suffixes import CONTROLS, SINGLE_STEP, arm_names
from ecgstudy.pretraining.weighting import SCHEMES
from ecgstudy.running import workflow
from ecgstudy.study import ROOT, Paths, Run, load_study


@pytest.fixture
def study():
    return load_study(ROOT / "params/tiny.yaml")


def finish(step: workflow.Step) -> None:
    write_json(step.folder / "provenance.json", {"stamp": step.content()["stamp"]})


def test_everything_is_out_of_date_until_its_stamp_is_found(study, tmp_path):
    paths = Paths(study.study, tmp_path)
    steps = list(workflow.steps(study, paths))
    assert len(steps) == 1 + 2 * 2 + 1
    assert workflow.plan(study, paths) == len(steps)
    for step in steps:
        finish(step)
    assert workflow.plan(study, paths) == 0
    times = [(step.folder / "run.json").stat().st_mtime for step in steps]
    assert times == sorted(times)
    assert max(times) < workflow.LONG_AGO + 1000


def test_run_json_is_rewritten_only_when_its_content_changes(study, tmp_path):
    paths = Paths(study.study, tmp_path)
    workflow.plan(study, paths)
    path = paths.run("builtin", "rocl", 0) / "run.json"
    before = path.stat().st_ino
    workflow.plan(study, paths)
    assert path.stat().st_ino == before
    changed = study.model_copy(
        update={"training": study.training.model_copy(update={"epochs": 2})}
    )
    workflow.plan(changed, paths)
    assert json.loads(path.read_text())["training"]["epochs"] == 2


def stamps(study, paths, arm):
    run = Run(study, "builtin", arm, 0)
    pretrain, evaluate = (
        workflow.pretrain_step(run, paths),
        workflow.evaluate_step(run, "slf", paths),
    )
    return pretrain.content()["stamp"], evaluate.content()["stamp"]


def test_the_headline_budget_retrains_only_arms_with_an_adversary(study, tmp_path):
    paths = Paths(study.study, tmp_path)
    options = study.datasets["builtin"].model_copy(update={"headline_epsilon_mv": 0.05})
    other = study.model_copy(update={"datasets": {"builtin": options}})
    for arm, retrained in (("supervised", False), ("rocl", True)):
        (before, scored), (after, rescored) = (
            stamps(study, paths, arm),
            stamps(other, paths, arm),
        )
        assert (before != after) == retrained
        assert scored != rescored


def test_a_changed_scheme_retrains_only_the_arms_that_use_it(
    study, tmp_path, monkeypatch
):
    paths = Paths(study.study, tmp_path)
    before = {arm: stamps(study, paths, arm)[0] for arm in ("rocl", "rocl-ip-hn")}

    def other(similarity, pairs, weights, beta=1.0):
        return weights.with_push(-beta * similarity)

    monkeypatch.setitem(SCHEMES, "hard-negatives", other)
    assert stamps(study, paths, "rocl")[0] == before["rocl"]
    assert stamps(study, paths, "rocl-ip-hn")[0] != before["rocl-ip-hn"]


def test_a_new_scheme_makes_nothing_out_of_date(study, tmp_path, monkeypatch):
    paths = Paths(study.study, tmp_path)
    before = stamps(study, paths, "rocl-ip-hn")
    monkeypatch.setitem(SCHEMES, "new", weighting.push_hard_negatives)
    assert stamps(study, paths, "rocl-ip-hn") == before


def test_what_jobs_ask_for_changes_no_step(study, tmp_path):
    paths = Paths(study.study, tmp_path)
    asked = {
        rule: {"mem_mb": 1, "runtime": 2, "gpus": 3}
        for rule in ("prepare", "pretrain", "evaluate", "figures")
    }
    other = type(study).model_validate({**study.model_dump(), "resources": asked})
    assert [s.content() for s in workflow.steps(other, paths)] == [
        s.content() for s in workflow.steps(study, paths)
    ]


def test_command_line_reports_bad_input_in_one_line(tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text((ROOT / "params/tiny.yaml").read_text() + "colour: red\n")
    assert workflow.main(["plan", str(bad)]) == 1
    error = capsys.readouterr().err
    assert error == f"error: {bad}: unknown key 'colour' (value 'red')\n"


def clone_with_results(study, paths):
    """What a fresh clone holds of a finished study: no data, no weights, no executed notebooks."""
    workflow.plan(study, paths)
    kept = {
        "slf": ["scores.parquet", "evaluation.json"],
        "tables": [f"{name}.csv" for name in COLUMNS],
    }
    for step in workflow.steps(study, paths):
        if not step.on_demand:
            finish(step)
            for name in kept.get(step.folder.name, ["encoder.json", "history.jsonl"]):
                (step.folder / name).write_text("kept")
    (paths.tables / "claims.csv").write_text("kept")
    run = "builtin-rocl-ip-hn-seed0"
    pages = [
        "index",
        "01_prepare_data-builtin",
        f"02_pretrain-{run}",
        f"03_evaluate-{run}-slf",
        "04_figures",
    ]
    paths.report.mkdir()
    for page in pages:
        (paths.report / f"{page}.html").write_text("kept")


def jobs_of_a_dry_run(paths):
    where = [
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(paths.home),
        "--cores",
        "1",
    ]
    config = [
        "--rerun-triggers",
        "mtime",
        "--quiet",
        "rules",
        "--config",
        "params=params/tiny.yaml",
    ]
    call = [sys.executable, "-m", "snakemake", "--dry-run", *where, *config]
    text = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    rules = ("prepare", "pretrain", "evaluate", "figures")
    return {
        line.split()[0]: int(line.split()[1])
        for line in text.splitlines()
        if line.startswith(rules)
    }


def test_a_fresh_clone_recomputes_no_committed_result_and_only_what_is_missing(
    study, tmp_path
):
    paths = Paths(study.study, tmp_path)
    clone_with_results(study, paths)
    for path in paths.home.rglob("*"):  # a checkout gives files arbitrary times
        os.utime(path, (1.7e9, 1.7e9 + hash(path.name) % 1000))
    assert workflow.plan(study, paths) == 1  # the data, which nothing needs
    assert jobs_of_a_dry_run(paths) == {}
    (paths.protocol("builtin", "rocl", 0, "slf") / "scores.parquet").unlink()
    assert jobs_of_a_dry_run(paths) == {"pretrain": 1, "evaluate": 1, "figures": 1}


TABLES = ("robust_auroc", "per_class", "contrasts", "masking_checks")


def run_tiny(
    folder,
    *,
    command="study",
    study="tiny",
    profile="local",
    kill_after: str | None = None,
    **variables,
) -> int:
    """Run a study of the checkout at `folder`; kill its processes once a file appears."""
    call = [
        sys.executable,
        "-m",
        "ecgstudy.running.workflow",
        command,
        f"params/{study}.yaml",
        "--profile",
        profile,
    ]
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **variables}
    with open(folder / "log.txt", "a") as log:
        process = subprocess.Popen(
            call, cwd=folder, env=env, start_new_session=True, stdout=log, stderr=log
        )
        while (
            kill_after and process.poll() is None and not list(folder.glob(kill_after))
        ):
            time.sleep(0.02)
        if kill_after:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def checkout(folder):
    """A working copy without outputs."""
    kept = [
        "docs",
        "ecgstudy",
        "notebooks",
        "params",
        "profiles",
        "Snakefile",
        "pyproject.toml",
    ]
    folder.mkdir()
    subprocess.run(
        ["cp", "-r", *[str(ROOT / name) for name in kept], str(folder)], check=True
    )
    params = (
        folder / "params/tiny.yaml"
    )  # three epochs, so that there is something to interrupt
    params.write_text(
        params.read_text().replace("epochs: 1, batch", "epochs: 3, batch")
    )
    return folder


@pytest.mark.slow
def test_killed_study_ends_with_the_numbers_of_an_unbroken_one(tmp_path):
    whole, broken = checkout(tmp_path / "whole"), checkout(tmp_path / "broken")
    assert run_tiny(whole) == 0
    for file in (
        "outputs/tiny/runs/*/*/*/checkpoint.safetensors",
        "outputs/tiny/runs/*/*/*/slf/head.safetensors",
    ):
        assert run_tiny(broken, kill_after=file) != 0
    assert run_tiny(broken) == 0
    for name in TABLES:
        tables = [
            pd.read_csv(folder / f"outputs/tiny/tables/{name}.csv")
            for folder in (whole, broken)
        ]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.slow
def test_finished_study_has_nothing_to_do_and_remakes_what_is_deleted(tmp_path):
    folder = checkout(tmp_path / "whole")
    assert run_tiny(folder) == 0
    scores = folder / "outputs/tiny/runs/builtin/rocl/seed0/slf/scores.parquet"
    encoder = folder / "outputs/tiny/runs/builtin/rocl/seed0/encoder.safetensors"
    before, trained = (
        scores.stat().st_ino,
        encoder.stat().st_ino,
    )  # made anew they are other files
    assert run_tiny(folder) == 0
    assert scores.stat().st_ino == before
    old = pd.read_parquet(scores)
    scores.unlink()
    assert run_tiny(folder) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(scores), old, check_exact=True)
    assert encoder.stat().st_ino == trained


@pytest.mark.slow
def test_the_explored_ecg_is_a_page_with_every_scheme_and_figures_in_words(tmp_path):
    folder = checkout(tmp_path / "whole")
    assert run_tiny(folder, command="explore") == 0
    page = BeautifulSoup(
        (folder / "outputs/tiny/report/05_explore.html").read_text(), "html.parser"
    )
    assert {name for name in SCHEMES if name != "shuffled"} <= {
        cell.get_text() for cell in page.find_all("td")
    }
    ecg, energy, weights = (image["alt"] for image in page.find_all("img"))
    assert "apgd-margin, ε = 50 µV" in ecg
    assert "times white noise" in energy
    assert (
        "inferior-positives: pull of its clean view 0.70, attacked view 1.60" in weights
    )
    assert not (
        folder / "outputs/tiny/tables/robust_auroc.csv"
    ).exists()  # one run was enough


def test_one_study_has_every_arm_and_a_control_of_each_kind():
    arms = load_study(ROOT / "params/all-arms.yaml").arms
    assert set(arms) >= set(arm_names())
    assert {name.rpartition("-")[2] for name in set(arms) - set(arm_names())} == {
        *CONTROLS,
        *SINGLE_STEP,
    }


@pytest.mark.slow
def test_every_arm_goes_through_all_notebooks(tmp_path):
    folder = checkout(tmp_path / "whole")
    assert run_tiny(folder, study="all-arms") == 0
    robust = pd.read_csv(folder / "outputs/all-arms/tables/robust_auroc.csv")
    assert set(robust["arm"]) == set(load_study(folder / "params/all-arms.yaml").arms)
    assert robust["auroc_shared"].between(0, 1).all()
