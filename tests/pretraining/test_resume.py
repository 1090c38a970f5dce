"""Runs that were interrupted, killed, finished or damaged, and are started again."""

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import toy_records, toy_run

from ecgstudy.errors import StudyError
from ecgstudy.files import write_json
from ecgstudy.models.checkpoints import load_tensors, write_tensors
from ecgstudy.pretraining import loop as training
from ecgstudy.pretraining.loop import pretrain

RECORDS = toy_records()
STEPS = 5  # 80 training records in batches of 16


def weights(folder):
    return (folder / "encoder.safetensors").read_bytes()


def interrupt_at(monkeypatch, last):
    """Ctrl-C in the step after `last` steps; returns the list that counts them."""
    steps, step = [], training.train_step

    def counted(*given):
        if len(steps) == last:
            raise KeyboardInterrupt
        steps.append(None)
        return step(*given)

    monkeypatch.setattr(training, "train_step", counted)
    return steps


def pretrain_until(monkeypatch, last, run, folder):
    """Start the run and interrupt it after `last` steps."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, last)
        with pytest.raises(KeyboardInterrupt):
            pretrain(run, RECORDS, folder)


@pytest.mark.parametrize("precision", ["float32", "auto"])
@pytest.mark.parametrize(
    "arm", ["rocl-ip-hn", "supervised", "dynacl", "swaro", "rocl-hn-shuffled", "ascl"]
)
def test_an_interrupted_run_continues_to_the_same_bits(
    arm, precision, monkeypatch, tmp_path
):
    run = toy_run(arm, epochs=3, precision=precision)
    whole = pretrain(run, RECORDS, tmp_path / "whole")
    pretrain_until(monkeypatch, STEPS + 2, run, tmp_path / "cut")
    assert not (tmp_path / "cut" / "encoder.safetensors").exists()
    with monkeypatch.context() as patch:
        steps = interrupt_at(patch, None)
        history = pretrain(run, RECORDS, tmp_path / "cut")
    assert len(steps) == 2 * STEPS, "the first epoch must not be trained again"
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    timeless = [
        [{**entry, "seconds": 0} for entry in entries] for entries in (history, whole)
    ]
    assert timeless[0] == timeless[1]


def test_an_interruption_right_after_a_checkpoint_loses_nothing(monkeypatch, tmp_path):
    run, save = toy_run("rocl-hn", epochs=2), training.save_progress

    def save_and_stop(*given):
        save(*given)
        raise KeyboardInterrupt

    pretrain(run, RECORDS, tmp_path / "whole")
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(training, "save_progress", save_and_stop)
            with pytest.raises(KeyboardInterrupt):
                pretrain(run, RECORDS, tmp_path / "cut")
    with monkeypatch.context() as patch:
        steps = interrupt_at(patch, None)
        assert len(pretrain(run, RECORDS, tmp_path / "cut")) == 2
    assert steps == [], "both epochs are in the checkpoint"
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from toy import toy_records, toy_run
from ecgstudy.models import checkpoints
from ecgstudy.pretraining import loop as training

def kill_at(module, name, call):
    calls, function = [], getattr(module, name)
    def counted(*given, **options):
        calls.append(None)
        if len(calls) == call:
            if name == "write_tensors":
                Path(given[0]).write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **options)
    setattr(module, name, counted)

folder, threads, where, call = sys.argv[1:]
torch.set_num_threads(int(threads))
kill_at(training if where == "train_step" else checkpoints, where, int(call))
training.pretrain(toy_run("rocl-ip", epochs=3), toy_records(), Path(folder))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "call"), [("train_step", STEPS + 3), ("write_tensors", 2)]
)
def test_a_run_killed_in_a_step_or_while_writing_continues_to_the_same_bits(
    where, call, monkeypatch, tmp_path
):
    cut, run = tmp_path / "cut", toy_run("rocl-ip", epochs=3)
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(cut),
        str(torch.get_num_threads()),
        where,
        str(call),
    ]
    assert (
        subprocess.run(command, cwd=Path(__file__).parent).returncode == -signal.SIGKILL
    )
    assert (cut / "checkpoint.safetensors").exists()
    assert not (cut / "encoder.safetensors").exists()
    with monkeypatch.context() as patch:
        steps = interrupt_at(patch, None)
        assert len(pretrain(run, RECORDS, cut)) == 3
    assert len(steps) == 2 * STEPS, "only the epoch that was cut, and the last"
    assert not list(cut.glob(".*")), "nothing half-written is left"
    pretrain(run, RECORDS, tmp_path / "whole")
    assert weights(cut) == weights(tmp_path / "whole")


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """A folder whose run was interrupted after its first epoch, and the run."""
    run = toy_run("simclr", epochs=2)
    pretrain_until(monkeypatch, STEPS, run, tmp_path)
    return tmp_path, run


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(2000))


def pickled(path):
    path.write_bytes(pickle.dumps({"model": 1}))


def of_another_model(path):
    tensors, note = load_tensors(path)
    del tensors["model.projector.out.bias"]
    write_tensors(path, tensors, note)


def of_a_gpu(path):
    """As a GPU would have stored it: a generator's state takes 16 bytes there."""
    tensors, note = load_tensors(path)
    streams = {
        name: tensor[:16]
        for name, tensor in tensors.items()
        if name.startswith("stream.")
    }
    write_tensors(path, tensors | streams, note)


@pytest.mark.parametrize(
    "damage", [truncated, garbage, pickled, of_another_model, of_a_gpu]
)
def test_a_damaged_checkpoint_is_one_error_that_names_it(damage, stopped):
    folder, run = stopped
    damage(folder / "checkpoint.safetensors")
    with pytest.raises(StudyError, match=r"checkpoint\.safetensors"):
        pretrain(run, RECORDS, folder)


def test_a_checkpoint_of_other_parameters_starts_anew(stopped, tmp_path_factory):
    folder, _ = stopped
    other, elsewhere = (
        toy_run("simclr", epochs=2, temperature=0.2),
        tmp_path_factory.mktemp("other"),
    )
    assert len(pretrain(other, RECORDS, folder)) == 2
    pretrain(other, RECORDS, elsewhere)
    assert weights(folder) == weights(elsewhere)


def test_a_finished_run_is_trained_again_only_when_parameters_or_the_key_change(
    monkeypatch, tmp_path
):
    def steps_of(run, key):
        write_json(tmp_path / "run.json", {"key": key})
        with monkeypatch.context() as patch:
            steps = interrupt_at(patch, None)
            history = pretrain(run, RECORDS, tmp_path)
        assert len(history) == 1
        return len(steps)

    run, other = toy_run("simclr"), toy_run("simclr", temperature=0.2)
    assert [steps_of(run, "a"), steps_of(run, "a"), steps_of(run, "b")] == [
        STEPS,
        0,
        STEPS,
    ]
    assert [steps_of(other, "b"), steps_of(other, "b"), steps_of(run, "b")] == [
        STEPS,
        0,
        STEPS,
    ]
    (tmp_path / "encoder.json").write_text("{")
    assert [steps_of(run, "b"), steps_of(run, "b")] == [STEPS, 0]


def test_a_checkpoint_of_another_key_starts_anew(stopped, monkeypatch):
    folder, run = stopped
    write_json(folder / "run.json", {"key": "new"})
    steps = interrupt_at(monkeypatch, None)
    pretrain(run, RECORDS, folder)
    assert len(steps) == 2 * STEPS
