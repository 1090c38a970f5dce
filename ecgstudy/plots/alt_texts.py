"""What each figure shows, in words: descriptions for those who cannot see it, from the values it draws."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from ecgstudy.plots.style import at_headline, corrupted, daggered, of_all_seeds
from ecgstudy.plots.tables_html import interval, signed

WHERE = ["dataset", "protocol", "attack", "epsilon_mv"]


def forest(contrasts: pd.DataFrame) -> str:
    """Every contrast with its difference and interval; `contrasts` are rows of ``contrasts.csv``."""
    if contrasts.empty:
        return "No two arms of this study can be compared"

    def line(row: dict) -> str:
        named = f"{row['adaptive']} − {row['standard']}"
        return f"{named} {interval(row)}" + " †" * (
            str(row.get("masking_ok")) == "False"
        )

    parts = [
        f"{dataset}, {attack}, ε = {epsilon:g} mV, {protocol}: "
        + "; ".join(map(line, part.to_dict("records")))
        for (dataset, protocol, attack, epsilon), part in contrasts.groupby(
            WHERE, sort=False
        )
    ]
    return _said("Differences in macro AUROC between two arms, with intervals", parts)


def clean_and_robust(
    table: pd.DataFrame,
    headline: Mapping[str, float],
    attack: str,
    protocol: str = "slf",
    intro: str = "Macro AUROC of every arm against the attack budget ε",
) -> str:
    """Every arm's AUROC, clean and at the headline ε (mV, by data set), of rows of ``robust_auroc.csv``."""
    rows = at_headline(of_all_seeds(table, protocol), headline)
    parts = []
    for dataset, own in rows.groupby("dataset", sort=False):
        clean = own[own["attack"] == "none"].set_index("arm")["auroc_shared"]
        robust = (
            own[own["attack"] == attack]
            .drop_duplicates("arm")
            .set_index("arm", drop=False)
        )
        arms = [
            f"{daggered(arm, robust.loc[[arm]])} {clean.get(arm, np.nan):.3f} and {value:.3f}"
            for arm, value in robust["auroc_shared"].items()
        ]
        budget = robust["epsilon_mv"].iloc[0] if len(robust) else np.nan
        parts.append(
            f"{dataset}, clean and under {attack} at {budget:g} mV: " + "; ".join(arms)
        )
    return _said(intro, parts)


def by_attack(
    table: pd.DataFrame, headline: Mapping[str, float], protocol: str = "slf"
) -> str:
    """Every arm's clean AUROC, and its lowest under an attack at the headline ε (``robust_auroc.csv``)."""
    rows = at_headline(of_all_seeds(table, protocol), headline)

    def line(arm: str, own: pd.DataFrame) -> str:
        clean = own.loc[own["attack"] == "none", "auroc_shared"].mean()
        attacked = (
            own[own["attack"] != "none"].set_index("attack")["auroc_shared"].dropna()
        )
        lowest = (
            f", lowest {attacked.min():.3f} under {attacked.idxmin()}"
            if len(attacked)
            else ""
        )
        return f"{daggered(arm, own)} {clean:.3f} clean{lowest}"

    attacks = rows.loc[rows["attack"] != "none", "attack"].nunique()
    return _said(
        f"Macro AUROC of every arm under {attacks} attacks", _each(rows, "arm", line)
    )


def by_corruption(table: pd.DataFrame, protocol: str = "slf") -> str:
    """The spread of the arms under each corruption at its worst severity (``robust_auroc.csv``)."""
    rows = corrupted(of_all_seeds(table, protocol))

    def line(name: str, own: pd.DataFrame) -> str:
        worst = (
            own[own["severity"] == own["severity"].max()]
            .set_index("arm")["auroc_shared"]
            .dropna()
        )
        ends = worst.sort_values(kind="stable").iloc[[0, -1]] if len(worst) else worst
        said = " to ".join(f"{value:.3f} ({arm})" for arm, value in ends.items()) or "–"
        return f"{'clean' if name == 'none' else f'{name}, severity {own.severity.max()}'} {said}"

    return _said(
        "Macro AUROC of the arms, lowest to highest", _each(rows, "attack", line)
    )


