"""Protocols that fine-tune under attack: a linear head on frozen features (`alf`), or all weights (`aff`).

Both minimise losses of `ecgstudy.pretraining.losses` on whole records, made to fail by the inner attack of training,
from a zero head on, without class weights, to the last epoch.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW
from tqdm.auto import tqdm

from ecgstudy.devices import pick_device, pick_precision
from ecgstudy.errors import StudyError
from ecgstudy.files import read_json, short_hash
from ecgstudy.models.backbones import DualBatchNorm
from ecgstudy.models.checkpoints import (
    load_encoder,
    load_progress,
    load_tensors,
    save_encoder,
    save_progress,
)
from ecgstudy.models.encoders import Encoder, count_parameters, fold_batch_norms
from ecgstudy.models.heads import zero_head
from ecgstudy.params import AffOptions, AlfOptions, method
from ecgstudy.pretraining.arms import ARMS, Adversary, Arm, Loss
from ecgstudy.pretraining.losses import LOSSES
from ecgstudy.pretraining.state import Data, State
from ecgstudy.pretraining.inner_attack import attack_views
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, derived_seed


def pretrained(
    folder: Path, records: EcgRecords, device: torch.device
) -> tuple[Encoder, nn.Linear | None, dict]:
    """What `load_encoder` finds in a run's folder, if it takes ECGs such as `records`.

    Raises
    ------
    StudyError
        When leads or rates differ, naming both.
    """
    encoder, head, form = load_encoder(folder, str(device))
    ours, theirs = (
        (tuple(form["leads"]), form["fs"]),
        (tuple(records.leads), records.fs),
    )
    if ours != theirs:
        told = [
            f"leads {', '.join(leads)} at {fs:g} Hz" for leads, fs in (ours, theirs)
        ]
        raise StudyError(
            f"{folder}: this encoder of {form['dataset']} takes {told[0]}, {records.name} has {told[1]}; "
            "give both data sets the same leads and fs in the params file"
        )
    return encoder, head, form


def fine_tuned(
    run: Run, records: EcgRecords, folder: Path, protocol: str
) -> tuple[Encoder, nn.Linear, dict]:
    """Encoder, head and form of a pretrained run, fine-tuned on the training split of `records`.

    Every epoch leaves a checkpoint, from which a further call continues exactly. An encoder fine-tuned
    by `aff` is stored, rounded, as ``encoder.safetensors`` and ``encoder.json``, and used as stored.

    Parameters
    ----------
    run
        As of the data set that is fine-tuned on (`Run.tested_on`).
    folder
        The protocol's folder inside that of the pretrained run.
    """
    device, how = pick_device(run.study.device), method(protocol)
    encoder, _, form = pretrained(folder.parent, records, device)
    options: AlfOptions = getattr(run.study, how)
    decides = {
        "pretrained": form["run"], "protocol": protocol, "options": options.model_dump(mode="json"),
        "data": records.card.get("key"), "epsilon_mv": run.headline_epsilon_mv,
    }  # fmt: skip
    asked = short_hash(decides)
    if how == "aff" and read_json(folder / "encoder.json").get("fine_tuned") == asked:
        return load_encoder(folder, str(device))
    data = Data.of(records, device)
    state = START[how](run, encoder, data, options)
    progress = folder / "checkpoint.safetensors"
    _train(state, data, options, progress, asked)
    if how == "alf":
        progress.unlink(missing_ok=True)
        return encoder, unstandardised(state.model["head"]), form
    (folder / "encoder.json").unlink(
        missing_ok=True
    )  # not beside other weights, not for a moment
    told = {
        "classes": list(records.classes), "multilabel": records.multilabel, "dataset": run.dataset,
        "dual": False, "parameters": count_parameters(state.model["encoder"]), "fine_tuned": asked,
    }  # fmt: skip
    save_encoder(folder, state.model, form | told)
    progress.unlink(missing_ok=True)
    return load_encoder(folder, str(device))


def alf_start(run: Run, encoder: Encoder, data: Data, options: AlfOptions) -> State:
    """A zero head on standardised features of the frozen encoder, in evaluation mode throughout."""
    with torch.no_grad():
        clean = torch.cat(
            [encoder(part.to(data.device)) for part in data.signals.split(512)]
        )
    standard = nn.BatchNorm1d(clean.shape[1], eps=0.0, affine=False)
    standard.running_mean, standard.running_var = (
        clean.mean(0),
        clean.std(0).clamp(min=1e-6) ** 2,
    )
    head = nn.Sequential(standard, zero_head(clean.shape[1], data.labels.shape[1]))
    attack = Adversary("0*", "labels", options.attack_steps, options.attack_step)
    arm = replace(ARMS["pgd-at"], losses=(Loss("ce", "0*"),), adversary=attack)
    return _state(run, arm, fold_batch_norms(encoder), head, data, options, "float32")


def unstandardised(head: nn.Sequential) -> nn.Linear:
    """The linear layer after a standardisation, made to take raw features."""
    standard, linear = head
    with torch.no_grad():
        linear.weight /= standard.running_var.sqrt()
        linear.bias -= linear.weight @ standard.running_mean
    return linear.requires_grad_(False)


def aff_start(run: Run, encoder: Encoder, data: Data, options: AffOptions) -> State:
    """TRADES (Zhang et al. 2019) from a zero head; of dual batch norms the adversarial set goes on alone."""
    for module in encoder.modules():
        if isinstance(module, DualBatchNorm):
            module.norms = module.norms[-1:]
    head = zero_head(encoder.features, data.labels.shape[1])
    attack = Adversary("0* 0", "kl", options.attack_steps, options.attack_step)
    arm = replace(
        ARMS["trades"],
        losses=(Loss("ce", "0"), Loss("kl", "0 0*", options.beta)),
        adversary=attack,
    )
    precision = pick_precision(run.study.training.precision, data.device)
    state = _state(
        run, arm, encoder.requires_grad_(True), head, data, options, precision
    )
    state.model.train()
    return state


START = {"alf": alf_start, "aff": aff_start}


def _state(
    run: Run,
    arm: Arm,
    encoder: Encoder,
    head: nn.Module,
    data: Data,
    options: AlfOptions,
    precision: str,
) -> State:
    device = data.device
    model = nn.ModuleDict({"encoder": encoder, "head": head}).to(device).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(
        trained, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    streams = {
        name: Generator(device).manual_seed(
            derived_seed(run.dataset, run.seed, "fine-tuning", name)
        )
        for name in ("batches", "attack")
    }
    return State(arm, run, model, optimizer, streams, device, precision)


def tuning_loss(state: State, data: Data, index: Tensor) -> Tensor:
    """The protocol's loss on the chosen training records, attacked as its row says."""
    batch = data.batch(index, {"0": data.take(index)})
    batch.signals |= attack_views(state, batch, state.arm.adversary)
    for view in dict.fromkeys(view for loss in state.arm.losses for view in loss.names):
        batch.features[view] = state.features(
            batch.signals[view], adversarial=True
        ).float()
    return sum(
        loss.weight * LOSSES[loss.name](state, batch, loss) for loss in state.arm.losses
    )


