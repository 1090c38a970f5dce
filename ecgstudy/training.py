"""Pretraining: one loop for every arm, with checkpoints that continue exactly."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW
from tqdm.auto import tqdm

from ecgstudy.arms import Arm, get_arm
from ecgstudy.attacks.gradient import Budget, ascend, random_start
from ecgstudy.checkpoints import load_progress, load_state, load_tensors, save_encoder, save_progress
from ecgstudy.contrast import Rows, weighted_contrastive_loss
from ecgstudy.encoders import Projector, build_encoder, count_parameters
from ecgstudy.errors import StudyError
from ecgstudy.files import write_text
from ecgstudy.records import EcgRecords
from ecgstudy.risk import clinical_risk
from ecgstudy.study import Run, TrainingOptions, derived_seed
from ecgstudy.supervised import label_loss, zero_head
from ecgstudy.views import view
from ecgstudy.weighting import compose, uniform

Log = dict[str, Tensor]


def pick_device(wanted: str) -> torch.device:
    """The device called `wanted`; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    StudyError
        When a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StudyError("device 'cuda' was asked for, but torch finds no GPU; use 'cpu' or 'auto'")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def pick_precision(wanted: str, device: torch.device) -> str:
    """Precision of the encoder in training: ``"auto"`` is bfloat16 where the hardware multiplies in it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


@dataclass
class Data:
    """The training records on the device; every tensor is (records, …)."""

    signals: Tensor
    labels: Tensor
    rows: Rows
    fs: float
    multilabel: bool

    @staticmethod
    def of(records: EcgRecords, device: torch.device) -> "Data":
        """Move the training split of `records` to `device`."""
        train = records.split("train")
        patients = train.table["patient"].astype("category").cat.codes.to_numpy()
        risk, missing = clinical_risk(train.table, train.table["split"].eq("train").to_numpy())
        metadata = {
            "risk": torch.tensor(risk, device=device),
            "missing": torch.tensor(missing, device=device),
        }
        n = torch.arange(len(train), device=device)
        rows = Rows(
            n, torch.tensor(patients, device=device).long(), torch.zeros_like(n, dtype=torch.bool), metadata
        )
        signals = torch.tensor(train.signals, device=device)
        return Data(signals, torch.tensor(train.multi_hot(), device=device), rows, train.fs, train.multilabel)


@dataclass
class State:
    """All that changes during pretraining, and what the arm's objective needs to know."""

    arm: Arm
    run: Run
    model: nn.ModuleDict
    optimizer: AdamW
    streams: dict[str, Generator]
    device: torch.device
    precision: str

    @property
    def options(self) -> TrainingOptions:
        """The study's training options."""
        return self.run.study.training

    @property
    def epochs(self) -> int:
        """Epochs of this arm's objective."""
        by_objective = {"none": 0, "labels": self.options.label_epochs or self.options.epochs}
        return by_objective.get(self.arm.objective, self.options.epochs)

    def features(self, signals: Tensor, adversarial: bool) -> Tensor:
        """Encoder output in the training precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.model["encoder"](signals, adversarial)

    def embed(self, signals: Tensor, adversarial: bool) -> Tensor:
        """Unit vectors, float32: of the projector, or of the features where labels were learnt."""
        features = self.features(signals, adversarial).float()
        if "projector" not in self.model:
            return nn.functional.normalize(features, dim=1)
        return self.model["projector"](features, adversarial)

    def view(self, data: Data, index: Tensor) -> Tensor:
        """A random view of the chosen records, from the stream that arms share."""
        return view(data.signals[index], data.fs, self.run.study.views, self.streams["views"])

    def attack(self, signals: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """`signals` perturbed to raise `value`: K steps from a uniform start, in evaluation mode."""
        epsilon = self.run.study.datasets[self.run.dataset].headline_epsilon_mv
        budget = Budget(epsilon, self.options.attack_steps, step=self.options.attack_step)
        with evaluating(self.model):
            start = random_start(signals, epsilon, self.streams["attack"])
            return signals + ascend(value, signals, start, budget)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards the mode from before, so that blocks nest."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def label_objective(state: State, data: Data, index: Tensor) -> tuple[Tensor, Log]:
    """Cross-entropy of a view of each record; of an attacked view if the arm has an adversary."""
    signals, labels = state.view(data, index), data.labels[index]

    def value(x: Tensor) -> Tensor:
        return label_loss(state.model["head"](state.features(x, True).float()), labels, data.multilabel)

    if state.arm.adversary == "record":
        signals = state.attack(signals, value)
    return value(signals).mean(), {}


def contrast_objective(state: State, data: Data, index: Tensor) -> tuple[Tensor, Log]:
    """The weighted contrastive loss of two views, and of an adversarial third if the arm has one."""
    arm, tau = state.arm, state.options.temperature
    adversarial = arm.adversary == "first view"
    embedded, rows = embedded_views(state, data, index, adversarial=adversarial)
    loss, log = weighted_contrastive_loss(
        embedded, rows, compose(arm.weighting),
        temperature=tau, tau_plus=arm.tau_plus, detach_candidates=adversarial,
    )  # fmt: skip
    if arm.side:
        second_and_adversary = slice(len(index), None)
        loss = loss + arm.side * _plain(embedded[second_and_adversary], rows[second_and_adversary], tau)[0]
    return loss, log


def embedded_views(state: State, data: Data, index: Tensor, *, adversarial: bool) -> tuple[Tensor, Rows]:
    """Unit vectors of two random views of the chosen records, then of an adversarial one, and their rows.

    The adversary starts from the first view and leaves the second.
    """
    first, second = state.view(data, index), state.view(data, index)
    rows = data.rows[index]
    attacked = _adversarial_view(state, first, second, rows) if adversarial else None
    embedded = state.embed(torch.cat([first, second]), adversarial=False)
    if attacked is None:
        return embedded, Rows.of_views([rows, rows])
    embedded = torch.cat([embedded, state.embed(attacked, adversarial=True)])
    return embedded, Rows.of_views([rows, rows, _marked(rows)])


def _marked(rows: Rows) -> Rows:
    return Rows(rows.record, rows.patient, torch.ones_like(rows.adversarial), rows.metadata)


def _plain(embedded: Tensor, rows: Rows, tau: float) -> tuple[Tensor, Log]:
    """NT-Xent with detached candidates: what RoCL attacks, and its side term."""
    return weighted_contrastive_loss(embedded, rows, uniform, temperature=tau, detach_candidates=True)


def _adversarial_view(state: State, first: Tensor, second: Tensor, rows: Rows) -> Tensor:
    """`first` perturbed so that its embedding leaves that of `second` (Kim et al. 2020, eq. 4)."""
    with torch.no_grad(), evaluating(state.model):
        fixed = state.embed(second, adversarial=False)
    both = Rows.of_views([_marked(rows), rows])

    def value(x: Tensor) -> Tensor:
        return _plain(torch.cat([state.embed(x, adversarial=True), fixed]), both, state.options.temperature)[
            0
        ]

    return state.attack(first, value)


OBJECTIVES = {"labels": label_objective, "contrast": contrast_objective}


def new_state(run: Run, data: Data, records: EcgRecords) -> State:
    """Fresh weights, optimiser and random streams; weights and views depend on the seed, not the arm."""
    study, arm = run.study, get_arm(run.arm)
    device = data.signals.device
    mean, std = data.signals.mean((0, 2)), data.signals.std()
    dual = arm.adversary == "first view"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(run.dataset, run.seed, "weights"))
        encoder = build_encoder(study.encoder.name, study.encoder.options, mean.cpu(), std.cpu(), dual)
        model = nn.ModuleDict({"encoder": encoder})
        if arm.objective == "labels":
            model["head"] = zero_head(encoder.features, len(records.classes))
        else:
            model["projector"] = Projector(encoder.features, study.encoder.projection, dual)
    model = model.to(device).train()
    options = study.training
    optimizer = AdamW(
        model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    streams = {
        name: Generator(device).manual_seed(derived_seed(run.dataset, run.seed, name))
        for name in ("batches", "views", "attack")
    }
    return State(arm, run, model, optimizer, streams, device, pick_precision(options.precision, device))


def pretrain(run: Run, records: EcgRecords, folder: Path) -> list[dict]:
    """Pretrain one run's encoder, or continue where an interrupted call stopped.

    A run that `folder` already holds, of the same parameters and the same stamp of code and data
    (in ``run.json``, where there is one), is not trained again.

    Writes ``encoder.safetensors``, ``encoder.json`` and ``history.jsonl`` to `folder`, and a
    checkpoint after every epoch, from which a further call continues exactly.

    Parameters
    ----------
    run
        Which data set, arm and seed.
    records
        All records of the data set; only the training split is used.
    folder
        The run's folder.

    Returns
    -------
    list of dict
        One entry an epoch: loss, seconds, learning rate, and what the loss logged.

    Raises
    ------
    StudyError
        When there are fewer training records than one batch, the loss stops being finite, or the
        checkpoint is damaged or of another run.
    """
    if (finished := _finished(run, Path(folder))) is not None:
        return finished
    data = Data.of(records, pick_device(run.study.device))
    state = new_state(run, data, records)
    progress = Path(folder) / "checkpoint.safetensors"
    history = _resume(state, progress) if progress.exists() else []
    for epoch in tqdm(range(len(history), state.epochs), f"{run.arm} seed {run.seed}"):
        history.append({"epoch": epoch + 1, **_epoch(state, data, epoch)})
        note = {"run": _asked(run, progress.parent), "history": history}
        save_progress(progress, state.model, state.optimizer, state.streams, note)
    _finish(state, data, records, history, Path(folder))
    progress.unlink(missing_ok=True)
    return history


def _asked(run: Run, folder: Path) -> dict:
    """What decides the encoder: the run's parameters, and the stamp of code and data in ``run.json``."""
    path = folder / "run.json"
    stamp = json.loads(path.read_text(encoding="utf-8"))["stamp"] if path.exists() else None
    return {**run.parameters(), "stamp": stamp}


