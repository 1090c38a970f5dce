"""Slots on GPUs that are names only: their jobs never ask torch."""

import os
import select
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from itertools import accumulate

import pytest
import torch

from benchmarks.mock_gpu import mock_gpu
from ecgstudy.devices import pick_device
from ecgstudy.errors import StudyError
from ecgstudy.running import gpus

WRITER = """
import os, sys, time
for sign, pause in (("+", 0.1), ("-", 0)):
    with open(sys.argv[1], "a") as log:
        log.write(sign + os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
    time.sleep(pause)
"""
HOLDER = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
HOLD = """
import pathlib, sys
from ecgstudy.errors import StudyError
from ecgstudy.running.gpus import held

jobs_per_gpu, wanted, slots, code, *arguments = sys.argv[1:]
try:
    with held(int(jobs_per_gpu), int(wanted), pathlib.Path(slots)):
        sys.argv = ["-c", *arguments]
        exec(code)
except StudyError as error:
    sys.exit(f"error: {error}")
"""
SAYS_WHAT_IT_HOLDS = "import os; print(os.environ.get('ECGSTUDY_GPUS'))"


@pytest.fixture
def job(tmp_path):
    """Starts a job of Python code on one of two GPUs; what still runs at the end is killed."""

    def start(code, *arguments, jobs_per_gpu=2, wanted=1):
        given = [str(jobs_per_gpu), str(wanted), str(tmp_path / "slots"), code]
        call = [sys.executable, "-c", HOLD, *given, *map(str, arguments)]
        env = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b",
            "PATH": "",
            gpus.HELD: "GPU-outer",
        }
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = stack.enter_context(
            subprocess.Popen(call, env=env, text=True, **pipes)
        )
        stack.callback(process.kill)
        return process

    with ExitStack() as stack:
        yield start


def test_many_jobs_all_run_and_never_more_than_two_on_a_gpu(job, tmp_path):
    log = tmp_path / "log"
    processes = [job(WRITER, log) for _ in range(24)]
    assert [process.wait() for process in processes] == [0] * 24
    events = log.read_text().split()
    assert Counter(event[0] for event in events) == {"+": 24, "-": 24}
    for gpu in ("GPU-a", "GPU-b"):
        running = list(
            accumulate(
                {"+": 1, "-": -1}[event[0]] for event in events if event[1:] == gpu
            )
        )
        assert 1 <= max(running) <= 2


def test_every_slot_is_used_the_emptiest_gpu_first_and_a_killed_holder_frees_its_own(
    job,
):
    pairs = [
        {(held := job(HOLDER)): held.stdout.readline().strip() for _ in range(2)}
        for _ in range(2)
    ]
    for pair in pairs:
        assert set(pair.values()) == {"GPU-a", "GPU-b"}
    waiting = job(HOLDER)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)
    assert not select.select([waiting.stdout], [], [], 0)[0]  # it has not started
    victim = next(process for process, gpu in pairs[1].items() if gpu == "GPU-b")
    victim.kill()
    assert waiting.stdout.readline() == "GPU-b\n"


def test_a_job_of_two_gpus_waits_for_all_their_slots(job):
    holder = job(HOLDER)
    assert holder.stdout.readline() in ("GPU-a\n", "GPU-b\n")
    both = job(HOLDER, wanted=2)
    assert not select.select([both.stdout], [], [], 1.5)[0]
    holder.kill()
    assert set(both.stdout.readline().strip().split(",")) == {"GPU-a", "GPU-b"}
    assert not select.select([job(HOLDER).stdout], [], [], 1.5)[0]


def test_jobs_without_a_gpu_see_none_and_without_slots_all(job):
    assert job(HOLDER, wanted=0).stdout.readline() == "\n"
    for _ in range(3):
        assert job(HOLDER, jobs_per_gpu=0).stdout.readline() == "GPU-a,GPU-b\n"


def test_a_job_is_told_what_it_holds_and_nothing_that_another_holds(job):
    assert job(SAYS_WHAT_IT_HOLDS).stdout.readline() in ("GPU-a\n", "GPU-b\n")
    assert job(SAYS_WHAT_IT_HOLDS, wanted=0).stdout.readline() == "None\n"
    assert job(SAYS_WHAT_IT_HOLDS, jobs_per_gpu=0).stdout.readline() == "None\n"
    both = job(SAYS_WHAT_IT_HOLDS, wanted=2).stdout.readline().strip()
    assert set(both.split(",")) == {"GPU-a", "GPU-b"}


def test_auto_is_the_gpu_that_the_job_holds_or_an_error_but_the_cpu_is_the_cpu(
    monkeypatch,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    monkeypatch.setenv(gpus.HELD, "GPU-a")
    for wanted in ("auto", "cuda"):
        with pytest.raises(
            StudyError,
            match=r"this job holds GPU GPU-a, but torch .* finds none; install",
        ):
            pick_device(wanted)
    assert pick_device("cpu").type == "cpu"
    with mock_gpu():
        assert pick_device("auto").type == "cuda"


def test_more_gpus_than_there_are_is_one_error(job):
    process = job(HOLDER, wanted=3)
    assert process.wait() == 1
    error = process.stderr.read()
    assert (
        error
        == "error: a job asks for 3 GPUs (resources in the params file), but 2 are here\n"
    )


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A fake driver with GPUs 0 and 1."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-x'\necho '1, GPU-y'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["GPU-x", "GPU-y"]), ("1", ["GPU-y"]), ("1,0", ["GPU-y", "GPU-x"]), ("MIG-z", ["MIG-z"]),
        ("1, 0", ["GPU-y", "GPU-x"]), (" 1 ,", ["GPU-y"]), ("1,-1,0", ["GPU-y"]), ("0,GPU-x", ["GPU-x"]),
        ("0,1,0", ["GPU-x", "GPU-y"]),
    ],
)  # fmt: skip
def test_one_gpu_has_one_name_however_it_is_chosen(monkeypatch, visible, names):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.visible_gpus() == names


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize("hidden", ["-1", "-1,0", "", " "])
def test_gpus_may_all_be_hidden(monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(
        StudyError, match=f"nvidia-smi lists 2, CUDA_VISIBLE_DEVICES is '{hidden}'; use"
    ):
        gpus.visible_gpus()


@pytest.mark.usefixtures("nvidia_smi")
def test_jobs_go_to_the_gpus_where_there_are_some_that_are_not_hidden(monkeypatch):
    assert gpus.default_profile() == "gpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.default_profile() == "local"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert gpus.default_profile() == "local"


def test_no_gpu_is_one_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(
        StudyError,
        match="no GPU to run on: nvidia-smi lists 0, CUDA_VISIBLE_DEVICES is None",
    ):
        gpus.visible_gpus()
