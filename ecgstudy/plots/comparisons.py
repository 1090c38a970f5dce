"""Figures that compare arms, from a study's tables: ε curves, contrasts, clean against robust, cost."""

from collections.abc import Mapping
from itertools import product

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecgstudy.analysis.contrasts import PRIMARY
from ecgstudy.errors import StudyError
from ecgstudy.params import target
from ecgstudy.plots import style as pl
from ecgstudy.plots.style import INK, known_arm, style
from ecgstudy.plots.tables_html import interval
from ecgstudy.pretraining.arms import Arm

COLUMNS, CROWD = 3, 8
"""Panels side by side, and arms that a panel can hold; more are split, or labelled in part."""
LANDMARKS = ("random", "supervised", "pgd-at", "simclr", "rocl")
GROUPS = {
    "reference": "references",
    "standard": "standard contrastive",
    "adaptive": "clean views, adaptive weights",
    "adversarial": "adversarial, standard loss",
    "adversarial adaptive": "adversarial, adaptive",
    "with labels": "contrastive with labels",
    "other": "other arms",
}


@style()
def epsilon_curves_by_arm(
    table: pd.DataFrame, attack: str = "ensemble", protocol: str = "slf"
) -> Figure:
    """Shared robust AUROC of every arm against ε: a panel a group of arms with their bases in grey.

    `table` is ``robust_auroc.csv``.
    """
    table = _all_seeds(table, protocol, attack)
    datasets, facets = (
        list(dict.fromkeys(table["dataset"])),
        _facets(list(dict.fromkeys(table["arm"]))),
    )
    across = min(COLUMNS, len(facets))
    down = -(-len(facets) // across)
    figure, panels = pl.new_panels(len(datasets) * down, across, 3.6, 3.0, sharey=True)
    for axes in panels.flat:
        axes.set_visible(False)
    for place, (dataset, (title, members, bases)) in enumerate(
        product(datasets, facets)
    ):
        row, column = divmod(place % len(facets), across)
        axes = panels[place // len(facets) * down + row, column]
        axes.set_visible(True)
        own = table[table["dataset"] == dataset]
        epsilons, ends = pl.epsilon_axis(axes, own["epsilon_mv"]), []
        for arm in [*bases, *members]:
            if len(rows := own[own["arm"] == arm]):
                look = pl.arm_look(arm, rows, grey=arm in bases)
                y = pl.draw_curve(axes, rows, epsilons, **look)
                ends.append((y, pl.daggered(arm, rows), look["color"]))
        if ends:
            pl.label_ends(axes, len(epsilons) - 1, *map(list, zip(*ends, strict=True)))
        axes.set_title(f"{dataset}: {title}" if len(datasets) > 1 else title)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"macro AUROC under {attack}")
    pl.note_beneath(figure, pl.dagger_note(table, "† and hollow:"))
    return figure


@style()
def contrast_forest(contrasts: pd.DataFrame) -> Figure:
    """Adaptive − standard with intervals: filled black the primary family, hollow grey the exploratory.

    A panel a data set and family: on one axis large exploratory differences would hide the intervals of the
    primary family. `contrasts` is ``contrasts.csv`` or rows of it; if it has `headline` rows, only those are
    drawn.
    """
    if "headline" in contrasts and pl.is_true(contrasts["headline"]).any():
        contrasts = contrasts[pl.is_true(contrasts["headline"])]
    if contrasts.empty:
        figure, panels = pl.new_panels(1, 1, 5, 0.6)
        panels[0, 0].set_axis_off()
        panels[0, 0].text(0, 0.5, "this study has no two arms to compare")
        return figure
    parts = list(
        contrasts.groupby(
            ["dataset", "protocol", "attack", "epsilon_mv", "family"], sort=False
        )
    )
    figure, panels, names = _forest_panels([part for _, part in parts])
    for axes, pairs, (place, part) in zip(panels, names, parts, strict=True):
        dataset, protocol, attack, epsilon, family = place
        primary = family == "primary"
        colour = INK if primary else "#8a8a8a"
        for row in part.to_dict("records"):
            y = pairs.index(f"{row['adaptive']} − {row['standard']}")
            axes.plot(
                [row["ci_low"], row["ci_high"]],
                [y, y],
                color=colour,
                lw=1.6 if primary else 1.1,
            )
            axes.plot(
                row["delta"],
                y,
                "D" if primary else "o",
                color=colour,
                mfc=colour if primary else "white",
            )
            axes.annotate(_forest_text(row), (1.02, y), xycoords=("axes fraction", "data"), va="center",
                          fontsize=8, color=colour, annotation_clip=False)  # fmt: skip
        axes.axvline(0, color=INK, lw=1)
        title = f"{dataset}, {family}: {attack}, ε = {epsilon:g} mV, {protocol}"
        axes.set(title=title, ylim=(len(pairs) - 0.5, -0.5))
        axes.set_xlabel(
            "difference in macro robust AUROC\n← second arm better     first arm better →"
        )
        axes.grid(False, axis="y")
        axes.margins(x=0.1)
    note = "◆ primary family (p adjusted by Holm)   ○ exploratory (p unadjusted)"
    pl.note_beneath(
        figure, note, "† a gradient-masking check fails" * pl.fails_masking(contrasts)
    )
    return figure


def _forest_panels(
    parts: list[pd.DataFrame],
) -> tuple[Figure, list[Axes], list[list[str]]]:
    """A panel a part, with its pairs downwards: two abreast if all have the same, else in one column."""
    names = [
        list(dict.fromkeys(part["adaptive"] + " − " + part["standard"]))
        for part in parts
    ]
    alike = all(set(each) == set(names[0]) for each in names)
    heights = [1.2 + 0.3 * len(each) for each in names]
    if alike:
        names = [names[0]] * len(parts)
        figure, panels = pl.new_panels(
            -(-len(parts) // 2), min(2, len(parts)), 5.6, heights[0], sharey=True
        )
        for axes in panels.flat[len(parts) :]:
            axes.set_visible(False)
    else:
        ratios = {"height_ratios": heights}
        figure, panels = pl.new_panels(
            len(parts), 1, 5.6, sum(heights) / len(parts), gridspec_kw=ratios
        )
    shown = list(panels.flat[: len(parts)])
    for axes, each in zip(shown[:1] if alike else shown, names, strict=False):
        axes.set_yticks(range(len(each)), each)
    return figure, shown, names


@style()
def pareto(
    table: pd.DataFrame,
    headline: Mapping[str, float],
    attack: str = "ensemble",
    protocol: str = "slf",
) -> Figure:
    """Clean against robust AUROC of every arm, at ε (mV) by data set `headline`; up and right is better.

    Of many arms only those that no other beats in both, and some landmarks, are labelled. `table`
    is ``robust_auroc.csv``.
    """
    table = _all_seeds(table, protocol, attack)
    datasets = list(dict.fromkeys(table["dataset"]))
    figure, panels = pl.new_panels(1, len(datasets), 4.8, 4.2)
    for axes, dataset in zip(panels.flat, datasets, strict=True):
        epsilon, own = (
            headline[target(dataset, protocol)],
            table[table["dataset"] == dataset],
        )
        clean = own[own["attack"] == "none"].set_index("arm")
        robust = own[
            (own["attack"] == attack) & np.isclose(own["epsilon_mv"], epsilon)
        ].set_index("arm")
        arms = [arm for arm in robust.index if arm in clean.index]
        if not arms:
            raise StudyError(
                f"{dataset}: no arm has both clean and {attack} AUROC at ε = {epsilon:g} mV"
            )
        for arm in arms:
            x, y = (t.at[arm, "auroc_shared"] for t in (clean, robust))
            look = pl.arm_look(arm, robust.loc[[arm]])
            colour = look["color"]
            axes.plot(
                clean.loc[arm, ["ci_low", "ci_high"]],
                [y, y],
                color=colour,
                lw=0.8,
                alpha=0.45,
            )
            axes.plot(
                [x, x],
                robust.loc[arm, ["ci_low", "ci_high"]],
                color=colour,
                lw=0.8,
                alpha=0.45,
            )
            axes.plot(x, y, ms=6.5, **look)
        axes.set(
            title=dataset,
            xlabel="clean macro AUROC",
            ylabel=f"macro AUROC, {attack}, ε = {epsilon:g} mV",
        )
        points = [
            (clean.at[arm, "auroc_shared"], robust.at[arm, "auroc_shared"])
            for arm in arms
        ]
        few = len(arms) <= 2 * CROWD
        named = [
            i
            for i, arm in enumerate(arms)
            if few or arm in LANDMARKS or _leads(points, i)
        ]
        names = [pl.daggered(arms[i], robust.loc[[arms[i]]]) for i in named]
        pl.label_points(
            axes,
            [points[i] for i in named],
            names,
            [pl.arm_colour(arms[i]) for i in named],
        )
    pl.note_beneath(figure, pl.dagger_note(table, "† and hollow:"))
    return figure


MEASURES = {
    "alignment": "squared distance that the\nattack moves a record",
    "uniformity": "of clean records;\nsmaller: more evenly spread",
    "class_separation": "silhouette of clean records",
    "identity_confusion": "share of attacked records\nnearest to another patient",
}
"""Measures of `ecgstudy.evaluation.embedding` that are drawn."""


@style()
def geometry_figure(
    cost: pd.DataFrame,
    robust: pd.DataFrame,
    headline: Mapping[str, float],
    attack: str = "ensemble",
    protocol: str = "slf",
) -> Figure:
    """`ecgstudy.evaluation.embedding` of the embeddings against robust AUROC: a point an arm and seed.

    ρ is Spearman's rank correlation of the arms' means. `cost` (``cost.csv``) holds the measures, `robust` is
    ``robust_auroc.csv``, `headline` ε (mV) by data set.

    Raises
    ------
    StudyError
        When no run was measured.
    """
    points = geometry_points(cost, robust, headline, attack, protocol)
    datasets, arms = (list(dict.fromkeys(points[key])) for key in ("dataset", "arm"))
    figure, panels = pl.new_panels(len(datasets), len(MEASURES), 2.8, 2.7, sharey="row")
    for dataset, line in zip(datasets, panels, strict=True):
        own = points[points["dataset"] == dataset]
        for axes, (measure, label) in zip(line, MEASURES.items(), strict=True):
            for arm in arms:
                rows = own[own["arm"] == arm]
                look = pl.arm_look(arm, rows) | {
                    "ls": "",
                    "label": pl.daggered(arm, rows),
                    "alpha": 0.85,
                }
                axes.plot(rows[measure], rows["auroc_shared"], **look)
            means = own.groupby("arm")[[measure, "auroc_shared"]].mean()
            ranked = len(means) > 2 and means.nunique().min() > 1
            rho = (
                f"ρ = {means.corr('spearman').iloc[0, 1]:+.2f}".replace("-", "−")
                if ranked
                else ""
            )
            axes.set(xlabel=label, title=" ".join([*measure.split("_"), "", rho]))
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        epsilon = headline[target(dataset, protocol)]
        line[0].set_ylabel(f"{dataset}: macro AUROC\n{attack}, ε = {epsilon:g} mV")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center")
    pl.note_beneath(figure, pl.dagger_note(points, "† and hollow:"))
    return figure


def geometry_points(
    cost: pd.DataFrame,
    robust: pd.DataFrame,
    headline: Mapping[str, float],
    attack: str,
    protocol: str,
) -> pd.DataFrame:
    """The values behind `geometry_figure`: one row a data set, arm and seed."""
    keys = ["dataset", "arm", "seed", "protocol"]
    found = pl.at_headline(robust, headline).query(
        "attack == @attack and protocol == @protocol"
    )
    measures = [name for name in MEASURES if name in cost]
    if len(measures) < len(MEASURES) or cost[measures].isna().all().any():
        raise StudyError(
            "no run has measures of its embedding: evaluate again, or add an arm with an encoder"
        )
    left = found[[*keys, "auroc_shared", "masking_ok"]].astype({"seed": str})
    right = cost.astype({"seed": str})[[*keys, *measures]].dropna()
    return left.merge(right, on=keys)


@style()
def corruption_curves(table: pd.DataFrame, protocol: str = "slf") -> Figure:
    """Macro AUROC against the severity of each natural corruption, a line an arm.

    Of many arms the landmarks and the primary family have their colours. `table` is ``robust_auroc.csv``.
    """
    table = pl.corrupted(pl.of_all_seeds(table, protocol))
    datasets, arms = (list(dict.fromkeys(table[key])) for key in ("dataset", "arm"))
    corruptions = sorted(set(table["attack"]) - {"none"})
    named = [arm for arm in arms if len(arms) <= CROWD or arm in (*LANDMARKS, *PRIMARY)]
    figure, panels = pl.new_panels(
        len(datasets), len(corruptions), 2.0, 2.5, sharey="row"
    )
    for (dataset, name), axes in zip(
        product(datasets, corruptions), panels.flat, strict=True
    ):
        own = table[
            (table["dataset"] == dataset) & table["attack"].isin(["none", name])
        ]
        axes.set_visible(name in set(own["attack"]))
        for arm in sorted(arms, key=named.__contains__):  # grey lines lie beneath
            rows = own[own["arm"] == arm].sort_values("severity")
            look = pl.arm_look(arm, rows) | {"ms": 4, "label": pl.daggered(arm, rows)}
            other = {"color": "#c4c4c4", "lw": 0.9, "label": "other arms"}
            axes.plot(
                rows["severity"],
                rows["auroc_shared"],
                **(look if arm in named else other),
            )
        axes.set(
            title=f"{dataset}: {name}" if len(datasets) > 1 else name,
            xlabel="severity (0: clean)",
        )
        axes.set_xticks(sorted(set(table["severity"])))
    for axes in panels[:, 0]:
        axes.set_ylabel("macro AUROC")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside right center")
    pl.note_beneath(figure, pl.dagger_note(table, "† and hollow:"))
    return figure


@style()
def cost_figure(cost: pd.DataFrame) -> Figure:
    """Training time and attack throughput of each arm: a dot a run, a line at the arm's mean."""
    wanted = {
        "training_seconds": "training time (s)",
        "attack_steps_per_second": "attack steps per second",
    }
    shown = [
        (name, label)
        for name, label in wanted.items()
        if name in cost and cost[name].notna().any()
    ]
    if not shown:
        raise StudyError(
            f"the cost table has neither {' nor '.join(wanted)}; found {', '.join(cost.columns)}"
        )
    arms = list(dict.fromkeys(cost["arm"]))
    figure, panels = pl.new_panels(
        1, len(shown), 3.8, 0.9 + 0.28 * len(arms), sharey=True
    )
    for axes, (column, label) in zip(panels.flat, shown, strict=True):
        colours = {arm: pl.arm_colour(arm) for arm in arms}
        sns.stripplot(cost, x=column, y="arm", order=arms, hue="arm", palette=colours, hue_order=arms,
                      jitter=False, size=6, alpha=0.7, legend=False, ax=axes)  # fmt: skip
        means = cost.groupby("arm")[column].mean().reindex(arms)
        axes.vlines(
            means,
            np.arange(len(arms)) - 0.32,
            np.arange(len(arms)) + 0.32,
            color=INK,
            lw=1.2,
        )
        axes.set(xlabel=label, ylabel="")
        axes.set_xlim(0, 1.08 * cost[column].max())
    names = [pl.daggered(arm, cost[cost["arm"] == arm]) for arm in arms]
    panels.flat[0].set_yticks(range(len(arms)), names)
    pl.note_beneath(figure, pl.dagger_note(cost))
    return figure


def _all_seeds(table: pd.DataFrame, protocol: str, attack: str) -> pd.DataFrame:
    kept = pl.of_all_seeds(table, protocol)
    kept = kept[kept["attack"].isin(["none", attack])]
    if attack not in set(kept["attack"]):
        known = ", ".join(sorted(set(table["attack"]) - {"none"}))
        raise StudyError(
            f"no rows of seed 'all', protocol {protocol!r}, attack {attack!r}; attacks: {known}"
        )
    return kept


def _facets(arms: list[str]) -> list[tuple[str, list[str], list[str]]]:
    """(title, arms, grey bases of other panels); panels whose arms are all shown in others are left out."""
    rows = {arm: known_arm(arm) for arm in arms}
    group_of = {arm: row.group if row else "other" for arm, row in rows.items()}
    facets = []
    for group in [g for g in GROUPS if g in group_of.values()]:
        for members in _batches([arm for arm in arms if group_of[arm] == group], rows):
            bases = [
                b
                for b in dict.fromkeys(rows[arm].base for arm in members if rows[arm])
                if b in arms
            ]
            split = len(members) < sum(g == group for g in group_of.values())
            family = (
                f" ({', '.join(bases[:1])}{', …' * (len(bases) > 1)})"
                if split and bases
                else ""
            )
            title = GROUPS[group] + family
            facets.append(
                (title, members, [base for base in bases if base not in members])
            )
    for facet in list(facets):
        others = [f for f in facets if f is not facet]
        shown = {arm for _, members, bases in others for arm in (*members, *bases)}
        if set(facet[1]) | set(facet[2]) <= shown:
            facets.remove(facet)
    return facets


def _leads(points: list[tuple[float, float]], index: int) -> bool:
    """Whether no other point is above and to the right of this one."""
    x, y = points[index]
    return not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)


def _batches(members: list[str], rows: Mapping[str, Arm | None]) -> list[list[str]]:
    """`members` as they are, or, if they are too many for a panel, those of one base or more at a time."""
    if len(members) <= CROWD:
        return [members]
    families: dict[str | None, list[str]] = {}
    for arm in members:
        families.setdefault(rows[arm].base if rows[arm] else None, []).append(arm)
    batches: list[list[str]] = [[]]
    for family in families.values():
        if batches[-1] and len(batches[-1]) + len(family) > CROWD:
            batches.append([])
        batches[-1] += family
    return batches


def _forest_text(row: dict) -> str:
    primary = row["family"] == "primary" and pd.notna(row["p_holm"])
    p = row["p_holm"] if primary else row["p"]
    shown = "" if pd.isna(p) else f"  p = {p:.2g}".replace("-", "−")
    return interval(row) + shown + " †" * (str(row.get("masking_ok")) == "False")
