"""A study from its params file to its report; end to end in the slow tests and in CI."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from ecgstudy.errors import StudyError
from ecgstudy.pretraining.suffixes import CONTROLS, SINGLE_STEP, arm_names
from ecgstudy.registry import WEIGHTINGS
from ecgstudy.running import cache, engine, workflow
from ecgstudy.study import ROOT, Study, load_study

TABLES = ("robust_auroc", "per_class", "contrasts", "masking_checks")
OWN = ("docs", "ecgstudy", "notebooks", "params", "profiles", "Snakefile")
"""What a working copy needs to run a study."""


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
    call = [sys.executable, "-m", "ecgstudy", command, f"params/{study}.yaml"]
    call += ["--profile", profile]
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **variables}
    with open(folder / "log.txt", "a") as log:
        process = subprocess.Popen(
            call, cwd=folder, env=env, start_new_session=True, stdout=log, stderr=log
        )
        if kill_after:
            while process.poll() is None and not list(folder.glob(kill_after)):
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def checkout(folder):
    """A working copy without outputs; three epochs, so that some can be interrupted."""
    folder.mkdir()
    copied = [str(ROOT / name) for name in (*OWN, "pyproject.toml")]
    subprocess.run(["cp", "-r", *copied, str(folder)], check=True)
    params = folder / "params/tiny.yaml"
    text = params.read_text()
    params.write_text(text.replace("epochs: 1, batch", "epochs: 3, batch"))
    return folder


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A study of one's own in another folder; `made` are the steps that it makes."""
    (tmp_path / "mine.yaml").write_text(
        (ROOT / "params/tiny.yaml").read_text().replace("study: tiny", "study: mine")
    )
    study = load_study(tmp_path / "mine.yaml")
    made = []
    monkeypatch.setattr(engine, "make", lambda study, todo, **where: made.extend(todo))
    return study, made


def test_outputs_of_a_study_lie_beside_its_params_file(mine, tmp_path):
    study, made = mine
    assert study.paths.home == tmp_path / "outputs/mine"
    assert load_study(ROOT / "params/tiny.yaml").paths.home == ROOT / "outputs/tiny"
    workflow.run_study(study)
    assert [step.name for step in made].count("pretrain") == 2
    assert (tmp_path / "outputs/mine/tables/run.json").exists()


def test_steps_come_after_those_that_they_need(mine):
    study, made = mine
    workflow.run_study(study)
    places = {step.folder: place for place, step in enumerate(made)}
    assert len(places) == 6
    for step in made:
        assert all(places[need.folder] < places[step.folder] for need in step.needs)


def test_only_what_is_asked_for_is_made_and_what_it_needs(mine):
    study, made = mine
    run = next(study.runs())
    workflow.run_study(study, [cache.pretrain_step(run, study.paths)])
    assert [str(step) for step in made] == [
        "prepare builtin",
        f"pretrain builtin {run.arm} seed 0",
    ]


def test_a_copy_with_the_name_of_the_original_is_refused_before_it_overwrites(
    mine, tmp_path
):
    (tmp_path / "copy.yaml").write_text((tmp_path / "mine.yaml").read_text())
    with pytest.raises(StudyError, match=r"is the name of mine\.yaml; call it copy"):
        workflow.run_study(load_study(tmp_path / "copy.yaml"))


def test_figures_need_all_scores(mine):
    with pytest.raises(StudyError, match="evaluate builtin rocl seed 0 slf is not don"):
        workflow.run_figures(mine[0])


def test_a_study_without_a_params_file_cannot_be_run():
    content = load_study(ROOT / "params/tiny.yaml").model_dump()
    with pytest.raises(StudyError, match="'tiny' was not read from a params file"):
        workflow.run_study(Study.model_validate(content))


def test_prepared_data_that_are_damaged_are_prepared_again(mine):
    study, _ = mine
    before = workflow.prepared_records(study, "builtin").signals[:].tobytes()
    path = study.paths.data("builtin") / "signals.npy"
    path.write_bytes(path.read_bytes()[:1000])
    assert workflow.prepared_records(study, "builtin").signals[:].tobytes() == before


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
        file = f"outputs/tiny/tables/{name}.csv"
        tables = [pd.read_csv(folder / file) for folder in (whole, broken)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.slow
def test_finished_study_has_nothing_to_do_and_remakes_what_is_deleted_or_damaged(
    tmp_path,
):
    folder = checkout(tmp_path / "whole")
    assert run_tiny(folder) == 0
    run = folder / "outputs/tiny/runs/builtin/rocl/seed0"
    scores, encoder = run / "slf/scores.parquet", run / "encoder.safetensors"
    inodes = scores.stat().st_ino, encoder.stat().st_ino  # other files if made anew
    assert run_tiny(folder) == 0
    assert "nothing to do" in (folder / "log.txt").read_text()
    assert (scores.stat().st_ino, encoder.stat().st_ino) == inodes
    old, weights = pd.read_parquet(scores), encoder.read_bytes()
    scores.unlink()
    assert run_tiny(folder) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(scores), old, check_exact=True)
    assert encoder.stat().st_ino == inodes[1]
    encoder.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert run_tiny(folder) == 0
    assert encoder.read_bytes() == weights
    pd.testing.assert_frame_equal(pd.read_parquet(scores), old, check_exact=True)


@pytest.mark.slow
def test_the_explored_ecg_is_a_page_with_every_scheme_and_figures_in_words(tmp_path):
    folder = checkout(tmp_path / "whole")
    assert run_tiny(folder, command="explore") == 0
    page = BeautifulSoup(
        (folder / "outputs/tiny/report/05_explore.html").read_text(), "html.parser"
    )
    assert {name for name in WEIGHTINGS if name != "shuffled"} <= {
        cell.get_text() for cell in page.find_all("td")
    }
    ecg, energy, weights = (image["alt"] for image in page.find_all("img"))
    assert "apgd-margin, ε = 50 µV" in ecg
    assert "times white noise" in energy
    assert (
        "inferior-positives: pull of its clean view 0.70, attacked view 1.60" in weights
    )
    # one run was enough
    assert not (folder / "outputs/tiny/tables/robust_auroc.csv").exists()


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


@pytest.mark.slow
def test_every_process_works_on_the_checkout_that_it_was_started_in(tmp_path):
    """Though another one is installed, from which the command itself is imported."""
    ours, other = checkout(tmp_path / "ours"), checkout(tmp_path / "installed")
    (other / "ecgstudy/study.py").write_text("raise SystemExit('the other checkout')")
    script = tmp_path / "ecgstudy"
    script.write_text(
        "import sys; from ecgstudy.running.cli import main; sys.exit(main())"
    )
    env = {**os.environ, "PYTHONPATH": str(other), "OMP_NUM_THREADS": "1"}
    tables = ours / "outputs/tiny/tables"
    for command in ("study", "figures"):
        call = [sys.executable, str(script), command, "params/tiny.yaml"]
        ran = subprocess.run(call, cwd=ours, env=env, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert (tables / "claims.csv").read_text() != "old"
        (tables / "claims.csv").write_text("old")
    assert not (other / "outputs").exists()
