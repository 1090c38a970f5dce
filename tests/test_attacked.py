"""What the scores of a model under attack have to be."""

import pytest
import torch
from victims import ecgs, linear

from ecgstudy.attacks.problem import Victim
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.attacked import victim_scores
from ecgstudy.study import AttackOptions


def test_scores_that_are_not_finite_are_refused_before_any_attack():
    (signals, *_), (sound, _) = ecgs(), linear()
    assert victim_scores(sound, signals, AttackOptions()).isfinite().all()

    def diverged(x):
        scores = sound.model(x)
        scores[0, 1] = torch.inf
        return scores - scores[:, 1:2]

    victim = Victim(diverged, True, sound.features, sound.fs)
    with pytest.raises(StudyError, match="scores of 1 of 6 ECGs are not finite"):
        victim_scores(victim, signals, AttackOptions())
