"""How Snakemake is called, what it says, what a killed one leaves."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from test_workflow import checkout, run_tiny

from ecgstudy.errors import StudyError
from ecgstudy.files import write_json
from ecgstudy.running import engine, workflow
from ecgstudy.running.cache import steps
from ecgstudy.running.processes import study_lock
from ecgstudy.study import ROOT, load_study


@pytest.fixture
def study(tmp_path):
    """The tiny study in a folder of its own."""
    (tmp_path / "tiny.yaml").write_text((ROOT / "params/tiny.yaml").read_text())
    return load_study(tmp_path / "tiny.yaml")


def test_a_study_is_run_by_one_process_at_a_time(tmp_path):
    home = tmp_path / "tiny"
    code = (
        "import pathlib, sys, time\n"
        "from ecgstudy.running.processes import study_lock\n"
        "with study_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(
                StudyError, match=f"'tiny' is being run by process {other.pid}"
            ),
            study_lock(home),
        ):
            pytest.fail("the lock was given twice")
        other.kill()
        other.wait()
    with study_lock(home) as killed:  # the kernel let go of it
        assert killed
        assert (home / ".lock").read_text() == str(os.getpid())
    with study_lock(home) as killed:
        assert not killed


def test_a_run_waits_for_jobs_that_a_killed_one_left_and_says_so(tmp_path, capfd):
    job = (
        "import pathlib, sys\n"
        "from ecgstudy.running.processes import at_work\n"
        "with at_work(pathlib.Path(sys.argv[1])): print('at work', flush=True); sys.stdin.read()"
    )
    call = [sys.executable, "-c", job, str(tmp_path / "tiny/logs")]
    engine.await_left_over_jobs(tmp_path / "tiny", False)  # there are none
    assert "waiting" not in capfd.readouterr().err
    with subprocess.Popen(
        call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as left:
        assert left.stdout.readline() == "at work\n"
        run = threading.Thread(
            target=engine.await_left_over_jobs, args=[tmp_path / "tiny", True]
        )
        run.start()
        run.join(1)
        assert run.is_alive()
        left.kill()
        run.join(60)
        assert not run.is_alive()
    assert (
        "jobs of a run that was killed are still running; waiting"
        in capfd.readouterr().err
    )


def dry_run(study, wanted, profile):
    """What Snakemake would run for `wanted`, and how."""
    study.paths.home.mkdir(parents=True, exist_ok=True)
    call = engine.snakemake(study, wanted, profile, None)
    show = ["--dry-run", "--printshellcmds", "--quiet", "progress"]
    ran = subprocess.run([*call, *show], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize(("profile", "slots"), [("gpu", 2), ("slurm", 0)])
def test_each_profile_starts_the_same_jobs_with_the_resources_of_the_params(
    profile, slots, study
):
    printed = dry_run(study, list(steps(study).values()), profile)
    for notebook in ("02_pretrain", "03_evaluate"):
        for arm in study.arms:
            command = rf"-m ecgstudy job --gpus 1 --jobs-per-gpu {slots} "
            command += rf"\S+/{notebook}.ipynb \S+ params=\S+"
            command += rf" dataset=builtin arm={arm} seed=0\b"
            assert len(re.findall(command, printed)) == 1
    asked = Counter(
        re.findall(r"resources: .*runtime=(\d+), gpu=(\d), .*mem_mb=(\d+)\b", printed)
    )
    assert asked == {("1440", "1", "8000"): 4, ("240", "0", "8000"): 2}


def finish(*done):
    for step in done:
        write_json(step.marker, {"key": step.key, "seconds": 1.0})


def rules(printed):
    return Counter(re.findall(r"^rule (\w+):", printed, re.MULTILINE))


def test_only_steps_without_a_marker_are_made_whatever_the_files_times(study):
    every = list(steps(study).values())
    finish(*every)
    for number, step in enumerate(every):
        os.utime(step.marker, (1.7e9, 1.7e9 - number))
    evaluated = study.paths.protocol("builtin", "rocl", 0, "slf") / "provenance.json"
    assert rules(dry_run(study, every, "local")) == {}
    evaluated.unlink()
    assert rules(dry_run(study, every, "local")) == {"evaluate": 1, "figures": 1}


def test_data_are_prepared_for_steps_that_are_made_and_put_no_other_out_of_date(study):
    every = steps(study)
    _, *others = every.values()
    finish(*others)
    assert rules(dry_run(study, others, "local")) == {}
    first = [step for step in others if "rocl" in step.arguments.values()]
    made = [*first, others[-1]]
    for step in made:
        step.marker.unlink()
    found = rules(dry_run(study, others, "local"))
    assert found == {"prepare": 1, "pretrain": 1, "evaluate": 1, "figures": 1}


def test_the_gpu_profile_without_a_gpu_is_one_error_before_anything_runs(
    study, monkeypatch
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(StudyError, match="no GPU to run on: nvidia-smi lists 0"):
        workflow.run_study(study, profile="gpu")


@pytest.fixture
def pretended(monkeypatch):
    """Lets a Python program take Snakemake's place."""

    def take(code):
        call = [sys.executable, "-c", code]
        monkeypatch.setattr(engine, "snakemake", lambda *given: call)

    return take


