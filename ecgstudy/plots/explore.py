"""One ECG, one attack, one ε at a time: what the exploration notebook shows, and its controls."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from matplotlib.figure import Figure
from torch import Generator, Tensor

from ecgstudy import figures
from ecgstudy.attacks import get_attack, split_leads
from ecgstudy.attacks.problem import Victim
from ecgstudy.checkpoints import load_classifier
from ecgstudy.contrast import Pairs
from ecgstudy.errors import StudyError
from ecgstudy.evaluation import diagnostics
from ecgstudy.evaluation.attacked import attacked_sample, budget_of
from ecgstudy.evaluation.diagnostics import AttackedEcg
from ecgstudy.evaluation.profiles import profile, r_peaks
from ecgstudy.objective import Data
from ecgstudy.plots import ecg_paper
from ecgstudy.records import EcgRecords
from ecgstudy.running.workflow import prepared_records
from ecgstudy.study import Paths, Run, derived_seed
from ecgstudy.training import load_trained


@dataclass(frozen=True)
class Explorer:
    """One finished run, its test records, and its model on the CPU."""

    run: Run
    records: EcgRecords
    test: EcgRecords
    folder: Path
    victim: Victim

    @staticmethod
    def of(run: Run, paths: Paths) -> "Explorer":
        """The evaluated `run` (protocol ``slf``) of a study.

        Raises
        ------
        StudyError
            When it has not been evaluated yet, with the command that does.
        """
        folder = paths.protocol(run.dataset, run.arm, run.seed, "slf")
        if not (folder / "head.safetensors").exists():
            raise StudyError(
                f"{folder} holds no evaluated model; run `make study STUDY={paths.study}`, or choose a run"
                " that is there"
            )
        records = prepared_records(run.study, run.dataset, paths)
        test = attacked_sample(records, "test", run.study.evaluation.max_records)
        model, _ = load_classifier(folder)
        return Explorer(run, records, test, folder, Victim(model, test.multilabel, model.encoder, test.fs))

    def row(self, record: str) -> int:
        """Place of `record` among the test records."""
        found = np.flatnonzero(self.test.table["record"] == record)
        if not len(found):
            some = ", ".join(self.test.table["record"].head(3))
            raise StudyError(
                f"{record!r} is none of the {len(self.test)} attacked test records, such as {some}"
            )
        return int(found[0])

    def attacked(self, record: str, attack: str, epsilon_mv: float) -> AttackedEcg:
        """`record` under one attack of the study's budget, made on it among others."""
        sample, place = diagnostics.among_others(self.test, self.row(record))
        stream = Generator().manual_seed(derived_seed(self.run.dataset, self.run.seed, "explore", attack))
        budget, (_, leads) = budget_of(self.run.study.evaluation, epsilon_mv), split_leads(attack)
        if leads:
            budget = replace(budget, mask=sample.lead_mask(leads))
        delta = get_attack(attack)(self.victim, sample.signals, sample.labels, budget, stream)[place]
        return diagnostics.before_and_after(self.victim, sample, place, {attack: delta.numpy()})

    def energy(self, ecg: AttackedEcg) -> pd.DataFrame:
        """Where the perturbation's energy lies, beside white noise's: `ecgstudy.evaluation.profiles`."""
        (delta,) = ecg.deltas.values()
        centre = (self.records.card.get("window_samples") or [None])[0]
        peaks = r_peaks(ecg.signal[None], self.test.fs, self.test.leads, centre)
        return pd.DataFrame(profile(delta[None], self.test.fs, self.test.leads, peaks))

    def weights(self, record: str, schemes: Iterable[str], size: int = 128) -> pd.DataFrame:
        """What weighting schemes do with a batch of training records in which `record` is.

        Two random views of each record and an attacked one, embedded by this run's encoder.

        Returns
        -------
        DataFrame
            For each scheme the pairs of the record's first view with its negatives: `similarity` (cosine),
            `weight` (mean 1), `same_class`.
        """
        state, _ = load_trained(self.run, self.records, self.folder.parent)
        data = Data.of(self._batch(record, size), state.device)
        every = torch.arange(len(data.signals), device=state.device)
        embedded, rows = diagnostics.embedded_views(state, data, every)
        pairs = Pairs(rows[:1], rows, temperature=state.temperature)
        cosine = embedded[:1] @ embedded.T
        return pd.concat([_pushed(name, cosine, pairs) for name in schemes], ignore_index=True)

    def _batch(self, record: str, size: int) -> EcgRecords:
        """The record, first, and others of the training split."""
        table = self.records.table
        own = np.flatnonzero(table["record"] == self.test.table["record"].iloc[self.row(record)])
        others = np.flatnonzero(table["split"] == "train")
        draw = np.random.default_rng(derived_seed(self.run.dataset, "explored batch"))
        rows = np.r_[own, draw.choice(others, min(size, len(others)) - 1, replace=False)]
        part = table.iloc[rows].reset_index(drop=True).assign(split="train")
        signals, labels = np.asarray(self.records.signals[rows]), self.records.labels[rows]
        return replace(self.records, signals=signals, labels=labels, table=part)

    def draw(self, ecg: AttackedEcg, epsilon_mv: float) -> Figure:
        """The ECG before and after on ECG paper, and the perturbation magnified."""
        ((attack, delta),) = ecg.deltas.items()
        title = f"record {ecg.record}, {attack}, ε = {epsilon_mv * 1000:g} µV"
        return ecg_paper.draw_ecg(ecg.signal, self.test.fs, self.test.leads, delta, title)


def _pushed(name: str, cosine: Tensor, pairs: Pairs) -> pd.DataFrame:
    push = diagnostics.push_weights(() if name == "uniform" else ((name, {}),), cosine, pairs)
    columns = {"similarity": cosine, "weight": push, "same_class": diagnostics.same_class(pairs)}
    negatives = {key: value[~push.isnan()].cpu().numpy() for key, value in columns.items()}
    return pd.DataFrame(negatives).assign(scheme=name)


def effective_negatives(weights: pd.DataFrame) -> pd.DataFrame:
    """(Σw)² / Σw² of each scheme, of `Explorer.weights`: the number of negatives if all weigh alike."""
    each = weights.groupby("scheme", sort=False)["weight"]
    square = weights.assign(square=weights["weight"] ** 2).groupby("scheme", sort=False)["square"]
    return (each.sum() ** 2 / square.sum()).rename("effective negatives").reset_index()


def controls(explorer: Explorer, attacks: Iterable[str]) -> None:
    """Controls for record, attack and ε, which redraw the ECG and its scores; for a live notebook."""
    import ipywidgets

    grid = sorted(explorer.run.study.evaluation.epsilons_mv)
    shown = ipywidgets.interactive_output(
        _shower(explorer),
        chosen := {
            "record": ipywidgets.Dropdown(options=list(explorer.test.table["record"]), description="record"),
            "attack": ipywidgets.Dropdown(options=list(attacks), description="attack"),
            "epsilon_mv": ipywidgets.SelectionSlider(
                options=grid, value=grid[len(grid) // 2], description="ε (mV)"
            ),
        },
    )
    display(ipywidgets.VBox([ipywidgets.HBox(list(chosen.values())), shown]))


def _shower(explorer: Explorer) -> Callable[[str, str, float], None]:
    def show(record: str, attack: str, epsilon_mv: float) -> None:
        ecg = explorer.attacked(record, attack, epsilon_mv)
        display(explorer.draw(ecg, epsilon_mv))
        display(ecg.scores.reset_index().style.hide().format(precision=2))
        display(figures.energy_shares(explorer.energy(ecg)))

    return show
