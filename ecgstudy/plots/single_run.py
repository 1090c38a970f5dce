"""Figures of data and of single runs, one function each."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ecgstudy.analysis.scores import Scores
from ecgstudy.analysis.tables import robust_auroc
from ecgstudy.plots import style as pl
from ecgstudy.plots.style import (
    BLUE,
    CLASS_COLOURS,
    GREY,
    INK,
    ORANGE,
    WIDTH,
    styled,
)
from ecgstudy.records import EcgRecords
from ecgstudy.study import ENSEMBLE

HISTORY = {
    "loss": "loss",
    "positive_similarity": "cosine of positives",
    "adversarial_similarity": "cosine of clean and attacked views",
    "negative_similarity": "cosine of negatives",
    "effective_negatives": "effective number of negatives",
    "floor_fraction": "share of rows on the debiasing floor",
    "learning_rate": "learning rate",
}
PULLS = {
    "its clean views": "#009E73",
    "its attacked view": "#CC79A7",
    "other ECGs": GREY,
}
PUSHES = {"other class": BLUE, "same class": ORANGE}
"""Kind of positive or negative pair, and its colour."""


@styled
def class_counts(counts: pd.DataFrame) -> Figure:
    """Records of each class and split (columns `class`, `split`, `records`)."""
    height = 0.9 + 0.3 * counts["class"].nunique()
    aspect = WIDTH / counts["split"].nunique() / height
    grid = sns.catplot(
        counts, x="records", y="class", col="split", kind="bar", color="#7aa6c9",
        height=height, aspect=aspect,
    )  # fmt: skip
    for axes in grid.axes.flat:
        axes.bar_label(axes.containers[0], fmt="{:,.0f}", padding=3)
        axes.margins(x=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    return grid.set_titles("{col_name}").set_ylabels("").figure


@styled
def age_sex(people: pd.DataFrame) -> Figure:
    """Ages (years) of patients by sex; `people` has a row per patient."""
    known = people[people["sex"].isin(["female", "male"]) & people["age"].notna()]
    figure, ((axes,),) = pl.new_panels(1, 1, 3.2)
    sns.histplot(
        known.reset_index(), x="age", hue="sex", hue_order=["female", "male"],
        multiple="dodge", shrink=0.85, palette=[ORANGE, BLUE], binwidth=5, ax=axes,
    )  # fmt: skip
    axes.set(xlabel="age (years)", ylabel="patients")
    missing = len(people) - len(known)
    axes.set_title(f"{len(people):,} patients, age or sex unknown in {missing:,}")
    return figure


def measure_amplitudes(records: EcgRecords) -> pd.DataFrame:
    """Of each record, in mV: standard deviation and peak-to-peak amplitude.

    Each is the median over leads.
    """
    rows = []
    for signal, name in zip(records.signals, records.table["record"], strict=True):
        std, peak_to_peak = np.std(signal, axis=1), np.ptp(signal, axis=1)
        rows.append((np.median(std), np.median(peak_to_peak), name))
    return pd.DataFrame(rows, columns=["std_mv", "peak_to_peak_mv", "record"])


@styled
def amplitudes(values: pd.DataFrame, epsilons_mv: list[float]) -> Figure:
    """How small attacks are: amplitudes of records beside the budgets ε (mV).

    `values` is of `measure_amplitudes`.
    """
    names = {"std_mv": "standard deviation", "peak_to_peak_mv": "peak to peak"}
    figure, ((axes,),) = pl.new_panels(1, 1, 3.2)
    sns.histplot(
        values[list(names)].rename(columns=names), log_scale=True, bins=60,
        palette=[BLUE, ORANGE], alpha=0.6, element="step", ax=axes,
    )  # fmt: skip
    for epsilon in epsilons_mv:
        axes.axvline(epsilon, color=INK, lw=1, ls="--")
        look = {"rotation": 90, "va": "top", "ha": "right"}
        place = axes.get_xaxis_transform()
        axes.text(epsilon, 0.97, f"{1000 * epsilon:g} µV", transform=place, **look)
    axes.set(xlabel="amplitude (mV); dashed: attack budgets ε", ylabel="records")
    axes.xaxis.set_major_formatter("{x:g}")
    return figure


@styled
def loss_curves(history: pd.DataFrame) -> Figure:
    """How training went, epoch by epoch; what stays the same is left out."""
    spans = history[[name for name in HISTORY if name in history]].agg(np.ptp)
    spans = spans.dropna()
    shown = list(spans[spans > 1e-9].index) or list(spans.index)
    curves = history.rename(columns=HISTORY)
    curves = curves.melt("epoch", [HISTORY[name] for name in shown], "quantity")
    grid = sns.relplot(
        curves, x="epoch", y="value", col="quantity", col_wrap=3, kind="line",
        height=2.2, aspect=WIDTH / 3 / 2.2, marker=".",
        facet_kws={"sharey": False},
    )  # fmt: skip
    grid.set_titles("{col_name}").set_ylabels("")
    for axes in grid.axes.flat:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return grid.figure


@styled
def similarities(pairs: pd.DataFrame) -> Figure:
    """Cosine similarities, a row per kind of pair (columns `similarity`, `kind`)."""
    kinds = sorted(pairs["kind"].unique())
    figure, ((axes,),) = pl.new_panels(1, 1, 0.9 + 0.5 * len(kinds))
    sns.violinplot(
        pairs, x="similarity", y="kind", order=kinds, hue="kind", hue_order=kinds,
        palette=CLASS_COLOURS[: len(kinds)], inner="quart", density_norm="width",
        cut=0, legend=False, linewidth=0.8, ax=axes,
    )  # fmt: skip
    axes.set(xlim=(-1, 1), ylabel="", xlabel="cosine similarity (dashed: quartiles)")
    return figure


@styled
def embedding_plane(points: pd.DataFrame) -> Figure:
    """Principal components of embeddings, by class and by patient.

    Patients are the six with most records. `points` has columns `x`, `y`, `class`,
    `patient`.
    """
    counts = points["patient"].value_counts().sort_index()
    most = points["patient"].isin(counts.nlargest(6).index)
    points = points.assign(patient=points["patient"].where(most))
    points = points.melt(["x", "y"], ["class", "patient"], "by", "name").dropna()
    grid = sns.relplot(
        points, x="x", y="y", col="by", hue="name", palette="tab20", s=24, lw=0,
        rasterized=True, height=4.2, aspect=(WIDTH - 1.5) / 2 / 4.2,
    )  # fmt: skip
    grid.set_axis_labels("principal component 1", "principal component 2")
    return grid.set_titles("by {col_name}").figure


@styled
def push_weights(pairs: pd.DataFrame) -> Figure:
    """Push weight of negatives against their similarity; 1 (dashed) is uniform.

    `pairs` is of `ecgstudy.evaluation.diagnostics.inspect_batch`, or of
    `ecgstudy.evaluation.diagnostics.weigh_record`, where each scheme has a panel.
    """
    if "role" in pairs:
        pairs = pairs.query("role == 'push' and anchor == 'clean view'")
    kinds = pairs["kind"].str.removeprefix("negative: ")
    pairs = pairs.assign(kind=kinds).dropna(subset="weight")
    if "scheme" not in pairs:
        pairs = pairs.assign(scheme="")
    across = min(3, pairs["scheme"].nunique())
    grid = sns.relplot(
        pairs, x="similarity", y="weight", hue="kind", palette=PUSHES,
        hue_order=list(PUSHES), s=12, lw=0, alpha=0.5, rasterized=True, col="scheme",
        col_wrap=across, height=2.6, aspect=(WIDTH - 1.5) / across / 2.6,
        facet_kws={"sharey": False},
    )  # fmt: skip
    for axes in grid.axes.flat:
        axes.axhline(1, color=INK, lw=1, ls="--")
        axes.set_ylim(0, max(2, axes.get_ylim()[1]))
    grid.set_axis_labels("cosine similarity to the anchor", "push weight")
    return grid.set_titles("{col_name}").figure


@styled
def pull_weights(weights: pd.DataFrame) -> Figure:
    """What pulls each view of one ECG, of each weighting scheme.

    `weights` is of `ecgstudy.evaluation.diagnostics.weigh_record`.
    """
    height = 1.1 + 0.28 * weights["scheme"].nunique()
    grid = sns.displot(
        weights[weights["role"] == "pull"], y="scheme", weights="weight", hue="kind",
        hue_order=list(PULLS), palette=PULLS, col="anchor", multiple="stack",
        shrink=0.8, height=height, aspect=(WIDTH - 1.5) / 2 / height,
    )  # fmt: skip
    grid.set_axis_labels("pull weight", "")
    return grid.set_titles("of its {col_name}").figure


@styled
def epsilon_curve(scores: Scores | pd.DataFrame) -> Figure:
    """AUROC of one run against ε: one δ per record for all labels, or one per label.

    `scores` are the run's stored scores, or its rows of ``robust_auroc.csv``.
    """
    table = robust_auroc(scores) if isinstance(scores, Scores) else scores
    table = table[table["attack"].isin(["none", ENSEMBLE])]
    table = table.sort_values("epsilon_mv").drop_duplicates("epsilon_mv")
    figure, ((axes,),) = pl.new_panels(1, 1, 3.4)
    x = table["epsilon_mv"].map("{:g}".format)
    axes.plot(x, table["auroc_shared"], "o-", color=BLUE, label="one δ for all labels")
    axes.fill_between(x, table["ci_low"], table["ci_high"], color=BLUE, alpha=0.12)
    known = table["auroc_label"].notna()
    axes.plot(
        x[known], table["auroc_label"][known], "s-", color=ORANGE, label="one per label"
    )
    axes.axhline(0.5, color=GREY, lw=1, ls=":")
    axes.set(xlabel="perturbation budget ε (mV)", ylabel="macro AUROC", ylim=(0, 1.02))
    axes.legend()
    pl.add_notes(figure, table, "band: interval of the patients")
    return figure


@styled
def attack_bars(table: pd.DataFrame) -> Figure:
    """AUROC of one run, clean and under each attack at one ε, the strongest last.

    `table` has rows of ``robust_auroc.csv``.
    """
    shown = table.sort_values("auroc_shared", ascending=False, kind="stable")
    shown = shown.assign(name=shown["attack"].map(pl.name_attacks(table)))
    figure, ((axes,),) = pl.new_panels(1, 1, 0.9 + 0.28 * len(shown))
    sns.barplot(shown, x="auroc_shared", y="name", color="#7aa6c9", ax=axes)
    axes.bar_label(axes.containers[0], fmt="{:.3f}", padding=4)
    axes.set(xlim=(0, 1), xlabel="macro AUROC (dotted: chance)", ylabel="")
    axes.axvline(0.5, color=INK, lw=1, ls=":")
    pl.add_notes(figure, table, pl.ATTACK_SIGNS)
    return figure
