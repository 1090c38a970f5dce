"""What the notebooks look at: similarities, weights, embeddings and single attacked ECGs, as tables."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ecgstudy.attacks.api import Victim
from ecgstudy.devices import pick_device
from ecgstudy.evaluation.sample import (
    Attacker,
    Sample,
    StepCounter,
    attacked_sample,
    in_batches,
    spread,
)
from ecgstudy.models.checkpoints import load_classifier, load_encoder
from ecgstudy.pretraining.arms import Adversary
from ecgstudy.pretraining.loop import load_trained
from ecgstudy.pretraining.pairs import Pairs, Weights
from ecgstudy.pretraining.state import Batch, Data, State
from ecgstudy.pretraining.step import embed_batch, evaluation_mode
from ecgstudy.pretraining.weighting import compose
from ecgstudy.records import EcgRecords
from ecgstudy.study import ENSEMBLE, Run

CPU = torch.device("cpu")
VIEWS = ("1", "2", "1*")
"""Two random views of each record, and the first one attacked."""
BESIDE = 15
"""Records attacked together with the one that is shown: margins and universal attacks refer to a sample."""


def inspect_batch(
    run: Run, records: EcgRecords, folder: Path, size: int = 256
) -> pd.DataFrame:
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
    order = torch.randperm(
        len(data.signals), generator=state.streams["batches"], device=state.device
    )
    embedded, rows = inspected(state, data, order[:size]).stacked(VIEWS)
    cosine, pairs = (
        embedded @ embedded.T,
        Pairs(rows, rows, temperature=state.temperature),
    )
    weights = compose(state.arm.weighting)(cosine / pairs.temperature, pairs)
    return _pair_frame(pairs, cosine, push_weights(weights))


def inspected(state: State, data: Data, index: Tensor) -> Batch:
    """`VIEWS` of some records with their features and unit vectors, in evaluation mode and float32."""
    state.precision = "float32"
    with evaluation_mode(state.model):
        batch = embed_batch(state, data, index, VIEWS, Adversary("1* 2"))
    batch.features = {
        view: features.detach() for view, features in batch.features.items()
    }
    batch.embedded = {
        view: embedded.detach() for view, embedded in batch.embedded.items()
    }
    return batch


def push_weights(weights: Weights) -> Tensor:
    """W with a row mean of 1 on the negatives, NaN on other pairs."""
    push = weights.log_push.masked_fill(~weights.eligible, -torch.inf).softmax(1)
    return (push * weights.eligible.sum(1, keepdim=True)).masked_fill(
        ~weights.eligible, torch.nan
    )


def same_class(pairs: Pairs) -> Tensor:
    """Whether anchor and candidate share a label."""
    return pairs.anchors.metadata["labels"] @ pairs.candidates.metadata["labels"].T > 0


def _pair_frame(pairs: Pairs, cosine: Tensor, push: Tensor) -> pd.DataFrame:
    record, patient, same = (
        pairs.match("record"),
        pairs.match("patient"),
        same_class(pairs),
    )
    mixed = ~pairs.match("adversarial")
    kinds = np.array(
        [
            "positive",
            "clean–adversarial",
            "negative: same class",
            "negative: other class",
        ]
    )
    kind = torch.where(record, mixed.long(), 3 - same.long())
    upper = torch.triu(~pairs.itself() & (record | ~patient), 1)
    columns = {"similarity": cosine, "kind": kind, "weight": push, "same_class": same}
    found = pd.DataFrame(
        {name: values[upper].cpu().numpy() for name, values in columns.items()}
    )
    return found.assign(kind=kinds[found["kind"]])


def embedding_plane(
    records: EcgRecords, folder: Path, most: int = 1500, device: str = "cpu"
) -> pd.DataFrame:
    """Features of test records on their first two principal components.

    Parameters
    ----------
    device
        Where to encode them, as for `pick_device`.

    Returns
    -------
    DataFrame
        `x`, `y`, `class` (the first of several), `patient`.
    """
    from sklearn.decomposition import PCA

    encoder, _, _ = load_encoder(folder, device)
    test = attacked_sample(records, "test", most)
    features = in_batches(encoder, test.signals, pick_device(device)).cpu().numpy()
    plane = PCA(2, random_state=0).fit_transform(
        (features - features.mean(0)) / (features.std(0) + 1e-6)
    )
    labels = test.multi_hot()
    names = np.array([*test.classes, "none"])[
        np.where(labels.any(1), labels.argmax(1), len(test.classes))
    ]
    return pd.DataFrame(
        {
            "x": plane[:, 0],
            "y": plane[:, 1],
            "class": names,
            "patient": test.table["patient"],
        }
    )


@dataclass(frozen=True)
class AttackedEcg:
    """One ECG before and after attacks; signals (leads, samples) in mV.

    Attributes
    ----------
    deltas
        Attack → perturbation; of several the ``ensemble`` is the last.
    scores
        Of each class, `before` and `after` the last perturbation, and whether it is `true`.
    """

    record: str
    signal: np.ndarray
    deltas: dict[str, np.ndarray]
    scores: pd.DataFrame


def most_fragile(
    run: Run, records: EcgRecords, folder: Path, scores: pd.DataFrame
) -> AttackedEcg:
    """The test ECG that loses most of its true classes' scores under the headline attack, attacked again.

    Every attack of the study at the headline ε but ``transfer`` is made on it and `BESIDE` other records,
    on the study's device. `folder` is the protocol folder of an evaluated run, `scores` what it stored.
    """
    options, epsilon = run.study.evaluation, run.headline_epsilon_mv
    test, device = (
        attacked_sample(records, "test", options.max_records),
        pick_device(run.study.device),
    )
    sample, place = among_others(
        test, _largest_loss(scores, ENSEMBLE, epsilon, test), device
    )
    deltas: dict[str, np.ndarray] = {}
    model, _ = load_classifier(folder, str(device))
    victim = Victim(model, test.multilabel, model.encoder, test.fs)
    names = dict.fromkeys([*options.ensemble, *options.attacks])
    at = Attacker(
        victim, sample, options.model_copy(update={"query_records": None}),
        (run.dataset, run.seed, "most fragile"), StepCounter(),
    )  # fmt: skip
    at.epsilon(
        epsilon, [name for name in names if name != "transfer"], label_view=False, adc_mv=None,
        watch=lambda name, _, delta: deltas.update({name: delta[place].cpu().numpy()}),
    )  # fmt: skip
    return before_and_after(victim, sample, place, deltas)


def among_others(
    test: EcgRecords, row: int, device: torch.device = CPU
) -> tuple[Sample, int]:
    """`row` of `test` and `BESIDE` other records of all classes, to attack together; and its place there."""
    few = np.union1d(spread(torch.tensor(test.multi_hot()), BESIDE), row)
    sample = Sample.of(test.select(np.isin(np.arange(len(test)), few)), "", device)
    return sample, int(np.searchsorted(few, row))


def before_and_after(
    victim: Victim, sample: Sample, place: int, deltas: dict[str, np.ndarray]
) -> AttackedEcg:
    """The record at `place` of `sample` with its perturbations (mV), the last of which is scored."""
    signal, last = sample.signals[place], list(deltas)[-1]
    with torch.no_grad():
        attacked = signal + torch.tensor(deltas[last], device=signal.device)
        both = victim.scores(torch.stack([signal, attacked])).T.cpu().numpy()
    scores = pd.DataFrame(both, list(sample.classes), ["before", "after"]).rename_axis(
        "class"
    )
    scores.insert(0, "true", sample.labels[place].cpu().numpy() > 0)
    return AttackedEcg(
        sample.columns["record"].iloc[place], signal.cpu().numpy(), deltas, scores
    )


def _largest_loss(
    scores: pd.DataFrame, attack: str, epsilon_mv: float, test: EcgRecords
) -> int:
    """Row of `test` whose true classes' scores fall furthest, among those that score best before."""
    shared = scores[(scores["view"] == "shared") & (scores["split"] == "test")]
    before = shared[shared["attack"] == "none"]
    after = shared[(shared["attack"] == attack) & (shared["epsilon_mv"] == epsilon_mv)]
    columns, labels = [f"score_{c}" for c in test.classes], test.multi_hot()
    ranks = before[columns].rank(pct=True).to_numpy()
    sound = np.where(labels > 0, ranks, np.nan)
    sound = np.nan_to_num(
        np.nanmin(np.where(labels.any(1, keepdims=True), sound, 0.0), 1)
    )
    loss = ((before[columns].to_numpy() - after[columns].to_numpy()) * labels).sum(1)
    return int(np.where(sound >= 0.5, loss, -np.inf).argmax())
