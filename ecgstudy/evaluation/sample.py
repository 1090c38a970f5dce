"""ECGs under attack: which records, one δ for all labels and one for each, and the rows of scores."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from ecgstudy import metrics
from ecgstudy.attacks.api import Budget, Problem, Victim
from ecgstudy.attacks.ball import Ball
from ecgstudy.attacks.corruptions import Recording, get_corruption, explain_skip
from ecgstudy.attacks.ensemble import combine
from ecgstudy.attacks.gradient import apgd
from ecgstudy.attacks.named import get_attack
from ecgstudy.attacks.objectives import label_targets, signed_scores
from ecgstudy.errors import StudyError
from ecgstudy.params import BLACK_BOX, split_leads
from ecgstudy.records import EcgRecords
from ecgstudy.study import AttackOptions, derived_seed

Watch = Callable[[str, Tensor, Tensor], None]
"""(attack, which records, δ in mV): is shown perturbations as they are made."""
TRANSFERRED = "apgd-margin"
"""The attack that is made on another model and shown to this one, as ``transfer``."""


@torch.no_grad()
def in_batches(
    function: Callable[[Tensor], Tensor],
    signals: np.ndarray,
    device: torch.device,
    batch: int = 512,
) -> Tensor:
    """`function` of all `signals` (records, leads, samples), a batch at a time, on `device`."""
    starts = range(0, len(signals), batch)
    return torch.cat(
        [function(torch.tensor(signals[s : s + batch], device=device)) for s in starts]
    )


def attacked_sample(records: EcgRecords, split: str, most: int | None) -> EcgRecords:
    """The records of `split` that are attacked: the same for every arm and seed.

    With more than `most` candidates, `most` are drawn with a seed that depends on the data set only.
    """
    chosen = np.flatnonzero(
        (records.table["split"].eq(split) & records.table["attacked"]).to_numpy()
    )
    if most is not None and len(chosen) > most:
        draw = np.random.default_rng(
            derived_seed(records.name, split, "attacked sample")
        )
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
    leads: tuple[str, ...] = ()

    @staticmethod
    def of(records: EcgRecords, protocol: str, device: torch.device) -> "Sample":
        """`records` on `device`, with the columns that every row of their scores gets."""
        labels = records.multi_hot()
        keep = [
            c
            for c in ("record", "patient", "split", "age", "sex")
            if c in records.table
        ]
        truth = {
            f"y_{c}": labels[:, i].astype(np.int8)
            for i, c in enumerate(records.classes)
        }
        columns = records.table[keep].assign(
            target=records.name, protocol=protocol, **truth
        )
        signals = torch.tensor(records.signals, device=device)
        hot = torch.tensor(labels, device=device)
        return Sample(signals, hot, columns, records.classes, leads=records.leads)

    def lead_mask(self, names: tuple[str, ...]) -> Tensor:
        """1 for the leads called `names`, 0 for the others, (leads, 1)."""
        for name in names:
            if name not in self.leads:
                raise StudyError(
                    f"no lead {name!r} to attack; leads of the records: {', '.join(self.leads)}"
                )
        chosen = [[float(lead in names)] for lead in self.leads]
        return torch.tensor(chosen, device=self.signals.device)

    @property
    def every(self) -> Tensor:
        """Places of all records."""
        return torch.arange(len(self.labels), device=self.labels.device)

    def scores(self, attack: str, epsilon_mv: float) -> Tensor:
        """Stored shared scores (records, classes) of an attack on all records."""
        if (stored := self.stored(attack, epsilon_mv)) is None:
            raise KeyError((attack, epsilon_mv))
        return stored[1]

    def stored(self, attack: str, epsilon_mv: float) -> tuple[Tensor, Tensor] | None:
        """Which records an attack was run on, and their shared scores; None where it was not run."""
        for frame in self.found:
            first = frame.iloc[0]
            if (first["attack"], first["view"], first["epsilon_mv"]) == (
                attack,
                "shared",
                epsilon_mv,
            ):
                values = frame[[f"score_{c}" for c in self.classes]].to_numpy()
                return self.index(frame), torch.tensor(
                    values, device=self.signals.device
                )
        return None

    def index(self, columns: pd.DataFrame) -> Tensor:
        """Places of the records in `columns` among these."""
        places = pd.Index(self.columns["record"]).get_indexer(columns["record"])
        return torch.tensor(places, device=self.signals.device)

    def clean_scores(self) -> Tensor:
        """Stored scores of the unchanged ECGs."""
        return self.scores("none", 0.0)

    def part(self, rows: Tensor) -> "Sample":
        """The chosen records alone; their scores are kept with those of the whole sample."""
        columns = self.columns.iloc[rows.cpu().numpy()].reset_index(drop=True)
        return Sample(
            self.signals[rows],
            self.labels[rows],
            columns,
            self.classes,
            self.found,
            self.leads,
        )

    def store(
        self,
        scores: Tensor,
        attack: str,
        view: str,
        epsilon_mv: float,
        severity: float = np.nan,
    ) -> None:
        """Keep the scores of one attack, or of a corruption at a severity, as rows of ``scores.parquet``."""
        values = scores.cpu().numpy()
        named = {f"score_{c}": values[:, i] for i, c in enumerate(self.classes)}
        how = {
            "attack": attack,
            "view": view,
            "epsilon_mv": epsilon_mv,
            "severity": severity,
        }
        self.found.append(self.columns.assign(**how, **named))


class StepCounter:
    """Record-steps and seconds spent in attacks."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0

    def add(self, steps: int, started: float) -> None:
        self.steps, self.seconds = (
            self.steps + steps,
            self.seconds + time.perf_counter() - started,
        )

    def rate(self) -> float:
        return self.steps / max(self.seconds, 1e-9)


