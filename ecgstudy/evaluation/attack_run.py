"""Attacks on some records by name, and the table of scores under them."""

import time
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from ecgstudy.attacks.api import Budget, Problem, Victim
from ecgstudy.attacks.corruptions import Recording, explain_skip
from ecgstudy.attacks.ensemble import combine
from ecgstudy.attacks.gradient import apgd
from ecgstudy.attacks.named import get_attack
from ecgstudy.attacks.objectives import label_targets, signed_scores
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.sample import pick_evenly
from ecgstudy.params import BLACK_BOX, ENSEMBLE, AttackOptions, split_leads
from ecgstudy.records import EcgRecords
from ecgstudy.registry import CORRUPTIONS
from ecgstudy.study import derived_seed

RECORD_COLUMNS = ("record", "patient", "split", "age", "sex")
SCORE_KEY = ("attack", "view", "epsilon_mv", "severity")
TRANSFERRED = "apgd-margin"
"""The attack that is made on another model and shown to this one, as ``transfer``."""


@dataclass
class AttackRun:
    """One model, some records: attacks them and keeps their scores.

    Attributes
    ----------
    victim
        The model under attack, on `device`.
    records
        All that are attacked.
    options
        Which attacks, and their budgets.
    key
        Decides the random starts, with the attack's name and ε: so no attack depends on
        which others are run.
    device
        Where to compute.
    protocol
        Named in the table.
    source
        Another model, on which the attack ``transfer`` is made.
    signals, labels
        (records, leads, samples) in mV, and multi-hot (records, classes).
    stored
        `SCORE_KEY` → scores (records, classes), NaN for records that were not attacked;
        ε in mV, a severity for corruptions only.
    skipped
        Corruptions that do not apply to these records: `corruption`, `severity`,
        `reason`.
    steps, seconds
        Record-steps of the ensemble's members, and the time that they took.
    """

    victim: Victim
    records: EcgRecords
    options: AttackOptions
    key: tuple[str | int, ...]
    device: torch.device
    protocol: str = ""
    source: Victim | None = None

    def __post_init__(self) -> None:
        self.signals = torch.tensor(self.records.signals, device=self.device)
        self.labels = torch.tensor(self.records.multi_hot(), device=self.device)
        self.stored: dict[tuple, Tensor] = {}
        self.skipped: list[dict] = []
        self.steps, self.seconds = 0, 0.0

    def score_clean(self) -> None:
        """Keep the scores of the unchanged ECGs."""
        self._keep(self.score(self.signals), "none", 0.0)

    def score_corrupted(self) -> None:
        """Keep scores under natural corruptions, drawn the same way for all runs."""
        recording, options = Recording.of(self.records), self.options
        names, severities = options.corruptions, options.severities
        for name, severity in product(names, severities):
            reason = explain_skip(name, severity, recording)
            if reason is not None:
                row = {"corruption": name, "severity": severity, "reason": reason}
                self.skipped.append(row)
                continue
            stream = self._stream(self.records.name, "corruption", name)
            corrupt = CORRUPTIONS.find(name)
            signals = corrupt(self.signals, recording, severity, stream)
            self._keep(self.score(signals), name, 0.0, severity=severity)

    def attack(self, name: str, epsilon_mv: float) -> Tensor:
        """δ in mV of one attack, whose scores are kept; NaN for records not attacked.

        Black-box attacks, where every query costs a pass, may be run on few records.

        Raises
        ------
        StudyError
            When a user's own attack leaves its ball or leads.
        """
        started, options = time.perf_counter(), self.options
        rows = torch.arange(len(self.labels), device=self.device)
        if split_leads(name)[0] in BLACK_BOX and options.query_records is not None:
            rows = pick_evenly(self.labels, options.query_records)
        signals, labels = self.signals[rows], self.labels[rows]
        if name == "transfer":
            attack, victim = get_attack(TRANSFERRED), self.source
        else:
            attack, victim = get_attack(name), self._informed(signals, rows)
        member = name in options.ensemble
        steps = options.steps if member else options.further_steps or options.steps
        budget = self.budget(epsilon_mv, name, steps=steps)
        stream = self._stream(*self.key, name, epsilon_mv)
        made = attack(victim, signals, labels, budget, stream)
        check_inside(name, made, signals, budget)
        if member:
            self.steps += len(rows) * steps * options.restarts
            self.seconds += time.perf_counter() - started
        delta = torch.full_like(self.signals, torch.nan)
        scores = torch.full_like(self.labels, torch.nan)
        delta[rows], scores[rows] = made, self.score(signals + made)
        self._keep(scores, name, epsilon_mv)
        return delta

    def combine(self, deltas: dict[str, Tensor], epsilon_mv: float) -> Tensor:
        """δ in mV of the worst attack on each record, whose scores are kept.

        `deltas` are δ by attack. Those in the larger ℓ2 ball are another threat and
        take no part.
        """
        names = [name for name in deltas if not is_l2(name)]
        chosen, worst = self.choose_worst(names, epsilon_mv)
        self._keep(worst, ENSEMBLE, epsilon_mv)
        every = torch.arange(len(chosen), device=self.device)
        return torch.stack([deltas[name] for name in names])[chosen, every]

    def choose_worst(
        self, names: list[str], epsilon_mv: float
    ) -> tuple[Tensor, Tensor]:
        """Which of the attacks `names` is the worst on each record, and its scores."""
        scores = torch.stack([self.scores(name, epsilon_mv) for name in names])
        chosen = combine(scores, self.labels)
        return chosen, scores[chosen, torch.arange(len(chosen), device=self.device)]

    def score_rounded(self, delta: Tensor, epsilon_mv: float) -> None:
        """Keep scores of the ensemble's ECGs as recorders store them: in ADC units."""
        adc_mv = self.records.card.get("adc_mv")
        if adc_mv is not None:
            signals = torch.round((self.signals + delta) / adc_mv) * adc_mv
            self._keep(self.score(signals), f"{ENSEMBLE}-adc", epsilon_mv)

    def attack_labels(self, delta: Tensor, names: list[str], epsilon_mv: float) -> None:
        """Attack every label on its own, and keep the worst scores of each.

        Parameters
        ----------
        delta
            δ (records, leads, samples) in mV to start from: the ensemble's.
        names
            Attacks on all labels at once: their scores are candidates, too.
        epsilon_mv
            In mV.
        """
        stream = self._stream(*self.key, "label", epsilon_mv)
        candidates = [self.attack_each_label(epsilon_mv, stream, delta)]
        for name in names:
            if not is_l2(name):
                candidates.append(self.scores(name, epsilon_mv))
        worst = take_worst(candidates, self.labels)
        self._keep(worst, ENSEMBLE, epsilon_mv, view="label")

    def attack_each_label(
        self, epsilon_mv: float, stream: Generator, start: Tensor | None = None
    ) -> Tensor:
        """Scores (records, classes): column c under the δ against label c alone.

        A pairwise worst case separates per record (positives minimise, negatives
        maximise their score), so the AUROC of column c is the exact worst case over
        independent δ, up to the optimiser.

        Parameters
        ----------
        epsilon_mv
            In mV.
        stream
            Of random starts.
        start
            δ in mV to start from.
        """
        signals, victim = self.signals, self._informed(self.signals)
        budget = self.budget(epsilon_mv, steps=self.options.label_steps)
        columns = []
        for label in range(len(self.records.classes)):
            targets = label_targets(self.labels, label)
            problem = Problem.of(victim, signals, signed_scores, targets, start)
            scores = self.score(signals + apgd(problem, budget, stream))
            columns.append(scores[:, label])
        return torch.stack(columns, 1)

    def score(self, signals: Tensor) -> Tensor:
        """Scores (records, classes) of `signals` in mV, without gradient.

        Raises
        ------
        StudyError
            When some are not finite.
        """
        parts = signals.split(self.options.batch_size)
        with torch.no_grad():
            scores = torch.cat([self.victim.scores(part) for part in parts])
        if strange := int((~scores.isfinite()).any(1).sum()):
            raise StudyError(
                f"the model's scores of {strange} of {len(scores)} ECGs are not finite:"
                " its pretraining or its head has diverged; use a lower learning rate"
            )
        return scores

    def budget(
        self, epsilon_mv: float, attack: str = "", **changes: int | None
    ) -> Budget:
        """The study's budget at `epsilon_mv` (mV), on the leads that `attack` names.

        `changes` are steps and restarts other than the study's.
        """
        options, known = self.options, self.records.leads
        _, leads = split_leads(attack)
        if unknown := sorted(set(leads).difference(known)):
            there = ", ".join(known)
            raise StudyError(
                f"no lead {unknown[0]!r} to attack; leads of the records: {there}"
            )
        chosen = [[float(lead in leads)] for lead in known]
        mask = torch.tensor(chosen, device=self.device) if leads else None
        spent = {"steps": options.steps, "restarts": options.restarts, **changes}
        return Budget(
            epsilon_mv,
            batch_size=options.batch_size,
            mask=mask,
            queries=options.queries,
            **spent,
        )

    def names(self, *, further: bool) -> list[str]:
        """The attacks that are run at an ε: the ensemble's, and `further` ones."""
        names = [*self.options.ensemble, *(self.options.attacks if further else [])]
        return [n for n in dict.fromkeys(names) if n != "transfer" or self.source]

    def _keep(
        self,
        scores: Tensor,
        attack: str,
        epsilon_mv: float,
        view: str = "shared",
        severity: int | None = None,
    ) -> None:
        self.stored[attack, view, epsilon_mv, severity] = scores

    def scores(self, attack: str, epsilon_mv: float) -> Tensor:
        """Shared scores (records, classes); NaN for records that were not attacked."""
        return self.stored[attack, "shared", epsilon_mv, None]

    def table(self) -> pd.DataFrame:
        """Rows of ``scores.parquet``, in the order in which attacks were run."""
        records, table = self.records, self.records.table
        known = [name for name in RECORD_COLUMNS if name in table]
        columns = table[known].assign(target=records.name, protocol=self.protocol)
        names = [f"y_{name}" for name in records.classes]
        columns[names] = records.multi_hot().astype(np.int8)
        names = [f"score_{name}" for name in records.classes]
        parts = []
        for key, scores in self.stored.items():
            part = columns.assign(**dict(zip(SCORE_KEY, key, strict=True)))
            part[names] = scores.cpu().numpy()
            parts.append(part.dropna(subset=names))
        return pd.concat(parts, ignore_index=True).astype({"severity": float})

    def _informed(self, signals: Tensor, rows: slice | Tensor = slice(None)) -> Victim:
        """The victim, told its scores of `signals`, if these were stored."""
        clean = self.stored.get(("none", "shared", 0.0, None))
        if clean is None:
            return self.victim
        return replace(self.victim, clean_scores=(signals, clean[rows]))

    def _stream(self, *what: str | float) -> Generator:
        return Generator(self.device).manual_seed(derived_seed(*what))


