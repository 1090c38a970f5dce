"""The primary outcome and the primary contrasts under other choices than the analysis makes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.contrasts import (
    AGES,
    PRIMARY,
    Group,
    combined,
    grouped,
    is_headline,
    masking_flag,
    mean_macro,
    one_sample,
    place,
)
from ecgstudy.analysis.scores import Sample, Scores, ScoreSet

Alternatives = Iterator[tuple[str, str, Group]]
"""(name of the choice, a note, the score sets it leaves)."""


def sensitivity(
    scores: Scores,
    headline: dict[str, float],
    attack: str,
    resamples: int,
    confidence: float,
) -> list[dict]:
    """The primary outcome of each arm, and clean AUROC: by label, without each patient, by bootstrap, ….

    `headline` is ε in mV of each data set tested on; `resamples` are those of the percentile bootstrap.
    """
    rows = []
    for key, group, added, rounded in _outcomes(scores, headline, attack):
        for arm, seeds in group.items():
            sets, one = list(seeds.values()), {arm: seeds}
            found = [
                *_found(one, {arm: 1.0}, confidence, _choices(one, added, rounded))
            ]
            found.insert(1, _bootstrapped(sets, resamples, confidence))
            whole = [
                (scores.evaluations[s.run].get("clean_all") or {}).get("macro")
                for s in sets
            ]
            if key[2] == "none" and None not in whole:
                found.append({"variant": "all test records", "value": np.mean(whole)})
            where = place(key) | {"arm": arm, "masking_ok": masking_flag(sets)}
            rows += [where | row | {"auroc": row["value"]} for row in found]
    return rows


def contrast_sensitivity(
    scores: Scores, headline: dict[str, float], attack: str, confidence: float
) -> list[dict]:
    """The primary contrasts, robust and clean: by seed, label, age and sex, without each patient, …."""
    rows = []
    for key, group, added, rounded in _outcomes(scores, headline, attack):
        for adaptive, standard in PRIMARY.items():
            seeds = sorted(set(group.get(adaptive, ())) & set(group.get(standard, ())))
            if not seeds:
                continue
            weights = {adaptive: 1.0, standard: -1.0}
            pair = {arm: {seed: group[arm][seed] for seed in seeds} for arm in weights}
            choices = chain(_choices(pair, added, rounded), _parts(pair))
            flag = masking_flag([s for arm in pair.values() for s in arm.values()])
            where = place(key) | {
                "adaptive": adaptive,
                "standard": standard,
                "masking_ok": flag,
            }
            found = _found(pair, weights, confidence, choices)
            rows += [where | row | {"delta": row["value"]} for row in found]
    return rows


def _outcomes(
    scores: Scores, headline: dict[str, float], attack: str
) -> Iterator[tuple[tuple, Group, Group, Group]]:
    """(key, its group, sensitivity records, scores after rounding) of clean data and the headline attack."""
    added = grouped(scores, "sensitivity")
    rounded = {
        key[:2]: group for key, group in grouped(scores, attack=f"{attack}-adc").items()
    }
    for key, group in grouped(scores).items():
        if key[2] == "none":
            yield key, group, added.get(key, {}), {}
        elif is_headline(key, headline, attack):
            yield key, group, added.get(key, {}), rounded.get(key[:2], {})


def _found(
    group: Group, weights: dict[str, float], confidence: float, choices: Alternatives
) -> Iterator[dict]:
    """Estimate and interval under each choice, and the extremes of leaving one patient out."""
    for variant, note, chosen in choices:
        row = combined(chosen, weights, confidence)[0]
        yield row | {"variant": variant, "note": note, "value": row["delta"]}
    each = {
        arm: np.mean([s.left_out for s in group[arm].values()], axis=0)
        for arm in weights
    }
    left_out = sum(weight * each[arm] for arm, weight in weights.items())
    for name, i in (("lowest", np.argmin(left_out)), ("highest", np.argmax(left_out))):
        note = f"without {_sample(group).names[i]}"
        yield {
            "variant": f"one patient left out, {name}",
            "note": note,
            "value": left_out[i],
        }


def _choices(group: Group, added: Group, rounded: Group) -> Alternatives:
    """The analysis itself; without labels that hang on one patient; with more records; rounded."""
    yield "primary analysis", "", group
    sample = _sample(group)
    dominated = sample.labels & (sample.shares > st.DOMINANCE)
    kept = sample.labels & ~dominated
    if dominated.any() and kept.any():
        note = f"without {sample.named(dominated)}"
        yield (
            "without dominated labels",
            note,
            _each(group, lambda s: s.part(labels=kept)),
        )
    if _covers(added, group):
        one_sample([added[arm][k] for arm in group for k in group[arm]])
        more = _each(group, lambda s: s.joined(added[s.arm][s.seed]))
        note = f"{len(_sample(more).y) - len(sample.y)} records added"
        yield "with sensitivity records", note, more
    if _covers(rounded, group):
        yield (
            "rounded to ADC units",
            "",
            {arm: {k: rounded[arm][k] for k in group[arm]} for arm in group},
        )


def _parts(group: Group) -> Alternatives:
    """Each seed; each age band and sex that has a label."""
    for seed in next(iter(group.values())):
        yield (
            f"seed {seed}",
            "",
            {arm: {seed: seeds[seed]} for arm, seeds in group.items()},
        )
    for _, name, mask in _sample(group).subgroups(AGES):
        part = _each(group, lambda s, mask=mask: s.part(records=mask))
        sample = _sample(part)
        if sample.labels.any():
            yield (
                name,
                f"{len(sample.names)} patients; labels {sample.named(sample.labels)}",
                part,
            )


def _covers(other: Group, group: Group) -> bool:
    return all(set(seeds) <= set(other.get(arm, ())) for arm, seeds in group.items())


def _sample(group: Group) -> Sample:
    return next(iter(next(iter(group.values())).values())).sample


def _each(group: Group, change: Callable[[ScoreSet], ScoreSet]) -> Group:
    """`change` of every set; one sample stays one sample, so that the sets remain paired."""
    changed = {
        arm: {k: change(s) for k, s in seeds.items()} for arm, seeds in group.items()
    }
    sample = _sample(changed)
    return {
        arm: {k: replace(s, sample=sample) for k, s in seeds.items()}
        for arm, seeds in changed.items()
    }


def _bootstrapped(
    sets: list[ScoreSet], resamples: int, confidence: float, seed: int = 0
) -> dict:
    sample, rng = sets[0].sample, np.random.default_rng(seed)
    drawn, redrawn = st.patient_resamples(sample.y, sample.patients, resamples, rng)
    each = [
        st.macro(st.resampled_auroc(sample.y, s.scores, sample.patients, drawn))
        for s in sets
    ]
    low, high = np.quantile(
        np.mean(each, axis=0), [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    limits = {"value": mean_macro(sets), "ci_low": low, "ci_high": high}
    return limits | {
        "variant": "percentile bootstrap of patients",
        "note": f"{redrawn} resamples redrawn",
    }
