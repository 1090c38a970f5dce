"""Effects of the arms' factors and their interactions, as linear combinations of the arms."""

from itertools import combinations

import numpy as np
import pandas as pd

KINDS = {"pull": ("inferior_positives",), "push": ("hard_negatives", "clinical_risk")}
"""Kind of weights → the schemes that are of it."""


def pull_and_push(factors: pd.DataFrame) -> pd.DataFrame:
    """The design in three factors: adversary, any adaptive pull weights, any adaptive push weights.

    Of arms that have no other factor; debiasing goes with hard negatives. Without rows if `factors`
    (`ecgstudy.pretraining.suffixes.factor_table`) has none of these schemes.
    """
    kinds = {
        kind: [name for name in names if name in factors]
        for kind, names in KINDS.items()
    }
    if not any(kinds.values()):
        return factors.iloc[:0]
    known = ["adversary", "debiased", *kinds["pull"], *kinds["push"]]
    debiased_alone = factors.get("debiased", False) & ~factors.get(
        "hard_negatives", False
    )
    plain = factors[
        ~factors.drop(columns=known, errors="ignore").any(axis=1) & ~debiased_alone
    ]
    coarse = {kind: plain[names].any(axis=1) for kind, names in kinds.items()}
    return pd.DataFrame({"adversary": plain["adversary"], **coarse})


def effect_weights(factors: pd.DataFrame) -> pd.DataFrame:
    """Least-squares factor effects (rows) as linear combinations of the arms' outcomes (columns).

    Factors are coded ±½, so an effect is the change from absent to present averaged over the factors it
    interacts with, and an interaction is a difference of differences. Pairwise interactions enter where
    the arms identify them, with the names of all that these arms cannot tell apart (main effects are then
    those beside the first named); main effects that they cannot tell apart are left out.

    `factors` are booleans, one row an arm, one column a factor; effects have names such as ``"pull × push"``.
    """
    terms = {"mean": np.ones(len(factors))} | {
        name: factors[name].to_numpy() - 0.5 for name in factors
    }
    terms = {name: np.asarray(column, dtype=float) for name, column in terms.items()}
    main, names = dict(terms), {name: name for name in terms}
    for a, b in combinations(factors, 2):
        name, column = f"{a} × {b}", terms[a] * terms[b]
        same = (
            k
            for k in terms
            if k not in main and _rank(main | {name: column - terms[k]}) == _rank(main)
        )
        if _rank(terms | {name: column}) > _rank(terms):
            terms[name], names[name] = column, name
        elif _rank(main | {name: column}) > _rank(main) and (twin := next(same, None)):
            names[twin] += f" or {name}"
    design = np.column_stack(list(terms.values()))
    inverse = np.linalg.pinv(design)
    estimable = np.isclose(inverse @ design, np.eye(len(terms)), atol=1e-8).all(axis=1)
    weights = pd.DataFrame(inverse, index=list(names.values()), columns=factors.index)
    return weights[estimable].drop(index="mean", errors="ignore")


def _rank(terms: dict[str, np.ndarray]) -> int:
    return int(np.linalg.matrix_rank(np.column_stack(list(terms.values()))))
