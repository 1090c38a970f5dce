"""One ECG at a time: under one attack, and in the loss of every weighting scheme."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from ecgstudy.attacks.api import Victim
from ecgstudy.attacks.named import get_attack
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.diagnostics import (
    VIEWS,
    AttackedEcg,
    among_others,
    before_and_after,
    inspected,
    push_weights,
    same_class,
)
from ecgstudy.evaluation.energy import profile, r_peaks
from ecgstudy.evaluation.sample import attacked_sample, budget_of
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.params import split_leads
from ecgstudy.pretraining.arms import Schemes
from ecgstudy.pretraining.loop import load_trained
from ecgstudy.pretraining.losses import predicted_labels
from ecgstudy.pretraining.pairs import Pairs
from ecgstudy.pretraining.state import Data
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.pretraining.weighting import SCHEMES, compose, uniform
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, derived_seed


def attack_record(
    run: Run,
    records: EcgRecords,
    folder: Path,
    record: str,
    attack: str,
    epsilon_mv: float,
) -> AttackedEcg:
    """Attack one test ECG, together with others (margins refer to a sample).

    Parameters
    ----------
    run, records
        An evaluated run, and all records of its data set.
    folder
        The protocol folder of the run, which holds ``head.safetensors``.
    record
        Id of one of the attacked test records.
    attack
        Name of an attack, on some leads only as in ``"pgd-ce[II]"``.
    epsilon_mv
        Largest change of a sample, in mV.

    Raises
    ------
    StudyError
        For an unknown record, attack or lead, or a run that is not evaluated yet.
    """
    test = attacked_sample(records, "test", run.study.evaluation.max_records)
    sample, place = among_others(test, _row_of(test, record))
    model, _ = load_classifier(folder)
    victim = Victim(model, test.multilabel, model.encoder, test.fs)
    budget = budget_of(run.study.evaluation, epsilon_mv)
    _, leads = split_leads(attack)
    if leads:
        budget = replace(budget, mask=sample.lead_mask(leads))
    seed = derived_seed(run.dataset, run.seed, "explore", attack)
    stream = Generator().manual_seed(seed)
    deltas = get_attack(attack)(victim, sample.signals, sample.labels, budget, stream)
    return before_and_after(victim, sample, place, {attack: deltas[place].numpy()})


def _row_of(test: EcgRecords, record: str) -> int:
    found = np.flatnonzero(test.table["record"] == record)
    if not len(found):
        some = ", ".join(test.table["record"].head(3))
        raise StudyError(
            f"{record!r} is none of the {len(test)} attacked test records, such as {some}"
        )
    return int(found[0])


def perturbation_energy(ecg: AttackedEcg, records: EcgRecords) -> pd.DataFrame:
    """Where the energy of the ECG's one perturbation lies, beside white noise's.

    The columns are those of `ecgstudy.evaluation.energy.profile`; `records` are those
    that the ECG is one of.
    """
    (delta,) = ecg.deltas.values()
    centre = (records.card.get("window_samples") or [None])[0]
    peaks = r_peaks(ecg.signal[None], records.fs, records.leads, centre)
    return pd.DataFrame(profile(delta[None], records.fs, records.leads, peaks))


def known_weightings(arm: str) -> dict[str, Schemes]:
    """Name → schemes: none, each one that stands alone, and those of `arm`."""
    weightings = {"uniform": ()}
    for name in SCHEMES:
        if name != "shuffled":  # it permutes the weights that others gave
            weightings[name] = ((name, {}),)
    own = get_arm(arm).weighting
    if own:
        weightings[f"{arm} (this run)"] = own
    return weightings


def weigh_record(
    run: Run,
    records: EcgRecords,
    folder: Path,
    record: str,
    weightings: Mapping[str, Schemes] | None = None,
    size: int = 128,
) -> pd.DataFrame:
    """Pull and push weights of one ECG's pairs in a batch of training records.

    The batch holds two random views of each record and an attacked one, embedded by the
    run's encoder. Schemes that ask for predictions get those of the evaluated head.

    Parameters
    ----------
    run, records
        An evaluated run, and all records of its data set.
    folder
        The protocol folder of the run, which holds ``head.safetensors``.
    record
        Id of one of the attacked test records.
    weightings
        Name → schemes with their options, in order; None: all `known_weightings`.
    size
        Records in the batch.

    Returns
    -------
    DataFrame
        `scheme`, `anchor` (the record's clean or attacked view), `role` (pull, push),
        `kind` of the other view, `similarity` (cosine), and `weight`: P ω of positives,
        W with a mean of 1 of negatives.
    """
    test = attacked_sample(records, "test", run.study.evaluation.max_records)
    row = _row_of(test, record)
    state, _ = load_trained(run, records, folder.parent)
    drawn = _batch_with(records, test.table["record"].iloc[row], run.dataset, size)
    data = Data.of(drawn, state.device)
    index = torch.arange(len(data.signals), device=state.device)
    batch = inspected(state, data, index)
    model, _ = load_classifier(folder)
    for view, known in batch.known.items():
        logits = model.head(batch.features[view].detach().cpu())
        predictions = predicted_labels(logits, data.multilabel)
        known["predictions"] = predictions.to(state.device)
    embedded, rows = batch.stacked(VIEWS)
    cosine = embedded @ embedded.T
    pairs = Pairs(rows, rows, temperature=state.temperature)
    anchors = {"clean view": 0, "attacked view": VIEWS.index("1*") * len(index)}
    parts = [
        _weigh_anchors(schemes, cosine, pairs, anchors).assign(scheme=name)
        for name, schemes in (weightings or known_weightings(run.arm)).items()
    ]
    columns = ["scheme", "kind", "similarity", "weight", "anchor", "role"]
    return pd.concat(parts, ignore_index=True)[columns]


def _batch_with(
    records: EcgRecords, record: str, dataset: str, size: int
) -> EcgRecords:
    """The record, first, and others of the training split."""
    table = records.table
    own = np.flatnonzero(table["record"] == record)
    others = np.flatnonzero(table["split"] == "train")
    draw = np.random.default_rng(derived_seed(dataset, "explored batch"))
    drawn = draw.choice(others, min(size, len(others)) - 1, replace=False)
    rows = np.r_[own, drawn]
    return replace(
        records,
        signals=np.asarray(records.signals[rows]),
        labels=records.labels[rows],
        table=table.iloc[rows].reset_index(drop=True).assign(split="train"),
    )


def _weigh_anchors(
    schemes: Schemes, cosine: Tensor, pairs: Pairs, anchors: Mapping[str, int]
) -> pd.DataFrame:
    """Weights of some anchors' pairs; `cosine` and `pairs` are (views, views)."""
    weights = compose(schemes)(cosine / pairs.temperature, pairs)
    pull, push = weights.pull, push_weights(weights)
    if weights.positive is not None:
        pull = pull * weights.positive
    attacked = pairs.candidates.adversarial.cpu()
    itself, alike = pairs.match("record").cpu(), same_class(pairs).cpu()
    parts = []
    for anchor, row in anchors.items():
        own = np.where(attacked, "its attacked view", "its clean views")
        pulls = np.where(itself[row], own, "other ECGs")
        pushes = np.where(alike[row], "same class", "other class")
        for role, weight, there, kind in (
            ("pull", pull, pull > 0, pulls),
            ("push", push, weights.eligible, pushes),
        ):
            columns = {"similarity": cosine[row].cpu(), "weight": weight[row].cpu()}
            part = pd.DataFrame({"kind": kind, **columns})
            part = part[there[row].cpu().numpy()]
            parts.append(part.assign(anchor=anchor, role=role))
    return pd.concat(parts)


def summarise_weights(run: Run, weights: pd.DataFrame) -> pd.DataFrame:
    """Of each scheme in `weigh_record`'s table: pull, negatives, and its idea.

    Effective negatives are (Σw)² / Σw²: as many as there are if all weigh alike.
    """
    pulls = weights[weights["role"] == "pull"]
    table = pulls.pivot_table("weight", "scheme", "anchor", "sum", sort=False)
    table = table.add_prefix("pull of its ")
    pushes = weights[weights["role"] == "push"]
    clean = pushes[pushes["anchor"] == "clean view"].groupby("scheme")["weight"]
    table["negatives"] = clean.size()
    table["effective"] = clean.sum() ** 2 / clean.agg(lambda w: (w**2).sum())
    ideas = {name: _idea(used) for name, used in known_weightings(run.arm).items()}
    table["idea"] = pd.Series(ideas)
    table = table.reindex(weights["scheme"].unique())
    return table.rename_axis(columns=None).reset_index()


def _idea(schemes: Schemes) -> str:
    """First lines of the schemes' docstrings."""
    used = [SCHEMES[name] for name, _ in schemes] or [uniform]
    lines = [(scheme.__doc__ or "").strip().partition("\n")[0] for scheme in used]
    return "; ".join(line.rstrip(".") for line in lines)
