"""Signs of gradient masking: sound models pass every check, broken ones are caught."""

import pandas as pd
import pytest
import torch
from torch import Generator

from ecgstudy.attacked import Sample
from ecgstudy.attacks import get_attack
from ecgstudy.attacks.gradient import Budget, Victim
from ecgstudy.masking import masking_checks, zero_gradients
from ecgstudy.study import AttackOptions


def seeded(seed=0):
    return Generator().manual_seed(seed)


def checked(model, records=60, samples=40, options=None):
    """Verdicts of the masking checks on a model of two classes, labelled by its own clean scores."""
    options = options or AttackOptions(epsilons_mv=[0.02, 0.05, 0.1], batch_size=64, label_steps=10)
    victim = Victim(model, True)
    stream = seeded(4)
    signals = torch.randn(records, 1, samples, generator=stream)
    scores = victim.scores(signals)
    labels = (scores + 0.5 * scores.std() * torch.randn(scores.shape, generator=stream) > 0).float()
    sample = Sample(signals, labels, pd.DataFrame({"record": range(records)}), ("A", "B"))
    sample.store(scores, "none", "shared", 0.0)
    for epsilon in options.epsilons_mv:
        delta = get_attack("pgd-margin")(victim, signals, labels, Budget(epsilon, 20), seeded())
        sample.store(victim.scores(signals + delta), "pgd-margin", "shared", epsilon)
    checks = masking_checks(victim, sample, options, 0.05, seed=0)
    return {check["check"]: check for check in checks}


def linear_model(samples=40):
    weight = torch.randn(samples, 2, generator=seeded(7))
    return lambda x: x.flatten(1) @ weight


def test_a_sound_linear_model_passes_every_check():
    checks = checked(linear_model())
    assert {name: check["verdict"] for name, check in checks.items()} == dict.fromkeys(checks, "pass")
    assert checks["share of exactly zero input gradients"]["value"] == 0
    assert checks["per-label AUROC at 1 mV"]["value"] == 0


def test_a_quantised_input_is_caught_as_gradient_masking():
    sound = linear_model()
    checks = checked(lambda x: sound(torch.round(x / 0.5) * 0.5))
    assert checks["share of exactly zero input gradients"]["value"] == 1
    failed = {name for name, check in checks.items() if check["verdict"] == "fail"}
    assert {"share of exactly zero input gradients", "per-label AUROC at 1 mV"} <= failed


def test_a_model_that_noise_confuses_is_caught():
    sound = linear_model()
    checks = checked(lambda x: sound(torch.sin(200 * x)))  # 0.05 mV turn the sine by ten radians
    assert checks["change of AUROC under noise of the headline ε"]["verdict"] == "fail"


def test_an_attack_that_loses_strength_with_epsilon_is_caught():
    options = AttackOptions(epsilons_mv=[0.02, 0.05, 0.1])
    victim, labels = Victim(linear_model(), True), torch.tensor([[1.0, 0], [0, 1]] * 10)
    signals = torch.randn(20, 1, 40, generator=seeded())
    sample = Sample(signals, labels, pd.DataFrame({"record": range(20)}), ("A", "B"))
    right, wrong = labels + 0.1 * torch.randn(20, 2, generator=seeded(1)), -labels
    for epsilon, scores in zip((0.0, 0.02, 0.05, 0.1), (right, right, wrong, right), strict=True):
        sample.store(scores, "pgd-margin" if epsilon else "none", "shared", epsilon)
    check = masking_checks(victim, sample, options, 0.05, seed=0)[0]
    assert (check["value"], check["verdict"]) == (1.0, "fail")


def test_zero_gradients_are_counted_exactly():
    victim = Victim(lambda x: x[:, 0, :3] * torch.tensor([1.0, 2.0, 0.0]), True)  # sees 2 of 10 samples
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0]])
    assert zero_gradients(victim, torch.randn(3, 1, 10), labels) == pytest.approx(0.8)
