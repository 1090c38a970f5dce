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
from ecgstudy.models.checkpoints import (
    load_progress,
    load_state,
    load_tensors,
    save_encoder,
    save_progress,
)
from ecgstudy.models.encoders import count_parameters
from ecgstudy.pretraining.distributed import is_first, parallel
from ecgstudy.pretraining.state import Data, Log, State
from ecgstudy.pretraining.step import arm_loss, follow, prepare_training
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, TrainingOptions

SCHEDULE_STEPS = 20
"""Schedules (DynACL's) move in as many steps, as the original's every 50 of 1,000 epochs."""


def pretrain(run: Run, records: EcgRecords, folder: Path) -> list[dict]:
    """Pretrain one run's encoder on the training split, or continue where an interrupted call stopped.

    A run that `folder` already holds, of the same parameters and the same stamp of code and data
    (in ``run.json``, where there is one), is not trained again.

    Writes ``encoder.safetensors``, ``encoder.json`` and ``history.jsonl`` to `folder`, and a
    checkpoint after every epoch, from which a further call continues exactly.
    Of several processes each calls this function, and the first writes.

    Returns
    -------
    list of dict
        One entry an epoch: loss, seconds, learning rate, and what the loss logged.

    Raises
    ------
    StudyError
        When there are fewer training records than one batch, the loss stops being finite, the
        checkpoint is damaged or of another run, or one of several processes fails.
    """
    if (finished := read_finished(run, Path(folder))) is not None:
        return finished
    state, data = prepare_training(run, records, Path(folder))
    progress = Path(folder) / "checkpoint.safetensors"
    history = _resume(state, progress) if progress.exists() else []
    loss = parallel(arm_loss, state.model)
    for epoch in tqdm(range(len(history), state.epochs), f"{run.arm} seed {run.seed}"):
        history.append({"epoch": epoch + 1, **_epoch(state, data, epoch, loss)})
        note = {"run": cache_entry(run, progress.parent), "history": history}
        if is_first():
            save_progress(progress, state.model, state.optimizer, state.streams, note)
    if is_first():
        _finish(state, data, records, history, Path(folder))
        progress.unlink(missing_ok=True)
    return history


def cache_entry(run: Run, folder: Path) -> dict:
    """What decides the encoder: the run's parameters, and the stamp of code and data in ``run.json``."""
    path = folder / "run.json"
    stamp = (
        json.loads(path.read_text(encoding="utf-8"))["stamp"] if path.exists() else None
    )
    return {**run.parameters(), "stamp": stamp}


def read_finished(run: Run, folder: Path) -> list[dict] | None:
    """History of the finished run in `folder`, if it is the one asked for."""
    form, history = folder / "encoder.json", folder / "history.jsonl"
    if not (
        form.exists() and history.exists() and (folder / "encoder.safetensors").exists()
    ):
        return None
    try:
        if json.loads(form.read_text(encoding="utf-8")).get("run") != cache_entry(
            run, folder
        ):
            return None
    except ValueError:  # damaged
        return None
    tqdm.write(
        f"{folder}: trained before with these parameters; delete encoder.json to train it again"
    )
    return read_history(folder)


def read_history(folder: Path) -> list[dict]:
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _resume(state: State, path: Path) -> list[dict]:
    """History up to the checkpoint, which is restored; none for one of another run, which is overwritten."""
    if load_tensors(path)[1].get("run") != cache_entry(state.run, path.parent):
        tqdm.write(
            f"{path}: checkpoint of other parameters, code or data; this run starts anew"
        )
        return []
    return load_progress(path, state.model, state.optimizer, state.streams)["history"]


def _epoch(state: State, data: Data, epoch: int, loss: Callable) -> dict:
    """Train for one epoch; returns means over its steps."""
    options, started = state.options, time.perf_counter()
    count = min(options.records_per_epoch or len(data.signals), len(data.signals))
    steps = count // options.batch_size
    if not steps:
        raise StudyError(
            f"{state.run.dataset}: {count} training records are fewer than one batch "
            f"of {options.batch_size}; lower training.batch_size"
        )
    order = torch.randperm(
        len(data.signals), generator=state.streams["batches"], device=state.device
    )
    totals: dict[str, Tensor] = {}
    for step in range(steps):
        done, total = epoch * steps + step, state.epochs * steps
        rate = _learning_rate(options, done, total)
        state.progress = SCHEDULE_STEPS * done // total / SCHEDULE_STEPS
        index = order[step * options.batch_size : (step + 1) * options.batch_size]
        for name, value in train_step(state, data, index, rate, loss).items():
            totals[name] = totals.get(name, 0) + value
    means = {name: float(total) / steps for name, total in totals.items()}
    if not math.isfinite(means["loss"]):
        raise StudyError(
            f"{state.run.arm} seed {state.run.seed}: the loss became {means['loss']} in epoch {epoch + 1}; "
            "lower training.learning_rate"
        )
    seconds = time.perf_counter() - started
    return {**means, "learning_rate": rate, "steps": steps, "seconds": seconds}


def train_step(
    state: State, data: Data, index: Tensor, rate: float, loss: Callable = arm_loss
) -> Log:
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    value, log = loss(state, data, index)
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    state.optimizer.step()
    follow(state)
    return {"loss": value.detach(), **log}


def _learning_rate(options: TrainingOptions, step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to zero."""
    warmup = max(1, round(options.warmup * steps))
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    return (
        options.learning_rate
        * 0.5
        * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    )


def _finish(
    state: State, data: Data, records: EcgRecords, history: list[dict], folder: Path
) -> None:
    run, encoder = state.run, state.model["encoder"]
    form = {
        "encoder": run.study.encoder.model_dump(), "dual": state.arm.dual,
        "leads": list(records.leads), "fs": records.fs, "classes": list(records.classes),
        "multilabel": records.multilabel, "arm": run.arm, "dataset": run.dataset, "seed": run.seed,
        "parameters": count_parameters(encoder), "precision": state.precision,
        "training_records": len(data.signals), "device": _device_name(state.device),
        "run": cache_entry(run, folder),
    }  # fmt: skip
    save_encoder(
        folder,
        state.model,
        form,
        "".join(json.dumps(entry) + "\n" for entry in history),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()})"


def load_trained(run: Run, records: EcgRecords, folder: Path) -> tuple[State, Data]:
    """The finished run in `folder` as a training state, to look at what its loss does with a batch."""
    state, data = prepare_training(run, records, Path(folder))
    path = Path(folder) / "encoder.safetensors"
    load_state(state.model, load_tensors(path)[0], path)
    return state, data