def victim_scores(victim: Victim, signals: Tensor, options: AttackOptions) -> Tensor:
    """Class scores (records, classes) of `signals`, without gradient, in batches.

    Raises
    ------
    StudyError
        When some are not finite.
    """
    with torch.no_grad():
        scores = torch.cat(
            [victim.scores(part) for part in signals.split(options.batch_size)]
        )
    if strange := int((~scores.isfinite()).any(1).sum()):
        raise StudyError(
            f"the model's scores of {strange} of {len(scores)} ECGs are not finite: its pretraining or its "
            "head has diverged; use a lower learning rate"
        )
    return scores


def budget_of(
    options: AttackOptions,
    epsilon_mv: float,
    steps: int | None = None,
    restarts: int | None = None,
) -> Budget:
    """The study's attack budget at `epsilon_mv` (mV), with other `steps` or `restarts` where given."""
    chosen = steps or options.steps, restarts or options.restarts
    return Budget(
        epsilon_mv, *chosen, batch_size=options.batch_size, queries=options.queries
    )


@dataclass
class Attacker:
    """One victim, one sample: runs attacks and stores their scores.

    `key` decides the random starts, with the attack's name and ε: no attack depends on which others are
    run. `source` is another model, from which the attack ``transfer`` is made.
    """

    victim: Victim
    sample: Sample
    options: AttackOptions
    key: tuple[str | float, ...]
    counter: StepCounter
    source: Victim | None = None

    def _stream(self, *what: str | float) -> Generator:
        seed = derived_seed(*self.key, *what)
        return Generator(self.sample.signals.device).manual_seed(seed)

    def clean(self) -> None:
        """Scores of the unchanged ECGs."""
        scores = victim_scores(self.victim, self.sample.signals, self.options)
        self.sample.store(scores, "none", "shared", 0.0)

    def corruptions(self, recording: Recording) -> None:
        """Scores under the natural corruptions, drawn once for each data set: the same in all runs."""
        target, signals = self.sample.columns["target"].iloc[0], self.sample.signals
        for name, severity in product(
            self.options.corruptions, self.options.severities
        ):
            if explain_skip(name, severity, recording) is None:
                stream = Generator(signals.device).manual_seed(
                    derived_seed(target, "corruption", name)
                )
                corrupted = get_corruption(name)(signals, recording, severity, stream)
                scores = victim_scores(self.victim, corrupted, self.options)
                self.sample.store(scores, name, "shared", 0.0, severity)

    def epsilon(
        self,
        epsilon_mv: float,
        names: list[str],
        *,
        label_view: bool,
        adc_mv: float | None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Run the attacks `names` at `epsilon_mv`, and combine those inside the ball to the ``ensemble``.

        Parameters
        ----------
        label_view
            Also attack every label by itself, from the combined perturbation on.
        adc_mv
            Amplitude of one ADC unit in mV: store the scores after rounding to it, too.
        watch
            Is shown every attack's perturbations, those of the ensemble last.

        Returns
        -------
        Tensor
            δ of the ensemble in mV.
        """
        sample, deltas, scores, watch = self.sample, [], [], watch or _nobody
        for name in names:
            rows = self._rows(name)
            delta = self._perturbation(name, epsilon_mv, rows)
            watch(name, rows, delta)
            found = victim_scores(
                self.victim, sample.signals[rows] + delta, self.options
            )
            (sample if len(rows) == len(sample.labels) else sample.part(rows)).store(
                found, name, "shared", epsilon_mv
            )
            if float(delta.abs().amax()) <= epsilon_mv * (
                1 + 1e-5
            ):  # ℓ2 attacks are another threat
                deltas.append(_spread_out(delta, rows, sample.signals))
                scores.append(_spread_out(found, rows, sample.labels))
        chosen, each = combine(torch.stack(scores), sample.labels), sample.every
        delta, worst = (
            torch.stack(deltas)[chosen, each],
            torch.stack(scores)[chosen, each],
        )
        sample.store(worst, "ensemble", "shared", epsilon_mv)
        watch("ensemble", each, delta)
        if (
            adc_mv is not None
        ):  # as a recorder would store the attacked ECG: in whole ADC units
            rounded = torch.round((sample.signals + delta) / adc_mv) * adc_mv
            rounded_scores = victim_scores(self.victim, rounded, self.options)
            sample.store(rounded_scores, "ensemble-adc", "shared", epsilon_mv)
        if label_view:
            stream = self._stream("label", epsilon_mv)
            informed = self._informed(sample.signals, each)
            args = (
                informed,
                sample.signals,
                sample.labels,
                self.options,
                epsilon_mv,
                stream,
            )
            candidates = [*scores, label_scores(*args, start=delta)]
            sample.store(
                worst_scores(candidates, sample.labels), "ensemble", "label", epsilon_mv
            )
        return delta

    def _rows(self, name: str) -> Tensor:
        """Records that an attack is run on: all, or the chosen few where every query costs a pass."""
        labels = self.sample.labels
        if split_leads(name)[0] in BLACK_BOX and self.options.query_records is not None:
            return spread(labels, self.options.query_records)
        return self.sample.every

    def _informed(self, signals: Tensor, rows: Tensor) -> Victim:
        """The victim, with its scores of the unchanged `signals` of the records `rows` if they are stored."""
        stored = self.sample.stored("none", 0.0)
        return (
            self.victim
            if stored is None
            else replace(self.victim, clean_scores=(signals, stored[1][rows]))
        )

    def _perturbation(self, name: str, epsilon_mv: float, rows: Tensor) -> Tensor:
        started, sample = time.perf_counter(), self.sample
        steps = None if name in self.options.ensemble else self.options.further_steps
        budget, (_, leads) = (
            budget_of(self.options, epsilon_mv, steps),
            split_leads(name),
        )
        if leads:
            budget = replace(budget, mask=sample.lead_mask(leads))
        stream, signals = self._stream(name, epsilon_mv), sample.signals[rows]
        victim, attack = self._informed(signals, rows), name
        if name == "transfer":
            victim, attack = self.source, TRANSFERRED
        delta = get_attack(attack)(victim, signals, sample.labels[rows], budget, stream)
        norm = "l2" if split_leads(name)[0].endswith("-l2") else budget.norm
        _check_inside(name, delta, signals, replace(budget.ball, norm=norm))
        if name in self.options.ensemble:
            self.counter.add(len(rows) * budget.steps * budget.restarts, started)
        return delta


def _check_inside(name: str, delta: Tensor, signals: Tensor, ball: Ball) -> None:
    """Refuse perturbations outside their set: what those here are tested for, others are held to."""
    if delta.shape != signals.shape or not torch.allclose(
        ball.project(delta), delta, rtol=1e-4, atol=1e-6
    ):
        raise StudyError(
            f"attack {name!r}: perturbations {tuple(delta.shape)} of ECGs {tuple(signals.shape)} leave the"
            f" {ball.norm} ball of {ball.epsilon_mv:g} mV or its leads; end with budget.ball.project(delta)"
        )


def _nobody(attack: str, rows: Tensor, delta: Tensor) -> None:
    pass


def _spread_out(values: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """`values` of the records `rows` in the shape of `like`, NaN for the other records."""
    whole = torch.full_like(like, torch.nan, dtype=values.dtype)
    whole[rows] = values
    return whole


def spread(labels: Tensor, most: int) -> Tensor:
    """Indices of at most `most` records in which the classes are as even as they can be.

    Records are taken in turn from each class, in a random order that is the same for all arms (the
    sample's own order is that of its patients).
    """
    hot, chosen = labels.cpu().numpy() > 0, []
    order = np.random.default_rng(derived_seed("few records")).permutation(len(hot))
    waiting = [list(order[column[order]]) for column in (*hot.T, ~hot.any(1))]
    while len(chosen) < min(most, len(hot)):
        for queue in waiting:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < most:
                chosen.append(queue.pop(0))
    return torch.tensor(sorted(chosen), device=labels.device)


def label_scores(
    victim: Victim, signals: Tensor, labels: Tensor, options: AttackOptions, epsilon: float,
    generator: Generator, start: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Scores (records, classes) under per-label perturbations: column c under the δ against label c alone.

    Because a pairwise worst case separates per record (positives minimise, negatives maximise their
    score), the AUROC of column c is the exact worst case over independent δ, up to the optimiser.
    """
    columns = []
    for label in range(labels.shape[1]):
        budget = budget_of(options, epsilon, steps=options.label_steps)
        problem = Problem.of(
            victim, signals, signed_scores, label_targets(labels, label), start
        )
        delta = apgd(problem, budget, generator)
        columns.append(victim_scores(victim, signals + delta, options)[:, label])
    return torch.stack(columns, 1)


def worst_scores(candidates: list[Tensor], labels: Tensor) -> Tensor:
    """Per record and label, the worst of several scores: lowest for positives, highest for negatives.

    NaN (a record that an attack was not run on) is no candidate.
    """
    stacked = torch.stack(candidates)
    lowest = torch.where(stacked.isnan(), torch.inf, stacked).amin(0)
    highest = torch.where(stacked.isnan(), -torch.inf, stacked).amax(0)
    return torch.where(labels > 0, lowest, highest)


def macro_auroc(labels: Tensor, scores: Tensor) -> float:
    """Mean AUROC over the labels that have positives and negatives."""
    return float(np.nanmean(metrics.auroc(labels.cpu().numpy(), scores.cpu().numpy())))
