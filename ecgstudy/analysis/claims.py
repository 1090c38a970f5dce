"""Claims from the literature, judged on ECGs by one table: claim → contrasts, rule."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from operator import itemgetter

import numpy as np
import pandas as pd

from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.verdict import MARGIN

AUROCS = ("robust", "clean")
"""Measures that are read from ``contrasts.csv``; others are columns of ``cost.csv``."""
RATIOS = ("step_ms",)
"""Measures compared as a ratio, adaptive over standard, instead of as a difference."""
NOT_RUN = {"verdict": "not tested", "decides": False}
UNATTACKED = "unattacked"
"""Stands for a measure's value without attack, where that is 0 by definition."""

COLUMNS = (
    "number claim verdict effect ci_low ci_high measure evidence masking_ok".split()
)
EVIDENCE_COLUMNS = (
    "number adaptive standard measure side margin dataset protocol value ci_low ci_high"
    " verdict decides seed_list masking_ok".split()
)


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: `adaptive` must lie on one side of `standard`.

    `measure` is ``"robust"`` or ``"clean"`` (macro AUROC), or a column of the cost
    table. The difference (or ratio) must be ``"above"`` or ``"below"`` `margin`, or it
    ``"differs"``. `protocol` is that of the scores; ``"@"`` means every transfer.
    """

    adaptive: str
    standard: str
    measure: str = "robust"
    side: str = "above"
    margin: float = 0.0
    protocol: str = "slf"


@dataclass(frozen=True)
class Claim:
    """A sentence from the literature and what decides it.

    Without `needs_all`, the parts at hand decide (a claim about "any base" is tested on
    the bases run). `same_sign` asks for the same sign of all parts, one of them
    supported and none contradicted.
    """

    text: str
    parts: tuple[Part, ...]
    needs_all: bool = True
    same_sign: bool = False


def _both(adaptive: str, standard: str) -> tuple[Part, ...]:
    return tuple(Part(adaptive, standard, measure) for measure in AUROCS)


def _robust_at_equal_clean(adaptive: str, *standards: str) -> tuple[Part, ...]:
    robust = tuple(Part(adaptive, base) for base in standards)
    clean = tuple(Part(adaptive, base, "clean", margin=-MARGIN) for base in standards)
    return robust + clean


CLAIMS = {
    1: Claim(
        "Inferior positives raise clean and robust AUROC over the same base",
        _both("rocl-ip", "rocl") + _both("advcl-ip", "advcl"),
        needs_all=False,
    ),
    2: Claim(
        "Hard negatives raise clean and robust AUROC over RoCL",
        _both("rocl-hn", "rocl"),
    ),
    3: Claim("Inferior positives beat AdvCL", (Part("advcl-ip", "advcl"),)),
    4: Claim(
        "Inferior positives with hard negatives beat each alone, and the base",
        tuple(Part("rocl-ip-hn", base) for base in ("rocl-ip", "rocl-hn", "rocl")),
    ),
    5: Claim(
        "Longer adversarial pretraining (2.5 times) overfits",
        (Part("rocl", "rocl-long"),),
    ),
    6: Claim(
        "Adaptive weights cost no extra time (step-time ratio at most 1.05)",
        tuple(
            Part(arm, "rocl", "step_ms", "below", 1.05)
            for arm in ("rocl-ip", "rocl-hn", "rocl-ip-hn")
        ),
    ),
    7: Claim(
        "Replacing the loss is all that is needed, whatever the framework",
        (Part("claf-ip-hn", "claf"), Part("acl-hn", "acl")),
    ),
    8: Claim(
        "The gain has the same sign under SLF, ALF and AFF",
        tuple(Part("rocl-ip-hn", "rocl", protocol=p) for p in ("slf", "alf", "aff")),
        same_sign=True,
    ),
    9: Claim(
        "The gain carries over to transfer", (Part("rocl-ip-hn", "rocl", protocol="@"),)
    ),
    10: Claim(
        "Clinical weights (CLEF) raise clean AUROC over standard contrastive learning",
        (Part("clef", "simclr", "clean"),),
    ),
    11: Claim(
        "ANCHOR is more robust than adversarial training, AdvCL, ASCL and TRADES at"
        " equal clean AUROC",
        _robust_at_equal_clean("anchor", "pgd-at", "advcl", "ascl", "trades"),
    ),
    12: Claim(
        "Label-free adversarial positives give robustness without clean loss, and how"
        " they are made matters",
        (
            *_robust_at_equal_clean("adv-supcon", "supcon"),
            Part("adv-supcon", "adv-supcon-labels", side="differs"),
            Part("adv-supcon", "adv-supcon-noise", side="differs"),
        ),
    ),
    13: Claim(
        "CLAE's adversaries raise clean AUROC on SimCLR, SupCon and HCL",
        (
            Part("clae", "simclr", "clean"),
            Part("clae-supcon", "supcon", "clean"),
            Part("clae-hcl", "hcl", "clean"),
        ),
    ),
    14: Claim(
        "Adversaries cause identity confusion, and inferior positives reduce it",
        (
            Part("simclr", UNATTACKED, "identity_confusion"),
            Part("rocl-ip", "rocl", "identity_confusion", "below"),
        ),
    ),
}


def claimed_pairs() -> list[tuple[str, str]]:
    """Every (adaptive, standard) pair whose AUROC a claim compares."""
    parts = [part for claim in CLAIMS.values() for part in claim.parts]
    pairs = [(p.adaptive, p.standard) for p in parts if p.measure in AUROCS]
    return list(dict.fromkeys(pairs))


def judge_claims(
    contrasts: pd.DataFrame, cost: pd.DataFrame, confidence: float = 0.95
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts on the claims, and the comparisons that they rest on.

    Parameters
    ----------
    contrasts, cost : pd.DataFrame
        Tables of the study.
    confidence : float
        Of a claim's intervals jointly: Bonferroni over its parts and data sets.

    Returns
    -------
    tuple
        ``claims.csv``, a row a claim: `supported`, `contradicted`, `equivalent` (all
        differences within ±`MARGIN`), `inconclusive` or `not tested`, with effect and
        interval of the weakest comparison. ``claim_evidence.csv``, a row a comparison,
        those that were not run too.
    """
    claims, evidence = [], []
    for number, claim in CLAIMS.items():
        found = [row for p in claim.parts for row in _estimates(p, contrasts, cost)]
        level = 1 - (1 - confidence) / max(1, len(found))
        for row in found:
            row |= {"number": number, "decides": False, **_judge_part(row, level)}
        summary = {
            "number": number,
            "claim": claim.text,
            "verdict": _verdict(claim, found),
        }
        if summary["verdict"] != "not tested":
            weakest = min(found, key=itemgetter("room"))
            weakest["decides"] = True
            summary |= {"effect": weakest["value"], "evidence": _describe(weakest)}
            summary |= {key: weakest[key] for key in ("ci_low", "ci_high", "measure")}
            summary["masking_ok"] = False not in [row["masking_ok"] for row in found]
        claims.append(summary)
        missing = [{"number": number, **row} for row in _missing(claim, found)]
        evidence += [*found, *missing]
    return (
        pd.DataFrame(claims, columns=COLUMNS),
        pd.DataFrame(evidence, columns=EVIDENCE_COLUMNS),
    )


