"""ECGs under attack: which records, one δ for all labels and one for each, and the rows of scores."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from ecgstudy import statistics
from ecgstudy.attacks import get_attack
from ecgstudy.attacks.gradient import Budget, Victim, pgd
from ecgstudy.attacks.objectives import label_targets, signed_scores
from ecgstudy.records import EcgRecords
from ecgstudy.study import AttackOptions, derived_seed


@torch.no_grad()
def in_batches(
    function: Callable[[Tensor], Tensor], signals: np.ndarray, device: torch.device, batch: int = 512
) -> Tensor:
    """`function` of all `signals` (records, leads, samples), a batch at a time, on `device`."""
    starts = range(0, len(signals), batch)
    return torch.cat([function(torch.tensor(signals[s : s + batch], device=device)) for s in starts])


def attacked_sample(records: EcgRecords, split: str, most: int | None) -> EcgRecords:
    """The records of `split` that are attacked: the same for every arm and seed.

    With more than `most` candidates, `most` are drawn with a seed that depends on the data set only.
    """
    chosen = np.flatnonzero((records.table["split"].eq(split) & records.table["attacked"]).to_numpy())
    if most is not None and len(chosen) > most:
        draw = np.random.default_rng(derived_seed(records.name, split, "attacked sample"))
        chosen = np.sort(draw.choice(chosen, most, replace=False))
    mask = np.zeros(len(records), dtype=bool)
    mask[chosen] = True
    return records.select(mask)


@dataclass
class Sample:
    """Records under attack, on the device, and the table columns that every row of theirs has."""

    signals: Tensor
    labels: Tensor
    columns: pd.DataFrame
    classes: tuple[str, ...]
    found: list[pd.DataFrame] = field(default_factory=list)

    @staticmethod
    def of(records: EcgRecords, protocol: str, device: torch.device) -> "Sample":
        """`records` on `device`, with the columns that every row of their scores gets."""
        labels = records.multi_hot()
        keep = [c for c in ("record", "patient", "split", "age", "sex") if c in records.table]
        truth = {f"y_{c}": labels[:, i].astype(np.int8) for i, c in enumerate(records.classes)}
        columns = records.table[keep].assign(target=records.name, protocol=protocol, **truth)
        signals = torch.tensor(records.signals, device=device)
        return Sample(signals, torch.tensor(labels, device=device), columns, records.classes)

    def scores(self, attack: str, epsilon_mv: float) -> Tensor:
        """Stored shared scores (records, classes) of one attack."""
        for frame in self.found:
            if (frame["attack"].iloc[0], frame["view"].iloc[0], frame["epsilon_mv"].iloc[0]) == (
                attack,
                "shared",
                epsilon_mv,
            ):
                values = frame[[f"score_{c}" for c in self.classes]].to_numpy()
                return torch.tensor(values, device=self.signals.device)
        raise KeyError((attack, epsilon_mv))

    def clean_scores(self) -> Tensor:
        """Stored scores of the unchanged ECGs."""
        return self.scores("none", 0.0)

    def some(self, index: Tensor) -> "Sample":
        """The chosen records alone, without scores."""
        columns = self.columns.iloc[index.cpu().numpy()].reset_index(drop=True)
        return Sample(self.signals[index], self.labels[index], columns, self.classes)

    def store(self, scores: Tensor, attack: str, view: str, epsilon_mv: float) -> None:
        """Keep the scores of one attack as rows of ``scores.parquet``."""
        values = scores.cpu().numpy()
        named = {f"score_{c}": values[:, i] for i, c in enumerate(self.classes)}
        how = {"attack": attack, "view": view, "epsilon_mv": epsilon_mv, "severity": np.nan}
        self.found.append(self.columns.assign(**how, **named))


class StepCounter:
    """Record-steps and seconds spent in attacks."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0

    def add(self, steps: int, started: float) -> None:
        self.steps, self.seconds = self.steps + steps, self.seconds + time.perf_counter() - started

    def rate(self) -> float:
        return self.steps / max(self.seconds, 1e-9)


