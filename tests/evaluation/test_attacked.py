"""What the scores of a model under attack have to be."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from victims import ecgs, linear

from ecgstudy.attacks.api import Victim
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.sample import Attacker, Sample, StepCounter, victim_scores
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


@pytest.mark.parametrize(
    "attacks", [["apgd-margin", "pgd-ce"], ["apgd-ce", "square", "label-free"]]
)
def test_the_unchanged_ecgs_are_shown_to_the_model_once(attacks):
    (signals, labels), (model, _) = ecgs(), linear()
    seen = []
    victim = replace(
        model,
        model=lambda x: seen.append(torch.equal(x, signals)) or model.model(x),
        fs=100.0,
    )
    columns = pd.DataFrame({"record": [str(i) for i in range(len(signals))]})
    sample = Sample(signals, labels, columns, tuple("ABCD"[: labels.shape[1]]))
    at = Attacker(
        victim,
        sample,
        AttackOptions(steps=2, label_steps=2, queries=2),
        ("test",),
        StepCounter(),
    )
    at.clean()
    at.epsilon(0.1, attacks, label_view=True, adc_mv=None)
    assert sum(seen) == 1 < len(seen)
