"""What a study's planned tests say: better, worse, equivalent, or undecided.

A study has one primary family: the planned comparisons (`contrasts.PRIMARY`) in robust
AUROC at the headline ε and in clean AUROC, together. All adjustments are over this
family; none is made across studies.
"""

import numpy as np
import pandas as pd

from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.columns import as_table

MARGIN = 0.01
"""Differences of macro AUROC within ±0.01 count as equal.

Set after the pilot and before any score of later studies: a small part of what
adversarial pretraining gives (0.23), and below the spread of single seeds.
"""
MARGINS = (0.005, MARGIN, 0.02)
"""Margins that verdicts are shown for; `MARGIN` is the planned one."""


def decide(
    delta: float,
    p_holm: float,
    p_equivalence_holm: float,
    beyond_seeds: bool,
    margin: float = MARGIN,
    level: float = 0.05,
) -> str:
    """The verdict on one comparison, in words.

    Parameters
    ----------
    delta : float
        Difference of macro AUROC.
    p_holm : float
        Two-sided p of no difference, adjusted over the family.
    p_equivalence_holm : float
        p of two one-sided tests for ±`margin`, adjusted over the family.
    beyond_seeds : bool
        Whether there are at least `statistics.MIN_SEEDS` seeds.
    margin, level : float
        Half-width of what counts as equal; level of the tests.

    Returns
    -------
    str
        ``"better"``, ``"worse"``, either with ``", by less than <margin>"``,
        ``"equivalent"``, ``"undecided"`` or ``"no claim"``.
    """
    if not beyond_seeds:
        return "no claim"
    equivalent = p_equivalence_holm <= level  # False where p is not known
    if p_holm <= level:
        word = "better" if delta > 0 else "worse"
        return f"{word}, by less than {margin:g}" if equivalent else word
    return "equivalent" if equivalent else "undecided"


def adjust_family(contrasts: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """``contrasts`` with what its primary rows say together.

    `p_holm` is Holm's adjusted p; `joint_low` and `joint_high` are intervals that hold
    with `confidence` all at once (Bonferroni); `mde` is what Holm's first step finds
    with 80 % power, at most 1, the largest difference of two AUROCs.
    """
    table = contrasts.copy()
    family = table[table["family"] == "primary"]
    table.loc[family.index, "p_holm"] = st.holm(family["p"].to_numpy(float))
    tested = family[family["se"] > 0]
    level = 1 - (1 - confidence) / max(1, len(tested))
    for row in tested.itertuples():
        t = st.MixedT(row.df, row.heavy, row.seeds)
        half, mde = t.critical(level) * row.se, t.detectable(level) * row.se
        found = np.clip([row.delta - half, row.delta + half, mde], -1, 1)
        table.loc[row.Index, ["joint_low", "joint_high", "mde"]] = found
    return table


def judge_family(contrasts: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Verdicts on the primary rows of `contrasts`: a row per margin and comparison.

    Parameters
    ----------
    contrasts : pd.DataFrame
        ``contrasts.csv``, of `adjust_family`.
    confidence : float
        1 − the level of the tests.
    """
    family = contrasts[contrasts["family"] == "primary"]
    family = family.assign(
        measure=np.where(family["attack"] == "none", "clean", "robust")
    )
    rows = []
    for margin in MARGINS:
        tests = family.assign(margin=margin)
        tests["p_equivalence"] = [
            st.equivalence_p(
                row.delta, row.se, st.MixedT(row.df, row.heavy, row.seeds), margin
            )
            for row in family.itertuples()
        ]
        tests["p_equivalence_holm"] = st.holm(tests["p_equivalence"])
        given = ["delta", "p_holm", "p_equivalence_holm", "beyond_seeds", "margin"]
        known = tests[given].itertuples(index=False)
        tests["verdict"] = [decide(*row, level=1 - confidence) for row in known]
        rows += tests.to_dict("records")
    return as_table("verdicts", rows)


def in_words(verdicts: pd.DataFrame) -> dict[str, str]:
    """Data set → the verdicts on its planned tests in plain words, for `MARGIN`.

    † marks arms that may mask their gradients. `verdicts` is of `judge_family`, or
    ``verdicts.csv``.
    """
    planned = verdicts[verdicts["margin"] == MARGIN]
    return {
        dataset: _sentences(rows)
        for dataset, rows in planned.groupby("dataset", sort=False)
    }


def _sentences(rows):
    standard = _listed(rows["standard"].unique())
    if (rows["verdict"] == "no claim").all():
        return (
            f"No claim: {rows['seeds'].min()} seeds are too few to compare with"
            f" {standard}; at least {st.MIN_SEEDS} are needed."
        )
    said = []
    for measure, tests in rows.groupby("measure", sort=False):
        failed = tests["masking_ok"].astype(str) == "False"
        arms = tests["adaptive"] + failed.map({True: " †", False: ""})
        by = arms.groupby(tests["verdict"], sort=False)
        found = "; ".join(f"{verdict}: {_listed(names)}" for verdict, names in by)
        said.append(f"{measure.capitalize()} AUROC against {standard}: {found}.")
    return " ".join(said)


def _listed(names):
    """“a, b and c”."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