def test_what_becomes_of_each_step_is_one_line_and_a_failure_is_one_error(
    study, pretended, capsys
):
    prepared, pretrained, *others = steps(study).values()
    finish(*others[:1])
    pretended(
        "import json, pathlib, time\n"
        f"folder, logs = pathlib.Path({str(prepared.folder)!r}), pathlib.Path({str(study.paths.home / 'logs')!r})\n"
        f"(logs / '{prepared.job}.status').write_text('reading')\n"
        "time.sleep(1); folder.mkdir(parents=True)\n"
        "(folder / 'provenance.json').write_text(json.dumps({'seconds': 5}))\n"
        f"(logs / '{pretrained.job}.status').write_text('failed: no luck')\n"
        "print('Traceback'); time.sleep(1)"
    )
    wanted = [prepared, pretrained, others[1]]
    with pytest.raises(StudyError) as caught:
        engine.make(study, wanted, profile="local")
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "prepare builtin: reading · 1 of 4 done · about 3 s left",
        "2 of 4 done: prepare builtin in 5 s",
        "failed: pretrain builtin rocl seed 0: no luck",
    ]
    log = study.paths.home / "logs/snakemake.log"
    assert str(caught.value) == (
        "pretrain builtin rocl seed 0: no luck (1 failed, 1 wait; what is done is kept;"
        f" details: {log})"
    )
    assert log.read_text() == "Traceback\n"


def test_an_error_of_snakemake_itself_is_one_line(study, pretended):
    pretended("import sys; sys.exit('a first line\\nNo space left')")
    with pytest.raises(StudyError, match=r"^No space left \(1 failed, 5 wait; .*\)$"):
        engine.make(study, list(steps(study).values()), profile="local")


def test_snakemake_outlives_a_killed_run_as_one_of_its_jobs(study, tmp_path):
    """A run that comes after waits for it, as for what it started."""
    job = "import sys, time; print('at work', flush=True); time.sleep(60)"
    runner = (
        "import sys\n"
        "from ecgstudy.running import engine\n"
        "from ecgstudy.study import load_study\n"
        f"engine.snakemake = lambda *given: [sys.executable, '-c', {job!r}]\n"
        "engine.make(load_study(sys.argv[1]), [], profile='local')"
    )
    logs = study.paths.home / "logs"
    call = [sys.executable, "-c", runner, str(study.file)]
    with subprocess.Popen(call, start_new_session=True) as killed:
        while not (log := logs / "snakemake.log").exists() or not log.read_text():
            time.sleep(0.05)
        killed.kill()
        killed.wait()
        given = [study.paths.home, True]
        run = threading.Thread(target=engine.await_left_over_jobs, args=given)
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
