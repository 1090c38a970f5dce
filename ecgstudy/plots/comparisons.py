"""Figures that compare arms, from a study's tables, one function each."""

from collections.abc import Iterable, Mapping
from textwrap import wrap

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ecgstudy.analysis.verdict import MARGIN
from ecgstudy.errors import StudyError
from ecgstudy.plots import style as pl
from ecgstudy.plots.style import GREY, INK, LANDMARKS, WIDTH, styled
from ecgstudy.plots.tables_html import (
    LARGE,
    format_interval,
    format_p,
    select_headline,
    select_protocol,
)
from ecgstudy.study import ENSEMBLE

PLACE = ["dataset", "protocol", "attack", "epsilon_mv"]
MEASURES = {
    "alignment": "squared distance that the attack moves a record",
    "uniformity": "uniformity of clean records (smaller: more even)",
    "class_separation": "silhouette of clean records",
    "identity_confusion": "attacked records nearest to another patient",
}
"""Measures of `ecgstudy.evaluation.embedding` that are drawn."""


@styled
def summary(
    robust: pd.DataFrame, contrasts: pd.DataFrame, headline: Mapping[str, float]
) -> Figure:
    """Clean and robust AUROC of every arm, and beside it the planned comparisons.

    Parameters
    ----------
    robust, contrasts
        ``robust_auroc.csv`` and ``contrasts.csv``.
    headline
        ε (mV) by data set tested on.
    """
    table = select_headline(robust, headline)
    table = pl.flag_arms(table[table["attack"].isin(["none", ENSEMBLE])])
    main = contrasts[contrasts["headline"].eq(True)]
    planned = main[main["family"] == "primary"]
    if planned.empty:
        planned = main[main["delta"].abs() < LARGE]
    places = list(table.groupby(["dataset", "protocol"], sort=False))
    height = 1.4 + 0.24 * table["arm"].nunique()
    figure, panels = pl.new_panels(len(places), 2, height, width_ratios=(6, 5))
    for (left, right), (place, part) in zip(panels, places, strict=True):
        _draw_arms(left, part)
        left.set_title(_title(*place, part["epsilon_mv"].max()))
        own = planned[
            planned["dataset"].eq(place[0]) & planned["protocol"].eq(place[1])
        ]
        right.set_visible(not own.empty)
        if not own.empty:
            right.axvspan(-MARGIN, MARGIN, color="#e3f1ea", lw=0)
            _draw_differences(right, own, robust)
            right.set_title(f"robust AUROC, differences (shaded: ±{MARGIN:g})")
    pl.add_notes(
        figure, table, "│ clean   other marks: robust, with interval and single seeds"
    )
    return figure


def _title(dataset: str, protocol: str, epsilon_mv: float = 0.0) -> str:
    text = dataset if protocol == "slf" else f"{dataset}, {protocol}"
    return f"{text}, ε = {epsilon_mv:g} mV" if epsilon_mv else text


def _draw_arms(axes: Axes, table: pd.DataFrame) -> None:
    """Each arm a line: clean AUROC, robust AUROC with interval, its seeds."""
    mean, attacked = table["seed"].astype(str) == "all", table["attack"] == ENSEMBLE
    robust = table[mean & attacked].sort_values("auroc_shared", kind="stable")
    clean = table[mean & ~attacked].set_index("arm")["auroc_shared"]
    seeds = table[~mean & attacked].set_index("arm")["auroc_shared"]
    for y, row in enumerate(robust.to_dict("records")):
        arm, look = row["arm"], pl.arm_look(row["arm"])
        axes.plot(clean.get(arm), y, "|", color=look["color"], ms=11, mew=2)
        axes.hlines(y, row["ci_low"], row["ci_high"], color=look["color"], lw=2)
        axes.plot(row["auroc_shared"], y, **look)
        single = seeds[seeds.index == arm]
        axes.plot(single, [y - 0.28] * len(single), ".", color=look["color"], ms=3.5)
    axes.set_yticks(range(len(robust)), robust["arm"])
    axes.set(xlabel="macro AUROC", xlim=(0, 1), ylim=(-0.7, len(robust) - 0.4))
    axes.axvline(0.5, color=GREY, lw=1, ls=":")


def _draw_differences(axes: Axes, rows: pd.DataFrame, robust: pd.DataFrame) -> None:
    """A forest plot: a line per comparison, its seeds beneath, numbers on the right."""
    single = robust[robust["seed"].astype(str).ne("all") & robust["severity"].isna()]
    by_seed = single.pivot_table("auroc_shared", [*PLACE, "seed"], "arm")
    names, drawn = [], [0.0]
    for y, row in enumerate(rows.to_dict("records")):
        primary = row["family"] == "primary"
        colour = INK if primary else GREY
        axes.hlines(y, row["ci_low"], row["ci_high"], color=colour, lw=1.8)
        filling = colour if primary else "white"
        axes.plot(row["delta"], y, "D", color=colour, mfc=filling)
        aurocs = by_seed.loc[tuple(row[key] for key in PLACE)]
        seeds = (aurocs[row["adaptive"]] - aurocs[row["standard"]]).dropna()
        axes.plot(seeds, [y + 0.27] * len(seeds), ".", color=colour, ms=3.5)
        p = format_p(row["p_holm" if primary else "p"])
        text = f"{format_interval(row)}  p = {p}".replace("= <", "<")
        place = axes.get_yaxis_transform()
        axes.text(1.02, y, text, va="center", color=colour, transform=place)
        flag = " †" if row["masking_ok"] is False else ""
        names.append(f"{row['adaptive']} − {row['standard']}{flag}")
        drawn += [row["delta"], *seeds]
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=_limits(drawn), ylim=(len(names) - 0.5, -0.6))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlabel("difference in macro AUROC; right of 0: first arm better")


