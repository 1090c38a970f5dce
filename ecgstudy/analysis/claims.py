"""Claims from the literature, judged on ECGs: ``claims.yaml`` says what decides."""

from pathlib import Path

import numpy as np
import pandas as pd

from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.columns import as_table
from ecgstudy.analysis.verdict import MARGIN
from ecgstudy.plain_yaml import read_yaml

AUROCS = ("robust", "clean")
"""Measures that are read from ``contrasts.csv``; others are columns of ``cost.csv``."""
RATIOS = ("step_ms",)
"""Measures compared as a ratio, adaptive over standard, instead of as a difference."""
UNATTACKED = "unattacked"
PAIR = ["adaptive", "standard"]
ESTIMATE = [*PAIR, *"measure dataset protocol value se df heavy seeds".split()]
ESTIMATE += ["seed_list", "beyond_seeds", "masking_ok"]
"""What is known of a comparison before it is judged."""


def _read_parts():
    rows = [{"number": n, **part} for n in CLAIMS for part in CLAIMS[n]["parts"]]
    defaults = {"side": "above", "margin": 0.0, "protocol": "slf"}
    return pd.DataFrame(rows).fillna(defaults).rename_axis("part").reset_index()


CLAIMS = read_yaml(Path(__file__).with_name("claims.yaml").read_text("utf-8"))
"""Number → claim, its parts and its rule."""
PARTS = _read_parts()
"""One row for each part of a claim."""


def claimed_pairs() -> list[tuple[str, str]]:
    """Every (adaptive, standard) pair whose AUROC a claim compares."""
    pairs = PARTS[PARTS["measure"].isin(AUROCS)][PAIR].drop_duplicates()
    return list(pairs.itertuples(index=False, name=None))


