"""How Snakemake is called: profiles, one run of a study at a time, what a killed one leaves."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
from test_workflow import checkout, run_tiny

from ecgstudy.errors import StudyError
from ecgstudy.running import engine, workflow
from ecgstudy.study import ROOT, Paths, load_study


def test_a_study_is_run_by_one_process_at_a_time(tmp_path):
    paths = Paths("tiny", tmp_path)
    code = (
        "import pathlib, sys, time\n"
        "from ecgstudy.study import Paths\n"
        "from ecgstudy.running.engine import study_lock\n"
        "with study_lock(Paths('tiny', pathlib.Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(
                StudyError, match=f"'tiny' is being run by process {other.pid}"
            ),
            engine.study_lock(paths),
        ):
            pytest.fail("the lock was given twice")
        other.kill()
        other.wait()
    with engine.study_lock(paths):  # the kernel let go of it
        assert (tmp_path / "tiny/.lock").read_text() == str(os.getpid())


def test_a_run_waits_for_jobs_that_a_killed_one_left_and_says_so(tmp_path, capfd):
    job = (
        "import pathlib, sys\n"
        "from ecgstudy.running.jobs import at_work\n"
        "with at_work(pathlib.Path(sys.argv[1])): print('at work', flush=True); sys.stdin.read()"
    )
    call = [sys.executable, "-c", job, str(tmp_path / "tiny/logs")]
    engine.await_left_over_jobs(tmp_path / "tiny")  # there are none
    assert "waiting" not in capfd.readouterr().err
    with subprocess.Popen(
        call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as left:
        assert left.stdout.readline() == "at work\n"
        run = threading.Thread(
            target=engine.await_left_over_jobs, args=[tmp_path / "tiny"]
        )
        run.start()
        run.join(1)
        assert run.is_alive()
        left.kill()
        run.join(60)
        assert not run.is_alive()
    assert (
        "jobs of a run that was killed are still at work; waiting"
        in capfd.readouterr().err
    )


def test_snakemake_outlives_a_killed_run_as_one_of_its_jobs(tmp_path):
    """A run that comes after waits for it, as for what it started."""
    engine_code = "import sys, time; print('at work', file=sys.stderr, flush=True); time.sleep(60)"
    runner = (
        "import pathlib, sys\n"
        "from ecgstudy.running import engine\n"
        "engine.profile_folder = pathlib.Path\n"
        "run = engine.subprocess.run\n"
        f"engine.subprocess.run = lambda call, **how: run([sys.executable, '-c', {engine_code!r}], **how)\n"
        "home = pathlib.Path(sys.argv[1])\n"
        "engine.snakemake(home, home, profile='.', cores=1, arguments=[])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", runner, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as killed:
        assert killed.stderr.readline() == "at work\n"
        killed.kill()
        killed.wait()
        run = threading.Thread(target=engine.await_left_over_jobs, args=[tmp_path])
        run.start()
        run.join(1)
        assert run.is_alive()
        os.killpg(killed.pid, signal.SIGKILL)  # Snakemake too
        run.join(60)
        assert not run.is_alive()


def test_profiles_are_found_by_name_or_path(tmp_path):
    assert engine.profile_folder("gpu") == ROOT / "profiles/gpu"
    (tmp_path / "config.yaml").write_text("cores: 3\n")
    assert engine.profile_folder(str(tmp_path)) == tmp_path
    with pytest.raises(
        StudyError, match="'gpus' is neither one of gpu, local, slurm nor a folder"
    ):
        engine.profile_folder("gpus")


@pytest.mark.parametrize(("profile", "slots"), [("gpu", 2), ("slurm", 0)])
def test_each_profile_starts_the_same_jobs_with_the_resources_of_the_params(
    profile, slots, tmp_path, capfd
):
    study, paths = load_study(ROOT / "params/tiny.yaml"), Paths("tiny", tmp_path)
    workflow.plan(study, paths)
    show = ["--dry-run", "--printshellcmds", "--quiet", "progress"]
    call = {"profile": profile, "cores": None, "arguments": show}
    assert engine.snakemake(paths.home, ROOT / "params/tiny.yaml", **call) == 0
    printed = capfd.readouterr().out
    for notebook in ("02_pretrain", "03_evaluate"):
        for arm in study.arms:
            command = (
                rf"-m ecgstudy.running.gpus {slots} 1 \S+ -m ecgstudy.running.papermill"
            )
            command += rf" \S+/{notebook}.ipynb \S+ \S+"
            assert (
                len(
                    re.findall(
                        rf"{command} dataset=builtin arm={arm} seed=0\b", printed
                    )
                )
                == 1
            )
    asked = Counter(
        re.findall(r"resources: .*runtime=(\d+), gpu=(\d), .*mem_mb=(\d+)\b", printed)
    )
    assert asked == {("1440", "1", "8000"): 4, ("240", "0", "8000"): 2}


def test_the_gpu_profile_without_a_gpu_is_one_error_before_anything_runs(
    monkeypatch, capsys
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (
        workflow.main(["study", str(ROOT / "params/tiny.yaml"), "--profile", "gpu"])
        == 1
    )
    assert capsys.readouterr().err.startswith(
        "error: no GPU to run on: nvidia-smi lists 0"
    )


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A pretended SLURM: `squeue` prints this file, `scancel` removes jobs from it and notes which."""
    cancel = f'echo "$@" >> {tmp_path}/cancelled; for job; do sed -i "/^$job /d" {tmp_path}/queue; done'
    for name, code in {"squeue": f"cat {tmp_path}/queue", "scancel": cancel}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "queue"


def test_left_over_jobs_of_this_study_alone_are_cancelled(queue, tmp_path):
    mine, other = (
        engine.job_prefix(tmp_path / name) for name in ("one/tiny", "two/tiny")
    )
    assert mine != other
    queue.write_text(f"1 {mine}_a\n2 {other}_b\n3 {mine}_c\n4 shell\n")
    engine.cancel_left_over_jobs(tmp_path / "one/tiny")
    assert (tmp_path / "cancelled").read_text() == "1 3\n"
    assert queue.read_text() == f"2 {other}_b\n4 shell\n"


def test_a_silent_slurm_is_an_error_as_jobs_may_be_left(queue, tmp_path):
    with pytest.raises(
        StudyError, match=r"a killed run may have left jobs in SLURM, but: .*squeue"
    ):
        engine.cancel_left_over_jobs(tmp_path / "tiny")  # there is no queue


@pytest.mark.slow
def test_a_study_with_the_gpu_profile_goes_through_all_notebooks(tmp_path):
    """The GPU is pretended, a name: its jobs hold it, and are told to compute on the CPU."""
    folder = checkout(tmp_path / "whole")
    with open(folder / "params/tiny.yaml", "a") as params:
        params.write(
            "device: cpu\nresources: {pretrain: {gpus: 1}, evaluate: {gpus: 1}}\n"
        )
    assert run_tiny(folder, profile="gpu", CUDA_VISIBLE_DEVICES="GPU-pretended") == 0
    assert "<html" in (folder / "outputs/tiny/report/index.html").read_text()
