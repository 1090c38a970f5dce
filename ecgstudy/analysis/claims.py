"""Claims from the literature, judged on ECGs by one table: claim → comparisons and rule."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ecgstudy.analysis.statistics import MIN_SEEDS, critical_ratio

COLUMNS = ["claim", "verdict", "effect", "ci_low", "ci_high", "evidence", "runs"]
RATIOS = ("step_ms",)
"""Measures compared as a ratio (adaptive over standard) rather than as a difference."""
SHARES = ("robust", "clean", "identity_confusion")
"""Measures from 0 to 1: a difference of two lies from −1 to 1, and so do the ends of its interval."""
UNATTACKED = "unattacked"
"""Stands for a measure's value without attack where that is 0: every ECG is nearest to itself."""
EVIDENCE = re.compile(
    r"(?P<pair>\S+ [−/] \S+), (?P<measure>\w+), (?P<place>.+?): "
    r"(?P<value>\S+) \[(?P<low>\S+), (?P<high>\S+)\] (?P<verdict>\w+)(?P<remark>.*)"
)
"""One comparison as `judge` writes it into the column `evidence`."""


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: `adaptive` against `standard` must lie on one side of `margin`.

    `measure` is ``"robust"`` or ``"clean"`` (macro AUROC; a difference), or a numeric column of the cost
    table, of which `standard` may be `UNATTACKED`. `side` is ``"above"``, ``"below"`` or ``"differs"``
    (either side of 0). `protocol` is that of the scores; ``"@"`` means every transfer.
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

    Without `needs_all`, the parts at hand decide (a claim about "any base" is tested on the bases run).
    `same_sign` asks for the same sign of all parts, one of them beyond doubt and none contradicted.
    """

    text: str
    parts: tuple[Part, ...]
    needs_all: bool = True
    same_sign: bool = False


def _both(adaptive: str, standard: str) -> tuple[Part, Part]:
    return Part(adaptive, standard, "robust"), Part(adaptive, standard, "clean")


def _robust_at_equal_clean(adaptive: str, *standards: str) -> tuple[Part, ...]:
    return tuple(
        part
        for standard in standards
        for part in (
            Part(adaptive, standard),
            Part(adaptive, standard, "clean", margin=-0.01),
        )
    )


CLAIMS = {
    1: Claim("Inferior positives raise clean and robust AUROC over the same base",
             _both("rocl-ip", "rocl") + _both("advcl-ip", "advcl"), needs_all=False),
    2: Claim("Hard negatives raise clean and robust AUROC over RoCL", _both("rocl-hn", "rocl")),
    3: Claim("Inferior positives beat AdvCL", (Part("advcl-ip", "advcl"),)),
    4: Claim("Inferior positives with hard negatives beat each alone, and the base",
             tuple(Part("rocl-ip-hn", base) for base in ("rocl-ip", "rocl-hn", "rocl"))),
    5: Claim("Longer adversarial pretraining (2.5 times) overfits", (Part("rocl", "rocl-long"),)),
    6: Claim("Adaptive weights cost no extra time (step-time ratio at most 1.05)",
             tuple(Part(a, "rocl", "step_ms", "below", 1.05) for a in ("rocl-ip", "rocl-hn", "rocl-ip-hn"))),
    7: Claim("Replacing the loss is all that is needed, whatever the framework",
             (Part("claf-ip-hn", "claf"), Part("acl-hn", "acl"))),
    8: Claim("The gain has the same sign under SLF, ALF and AFF",
             tuple(Part("rocl-ip-hn", "rocl", protocol=p) for p in ("slf", "alf", "aff")), same_sign=True),
    9: Claim("The gain carries over to transfer", (Part("rocl-ip-hn", "rocl", protocol="@"),)),
    10: Claim("Clinical weights (CLEF) raise clean AUROC over standard contrastive learning",
              (Part("clef", "simclr", "clean"),)),
    11: Claim("ANCHOR is more robust than adversarial training, AdvCL, ASCL and TRADES at equal clean AUROC",
              _robust_at_equal_clean("anchor", "pgd-at", "advcl", "ascl", "trades")),
    12: Claim("Label-free adversarial positives give robustness without clean loss, and their making matters",
              _robust_at_equal_clean("adv-supcon", "supcon")
              + tuple(Part("adv-supcon", f"adv-supcon-{x}", side="differs") for x in ("labels", "noise"))),
    13: Claim("CLAE's adversaries raise clean AUROC on SimCLR, SupCon and HCL",
              (Part("clae", "simclr", "clean"), Part("clae-supcon", "supcon", "clean"),
               Part("clae-hcl", "hcl", "clean"))),
    14: Claim("Adversaries cause identity confusion, and inferior positives reduce it",
              (Part("simclr", UNATTACKED, "identity_confusion"),
               Part("rocl-ip", "rocl", "identity_confusion", "below"))),
}  # fmt: skip


def claimed_pairs() -> list[tuple[str, str]]:
    """Every (adaptive, standard) pair whose AUROC a claim compares."""
    parts = [part for claim in CLAIMS.values() for part in claim.parts]
    return list(
        dict.fromkeys(
            (p.adaptive, p.standard) for p in parts if p.measure in ("robust", "clean")
        )
    )


def judge(
    contrasts: pd.DataFrame, cost: pd.DataFrame, confidence: float = 0.95
) -> pd.DataFrame:
    """Verdict on every claim: supported, contradicted, inconclusive or not tested; one row each.

    `effect` and its adjusted interval are those of the part that decided (the weakest), and `runs` those that
    the verdict rests on. `confidence` is that of a claim's intervals jointly: Bonferroni over its parts and
    data sets.
    """
    rows = [
        _judge(n, claim, contrasts, cost, confidence) for n, claim in CLAIMS.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass(frozen=True)
class _Found:
    """One part on one data set: estimate, adjusted interval, verdict, and the runs it rests on."""

    part: Part
    dataset: str
    protocol: str
    seeds: str
    value: float
    low: float
    high: float
    verdict: str
    remark: str

    def __str__(self) -> str:
        link = "/" if self.part.measure in RATIOS else "−"
        where = (
            self.dataset
            if self.protocol == "slf"
            else f"{self.dataset} {self.protocol}"
        )
        named = f"{self.part.adaptive} {link} {self.part.standard}, {self.part.measure}, {where}"
        return f"{named}: {self.value:.4f} [{self.low:.4f}, {self.high:.4f}] {self.verdict}{self.remark}"


def compared(evidence: object) -> list[dict[str, str]]:
    """The comparisons in a cell of the column `evidence`, as texts: the groups of `EVIDENCE`."""
    parts = evidence.split("; ") if isinstance(evidence, str) else []
    return [match.groupdict() for part in parts if (match := EVIDENCE.fullmatch(part))]


def decider(row: Mapping[str, object]) -> dict[str, str]:
    """Of a row of ``claims.csv`` the comparison that its effect is of; empty where there is none."""
    shown = f"{row['effect']:.4f}"
    return next(
        (part for part in compared(row["evidence"]) if part["value"] == shown), {}
    )


def _judge(
    number: int,
    claim: Claim,
    contrasts: pd.DataFrame,
    cost: pd.DataFrame,
    confidence: float,
) -> list:
    estimates = {part: list(_estimates(part, contrasts, cost)) for part in claim.parts}
    tests = max(1, sum(map(len, estimates.values())))
    level = 1 - (1 - confidence) / tests
    found = {
        part: [_found(part, level, *row) for row in rows]
        for part, rows in estimates.items()
    }
    verdict = _verdict(claim, found)
    results = [result for rows in found.values() for result in rows]
    datasets = list(dict.fromkeys(result.dataset for result in results)) or [""]
    missing = [
        f"{p.adaptive} against {p.standard} ({p.measure}, {p.protocol})"
        + f" on {name}" * bool(name)
        for p in found
        for name in datasets
        if name not in {result.dataset for result in found[p]}
    ]
    evidence = "; ".join(
        [*map(str, results), *(["missing: " + ", ".join(missing)] if missing else [])]
    )
    shown = min(results, key=_room) if verdict != "not tested" else None
    numbers = [shown.value, shown.low, shown.high] if shown else [np.nan] * 3
    return [f"{number}. {claim.text}", verdict, *numbers, evidence, _runs(results)]


def _runs(results: list[_Found]) -> str:
    """``mitdb slf: rocl-ip, rocl, seeds 0 1 2; …``: data set, protocol, arms and seeds of `results`."""
    arms: dict[tuple, list[str]] = {}
    for r in results:
        pair = (
            name for name in (r.part.adaptive, r.part.standard) if name != UNATTACKED
        )
        arms.setdefault((r.dataset, r.protocol, r.seeds), []).extend(pair)
    return "; ".join(
        f"{dataset} {protocol}: {', '.join(dict.fromkeys(names))}, seeds {seeds}"
        for (dataset, protocol, seeds), names in arms.items()
    )


def _estimates(
    part: Part, contrasts: pd.DataFrame, cost: pd.DataFrame
) -> Iterator[tuple]:
    """((data set, protocol, seeds), value, se, its t, beyond seeds, masking) of a part where it was run."""
    if part.measure not in ("robust", "clean"):
        yield from _measured(part, cost)
        return
    pair = (contrasts["adaptive"] == part.adaptive) & (
        contrasts["standard"] == part.standard
    )
    kind = (
        contrasts["headline"]
        if part.measure == "robust"
        else contrasts["attack"] == "none"
    )
    rows = contrasts[pair & kind.astype(bool) & _under(part, contrasts)]
    for row in rows.itertuples():
        where = row.dataset, row.protocol, row.seed_list
        shape = row.df, row.heavy, row.seeds
        yield where, row.delta, row.se, shape, row.beyond_seeds, row.masking_ok


def _measured(part: Part, cost: pd.DataFrame) -> Iterator[tuple]:
    """The same of a measured quantity, paired by seed; a ratio is treated on the log scale."""
    if part.measure not in cost:
        return
    ratio = part.measure in RATIOS
    rows = cost[_under(part, cost) & cost["arm"].isin([part.adaptive, part.standard])]
    for (dataset, protocol), here in rows.groupby(["dataset", "protocol"], sort=False):
        pairs = here.pivot(index="seed", columns="arm", values=part.measure)
        if part.standard == UNATTACKED:
            pairs[UNATTACKED] = 0.0
        pairs = pairs.dropna().astype(float)
        if not len(pairs) or len(pairs.columns) < 2:
            continue
        pairs = np.log(pairs) if ratio else pairs
        change = (pairs[part.adaptive] - pairs[part.standard]).to_numpy()
        n, seeds = len(change), " ".join(map(str, pairs.index))
        se = change.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        masked = not ratio and False in list(here.get("masking_ok", []))
        yield (
            (dataset, protocol, seeds),
            change.mean(),
            se,
            (n - 1, 0.0, n),
            n >= MIN_SEEDS,
            not masked,
        )


def _under(part: Part, table: pd.DataFrame) -> pd.Series:
    if part.protocol == "@":
        return table["protocol"].str.contains("@").astype(bool)
    return table["protocol"] == part.protocol


def _found(
    part: Part,
    level: float,
    where: tuple,
    value: float,
    se: float,
    shape: tuple,
    beyond: bool,
    masking: object,
) -> _Found:
    half = critical_ratio(level, *shape) * se if shape[0] > 0 else np.nan
    scale = np.exp if part.measure in RATIOS else float
    value, low, high = (float(scale(x)) for x in (value, value - half, value + half))
    if part.measure in SHARES:
        low, high = (float(np.clip(end, -1, 1)) for end in (low, high))
    above, below = low > part.margin, high < part.margin
    right, wrong = {
        "above": (above, below),
        "below": (below, above),
        "differs": (above or below, False),
    }[part.side]
    verdict = "supported" if right else "contradicted" if wrong else "inconclusive"
    remark = "" if part.measure in ("robust", "clean") else " (seeds alone vary)"
    remark += " (gradient masking suspected)" if masking in (False,) else ""
    if not beyond:
        verdict, remark = "inconclusive", remark + f" (fewer than {MIN_SEEDS} seeds)"
    return _Found(part, *where, value, low, high, verdict, remark)


def _verdict(claim: Claim, found: dict[Part, list[_Found]]) -> str:
    """Of all parts on all data sets.

    A claim that needs all its parts is tested where one data set has them all. It is contradicted by a part
    that is contradicted on every data set of the claim, and supported where all that was run supports it.
    """
    where = {part: {result.dataset for result in rows} for part, rows in found.items()}
    datasets = set().union(*where.values())
    if not datasets or (claim.needs_all and not set.intersection(*where.values())):
        return "not tested"
    results = [result for rows in found.values() for result in rows]
    for part, rows in found.items():
        if where[part] == datasets and {r.verdict for r in rows} == {"contradicted"}:
            return "contradicted"
    if claim.same_sign:
        gains = all(result.value > 0 for result in results)
        decided = any(
            rows and {r.verdict for r in rows} == {"supported"}
            for rows in found.values()
        )
        return "supported" if gains and decided else "inconclusive"
    return (
        "supported" if {r.verdict for r in results} == {"supported"} else "inconclusive"
    )


def _room(result: _Found) -> float:
    """How far the interval is on the right side of the margin: the part with least decides."""
    above, below = result.low - result.part.margin, result.part.margin - result.high
    room = {"above": above, "below": below, "differs": max(above, below)}[
        result.part.side
    ]
    return -np.inf if np.isnan(room) else room
