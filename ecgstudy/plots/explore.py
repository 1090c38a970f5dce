"""One ECG, one attack, one ε at a time: what the exploration notebook shows, and its controls."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from torch import Generator, Tensor

from ecgstudy.attacks.api import Victim
from ecgstudy.attacks.named import get_attack
from ecgstudy.errors import StudyError
from ecgstudy.evaluation import diagnostics
from ecgstudy.evaluation.diagnostics import VIEWS, AttackedEcg
from ecgstudy.evaluation.energy import profile, r_peaks
from ecgstudy.evaluation.sample import attacked_sample, budget_of
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.params import split_leads
from ecgstudy.plots import alt_texts, ecg_paper
from ecgstudy.plots import single_run as figures
from ecgstudy.plots.tables_html import TEXT
from ecgstudy.pretraining.arms import Schemes
from ecgstudy.pretraining.contrast import Pairs
from ecgstudy.pretraining.loop import load_trained
from ecgstudy.pretraining.losses import predicted_labels
from ecgstudy.pretraining.state import Data
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.pretraining.weighting import SCHEMES, compose, uniform
from ecgstudy.records import EcgRecords
from ecgstudy.running.workflow import prepared_records
from ecgstudy.study import Paths, Run, derived_seed


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
        return Explorer(
            run,
            records,
            test,
            folder,
            Victim(model, test.multilabel, model.encoder, test.fs),
        )

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
        stream = Generator().manual_seed(
            derived_seed(self.run.dataset, self.run.seed, "explore", attack)
        )
        budget, (_, leads) = (
            budget_of(self.run.study.evaluation, epsilon_mv),
            split_leads(attack),
        )
        if leads:
            budget = replace(budget, mask=sample.lead_mask(leads))
        delta = get_attack(attack)(
            self.victim, sample.signals, sample.labels, budget, stream
        )[place]
        return diagnostics.before_and_after(
            self.victim, sample, place, {attack: delta.numpy()}
        )

    def energy(self, ecg: AttackedEcg) -> pd.DataFrame:
        """Where the perturbation's energy lies, beside white noise's: `ecgstudy.evaluation.energy`."""
        (delta,) = ecg.deltas.values()
        centre = (self.records.card.get("window_samples") or [None])[0]
        peaks = r_peaks(ecg.signal[None], self.test.fs, self.test.leads, centre)
        return pd.DataFrame(profile(delta[None], self.test.fs, self.test.leads, peaks))

    def weightings(self) -> dict[str, Schemes]:
        """Every scheme that weighs by itself (`shuffled` deals out what others gave), and the run's own."""
        alone = {name: ((name, {}),) for name in SCHEMES if name != "shuffled"}
        own = get_arm(self.run.arm).weighting
        return {
            "uniform": (),
            **alone,
            **({f"{self.run.arm} (this run)": own} if own else {}),
        }

    def weights(
        self,
        record: str,
        weightings: Mapping[str, Schemes] | None = None,
        size: int = 128,
    ) -> pd.DataFrame:
        """What weighting schemes do with a batch of training records in which `record` is.

        Two random views of each record and an attacked one, embedded by this run's encoder; predictions,
        where a scheme asks for them, are those of the evaluated head.

        Parameters
        ----------
        weightings
            Name → schemes with their options, applied in order; None: all of `weightings`.

        Returns
        -------
        DataFrame
            `scheme`, `anchor` (the record's clean or attacked view), `role` (pull, push), `kind` of the other
            view, `similarity` (cosine), `weight`: P ω of what pulls, W with a mean of 1 of what pushes.
        """
        state, _ = load_trained(self.run, self.records, self.folder.parent)
        data = Data.of(self._batch(record, size), state.device)
        index = torch.arange(len(data.signals), device=state.device)
        batch = diagnostics.inspected(state, data, index)
        for view, known in batch.known.items():
            logits = self.victim.model.head(batch.features[view].detach().cpu())
            known["predictions"] = predicted_labels(logits, data.multilabel).to(
                state.device
            )
        embedded, rows = batch.stacked(VIEWS)
        pairs, cosine = (
            Pairs(rows, rows, temperature=state.temperature),
            embedded @ embedded.T,
        )
        anchors = {"clean view": 0, "attacked view": VIEWS.index("1*") * len(index)}
        chosen = (weightings or self.weightings()).items()
        parts = {
            name: _weighed(schemes, cosine, pairs, anchors) for name, schemes in chosen
        }
        return (
            pd.concat(parts, names=["scheme"])
            .reset_index("scheme")
            .reset_index(drop=True)
        )

    def summary(self, weights: pd.DataFrame) -> Styler:
        """Of each scheme: what pulls each view in all, the negatives that push the clean one, and its idea.

        Effective negatives are (Σw)² / Σw²: as many as there are if all weigh alike.
        """
        pulls, pushes = (weights[weights["role"] == role] for role in ("pull", "push"))
        table = pulls.pivot_table(
            "weight", "scheme", "anchor", "sum", sort=False
        ).add_prefix("pull of its ")
        first = pushes[pushes["anchor"] == "clean view"].groupby("scheme")["weight"]
        table["negatives"] = first.size()
        table["effective"] = first.sum() ** 2 / first.agg(lambda w: (w**2).sum())
        table["idea"] = pd.Series(
            {name: _idea(schemes) for name, schemes in self.weightings().items()}
        )
        table = (
            table.reindex(weights["scheme"].unique())
            .rename_axis(columns=None)
            .reset_index()
        )
        styler = (
            table.style.hide()
            .format(precision=2, na_rep="–")
            .format("{:.0f}", subset="effective")
        )
        left = [
            {
                "selector": "th.col5",
                "props": [("text-align", "left"), ("min-width", "16rem")],
            }
        ]
        return styler.set_properties(
            subset=["scheme", "idea"], **TEXT
        ).set_table_styles(left)

    def _batch(self, record: str, size: int) -> EcgRecords:
        """The record, first, and others of the training split."""
        table = self.records.table
        own = np.flatnonzero(
            table["record"] == self.test.table["record"].iloc[self.row(record)]
        )
        others = np.flatnonzero(table["split"] == "train")
        draw = np.random.default_rng(derived_seed(self.run.dataset, "explored batch"))
        rows = np.r_[
            own, draw.choice(others, min(size, len(others)) - 1, replace=False)
        ]
        part = table.iloc[rows].reset_index(drop=True).assign(split="train")
        signals, labels = (
            np.asarray(self.records.signals[rows]),
            self.records.labels[rows],
        )
        return replace(self.records, signals=signals, labels=labels, table=part)

    def draw(self, ecg: AttackedEcg, epsilon_mv: float) -> Figure:
        """The ECG before and after on ECG paper, and the perturbation magnified."""
        ((attack, delta),) = ecg.deltas.items()
        title = f"record {ecg.record}, {attack}, ε = {epsilon_mv * 1000:g} µV"
        figure = ecg_paper.draw_ecg(
            ecg.signal, self.test.fs, self.test.leads, delta, title
        )
        return self._stamped(figure, _ecg_alt(ecg, self.test, title))

    def draw_energy(self, ecg: AttackedEcg) -> Figure:
        """Where the perturbation's energy lies."""
        (attack,), energy = ecg.deltas, self.energy(ecg)
        return self._stamped(
            figures.energy_shares(energy),
            alt_texts.energy_use(energy.assign(attack=attack)),
        )

    def draw_weights(self, weights: pd.DataFrame) -> Figure:
        """Pull and push of every scheme."""
        return self._stamped(figures.pull_and_push(weights), _weights_alt(weights))

    def _stamped(self, figure: Figure, alt: str) -> Figure:
        return figures.stamped(figure, bool(self.records.card.get("synthetic")), alt)


