"""Pairs of one batch of training records, as weighting schemes see them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ecgstudy.evaluation.explore import find_row
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.pretraining.arms import Adversary, Schemes
from ecgstudy.pretraining.loop import load_trained
from ecgstudy.pretraining.losses import predicted_labels
from ecgstudy.pretraining.pairs import Pairs
from ecgstudy.pretraining.state import Batch, Data, State, evaluation_mode
from ecgstudy.pretraining.step import embed_batch
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.pretraining.weighting import compose, uniform
from ecgstudy.records import EcgRecords
from ecgstudy.registry import WEIGHTINGS
from ecgstudy.study import Run, derived_seed

VIEWS = ("1", "2", "1*")
"""Two random views of each record, and the first one attacked."""


def inspect_batch(
    run: Run, records: EcgRecords, folder: Path, size: int = 256
) -> pd.DataFrame:
    """Every pair of one batch of training records, as the finished run's loss sees it.

    Two clean views and an adversarial one of each record, in evaluation mode, with the
    run's own ε and statistics; also for arms that never met an adversary.

    Parameters
    ----------
    run, records
        A pretrained run, and all records of its data set.
    folder
        The run's folder.
    size
        Records in the batch.

    Returns
    -------
    DataFrame
        `similarity` (cosine), `kind` of pair, `weight` (W with row mean 1 on the
        negatives, NaN on other pairs), `same_class` (labels shared, which the loss does
        not know).
    """
    state, data = load_trained(run, records, folder)
    stream, device = state.streams["batches"], state.device
    order = torch.randperm(len(data.signals), generator=stream, device=device)
    batch = _embed_views(state, data, order[:size])
    pairs = _pairs_of(state, batch)
    counted = pairs.match("record") | ~pairs.match("patient")
    shown = torch.triu(~pairs.itself() & counted, 1)
    table = _tabulate(state.arm.weighting, batch, pairs, shown)
    positive = np.where(table["mixed"], "clean–adversarial", "positive")
    which = np.where(table["same_class"], "same class", "other class")
    negative = "negative: " + pd.Series(which, dtype=object)
    table["kind"] = np.where(table["same_record"], positive, negative)
    table = table.rename(columns={"push": "weight"})
    return table[["similarity", "kind", "weight", "same_class"]]


def _embed_views(state: State, data: Data, index: Tensor) -> Batch:
    """`VIEWS` of some records, embedded in evaluation mode and float32."""
    state.precision = "float32"
    with evaluation_mode(state.model):
        return embed_batch(state, data, index, VIEWS, Adversary("1* 2"))


def _pairs_of(state: State, batch: Batch) -> Pairs:
    rows = batch.rows_of(VIEWS)
    return Pairs(rows, rows, temperature=state.temperature)


@torch.no_grad()
def _tabulate(
    schemes: Schemes, batch: Batch, pairs: Pairs, shown: Tensor | int
) -> pd.DataFrame:
    """Similarities and weights of pairs, one per row: those `shown`, or of one anchor.

    `pull` is P ω, `push` is W with a row mean of 1 on the negatives, NaN elsewhere.
    """
    embedded, _ = batch.stacked(VIEWS)
    cosine = embedded @ embedded.T
    weights = compose(schemes)(cosine / pairs.temperature, pairs)
    eligible, pull = weights.eligible, weights.pull
    if weights.positive is not None:
        pull = pull * weights.positive
    push = weights.log_push.masked_fill(~eligible, -torch.inf).softmax(1)
    push = push * eligible.sum(1, keepdim=True)
    labels = pairs.anchors.metadata["labels"]
    columns = {
        "similarity": cosine,
        "pull": pull.masked_fill(pull <= 0, torch.nan),
        "push": push.masked_fill(~eligible, torch.nan),
        "same_record": pairs.match("record"),
        "same_class": labels @ labels.T > 0,
        "mixed": ~pairs.match("adversarial"),
        "attacked": pairs.candidates.adversarial.expand_as(cosine),
    }
    return pd.DataFrame({name: x[shown].cpu() for name, x in columns.items()})


def known_weightings(arm: str) -> dict[str, Schemes]:
    """Name → schemes: none, each one that stands alone, and those of `arm`."""
    weightings = {"uniform": (), **{name: ((name, {}),) for name in WEIGHTINGS}}
    del weightings["shuffled"]  # it permutes the weights that others gave
    own = get_arm(arm).weighting
    return weightings | ({f"{arm} (this run)": own} if own else {})


def weigh_record(
    run: Run,
    records: EcgRecords,
    folder: Path,
    record: str,
    size: int = 128,
) -> pd.DataFrame:
    """Pull and push weights of one ECG in a training batch, by `known_weightings`.

    The batch holds two random views of each record and an attacked one, embedded by the
    run's encoder. Schemes that ask for predictions get those of the evaluated head.

    Parameters
    ----------
    run, records
        An evaluated run, and all records of its data set.
    folder
        The protocol folder of the run, which holds ``head.safetensors``.
    record
        Id of one of the records.
    size
        Records in the batch.

    Returns
    -------
    DataFrame
        `scheme`, `anchor` (the record's clean or attacked view), `role` (pull, push),
        `kind` of the other view, `similarity` (cosine), and `weight`: P ω of positives,
        W with a mean of 1 of negatives.
    """
    state, _ = load_trained(run, records, folder.parent)
    data = Data.of(_draw_batch(run, records, record, size), state.device)
    index = torch.arange(len(data.signals), device=state.device)
    batch = _embed_views(state, data, index)
    model, _ = load_classifier(folder)
    for view, known in batch.known.items():
        logits = model.head(batch.features[view].detach().cpu())
        known["predictions"] = predicted_labels(logits, data.multilabel).to(
            index.device
        )
    pairs, parts = _pairs_of(state, batch), []
    anchors = {"clean view": 0, "attacked view": VIEWS.index("1*") * len(index)}
    for name, schemes in known_weightings(run.arm).items():
        for anchor, row in anchors.items():
            part = _tabulate(schemes, batch, pairs, row)
            known = part.columns.difference(["pull", "push"])
            part = part.melt(known, ["pull", "push"], "role", "weight").dropna()
            parts.append(part.assign(scheme=name, anchor=anchor))
    table = pd.concat(parts, ignore_index=True)
    own = np.where(table["attacked"], "its attacked view", "its clean views")
    pulled = np.where(table["same_record"], own, "other ECGs")
    pushed = np.where(table["same_class"], "same class", "other class")
    table["kind"] = np.where(table["role"] == "pull", pulled, pushed)
    columns = ["scheme", "anchor", "role", "kind", "similarity", "weight"]
    return table[columns]


def _draw_batch(run: Run, records: EcgRecords, record: str, size: int) -> EcgRecords:
    """The record, first, and others of the training split."""
    table = records.table
    own = find_row(records, record)
    others = np.flatnonzero(table["split"] == "train")
    draw = np.random.default_rng(derived_seed(run.dataset, "explored batch"))
    drawn = draw.choice(others, min(size, len(others)) - 1, replace=False)
    rows = np.r_[own, drawn]
    table = table.iloc[rows].reset_index(drop=True).assign(split="train")
    signals, labels = np.asarray(records.signals[rows]), records.labels[rows]
    return replace(records, signals=signals, labels=labels, table=table)


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
    used = [WEIGHTINGS[name] for name, _ in schemes] or [uniform]
    lines = [(scheme.__doc__ or "").strip().partition("\n")[0] for scheme in used]
    return "; ".join(line.rstrip(".") for line in lines)
