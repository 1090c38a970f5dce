"""Signs of gradient masking: sound models pass every check, broken ones are caught."""

import pytest
import torch
from torch import Generator, nn
from victims import as_records, attack_run

from ecgstudy.attacks.api import Victim
from ecgstudy.evaluation.masking import check_masking, zero_gradients
from ecgstudy.study import ENSEMBLE, AttackOptions

OPTIONS = AttackOptions(
    epsilons_mv=[0.02, 0.05, 0.1],
    ensemble=["apgd-ce", "apgd-margin"],
    attacks=["square"],
    steps=20,
    label_steps=20,
    batch_size=64,
    queries=200,
    query_records=30,
    check_steps=30,
    check_restarts=2,
    check_records=30,
)
NOISE, ZERO = (
    "change of AUROC under noise of the headline ε",
    "share of records without input gradient",
)
EXTREME, RISE = "per-label AUROC at 1 mV", "largest rise of AUROC with ε"
BLIND, LONGER = (
    "gain of black-box over gradient attacks",
    "gain of PGD-30 with 2 restarts over the ensemble",
)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def checked(model, records=60, samples=40, multilabel=True, options=OPTIONS):
    """The masking checks of a model, labelled by its own clean scores with some
    noise."""
    victim, stream = Victim(model, multilabel), seeded(4)
    signals = torch.randn(records, 1, samples, generator=stream)
    scores = victim.scores(signals)
    noisy = scores + 0.5 * scores.std() * torch.randn(scores.shape, generator=stream)
    labels = (noisy > noisy.median(0).values).float()
    if not multilabel:
        labels = nn.functional.one_hot(noisy.argmax(1), scores.shape[1]).float()
    records = as_records(signals, labels, ("I",), multilabel)
    one = attack_run(victim, records, options)
    one.score_clean()
    for epsilon_mv in options.epsilons_mv:
        names = one.names(further=epsilon_mv == 0.05)
        one.combine({name: one.attack(name, epsilon_mv) for name in names}, epsilon_mv)
    return {check["check"]: check for check in check_masking(one, 0.05, seed=0)}


def failed(checks):
    return {name for name, check in checks.items() if check["verdict"] == "fail"}


def linear_model(samples=40, classes=2):
    weight = torch.randn(samples, classes, generator=seeded(7))
    return lambda x: x.flatten(1) @ weight


def small_network(classes=3):
    torch.manual_seed(3)
    layers = (
        nn.Conv1d(1, 8, 5),
        nn.ReLU(),
        nn.Conv1d(8, 8, 5),
        nn.ReLU(),
        nn.Flatten(),
    )
    return (
        nn.Sequential(*layers, nn.Linear(8 * 32, classes)).eval().requires_grad_(False)
    )


def test_a_sound_linear_model_passes_every_check():
    checks = checked(linear_model())
    assert not failed(checks)
    assert sum(check["limit"] is not None for check in checks.values()) == 6
    assert checks[ZERO]["value"] == 0
    assert checks[EXTREME]["value"] == 0


@pytest.mark.parametrize("multilabel", [True, False])
def test_an_undefended_network_passes_every_check(multilabel):
    assert not failed(checked(small_network(), multilabel=multilabel))


def test_a_robust_model_passes_every_check():
    """One that looks at a wide average only: its AUROC hardly falls, and yet it hides
    nothing."""

    slow = torch.stack([torch.ones(40), torch.linspace(-1, 1, 40)], 1)
    assert not failed(checked(lambda x: x.flatten(1) @ slow))


def test_a_quantised_input_is_caught_as_gradient_masking():
    sound = linear_model()
    checks = checked(lambda x: sound(torch.round(x / 0.5) * 0.5))
    assert checks[ZERO]["value"] == 1
    assert {ZERO, EXTREME} <= failed(checks)


def test_a_finely_quantised_input_is_caught_by_the_attack_that_needs_no_gradient():
    sound = linear_model()
    checks = checked(lambda x: sound(torch.round(x / 0.01) * 0.01))
    assert {ZERO, BLIND} <= failed(checks)


def test_a_saturated_head_is_caught():
    """Its scores stay within ±1 by a function so steep that float32 has no slope left
    for most records."""
    sound = linear_model()
    checks = checked(lambda x: torch.tanh(20 * sound(x)) + 1e-3 * sound(x).detach())
    assert {ZERO, BLIND} <= failed(checks)


def test_a_model_that_noise_confuses_is_caught():
    sound = linear_model()
    checks = checked(
        lambda x: sound(torch.sin(200 * x))
    )  # 0.05 mV turn the sine by ten radians
    assert checks[NOISE]["verdict"] == "fail"


def test_a_short_attack_is_caught_by_the_longer_one():
    hard = small_network()
    options = OPTIONS.model_copy(update={"ensemble": ["fgsm"], "attacks": ["noise"]})
    checks = checked(lambda x: hard(torch.sin(20 * x)), options=options)
    assert LONGER in failed(checks)


def test_an_attack_that_loses_strength_with_epsilon_is_caught():
    options = OPTIONS.model_copy(update={"ensemble": ["fgsm"], "attacks": []})
    victim, labels = Victim(linear_model(), True), torch.tensor([[1.0, 0], [0, 1]] * 10)
    signals = torch.randn(20, 1, 40, generator=seeded())
    one = attack_run(victim, as_records(signals, labels, ("I",)), options)
    right, wrong = labels + 0.1 * torch.randn(20, 2, generator=seeded(1)), -labels
    one.stored["none", "shared", 0.0, None] = right
    for epsilon, scores in ((0.02, right), (0.05, wrong), (0.1, right)):
        for attack in (ENSEMBLE, "fgsm"):
            one.stored[attack, "shared", epsilon, None] = scores
    # Not run at every ε, so it does not count.
    one.stored["pgd-margin", "shared", 0.1, None] = wrong
    check = check_masking(one, 0.05, seed=0)[0]
    assert (check["check"], check["value"], check["verdict"]) == (RISE, 1.0, "fail")


def test_attacks_on_some_leads_are_judged_as_what_they_are():
    options = OPTIONS.model_copy(
        update={"attacks": ["square[I]", "noise[I]", "pgd-margin[I]", "pgd-l2"]}
    )
    checks = checked(small_network(), options=options)
    assert checks[BLIND]["verdict"] == "pass"


def test_zero_gradients_are_counted_exactly():
    def model(
        x,
    ):  # sees 2 of 10 samples, and nothing of records whose last sample is negative
        return x[:, 0, :3] * torch.tensor([1.0, 2.0, 0.0]) * (x[:, 0, -1:] > 0)

    signals = torch.ones(4, 1, 10)
    signals[2, 0, -1] = -1
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    records = as_records(signals, labels, ("I",))
    options = OPTIONS.model_copy(update={"batch_size": 3})
    records, samples = zero_gradients(attack_run(Victim(model, True), records, options))
    assert records == pytest.approx(1 / 4)
    assert samples == pytest.approx((3 * 8 + 10) / 40)
