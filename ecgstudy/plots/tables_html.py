"""Tables for readers: which rows to show, readable names and numbers, intervals."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown

from ecgstudy.analysis.claims import RATIOS
from ecgstudy.analysis.verdict import in_words
from ecgstudy.params import target

NAMES = {
    "adaptive": "arm",
    "arms": "arms",
    "attack": "attack",
    "auroc": "AUROC",
    "auroc_label": "AUROC, one δ per label",
    "auroc_shared": "AUROC",
    "auprc": "average precision",
    "beyond_seeds": "holds beyond these seeds",
    "chosen": "chosen by the rule",
    "clean_delta": "clean difference",
    "delta": "difference",
    "dominated": "one patient dominates",
    "epsilon_mv": "ε (mV)",
    "in_params": "in the params file",
    "joint_high": "joint interval to",
    "joint_low": "joint interval from",
    "labels_absent": "labels without records",
    "largest_share": "largest patient's share",
    "margin": "margin ±",
    "masking_ok": "masking checks pass",
    "mde": "minimum detectable effect",
    "n_records": "records",
    "n_patients": "patients",
    "n_unidentified": "records without patient id",
    "p_equivalence": "p, equivalence",
    "p_equivalence_holm": "p, equivalence (Holm)",
    "p_holm": "p (Holm)",
    "standard": "minus",
}
"""Column of a table → what a reader sees; others lose their underscores."""
TABLES = {
    "claims": "claims from the literature, judged",
    "claim_evidence": "the comparisons that each claim is based on",
    "verdicts": "planned tests and their verdicts, for three margins",
    "contrasts": "differences of two arms, under every attack and ε",
    "robust_auroc": "AUROC of every arm and seed, under every attack and ε",
    "per_class": "the same by class, with average precision",
    "factor_effects": "what each factor of the arms does, by least squares",
    "masking_checks": "gradient-masking checks of every model",
    "sensitivity": "the headline result under other choices",
    "contrast_sensitivity": "the planned comparisons under other choices",
    "subgroups": "AUROC by age and sex",
    "headline_check": "how ε was chosen on validation records",
    "perturbations": "bands, leads and parts of the beat that attacks use",
    "pretraining": "how pretraining ended",
    "cost": "time, memory and size of every run, geometry of its embedding",
}
ESTIMATES = ("delta", "effect", "auroc_shared", "auroc")
"""Columns whose interval is `ci_low` … `ci_high`."""
LARGE = 0.05
"""Differences from here on are large."""
FLAGGED = ("arm", "adaptive", "claim", "effect", "attack")
"""The first of these columns that a table has carries the †."""
SIGNED = ("delta", "effect", "clean_delta")


def show_table(table: pd.DataFrame, columns: str = "") -> HTML:
    """A table as a reader wants it.

    Intervals stand beside their estimates, numbers have three decimals, small p are
    "< 0.001", † marks models that fail a masking check, empty columns are left out.

    Parameters
    ----------
    table
        Rows of one of a study's tables.
    columns
        Names of the columns to show, separated by blanks; all if there are none.
    """
    if table.empty:
        return HTML("<p>None in this study.</p>")
    shown = table[columns.split()] if columns else table
    shown = shown.replace("", None).dropna(axis=1, how="all").reset_index(drop=True)
    estimate = next((name for name in ESTIMATES if name in shown), None)
    if estimate and "ci_low" in shown:
        texts = [format_interval(row, estimate) for row in shown.to_dict("records")]
        shown = shown.drop(columns=["ci_low", "ci_high"]).assign(**{estimate: texts})
    if "masking_ok" in shown:
        failed = shown.pop("masking_ok").eq(False)
        first = next(name for name in FLAGGED if name in shown)
        shown[first] = shown[first].mask(failed, shown[first].astype(str) + " †")
    for name in shown:
        shown[name] = [_format_cell(name, value) for value in shown[name]]
    return HTML(shown.rename(columns=readable_name).to_html(index=False, border=0))


def answer(verdicts: pd.DataFrame, contrasts: pd.DataFrame) -> Markdown:
    """What a study's planned tests say, and the large differences beside them.

    The tables are ``verdicts.csv`` and ``contrasts.csv``.
    """
    lines = [f"**{name}**: {text}" for name, text in in_words(verdicts).items()]
    large = contrasts["headline"].eq(True) & contrasts["family"].ne("primary")
    large = contrasts[large & contrasts["delta"].abs().ge(LARGE)]
    for dataset, rows in large.groupby("dataset", sort=False):
        effects = [
            f"{row['adaptive']} − {row['standard']} {format_interval(row)}"
            for row in rows.to_dict("records")
        ]
        lines.append(f"**{dataset}**, exploratory, robust AUROC: {'; '.join(effects)}.")
    return Markdown(
        "\n\n".join(lines) or "No comparison of this study is a planned test."
    )


def list_tables(tables: Mapping[str, pd.DataFrame]) -> HTML:
    """Links to the CSV files of a study's tables, and what is in each.

    They work where the page lies in a folder beside ``tables``.
    """
    items = [
        f'<li><a href="../tables/{name}.csv">{name}.csv</a> ({len(table):,} rows): '
        f"{TABLES.get(name, readable_name(name))}</li>"
        for name, table in tables.items()
    ]
    return HTML(f"<ul>{''.join(items)}</ul>")


def summarise_limits(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How much each data set of a study can tell: sizes, power, failed checks.

    `tables` are those of `ecgstudy.analysis.tables.write_tables`.
    """
    sizes = {"n_records": "max", "n_patients": "max", "n_unidentified": "max"}
    table = tables["robust_auroc"].groupby("dataset", sort=False).agg(sizes)
    single = tables["robust_auroc"].query("seed != 'all'").groupby("dataset")
    table["seeds"] = single["seed"].nunique()
    main = tables["contrasts"].query("headline")
    table["mde"] = main.groupby("dataset")["mde"].median()
    failed = tables["masking_checks"].query("verdict == 'fail'")
    counts = failed.groupby("dataset").size()
    table["failed masking checks"] = counts.reindex(table.index, fill_value=0)
    few = tables["per_class"].query("dominated").groupby("dataset")["class"]
    table["classes mostly from one patient"] = few.unique().str.join(", ")
    return table.reset_index()


