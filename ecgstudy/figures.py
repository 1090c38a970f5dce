"""Every plot of the study, one function each: table or records in, matplotlib figure out."""

from collections.abc import Mapping
from itertools import product

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ecgstudy import plotting as pl
from ecgstudy.ecg_paper import record_amplitudes
from ecgstudy.errors import StudyError
from ecgstudy.plotting import INK, known_arm, style
from ecgstudy.plotting import save_figure as save_figure
from ecgstudy.plotting import stamped as stamped
from ecgstudy.records import EcgRecords

HUES = (*pl.CLASS_COLOURS, *pl.OTHER_COLOURS)


@style()
def class_counts(table: pd.DataFrame) -> Figure:
    """Records of each class and split; `table` has columns class, split, records."""
    splits, classes = list(dict.fromkeys(table["split"])), list(dict.fromkeys(table["class"]))
    figure, panels = pl.new_panels(1, len(splits), 2.6, 0.9 + 0.32 * len(classes), sharex=True, sharey=True)
    for axes, split in zip(panels.flat, splits, strict=True):
        counts = table[table["split"] == split].set_index("class")["records"].reindex(classes).fillna(0)
        axes.barh(classes, counts, color="#7aa6c9", height=0.65)
        for y, count in enumerate(counts):
            axes.annotate(f"{count:,.0f}", (count, y), (3, 0), textcoords="offset points", va="center")
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
        axes.barh(bins[:-1] + 2.5, sign * counts, height=4.4, color=colours[sex], alpha=0.8)
        x, side = (0.02, "left") if sign < 0 else (0.98, "right")
        axes.text(x, 0.97, sex, color=colours[sex], ha=side, va="top", transform=axes.transAxes)
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
    names = {"std_mv": ("standard deviation", "#0072B2"), "peak_to_peak_mv": ("peak to peak", "#D55E00")}
    low, high = min([*epsilons_mv, values["std_mv"].min()]), values["peak_to_peak_mv"].max()
    bins = np.geomspace(0.7 * low, 1.4 * high, 90)
    for column, (label, colour) in names.items():
        axes.hist(values[column], bins, color=colour, alpha=0.65)
        axes.text(values[column].median(), 1.01, label, color=colour, ha="center", va="bottom",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    for epsilon in epsilons_mv:
        axes.axvline(epsilon, color=INK, lw=1, ls="--")
        axes.text(epsilon, 0.97, f" {1000 * epsilon:g} µV", rotation=90, va="top", ha="right", fontsize=8,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set(xscale="log", xlabel="amplitude (mV); dashed: attack budgets ε", ylabel="records")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.grid(False)
    return figure


KINDS = ("positive", "clean–adversarial", "negative: other class", "negative: same class")
HISTORY = (
    (("loss",), "loss"),
    (("positive_similarity", "adversarial_similarity", "negative_similarity"), "cosine similarity"),
    (("effective_negatives",), "effective number of negatives"),
    (("floor_fraction",), "rows on the debiasing floor"),
    (("learning_rate",), "learning rate"),
)


@style()
def loss_curves(history: pd.DataFrame) -> Figure:
    """How training went, epoch by epoch: one panel for each quantity that was logged."""
    known = [([c for c in columns if c in history and history[c].notna().any()], t) for columns, t in HISTORY]
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
            pl.label_ends(axes, history["epoch"].iloc[-1], last, names, [colours[c] for c in columns])
        axes.set(title=title, xlabel="epoch", xlim=(0.5, history["epoch"].max() + 0.5))
        axes.ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=True)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
    for axes in panels.flat[len(known) :]:
        axes.set_visible(False)
    return figure


@style()
def similarity_distributions(frame: pd.DataFrame) -> Figure:
    """Cosine similarities of pairs, one row a kind of pair; columns similarity, kind."""
    kinds = sorted(frame["kind"].unique(), key=lambda kind: (KINDS.index(kind) if kind in KINDS else 9, kind))
    figure, panels = pl.new_panels(len(kinds), 1, 6.2, 0.75, sharex=True)
    bins = np.linspace(-1, 1, 81)
    for axes, kind, colour in zip(panels.flat, kinds, pl.CLASS_COLOURS, strict=False):
        values = frame.loc[frame["kind"] == kind, "similarity"]
        axes.hist(values, bins, density=True, color=colour, alpha=0.75)
        axes.axvline(values.median(), color=INK, lw=1)
        axes.set_ylabel(kind, rotation=0, ha="right", va="center", color=colour)
        axes.set(yticks=[], xlim=(-1, 1))
        axes.spines["left"].set_visible(False)
    panels.flat[-1].set_xlabel("cosine similarity (line: median; density on each row's own scale)")
    return figure


@style()
def embedding_picture(frame: pd.DataFrame, axis: str = "principal component", patients: int = 6) -> Figure:
    """Embeddings in two dimensions, coloured by class and by the `patients` with most records.

    `frame` has columns x, y, class, patient.
    """
    common = list(frame["patient"].value_counts(sort=True).sort_index().nlargest(patients).index)
    sides = (("class", list(dict.fromkeys(frame["class"])), "by class"),
             ("patient", common, f"by patient ({len(common)} with most records)"))  # fmt: skip
    figure, panels = pl.new_panels(1, 2, 3.9, 3.2, sharex=True, sharey=True)
    for axes, (column, values, title) in zip(panels.flat, sides, strict=True):
        others = frame[~frame[column].isin(values)]
        axes.scatter(others["x"], others["y"], s=6, color="#d9d9d9", lw=0, rasterized=True)
        for value, colour in zip(values, HUES, strict=False):
            some = frame[frame[column] == value]
            axes.scatter(some["x"], some["y"], s=8, color=colour, lw=0, alpha=0.8, label=value,
                         rasterized=True)  # fmt: skip
        axes.set(title=title, xlabel=f"{axis} 1", ylabel=f"{axis} 2" if column == "class" else "")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, handletextpad=0.2, fontsize=8,
                    markerscale=2)  # fmt: skip
    return figure


