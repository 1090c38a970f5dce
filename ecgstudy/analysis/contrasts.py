"""Arms compared: sets of scores by place, paired differences, factor effects."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pandas as pd

from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.scores import Place, Scores, ScoreSet
from ecgstudy.errors import StudyError

PRIMARY = {arm: "rocl" for arm in ("rocl-ip", "rocl-hn", "rocl-ip-hn", "rocl-clef")}
"""The planned comparisons (adaptive → standard); all others are exploratory."""
SUBGROUPS = {"age": ["<50", "50–69", "≥70"], "sex": ["female", "male"]}

Sets = np.ndarray | Sequence[ScoreSet]
"""Score sets of one place: (arms, seeds), or those of one arm."""


def group_scores(
    scores: Scores, split: str = "test", **wanted: object
) -> dict[Place, pd.DataFrame]:
    """Score sets by place: tables with a row per seed and a column per arm.

    Data sets and arms are in the order of the study. There is one δ per record for
    all its labels.

    Parameters
    ----------
    scores : Scores
        Of `read_scores`.
    split : str
        Which records.
    **wanted
        Attributes that the sets must have, such as ``attack="none"``.
    """
    groups: dict[Place, dict] = {}
    for s in scores.select(split, **wanted):
        groups.setdefault(s.place, {}).setdefault(s.arm, {})[s.seed] = s
    order = list(dict.fromkeys(place[:2] for place in groups))

    def rank(place):
        where = order.index(place[:2])
        return where, place.attack, place.epsilon_mv, place.severity or 0

    return {p: pd.DataFrame(groups[p]).sort_index() for p in sorted(groups, key=rank)}


def mean_macro(sets: Sets) -> float:
    """Mean macro AUROC; NaN of none."""
    return float(np.mean([s.macro for s in sets])) if len(sets) else np.nan


def masking_flag(sets: Sets) -> bool | None:
    """Whether all models passed their masking checks; None: unknown, not applicable."""
    flags = [s.masking_ok for s in sets]
    if False in flags:
        return False
    return None if None in flags else True


def subgroups(s: ScoreSet) -> Iterator[tuple[str, str, np.ndarray]]:
    """(kind, name, mask of records) of every age band and sex that occurs."""
    ages = s.table["age"].astype(float)
    bands = pd.cut(ages, [0, 50, 70, np.inf], right=False, labels=SUBGROUPS["age"])
    for kind, found in {"age": bands, "sex": s.table["sex"]}.items():
        for name in SUBGROUPS[kind]:
            mask = found.eq(name).to_numpy()
            if mask.any():
                yield kind, name, mask


def pair_by_seed(group: pd.DataFrame, arms: Iterable[str]) -> Sets:
    """The sets of `arms` at the seeds that all of them have, maybe none."""
    return group.reindex(columns=list(arms)).dropna().T.to_numpy()


def require_one_sample(sets: Sets) -> ScoreSet:
    """The first of `sets`, which all hold the same records and labels.

    Raises
    ------
    StudyError
        Naming the set that scored other records.
    """
    first = sets[0]
    for s in sets:
        if not (
            np.array_equal(s.table["record"], first.table["record"])
            and np.array_equal(s.y, first.y)
        ):
            raise StudyError(
                f"{s.dataset}, {s.attack}: {s.arm} seed {s.seed} scored other records"
                f" than {first.arm} seed {first.seed} (or in another order);"
                " evaluate both on the same sample"
            )
    return first


def outcomes(sets: Sets) -> tuple[np.ndarray, np.ndarray]:
    """Macro AUROC (arms, seeds), and without each patient (arms, seeds, patients)."""
    macro = np.array([[s.macro for s in row] for row in sets])
    left_out = np.array([[s.left_out for s in row] for row in sets])
    return macro, left_out


def estimate_arm(sets: Sets, confidence: float) -> dict:
    """Macro AUROC of one arm's seeds as columns `auroc`, `ci_low`, `ci_high`."""
    sample = require_one_sample(sets)
    macro, left_out = outcomes([sets])
    low, high = st.arm_interval(macro[0], left_out[0], sample.df, confidence)
    return {"auroc": mean_macro(sets), "ci_low": low, "ci_high": high}


def combine(sets: Sets, weights: Sequence[float], confidence: float) -> dict:
    """A linear combination of arms, as columns of a table.

    Parameters
    ----------
    sets : np.ndarray
        (arms, seeds) of `pair_by_seed`, not empty.
    weights : sequence of float
        (arms,): (1, −1) is a contrast.
    confidence : float
        Level of the intervals.

    Returns
    -------
    dict
        Estimate (`delta`), intervals and what they come from, seeds, number of records,
        masking flag.
    """
    sample = require_one_sample(sets.ravel())
    found = st.combine_arms(*outcomes(sets), np.array(weights), sample.df, confidence)
    return {
        **asdict(found),
        "delta": found.value,
        "masking_ok": masking_flag(sets.ravel()),
        "seed_list": " ".join(str(s.seed) for s in sets[0]),
        "n_records": len(sample.table),
    }


# --- Factor effects -------------------------------------------------------------------

SCHEMES = ["inferior_positives", "hard_negatives", "clinical_risk"]


def pull_and_push(factors: pd.DataFrame) -> pd.DataFrame:
    """The design in three factors: adversary, any pull weights, any push weights.

    Of arms that have no other factor; debiasing goes with hard negatives. `factors` are
    booleans, one row an arm; without any of these schemes there are no rows.
    """
    if not factors.columns.isin(SCHEMES).any():
        return factors.iloc[:0]
    columns = ["adversary", "debiased", *SCHEMES]
    others = factors.drop(columns=columns, errors="ignore").any(axis=1)
    known = factors.reindex(columns=columns, fill_value=False)
    plain = known[~others & ~(known["debiased"] & ~known["hard_negatives"])]
    push = plain["hard_negatives"] | plain["clinical_risk"]
    design = {"adversary": plain["adversary"], "pull": plain["inferior_positives"]}
    return pd.DataFrame({**design, "push": push})


def effect_weights(factors: pd.DataFrame) -> pd.DataFrame:
    """Least-squares factor effects (rows) as linear combinations of arms (columns).

    Factors are coded ±½: an effect is the change from absent to present averaged over
    the factors it interacts with, an interaction a difference of differences. Pairwise
    interactions enter where the arms identify them, under the names of all that these
    arms cannot tell apart (main effects are then those beside the first named); main
    effects that they cannot tell apart are left out.

    `factors` are booleans, one row an arm; effects have names such as ``"pull ×
    push"``.
    """
    design = factors - 0.5
    design.insert(0, "mean", 1.0)
    main = list(design)
    for a, b in combinations(factors, 2):
        name, column = f"{a} × {b}", design[a] * design[b]
        if _adds(design, column):
            design[name] = column
        elif _adds(design[main], column):
            # Identified only together with one that has entered: they share its row.
            for other in design.columns.drop(main):
                if not _adds(design[main], column - design[other]):
                    design = design.rename(columns={other: f"{other} or {name}"})
                    break
    inverse = np.linalg.pinv(design)
    identity = np.eye(design.shape[1])
    estimable = np.isclose(inverse @ design, identity, atol=1e-8).all(axis=1)
    weights = pd.DataFrame(inverse, index=design.columns, columns=factors.index)
    return weights[estimable].drop(index="mean", errors="ignore")


def _adds(design, column):
    """Whether `column` is no linear combination of those of `design`."""
    rank = np.linalg.matrix_rank
    return rank(np.column_stack([design, column])) > rank(design)