def _limits(differences: Iterable[float]) -> tuple[float, float]:
    """An axis for differences; wide intervals are cut off at its ends."""
    low, high = min(0.0, *differences), max(0.0, *differences)
    room = max(0.75 * (high - low), 2 * MARGIN)
    return low - room, high + room


@styled
def forest(contrasts: pd.DataFrame, robust: pd.DataFrame) -> Figure:
    """Every difference of two arms with its interval and its single seeds.

    A panel a data set, measure and family; large exploratory differences have one of
    their own, for on one axis they would hide the others.

    Parameters
    ----------
    contrasts
        Rows of ``contrasts.csv``, clean or at the headline ε.
    robust
        ``robust_auroc.csv``: the single seeds.

    Raises
    ------
    StudyError
        When there is nothing to compare.
    """
    if contrasts.empty:
        raise StudyError("no two arms of this study can be compared")
    large = contrasts["delta"].abs().ge(LARGE) & contrasts["family"].ne("primary")
    kind = contrasts["family"].mask(large, f"exploratory, {LARGE:g} or more")
    parts = list(contrasts.groupby([*PLACE, kind], sort=False))
    heights = [1.2 + 0.26 * len(part) for _, part in parts]
    figure, panels = pl.new_panels(
        len(parts), 1, sum(heights) / len(parts), height_ratios=heights
    )
    for axes, (place, part) in zip(panels.flat, parts, strict=True):
        dataset, protocol, attack, epsilon, name = place
        _draw_differences(axes, part, robust)
        how = "clean" if attack == "none" else attack
        axes.set_title(f"{_title(dataset, protocol, epsilon)}, {how}: {name}")
    for axes in panels.flat[:-1]:
        axes.set_xlabel("")
    pl.add_notes(
        figure,
        contrasts,
        "filled: primary family, p adjusted by Holm   hollow: exploratory, p unadjusted"
        "   dots: single seeds   lines: unadjusted intervals",
    )
    return figure