def _finished(run: Run, folder: Path) -> list[dict] | None:
    """History of the finished run in `folder`, if it is the one asked for."""
    form, history = folder / "encoder.json", folder / "history.jsonl"
    if not (form.exists() and history.exists() and (folder / "encoder.safetensors").exists()):
        return None
    try:
        if json.loads(form.read_text(encoding="utf-8")).get("run") != _asked(run, folder):
            return None
    except ValueError:  # damaged
        return None
    tqdm.write(f"{folder}: trained before with these parameters; delete encoder.json to train it again")
    return [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]


def _resume(state: State, path: Path) -> list[dict]:
    """History up to the checkpoint, which is restored; one of another run is deleted."""
    if load_tensors(path)[1].get("run") != _asked(state.run, path.parent):
        tqdm.write(f"{path}: checkpoint of other parameters, code or data; this run starts anew")
        path.unlink()
        return []
    return load_progress(path, state.model, state.optimizer, state.streams)["history"]


def _epoch(state: State, data: Data, epoch: int) -> dict:
    """Train for one epoch; returns means over its steps."""
    options, started = state.options, time.perf_counter()
    count = min(options.records_per_epoch or len(data.signals), len(data.signals))
    steps = count // options.batch_size
    if not steps:
        raise StudyError(
            f"{state.run.dataset}: {count} training records are fewer than one batch "
            f"of {options.batch_size}; lower training.batch_size"
        )
    order = torch.randperm(len(data.signals), generator=state.streams["batches"], device=state.device)
    totals: dict[str, Tensor] = {}
    for step in range(steps):
        rate = _learning_rate(options, epoch * steps + step, state.epochs * steps)
        index = order[step * options.batch_size : (step + 1) * options.batch_size]
        for name, value in _step(state, data, index, rate).items():
            totals[name] = totals.get(name, 0) + value
    means = {name: float(total) / steps for name, total in totals.items()}
    if not math.isfinite(means["loss"]):
        raise StudyError(
            f"{state.run.arm} seed {state.run.seed}: the loss became {means['loss']} in epoch {epoch + 1}; "
            "lower training.learning_rate"
        )
    seconds = time.perf_counter() - started
    return {**means, "learning_rate": rate, "steps": steps, "seconds": seconds}


