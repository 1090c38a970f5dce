"""Other choices than the analysis makes, where scores leave nothing to estimate."""

import numpy as np
import pandas as pd
import pytest

from ecgstudy.analysis.scores import Scores, ScoreSet
from ecgstudy.analysis.sensitivity import sensitivity

N = 24


def score_set(arm, seed, scores):
    table = pd.DataFrame({"record": np.arange(N), "patient": np.arange(N) % 6})
    table["age"], table["sex"] = 60.0, "female"
    y = np.repeat([[1], [0]], N // 2, axis=0)
    table["y_N"], table["score_N"] = y, scores(y)
    place = {"attack": "ensemble", "view": "shared", "epsilon_mv": 0.02}
    place |= {"severity": None, "headline_mv": 0.02}
    return ScoreSet(
        "mitdb", arm, seed, "slf", "test", **place, masking_ok=True,
        table=table, classes=np.array(["N"]),
    )  # fmt: skip


def scored(scores):
    sets = [score_set(a, k, scores) for a in ("rocl", "rocl-ip") for k in (0, 1, 2)]
    return Scores(sets, {s.run: {} for s in sets})


@pytest.mark.parametrize("sign", [-1, 1])
def test_arms_at_the_floor_or_ceiling_have_no_interval(sign):
    at_the_end = scored(lambda y: 1.0 * sign * y)
    arms, pairs = sensitivity(at_the_end, 20, 0.95).values()
    assert set(arms["auroc"]) == {(1 + sign) / 2}
    assert set(pairs["delta"]) == {0}
    assert "percentile bootstrap of patients" in set(arms["variant"])
    assert arms["ci_low"].isna().all()
    assert pairs["ci_high"].isna().all()


def test_equal_scores_between_floor_and_ceiling_have_intervals():
    middle = scored(lambda y: np.arange(N)[:, None] % 5 + 0.0)
    arms = sensitivity(middle, 20, 0.95)["sensitivity"]
    rows = arms.set_index("variant")
    assert (rows.loc["primary analysis", "ci_low"] < rows["auroc"].max()).all()
    assert rows.loc["percentile bootstrap of patients", "ci_low"].notna().all()
