"""From a pretrained encoder to a classifier, by the protocols `slf`, `alf` and `aff`.

`slf` fits a linear head on frozen features of clean ECGs; `alf` and `aff` train under
attack (`ecgstudy.evaluation.finetune`). Each starts from a zero head, has no class
weights, and ends with the last epoch.
"""

from pathlib import Path

import torch
from torch import Generator

from ecgstudy.attacks.api import Victim
from ecgstudy.devices import pick_device
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.finetune import fine_tune
from ecgstudy.evaluation.sample import apply_in_batches
from ecgstudy.models.checkpoints import (
    load_classifier,
    load_encoder,
    load_state,
    to_float16,
)
from ecgstudy.models.encoders import fold_batch_norms
from ecgstudy.models.heads import Classifier, fit_linear_probe, zero_head
from ecgstudy.params import method
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, derived_seed


def fit_victim(
    run: Run, records: EcgRecords, folder: Path, protocol: str = "slf"
) -> tuple[Victim, dict]:
    """Fit a run's classifier as `protocol` asks, ready to be attacked.

    Parameters
    ----------
    run
        As of the data set that is tested on (`Run.tested_on`).
    records
        All records of that data set; the training split is learned from.
    folder
        The run's folder. Arms that were trained with a head of their own keep it for
        their own data under ``slf`` (`Arm.own_head`).
    protocol
        Such as ``"slf"``, ``"aff"`` or ``"slf@mitdb"``.

    Returns
    -------
    victim, form
        The model, rounded to what is stored of it, and the content of ``encoder.json``.

    Raises
    ------
    StudyError
        When leads or rates of encoder and records differ, or a loss is not finite.
    """
    device, how = pick_device(run.study.device), method(protocol)
    encoder, head, form = load_encoder(folder, str(device))
    ours, theirs = _describe(form), _describe(vars(records))
    if ours != theirs:
        raise StudyError(
            f"{folder}: this encoder of {form['dataset']} takes {ours}, {records.name} "
            f"has {theirs}; give both the same leads and fs in the params file"
        )
    if protocol != "slf" or not get_arm(form["arm"]).own_head:
        train, features = records.split("train"), None
        if how != "aff":
            features = apply_in_batches(encoder, train.signals, device)
        if how == "slf":
            seed = derived_seed(run.dataset, run.seed, "probe")
            head = fit_linear_probe(
                features,
                torch.tensor(train.multi_hot(), device=device),
                train.multilabel,
                **run.study.probe.model_dump(),
                generator=Generator(device).manual_seed(seed),
            )
        else:
            head = zero_head(encoder.features, len(records.classes)).to(device)
            start = Classifier(encoder, head)
            tuned = fine_tune(run, train, start, features, form, folder / protocol)
            encoder, head, form = tuned
    load_state(head, to_float16(head.state_dict()), folder)
    return _freeze(run, records, Classifier(encoder, head)), form


def _describe(form: dict) -> str:
    return f"leads {', '.join(form['leads'])} at {form['fs']:g} Hz"


def load_source(
    run: Run, records: EcgRecords, folder: Path, protocol: str
) -> Victim | None:
    """The other arm's model, on which the attack ``transfer`` is made, if there is one.

    Its probe is fitted again; after other protocols it is loaded as it was tuned.

    Parameters
    ----------
    run, records, folder, protocol
        Of the model that is attacked, as for `fit_victim`.
    """
    if run.attack_source is None:
        return None
    folder = folder.parents[1] / run.attack_source / folder.name
    if method(protocol) == "slf":
        return fit_victim(run, records, folder, protocol)[0]
    model, _ = load_classifier(folder / protocol, str(pick_device(run.study.device)))
    return _freeze(run, records, model)


def _freeze(run: Run, records: EcgRecords, model: Classifier) -> Victim:
    model = Classifier(fold_batch_norms(model.encoder), model.head)
    model, gradients = (
        model.eval().requires_grad_(False),
        run.study.evaluation.gradients,
    )
    return Victim(model, records.multilabel, model.encoder, records.fs, gradients)