def _step(state: State, data: Data, index: Tensor, rate: float) -> Log:
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    loss, log = OBJECTIVES[state.arm.objective](state, data, index)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    return {"loss": loss.detach(), **log}


def _learning_rate(options: TrainingOptions, step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to zero."""
    warmup = max(1, round(options.warmup * steps))
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _finish(state: State, data: Data, records: EcgRecords, history: list[dict], folder: Path) -> None:
    run, encoder = state.run, state.model["encoder"]
    form = {
        "encoder": run.study.encoder.model_dump(), "dual": state.arm.adversary == "first view",
        "leads": list(records.leads), "fs": records.fs, "classes": list(records.classes),
        "multilabel": records.multilabel, "arm": run.arm, "dataset": run.dataset, "seed": run.seed,
        "parameters": count_parameters(encoder), "precision": state.precision,
        "training_records": len(data.signals), "device": _device_name(state.device),
        "run": _asked(run, folder),
    }  # fmt: skip
    write_text(folder / "history.jsonl", "".join(json.dumps(entry) + "\n" for entry in history))
    save_encoder(folder, state.model, form)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()})"


def load_trained(run: Run, records: EcgRecords, folder: Path) -> tuple[State, Data]:
    """The finished run in `folder` as a training state, to look at what its loss does with a batch."""
    data = Data.of(records, pick_device(run.study.device))
    state = new_state(run, data, records)
    path = Path(folder) / "encoder.safetensors"
    load_state(state.model, load_tensors(path)[0], path)
    return state, data
