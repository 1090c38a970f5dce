"""The tiny study killed at random moments, beside another study, and started twice."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import psutil
import pytest
from test_workflow import checkout, run_tiny


def start(folder, study="tiny"):
    """Begin a study of the checkout at `folder`, as the leader of a process group of its own."""
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "ecgstudy", "study", f"params/{study}.yaml"]
    with open(folder / f"{study}.log", "a") as log:
        return subprocess.Popen(
            call, cwd=folder, env=env, start_new_session=True, stdout=log, stderr=log
        )


def tables(folder, study="tiny"):
    """The tables' bytes but for seconds: without the table of them, and the claim about them."""
    files = (folder / "outputs" / study / "tables").glob("*.csv")
    found = {
        path.name: path.read_bytes().splitlines()
        for path in files
        if path.name != "cost.csv"
    }
    assert len(found) >= 10
    return {
        name: [
            line
            for line in lines
            if b"extra time" not in line and b",step_ms," not in line
        ]
        for name, lines in found.items()
    }


def half_written(folder):
    """Hidden files beside results: what killed writers left."""
    hidden = (folder / "outputs").rglob(".*")
    return [
        path
        for path in hidden
        if ".snakemake" not in path.parts
        and path.name not in (".lock", ".checked.json")
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A checkout with the finished tiny study, and the seconds that it took."""
    folder, started = (
        checkout(tmp_path_factory.mktemp("unbroken") / "whole"),
        time.monotonic(),
    )
    assert run_tiny(folder) == 0
    return folder, time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 20])
def test_a_study_killed_at_random_moments_ends_with_the_same_tables_to_the_byte(
    kills, unbroken, tmp_path
):
    (whole, seconds), rng = unbroken, np.random.default_rng(kills)
    folder, killed = checkout(tmp_path / "broken"), 0
    while killed < kills:
        study = start(folder)
        try:
            study.wait(rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(study.pid, signal.SIGKILL)
            study.wait()
            killed += 1
        else:  # it was through before its moment came: see that it is right, and begin again
            assert study.returncode == 0
            assert tables(folder) == tables(whole)
            shutil.rmtree(folder / "outputs")
    assert run_tiny(folder) == 0
    assert tables(folder) == tables(whole)
    assert half_written(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("both", [True, False])
def test_what_outlives_a_killed_run_ends_before_the_next_begins(
    both, unbroken, tmp_path
):
    """The run alone is killed, or Snakemake with it; a job, or Snakemake with all that is left, works on."""
    (whole, _), folder = unbroken, checkout(tmp_path / "orphaned")
    study = start(folder)
    while not list((folder / "outputs/tiny/logs").glob("02_pretrain*")):
        assert study.poll() is None
        time.sleep(0.1)
    (engine,) = psutil.Process(study.pid).children()
    for process in (study, engine) if both else (study,):
        process.kill()
    study.wait()
    assert run_tiny(folder) == 0
    assert "waiting for them to end" in (folder / "log.txt").read_text()
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    assert tables(folder) == tables(whole)
    assert half_written(folder) == []


@pytest.mark.slow
def test_two_studies_at_once_end_as_they_do_alone_and_one_study_runs_once(
    unbroken, tmp_path
):
    (whole, _), folder = unbroken, checkout(tmp_path / "both")
    text = (folder / "params/tiny.yaml").read_text()
    (folder / "params/other.yaml").write_text(
        text.replace("study: tiny", "study: other")
    )
    both = [start(folder, study) for study in ("tiny", "other")]
    while not (lock := folder / "outputs/tiny/.lock").exists() or not lock.read_text():
        time.sleep(0.1)
    assert start(folder).wait() == 1
    says = rf"^error: study 'tiny' is being run by process {both[0].pid}; wait for it or stop it$"
    assert re.search(says, (folder / "tiny.log").read_text(), re.MULTILINE)
    assert [study.wait() for study in both] == [0, 0]
    assert tables(folder) == tables(folder, "other") == tables(whole)


@pytest.fixture
def mounted(tmp_path):
    """Mounts an empty file system at a checkout's outputs, with the given options."""
    folder = checkout(tmp_path / "mounted")
    (folder / "outputs").mkdir()

    def mount(options):
        call = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder / "outputs")]
        if os.geteuid() or subprocess.run(call, capture_output=True).returncode:
            pytest.skip("only root may mount, and not even root in every container")
        end.callback(subprocess.run, ["umount", str(folder / "outputs")], check=True)
        return folder

    with ExitStack() as end:
        yield mount


def test_a_study_whose_outputs_are_read_only_says_so(mounted):
    folder = mounted("ro")
    assert start(folder).wait() == 1
    why = (
        "Read-only file system); free some space or use a folder that you may write to"
    )
    assert (
        folder / "tiny.log"
    ).read_text() == f"error: {folder}/outputs/tiny cannot be written ({why}\n"


@pytest.mark.slow
def test_a_study_on_a_full_disk_says_so_and_goes_on_when_there_is_space(
    mounted, unbroken
):
    folder = mounted("size=2m")  # the signals alone take 4.6 MB
    assert start(folder).wait() == 1
    error = r"StudyError: \S+/data/builtin/signals\.npy cannot be written \(.+\); free some space or use a"
    assert re.search(error, (folder / "tiny.log").read_text())
    assert half_written(folder) == []
    subprocess.run(
        ["mount", "-o", "remount,size=100m", str(folder / "outputs")], check=True
    )
    assert run_tiny(folder) == 0
    assert tables(folder) == tables(unbroken[0])


@pytest.mark.slow
def test_steps_that_fail_leave_the_results_they_were_to_replace(unbroken, tmp_path):
    folder, whole = tmp_path / "again", unbroken[0]
    shutil.copytree(whole, folder)
    home, params = folder / "outputs/tiny", folder / "params/tiny.yaml"
    files = [
        path
        for part in ("runs", "tables", "report")
        for path in (home / part).rglob("*.*")
    ]
    before = {path: path.read_bytes() for path in files if path.name != "run.json"}
    right = params.read_text()
    params.write_text(
        right.replace("batch_size: 16", "batch_size: 1000")
    )  # more than there are
    assert run_tiny(folder) == 1
    assert "lower training.batch_size" in (folder / "log.txt").read_text()
    assert {path: path.read_bytes() for path in before if path.exists()} == before
    params.write_text(right)
    encoder = home / "runs/builtin/rocl/seed0/encoder.safetensors"
    kept = encoder.stat().st_ino
    assert run_tiny(folder) == 0
    assert encoder.stat().st_ino == kept, "what was there is not made again"
