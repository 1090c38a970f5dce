"""Records larger than the memory are used through their memory map."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_robustness import SHORT
from toy import toy_records, toy_run

from ecgstudy.files import SUMS
from ecgstudy.pretraining.state import Data
from ecgstudy.records import load_records, save_records

SAMPLES, RECORDS, MB = 1000, 100_000, 2**20
"""Two leads: 800 MB."""

CHILD = """
import resource, sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/evaluation"]
import numpy as np, torch
from test_memory import FREE, run
from toy import toy_records
from ecgstudy.records import load_records
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.running.launch import pretrain

torch.set_num_threads(1)
folder = Path({folder!r})
pretrain(run(), toy_records(), folder / "small")  # imports what is imported late
evaluate(run(), toy_records(), folder / "small" / "slf", "slf")
status = open("/proc/self/status").read()
used = int(status.partition("VmData:")[2].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + FREE, used + FREE))
records = load_records(folder / "data")
assert records.signals.nbytes > 2 * FREE
try:
    np.array(records.signals)
except MemoryError:
    pretrain(run(), records, folder / "run")
    print(evaluate(run(), records, folder / "run" / "slf", "slf")["attack"].nunique())
"""
FREE = 380 * MB


def run():
    """A short pretraining and evaluation, which read every training record once."""
    one = toy_run("rocl", records_per_epoch=32)
    views = one.study.views.model_copy(update={"crop_s": 1.0})
    update = {
        "views": views,
        "evaluation": SHORT.model_copy(update={"check_records": 4, "max_records": 8}),
    }
    return type(one)(
        one.study.model_copy(update=update), one.dataset, one.arm, one.seed
    )


def write_large(folder: Path) -> None:
    """Prepared records of which most signals take no room on the disk."""
    few = toy_records()
    save_records(few, folder)
    (folder / SUMS).unlink()  # other files take the place of these
    train = RECORDS - (few.table["split"] != "train").sum()
    rows = np.r_[np.arange(train) % 80, np.arange(80, len(few))]
    table = few.table.iloc[rows].reset_index(drop=True)
    table["record"] = [f"r{i}" for i in range(RECORDS)]
    table.to_parquet(folder / "table.parquet")
    np.save(folder / "labels.npy", few.labels[rows])
    signals = np.lib.format.open_memmap(
        folder / "signals.npy", "w+", np.float32, (RECORDS, 2, SAMPLES)
    )
    noise = np.random.default_rng(0).normal(0, 0.3, (80, 2, SAMPLES))
    for start in (0, RECORDS - 80):
        signals[start : start + 80] = noise
    signals.flush()


@pytest.mark.skipif(
    sys.platform != "linux", reason="memory is bounded by Linux's means"
)
def test_records_larger_than_memory_are_trained_on_and_evaluated(tmp_path):
    write_large(tmp_path / "data")
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    call = [sys.executable, "-W", "error", "-c", code]
    # One arena: what several keep of freed memory differs by 100 MB from run to run.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        int(done.stdout) >= 3
    )  # attacks, after a copy of all signals had failed for want of memory


def test_training_signals_of_prepared_records_are_read_in_place(tmp_path):
    records = toy_records()
    save_records(records, tmp_path)
    data = Data.of(load_records(tmp_path), torch.device("cpu"))
    train = records.split("train")
    np.testing.assert_array_equal(data.signals.numpy(), train.signals)
    index = torch.tensor([5, 2, 79])
    np.testing.assert_array_equal(
        data.take(index).numpy(), train.signals[index.numpy()]
    )
    assert data.signals.numpy().base is not None
    assert not np.shares_memory(data.take(index).numpy(), data.signals.numpy())