@styled
def epsilon_curves(
    robust: pd.DataFrame, contrasts: pd.DataFrame, protocol: str = "slf"
) -> Figure:
    """AUROC against ε, and how far variants are from the arm they are based on.

    In one panel their curves would hide each other.

    Parameters
    ----------
    robust, contrasts
        ``robust_auroc.csv`` and ``contrasts.csv``.
    protocol
        The protocol shown.
    """
    curves = select_protocol(robust, protocol)
    curves = curves.rename(columns={"auroc_shared": "value"}).assign(standard="")
    moves = contrasts.rename(columns={"adaptive": "arm", "delta": "value"})
    variant = moves["standard"].eq(moves["arm"].map(_find_base))
    moves = moves[variant & moves["protocol"].eq(protocol)]
    apart = moves.set_index(["dataset", "arm"]).index
    curves = curves[~curves.set_index(["dataset", "arm"]).index.isin(apart)]
    table = pd.concat([curves, moves])
    table = table[table["attack"].isin(["none", ENSEMBLE]) & table["severity"].isna()]
    parts = list(table.groupby(["dataset", "standard"], sort=False))
    figure, panels = pl.new_panels(-(-len(parts) // 2), 2, 3.2)
    for axes in panels.flat[len(parts) :]:
        axes.set_visible(False)
    for axes, ((dataset, standard), part) in zip(panels.flat, parts, strict=False):
        _draw_curves(axes, pl.flag_arms(part))
        title = _title(dataset, protocol)
        axes.set_title(f"{title}: arm − {standard}" if standard else title)
        if standard:
            axes.set(ylim=_limits(part["value"]), ylabel="difference in macro AUROC")
            axes.axhline(0, color=INK, lw=1)
        else:
            axes.set(ylim=(0, 1.02), ylabel="macro AUROC under the ensemble")
            axes.axhline(0.5, color=GREY, lw=1, ls=":")
    pl.add_notes(figure, table, "bands: unadjusted intervals")
    return figure


def _find_base(arm: str) -> str | None:
    """The arm that `arm` is a variant of, and is shown by its difference from."""
    row = pl.find_arm(arm)
    return row.base if row is not None and arm not in LANDMARKS else None


def _draw_curves(axes: Axes, table: pd.DataFrame) -> None:
    """A curve an arm against ε (evenly spaced, 0: clean), with the interval's band."""
    epsilons = sorted(set(table["epsilon_mv"]))
    last = table[table["epsilon_mv"] == epsilons[-1]].sort_values("value")
    for arm in reversed(pl.order_of(last, "arm")):
        rows = table[table["arm"] == arm].sort_values("epsilon_mv")
        x = [epsilons.index(epsilon) for epsilon in rows["epsilon_mv"]]
        look = pl.arm_look(arm)
        axes.plot(x, rows["value"], **look)
        band = {"color": look["color"], "alpha": 0.08, "lw": 0}
        axes.fill_between(x, rows["ci_low"], rows["ci_high"], **band)
    axes.set_xticks(range(len(epsilons)), [f"{epsilon:g}" for epsilon in epsilons])
    axes.set_xlabel("perturbation budget ε (mV)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


@styled
def pareto(
    robust: pd.DataFrame, headline: Mapping[str, float], protocol: str = "slf"
) -> Figure:
    """Clean against robust AUROC of every arm; up and right is better.

    Parameters
    ----------
    robust
        ``robust_auroc.csv``.
    headline
        ε (mV) by data set tested on.
    protocol
        The protocol shown.
    """
    table = select_headline(select_protocol(robust, protocol), headline)
    table = pl.flag_arms(table)
    table["attack"] = table["attack"].replace("none", "clean")
    points = table.pivot_table("auroc_shared", ["dataset", "arm"], "attack", sort=False)
    grid = _scatter(
        points.reset_index(), x="clean", y=ENSEMBLE, col="dataset", height=4.5
    )
    return grid.set_xlabels("clean macro AUROC").figure


def _scatter(points: pd.DataFrame, height: float, **axes: str) -> sns.FacetGrid:
    """Points in the looks of their `arm`, in panels as wide as the page together."""
    columns = points[axes["col"]].nunique()
    grid = sns.relplot(
        points,
        **axes,
        **pl.arm_looks(points["arm"]),
        s=60,
        height=height,
        aspect=(WIDTH - 2) / columns / height,
        facet_kws={"sharex": False},
    )
    return grid.set_titles("{col_name}").set_ylabels("robust macro AUROC")


def geometry_points(
    cost: pd.DataFrame, robust: pd.DataFrame, headline: Mapping[str, float]
) -> pd.DataFrame:
    """Measures of the embedding and robust AUROC of every arm and seed.

    Parameters
    ----------
    cost, robust
        ``cost.csv``, which holds the measures, and ``robust_auroc.csv``.
    headline
        ε (mV) by data set tested on.

    Raises
    ------
    StudyError
        When no run was measured.
    """
    if not set(MEASURES) <= set(cost):
        raise StudyError(
            "no run has measures of its embedding: add an arm with an encoder"
        )
    keys = ["dataset", "protocol", "arm", "seed"]
    attacked = select_headline(robust, headline).query("attack == @ENSEMBLE")
    attacked = attacked.astype({"seed": str})[[*keys, "auroc_shared", "masking_ok"]]
    measured = cost.astype({"seed": str})[[*keys, *MEASURES]].dropna()
    return attacked.merge(measured, on=keys)


@styled
def geometry(points: pd.DataFrame) -> Figure:
    """Measures of the embeddings against robust AUROC: a point an arm and seed.

    ρ is the rank correlation of the arms' means. `points` is of `geometry_points`.
    """
    points = pl.flag_arms(points)
    keys = ["dataset", "protocol", "arm", "auroc_shared"]
    table = points.melt(keys, list(MEASURES), "measure")
    grid = _scatter(
        table, x="value", y="auroc_shared", col="measure", row="dataset", height=2.9
    )
    for (dataset, measure), axes in grid.axes_dict.items():
        own = points[points["dataset"] == dataset]
        means = own.groupby("arm")[[measure, "auroc_shared"]].mean()
        rho = means.corr("spearman").iloc[0, 1]
        axes.set_title(f"{dataset}: ρ = {rho:+.2f}".replace("-", "−"))
        axes.set_xlabel("\n".join(wrap(MEASURES[measure], 26)))
    return grid.figure


@styled
def cost(table: pd.DataFrame) -> Figure:
    """Training time and attack throughput of each arm: a dot a run (``cost.csv``)."""
    names = {
        "training_seconds": "training time (s)",
        "attack_steps_per_second": "attack steps per second",
    }
    table = pl.flag_arms(table)
    arms = pl.order_of(table, "arm")
    figure, panels = pl.new_panels(1, 2, 0.9 + 0.24 * len(arms), sharey=True)
    for axes, (column, label) in zip(panels.flat, names.items(), strict=True):
        colours = {arm: pl.arm_colour(arm) for arm in arms}
        sns.stripplot(
            table, x=column, y="arm", hue="arm", palette=colours, jitter=False, size=6,
            alpha=0.7, legend=False, ax=axes,
        )  # fmt: skip
        axes.set(xlabel=label, ylabel="", xlim=(0, None))
    pl.add_notes(figure, table)
    return figure
