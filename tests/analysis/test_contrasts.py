"""Factor effects of designs whose answers are known."""

import numpy as np
import pandas as pd
import pytest

from ecgstudy.analysis.contrasts import effect_weights, pull_and_push
from ecgstudy.pretraining.suffixes import factor_table


def test_a_two_by_two_design_gives_main_effects_and_the_difference_of_differences():
    factors = pd.DataFrame(
        {"pull": [0, 1, 0, 1], "push": [0, 0, 1, 1]}, index=list("abcd")
    ).astype(bool)
    outcome = np.array([0.1, 0.2, 0.4, 0.8])
    effects = effect_weights(factors) @ outcome
    assert effects.to_dict() == pytest.approx(
        {"pull": 0.25, "push": 0.45, "pull × push": 0.3}
    )


def test_effects_that_the_arms_cannot_tell_apart_are_left_out():
    factors = pd.DataFrame(
        {"a": [0, 1, 1], "b": [0, 1, 1], "c": [0, 0, 1], "d": [1, 1, 1]}
    ).astype(bool)
    assert list(effect_weights(factors).index) == ["c"]


def test_interactions_that_the_arms_cannot_tell_apart_share_a_row():
    arms = ["rocl", "rocl-ip", "rocl-debiased", "rocl-hn", "rocl-ip-hn"]
    effects = effect_weights(
        factor_table(arms)[["debiased", "inferior_positives", "hard_negatives"]]
    )
    both = "debiased × inferior_positives or inferior_positives × hard_negatives"
    assert list(effects.index) == [
        "debiased",
        "inferior_positives",
        "hard_negatives",
        both,
    ]
    outcome = np.array([0.50, 0.53, 0.52, 0.56, 0.61])
    assert effects.loc[both] @ outcome == pytest.approx((0.61 - 0.56) - (0.53 - 0.50))
    assert effects.loc["hard_negatives"] @ outcome == pytest.approx(0.56 - 0.52)


def test_pull_and_push_gather_schemes_and_leave_out_arms_with_other_factors():
    arms = ["simclr", "clef", "rocl", "rocl-ip", "rocl-hn", "rocl-ip-hn", "rocl-clef"]
    found = pull_and_push(factor_table([*arms, "rocl-debiased", "rocl-hn-shuffled"]))
    assert list(found.index) == arms
    assert found.astype(int).to_numpy().tolist() == [
        [0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1], [1, 0, 1],
    ]  # fmt: skip
    effects = list(effect_weights(found).index)
    assert effects == ["adversary", "pull", "push", "adversary × push", "pull × push"]
    assert pull_and_push(found.rename(columns={"pull": "own"})).empty
