"""Attacks whose gradients are taken in bfloat16: as strong, never below their start,
scored in float32."""

from dataclasses import replace

import pytest
import torch
from test_robustness import SHORT, evaluated
from victims import seeded

from ecgstudy.attacks.api import Budget, Problem, Victim
from ecgstudy.attacks.gradient import apgd, pgd
from ecgstudy.attacks.named import get_attack, scores_problem
from ecgstudy.models.encoders import build_encoder, fold_batch_norms
from ecgstudy.models.heads import Classifier, zero_head
from ecgstudy.params import AttackOptions

BUDGET = Budget(0.1, steps=10)


@pytest.fixture(scope="module")
def network():
    """A small network with a random head, ECGs, and labels."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = build_encoder(
            "resnet1d",
            {"size": "small", "width": 8},
            torch.zeros(2),
            torch.ones(()),
            False,
        )
        head = zero_head(encoder.features, 3)
        torch.nn.init.normal_(head.weight)
        signals = torch.randn(12, 2, 200)
    model = Classifier(fold_batch_norms(encoder), head).eval().requires_grad_(False)
    labels = torch.eye(3)[torch.arange(12) % 3]
    return Victim(model, True, model.encoder, 100.0), signals, labels


@pytest.mark.parametrize("search", [pgd, apgd])
def test_short_gradients_reach_nearly_the_objective_of_long_ones(network, search):
    victim, signals, labels = network
    exact = scores_problem("margin", victim, signals, labels)
    short = scores_problem(
        "margin", replace(victim, gradients="bfloat16"), signals, labels
    )
    clean, *reached = (
        exact.values(delta, 12)
        for delta in (
            torch.zeros_like(signals),
            search(exact, BUDGET, seeded()),
            search(short, BUDGET, seeded()),
        )
    )
    long_, short_ = ((values - clean).mean() for values in reached)
    assert long_ > 0.05
    assert short_ > 0.97 * long_
    assert not torch.equal(*reached)  # it did take another path


def test_scores_do_not_depend_on_the_precision_of_gradients(network):
    victim, signals, _ = network
    short = replace(victim, gradients="bfloat16")
    with torch.no_grad():
        assert torch.equal(short.scores(signals), victim.scores(signals))
        rounded = (short.scores(signals) - victim.scores(signals)).abs().max()
    x = signals.clone().requires_grad_()
    found = short.scores(x)
    assert found.dtype == torch.float32
    assert (found.detach() - victim.scores(signals)).abs().max() > rounded == 0


@pytest.mark.parametrize("search", [pgd, apgd])
def test_a_search_misled_by_its_gradients_ends_where_it_began(network, search):
    victim, signals, labels = network
    honest = scores_problem("margin", victim, signals, labels)
    start = 0.05 * torch.randn(signals.shape, generator=seeded()).sign()

    def misleading(x, rows):
        values = honest.objective(x, rows)
        return 5 - values if torch.is_grad_enabled() else values

    found = search(
        Problem(signals, misleading, start, exact=False),
        replace(BUDGET, restarts=1),
        seeded(),
    )
    least = torch.maximum(
        honest.values(torch.zeros_like(signals), 12), honest.values(start, 12)
    )
    assert (honest.values(found, 12) >= least).all()


@pytest.mark.parametrize(
    "name", ["apgd-ce", "sap", "band-mid", "universal", "square", "label-free"]
)
def test_every_attack_takes_a_victim_with_short_gradients(network, name):
    victim, signals, labels = network
    delta = get_attack(name)(
        replace(victim, gradients="bfloat16"), signals, labels, BUDGET, seeded()
    )
    assert delta.dtype == torch.float32
    assert 0 < delta.abs().max() <= BUDGET.epsilon_mv * (1 + 1e-6)


def test_a_study_may_ask_for_short_gradients_and_says_so_only_then(tmp_path):
    assert "gradients" not in AttackOptions().model_dump()
    options = AttackOptions.model_validate(
        {**SHORT.model_dump(), "gradients": "bfloat16", "ensemble": ["pgd-ce"]}
    )
    assert options.model_dump()["gradients"] == "bfloat16"
    short = evaluated("simclr", tmp_path / "short", options=options)
    plain = options.model_copy(update={"gradients": "float32"})
    long_ = evaluated("simclr", tmp_path / "long", options=plain)
    clean = [
        s.scores[s.scores["attack"] == "none"].filter(like="score").to_numpy()
        for s in (short, long_)
    ]
    assert (clean[0] == clean[1]).all()
    assert short.summary["clean_all"] == long_.summary["clean_all"]