def is_l2(attack: str) -> bool:
    """Whether an attack has the ℓ2 ball of its ε, which holds the ℓ∞ one."""
    return split_leads(attack)[0].endswith("-l2")


def check_inside(name: str, delta: Tensor, signals: Tensor, budget: Budget) -> None:
    """Check that a user's own attack keeps to its budget, as those here are tested to.

    Parameters
    ----------
    name
        Of the attack.
    delta, signals
        (records, leads, samples) in mV.
    budget
        What the attack was given.

    Raises
    ------
    StudyError
        When δ has another shape than the signals, or leaves the ball or its leads.
    """
    ball = replace(budget.ball, norm="l2" if is_l2(name) else budget.norm)
    same = delta.shape == signals.shape
    if not same or not torch.allclose(ball.project(delta), delta, rtol=1e-4, atol=1e-6):
        raise StudyError(
            f"attack {name!r}: perturbations {tuple(delta.shape)} of ECGs"
            f" {tuple(signals.shape)} leave the {ball.norm} ball of"
            f" {ball.epsilon_mv:g} mV or its leads; end with budget.ball.project(delta)"
        )


def take_worst(candidates: list[Tensor], labels: Tensor) -> Tensor:
    """The worst of several scores: lowest for positives, highest for negatives.

    NaN (a record that an attack was not run on) is no candidate.
    """
    stacked = torch.stack(candidates)
    lowest = stacked.nan_to_num(torch.inf).amin(0)
    return torch.where(labels > 0, lowest, stacked.nan_to_num(-torch.inf).amax(0))
