"""Plots of data and of single runs, one function each: table or records in, matplotlib figure out."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecgstudy.plots import style as pl
from ecgstudy.plots.ecg_paper import record_amplitudes
from ecgstudy.plots.style import INK, style
from ecgstudy.plots.style import save_figure as save_figure
from ecgstudy.plots.style import stamped as stamped
from ecgstudy.records import EcgRecords
from ecgstudy.study import ENSEMBLE

HUES = (*pl.CLASS_COLOURS, *pl.OTHER_COLOURS)


@style()
def class_counts(table: pd.DataFrame) -> Figure:
    """Records of each class and split; `table` has columns class, split, records."""
    splits, classes = (
        list(dict.fromkeys(table["split"])),
        list(dict.fromkeys(table["class"])),
    )
    figure, panels = pl.new_panels(
        1, len(splits), 2.6, 0.9 + 0.32 * len(classes), sharex=True, sharey=True
    )
    for axes, split in zip(panels.flat, splits, strict=True):
        counts = (
            table[table["split"] == split]
            .set_index("class")["records"]
            .reindex(classes)
            .fillna(0)
        )
        axes.barh(classes, counts, color="#7aa6c9", height=0.65)
        for y, count in enumerate(counts):
            axes.annotate(
                f"{count:,.0f}",
                (count, y),
                (3, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set(title=f"{split}: {counts.sum():,.0f} labels", xlabel="records")
        axes.grid(False, axis="y")
        axes.margins(x=0.3)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    panels.flat[0].invert_yaxis()
    return figure


@style()
def age_sex(table: pd.DataFrame) -> Figure:
    """Ages (years) of the patients by sex; `table` is the records' table, one row a record."""
    people = table.drop_duplicates("patient")
    bins, colours = np.arange(0, 96, 5), {"female": "#D55E00", "male": "#0072B2"}
    figure, panels = pl.new_panels(1, 1, 5.5, 3.4)
    axes = panels[0, 0]
    for sex, sign in (("female", -1), ("male", 1)):
        counts, _ = np.histogram(people.loc[people["sex"] == sex, "age"].dropna(), bins)
        axes.barh(
            bins[:-1] + 2.5, sign * counts, height=4.4, color=colours[sex], alpha=0.8
        )
        x, side = (0.02, "left") if sign < 0 else (0.98, "right")
        axes.text(
            x,
            0.97,
            sex,
            color=colours[sex],
            ha=side,
            va="top",
            transform=axes.transAxes,
        )
    limit = max(1, np.abs(axes.get_xlim()).max())
    unknown = int((people["age"].isna() | ~people["sex"].isin(list(colours))).sum())
    axes.set(xlim=(-limit, limit), xlabel="patients", ylabel="age (years)")
    axes.set_title(f"{len(people):,} patients, age or sex unknown in {unknown:,}")
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):,.0f}")
    return figure