def _estimates(
    part: Part, contrasts: pd.DataFrame, cost: pd.DataFrame
) -> Iterator[dict]:
    """The comparison on each data set where it was run, not yet judged."""
    if part.measure not in AUROCS:
        yield from _measured(part, cost)
        return
    rows = contrasts[_under(part, contrasts)]
    main = rows["headline"] if part.measure == "robust" else rows["attack"] == "none"
    rows = rows[main.astype(bool)]
    same = (rows["adaptive"] == part.adaptive) & (rows["standard"] == part.standard)
    for row in rows[same].to_dict("records"):
        where = {"protocol": row["protocol"], "value": row["delta"], "part": part}
        yield {**row, **asdict(part), **where}


def _measured(part: Part, cost: pd.DataFrame) -> Iterator[dict]:
    """The same of a column of the cost table, paired by seed: only seeds vary.

    A ratio is a difference of logarithms until it is judged.
    """
    if part.measure not in cost:
        return
    ratio = part.measure in RATIOS
    rows = cost[_under(part, cost) & cost["arm"].isin([part.adaptive, part.standard])]
    for (dataset, protocol), here in rows.groupby(["dataset", "protocol"], sort=False):
        pairs = here.pivot(index="seed", columns="arm", values=part.measure)
        if part.standard == UNATTACKED:
            pairs[UNATTACKED] = 0.0
        pairs = pairs.dropna().astype(float)
        seeds = len(pairs)
        if not seeds or len(pairs.columns) < 2:
            continue
        pairs = np.log(pairs) if ratio else pairs
        change = (pairs[part.adaptive] - pairs[part.standard]).to_numpy()
        masked = not ratio and False in list(here.get("masking_ok", []))
        yield {
            **asdict(part),
            "part": part,
            "dataset": dataset,
            "protocol": protocol,
            "value": change.mean(),
            "se": change.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan,
            "df": seeds - 1,
            "heavy": 0.0,
            "seeds": seeds,
            "seed_list": " ".join(map(str, pairs.index)),
            "beyond_seeds": seeds >= st.MIN_SEEDS,
            "masking_ok": not masked,
        }


