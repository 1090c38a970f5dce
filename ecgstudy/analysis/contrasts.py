"""Score sets by data set, protocol and attack, and linear combinations of their arms."""

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np

from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.scores import Sample, Scores, ScoreSet
from ecgstudy.errors import StudyError
from ecgstudy.params import target

PRIMARY = {arm: "rocl" for arm in ("rocl-ip", "rocl-hn", "rocl-ip-hn", "rocl-clef")}
"""The pre-specified comparisons (adaptive → standard); all others are exploratory."""
AGES = {"<50": (0, 50), "50–69": (50, 70), "≥70": (70, np.inf)}
WHERE = ["dataset", "protocol", "attack", "epsilon_mv"]

Group = dict[str, dict[int, ScoreSet]]
"""arm → seed → the score set, all under one attack at one ε."""


def grouped(
    scores: Scores, split: str = "test", view: str = "shared", **wanted: object
) -> dict[tuple, Group]:
    """(data set, protocol, attack, ε, severity) → arm → seed → set; runs keep the order of the study."""
    groups: dict[tuple, Group] = {}
    for s in scores.select(split, view, **wanted):
        key = s.dataset, s.protocol, s.attack, s.epsilon_mv, s.severity
        groups.setdefault(key, {}).setdefault(s.arm, {})[s.seed] = s
    places = list(dict.fromkeys(key[:2] for key in groups))
    return dict(
        sorted(
            groups.items(),
            key=lambda kv: (places.index(kv[0][:2]), *kv[0][2:4], kv[0][4] or 0),
        )
    )


def place(key: tuple) -> dict:
    """Columns of a key of `grouped`."""
    return dict(zip([*WHERE, "severity"], key, strict=True))


def is_headline(key: tuple, headline: dict[str, float], attack: str) -> bool:
    """Whether a key is the headline attack at the headline ε (mV) of the data set tested on."""
    return key[2] == attack and key[3] == headline.get(target(*key[:2]))


def mean_macro(sets: list[ScoreSet]) -> float:
    """Mean macro AUROC; NaN of none."""
    return float(np.mean([s.macro for s in sets])) if sets else np.nan


def masking_flag(sets: list[ScoreSet]) -> bool | None:
    """Whether all models passed their masking checks; None where that is unknown or not applicable."""
    flags = [s.masking_ok for s in sets]
    return False if False in flags else None if None in flags else True


def paired(
    group: Group, arms: Iterable[str], seeds: list[int] | None = None
) -> list[list[ScoreSet]]:
    """The sets of `arms` (rows) at the seeds that all have (columns); empty where there is none."""
    arms = list(arms)
    common = seeds or sorted(
        set.intersection(*(set(group.get(arm, ())) for arm in arms))
    )
    sets = [[group[arm][seed] for seed in common] for arm in arms]
    if common:
        one_sample([s for row in sets for s in row])
    return sets if common else []


def outcomes(sets: list[list[ScoreSet]]) -> tuple[np.ndarray, np.ndarray]:
    """Macro AUROC (arms, seeds), and without each patient (arms, seeds, patients), of `paired` sets."""
    values = [
        [[getattr(s, name) for s in row] for row in sets]
        for name in ("macro", "left_out")
    ]
    return np.array(values[0]), np.array(values[1])


def combined(
    group: Group,
    weights: dict[str, float],
    confidence: float,
    seeds: list[int] | None = None,
) -> tuple[dict, list[ScoreSet]] | None:
    """Columns (estimate, interval, masking flag) of a linear combination of arms over their common seeds.

    With the sets it used; None where an arm is missing or no seed is common.
    """
    if not (sets := paired(group, weights, seeds)):
        return None
    factors, flat = np.array(list(weights.values())), [s for row in sets for s in row]
    found = asdict(
        st.combination_t(*outcomes(sets), factors, flat[0].sample.df, confidence)
    )
    return {
        "delta": found.pop("value"),
        **found,
        "masking_ok": masking_flag(flat),
    }, flat


def one_sample(sets: list[ScoreSet]) -> Sample:
    """The sample that all `sets` share.

    Raises
    ------
    StudyError
        Naming the set that scored other records.
    """
    for s in sets:
        if s.sample is not sets[0].sample:
            raise StudyError(
                f"{s.dataset}, {s.attack}: {s.arm} seed {s.seed} scored other records than {sets[0].arm} seed"
                f" {sets[0].seed} (or in another order); evaluate both on the same sample"
            )
    return sets[0].sample
