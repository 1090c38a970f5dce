"""Single ECGs before and after attacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ecgstudy.attacks.api import Victim
from ecgstudy.devices import pick_device
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.attack_run import AttackRun
from ecgstudy.evaluation.energy import find_r_peaks, profile_energy
from ecgstudy.evaluation.sample import pick_evenly, select_attacked
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.params import ENSEMBLE
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run

BESIDE = 15
"""Records attacked together with the one that is shown: margins and universal attacks
refer to a sample."""


@dataclass(frozen=True)
class AttackedEcg:
    """One ECG before and after attacks; signals (leads, samples) in mV.

    Attributes
    ----------
    record
        Its id.
    signal
        Before.
    deltas
        Attack → perturbation; of several the ``ensemble`` is the last.
    scores
        Of each class, `before` and `after` the last perturbation, and whether it is
        `true`.
    """

    record: str
    signal: np.ndarray
    deltas: dict[str, np.ndarray]
    scores: pd.DataFrame


def attack_record(
    run: Run,
    records: EcgRecords,
    folder: Path,
    record: str,
    attacks: Sequence[str],
    epsilon_mv: float,
) -> AttackedEcg:
    """Attack one test ECG, together with others (margins refer to a sample).

    Parameters
    ----------
    run, records
        An evaluated run, and all records of the data set that it was tested on.
    folder
        The protocol folder of the run, which holds ``head.safetensors``.
    record
        Id of one of the attacked test records.
    attacks
        Names of attacks, on some leads only as in ``"pgd-ce[II]"``; ``"ensemble"`` is
        the worst of those before it.
    epsilon_mv
        Largest change of a sample, in mV.

    Raises
    ------
    StudyError
        For an unknown record, attack or lead, or a run that is not evaluated yet.
    """
    options, device = run.study.evaluation, pick_device(run.study.device)
    test = select_attacked(records, "test", options.max_records)
    row = find_row(test, record)
    few = pick_evenly(torch.tensor(test.multi_hot()), BESIDE).tolist()
    test = test.select(np.isin(np.arange(len(test)), [*few, row]))
    model, _ = load_classifier(folder, str(device))
    victim = Victim(model, test.multilabel, model.encoder, test.fs)
    options = options.model_copy(update={"query_records": None})
    key = run.dataset, run.seed, "most fragile"
    attack_run = AttackRun(victim, test, options, key, device)
    deltas: dict[str, Tensor] = {}
    for name in attacks:
        if name == ENSEMBLE:
            deltas[name] = attack_run.combine(deltas, epsilon_mv)
        else:
            deltas[name] = attack_run.attack(name, epsilon_mv)
    row = find_row(test, record)
    deltas = {name: delta[row] for name, delta in deltas.items()}
    signal, last = attack_run.signals[row], list(deltas.values())[-1]
    before, after = attack_run.score(torch.stack([signal, signal + last])).cpu().numpy()
    true, classes = test.multi_hot()[row] > 0, pd.Index(test.classes, name="class")
    return AttackedEcg(
        record,
        signal.cpu().numpy(),
        {name: delta.cpu().numpy() for name, delta in deltas.items()},
        pd.DataFrame({"true": true, "before": before, "after": after}, classes),
    )


def find_row(records: EcgRecords, record: str) -> int:
    """Place of `record` among `records`; a `StudyError` if it is none of them."""
    ids = records.table["record"].tolist()
    if record not in ids:
        some = ", ".join(ids[:3])
        raise StudyError(
            f"{record!r} is none of the {len(ids)} records, such as {some}"
        )
    return ids.index(record)


def most_fragile(
    run: Run, records: EcgRecords, folder: Path, scores: pd.DataFrame
) -> AttackedEcg:
    """The test ECG whose true classes lose most under the headline attack.

    It is one that the model gets right without attack. Every attack of the study at the
    headline ε but ``transfer`` is made again on it and others.

    Parameters
    ----------
    run, records, folder
        As for `attack_record`.
    scores
        What ``scores.parquet`` holds.
    """
    options, epsilon_mv = run.study.evaluation, run.headline_epsilon_mv
    names = [f"score_{c}" for c in records.classes]
    rows = scores.query("view == 'shared' and split == 'test'")
    clean = rows.query("attack == 'none'").reset_index(drop=True)
    worst = rows.query("attack == @ENSEMBLE and epsilon_mv == @epsilon_mv")
    true = clean[[f"y_{c}" for c in records.classes]].to_numpy() > 0
    lowest_rank = clean[names].rank(pct=True).where(true).min(axis=1)
    loss = (clean[names] - worst[names].to_numpy()).where(true, 0).sum(axis=1)
    record = clean["record"][loss.where(lowest_rank >= 0.5, -np.inf).argmax()]
    attacks = dict.fromkeys([*options.ensemble, *options.attacks])
    attacks.pop("transfer", None)
    names = [*attacks, ENSEMBLE]
    return attack_record(run, records, folder, record, names, epsilon_mv)


def perturbation_energy(ecg: AttackedEcg, records: EcgRecords) -> pd.DataFrame:
    """Where the energy of the ECG's perturbation is, relative to white noise.

    The columns are those of `ecgstudy.evaluation.energy.profile_energy`; `records` are
    those that the ECG is one of.
    """
    (delta,) = ecg.deltas.values()
    own = records.select((records.table["record"] == ecg.record).to_numpy())
    peaks = find_r_peaks(own)
    return pd.DataFrame(profile_energy(delta[None], own.fs, own.leads, peaks))