@style()
def amplitude_against_epsilon(records: EcgRecords, epsilons_mv: list[float]) -> Figure:
    """How small the attacks are: amplitudes of the records beside the budgets ε (mV)."""
    values = record_amplitudes(records)
    figure, panels = pl.new_panels(1, 1, 6.5, 2.9)
    axes = panels[0, 0]
    names = {
        "std_mv": ("standard deviation", "#0072B2"),
        "peak_to_peak_mv": ("peak to peak", "#D55E00"),
    }
    low, high = (
        min([*epsilons_mv, values["std_mv"].min()]),
        values["peak_to_peak_mv"].max(),
    )
    bins = np.geomspace(0.7 * low, 1.4 * high, 90)
    for column, (label, colour) in names.items():
        axes.hist(values[column], bins, color=colour, alpha=0.65)
        axes.text(values[column].median(), 1.01, label, color=colour, ha="center", va="bottom",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    for epsilon in epsilons_mv:
        axes.axvline(epsilon, color=INK, lw=1, ls="--")
        axes.text(epsilon, 0.97, f" {1000 * epsilon:g} µV", rotation=90, va="top", ha="right", fontsize=8,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set(
        xscale="log",
        xlabel="amplitude (mV); dashed: attack budgets ε",
        ylabel="records",
    )
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.grid(False)
    return figure


KINDS = (
    "positive",
    "clean–adversarial",
    "negative: other class",
    "negative: same class",
)
HISTORY = (
    (("loss",), "loss"),
    (
        ("positive_similarity", "adversarial_similarity", "negative_similarity"),
        "cosine similarity",
    ),
    (("effective_negatives",), "effective number of negatives"),
    (("floor_fraction",), "rows on the debiasing floor"),
    (("learning_rate",), "learning rate"),
)


@style()
def loss_curves(history: pd.DataFrame) -> Figure:
    """How training went, epoch by epoch: one panel for each quantity that was logged."""
    known = [
        ([c for c in columns if c in history and history[c].notna().any()], t)
        for columns, t in HISTORY
    ]
    known = [(columns, title) for columns, title in known if columns]
    figure, panels = pl.new_panels((len(known) + 2) // 3, min(3, len(known)), 2.9, 2.2)
    colours = dict(zip(HISTORY[1][0], ("#0072B2", "#D55E00", pl.GREY), strict=True))
    for axes, (columns, title) in zip(panels.flat, known, strict=False):
        for column in columns:
            axes.plot(history["epoch"], history[column], color=colours.get(column, "#0072B2"),
                      marker="." if len(history) < 15 else "")  # fmt: skip
        last = history[columns].ffill().iloc[-1]
        if len(columns) > 1:
            names = [column.removesuffix("_similarity") for column in columns]
            pl.label_ends(
                axes,
                history["epoch"].iloc[-1],
                last,
                names,
                [colours[c] for c in columns],
            )
        axes.set(title=title, xlabel="epoch", xlim=(0.5, history["epoch"].max() + 0.5))
        axes.ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=True)
        low, high = np.nanmin(history[columns]), np.nanmax(history[columns])
        least = 0.02 * max(abs(low), abs(high)) or 1.0
        if high - low < least:  # the rounding errors of a constant are no curve
            axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
    for axes in panels.flat[len(known) :]:
        axes.set_visible(False)
    return figure


@style()
def similarity_distributions(frame: pd.DataFrame) -> Figure:
    """Cosine similarities of pairs, one row a kind of pair; columns similarity, kind."""
    kinds = sorted(
        frame["kind"].unique(),
        key=lambda kind: (KINDS.index(kind) if kind in KINDS else 9, kind),
    )
    figure, panels = pl.new_panels(len(kinds), 1, 6.2, 0.75, sharex=True)
    bins = np.linspace(-1, 1, 81)
    for axes, kind, colour in zip(panels.flat, kinds, pl.CLASS_COLOURS, strict=False):
        values = frame.loc[frame["kind"] == kind, "similarity"]
        axes.hist(values, bins, density=True, color=colour, alpha=0.75)
        axes.axvline(values.median(), color=INK, lw=1)
        axes.set_ylabel(kind, rotation=0, ha="right", va="center", color=colour)
        axes.set(yticks=[], xlim=(-1, 1))
        axes.spines["left"].set_visible(False)
    panels.flat[-1].set_xlabel(
        "cosine similarity (line: median; density on each row's own scale)"
    )
    return figure


@style()
def embedding_picture(frame: pd.DataFrame) -> Figure:
    """Principal components of embeddings, coloured by class and by the six patients with most records.

    `frame` has columns x, y, class, patient.
    """
    common = list(
        frame["patient"].value_counts(sort=True).sort_index().nlargest(6).index
    )
    sides = (("class", list(dict.fromkeys(frame["class"])), "by class"),
             ("patient", common, f"by patient ({len(common)} with most records)"))  # fmt: skip
    figure, panels = pl.new_panels(1, 2, 3.9, 3.2, sharex=True, sharey=True)
    for axes, (column, values, title) in zip(panels.flat, sides, strict=True):
        others = frame[~frame[column].isin(values)]
        axes.scatter(
            others["x"], others["y"], s=6, color="#d9d9d9", lw=0, rasterized=True
        )
        for value, colour in zip(values, HUES, strict=False):
            some = frame[frame[column] == value]
            axes.scatter(some["x"], some["y"], s=8, color=colour, lw=0, alpha=0.8, label=value,
                         rasterized=True)  # fmt: skip
        axes.set(title=title, xlabel="principal component 1")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, handletextpad=0.2, fontsize=8,
                    markerscale=2)  # fmt: skip
    panels.flat[0].set_ylabel("principal component 2")
    return figure


PULLS = {
    "its clean views": "#009E73",
    "its attacked view": "#CC79A7",
    "other ECGs": "#888888",
}
PUSHES = {"other class": "#0072B2", "same class": "#D55E00"}
"""What pulls and what pushes a view, and its colour."""


@style()
def weight_profile(frame: pd.DataFrame) -> Figure:
    """Which negatives are pushed how hard: push weight against similarity, 1 being uniform.

    `frame` has columns similarity, weight, same_class.
    """
    figure, panels = pl.new_panels(1, 1, 3.2, 2.9)
    kinds = np.where(frame["same_class"].astype(bool), "same class", "other class")
    _draw_pushes(panels[0, 0], frame.assign(kind=kinds))
    panels[0, 0].set(
        xlabel="cosine similarity to the anchor", ylabel="push weight (dashed: uniform)"
    )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper right",
        ncols=2,
        markerscale=2,
        handletextpad=0.1,
    )
    return figure