@style()
def weight_profile(frame: pd.DataFrame) -> Figure:
    """Which negatives are pushed how hard: push weight against similarity, 1 being uniform.

    `frame` has columns similarity, weight, same_class and, for several panels, scheme.
    """
    parts = list(frame.groupby("scheme", sort=False)) if "scheme" in frame else [("", frame)]
    figure, panels = pl.new_panels(1, len(parts), 3.2, 2.9, sharey=True)
    for axes, (name, part) in zip(panels.flat, parts, strict=True):
        for same, colour, label in ((False, "#0072B2", "other class"), (True, "#D55E00", "same class")):
            some = part[part["same_class"].astype(bool) == same]
            axes.scatter(some["similarity"], some["weight"], s=7, lw=0, alpha=0.4, color=colour, label=label,
                         rasterized=True)  # fmt: skip
        axes.axhline(1, color=INK, lw=1, ls="--")
        axes.set(title=name, xlabel="cosine similarity to the anchor")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    panels.flat[0].set_ylabel("push weight (dashed: uniform)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, markerscale=2, handletextpad=0.1)
    return figure


@style()
def epsilon_curve(frame: pd.DataFrame) -> Figure:
    """Robust AUROC of one model against ε, one line a view and attack, with intervals where given.

    `frame` has columns epsilon_mv, auroc, optionally view, attack, ci_low, ci_high.
    """
    keys = [k for k in ("attack", "view") if k in frame and frame[k].nunique() > 1]
    parts = list(frame.groupby(keys, sort=False)) if keys else [(("",), frame)]
    figure, panels = pl.new_panels(1, 1, 6, 3.4)
    axes, epsilons = panels[0, 0], pl.epsilon_axis(panels[0, 0], frame["epsilon_mv"])
    ends = []
    for (name, part), colour in zip(parts, HUES, strict=False):
        x, y = pl.draw_curve(axes, part.rename(columns={"auroc": "auroc_shared"}), epsilons, colour)
        ends.append((y, ", ".join(name) if keys else "", colour, x))
    pl.label_ends(axes, len(epsilons) - 1, *map(list, zip(*(end[:3] for end in ends), strict=True)))
    axes.set_ylabel("macro AUROC")
    return figure


@style()
def attack_bars(frame: pd.DataFrame) -> Figure:
    """Robust AUROC under each attack, the strongest last; columns attack, auroc[, ci_low, ci_high].

    A row of attack ``"none"`` becomes the reference line of the clean AUROC.
    """
    clean = frame.loc[frame["attack"] == "none", "auroc"]
    frame = frame[frame["attack"] != "none"].sort_values("auroc", ascending=False, kind="stable")
    figure, panels = pl.new_panels(1, 1, 6, 0.9 + 0.32 * len(frame))
    axes = panels[0, 0]
    colours = ["#7aa6c9"] * (len(frame) - 1) + ["#882255"]
    axes.barh(frame["attack"], frame["auroc"], color=colours, height=0.65)
    if "ci_low" in frame:
        axes.hlines(frame["attack"], frame["ci_low"], frame["ci_high"], color=INK, lw=1.2)
    for y, row in enumerate(frame.to_dict("records")):
        right = np.nanmax([row["auroc"], row.get("ci_high", np.nan)])
        axes.annotate(f"{row['auroc']:.3f}", (right, y), (4, 0), textcoords="offset points", va="center")
    for value, text in [(0.5, "chance"), *((c, "clean") for c in clean[:1])]:
        side = "left" if value == max(0.5, *clean[:1]) else "right"
        axes.axvline(value, color="#666666", lw=1, ls=":")
        axes.annotate(text, (value, 1.01), xycoords=("data", "axes fraction"), ha=side, va="bottom")
    axes.set(xlim=(0, 1), xlabel="macro AUROC under attack")
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    return figure


GROUPS = {
    "reference": "references",
    "standard": "standard contrastive",
    "adaptive": "adaptive weights, clean views",
    "adversarial": "adversarial views, standard loss",
    "adversarial adaptive": "adversarial views, adaptive weights",
    "with labels": "contrastive with labels",
    "other": "other arms",
}


@style()
def epsilon_curves_by_arm(table: pd.DataFrame, attack: str = "ensemble", protocol: str = "slf") -> Figure:
    """Shared robust AUROC of every arm against ε: a column a group, its base in grey, a row a data set.

    `table` is ``robust_auroc.csv``.
    """
    table = _all_seeds(table, protocol, attack)
    datasets, facets = list(dict.fromkeys(table["dataset"])), _facets(list(dict.fromkeys(table["arm"])))
    figure, panels = pl.new_panels(len(datasets), len(facets), 3.6, 3.0, sharey=True)
    for (dataset, (group, members, bases)), axes in zip(product(datasets, facets), panels.flat, strict=True):
        own = table[table["dataset"] == dataset]
        epsilons, ends = pl.epsilon_axis(axes, own["epsilon_mv"]), []
        for arm in [*bases, *members]:
            if len(rows := own[own["arm"] == arm]):
                colour, failed = pl.GREY if arm in bases else pl.arm_colour(arm), pl.fails_masking(rows)
                look = {"marker": pl.arm_marker(arm), "mfc": "white" if failed else colour}
                _, y = pl.draw_curve(axes, rows, epsilons, colour, **look)
                ends.append((y, arm + " †" * failed, colour))
        if ends:
            pl.label_ends(axes, len(epsilons) - 1, *map(list, zip(*ends, strict=True)))
        axes.set_title(f"{dataset}: {GROUPS[group]}" if len(datasets) > 1 else GROUPS[group])
    for axes in panels[:, 0]:
        axes.set_ylabel(f"macro AUROC under {attack}")
    pl.dagger_note(figure, table)
    return figure


@style()
def contrast_forest(contrasts: pd.DataFrame) -> Figure:
    """Adaptive − standard with intervals: filled black the primary family, hollow grey the exploratory.

    `contrasts` is ``contrasts.csv`` or rows of it; if it has `headline` rows, only those are drawn.
    """
    if "headline" in contrasts and pl.is_true(contrasts["headline"]).any():
        contrasts = contrasts[pl.is_true(contrasts["headline"])]
    if contrasts.empty:
        figure, panels = pl.new_panels(1, 1, 5, 0.6)
        panels[0, 0].set_axis_off()
        panels[0, 0].text(0, 0.5, "this study has no two arms to compare")
        return figure
    parts = list(contrasts.groupby(["dataset", "protocol", "attack", "epsilon_mv"], sort=False))
    order = contrasts.sort_values("family", ascending=False, kind="stable")
    pairs = list(dict.fromkeys(order["adaptive"] + " − " + order["standard"]))
    figure, panels = pl.new_panels(1, len(parts), 5.6, 1.2 + 0.3 * len(pairs), sharey=True)
    for axes, ((dataset, protocol, attack, epsilon), part) in zip(panels.flat, parts, strict=True):
        for row in part.to_dict("records"):
            y, primary = pairs.index(f"{row['adaptive']} − {row['standard']}"), row["family"] == "primary"
            colour = INK if primary else "#8a8a8a"
            axes.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, lw=1.6 if primary else 1.1)
            axes.plot(
                row["delta"], y, "D" if primary else "o", color=colour, mfc=colour if primary else "white"
            )
            axes.annotate(_forest_text(row), (1.02, y), xycoords=("axes fraction", "data"), va="center",
                          fontsize=8, color=colour, annotation_clip=False)  # fmt: skip
        axes.axvline(0, color=INK, lw=1)
        axes.set(title=f"{dataset}: {attack}, ε = {epsilon:g} mV, {protocol}", ylim=(len(pairs) - 0.5, -0.5))
        axes.set_xlabel("difference in macro robust AUROC\n← second arm better     first arm better →")
        axes.grid(False, axis="y")
        axes.margins(x=0.1)
    panels.flat[0].set_yticks(range(len(pairs)), pairs)
    note = "◆ primary family (p adjusted by Holm)   ○ exploratory (p unadjusted)"
    figure.supxlabel(
        note + "   † a gradient-masking check fails" * pl.fails_masking(contrasts),
        fontsize=8,
        x=0.01,
        ha="left",
    )
    return figure


