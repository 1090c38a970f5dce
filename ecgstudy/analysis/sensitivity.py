"""The headline result under other choices than the analysis makes."""

from collections.abc import Callable, Iterator

import numpy as np

from ecgstudy import metrics
from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.contrasts import (
    PRIMARY,
    Group,
    combine,
    estimate_arm,
    group_scores,
    is_headline,
    masking_flag,
    outcomes,
    pair_by_seed,
    subgroups,
)
from ecgstudy.analysis.scores import Place, Scores, ScoreSet

Sets = list[list[ScoreSet]]
"""(arms, seeds) of `pair_by_seed`."""
Choices = Iterator[tuple[str, str, Sets]]
"""Name of a choice, a note, and the score sets that it leaves."""


def arm_sensitivity(
    scores: Scores, headline: dict[str, float], resamples: int, confidence: float
) -> list[dict]:
    """Each arm's headline and clean AUROC under other choices.

    Parameters
    ----------
    scores : Scores
        Of `read_scores`.
    headline : dict
        Data set tested on → headline ε in mV.
    resamples : int
        Of the percentile bootstrap of patients.
    confidence : float
        Level of the intervals.
    """
    rows = []
    for place, group, added, rounded in _outcomes(scores, headline):
        for arm in group:
            (sets,) = pair = pair_by_seed(group, [arm])
            found = [
                {"variant": name, "note": note, **estimate_arm(chosen, confidence)}
                for name, note, (chosen,) in _choices(pair, added, rounded)
            ]
            found.insert(1, _bootstrap(sets, resamples, confidence))
            found += _leave_out(pair, [1.0], "auroc")
            whole = [scores.evaluations[s.run].get("clean_all") for s in sets]
            if place.attack == "none" and all(whole):
                mean = np.mean([clean["macro"] for clean in whole])
                found.append({"variant": "all test records", "auroc": mean})
            where = {**place._asdict(), "arm": arm, "masking_ok": masking_flag(sets)}
            rows += [{**row, **where} for row in found]
    return rows


def contrast_sensitivity(
    scores: Scores, headline: dict[str, float], confidence: float
) -> list[dict]:
    """The planned contrasts under other choices, and by seed, age and sex.

    Parameters
    ----------
    scores, headline, confidence
        As for `arm_sensitivity`.
    """
    rows = []
    for place, group, added, rounded in _outcomes(scores, headline):
        for pair in PRIMARY.items():
            sets = pair_by_seed(group, pair)
            if not sets:
                continue
            choices = [*_choices(sets, added, rounded), *_parts(sets)]
            found = [
                {"variant": name, "note": note, **combine(chosen, [1, -1], confidence)}
                for name, note, chosen in choices
            ]
            found += _leave_out(sets, [1, -1], "delta")
            where = {**place._asdict(), "adaptive": pair[0], "standard": pair[1]}
            where["masking_ok"] = found[0]["masking_ok"]
            rows += [{**row, **where} for row in found]
    return rows


def _outcomes(
    scores: Scores, headline: dict[str, float]
) -> Iterator[tuple[Place, Group, Group, Group]]:
    """Clean and headline sets; beside them those of extra records, and rounded."""
    added = group_scores(scores, "sensitivity")
    groups = group_scores(scores)
    for place, group in groups.items():
        if place.attack == "none" or is_headline(place, headline):
            adc = place._replace(attack=f"{place.attack}-adc")
            yield place, group, added.get(place, {}), groups.get(adc, {})


def _choices(sets: Sets, added: Group, rounded: Group) -> Choices:
    """The analysis itself; without dominated labels; with more records; rounded."""
    yield "primary analysis", "", sets
    sample = sets[0][0].sample
    dominated = sample.labels & (sample.shares > st.DOMINANCE)
    kept = sample.labels & ~dominated
    if dominated.any() and kept.any():
        note = f"without {sample.named(dominated)}"
        part = _each(sets, lambda s: s.part(labels=kept))
        yield "without dominated labels", note, part
    more = _same_runs(added, sets)
    if more:
        note = f"{len(more[0][0].sample.y)} records added"
        joined = _each(sets, lambda s: s.joined(added[s.arm][s.seed]))
        yield "with sensitivity records", note, joined
    same = _same_runs(rounded, sets)
    if same:
        yield "rounded to ADC units", "", same


def _parts(sets: Sets) -> Choices:
    """Each seed; each age band and sex that defines a label."""
    for index, s in enumerate(sets[0]):
        yield f"seed {s.seed}", "", [[row[index]] for row in sets]
    for _, name, mask in subgroups(sets[0][0].sample):
        part = _each(sets, lambda s, mask=mask: s.part(mask))
        sample = part[0][0].sample
        if sample.labels.any():
            labels = sample.named(sample.labels)
            yield name, f"{len(sample.names)} patients; labels {labels}", part


def _each(sets: Sets, change: Callable[[ScoreSet], ScoreSet]) -> Sets:
    return [[change(s) for s in row] for row in sets]


def _same_runs(other: Group, sets: Sets) -> Sets:
    """The sets of `other` of the same arms and seeds; none if one is missing."""
    try:
        return _each(sets, lambda s: other[s.arm][s.seed])
    except KeyError:
        return []


def _leave_out(sets: Sets, weights: list[float], column: str) -> list[dict]:
    """The lowest and the highest estimate that leaving one patient out gives."""
    names = sets[0][0].sample.names
    left_out = np.array(weights) @ outcomes(sets)[1].mean(axis=1)
    ends = {"lowest": left_out.argmin(), "highest": left_out.argmax()}
    return [
        {
            "variant": f"one patient left out, {name}",
            "note": f"without {names[index]}",
            column: left_out[index],
        }
        for name, index in ends.items()
    ]


def _bootstrap(
    sets: list[ScoreSet], resamples: int, confidence: float, seed: int = 0
) -> dict:
    sample, rng = sets[0].sample, np.random.default_rng(seed)
    y, patients = sample.y, sample.patients
    drawn, redrawn = st.draw_patients(y, patients, resamples, rng)
    each = [
        metrics.macro(metrics.resampled_auroc(y, s.scores, patients, drawn))
        for s in sets
    ]
    row = {
        "variant": "percentile bootstrap of patients",
        "note": f"{redrawn} resamples redrawn",
        "auroc": np.mean([s.macro for s in sets]),
    }
    if 0 < row["auroc"] < 1:  # at the floor or ceiling there is no interval
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        row["ci_low"], row["ci_high"] = np.quantile(np.mean(each, axis=0), ends)
    return row