def _under(part: Part, table: pd.DataFrame) -> pd.Series:
    if part.protocol == "@":
        return table["protocol"].str.contains("@").astype(bool)
    return table["protocol"] == part.protocol


def _judge_part(row: dict, level: float) -> dict:
    """Interval at `level`, and verdict, of one comparison."""
    t = st.MixedT(row["df"], row["heavy"], row["seeds"])
    half = t.critical(level) * row["se"] if t.df > 0 else np.nan
    ends = row["value"] + np.array([-half, half])
    # Differences of AUROCs and of shares lie between −1 and 1.
    ratio = row["measure"] in RATIOS
    low, high = np.exp(ends) if ratio else np.clip(ends, -1, 1)
    value = np.exp(row["value"]) if ratio else row["value"]
    # How far the interval lies on each side of the margin.
    above, below = low - row["margin"], row["margin"] - high
    sides = {"above": (above, below), "below": (below, above)}
    right, wrong = sides.get(row["side"], (max(above, below), np.nan))
    verdict = "inconclusive"
    if row["beyond_seeds"]:
        if right > 0:
            verdict = "supported"
        elif wrong > 0:
            verdict = "contradicted"
        elif row["measure"] in AUROCS and row["margin"] == 0:
            p = st.equivalence_p(value, row["se"], t, MARGIN)
            verdict = "equivalent" if p <= 1 - level else verdict
    return {
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "verdict": verdict,
        "room": -np.inf if np.isnan(right) else right,
    }


def _verdict(claim: Claim, found: list[dict]) -> str:
    """Of all parts on all data sets.

    A claim that needs all its parts is tested where one data set has them all. It is
    contradicted by a part that is contradicted on every data set of the claim, and
    supported, or equivalent, where all that was run is.
    """
    where = {p: {r["dataset"] for r in found if r["part"] == p} for p in claim.parts}
    said = {p: {r["verdict"] for r in found if r["part"] == p} for p in claim.parts}
    datasets = set().union(*where.values())
    if not datasets or (claim.needs_all and not set.intersection(*where.values())):
        return "not tested"
    for part in claim.parts:
        if where[part] == datasets and said[part] == {"contradicted"}:
            return "contradicted"
    verdicts = set().union(*said.values())
    if claim.same_sign:
        gains = all(row["value"] > 0 for row in found)
        verdicts = {"supported"} if gains and {"supported"} in said.values() else set()
    if verdicts in ({"supported"}, {"equivalent"}):
        return verdicts.pop()
    return "inconclusive"


def _missing(claim: Claim, found: list[dict]) -> Iterator[dict]:
    """Parts that were not run, on each data set where others were."""
    datasets = dict.fromkeys(row["dataset"] for row in found) or [None]
    there = {(row["part"], row["dataset"]) for row in found}
    for part in claim.parts:
        for dataset in datasets:
            if (part, dataset) not in there:
                yield {**asdict(part), "dataset": dataset, **NOT_RUN}


def _describe(row: dict) -> str:
    sign = "/" if row["measure"] in RATIOS else "−"
    pair = f"{row['adaptive']} {sign} {row['standard']}, {row['measure']}"
    protocol = "" if row["protocol"] == "slf" else f" {row['protocol']}"
    return f"{pair}, {row['dataset']}{protocol}"
