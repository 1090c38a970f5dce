"""Pretraining in two processes under torchrun: its files, its failures, and what a kill leaves."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_records, toy_run

from ecgstudy.errors import StudyError
from ecgstudy.models.checkpoints import load_tensors
from ecgstudy.records import load_records, save_records
from ecgstudy.running import launch
from ecgstudy.running.launch import pretrain

RECORDS = toy_records()


def in_two(run):
    return replace(run, study=run.study.model_copy(update={"processes": 2}))


@pytest.fixture
def in_the_second(tmp_path, monkeypatch):
    """Make the second process do something in its seventh step, the second of its second epoch."""

    def plug(action):
        code = f"""
import os, signal, time
from pathlib import Path
from ecgstudy.pretraining import loop as training

Path({str(tmp_path)!r}, "process-" + os.environ["RANK"]).write_text(str(os.getpid()))
steps, step = [], training.train_step

def seventh(*given):
    steps.append(None)
    if len(steps) == 7 and os.environ["RANK"] == "1":
        {action}
    return step(*given)

training.train_step = seventh
"""
        (tmp_path / "plugin.py").write_text(code)
        monkeypatch.setenv("ECGSTUDY_PLUGINS", str(tmp_path / "plugin.py"))

    return plug


def all_end(folder, within_s=60):
    """Whether the processes that wrote their ids to `folder` have ended, or do soon."""
    left, until = (
        [int(path.read_text()) for path in folder.glob("process-*")],
        time.monotonic() + within_s,
    )
    assert len(left) == 2
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
    return not left


def test_two_processes_write_the_files_of_one(tmp_path):
    # Without adversaries, whose signs of tiny gradients turn float32's rounding into differences of 1 %.
    run, prepared = toy_run("simclr", epochs=2), tmp_path / "data"
    save_records(RECORDS, prepared)
    histories = [
        pretrain(r, load_records(prepared), tmp_path / str(r.processes))
        for r in (run, in_two(run))
    ]
    one, two = ({path.name for path in (tmp_path / n).iterdir()} for n in "12")
    result = {"encoder.json", "encoder.safetensors", "history.jsonl"}
    assert one == two == result | {"SHA256SUMS"}
    for ours, theirs in zip(*histories, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    weights = [load_tensors(tmp_path / n / "encoder.safetensors")[0] for n in "12"]
    for name, value in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], value, rtol=2e-3, atol=1e-4
        )  # stored as float16


def test_prepared_records_are_read_where_they_are_and_others_are_saved(tmp_path):
    save_records(RECORDS, tmp_path / "data")
    prepared, job = load_records(tmp_path / "data"), tmp_path / "job"
    assert launch.prepared_folder(prepared, job) == tmp_path / "data"
    for records in (prepared.split("train"), RECORDS):
        assert launch.prepared_folder(records, job) == job
        received = load_records(job)
        np.testing.assert_array_equal(received.signals, records.signals)
        np.testing.assert_array_equal(received.labels, records.labels)
        assert received.table.equals(records.table)


def test_more_processes_than_gpus_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    run = in_two(toy_run("simclr"))
    run = replace(run, study=run.study.model_copy(update={"device": "cuda"}))
    with pytest.raises(
        StudyError, match="processes is 2, but torch finds only 1 GPUs; use 1"
    ):
        pretrain(run, RECORDS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "said"),
    [
        ('raise ValueError("no lead")', "^rocl seed 0: one of 2 processes failed with ValueError: no lead$"),
        ('raise training.StudyError("record 7 is flat")', "^record 7 is flat$"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "rocl seed 0: one of 2 processes"),
    ],
)  # fmt: skip
def test_a_process_that_fails_ends_all_with_its_error(
    action, said, in_the_second, tmp_path
):
    in_the_second(action)
    with pytest.raises(StudyError, match=said):
        pretrain(in_two(toy_run("rocl", epochs=3)), RECORDS, tmp_path / "run")
    assert all_end(tmp_path, within_s=5)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [
        "checkpoint.safetensors"
    ]


STARTER = """
import sys
from pathlib import Path
from test_launch import RECORDS, in_two
from toy import toy_run
from ecgstudy.running.launch import pretrain
pretrain(in_two(toy_run("rocl", epochs=3)), RECORDS, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_starter_leaves_no_process_and_the_run_continues_to_the_same_bits(
    in_the_second, tmp_path, monkeypatch
):
    run, cut, whole = (
        in_two(toy_run("rocl", epochs=3)),
        tmp_path / "cut",
        tmp_path / "whole",
    )
    in_the_second(
        'os.kill(int(os.environ["STARTER"]), signal.SIGKILL); time.sleep(600)'
    )
    command = [
        "sh",
        "-c",
        'STARTER=$$ exec "$0" "$@"',
        sys.executable,
        "-c",
        STARTER,
        str(cut),
    ]
    assert (
        subprocess.run(command, cwd=Path(__file__).parent).returncode == -signal.SIGKILL
    )
    assert all_end(tmp_path)
    assert [path.name for path in cut.iterdir()] == ["checkpoint.safetensors"]
    monkeypatch.delenv("ECGSTUDY_PLUGINS")
    assert [entry["epoch"] for entry in pretrain(run, RECORDS, cut)] == [1, 2, 3]
    pretrain(run, RECORDS, whole)
    assert (cut / "encoder.safetensors").read_bytes() == (
        whole / "encoder.safetensors"
    ).read_bytes()