def _draw_pushes(axes: Axes, pushes: pd.DataFrame) -> None:
    for kind, colour in PUSHES.items():
        some = pushes[pushes["kind"] == kind]
        axes.scatter(some["similarity"], some["weight"], s=7, lw=0, alpha=0.4, color=colour, label=kind,
                     rasterized=True)  # fmt: skip
    axes.axhline(1, color=INK, lw=1, ls="--")
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))


@style()
def pull_and_push(frame: pd.DataFrame) -> Figure:
    """Of each weighting scheme, what pulls each view of one ECG (bars) and pushes the first (points).

    `frame` has columns scheme, anchor (a view of the ECG), role (pull or push), kind, similarity, weight.
    """
    schemes, anchors = (
        list(dict.fromkeys(frame[name])) for name in ("scheme", "anchor")
    )
    down = -(-len(schemes) // 2)
    figure, panels = pl.new_panels(down, 4, 2.6, 1.5, width_ratios=(3, 4, 3, 4))
    pulls, pushes = (frame[frame["role"] == role] for role in ("pull", "push"))
    low, high = pushes["similarity"].agg(["min", "max"])
    span = low - 0.03 * (high - low) - 1e-3, high + 0.03 * (high - low) + 1e-3
    reach = 1.3 * pulls.groupby(["scheme", "anchor"])["weight"].sum().max()
    for name, (left, right) in zip(schemes, panels.reshape(2 * down, 2), strict=False):
        own = pushes[(pushes["scheme"] == name) & (pushes["anchor"] == anchors[0])]
        _draw_pulls(left, pulls[pulls["scheme"] == name], anchors)
        _draw_pushes(right, own)
        left.set(xlim=(0, reach))
        left.set_title(name, fontweight="bold")
        right.set(
            xlim=span, ylim=(0, max(2, 1.1 * own["weight"].max())), ylabel="push weight"
        )
    for axes in panels.reshape(2 * down, 2)[len(schemes) :].flat:
        axes.set_visible(False)
    _label_columns(figure, panels, len(schemes), anchors[0])
    return figure


def _draw_pulls(axes: Axes, pulls: pd.DataFrame, anchors: list[str]) -> None:
    shares = pulls.pivot_table("weight", "anchor", "kind", "sum").reindex(
        anchors, columns=[*PULLS]
    )
    shares, left = shares.fillna(0), np.zeros(len(anchors))
    for kind, colour in PULLS.items():
        axes.barh(
            anchors, shares[kind], left=left, color=colour, height=0.6, label=kind
        )
        left = left + shares[kind].to_numpy()
    for y, total in enumerate(left):
        axes.annotate(
            f"{total:.2g}", (total, y), (3, 0), textcoords="offset points", va="center"
        )
    axes.invert_yaxis()
    axes.grid(False, axis="y")


def _label_columns(figure: Figure, panels: np.ndarray, shown: int, anchor: str) -> None:
    """Axis labels under the lowest panel of each column, and one legend for all."""
    for column, axes in enumerate(panels[-1]):
        if not axes.get_visible():
            axes = panels[-2, column]
        axes.set_xlabel(
            ("pull weight", f"cosine similarity to its {anchor}")[column % 2]
        )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    dots, classes = panels[0, 1].get_legend_handles_labels()
    labels = [f"pulled by {label}" for label in labels] + [
        f"pushed by {label.replace('same', 'its')}" for label in classes
    ]
    figure.legend(
        handles + dots,
        labels,
        loc="outside upper left",
        ncols=5,
        markerscale=2,
        columnspacing=1,
    )


@style()
def epsilon_curve(frame: pd.DataFrame) -> Figure:
    """Robust AUROC of one model against ε, a line a view (columns epsilon_mv, view, auroc, masking_ok)."""
    figure, panels = pl.new_panels(1, 1, 6, 3.4)
    axes, epsilons, ends = (
        panels[0, 0],
        pl.epsilon_axis(panels[0, 0], frame["epsilon_mv"]),
        [],
    )
    for (view, part), colour in zip(
        frame.groupby("view", sort=False), HUES, strict=False
    ):
        y = pl.draw_curve(
            axes, part.rename(columns={"auroc": "auroc_shared"}), epsilons, color=colour
        )
        ends.append((y, view, colour))
    pl.label_ends(axes, len(epsilons) - 1, *map(list, zip(*ends, strict=True)))
    axes.set_ylabel("macro AUROC")
    pl.note_beneath(figure, pl.dagger_note(frame))
    return figure


@style()
def attack_bars(frame: pd.DataFrame) -> Figure:
    """Robust AUROC under each attack, the strongest last; the ensemble stands out.

    `frame` has columns attack, auroc, optionally ci_low, ci_high, n_records, masking_ok. A row of attack
    ``"none"`` becomes the reference line of the clean AUROC. Attacks on fewer records have a star.
    """
    clean = frame.loc[frame["attack"] == "none", "auroc"]
    frame = frame[frame["attack"] != "none"].sort_values(
        "auroc", ascending=False, kind="stable"
    )
    figure, panels = pl.new_panels(1, 1, 6, 0.9 + 0.32 * len(frame))
    axes = panels[0, 0]
    colours = np.where(frame["attack"] == ENSEMBLE, "#882255", "#7aa6c9")
    records = frame.get("n_records", pd.Series(1, frame.index))
    fewer = records < records.max()
    names = (
        frame["attack"]
        + np.where(fewer, " *", "")
        + np.where(pl.in_larger_ball(frame["attack"]), " ℓ2", "")
    )
    axes.barh(names, frame["auroc"], color=colours, height=0.65)
    if "ci_low" in frame:
        axes.hlines(names, frame["ci_low"], frame["ci_high"], color=INK, lw=1.2)
    for y, row in enumerate(frame.to_dict("records")):
        right = np.nanmax([row["auroc"], row.get("ci_high", np.nan)])
        axes.annotate(
            f"{row['auroc']:.3f}",
            (right, y),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    for value, text in [(0.5, "chance"), *((c, "clean") for c in clean[:1])]:
        side = "left" if value == max(0.5, *clean[:1]) else "right"
        axes.axvline(value, color="#666666", lw=1, ls=":")
        axes.annotate(
            text,
            (value, 1.01),
            xycoords=("data", "axes fraction"),
            ha=side,
            va="bottom",
        )
    axes.set(xlim=(0, 1), xlabel="macro AUROC under attack")
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    larger = pl.LARGER_BALL * bool(pl.in_larger_ball(frame["attack"]).any())
    pl.note_beneath(figure, pl.FEWER * bool(fewer.any()), larger, pl.dagger_note(frame))
    return figure


@style()
def energy_shares(frame: pd.DataFrame) -> Figure:
    """Where the energy of one perturbation lies: its share by band, lead and part of the beat.

    `frame` has columns kind, name, share, size (the share of white noise, drawn as a line).
    """
    kinds = [("band", "frequency"), ("part", "part of the beat"), ("lead", "lead")]
    figure, panels = pl.new_panels(1, len(kinds), 3.2, 2.4)
    for axes, (kind, title) in zip(panels.flat, kinds, strict=True):
        part = frame[frame["kind"] == kind]
        places = np.arange(len(part))
        axes.bar(places, part["share"], color="#D55E00", width=0.7)
        axes.hlines(part["size"], places - 0.4, places + 0.4, color=INK, lw=1.2)
        axes.set_xticks(places, part["name"], rotation=40, ha="right", fontsize=7.5)
        axes.set(title=title, ylim=(0, 1))
        axes.grid(axis="x", visible=False)
    panels.flat[0].set_ylabel("share of energy (line: white noise)")
    return figure
