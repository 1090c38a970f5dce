"""Heat maps with their values in the cells: arms under attacks and corruptions, and what attacks use."""

from collections.abc import Callable, Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecgstudy.plots import style as pl
from ecgstudy.plots.style import INK, style
from ecgstudy.study import ENSEMBLE

CELL_WIDTH, CELL_HEIGHT = 0.4, 0.25
"""Of a cell, in inches."""
KINDS = {"band": "frequency band", "part": "part of the beat", "lead": "lead"}
USE_RANGE = 4.0
"""Colours tell relative uses from 1/4 to 4 apart."""


@style()
def attack_heatmap(
    table: pd.DataFrame, headline: Mapping[str, float], protocol: str = "slf"
) -> Figure:
    """Macro AUROC of every arm, clean and under every attack at the headline ε, the mildest attack first.

    `table` is ``robust_auroc.csv``; `headline` the headline ε (mV) of each data set.
    """
    rows = pl.at_headline(pl.of_all_seeds(table, protocol), headline)
    mean = (
        rows.groupby("attack")["auroc_shared"]
        .mean()
        .sort_values(ascending=False, kind="stable")
    )
    columns = ["none", *mean.index.drop(["none", ENSEMBLE], errors="ignore"), ENSEMBLE]
    columns = [name for name in columns if name in mean.index]
    share = rows["n_records"] / rows.groupby("dataset")["n_records"].transform("max")
    fewer, larger = (
        share.groupby(rows["attack"]).min() < 1,
        pl.in_larger_ball(pd.Series(columns, columns)),
    )
    names = [
        n.replace("none", "clean") + " *" * bool(fewer[n]) + " ℓ2" * bool(larger[n])
        for n in columns
    ]
    figure, panels = _heat_of_arms(
        rows.assign(column=rows["attack"]), columns, CELL_WIDTH
    )
    for axes in panels:
        axes.set_xticks(
            range(len(columns)), names, rotation=40, ha="right", rotation_mode="anchor"
        )
        _separate(axes, [1, len(columns) - 1])
    notes = pl.FEWER * bool(fewer.any()), pl.LARGER_BALL * bool(larger.any())
    pl.note_beneath(figure, *notes, pl.dagger_note(rows))
    return figure


