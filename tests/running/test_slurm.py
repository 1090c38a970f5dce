"""The tiny study on a real SLURM of one node: what its jobs ask for, how they fail, what is left to do."""

import re
import subprocess
from collections import Counter

import pandas as pd
import pytest
from one_node_slurm import one_node_slurm, why_not
from own_ward import shown, write_ward
from test_workflow import checkout, run_tiny

from ecgstudy.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with one_node_slurm(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture
def run_on_slurm(slurm, tmp_path):
    """Runs a checkout's tiny study; a profile of the cluster's own asks often, as the jobs are short."""
    (tmp_path / "config.yaml").write_text(
        "slurm-init-seconds-before-status-checks: 2\n"
    )
    return lambda *args, **kwargs: run_tiny(
        *args, profile="slurm", SNAKEMAKE_PROFILE=str(tmp_path), **kwargs
    )


def jobs(folder) -> list[dict[str, str]]:
    """What SLURM knows of the jobs of the checkout at `folder`, finished ones too."""
    lines = subprocess.run(
        ["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True
    ).stdout
    known = [
        dict(word.split("=", 1) for word in line.split() if "=" in word)
        for line in lines.splitlines()
    ]
    return [job for job in known if job.get("WorkDir", "").startswith(str(folder))]


def test_failed_job_is_reported_with_its_notebooks_error(run_on_slurm, tmp_path):
    folder = checkout(tmp_path / "whole")
    params = folder / "params/tiny.yaml"
    params.write_text(params.read_text().replace("patients: 48", "patients: 0"))
    assert run_on_slurm(folder) == 1
    assert [job["JobState"] for job in jobs(folder)] == ["FAILED"]
    log = (folder / "log.txt").read_text()
    assert "01_prepare_data.ipynb failed in cell" in log
    assert (
        "StudyError: builtin: patients is 0; it must be finite and at least 27" in log
    )
    assert "error: study 'tiny' is not finished" in log


def test_killed_study_is_finished_by_a_second_run_and_a_third_submits_nothing(
    run_on_slurm, tmp_path
):
    folder = checkout(tmp_path / "whole")
    params = (
        folder / "params/tiny.yaml"
    )  # long enough that no job ends between the kill and the second run
    text = params.read_text().replace("epochs: 3, batch", "epochs: 100, batch")
    params.write_text(
        text
        + "resources: {pretrain: {mem_mb: 3000, runtime: 90}, evaluate: {gpus: 0}}\n"
    )
    assert (
        run_on_slurm(
            folder, kill_after="outputs/tiny/runs/*/*/*/checkpoint.safetensors"
        )
        != 0
    )
    left = [
        job["JobId"]
        for job in jobs(folder)
        if job["JobState"] in ("PENDING", "RUNNING")
    ]
    assert left
    assert run_on_slurm(folder) == 0
    robust = pd.read_csv(folder / "outputs/tiny/tables/robust_auroc.csv")
    assert robust["auroc_shared"].between(0, 1).all()
    assert "<html" in (folder / "outputs/tiny/report/index.html").read_text()
    # Jobs that nobody waited for were cancelled before the same were sent again.
    assert all(
        (job["JobState"] == "CANCELLED") == (job["JobId"] in left)
        for job in jobs(folder)
    )
    done = [job for job in jobs(folder) if job["JobState"] == "COMPLETED"]
    keys = ("MinMemoryNode", "TimeLimit", "TresPerJob")
    asked = Counter((job["Comment"].split("_")[1], *map(job.get, keys)) for job in done)
    assert asked[("prepare", "8000M", "04:00:00", None)] == 1
    assert asked[("pretrain", "3000M", "01:30:00", "gres:gpu:1")] == 2
    assert asked[("evaluate", "8000M", "1-00:00:00", None)] == 2
    assert asked[("figures", "8000M", "04:00:00", None)] == 1
    assert len(done) == 6  # pages are made by the waiting process
    assert run_on_slurm(folder) == 0
    assert len(jobs(folder)) == len(done) + len(left)


def test_a_plugin_and_data_of_ones_own_reach_every_job(run_on_slurm, tmp_path):
    folder, plugin = checkout(tmp_path / "whole"), tmp_path / "my_data.py"
    plugin.write_text(shown("my_data.py"))
    write_ward(tmp_path / "ward7")
    params = folder / "params/tiny.yaml"
    head, tail = params.read_text().split("  builtin:")
    (mine,) = re.findall(
        r"  ward7: .*\n", shown("params/ward7.yaml").replace("~", str(tmp_path))
    )
    params.write_text(head + mine + tail[tail.index("arms:") :])
    assert run_on_slurm(folder, ECGSTUDY_PLUGINS=str(plugin)) == 0
    done = Counter(
        (job["Comment"].split("_")[1], job["JobState"]) for job in jobs(folder)
    )
    steps = {"prepare": 1, "pretrain": 2, "evaluate": 2, "figures": 1}
    assert done == {(step, "COMPLETED"): n for step, n in steps.items()}
    robust = pd.read_csv(folder / "outputs/tiny/tables/robust_auroc.csv")
    assert set(robust["dataset"]) == {"ward7"}
    assert robust["auroc_shared"].between(0, 1).all()
    # Jobs and the waiting process see the same files, and so make the same keys.
    data = folder / "outputs/tiny/data/ward7"
    assert read_json(data / "card.json")["key"] == read_json(data / "run.json")["key"]
    assert run_on_slurm(folder, ECGSTUDY_PLUGINS=str(plugin)) == 0
    assert len(jobs(folder)) == 6