@style()
def pareto(
    table: pd.DataFrame,
    epsilon_mv: float | Mapping[str, float],
    attack: str = "ensemble",
    protocol: str = "slf",
) -> Figure:
    """Clean against robust AUROC of every arm, at `epsilon_mv` (or ε by data set); up and right is better.

    `table` is ``robust_auroc.csv``.
    """
    table = _all_seeds(table, protocol, attack)
    datasets = list(dict.fromkeys(table["dataset"]))
    figure, panels = pl.new_panels(1, len(datasets), 4.8, 4.2)
    for axes, dataset in zip(panels.flat, datasets, strict=True):
        epsilon = epsilon_mv[dataset] if isinstance(epsilon_mv, Mapping) else epsilon_mv
        own = table[table["dataset"] == dataset]
        clean = own[own["attack"] == "none"].set_index("arm")
        robust = own[(own["attack"] == attack) & np.isclose(own["epsilon_mv"], epsilon)].set_index("arm")
        arms = [arm for arm in robust.index if arm in clean.index]
        if not arms:
            raise StudyError(f"{dataset}: no arm has both clean and {attack} AUROC at ε = {epsilon:g} mV")
        for arm in arms:
            (x, y), colour = (t.at[arm, "auroc_shared"] for t in (clean, robust)), pl.arm_colour(arm)
            axes.plot(clean.loc[arm, ["ci_low", "ci_high"]], [y, y], color=colour, lw=0.8, alpha=0.45)
            axes.plot([x, x], robust.loc[arm, ["ci_low", "ci_high"]], color=colour, lw=0.8, alpha=0.45)
            hollow = pl.fails_masking(robust.loc[[arm]])
            axes.plot(x, y, pl.arm_marker(arm), color=colour, mfc="white" if hollow else colour, ms=6.5)
        axes.set(
            title=dataset, xlabel="clean macro AUROC", ylabel=f"macro AUROC, {attack}, ε = {epsilon:g} mV"
        )
        points = [(clean.at[arm, "auroc_shared"], robust.at[arm, "auroc_shared"]) for arm in arms]
        names = [arm + " †" * pl.fails_masking(robust.loc[[arm]]) for arm in arms]
        pl.label_points(axes, points, names, [pl.arm_colour(arm) for arm in arms])
    pl.dagger_note(figure, table)
    return figure


