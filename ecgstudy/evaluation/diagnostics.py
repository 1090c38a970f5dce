"""What the notebooks look at: similarities, weights, embeddings and single attacked ECGs, as tables."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ecgstudy.arms import Adversary
from ecgstudy.attacks.problem import Victim
from ecgstudy.checkpoints import load_classifier, load_encoder
from ecgstudy.contrast import Pairs, Rows
from ecgstudy.evaluation.attacked import (
    Attacker,
    Sample,
    StepCounter,
    attacked_sample,
    in_batches,
    spread,
    victim_scores,
)
from ecgstudy.objective import embedded_batch, evaluating
from ecgstudy.records import EcgRecords
from ecgstudy.study import ENSEMBLE, Run
from ecgstudy.training import load_trained
from ecgstudy.weighting import compose

VIEWS = ("1", "2", "1*")
"""Two random views of each record, and the first one attacked."""


def inspect_batch(run: Run, records: EcgRecords, folder: Path, size: int = 256) -> pd.DataFrame:
    """Every pair of one batch of training records, as the finished run's loss sees it.

    Two clean views and an adversarial one of each record, in evaluation mode, with the run's own ε
    and statistics; also for arms that never met an adversary.

    Returns
    -------
    DataFrame
        `similarity` (cosine), `kind` of pair, `weight` (W with row mean 1 on the negatives, NaN on
        other pairs), `same_class` (labels shared, unknown to the loss).
    """
    state, data = load_trained(run, records, folder)
    state.precision = "float32"
    order = torch.randperm(len(data.signals), generator=state.streams["batches"], device=state.device)
    index = order[:size]
    with evaluating(state.model):
        batch = embedded_batch(state, data, index, VIEWS, Adversary("1* 2"))
        embedded, rows = batch.stacked(VIEWS)
    with torch.no_grad():
        cosine = embedded @ embedded.T
        pairs = Pairs(rows, rows, temperature=state.temperature)
        weights = compose(state.arm.weighting)(cosine / state.temperature, pairs)
        push = weights.log_push.masked_fill(~weights.eligible, -torch.inf).softmax(1)
        push = push * weights.eligible.sum(1, keepdim=True)
        labels = data.labels[index].repeat(3, 1)
        same = (labels @ labels.T) > 0
    return _pair_frame(rows, pairs, cosine, push.masked_fill(~weights.eligible, torch.nan), same)


def _pair_frame(rows: Rows, pairs: Pairs, cosine: Tensor, push: Tensor, same: Tensor) -> pd.DataFrame:
    record, patient = pairs.match("record"), pairs.match("patient")
    mixed = rows.adversarial[:, None] != rows.adversarial[None, :]
    kinds = np.array(["positive", "clean–adversarial", "negative: same class", "negative: other class"])
    kind = torch.where(record, mixed.long(), 3 - same.long())
    upper = torch.triu(~pairs.itself() & (record | ~patient), 1)
    return pd.DataFrame(
        {
            "similarity": cosine[upper].cpu().numpy(),
            "kind": kinds[kind[upper].cpu().numpy()],
            "weight": push[upper].cpu().numpy(),
            "same_class": same[upper].cpu().numpy(),
        }
    )


def embedding_plane(records: EcgRecords, folder: Path, most: int = 1500) -> pd.DataFrame:
    """Features of test records on their first two principal components.

    Returns
    -------
    DataFrame
        `x`, `y`, `class` (the first of several), `patient`.
    """
    from sklearn.decomposition import PCA

    encoder, _, _ = load_encoder(folder)
    test = attacked_sample(records, "test", most)
    features = in_batches(encoder, test.signals, torch.device("cpu")).numpy()
    plane = PCA(2, random_state=0).fit_transform((features - features.mean(0)) / (features.std(0) + 1e-6))
    labels = test.multi_hot()
    names = np.array([*test.classes, "none"])[np.where(labels.any(1), labels.argmax(1), len(test.classes))]
    return pd.DataFrame(
        {"x": plane[:, 0], "y": plane[:, 1], "class": names, "patient": test.table["patient"]}
    )


@dataclass(frozen=True)
class AttackedEcg:
    """One ECG before and after attacks; signals (leads, samples) in mV.

    Attributes
    ----------
    deltas
        Attack → perturbation; the ``ensemble`` is the last.
    scores
        Of each class, `before` and `after` the ensemble's perturbation, and whether it is `true`.
    """

    record: str
    signal: np.ndarray
    deltas: dict[str, np.ndarray]
    scores: pd.DataFrame


def most_fragile(
    run: Run, records: EcgRecords, folder: Path, scores: pd.DataFrame, beside: int = 15
) -> AttackedEcg:
    """The test ECG that loses most of its true classes' scores under the headline attack, attacked again.

    Every attack of the study at the headline ε but ``transfer`` is made on it and `beside` other records of
    all classes: margins and universal perturbations refer to a sample.

    Parameters
    ----------
    folder
        The protocol folder of an evaluated run.
    scores
        Its stored scores.
    """
    options, epsilon = run.study.evaluation, run.headline_epsilon_mv
    test = attacked_sample(records, "test", options.max_records)
    row = _largest_loss(scores, ENSEMBLE, epsilon, test)
    few = np.union1d(spread(torch.tensor(test.multi_hot()), beside), row)
    sample = Sample.of(test.select(np.isin(np.arange(len(test)), few)), "", torch.device("cpu"))
    place, deltas = int(np.searchsorted(few, row)), {}
    model, _ = load_classifier(folder)
    victim = Victim(model, test.multilabel, model.encoder, test.fs)
    names = dict.fromkeys([*options.ensemble, *options.attacks])
    at = Attacker(
        victim, sample, options.model_copy(update={"query_records": None}),
        (run.dataset, run.seed, "most fragile"), StepCounter(),
    )  # fmt: skip
    at.epsilon(
        epsilon, [name for name in names if name != "transfer"], label_view=False, adc_mv=None,
        watch=lambda name, _, delta: deltas.update({name: delta[place].numpy()}),
    )  # fmt: skip
    signal = sample.signals[place]
    both = torch.stack([signal, signal + torch.tensor(deltas[ENSEMBLE])])
    values = victim_scores(victim, both, options).T.numpy()
    table = pd.DataFrame(values, list(test.classes), ["before", "after"]).rename_axis("class")
    table.insert(0, "true", test.multi_hot()[row].astype(bool))
    return AttackedEcg(test.table["record"].iloc[row], signal.numpy(), deltas, table)


def _largest_loss(scores: pd.DataFrame, attack: str, epsilon_mv: float, test: EcgRecords) -> int:
    """Row of `test` whose true classes' scores fall furthest, among those that score best before."""
    shared = scores[(scores["view"] == "shared") & (scores["split"] == "test")]
    before = shared[shared["attack"] == "none"]
    after = shared[(shared["attack"] == attack) & (shared["epsilon_mv"] == epsilon_mv)]
    columns, labels = [f"score_{c}" for c in test.classes], test.multi_hot()
    ranks = before[columns].rank(pct=True).to_numpy()
    sound = np.where(labels > 0, ranks, np.nan)
    sound = np.nan_to_num(np.nanmin(np.where(labels.any(1, keepdims=True), sound, 0.0), 1))
    loss = ((before[columns].to_numpy() - after[columns].to_numpy()) * labels).sum(1)
    return int(np.where(sound >= 0.5, loss, -np.inf).argmax())