def judge_claims(
    contrasts: pd.DataFrame, cost: pd.DataFrame, confidence: float = 0.95
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts on the claims, and the comparisons that they are based on.

    Parameters
    ----------
    contrasts, cost : pd.DataFrame
        Tables of the study.
    confidence : float
        Of a claim's intervals jointly: Bonferroni over its parts and data sets.

    Returns
    -------
    tuple
        ``claims.csv``, a row per claim: `supported`, `contradicted`, `equivalent` (all
        differences within ±`MARGIN`), `inconclusive` or `not tested`, with effect and
        interval of the weakest comparison. ``claim_evidence.csv``, a row per
        comparison, including those that were not run.
    """
    found = _estimate_parts(contrasts, cost)
    claims, evidence = [], []
    for number, claim in CLAIMS.items():
        rows = found[found["number"] == number].assign(decides=False)
        level = 1 - (1 - confidence) / max(1, len(rows))
        judged = [_judge_part(row, level) for row in rows.itertuples()]
        judged = pd.DataFrame(judged, columns=JUDGED, index=rows.index)
        rows = rows.drop(columns="value").join(judged)
        row = {"number": number, **claim, "verdict": _verdict(number, rows)}
        if row["verdict"] != "not tested":
            rows.loc[rows["room"].idxmin(), "decides"] = True
            weakest = rows[rows["decides"]].iloc[0]
            row |= weakest[["ci_low", "ci_high", "measure"]]
            row |= {"effect": weakest["value"], "evidence": _describe(weakest)}
            row["masking_ok"] = not rows["masking_ok"].eq(False).any()
        claims.append(row)
        for part in (rows, _missing(number, rows)):
            evidence += part.to_dict("records")
    return as_table("claims", claims), as_table("claim_evidence", evidence)


def _estimate_parts(contrasts, cost):
    """Each part on each data set where it was run, not yet judged."""
    robust = contrasts[contrasts["headline"].astype(bool)].assign(measure="robust")
    clean = contrasts[contrasts["attack"] == "none"].assign(measure="clean")
    rows = []
    for table in (robust, clean):
        rows += table.rename(columns={"delta": "value"}).to_dict("records")
    for part in PARTS.itertuples():
        if part.measure in cost:
            rows += _measure_cost(part, cost)
    known = pd.DataFrame(rows, columns=ESTIMATE)
    transfer = known["protocol"].astype(str).str.contains("@")
    known["asked"] = known["protocol"].mask(transfer, "@")
    parts = PARTS.rename(columns={"protocol": "asked"})
    return parts.merge(known, on=[*PAIR, "measure", "asked"])


def _measure_cost(part, cost):
    """A column of the cost table compared, paired by seed: only seeds vary.

    A ratio is a difference of logarithms until it is judged.
    """
    pair, ratio, found = [part.adaptive, part.standard], part.measure in RATIOS, []
    arms = cost[cost["arm"].isin(pair)]
    for (dataset, protocol), rows in arms.groupby(["dataset", "protocol"], sort=False):
        values = rows.pivot(index="seed", columns="arm", values=part.measure)
        values = values.assign(**{UNATTACKED: 0.0}).reindex(columns=pair)
        values = values.dropna().astype(float)
        if values.empty:
            continue
        values = np.log(values) if ratio else values
        change = values[part.adaptive] - values[part.standard]
        row = {
            **part._asdict(),
            "dataset": dataset,
            "protocol": protocol,
            "value": change.mean(),
            "se": change.sem(),
            "df": len(change) - 1,
            "heavy": 0.0,
            "seeds": len(change),
            "seed_list": " ".join(map(str, change.index)),
            "beyond_seeds": len(change) >= st.MIN_SEEDS,
            "masking_ok": ratio or not rows["masking_ok"].eq(False).any(),
        }
        found.append(row)
    return found


JUDGED = ["value", "ci_low", "ci_high", "verdict", "room"]
"""What `_judge_part` gives; `room`: how far the interval is on the right side."""


def _judge_part(row, level):
    """Estimate, interval and verdict of one comparison."""
    t = st.MixedT(row.df, row.heavy, row.seeds)
    half = t.critical(level) * row.se if t.df > 0 else np.nan
    ends = row.value + np.array([-half, 0, half])
    # Differences of AUROCs and of shares lie between −1 and 1.
    ratio = row.measure in RATIOS
    low, value, high = np.exp(ends) if ratio else np.clip(ends, -1, 1)
    right, wrong = low - row.margin, row.margin - high
    if row.side == "below":
        right, wrong = wrong, right
    elif row.side == "differs":
        right, wrong = max(right, wrong), np.nan
    verdict = "inconclusive"
    if row.beyond_seeds:
        if right > 0:
            verdict = "supported"
        elif wrong > 0:
            verdict = "contradicted"
        elif row.measure in AUROCS and row.margin == 0:
            p = st.equivalence_p(value, row.se, t, MARGIN)
            verdict = "equivalent" if p <= 1 - level else verdict
    return value, low, high, verdict, np.nan_to_num(right, nan=-np.inf)


def _verdict(number, found):
    """Of all parts on all data sets.

    A claim that needs all its parts is tested where one data set has them all. It is
    contradicted by a part that is contradicted on every data set of the claim, and
    supported, or equivalent, where all that was run is.
    """
    claim, by_part = CLAIMS[number], found.groupby("part")
    rule = claim.get("rule", "all")
    most = found.groupby("dataset")["part"].nunique().max()
    if found.empty or (rule != "any" and most < len(claim["parts"])):
        return "not tested"
    everywhere = by_part["dataset"].nunique() == found["dataset"].nunique()
    said = by_part["verdict"].agg(set)
    if {"contradicted"} in list(said[everywhere]):
        return "contradicted"
    if rule == "same sign":
        gains = (found["value"] > 0).all() and {"supported"} in list(said)
        return "supported" if gains else "inconclusive"
    verdicts = set(found["verdict"])
    if verdicts in ({"supported"}, {"equivalent"}):
        return verdicts.pop()
    return "inconclusive"


def _missing(number, found):
    """Parts that were not run, on each data set where others were."""
    datasets = pd.Series([*found["dataset"].unique()] or [None], name="dataset")
    parts = PARTS[PARTS["number"] == number].merge(datasets, how="cross")
    where = ["part", "dataset"]
    run = parts.set_index(where).index.isin(found.set_index(where).index)
    return parts[~run].assign(verdict="not tested", decides=False)


def _describe(row):
    sign = "/" if row["measure"] in RATIOS else "−"
    where = " ".join([row["dataset"], row["protocol"]]).removesuffix(" slf")
    return f"{row['adaptive']} {sign} {row['standard']}, {row['measure']}, {where}"
