"""Single ECGs before and after attacks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from ecgstudy.attacks.api import Victim
from ecgstudy.attacks.named import get_attack
from ecgstudy.devices import pick_device
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.energy import find_r_peaks, profile_energy
from ecgstudy.evaluation.sample import AttackRun, pick_evenly, select_attacked
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.params import ENSEMBLE
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, derived_seed

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
    attack_run, place = _start(run, records, folder, record, "cpu")
    budget = attack_run.budget(epsilon_mv, attack)
    seed = derived_seed(run.dataset, run.seed, "explore", attack)
    stream, victim = Generator().manual_seed(seed), attack_run.victim
    delta = get_attack(attack)(
        victim, attack_run.signals, attack_run.labels, budget, stream
    )
    return _before_and_after(attack_run, place, {attack: delta})


def most_fragile(
    run: Run, records: EcgRecords, folder: Path, scores: pd.DataFrame
) -> AttackedEcg:
    """The test ECG whose true classes lose most under the headline attack.

    It is one that the model gets right without attack. Every attack of the study at the
    headline ε but ``transfer`` is made again on it and others.

    Parameters
    ----------
    run, records
        An evaluated run, and all records of the data set that it was tested on.
    folder
        The protocol folder of the run.
    scores
        What ``scores.parquet`` holds.
    """
    epsilon_mv = run.headline_epsilon_mv
    record = _find_fragile(scores, epsilon_mv, records.classes)
    attack_run, place = _start(run, records, folder, record, run.study.device)
    names = attack_run.names(further=True)
    deltas = {name: attack_run.attack(name, epsilon_mv) for name in names}
    deltas[ENSEMBLE] = attack_run.combine(deltas, epsilon_mv)
    return _before_and_after(attack_run, place, deltas)


def _start(
    run: Run, records: EcgRecords, folder: Path, record: str, device: str
) -> tuple[AttackRun, int]:
    """The evaluated model with the record and some others, and the record's place."""
    options, place = run.study.evaluation, pick_device(device)
    test = select_attacked(records, "test", options.max_records)
    row = find_row(test, record)
    few = pick_evenly(torch.tensor(test.multi_hot()), BESIDE).tolist()
    test = test.select(np.isin(np.arange(len(test)), [*few, row]))
    model, _ = load_classifier(folder, str(place))
    victim = Victim(model, test.multilabel, model.encoder, test.fs)
    options = options.model_copy(update={"query_records": None})
    key = run.dataset, run.seed, "most fragile"
    return AttackRun(victim, test, options, key, place), find_row(test, record)


def find_row(records: EcgRecords, record: str) -> int:
    """Place of `record` among `records`; a `StudyError` if it is none of them."""
    ids = records.table["record"].tolist()
    if record not in ids:
        some = ", ".join(ids[:3])
        raise StudyError(
            f"{record!r} is none of the {len(ids)} records, such as {some}"
        )
    return ids.index(record)


@torch.no_grad()
def _before_and_after(
    attack_run: AttackRun, place: int, deltas: dict[str, Tensor]
) -> AttackedEcg:
    """The record at `place`, scored without and with the last of its perturbations."""
    signal = attack_run.signals[place]
    deltas = {name: delta[place] for name, delta in deltas.items()}
    both = torch.stack([signal, signal + list(deltas.values())[-1]])
    before, after = attack_run.victim.scores(both).cpu().numpy()
    true = attack_run.labels[place].cpu().numpy() > 0
    classes = pd.Index(attack_run.records.classes, name="class")
    columns = {"true": true, "before": before, "after": after}
    return AttackedEcg(
        attack_run.records.table["record"].iloc[place],
        signal.cpu().numpy(),
        {name: delta.cpu().numpy() for name, delta in deltas.items()},
        pd.DataFrame(columns, classes),
    )


def _find_fragile(
    scores: pd.DataFrame, epsilon_mv: float, classes: tuple[str, ...]
) -> str:
    """The record whose true classes' scores fall most, of those that score well."""
    rows = scores[(scores["view"] == "shared") & (scores["split"] == "test")]
    clean = rows[rows["attack"] == "none"]
    worst = rows[(rows["attack"] == ENSEMBLE) & (rows["epsilon_mv"] == epsilon_mv)]
    names = [f"score_{c}" for c in classes]
    true = clean[[f"y_{c}" for c in classes]].to_numpy() > 0
    lowest_rank = clean[names].rank(pct=True).where(true).min(axis=1)
    loss = np.where(true, clean[names].to_numpy() - worst[names].to_numpy(), 0).sum(1)
    loss[(lowest_rank.fillna(0) < 0.5).to_numpy()] = -np.inf
    return clean["record"].iloc[loss.argmax()]


def perturbation_energy(ecg: AttackedEcg, records: EcgRecords) -> pd.DataFrame:
    """Where the energy of the ECG's one perturbation lies, beside white noise's.

    The columns are those of `ecgstudy.evaluation.energy.profile_energy`; `records` are
    those that the ECG is one of.
    """
    (delta,) = ecg.deltas.values()
    own = records.select((records.table["record"] == ecg.record).to_numpy())
    peaks = find_r_peaks(own)
    return pd.DataFrame(profile_energy(delta[None], own.fs, own.leads, peaks))
