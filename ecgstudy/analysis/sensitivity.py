"""The headline result under other choices than the analysis makes."""

import numpy as np
import pandas as pd

from ecgstudy import metrics
from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.columns import as_table
from ecgstudy.analysis.contrasts import (
    PRIMARY,
    combine,
    estimate_arm,
    group_scores,
    masking_flag,
    mean_macro,
    outcomes,
    pair_by_seed,
    subgroups,
)
from ecgstudy.analysis.scores import Scores


def sensitivity(
    scores: Scores, resamples: int, confidence: float
) -> dict[str, pd.DataFrame]:
    """Clean and headline results under other choices.

    Parameters
    ----------
    scores : Scores
        Of `read_scores`.
    resamples : int
        Of the percentile bootstrap of patients.
    confidence : float
        Level of the intervals.

    Returns
    -------
    dict
        ``sensitivity``: each arm's AUROC; ``contrast_sensitivity``: the planned
        contrasts, by seed, age and sex too.
    """
    arms, contrasts = [], []
    for place, group in group_scores(scores).items():
        if not (place.attack == "none" or place.is_headline):
            continue
        for arm in group:
            sets = pair_by_seed(group, [arm])
            where = {**place._asdict(), "arm": arm, "masking_ok": masking_flag(*sets)}
            rows = [
                {"variant": name, "note": note, **estimate_arm(*chosen, confidence)}
                for name, note, chosen in _choices(scores, sets)
            ]
            rows.insert(1, _bootstrap(*sets, resamples, confidence))
            rows += _leave_out(sets, [1], "auroc")
            whole = [scores.evaluations[s.run].get("clean_all") for s in sets[0]]
            if place.attack == "none" and all(whole):
                mean = np.mean([clean["macro"] for clean in whole])
                rows.append({"variant": "all test records", "auroc": mean})
            arms += [{**row, **where} for row in rows]
        for adaptive, standard in PRIMARY.items():
            sets = pair_by_seed(group, [adaptive, standard])
            if not sets.size:
                continue
            where = {**place._asdict(), "adaptive": adaptive, "standard": standard}
            where["masking_ok"] = masking_flag(sets.ravel())
            rows = [
                {"variant": name, "note": note, **combine(chosen, [1, -1], confidence)}
                for name, note, chosen in [*_choices(scores, sets), *_parts(sets)]
            ]
            rows += _leave_out(sets, [1, -1], "delta")
            contrasts += [{**row, **where} for row in rows]
    return {
        "sensitivity": as_table("sensitivity", arms),
        "contrast_sensitivity": as_table("contrast_sensitivity", contrasts),
    }


def _choices(scores, sets):
    """Name, note and score sets of each choice; the analysis itself is the first."""
    yield "primary analysis", "", sets
    sample = sets[0, 0]
    dominated = sample.labels & (sample.shares > st.DOMINANCE)
    kept = sample.labels & ~dominated
    if dominated.any() and kept.any():
        part = _each(sets, lambda s: s.part(labels=kept))
        yield "without dominated labels", f"without {sample.named(dominated)}", part

    def more(s):
        return scores.other(s, split="sensitivity")

    if all(map(more, sets.flat)):
        note = f"{len(more(sample).table)} records added"
        joined = _each(sets, lambda s: s.joined(more(s)))
        yield "with sensitivity records", note, joined
    rounded = _each(sets, lambda s: scores.other(s, attack=f"{s.attack}-adc"))
    if all(rounded.flat):
        yield "rounded to ADC units", "", rounded


def _parts(sets):
    """The same of each seed; each age band and sex that defines a label."""
    for column in sets.T:
        yield f"seed {column[0].seed}", "", column[:, None]
    for _, name, mask in subgroups(sets[0, 0]):
        part = _each(sets, lambda s, mask=mask: s.part(mask))
        sample = part[0, 0]
        if sample.labels.any():
            labels = sample.named(sample.labels)
            yield name, f"{len(sample.names)} patients; labels {labels}", part


def _each(sets, change):
    return np.frompyfunc(change, 1, 1)(sets)


def _leave_out(sets, weights, column):
    """The lowest and the highest estimate that leaving one patient out gives."""
    left_out = np.array(weights) @ outcomes(sets)[1].mean(axis=1)
    ends = {"lowest": left_out.argmin(), "highest": left_out.argmax()}
    for end, index in ends.items():
        variant = f"one patient left out, {end}"
        note = f"without {sets[0, 0].names[index]}"
        yield {"variant": variant, "note": note, column: left_out[index]}


def _bootstrap(sets, resamples, confidence):
    y, patients = sets[0].y, sets[0].patients
    rng = np.random.default_rng(0)
    drawn, redrawn = st.draw_patients(y, patients, resamples, rng)
    each = [
        metrics.macro(metrics.resampled_auroc(y, s.scores, patients, drawn))
        for s in sets
    ]
    row = {
        "variant": "percentile bootstrap of patients",
        "note": f"{redrawn} resamples redrawn",
        "auroc": mean_macro(sets),
    }
    if 0 < row["auroc"] < 1:  # at the floor or ceiling there is no interval
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        row["ci_low"], row["ci_high"] = np.quantile(np.mean(each, axis=0), ends)
    return row