def _train(
    state: State, data: Data, options: AlfOptions, progress: Path, asked: str
) -> None:
    """All epochs, or those after the checkpoint of the same task."""
    done = 0
    if progress.exists() and load_tensors(progress)[1].get("asked") == asked:
        done = load_progress(progress, state.model, state.optimizer, state.streams)[
            "epochs"
        ]
    for epoch in tqdm(
        range(done, options.epochs), f"fine-tuning {state.run.arm}", leave=False
    ):
        _epoch(state, data, options, epoch)
        save_progress(
            progress,
            state.model,
            state.optimizer,
            state.streams,
            {"asked": asked, "epochs": epoch + 1},
        )


def _epoch(state: State, data: Data, options: AlfOptions, epoch: int) -> None:
    """One epoch in random order, with cosine decay over all of them; an incomplete batch is left out."""
    order = torch.randperm(
        len(data.signals), generator=state.streams["batches"], device=state.device
    )
    order = order[: options.records_per_epoch]
    steps = max(1, len(order) // options.batch_size)
    for step in range(steps):
        share = (epoch + step / steps) / options.epochs
        for group in state.optimizer.param_groups:
            group["lr"] = options.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        loss = tuning_loss(
            state, data, order[step * options.batch_size :][: options.batch_size]
        )
        if not loss.isfinite():
            raise StudyError(
                f"{state.run.arm} seed {state.run.seed}: the loss became {loss.item()} in epoch {epoch + 1} "
                "of fine-tuning; lower its learning_rate"
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
