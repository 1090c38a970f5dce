"""Pretraining: one loop for every arm, with checkpoints that continue exactly."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ecgstudy.errors import StudyError
from ecgstudy.files import check_sum, note_progress, read_json
from ecgstudy.models.checkpoints import (
    load_progress,
    load_state,
    load_tensors,
    save_encoder,
    save_progress,
)
from ecgstudy.models.encoders import count_parameters
from ecgstudy.params import TrainingOptions
from ecgstudy.pretraining.distributed import is_first, parallel
from ecgstudy.pretraining.setup import prepare_training
from ecgstudy.pretraining.state import Data, Log, State
from ecgstudy.pretraining.step import arm_loss, follow
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run

SCHEDULE_STEPS = 20
"""Schedules (DynACL's) move so many times, as the source's every 50 of 1,000 epochs."""

RESULT = ("encoder.safetensors", "encoder.json", "history.jsonl")
"""The files of a finished run."""


def pretrain(run: Run, records: EcgRecords, folder: Path) -> list[dict]:
    """Pretrain one encoder on the training split, or continue where it was interrupted.

    A run that `folder` already holds, with the same parameters and cache key, is not
    trained again. Writes ``encoder.safetensors``, ``encoder.json`` and
    ``history.jsonl``, and after every epoch a checkpoint from which a further call
    continues exactly. Of several processes each calls this function, and the first
    writes.

    Parameters
    ----------
    run
        Data set, arm, seed, and the study's options.
    records
        The prepared records of the data set.
    folder
        Where encoder, history and checkpoint go.

    Returns
    -------
    list of dict
        One entry an epoch: loss, seconds, learning rate, and what the loss logged.

    Raises
    ------
    StudyError
        When there are fewer training records than one batch, the loss stops being
        finite, or the checkpoint is damaged.
    """
    folder = Path(folder)
    history = read_finished(run, folder)
    if history is not None:
        return history
    state, data = prepare_training(run, records, folder)
    checkpoint = folder / "checkpoint.safetensors"
    history = _resume(state, checkpoint)
    loss = parallel(arm_loss, state.model)
    for epoch in tqdm(range(len(history), state.epochs), f"{run.arm} seed {run.seed}"):
        entry = _train_epoch(state, data, epoch, loss)
        history.append({"epoch": epoch + 1} | entry)
        done, value = f"epoch {epoch + 1} of {state.epochs}", entry["loss"]
        note_progress(f"{done}, loss {value:.3g}")
        if is_first():
            note = {"run": cache_entry(run, folder), "history": history}
            save_progress(checkpoint, state.model, state.optimizer, state.streams, note)
    if is_first():
        _save(state, data, records, history, folder)
        checkpoint.unlink(missing_ok=True)
    return history


def cache_entry(run: Run, folder: Path) -> dict:
    """What decides the encoder: the run's parameters and the key in ``run.json``."""
    return run.parameters() | {"key": read_json(folder / "run.json").get("key")}


def read_finished(run: Run, folder: Path) -> list[dict] | None:
    """History of the finished run in `folder`, if it is this run and undamaged."""
    if read_json(folder / "encoder.json").get("run") != cache_entry(run, folder):
        return None
    try:
        files = [check_sum(folder / name) for name in RESULT]
    except StudyError:
        return None
    if not all(file.exists() for file in files):
        return None
    tqdm.write(
        f"{folder}: trained before with these parameters; "
        "delete encoder.json to train it again"
    )
    return read_history(folder)


def read_history(folder: Path) -> list[dict]:
    """The history of a finished run, one entry an epoch."""
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _resume(state: State, checkpoint: Path) -> list[dict]:
    """Restore the checkpoint, if there is one of this run; returns its history."""
    if not checkpoint.exists():
        return []
    _, note = load_tensors(checkpoint)
    if note.get("run") != cache_entry(state.run, checkpoint.parent):
        tqdm.write(f"{checkpoint}: of other parameters or data; this run starts again")
        return []
    load_progress(checkpoint, state.model, state.optimizer, state.streams)
    return note["history"]


def _train_epoch(state: State, data: Data, epoch: int, loss: Callable) -> dict:
    """Train for one epoch; returns means over its steps."""
    started, options, available = time.perf_counter(), state.options, len(data.signals)
    size = options.batch_size
    count = min(options.records_per_epoch or available, available)
    steps = count // size
    if not steps:
        raise StudyError(
            f"{state.run.dataset}: {count} training records are fewer than one batch "
            f"of {size}; lower training.batch_size"
        )
    stream = state.streams["batches"]
    order = torch.randperm(available, generator=stream, device=state.device)
    totals: dict[str, Tensor] = {}
    for step in range(steps):
        done, total = epoch * steps + step, state.epochs * steps
        state.progress = SCHEDULE_STEPS * done // total / SCHEDULE_STEPS
        rate = _learning_rate(options, done, total)
        index = order[step * size : (step + 1) * size]
        for name, value in train_step(state, data, index, rate, loss).items():
            totals[name] = totals.get(name, 0) + value
    means = {name: float(total) / steps for name, total in totals.items()}
    if not math.isfinite(means["loss"]):
        raise StudyError(
            f"{state.run.arm} seed {state.run.seed}: the loss became {means['loss']} "
            f"in epoch {epoch + 1}; lower training.learning_rate"
        )
    seconds = time.perf_counter() - started
    return means | {"learning_rate": rate, "steps": steps, "seconds": seconds}


def train_step(
    state: State, data: Data, index: Tensor, rate: float, loss: Callable = arm_loss
) -> Log:
    """One step of the optimiser; returns the detached loss and what it logs.

    Parameters
    ----------
    state, data
        What is trained, on what.
    index
        (batch,): the training records.
    rate
        Learning rate.
    loss
        `arm_loss`, or the same for several processes.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    value, log = loss(state, data, index)
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    state.optimizer.step()
    follow(state)
    return {"loss": value.detach()} | log


def _learning_rate(options: TrainingOptions, step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to zero."""
    warmup = max(1, round(options.warmup * steps))
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    angle = math.pi * (step - warmup) / max(1, steps - warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(angle))


def _save(
    state: State, data: Data, records: EcgRecords, history: list[dict], folder: Path
) -> None:
    run, device = state.run, f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    if state.device.type == "cuda":
        device = torch.cuda.get_device_name(state.device)
    form = {
        "encoder": run.study.encoder.model_dump(),
        "dual": state.arm.dual,
        "leads": list(records.leads),
        "fs": records.fs,
        "classes": list(records.classes),
        "multilabel": records.multilabel,
        "arm": run.arm,
        "dataset": run.dataset,
        "seed": run.seed,
        "parameters": count_parameters(state.model["encoder"]),
        "precision": state.precision,
        "training_records": len(data.signals),
        "device": device,
        "run": cache_entry(run, folder),
    }
    lines = [json.dumps(entry) + "\n" for entry in history]
    save_encoder(folder, state.model, form, "".join(lines))


def load_trained(run: Run, records: EcgRecords, folder: Path) -> tuple[State, Data]:
    """The finished run as a training state, to look at what its loss does with a batch.

    Parameters
    ----------
    run, records, folder
        As of `pretrain`.
    """
    state, data = prepare_training(run, records, Path(folder))
    path = Path(folder) / "encoder.safetensors"
    load_state(state.model, load_tensors(path)[0], path)
    return state, data
