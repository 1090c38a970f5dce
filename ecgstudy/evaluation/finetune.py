"""Training under attack: a linear head (`alf`), or all weights by TRADES (`aff`)."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW
from tqdm.auto import tqdm

from ecgstudy.attacks.ball import Ball, ascend
from ecgstudy.devices import pick_precision, resident
from ecgstudy.errors import StudyError
from ecgstudy.files import read_json, short_hash
from ecgstudy.models.checkpoints import (
    load_encoder,
    load_progress,
    load_tensors,
    save_encoder,
    save_progress,
)
from ecgstudy.models.encoders import Encoder, count_parameters, fold_batch_norms
from ecgstudy.models.heads import Classifier, label_loss
from ecgstudy.models.layers import DualBatchNorm
from ecgstudy.params import AffOptions, AlfOptions, method
from ecgstudy.pretraining.losses import divergence
from ecgstudy.pretraining.state import evaluation_mode
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, derived_seed


def fine_tune(
    run: Run,
    train: EcgRecords,
    start: Classifier,
    features: Tensor | None,
    form: dict,
    folder: Path,
) -> tuple[Encoder, nn.Linear, dict]:
    """Train a head or all weights under attack, or go on where a killed call stopped.

    An encoder tuned by `aff` is stored in `folder`, and used as stored.

    Parameters
    ----------
    run
        Options, headline ε, and seed.
    train
        Training records.
    start
        The pretrained encoder, which `aff` changes, and a zero head, on the device.
    features
        The encoder's (records, features) of the training records, for `alf`.
    form
        Content of the pretrained ``encoder.json``.
    folder
        The protocol's folder, named as the protocol.

    Returns
    -------
    encoder, head, form
        As after `ecgstudy.models.checkpoints.load_encoder`.

    Raises
    ------
    StudyError
        When a loss is not finite, or a checkpoint is damaged.
    """
    how, device, encoder = method(folder.name), start.head.weight.device, start.encoder
    options: AlfOptions = getattr(run.study, how)
    decides = {
        "pretrained": form["run"],
        "step": read_json(folder / "run.json").get("key"),
        "protocol": folder.name,
        "options": options.model_dump(mode="json"),
        "data": train.card.get("key"),
        "epsilon_mv": run.headline_epsilon_mv,
    }
    key, progress = short_hash(decides), folder / "checkpoint.safetensors"
    if how == "aff" and read_json(folder / "encoder.json").get("fine_tuned") == key:
        with suppress(StudyError):  # damaged: fine-tune it again
            return load_encoder(folder, str(device))
    streams = {}
    for name in ("batches", "attack"):
        seed = derived_seed(run.dataset, run.seed, "fine-tuning", name)
        streams[name] = Generator(device).manual_seed(seed)
    precision = "float32"
    if how == "alf":
        standardise(start, features)
    else:
        free_all_weights(start)
        precision = pick_precision(run.study.training.precision, device)
    epsilon_mv = run.headline_epsilon_mv
    tuning = Tuning(start, options, epsilon_mv, train.multilabel, streams, precision)
    tuning.run(train, progress, key)
    if how == "alf":
        progress.unlink(missing_ok=True)
        return encoder, fold_standardisation(start.head), form
    form = form | {
        "classes": list(train.classes),
        "multilabel": train.multilabel,
        "dataset": run.dataset,
        "dual": False,
        "parameters": count_parameters(encoder),
        "fine_tuned": key,
    }
    (folder / "encoder.json").unlink(missing_ok=True)  # never beside other weights
    save_encoder(folder, start, form)
    progress.unlink(missing_ok=True)
    return load_encoder(folder, str(device))


def standardise(model: Classifier, features: Tensor) -> None:
    """Freeze the encoder, and put a standardisation of its features before the head."""
    standard = nn.BatchNorm1d(features.shape[1], eps=0.0, affine=False)
    standard.running_mean = features.mean(0)
    standard.running_var = features.std(0).clamp(min=1e-6) ** 2
    model.encoder = fold_batch_norms(model.encoder)
    model.head = nn.Sequential(standard, model.head)
    model.eval()


def fold_standardisation(head: nn.Sequential) -> nn.Linear:
    """The linear layer after a standardisation, made to take raw features."""
    standard, linear = head
    with torch.no_grad():
        linear.weight /= standard.running_var.sqrt()
        linear.bias -= linear.weight @ standard.running_mean
    return linear.requires_grad_(False)


def free_all_weights(model: Classifier) -> None:
    """Let all weights be trained, with the adversarial set of dual batch norms."""
    for module in model.encoder.modules():
        if isinstance(module, DualBatchNorm):
            module.norms = module.norms[-1:]
    model.requires_grad_(True).train()


@dataclass
class Tuning:
    """A classifier that is trained on attacked ECGs: TRADES if in training mode.

    Attributes
    ----------
    model
        In the mode that it is trained in.
    options
        Of the protocol.
    epsilon_mv
        Budget of the attack in mV.
    multilabel
        Whether a record may have several classes or none.
    streams
        Of `batches`, and of the attack's random starts.
    precision
        Of the encoder: ``"float32"`` or ``"bfloat16"``.
    """

    model: Classifier
    options: AlfOptions | AffOptions
    epsilon_mv: float
    multilabel: bool
    streams: dict[str, Generator]
    precision: str = "float32"

    def run(self, train: EcgRecords, progress: Path, key: str) -> None:
        """Train for all epochs, or those after the checkpoint of the same task.

        Each is in random order, with cosine decay over all; no batch is incomplete.

        Parameters
        ----------
        train
            Training records.
        progress
            File of the checkpoint, written after each epoch.
        key
            Tells checkpoints of this task from others.
        """
        model, options, streams = self.model, self.options, self.streams
        device = next(model.parameters()).device
        size, done = options.batch_size, 0
        signals = resident(train.signals, device)
        labels = torch.tensor(train.multi_hot(), device=device)
        trained = [p for p in model.parameters() if p.requires_grad]
        rate, decay = options.learning_rate, options.weight_decay
        optimizer = AdamW(trained, lr=rate, weight_decay=decay, fused=True)
        if progress.exists() and load_tensors(progress)[1].get("asked") == key:
            done = load_progress(progress, model, optimizer, streams)["epochs"]
        for epoch in tqdm(range(done, options.epochs), "fine-tuning", leave=False):
            stream = streams["batches"]
            order = torch.randperm(len(labels), generator=stream, device=device)
            order = order[: options.records_per_epoch]
            steps = max(1, len(order) // size)
            for step in range(steps):
                share = (epoch + step / steps) / options.epochs
                for group in optimizer.param_groups:
                    group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share))
                rows = order[step * size : (step + 1) * size]
                batch = signals[rows.to(signals.device)].to(device)
                loss = self.loss(batch, labels[rows])
                if not loss.isfinite():
                    raise StudyError(
                        f"{progress.parent}: the loss became {loss.item()} in epoch "
                        f"{epoch + 1} of fine-tuning; lower its learning_rate"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            note = {"asked": key, "epochs": epoch + 1}
            save_progress(progress, model, optimizer, streams, note)

    def loss(self, signals: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of attacked ECGs (Madry et al. 2018), or that of TRADES.

        TRADES adds β KL(clean ‖ attacked) to clean cross-entropy (Zhang et al. 2019).
        Signals (records, leads, samples) in mV; labels multi-hot (records, classes).
        """
        head, multilabel = self.model.head, self.multilabel

        def cross_entropy(logits: Tensor) -> Tensor:
            return label_loss(logits, labels, multilabel)

        if not self.model.training:
            attacked = self.attack(signals, cross_entropy)
            return cross_entropy(head(self.features(attacked))).mean()
        with torch.no_grad(), evaluation_mode(self.model):
            before = head(self.features(signals))

        def shift(logits: Tensor) -> Tensor:
            return divergence(before, logits, multilabel)

        attacked = self.attack(signals, shift)
        clean, moved = self.features(signals), self.features(attacked)
        loss = cross_entropy(head(clean)).mean()
        shifted = divergence(head(clean), head(moved), multilabel).mean()
        return loss + self.options.beta * shifted

    def attack(self, signals: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """`signals` (mV) after steps in the ball that raise `value`, started anywhere.

        `value` maps logits to one number a record; the model is in evaluation mode.
        """
        ball, options = Ball(self.epsilon_mv), self.options
        start = ball.draw(signals, self.streams["attack"])
        # Weights become bfloat16 once for all steps, until the outermost autocast ends.
        together = torch.autocast(signals.device.type, enabled=False)
        with together, evaluation_mode(self.model):
            return signals + ascend(
                lambda x: value(self.model.head(self.features(x))),
                signals,
                start,
                ball,
                steps=options.attack_steps,
                step_mv=options.attack_step * self.epsilon_mv,
            )

    def features(self, signals: Tensor) -> Tensor:
        """Features (records, features), float32, under the adversarial statistics."""
        low = self.precision == "bfloat16"
        with torch.autocast(signals.device.type, torch.bfloat16, enabled=low):
            return self.model.encoder(signals, True).float()