def energy_use(perturbations: pd.DataFrame, rows: str = "attack") -> str:
    """What each `attack` (or arm) uses most for its size, as `share` over `size` (``perturbations.csv``)."""
    use = perturbations.assign(use=perturbations["share"] / perturbations["size"])
    mean = use.groupby([rows, "kind", "name"], sort=False)["use"].mean().reset_index()
    parts = [
        f"{name} most in {own['name'].iloc[top]} ({own['use'].iloc[top]:.1f} times white noise)"
        for name, own in mean.groupby(rows, sort=False)
        for top in [int(own["use"].argmax())]
    ]
    return _said(
        f"Energy of perturbations by frequency, part of the beat and lead, of each {rows}",
        parts,
    )


def geometry(points: pd.DataFrame, measures: list[str]) -> str:
    """Rank correlation of robust AUROC with each measure, over arms; `points` has one row an arm and seed."""
    parts = []
    for dataset, own in points.groupby("dataset", sort=False):
        means = own.groupby("arm")[[*measures, "auroc_shared"]].mean()
        ranked = means.corr("spearman")["auroc_shared"]
        found = [f"{m.replace('_', ' ')} ρ = {signed(ranked[m], 2)}" for m in measures]
        parts.append(f"{dataset}, {len(means)} arms: " + "; ".join(found))
    return _said(
        "Geometry of the embeddings against robust AUROC, with rank correlations", parts
    )


def cost(table: pd.DataFrame) -> str:
    """Mean training time and attack speed of every arm (``cost.csv``)."""
    units = {
        "training_seconds": "s of training",
        "attack_steps_per_second": "attack steps/s",
    }
    means = table.groupby("arm", sort=False)[
        [name for name in units if name in table]
    ].mean()
    parts = [
        f"{arm} "
        + ", ".join(
            f"{value:,.0f} {units[name]}" for name, value in row.dropna().items()
        )
        for arm, row in means.iterrows()
    ]
    return _said("Training time and attack speed, means of the runs", parts)


def class_counts(table: pd.DataFrame) -> str:
    """Records of each class and split (columns class, split, records)."""
    parts = [
        f"{split}: "
        + ", ".join(
            f"{row['class']} {row['records']:,}" for row in own.to_dict("records")
        )
        for split, own in table.groupby("split", sort=False)
    ]
    return _said("Records of each class", parts)


def age_sex(people: pd.DataFrame) -> str:
    """Patients by sex, and their ages (columns age in years, sex; one row a patient)."""
    ages, counts = people["age"].dropna(), people["sex"].value_counts(sort=False)
    sexes = ", ".join(f"{counts.get(sex, 0):,} {sex}" for sex in ("female", "male"))
    unknown = int(
        (people["age"].isna() | ~people["sex"].isin(["female", "male"])).sum()
    )
    span = (
        f"; ages {ages.min():.0f} to {ages.max():.0f} years, median {ages.median():.0f}"
        if len(ages)
        else ""
    )
    return f"Ages of {len(people):,} patients by sex: {sexes}{span}; age or sex unknown in {unknown:,}."


def amplitudes(values: pd.DataFrame, epsilons_mv: list[float]) -> str:
    """Amplitudes of the records (columns std_mv, peak_to_peak_mv) beside the attack budgets (mV)."""
    names = {"std_mv": "standard deviation", "peak_to_peak_mv": "peak to peak"}
    parts = [
        "{} {:.2g} mV (9 in 10 records {:.2g} to {:.2g})".format(
            said, *values[name].quantile([0.5, 0.05, 0.95])
        )
        for name, said in names.items()
    ]
    budgets = (
        f"attack budgets {min(epsilons_mv):g} to {max(epsilons_mv):g} mV"
        if epsilons_mv
        else ""
    )
    return _said(
        "Amplitudes of the records, medians", [*parts, *filter(None, [budgets])]
    )


def ecg(values: pd.DataFrame, title: str) -> str:
    """One ECG (columns time_s and one a lead, mV) on ECG paper."""
    leads, seconds = values.drop(columns="time_s"), values["time_s"].max()
    span = (leads.max() - leads.min()).idxmax()
    named = (
        f"lead {span}"
        if len(leads.columns) == 1
        else f"{len(leads.columns)} leads, largest {span}"
    )
    low, high = (signed(value, 2) for value in (leads[span].min(), leads[span].max()))
    return (
        f"ECG on ECG paper, {title}: {seconds:.1f} s, {named} from {low} to {high} mV."
    )


