"""What the scores of a model under attack have to be."""

from dataclasses import replace

import pytest
import torch
from victims import as_records, attack_run, ecgs, linear

from ecgstudy.attacks.api import Victim
from ecgstudy.errors import StudyError
from ecgstudy.study import AttackOptions


def test_scores_that_are_not_finite_are_refused_before_any_attack():
    (signals, labels), (sound, _) = ecgs(), linear()
    records = as_records(signals, labels)
    one = attack_run(sound, records, AttackOptions())
    assert one.score(signals).isfinite().all()

    def diverged(x):
        scores = sound.model(x)
        scores[0, 1] = torch.inf
        return scores - scores[:, 1:2]

    victim = Victim(diverged, True, sound.features, sound.fs)
    with pytest.raises(StudyError, match="scores of 1 of 6 ECGs are not finite"):
        attack_run(victim, records, AttackOptions()).score_clean()


@pytest.mark.parametrize(
    "attacks", [["apgd-margin", "pgd-ce"], ["apgd-ce", "square", "label-free"]]
)
def test_the_unchanged_ecgs_are_shown_to_the_model_once(attacks):
    (signals, labels), (model, _) = ecgs(), linear()
    seen = []

    def watched(x):
        seen.append(torch.equal(x, signals))
        return model.model(x)

    options = AttackOptions(steps=2, label_steps=2, queries=2)
    victim = replace(model, model=watched, fs=100.0)
    one = attack_run(victim, as_records(signals, labels), options)
    one.score_clean()
    deltas = {name: one.attack(name, 0.1) for name in attacks}
    one.attack_labels(one.combine(deltas, 0.1), attacks, 0.1)
    assert sum(seen) == 1 < len(seen)
