"""What the exploration notebook shows of one ECG, and its controls."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from ecgstudy.evaluation import explore
from ecgstudy.evaluation.diagnostics import AttackedEcg
from ecgstudy.evaluation.sample import attacked_sample
from ecgstudy.plots import alt_texts, ecg_paper
from ecgstudy.plots import single_run as figures
from ecgstudy.plots.tables_html import TEXT
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run


def draw(ecg: AttackedEcg, records: EcgRecords, epsilon_mv: float) -> Figure:
    """The ECG before and after on ECG paper, and the perturbation magnified.

    Parameters
    ----------
    ecg
        With one perturbation.
    records
        Those that it is one of: rate, leads, and whether they are simulated.
    epsilon_mv
        The attack's budget in mV, for the title.
    """
    ((attack, delta),) = ecg.deltas.items()
    title = f"record {ecg.record}, {attack}, ε = {epsilon_mv * 1000:g} µV"
    figure = ecg_paper.draw_ecg(ecg.signal, records.fs, records.leads, delta, title)
    return _stamped(figure, records, _ecg_alt(ecg, records, title))


def draw_energy(ecg: AttackedEcg, records: EcgRecords) -> Figure:
    """Where the perturbation's energy lies."""
    (attack,), energy = ecg.deltas, explore.perturbation_energy(ecg, records)
    alt = alt_texts.energy_use(energy.assign(attack=attack))
    return _stamped(figures.energy_shares(energy), records, alt)


def draw_weights(weights: pd.DataFrame, records: EcgRecords) -> Figure:
    """Pull and push of every scheme."""
    return _stamped(figures.pull_and_push(weights), records, _weights_alt(weights))


def _stamped(figure: Figure, records: EcgRecords, alt: str) -> Figure:
    return figures.stamped(figure, bool(records.card.get("synthetic")), alt)


def summary(run: Run, weights: pd.DataFrame) -> Styler:
    """`ecgstudy.evaluation.explore.summarise_weights` as a table."""
    styler = explore.summarise_weights(run, weights).style.hide()
    styler = styler.format(precision=2, na_rep="–").format("{:.0f}", subset="effective")
    left = [("text-align", "left"), ("min-width", "16rem")]
    styler = styler.set_properties(subset=["scheme", "idea"], **TEXT)
    return styler.set_table_styles([{"selector": "th.col5", "props": left}])


def _ecg_alt(ecg: AttackedEcg, records: EcgRecords, title: str) -> str:
    """The ECG, and its scores before and after."""
    values = ecg_paper.ecg_values(ecg.signal, records.fs, records.leads)
    scores = [
        f"{name}{' (true)' if row.true else ''} {alt_texts.signed(row.before, 2)}"
        f" to {alt_texts.signed(row.after, 2)}"
        for name, row in ecg.scores.iterrows()
    ]
    shown = alt_texts.ecg(values, title)
    return f"{shown} Scores before and after: {', '.join(scores)}."


def _weights_alt(weights: pd.DataFrame) -> str:
    """What each scheme pulls with in all, and the range that it pushes with."""
    parts = []
    for name, own in weights.groupby("scheme", sort=False):
        pulls = own[own["role"] == "pull"].groupby("anchor", sort=False)["weight"].sum()
        pulled = ", ".join(f"{anchor} {total:.2f}" for anchor, total in pulls.items())
        pushes = own.loc[own["role"] == "push", "weight"]
        parts.append(
            f"{name}: pull of its {pulled or 'views none'};"
            f" push {pushes.min():.2g} to {pushes.max():.2g}"
        )
    return "Pull and push weights of one ECG by scheme. " + ". ".join(parts) + "."


def controls(
    run: Run, records: EcgRecords, folder: Path, attacks: Iterable[str]
) -> None:
    """Controls for record, attack and ε, which redraw everything; for a live notebook.

    Weights depend on the record alone, and are drawn anew when it changes.

    Parameters
    ----------
    run, records, folder
        As for `ecgstudy.evaluation.explore.attack_record`.
    attacks
        Names to choose from.
    """
    import ipywidgets as widgets

    options = run.study.evaluation
    grid = sorted(options.epsilons_mv)
    test = attacked_sample(records, "test", options.max_records)
    record = widgets.Dropdown(options=list(test.table["record"]), description="record")
    attack = widgets.Dropdown(options=list(attacks), description="attack")
    epsilon = widgets.SelectionSlider(
        options=grid, value=grid[len(grid) // 2], description="ε (mV)"
    )
    chosen = {"record": record, "attack": attack, "epsilon_mv": epsilon}
    attacked = widgets.interactive_output(
        partial(show_attack, run, records, folder), chosen
    )
    weighed = widgets.interactive_output(
        partial(show_weights, run, records, folder), {"record": record}
    )
    display(widgets.VBox([widgets.HBox(list(chosen.values())), attacked, weighed]))


def show_attack(
    run: Run,
    records: EcgRecords,
    folder: Path,
    record: str,
    attack: str,
    epsilon_mv: float,
) -> None:
    """Display the attacked ECG, its scores and the perturbation's energy.

    Parameters
    ----------
    run, records, folder, record, attack, epsilon_mv
        As for `ecgstudy.evaluation.explore.attack_record`.
    """
    ecg = explore.attack_record(run, records, folder, record, attack, epsilon_mv)
    display(draw(ecg, records, epsilon_mv))
    display(ecg.scores.reset_index().style.hide().format(precision=2))
    display(draw_energy(ecg, records))


def show_weights(run: Run, records: EcgRecords, folder: Path, record: str) -> None:
    """Display what weighting schemes would do with the ECG.

    Parameters
    ----------
    run, records, folder, record
        As for `ecgstudy.evaluation.explore.weigh_record`.
    """
    weights = explore.weigh_record(run, records, folder, record)
    display(draw_weights(weights, records))
    display(summary(run, weights))
