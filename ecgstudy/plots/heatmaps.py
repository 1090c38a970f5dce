"""Heat maps with the values in their cells: arms under attacks and corruptions."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ecgstudy.plots import style as pl
from ecgstudy.plots.style import styled
from ecgstudy.plots.tables_html import (
    select_corrupted,
    select_headline,
    select_protocol,
)
from ecgstudy.study import ENSEMBLE

CELL = 0.27
"""Height of a cell in inches."""
KINDS = {"band": "frequency band", "part": "part of the beat", "lead": "lead"}


@styled
def attack_heatmap(
    robust: pd.DataFrame, headline: Mapping[str, float], protocol: str = "slf"
) -> Figure:
    """Macro AUROC of every arm, clean and under every attack at the headline ε.

    Parameters
    ----------
    robust
        ``robust_auroc.csv``.
    headline
        ε (mV) by data set tested on.
    protocol
        The protocol shown.
    """
    rows = select_headline(select_protocol(robust, protocol), headline)
    mean = rows.groupby("attack")["auroc_shared"].mean()
    mean = mean.sort_values(ascending=False, kind="stable")
    between = mean.index.drop(["none", ENSEMBLE], errors="ignore")
    columns = [name for name in ("none", *between, ENSEMBLE) if name in mean.index]
    names = pl.name_attacks(rows)
    figure, panels = _draw_arms(rows.assign(column=rows["attack"]), columns)
    for axes in panels:
        labels = [names[name] for name in columns]
        axes.set_xticks(axes.get_xticks(), labels, rotation=40, ha="right")
        axes.vlines([1, len(columns) - 1], *axes.get_ylim(), color="white", lw=4)
    pl.add_notes(figure, rows, pl.ATTACK_SIGNS)
    return figure


@styled
def corruption_heatmap(robust: pd.DataFrame, protocol: str = "slf") -> Figure:
    """Macro AUROC of every arm, clean and under natural corruptions by severity.

    `robust` is ``robust_auroc.csv``.

    Raises
    ------
    StudyError
        When it has no corruptions.
    """
    rows = select_corrupted(select_protocol(robust, protocol))
    kinds = rows["attack"].replace("none", "")
    rows = rows.assign(column=list(zip(kinds, rows["severity"], strict=True)))
    columns = sorted(set(rows["column"]))
    figure, panels = _draw_arms(rows, columns)
    kinds = pd.Series([kind for kind, _ in columns])
    for axes in panels:
        labels = [str(severity) for _, severity in columns]
        axes.set_xticks(axes.get_xticks(), labels, rotation=0)
        axes.set_xlabel("severity (0: clean)")
        axes.set_title(axes.get_title(loc="left"), pad=28)
        for kind, places in kinds.groupby(kinds).groups.items():
            axes.axvline(places[0], color="white", lw=4)
            label = {"ha": "center", "va": "bottom", "fontsize": 9}
            axes.text(np.mean(places) + 0.5, -0.1, kind.replace("-", "\n"), **label)
    pl.add_notes(figure, rows)
    return figure


@styled
def energy_heatmap(perturbations: pd.DataFrame, rows: str = "attack") -> Figure:
    """Where perturbations have their energy, relative to white noise, which has 1.

    Parameters
    ----------
    perturbations
        ``perturbations.csv`` of one data set, or columns `attack`, `kind`, `name`,
        `share` and `size` (the share of white noise).
    rows
        ``"attack"`` or ``"arm"``; values are means over the other.
    """
    table = pl.flag_arms(perturbations) if rows == "arm" else perturbations
    names = table["attack"].map(pl.short_attack)
    table = table.assign(use=table["share"] / table["size"], attack=names)
    parts = [table[table["kind"] == kind] for kind in KINDS]
    parts = [part for part in parts if part["name"].nunique() > 1]
    order = pl.order_of(table, rows)
    figure, panels = pl.new_panels(
        1,
        len(parts),
        1.6 + CELL * len(order),
        sharey=True,
        width_ratios=[part["name"].nunique() for part in parts],
    )
    for axes, part in zip(panels.flat, parts, strict=True):
        use = part.pivot_table("use", rows, "name")
        use = use.reindex(order, columns=pl.order_of(part, "name"))
        scale = {"cmap": "PuOr_r", "norm": LogNorm(1 / 4, 4, clip=True), "cbar": False}
        _draw_cells(axes, use, lambda x: f"{x:.{int(x < 9.95)}f}", **scale)
        axes.tick_params(axis="x", rotation=90)
        axes.tick_params(axis="y", rotation=0)
        axes.set_title(KINDS[part["kind"].iloc[0]])
    note = "energy over that of white noise; brown: more, violet: less"
    pl.add_notes(figure, table, note)
    return figure


def _draw_arms(rows: pd.DataFrame, columns: list) -> tuple[Figure, list[Axes]]:
    """One panel a data set: AUROC by arm and `column`."""
    datasets, values = pl.order_of(rows, "dataset"), rows["auroc_shared"]
    height = 1.6 + CELL * rows["arm"].nunique()
    figure, panels = pl.new_panels(len(datasets), 1, height)
    for axes, dataset in zip(panels.flat, datasets, strict=True):
        own = pl.flag_arms(rows[rows["dataset"] == dataset])
        table = own.pivot_table("auroc_shared", "arm", "column")
        table = table.reindex(pl.order_of(own, "arm"), columns=columns)
        scale = {"cmap": "cividis", "vmin": values.min(), "vmax": values.max()}
        bar = {"label": "macro AUROC", "pad": 0.01, "aspect": 25}
        _draw_cells(axes, table, _two_digits, cbar_kws=bar, **scale)
        axes.set_title(dataset)
    return figure, list(panels.flat)


def _two_digits(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _draw_cells(
    axes: Axes, table: pd.DataFrame, text: Callable[[float], str], **scale: object
) -> None:
    """Cells in colour with the `text` of their values; missing ones are light grey."""
    form = {"fmt": "", "annot_kws": {"size": 8.5}}
    ticks = {"xticklabels": True, "yticklabels": True}
    sns.heatmap(table, annot=table.map(text), ax=axes, **form, **ticks, **scale)
    axes.set(xlabel="", ylabel="", facecolor="#f2f2f2")
    axes.tick_params(length=0)
    axes.grid(visible=False)
