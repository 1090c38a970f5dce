"""A study's answer in words, computed from its tables: verdict, caveats, and claims in short."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ecgstudy.analysis.statistics import MIN_SEEDS
from ecgstudy.params import method, target
from ecgstudy.plots.style import CONTROL_MARKERS, is_true, known_arm
from ecgstudy.plots.tables_html import claim_effect, interval, signed

DATA_NAMES = {"mitdb": "MIT-BIH", "ptbxl": "PTB-XL", "builtin": "simulated ECGs"}
MEASURES = {
    "robust": "robust AUROC",
    "clean": "clean AUROC",
    "step_ms": "ratio of step times",
}
FEW_PATIENTS = 50
"""Up to so many points that lie as far apart as they can, contrastive encoders are said to know patients."""
LARGEST = 1.0
"""No two AUROCs differ by more."""
FEW = 3
"""So many effects are listed one by one in the verdict; of more, the range is given."""


@dataclass(frozen=True)
class Verdict:
    """The answer: one word or two, and the sentence that says it with numbers."""

    label: str
    sentence: str


def comparisons(contrasts: pd.DataFrame | None, confidence: float) -> list[dict]:
    """Adaptive − standard at the headline: the primary family or, where there is none, exploratory pairs.

    Rows of ``contrasts.csv`` with `result` (higher, lower, undecided), `dagger` and `shown_p`. A comparison
    is decided where p (Holm's for the primary family) is at most 1 − `confidence` and there are enough seeds
    to speak beyond them.
    """
    if contrasts is None or contrasts.empty:
        return []
    main = contrasts[is_true(contrasts["headline"])]
    rows = main[main["family"] == "primary"]
    if rows.empty:
        pairs = zip(main["adaptive"], main["standard"], strict=True)
        rows = main[
            [_adaptive(a) and not (_adaptive(b) or _control(b)) for a, b in pairs]
        ]
    return [_judged(row, 1 - confidence) for row in rows.to_dict("records")]


def _adaptive(arm: str) -> bool:
    """Whether `arm` weighs pairs; of arms from plugins that are not loaded, all but controls may."""
    row = known_arm(arm)
    return not _control(arm) and (row is None or row.group.endswith("adaptive"))


def _control(arm: str) -> bool:
    return arm.endswith(tuple(CONTROL_MARKERS))


def _judged(row: dict, level: float) -> dict:
    p = row["p_holm"] if row["family"] == "primary" else row["p"]
    clear = (
        p <= level and str(row.get("beyond_seeds")) == "True"
    )  # False where p is missing
    result = ("higher" if row["delta"] > 0 else "lower") if clear else "undecided"
    dagger = " †" if str(row.get("masking_ok")) == "False" else ""
    return row | {"result": result, "dagger": dagger, "shown_p": p}


def verdict(rows: list[dict], confidence: float) -> Verdict:
    """The answer of `comparisons` in one sentence."""
    if not rows:
        text = "This study compares no adaptive weighting with the standard loss that it replaces."
        return Verdict("Not tested", text)
    tested = dict.fromkeys(
        target(row["dataset"], row.get("protocol", "slf")) for row in rows
    )
    where = "on " + listed([data_name(name) for name in tested])
    seeds = int(min(row.get("seeds", 0) for row in rows))
    change = f"change of robust AUROC {where}: {_span(rows, rows)}"
    if all(str(row.get("beyond_seeds")) != "True" for row in rows):
        text = f"{many(seeds, 'seed')}, fewer than {MIN_SEEDS}, allow no claim beyond the models trained here"
        return Verdict("No claim", f"{text} ({change}).")
    if rows[0]["family"] != "primary":
        return Verdict(
            "Exploratory",
            f"None of these comparisons was planned as a test ({change}).",
        )
    return _decided(rows, where, confidence)


def _decided(rows: list[dict], where: str, confidence: float) -> Verdict:
    by = {
        name: [row for row in rows if row["result"] == name]
        for name in ("higher", "lower", "undecided")
    }
    n, higher, lower = len(rows), len(by["higher"]), len(by["lower"])
    if not higher + lower:
        text = "Adaptive weighting is neither clearly better nor clearly worse than the standard loss"
        return Verdict(
            "Undecided", f"{text}{_excluded(rows, confidence) or f' {where}'}."
        )
    said = [f"{word} robust in {len(by[name])} ({_span(by[name], rows)})"
            for name, word in (("higher", "more"), ("lower", "less")) if by[name]]  # fmt: skip
    text = f"Of {many(n, 'comparison')} {where}, adaptive weighting makes encoders {' and '.join(said)}"
    text += f", undecided in {len(by['undecided'])}" * bool(by["undecided"])
    if doubtful := sum(bool(row["dagger"]) for row in by["higher"] + by["lower"]):
        text += f"; {doubtful} of these by models that may hide their gradients"
    label = (
        "Mixed"
        if higher and lower
        else "No"
        if lower
        else "Yes"
        if higher == n
        else "In part"
    )
    return Verdict(label, text + ".")


def _excluded(rows: list[dict], confidence: float) -> str:
    """How large a change the joint intervals still allow, a data set at a time, the tightest first.

    One wide interval hides how tight the others are: the limit without it is given too.
    """
    limits: dict[str, list[float]] = {}
    for row in rows:
        ends = [abs(row["joint_low"]), abs(row["joint_high"])]
        if np.isfinite(ends).all():
            limits.setdefault(
                place_name(row["dataset"], row.get("protocol", "slf")), []
            ).append(max(ends))
    said = [
        _limit(name, *sorted(found))
        for name, found in sorted(limits.items(), key=lambda limit: max(limit[1]))
        if min(found) < LARGEST
    ]
    zero = sum(row["joint_low"] <= 0 <= row["joint_high"] for row in rows)
    joint = "joint " * (len(rows) > 1)
    text = f": the {joint}{confidence:.0%} intervals of {many(len(rows), 'comparison')} include 0"
    text += f" in {zero}" * (zero < len(rows))
    return (
        f"{text} and exclude changes of robust AUROC beyond {listed(said)}"
        if said
        else ""
    )


def _limit(name: str, *limits: float) -> str:
    *others, widest = limits
    if widest < LARGEST:
        return f"±{_up(widest)} on {name}" + (
            f" (all but one: ±{_up(others[-1])})" if others else ""
        )
    within = [limit for limit in others if limit < LARGEST]
    return f"±{_up(within[-1])} on {name} in {len(within)} of {len(limits)}"


def _up(limit: float) -> str:
    return f"{np.ceil(1000 * limit - 1e-6) / 1000:.3f}"


def _span(rows: list[dict], all_rows: list[dict]) -> str:
    """Effects of `rows`: each with its interval if they are few, else from the lowest to the highest."""
    if len(rows) > FEW:
        values = [row["delta"] for row in rows]
        return f"{signed(min(values))} to {signed(max(values))}"
    several = len({row["dataset"] for row in all_rows}) > 1
    return ", ".join(
        row["adaptive"]
        + f" on {data_name(row['dataset'])}" * several
        + f" {interval(row)}"
        for row in rows
    )


def caveats(
    rows: list[dict],
    tables: Mapping[str, pd.DataFrame],
    datasets: list[str],
    synthetic: bool,
) -> dict[str, str]:
    """What a reader must know before believing the verdict: title → sentence.

    `rows` are those of `comparisons`, `datasets` those tested on. Of `tables` ``robust_auroc``,
    ``masking_checks``, ``per_class``, ``headline_check`` and ``pretraining`` are looked at.
    """
    found = {
        "Simulated ECGs": "These results prove that the machinery works; they are no evidence about ECGs."
        * synthetic,
        "Size": _size(rows, tables.get("robust_auroc")),
        "Gradient masking": _masking(tables.get("masking_checks")),
        "Patients told apart": _identified(tables.get("pretraining")),
        "Rare classes": _dominated(tables.get("per_class")),
        "Attack budget": _budget(tables.get("headline_check")),
        "Data sets": _places(datasets),
        "Not measured": "ε bounds how large a perturbation is, not whether a body or an electrode could make "
        "it. That no stronger attack exists is nowhere proved.",
    }
    return {title: text for title, text in found.items() if text}


def _size(rows: list[dict], robust: pd.DataFrame | None) -> str:
    if robust is None or robust.empty:
        return ""
    seeds = robust.loc[robust["seed"].astype(str) != "all", "seed"].nunique()
    patients = robust.groupby("dataset", sort=False)["n_patients"].max()
    alone = robust.groupby("dataset", sort=False)["n_unidentified"].max()
    people = [
        f"{n:,} test patients"
        + f" on {data_name(d)}" * (len(patients) > 1)
        + f" ({alone[d]:,} of them records without a patient id)" * bool(alone[d])
        for d, n in patients.items()
    ]
    text = f"{listed([many(seeds, 'seed'), *people])}."
    if seeds < MIN_SEEDS:
        text += f" With fewer than {MIN_SEEDS} seeds nothing is claimed beyond the models trained here."
    return text + _detectable(rows)


def _detectable(rows: list[dict]) -> str:
    needed: dict[str, list[float]] = {}
    for row in rows:
        if row.get("mde", np.nan) > 0:  # 0 where all arms have the same scores
            needed.setdefault(
                place_name(row["dataset"], row.get("protocol", "slf")), []
            ).append(row["mde"])
    if not needed:
        return ""
    shown = {name: [f"{f(found):.3f}" if f(found) < LARGEST else "1 (any)" for f in (min, max)]
             for name, found in needed.items()}  # fmt: skip
    ends = {name: dict.fromkeys(each) for name, each in shown.items()}
    spans = [
        " to ".join(each) + f" on {name}" * (len(ends) > 1)
        for name, each in ends.items()
    ]
    vary = ", depending on the comparison," * any(
        len(each) > 1 for each in ends.values()
    )
    return f" True differences smaller than {listed(spans)}{vary} would usually be missed (power below 80 %)."


def _masking(checks: pd.DataFrame | None) -> str:
    if checks is None or checks.empty:
        return ""
    judged = checks[checks["verdict"].isin(["pass", "fail"])]
    failed = judged[judged["verdict"] == "fail"]
    about = "A model that hides its gradients only looks robust. "
    if failed.empty:
        return f"{about}All {len(judged):,} checks for that pass."
    models = [
        f"{arm} on {data_name(d)}"
        for d, arm in failed[["dataset", "arm"]].drop_duplicates().values
    ]
    text = f"{len(failed):,} of {len(judged):,} checks for that fail"
    return f"{about}{text}: {listed(models)} (marked †) may be overrated."


def _identified(pretraining: pd.DataFrame | None) -> str:
    """Where contrastive encoders came to the end of what few patients can teach them."""
    if pretraining is None or pretraining.empty:
        return ""
    cosines = pretraining.groupby("dataset", sort=False)["negative_similarity"].mean()
    return " ".join(
        f"On {data_name(name)} the mean cosine of two patients' ECGs ended at {signed(cosine)}, as low as"
        f" {1 - 1 / cosine:.0f} points can have it: in pretraining on so few patients, whose own ECGs never"
        " push each other, encoders learned who is who, and weights had little left to tell apart."
        for name, cosine in cosines.items()
        if cosine <= -1 / (FEW_PATIENTS - 1)
    )


def _dominated(classes: pd.DataFrame | None) -> str:
    if classes is None or "dominated" not in classes:
        return ""
    rows = classes[is_true(classes["dominated"])].drop_duplicates(["dataset", "class"])
    several = classes["dataset"].nunique() > 1
    named = [
        f"{row['class']} ({row['largest_share']:.0%}"
        + f", {data_name(row['dataset'])}" * several
        + ")"
        for row in rows.to_dict("records")
    ]
    return (
        f"Most records of these classes come from one patient each: {listed(named)}."
        if named
        else ""
    )


def _budget(check: pd.DataFrame | None) -> str:
    if check is None or check.empty:
        return ""
    texts, places = [], ["dataset", "protocol"]
    chosen, used = (
        check[is_true(check[key])].set_index(places)["epsilon_mv"]
        for key in ("chosen", "in_params")
    )
    for place, epsilon in used.items():
        ruled = chosen.get(place, epsilon)
        aurocs = check.set_index([*places, "epsilon_mv"])["auroc_shared"]
        if aurocs.get((*place, ruled), 0.0) > 0.5:
            texts.append(
                f"On {place_name(*place)} no ε brings the supervised model to chance: the largest is used."
            )
        if epsilon != ruled:
            texts.append(
                f"On {place_name(*place)} ε = {epsilon:g} mV is not the {ruled:g} mV that the rule picks on "
                "these validation records."
            )
    return " ".join(texts)


def _places(datasets: list[str]) -> str:
    if len(datasets) == 1:
        return f"One alone, {data_name(datasets[0])}; other data may behave otherwise."
    return "Each is judged by itself; a claim is supported only where every data set supports it."


def short_claims(claims: pd.DataFrame | None) -> list[dict]:
    """Claims as rows: number, text, verdict, effect with interval, and what was compared."""
    return [] if claims is None else [_short(row) for row in claims.to_dict("records")]


def _short(row: dict) -> dict:
    tested = row["verdict"] != "not tested"
    measure = row["measure"] if tested else ""
    dagger = " †" if str(row["masking_ok"]) == "False" else ""
    return {
        "number": row["number"],
        "text": row["claim"],
        "verdict": row["verdict"],
        "effect": claim_effect(row),
        "pair": row["evidence"] if tested else "",
        "measure": MEASURES.get(measure, measure.replace("_", " ")),
        "dagger": dagger,
    }


def place_name(dataset: str, protocol: str) -> str:
    """Data set tested on, and what is not as usual: where encoders come from, a protocol other than slf."""
    tested, how = target(dataset, protocol), method(protocol)
    unusual = [f"encoders from {data_name(dataset)}"] * (tested != dataset) + [how] * (
        how != "slf"
    )
    return data_name(tested) + f" ({', '.join(unusual)})" * bool(unusual)


def data_name(dataset: str) -> str:
    """How a data set is called in a sentence."""
    return DATA_NAMES.get(dataset, dataset)


def listed(words: list[str]) -> str:
    """“a, b and c”."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def many(count: int, noun: str) -> str:
    """“1 seed”, “3 seeds”."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