def readable_name(column: str) -> str:
    """What a reader sees instead of a column's name."""
    return NAMES.get(column, column.replace("_", " "))


def _format_cell(column: str, value: object) -> object:
    if isinstance(value, str):
        value = "clean" if value == "none" else value
        return value.replace("_", " ") if column in ("effect", "measure") else value
    if pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, float | np.floating):
        return f"{value:,}"
    if column == "p" or column.startswith("p_"):
        return format_p(value)
    if column in ("epsilon_mv", "margin", "limit"):
        return f"{value:g}"
    form = "+.3f" if column in SIGNED else ",.0f" if abs(value) >= 100 else ".3f"
    return f"{value:{form}}".replace("-", "−")


def format_p(p: float) -> str:
    """A p value with three decimals, or "< 0.001"."""
    if pd.isna(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def format_interval(row: Mapping[str, float], estimate: str = "delta") -> str:
    """ "+0.012 [−0.003, +0.027]" of a row, as far as its numbers are known.

    Parameters
    ----------
    row
        Of a table with `ci_low` and `ci_high`.
    estimate
        The column that these belong to; differences have their sign.
    """
    if isinstance(row[estimate], str) or pd.isna(row[estimate]):
        return row[estimate]
    signed = estimate in SIGNED and row.get("measure") not in RATIOS
    form = "{:+.3f}" if signed else "{:.3f}"
    text = form.format(row[estimate])
    if not pd.isna(row["ci_low"]):
        text += f"\u00a0[{form},\u00a0{form}]".format(row["ci_low"], row["ci_high"])
    return text.replace("-", "−")


def select_protocol(table: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The rows of ``robust_auroc.csv`` of all seeds together, under one protocol."""
    return table[table["seed"].astype(str).eq("all") & table["protocol"].eq(protocol)]


def select_headline(table: pd.DataFrame, headline: Mapping[str, float]) -> pd.DataFrame:
    """The rows that are clean or at the headline ε, without natural corruptions.

    `headline` is ε (mV) by data set tested on.
    """
    places = zip(table["dataset"], table["protocol"], strict=True)
    budgets = [headline.get(target(*place), np.nan) for place in places]
    main = np.isclose(table["epsilon_mv"], budgets) | table["attack"].eq("none")
    return table[main & table["severity"].isna()]
