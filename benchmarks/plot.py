"""The benchmarks as one figure: how our variants compare with what stands beside them."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecgstudy.plots.style import GREY, INK, styled

OURS = ("ours", "ours, gradients in bfloat16", "uniform", "IP and HN, debiased")
TITLES = {
    "efficiency of a pretraining step": "Bare passes / our pretraining step",
    "efficiency of an attack step": "Bare passes / our attack step",
    "operations of pretraining steps": "Operations of bare passes / of our pretraining step, on a GPU",
    "operations of attack steps": "Operations of bare passes / of our attack step, on a GPU",
    "attacks beside other libraries": "Speed of each / ours in float32",
    "contrastive loss, time": "Time of NT-Xent / ours",
    "contrastive loss, memory": "Memory of NT-Xent / ours",
    "resampling": "scikit-learn / ours",
}


@styled
def plotted(table: pd.DataFrame, machine: str) -> Figure:
    """A panel of ratios for each benchmark that compares (1: alike)."""
    compared = (
        table[table["ratio"].notna() & (table["variant"] != table["base"])]
        if "ratio" in table
        else table[:0]
    )
    kinds = [kind for kind in TITLES if kind in set(compared["benchmark"])]
    heights = [max(2, (compared["benchmark"] == kind).sum()) for kind in kinds] or [1]
    size = (7.5, 0.24 * sum(heights) + 0.8 * len(heights))
    figure, axes = plt.subplots(
        len(heights),
        1,
        figsize=size,
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
    )
    for ax, kind in zip(axes[:, 0], kinds, strict=False):
        _panel(ax, kind, compared[compared["benchmark"] == kind])
    figure.suptitle(machine, x=0.01, ha="left", fontsize=8, color="#666666")
    return figure


def _panel(ax: Axes, kind: str, rows: pd.DataFrame) -> None:
    names = rows["case"] + rows["variant"].map(
        lambda v: "" if v == "ours" else f" · {v}"
    )
    colours = [INK if variant in OURS else GREY for variant in rows["variant"]]
    ax.barh(range(len(rows)), rows["ratio"], color=colours, height=0.7)
    for place, ratio in enumerate(rows["ratio"]):
        ax.annotate(
            f"{ratio:.2f}", (ratio, place), (3, 0), textcoords="offset points", va="center", fontsize=7.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    ax.axvline(1, color="#D55E00", linewidth=1, linestyle="--")
    ax.set(
        yticks=range(len(rows)),
        yticklabels=names,
        title=TITLES[kind],
        xlim=(0, 1.12 * max(1, rows["ratio"].max())),
    )
    ax.tick_params(axis="y", labelsize=7.5)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