@style()
def corruption_heatmap(table: pd.DataFrame, protocol: str = "slf") -> Figure:
    """Macro AUROC of every arm, clean and under every natural corruption by severity.

    `table` is ``robust_auroc.csv``.

    Raises
    ------
    StudyError
        When it has no corruptions.
    """
    rows = pl.corrupted(pl.of_all_seeds(table, protocol))
    keys = zip(
        rows["attack"].replace("none", ""), rows["severity"].astype(int), strict=True
    )
    rows = rows.assign(column=[*keys])
    columns = sorted(set(rows["column"]))
    starts = [i for i in range(1, len(columns)) if columns[i][0] != columns[i - 1][0]]
    figure, panels = _heat_of_arms(rows, columns, 0.75 * CELL_WIDTH)
    for axes in panels:
        axes.set_xticks(range(len(columns)), [level for _, level in columns])
        axes.set_xlabel("severity (0: clean)")
        axes.set_title(axes.get_title(loc="left"), pad=26)
        _separate(axes, starts)
        for first, last in zip(starts, [*starts[1:], len(columns)], strict=True):
            name, middle = columns[first][0].replace("-", "\n"), (first + last - 1) / 2
            axes.annotate(name, (middle, 1), (0, 3), va="bottom", ha="center", linespacing=1,
                          xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    pl.note_beneath(figure, pl.dagger_note(rows))
    return figure


@style()
def use_heatmap(perturbations: pd.DataFrame, rows: str = "attack") -> Figure:
    """What perturbations use of the ECG: energy by frequency, part of the beat and lead, over its size.

    1 is what white noise would have; the size is under each name. Means over what is not in `rows`, which is
    ``"attack"`` or ``"arm"``. `perturbations` is ``perturbations.csv`` of one data set.
    """
    use = perturbations.assign(use=perturbations["share"] / perturbations["size"])
    order = list(dict.fromkeys(use[rows]))
    parts = {kind: use[use["kind"] == kind] for kind in KINDS}
    parts = {kind: part for kind, part in parts.items() if part["name"].nunique() > 1}
    widths = [part["name"].nunique() for part in parts.values()]
    width, height = 1.9 + 1.1 * CELL_WIDTH * sum(widths), 1.5 + CELL_HEIGHT * len(order)
    figure, panels = pl.new_panels(
        1, len(parts), width / len(parts), height, sharey=True, width_ratios=widths
    )
    norm = mpl.colors.LogNorm(1 / USE_RANGE, USE_RANGE, clip=True)
    for axes, (kind, part) in zip(panels.flat, parts.items(), strict=True):
        names = list(dict.fromkeys(part["name"]))
        values = part.pivot_table("use", rows, "name", sort=False).reindex(
            index=order, columns=names
        )
        sizes = part.groupby("name")["size"].mean()
        image = _draw(axes, values, norm, "PuOr_r", _times)
        labels = [f"{name} ({_percent(sizes[name])})" for name in names]
        axes.set_xticks(
            range(len(names)), labels, rotation=40, ha="right", rotation_mode="anchor"
        )
        axes.set_title(KINDS[kind])
    flagged = (
        use if rows == "arm" else use.iloc[:0]
    )  # an attack's row is the mean of all arms
    labels = [pl.daggered(name, flagged[flagged[rows] == name]) for name in order]
    panels.flat[0].set_yticks(range(len(order)), labels)
    bar = figure.colorbar(
        image, ax=panels, shrink=0.9, pad=0.01, aspect=15, ticks=[1 / 4, 1 / 2, 1, 2, 4]
    )
    bar.minorticks_off()
    bar.set_ticklabels(["≤ ¼", "½", "1", "2", "≥ 4"])
    bar.set_label("energy over that of white noise")
    pl.note_beneath(
        figure,
        "in brackets: share of bandwidth, time and leads",
        pl.dagger_note(flagged),
    )
    return figure


def _heat_of_arms(
    rows: pd.DataFrame, columns: list, width: float
) -> tuple[Figure, list[Axes]]:
    """One panel a data set: AUROC by arm and `column`, † at arms whose masking checks fail."""
    datasets, arms = (list(dict.fromkeys(rows[key])) for key in ("dataset", "arm"))
    shown = rows.loc[rows["column"].isin(columns), "auroc_shared"]
    norm = mpl.colors.Normalize(
        np.floor(10 * shown.min()) / 10, np.ceil(10 * shown.max()) / 10
    )
    size = 2.2 + width * len(columns), 1.3 + CELL_HEIGHT * len(arms)
    figure, panels = pl.new_panels(len(datasets), 1, *size)
    for axes, dataset in zip(panels.flat, datasets, strict=True):
        own = rows[rows["dataset"] == dataset]
        values = own.pivot_table("auroc_shared", "arm", "column", sort=False)
        values = values.reindex(
            index=[arm for arm in arms if arm in values.index], columns=columns
        )
        image = _draw(axes, values, norm, "cividis", _auroc)
        names = [pl.daggered(arm, own[own["arm"] == arm]) for arm in values.index]
        axes.set_yticks(range(len(names)), names)
        axes.set_title(dataset)
    figure.colorbar(
        image, ax=panels, shrink=0.6, pad=0.01, aspect=30, label="macro AUROC"
    )
    return figure, list(panels.flat)


def _draw(
    axes: Axes,
    values: pd.DataFrame,
    norm: mpl.colors.Normalize,
    cmap: str,
    text: Callable[[float], str],
) -> mpl.image.AxesImage:
    """Cells in colour, with their values in black or white, whichever is read better."""
    colours = mpl.colormaps[cmap].with_extremes(bad="#f2f2f2")
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=colours, norm=norm, aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values.to_numpy(float)):
        known = np.isfinite(value)
        light = (
            not known or np.dot(colours(norm(value))[:3], (0.299, 0.587, 0.114)) > 0.5
        )
        axes.text(column, row, text(value) if known else "–", ha="center", va="center", fontsize=7.5,
                  color=INK if light else "white")  # fmt: skip
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _separate(axes: Axes, columns: list[int]) -> None:
    """White lines before `columns`."""
    for column in columns:
        axes.axvline(column - 0.5, color="white", lw=3)


def _auroc(value: float) -> str:
    """0.873 → .87"""
    return f"{value:.2f}".removeprefix("0")


def _times(value: float) -> str:
    return (
        f"{value:.2f}"
        if value < 0.95
        else f"{value:.1f}"
        if value < 9.95
        else f"{value:.0f}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1f} %"
