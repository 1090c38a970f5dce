"""The benchmarks as one figure: our variants beside what they are compared with."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecgstudy.plots.style import GREY, INK, styled

OURS = ("ours", "ours, gradients in bfloat16", "uniform", "IP and HN, debiased")
TITLES = {
    "efficiency of a pretraining step": "Bare passes / our pretraining step",
    "efficiency of an attack step": "Bare passes / our attack step",
    "operations of pretraining steps": "Operations on a GPU: bare passes / our"
    " pretraining step",
    "operations of attack steps": "Operations on a GPU: bare passes / our attack step",
    "attacks beside other libraries": "Speed of each / ours in float32",
    "contrastive loss, time": "Time of NT-Xent / ours",
    "contrastive loss, memory": "Memory of NT-Xent / ours",
    "resampling": "scikit-learn / ours",
}


@styled
def plot_ratios(table: pd.DataFrame, machine: str) -> Figure:
    """A panel of ratios for each benchmark that compares (1: alike)."""
    compared = table[table["ratio"].notna() & (table["variant"] != table["base"])]
    kinds = [kind for kind in TITLES if kind in set(compared["benchmark"])]
    panels = [compared[compared["benchmark"] == kind] for kind in kinds]
    heights = [max(2, len(rows)) for rows in panels]
    figure, axes = plt.subplots(
        len(heights),
        1,
        figsize=(7.5, 0.24 * sum(heights) + 0.8 * len(heights)),
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
    )
    for ax, kind, rows in zip(axes[:, 0], kinds, panels, strict=True):
        _draw_panel(ax, TITLES[kind], rows)
    figure.suptitle(machine, x=0.01, ha="left", fontsize=8, color="#666666")
    return figure


def _draw_panel(ax: Axes, title: str, rows: pd.DataFrame) -> None:
    variants = rows["variant"].where(rows["variant"] != "ours", "")
    names = (rows["case"] + " · " + variants).str.removesuffix(" · ")
    colours = [INK if variant in OURS else GREY for variant in rows["variant"]]
    ax.barh(range(len(rows)), rows["ratio"], color=colours, height=0.7)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for place, ratio in enumerate(rows["ratio"]):
        ax.annotate(
            f"{ratio:.2f}",
            (ratio, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            bbox=box,
        )
    ax.axvline(1, color="#D55E00", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(rows)), names, fontsize=7.5)
    ax.set(title=title, xlim=(0, 1.12 * max(1, rows["ratio"].max())))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
