"""Heat maps with the values in their cells: arms under attacks and corruptions."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ecgstudy.errors import StudyError
from ecgstudy.plots import style as pl
from ecgstudy.plots.style import styled
from ecgstudy.plots.tables_html import select_headline, select_protocol
from ecgstudy.study import ENSEMBLE

CELL = 0.27
"""Height of a cell in inches."""
KINDS = {"band": "frequency\nband", "part": "part of\nthe beat", "lead": "lead"}


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
    names = pl.name_attacks(rows)
    columns = [("", names["none"])]
    columns += [("attacked", names[name]) for name in between]
    columns += [("worst", names[name]) for name in (ENSEMBLE,) if name in mean.index]
    group = dict(zip((name for _, name in columns), columns, strict=True))
    rows = rows.assign(column=rows["attack"].map(names).map(group))
    figure = _draw_arms(rows, columns)
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
    rows = select_protocol(robust, protocol)
    rows = rows[rows["severity"].notna() | rows["attack"].eq("none")]
    if rows["severity"].isna().all():
        raise StudyError(
            "the table has no natural corruptions: name some in evaluation.corruptions"
        )
    severities = rows["severity"].fillna(0).map("{:g}".format)
    kinds = rows["attack"].replace("none", "").str.replace("-", "\n")
    rows = rows.assign(column=list(zip(kinds, severities, strict=True)))
    figure = _draw_arms(rows, sorted(set(rows["column"])))
    pl.add_notes(figure, rows, "columns: severity (0: clean)")
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
    table = table.assign(
        use=table["share"] / table["size"],
        attack=table["attack"].map(pl.short_attack),
        column=list(zip(table["kind"].map(KINDS), table["name"], strict=True)),
    )
    use = table.pivot_table("use", rows, "column")
    use = use.reindex(pl.order_of(table, rows), columns=pl.order_of(table, "column"))
    figure, ((axes,),) = pl.new_panels(1, 1, 1.8 + CELL * len(use))
    scale = {"cmap": "PuOr_r", "norm": LogNorm(1 / 4, 4, clip=True), "cbar": False}
    _draw_cells(axes, use, lambda x: f"{x:.{int(x < 9.95)}f}", **scale)
    note = "energy over that of white noise; brown: more, violet: less"
    pl.add_notes(figure, table, note)
    return figure


def _draw_arms(rows: pd.DataFrame, columns: list[tuple[str, str]]) -> Figure:
    """One panel a data set: AUROC by arm and `column`, a group and a name."""
    datasets, values = pl.order_of(rows, "dataset"), rows["auroc_shared"]
    height = 2.0 + CELL * rows["arm"].nunique()
    figure, panels = pl.new_panels(len(datasets), 1, height)
    for axes, dataset in zip(panels.flat, datasets, strict=True):
        own = pl.flag_arms(rows[rows["dataset"] == dataset])
        table = own.pivot_table("auroc_shared", "arm", "column")
        table = table.reindex(pl.order_of(own, "arm"), columns=columns)
        scale = {"cmap": "cividis", "vmin": values.min(), "vmax": values.max()}
        bar = {"label": "macro AUROC", "pad": 0.01, "aspect": 25}
        _draw_cells(axes, table, _two_digits, cbar_kws=bar, **scale)
        axes.set_title(dataset, pad=28)
    return figure


def _two_digits(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _draw_cells(
    axes: Axes, table: pd.DataFrame, text: Callable[[float], str], **scale: object
) -> None:
    """Cells in colour with the `text` of their values; missing ones are light grey.

    Columns are pairs of a group, named above, and a name.
    """
    form = {"fmt": "", "annot_kws": {"size": 8.5}, "yticklabels": True}
    sns.heatmap(table, annot=table.map(text), ax=axes, **form, **scale)
    names = [name for _, name in table.columns]
    axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=45, ha="right")
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="", ylabel="", facecolor="#f2f2f2")
    axes.grid(visible=False)
    groups = pd.Series([group for group, _ in table.columns])
    for group, places in groups.groupby(groups, sort=False).groups.items():
        axes.axvline(places[0], color="white", lw=4)
        label = {"ha": "center", "va": "bottom", "fontsize": 9}
        axes.text(np.mean(places) + 0.5, -0.1, group, **label)