def perturbations(values: pd.DataFrame, title: str) -> str:
    """One ECG and its perturbation under each attack (columns attack, time_s and one a lead, mV)."""
    largest = (
        values.drop(columns="time_s")
        .set_index("attack")
        .abs()
        .max(axis=1)
        .groupby("attack", sort=False)
        .max()
    )
    parts = [
        f"{name} up to {1000 * value:.3g} µV"
        for name, value in largest.drop("ECG", errors="ignore").items()
    ]
    return _said(f"Perturbations of one ECG and their spectra, {title}", parts)


def training(history: pd.DataFrame) -> str:
    """First and last value of everything that was logged by epoch."""
    logged = (
        history.drop(columns="epoch").select_dtypes("number").dropna(axis=1, how="all")
    )
    ends = {name: column.dropna().iloc[[0, -1]] for name, column in logged.items()}
    parts = [
        "{} {:.3g} to {:.3g}".format(name.replace("_", " "), *pair)
        for name, pair in ends.items()
    ]
    return _said(
        f"Training over {history['epoch'].nunique()} epochs, first to last", parts
    )


def similarities(pairs: pd.DataFrame) -> str:
    """Median cosine similarity of each kind of pair (columns similarity, kind)."""
    medians = pairs.groupby("kind", sort=False)["similarity"].median()
    return _said(
        "Cosine similarities, medians",
        [f"{kind} {signed(value, 2)}" for kind, value in medians.items()],
    )


def push_weights(negatives: pd.DataFrame) -> str:
    """Range of push weights and their rank correlation with similarity (columns similarity, weight)."""
    keys = ["scheme"] if "scheme" in negatives else []
    parts = []
    for name, own in negatives.groupby(keys) if keys else [((), negatives)]:
        weights, ranked = own["weight"], ""
        if own[["weight", "similarity"]].nunique().min() > 1:
            ranked = f", rank correlation {signed(weights.corr(own['similarity'], 'spearman'), 2)}"
        parts.append(
            " ".join([*name, f"{weights.min():.2g} to {weights.max():.2g}"]) + ranked
        )
    return _said("Push weight against cosine similarity, 1 being uniform", parts)


def embedding(points: pd.DataFrame) -> str:
    """Records of each class in a plane of the embedding (columns x, y, class, patient)."""
    centres = points.groupby("class", sort=False)[["x", "y"]].mean()
    counts = points["class"].value_counts()
    parts = [
        f"{name} ({counts[name]:,}) around ({signed(x, 2)}, {signed(y, 2)})"
        for name, x, y in centres.itertuples()
    ]
    return _said(
        f"Embeddings of {len(points):,} records on two axes, mean of each class", parts
    )


def budget_curve(curve: pd.DataFrame) -> str:
    """AUROC of one model against ε, by view (columns epsilon_mv, view, auroc)."""
    parts = [
        f"{view}: "
        + ", ".join(
            f"{row.auroc:.3f} at {row.epsilon_mv:g} mV" for row in own.itertuples()
        )
        for view, own in curve.sort_values("epsilon_mv", kind="stable").groupby(
            "view", sort=False
        )
    ]
    return _said(
        "Macro AUROC against the attack budget ε, one δ per record (shared) or per label",
        parts,
    )


def attack_bars(bars: pd.DataFrame) -> str:
    """AUROC of one model clean and under each attack (columns attack, auroc)."""
    ordered = bars.sort_values("auroc", ascending=False, kind="stable")
    named = ordered["attack"].replace("none", "clean")
    parts = [
        f"{name} {value:.3f}"
        for name, value in zip(named, ordered["auroc"], strict=True)
    ]
    return _said(
        "Macro AUROC under each attack at the headline ε, mildest first", parts
    )


def _each(
    rows: pd.DataFrame, key: str, line: Callable[[str, pd.DataFrame], str]
) -> list[str]:
    """“data set: line; line …”, a line for each value of `key`."""
    return [
        f"{dataset}: "
        + "; ".join(line(name, own) for name, own in part.groupby(key, sort=False))
        for dataset, part in rows.groupby("dataset", sort=False)
    ]


def _said(intro: str, parts: list[str]) -> str:
    return f"{intro}. " + ". ".join(parts) + "." if parts else f"{intro}."