def _weighed(
    schemes: Schemes, cosine: Tensor, pairs: Pairs, anchors: Mapping[str, int]
) -> pd.DataFrame:
    """Rows of `Explorer.weights` under `schemes`; `cosine` and `pairs` are (views, views)."""
    weights = compose(schemes)(cosine / pairs.temperature, pairs)
    pull = weights.pull if weights.positive is None else weights.pull * weights.positive
    push, attacked = diagnostics.push_weights(weights), pairs.candidates.adversarial
    parts = []
    for anchor, row in anchors.items():
        own, same = pairs.match("record")[row], diagnostics.same_class(pairs)[row]
        kinds = np.where(
            own.cpu(),
            np.where(attacked.cpu(), *list(figures.PULLS)[1::-1]),
            "other ECGs",
        )
        sides = {"pull": (pull, pull > 0, kinds)}
        sides["push"] = (
            push,
            weights.eligible,
            np.where(same.cpu(), "same class", "other class"),
        )
        for role, (weight, there, kind) in sides.items():
            part = pd.DataFrame(
                {
                    "kind": kind,
                    "similarity": cosine[row].cpu(),
                    "weight": weight[row].cpu(),
                }
            )
            parts.append(
                part[there[row].cpu().numpy()].assign(anchor=anchor, role=role)
            )
    return pd.concat(parts)