def victim_scores(victim: Victim, signals: Tensor, options: AttackOptions) -> Tensor:
    """Class scores (records, classes) of `signals`, without gradient, in batches."""
    with torch.no_grad():
        return torch.cat([victim.scores(part) for part in signals.split(options.batch_size)])


def budget_of(
    options: AttackOptions, epsilon_mv: float, steps: int | None = None, restarts: int | None = None
) -> Budget:
    """The study's attack budget at `epsilon_mv` (mV), with other `steps` or `restarts` where given."""
    chosen = steps or options.steps, restarts or options.restarts
    return Budget(epsilon_mv, *chosen, batch_size=options.batch_size)


@dataclass
class Attacker:
    """One victim, one sample: runs attacks and stores their scores."""

    victim: Victim
    sample: Sample
    options: AttackOptions
    generator: Generator
    counter: StepCounter

    def clean(self) -> None:
        """Store the scores of the unchanged ECGs."""
        self.sample.store(
            victim_scores(self.victim, self.sample.signals, self.options), "none", "shared", 0.0
        )

    def epsilon(self, epsilon_mv: float, *, further: bool, label_view: bool, adc_mv: float | None) -> None:
        """Attack at one ε; then each label's own attack, started from the headline attack's δ.

        Per-label candidates include δ = 0 and every shared δ, so that the per-label AUROC never
        exceeds the shared one.
        """
        sample, candidates = self.sample, [self.sample.clean_scores()]
        delta, main = torch.zeros_like(sample.signals), self.options.headline_attack
        others = [name for name in self.options.attacks if further and name != main]
        for name in [*others, main]:
            delta = self._perturbation(name, epsilon_mv)
            candidates.append(victim_scores(self.victim, sample.signals + delta, self.options))
            sample.store(candidates[-1], name, "shared", epsilon_mv)
        if adc_mv is not None:  # as a recorder would store the attacked ECG: in whole ADC units
            rounded = torch.round((sample.signals + delta) / adc_mv) * adc_mv
            sample.store(
                victim_scores(self.victim, rounded, self.options), f"{main}-adc", "shared", epsilon_mv
            )
        if label_view:
            args = (self.victim, sample.signals, sample.labels, self.options, epsilon_mv, self.generator)
            candidates.append(label_scores(*args, start=delta))
            sample.store(worst_scores(candidates, sample.labels), main, "label", epsilon_mv)

    def _perturbation(self, name: str, epsilon_mv: float) -> Tensor:
        started, sample = time.perf_counter(), self.sample
        budget = budget_of(self.options, epsilon_mv)
        delta = get_attack(name)(self.victim, sample.signals, sample.labels, budget, self.generator)
        if name == self.options.headline_attack:
            self.counter.add(len(sample.signals) * budget.steps * budget.restarts, started)
        return delta


def label_scores(
    victim: Victim, signals: Tensor, labels: Tensor, options: AttackOptions, epsilon: float,
    generator: Generator, start: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Scores under per-label perturbations: column c under the δ that attacks label c alone.

    Because a pairwise worst case separates per record (positives minimise, negatives maximise their
    score), the AUROC of column c is the exact worst case over independent δ, up to the optimiser.

    Returns
    -------
    Tensor
        (records, classes).
    """
    columns = []
    for label in range(labels.shape[1]):
        budget = budget_of(options, epsilon, steps=options.label_steps)
        delta = pgd(
            victim, signals, signed_scores, label_targets(labels, label), budget, generator, start=start
        )
        columns.append(victim_scores(victim, signals + delta, options)[:, label])
    return torch.stack(columns, 1)


def worst_scores(candidates: list[Tensor], labels: Tensor) -> Tensor:
    """Per record and label, the worst of several scores: lowest for positives, highest for negatives."""
    stacked = torch.stack(candidates)
    return torch.where(labels > 0, stacked.amin(0), stacked.amax(0))


def macro_auroc(labels: Tensor, scores: Tensor) -> float:
    """Mean AUROC over the labels that have positives and negatives."""
    return float(np.nanmean(statistics.auroc(labels.cpu().numpy(), scores.cpu().numpy())))