@style()
def cost_figure(
    cost: pd.DataFrame, time: str = "training_seconds", speed: str = "attack_steps_per_second"
) -> Figure:
    """Training time and attack throughput of each arm: a dot a run, a line at the arm's mean."""
    wanted = ((time, "training time (s)"), (speed, "attack steps per second"))
    shown = [(column, label) for column, label in wanted if column in cost and cost[column].notna().any()]
    if not shown:
        raise StudyError(
            f"the cost table has neither {time!r} nor {speed!r}; found {', '.join(cost.columns)}"
        )
    arms = list(dict.fromkeys(cost["arm"]))
    figure, panels = pl.new_panels(1, len(shown), 3.8, 0.9 + 0.28 * len(arms), sharey=True)
    for axes, (column, label) in zip(panels.flat, shown, strict=True):
        colours = {arm: pl.arm_colour(arm) for arm in arms}
        sns.stripplot(cost, x=column, y="arm", order=arms, hue="arm", palette=colours, hue_order=arms,
                      jitter=False, size=6, alpha=0.7, legend=False, ax=axes)  # fmt: skip
        means = cost.groupby("arm")[column].mean().reindex(arms)
        axes.vlines(means, np.arange(len(arms)) - 0.32, np.arange(len(arms)) + 0.32, color=INK, lw=1.2)
        axes.set(xlabel=label, ylabel="")
        axes.set_xlim(0, 1.08 * cost[column].max())
    return figure


