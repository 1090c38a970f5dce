"""Tables as a reader wants them: interval beside its estimate, † at models that may mask gradients."""

from collections.abc import Mapping
from html import escape

import pandas as pd
from pandas.io.formats.style import Styler

from ecgstudy.analysis.claims import RATIOS

NAMES = {
    "epsilon_mv": "ε (mV)", "auroc_shared": "AUROC, shared δ", "auroc_label": "AUROC, δ per label",
    "auroc": "AUROC", "auprc": "AUPRC", "delta": "difference", "clean_delta": "clean difference",
    "p_holm": "p (Holm)", "n_records": "records", "n_patients": "patients", "in_params": "in params",
    "mde": "detectable", "largest_share": "largest share",
}  # fmt: skip
ESTIMATES = {
    "auroc_shared": "{:.3f}",
    "auroc": "{:.3f}",
    "delta": "{:+.3f}",
    "effect": "{:+.3f}",
}
"""Columns whose interval is ci_low … ci_high, and how they are written: differences with their sign."""
NAMED = ("arm", "adaptive", "effect", "attack")
"""The first of these columns that a table has carries the †."""
SIGNS = {
    "supported": "✓",
    "contradicted": "✗",
    "equivalent": "=",
    "inconclusive": "?",
    "not tested": "–",
}
COLOURS = {"supported": "#009E73", "contradicted": "#D55E00"}
TEXT = {"white-space": "normal", "text-align": "left", "vertical-align": "top"}


def readable(table: pd.DataFrame) -> Styler:
    """Results for a page: intervals beside their estimates, † for `masking_ok` False, no empty columns."""
    if table.empty:
        return (
            pd.DataFrame({"": ["none in this study"]}).style.hide().hide(axis="columns")
        )
    shown = table.replace("", None).dropna(axis=1, how="all").reset_index(drop=True)
    value = next((name for name in ESTIMATES if name in shown), None)
    if value and {"ci_low", "ci_high"} <= set(shown):
        shown[value] = intervals(shown, value)
        shown = shown.drop(columns=["ci_low", "ci_high"])
    if "masking_ok" in shown:
        name, failed = (
            next(c for c in NAMED if c in shown),
            shown.pop("masking_ok").astype(str) == "False",
        )
        shown[name] = shown[name].astype(str) + failed.map({True: " †", False: ""})
    styler = shown.rename(columns=NAMES).style.hide().format(precision=3, na_rep="–")
    tests = [name for name in ("p", NAMES["p_holm"]) if name in styler.columns]
    return styler.format("{:.2g}", subset=tests, na_rep="–")


def readable_claims(claims: pd.DataFrame, evidence: pd.DataFrame) -> Styler:
    """Claims with verdict, deciding effect and, a line each, what they rest on.

    `claims` is ``claims.csv``, `evidence` ``claim_evidence.csv``. † marks verdicts that
    rest on a model which may mask gradients.
    """
    lines = evidence.assign(
        line=[_evidence(row) for row in evidence.to_dict("records")]
    )
    joined = lines.groupby("number")["line"].agg("<br>".join)
    failed = claims["masking_ok"].astype(str) == "False"
    signs = claims["verdict"].map(SIGNS) + " " + claims["verdict"]
    shown = pd.DataFrame({
        "claim": claims["number"].astype(str) + ". " + claims["claim"].map(escape),
        "verdict": signs + failed.map({True: " †", False: ""}),
        "effect": [claim_effect(row) for row in claims.to_dict("records")],
        "evidence": claims["number"].map(joined),
    })  # fmt: skip
    left = [{"selector": "th", "props": [("text-align", "left")]}]
    styler = shown.style.hide().set_properties(**TEXT).set_table_styles(left)
    styler = styler.set_properties(
        subset=["claim", "evidence"], **{"min-width": "16rem"}
    )
    styler = styler.set_properties(subset=["evidence"], **{"font-size": "85%"})
    styler = styler.set_properties(subset=["effect"], **{"white-space": "nowrap"})
    return styler.map(_verdict_colour, subset=["verdict"])


def _evidence(row: Mapping[str, object]) -> str:
    """One comparison of a claim in a line of HTML."""
    pair = f"{row['adaptive']} against {row['standard']}, {row['measure']}"
    if row["verdict"] == "not tested":
        return escape(f"{pair}: not run")
    where = f"{row['dataset']} {row['protocol']}".removesuffix(" slf")
    form = "{:.3g}" if row["measure"] in RATIOS else "{:+.3f}"
    effect = interval(row, "value", form)
    failed = " †" if str(row["masking_ok"]) == "False" else ""
    return escape(f"{pair}, {where}: {effect} {row['verdict']}{failed}")


def verdict_counts(claims: pd.DataFrame) -> str:
    """How many claims got which verdict, in words: "2 supported, 12 not tested"."""
    counts = claims["verdict"].value_counts()
    return ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in SIGNS if verdict in counts
    )


def signed(value: float, digits: int = 3) -> str:
    """“−0.012”, with a true minus; a dash where there is no value."""
    return "–" if pd.isna(value) else f"{value:+.{digits}f}".replace("-", "−")


def interval(
    row: Mapping[str, float], value: str = "delta", form: str | None = None
) -> str:
    """“+0.012 [−0.003, +0.027]” of a row, as far as its numbers are known; `form` instead of `ESTIMATES`."""
    form = form or ESTIMATES[value]
    if pd.isna(row[value]):
        return "–"
    ends = (
        ""
        if pd.isna(row["ci_low"])
        else f" [{form}, {form}]".format(row["ci_low"], row["ci_high"])
    )
    return (form.format(row[value]) + ends).replace("-", "−")


def intervals(table: pd.DataFrame, value: str) -> list[str]:
    """`interval` of each row."""
    return [interval(row, value) for row in table.to_dict("records")]


def claim_effect(row: Mapping[str, object]) -> str:
    """Effect and interval of a row of ``claims.csv``: a difference has a sign."""
    return interval(row, "effect", "{:.3g}" if row["measure"] in RATIOS else None)


def _verdict_colour(verdict: str) -> str:
    colour = next(
        (colour for name, colour in COLOURS.items() if name in verdict), "inherit"
    )
    return f"color: {colour}; font-weight: bold; white-space: nowrap"