def _idea(schemes: Schemes) -> str:
    """First lines of what the schemes say of themselves."""
    used = [SCHEMES[name] for name, _ in schemes] or [uniform]
    return "; ".join(
        (scheme.__doc__ or "").strip().partition("\n")[0].rstrip(".") for scheme in used
    )


def _ecg_alt(ecg: AttackedEcg, records: EcgRecords, title: str) -> str:
    """The ECG, and its scores before and after."""
    shown = alt_texts.ecg(
        ecg_paper.ecg_values(ecg.signal, records.fs, records.leads), title
    )
    scores = [
        f"{name}{' (true)' if row.true else ''} {alt_texts.signed(row.before, 2)}"
        f" to {alt_texts.signed(row.after, 2)}"
        for name, row in ecg.scores.iterrows()
    ]
    return f"{shown} Scores before and after: {', '.join(scores)}."


def _weights_alt(weights: pd.DataFrame) -> str:
    """What each scheme pulls with in all, and the range that it pushes with."""
    parts = []
    for name, own in weights.groupby("scheme", sort=False):
        pulls = own[own["role"] == "pull"].groupby("anchor", sort=False)["weight"].sum()
        pulled = ", ".join(f"{anchor} {total:.2f}" for anchor, total in pulls.items())
        pushes = own.loc[own["role"] == "push", "weight"]
        parts.append(
            f"{name}: pull of its {pulled or 'views none'}; push {pushes.min():.2g} to {pushes.max():.2g}"
        )
    return "Pull and push weights of one ECG by scheme. " + ". ".join(parts) + "."


def controls(explorer: Explorer, attacks: Iterable[str]) -> None:
    """Controls for record, attack and ε, which redraw everything; for a live notebook.

    Weights depend on the record alone, and are drawn anew when it changes.
    """
    import ipywidgets as widgets

    grid = sorted(explorer.run.study.evaluation.epsilons_mv)
    records = list(explorer.test.table["record"])
    record = widgets.Dropdown(options=records, description="record")
    attack = widgets.Dropdown(options=list(attacks), description="attack")
    epsilon = widgets.SelectionSlider(
        options=grid, value=grid[len(grid) // 2], description="ε (mV)"
    )
    chosen = {"record": record, "attack": attack, "epsilon_mv": epsilon}
    attacked = widgets.interactive_output(partial(show_attack, explorer), chosen)
    weighed = widgets.interactive_output(
        partial(show_weights, explorer), {"record": record}
    )
    display(widgets.VBox([widgets.HBox(list(chosen.values())), attacked, weighed]))


def show_attack(
    explorer: Explorer, record: str, attack: str, epsilon_mv: float
) -> None:
    """Display the attacked ECG, its scores and the perturbation's energy."""
    ecg = explorer.attacked(record, attack, epsilon_mv)
    display(explorer.draw(ecg, epsilon_mv))
    display(ecg.scores.reset_index().style.hide().format(precision=2))
    display(explorer.draw_energy(ecg))


def show_weights(explorer: Explorer, record: str) -> None:
    """Display what weighting schemes would do with the ECG."""
    weights = explorer.weights(record)
    display(explorer.draw_weights(weights))
    display(explorer.summary(weights))