def _all_seeds(table: pd.DataFrame, protocol: str, attack: str) -> pd.DataFrame:
    kept = table[(table["seed"].astype(str) == "all") & (table["protocol"] == protocol)]
    kept = kept[kept["attack"].isin(["none", attack])]
    if attack not in set(kept["attack"]):
        known = ", ".join(sorted(set(table["attack"]) - {"none"}))
        raise StudyError(f"no rows of seed 'all', protocol {protocol!r}, attack {attack!r}; attacks: {known}")
    return kept


def _facets(arms: list[str]) -> list[tuple[str, list[str], list[str]]]:
    """(group, arms, grey bases of other groups); groups that others show in grey anyway are left out."""
    rows = {arm: known_arm(arm) for arm in arms}
    group_of = {arm: row.group if row else "other" for arm, row in rows.items()}
    facets = []
    for group in [g for g in GROUPS if g in group_of.values()]:
        members = [arm for arm in arms if group_of[arm] == group]
        bases = dict.fromkeys(rows[arm].base for arm in members if rows[arm])
        facets.append((group, members, [b for b in bases if b in arms and b not in members]))
    for facet in list(facets):
        others = [f for f in facets if f is not facet]
        shown = {arm for _, members, bases in others for arm in (*members, *bases)}
        if set(facet[1]) | set(facet[2]) <= shown:
            facets.remove(facet)
    return facets


def _forest_text(row: dict) -> str:
    primary = row["family"] == "primary" and pd.notna(row["p_holm"])
    p = row["p_holm"] if primary else row["p"]
    interval = "" if pd.isna(row["ci_low"]) else f" [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    text = f"{row['delta']:+.3f}{interval}" + ("" if pd.isna(p) else f"  p = {p:.2g}")
    return text.replace("-", "−") + " †" * (str(row.get("masking_ok")) == "False")
