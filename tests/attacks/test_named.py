"""What every attack keeps to, and PGD and APGD against closed forms and fine grids."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from sklearn.metrics import roc_auc_score
from torch import nn
from victims import curved, ecgs, linear, seeded

from ecgstudy.attacks.api import Budget, Problem, Victim
from ecgstudy.attacks.ball import Ball
from ecgstudy.attacks.gradient import apgd, pgd
from ecgstudy.attacks.named import ATTACKS, get_attack, scores_problem
from ecgstudy.attacks.objectives import (
    OBJECTIVES,
    auroc_targets,
    label_targets,
    signed_scores,
)
from ecgstudy.attacks.square import square
from ecgstudy.errors import StudyError

CLASSES, NORMS = 4, ["linf", "l2"]
SINGLE_LABEL = {"apgd-dlr", "apgd-dlr-targeted"}
"""Attacks that need one true class a record."""
ONE_SHAPE = {"square", "sap", "band-low", "band-mid", "band-high", "universal"}
"""Attacks of the ℓ∞ ball alone."""


def norm_of(name, norm="linf"):
    return "l2" if name.endswith("-l2") else norm


def size_of(delta, norm, free):
    """Largest amplitude of each record, or root mean square over the samples that may
    change."""
    if norm == "linf":
        return delta.abs().amax((1, 2))
    return (delta.square().sum((1, 2)) / free.sum((1, 2)).clamp(min=1)).sqrt()


def prey(records=6, leads=2, samples=40, multilabel=False, seed=1):
    """A curved victim of four classes, signals in mV, and labels."""
    victim = replace(curved(leads, samples, CLASSES, seed=seed), multilabel=multilabel)
    signals, labels = ecgs(records, leads, samples, CLASSES, seed)
    return (
        victim,
        signals,
        labels if multilabel else torch.eye(CLASSES)[torch.arange(records) % CLASSES],
    )


# ---- every attack --------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    name=some.sampled_from(sorted(ATTACKS)),
    shape=some.tuples(some.integers(1, 5), some.integers(1, 12), some.integers(20, 45)),
    epsilon=some.floats(1e-3, 3),
    norm=some.sampled_from(NORMS),
    steps=some.integers(1, 3),
    restarts=some.integers(1, 2),
    step=some.one_of(some.none(), some.floats(0.01, 5)),
    queries=some.integers(0, 6),
    batch_size=some.integers(1, 8),
    masked=some.sampled_from(
        [None, "leads", "padding", "samples", "records", "everything"]
    ),
    multilabel=some.booleans(),
    seed=some.integers(0, 1000),
)
def test_every_attack_stays_in_its_set_repeats_and_leaves_all_else_alone(
    name,
    shape,
    epsilon,
    norm,
    steps,
    restarts,
    step,
    queries,
    batch_size,
    masked,
    multilabel,
    seed,
):
    records, leads, samples = shape
    multilabel, norm = (
        multilabel and name not in SINGLE_LABEL,
        "linf" if name in ONE_SHAPE else norm,
    )
    victim, signals, labels = prey(*shape, multilabel, seed)
    sizes = {
        "leads": (leads, 1),
        "samples": (1, 1, samples),
        "records": (records, 1, 1),
        "everything": (1,),
    }
    mask = (torch.rand(sizes.get(masked, (1,)), generator=seeded(seed)) < 0.5).float()
    mask = {
        None: torch.ones(1),
        "padding": (torch.arange(samples) < samples // 2 + 1).float(),
    }.get(masked, mask)
    budget = Budget(
        epsilon,
        steps,
        restarts,
        step,
        batch_size,
        norm,
        None if masked is None else mask,
        queries,
    )
    before, state = [x.clone() for x in (signals, labels, mask)], torch.get_rng_state()
    delta, again = (
        get_attack(name)(victim, signals, labels, budget, seeded(seed))
        for _ in range(2)
    )

    assert delta.shape == signals.shape
    assert delta.dtype == signals.dtype
    assert delta.isfinite().all()
    assert not delta.requires_grad
    free = mask.expand(shape)
    assert (delta * (1 - free) == 0).all()
    assert (size_of(delta, norm_of(name, norm), free) <= epsilon * (1 + 1e-6)).all()
    assert torch.equal(delta, again)
    assert all(
        torch.equal(*pair) for pair in zip(before, (signals, labels, mask), strict=True)
    )
    assert not signals.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_the_generator_decides_and_the_batch_size_does_not(name):
    victim, signals, labels = prey(7)
    budget = Budget(0.05, steps=3, restarts=2, queries=20)
    whole, other = (
        get_attack(name)(victim, signals, labels, budget, seeded(s)) for s in (0, 1)
    )
    assert whole.abs().max() > 0
    if name not in (
        "fgsm",
        "sap",
        "universal",
    ):  # no random start, one that may lose, or ends in one corner
        assert not torch.equal(whole, other)
    for size in (1, 3):
        parts = get_attack(name)(
            victim, signals, labels, replace(budget, batch_size=size), seeded()
        )
        torch.testing.assert_close(parts, whole, rtol=0, atol=0.05e-3)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"noise"}))
def test_no_attack_alters_the_model_or_leaves_gradients_on_it(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(80, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, CLASSES),
        )
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    victim = Victim(model, False, model[:4], fs=100.0)
    _, signals, labels = prey()
    get_attack(name)(victim, signals, labels, Budget(0.1, 3, queries=5), seeded())
    assert all(
        torch.equal(before[key], value) for key, value in model.state_dict().items()
    )
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", sorted(ONE_SHAPE))
def test_attacks_of_the_linf_ball_say_so(name):
    victim, signals, labels = prey()
    with pytest.raises(StudyError, match="ℓ∞ ball; norm 'l2'"):
        get_attack(name)(victim, signals, labels, Budget(0.1, 2, norm="l2"), seeded())


@pytest.mark.parametrize("name", sorted(SINGLE_LABEL))
def test_attacks_on_one_true_class_say_so(name):
    victim, signals, labels = prey(multilabel=True)
    with pytest.raises(
        StudyError,
        match=r"needs single-label data of at least \d classes; these are multi-label",
    ):
        get_attack(name)(victim, signals, labels, Budget(0.1, 2), seeded())


def test_an_unknown_attack_is_an_error_that_names_those_there_are():
    with pytest.raises(
        StudyError,
        match="unknown attack 'autoattack'; known: noise, fgsm, pgd-ce, pgd-margin",
    ):
        get_attack("autoattack")


@pytest.mark.parametrize(
    "name",
    sorted({"noise", "square", "fgsm", "apgd-l2", "universal", "label-free", "sap"}),
)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_attacks_stay_on_the_device(name):
    _, signals, labels = prey()
    weight = torch.randn(80, CLASSES, device="cuda")
    victim = Victim(
        lambda x: x.flatten(1) @ weight, False, lambda x: x.flatten(1), fs=100.0
    )
    generator = torch.Generator("cuda").manual_seed(0)
    budget = Budget(0.1, 3, queries=5, mask=torch.ones(40, device="cuda"))
    delta = get_attack(name)(victim, signals.cuda(), labels.cuda(), budget, generator)
    assert delta.device.type == "cuda"


# ---- the objective: never below, never less ------------------------------------------


SEARCHES = {"pgd": pgd, "apgd": apgd, "square": square}


def gains(search, problem, budget):
    """How much the search raises the objective of each record over that of the
    unchanged record."""
    none = torch.zeros_like(problem.signals)
    delta = SEARCHES[search](problem, budget, seeded())
    return problem.values(delta, 256) - problem.values(none, 256)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_search_never_ends_below_its_start_nor_below_no_attack(search, norm, name):
    if (search, norm) == ("square", "l2"):
        return
    victim, signals, labels = prey(20)
    start = 3 * Ball(0.8, norm).draw(
        signals, seeded(5)
    )  # outside: what counts is the nearest point inside
    problem = scores_problem(name, victim, signals, labels, start)
    budget = Budget(
        0.8, steps=1, step=2.0, norm=norm, queries=2
    )  # long steps, which often overshoot
    found = gains(search, problem, budget)
    inside = problem.values(budget.ball.project(start), 256)
    assert (found >= -1e-5).all()
    assert (found >= inside - problem.values(torch.zeros_like(start), 256) - 1e-5).all()


@pytest.mark.parametrize(
    ("search", "more"),
    [
        ("pgd", "restarts"),
        ("pgd", "steps"),
        ("apgd", "restarts"),
        ("square", "queries"),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_no_record_loses_by_more_restarts_queries_or_steps_of_pgd(search, more, norm):
    """The smaller budget is a part of the larger one: streams are nested, PGD's step
    length is fixed."""
    if (search, norm) == ("square", "l2"):
        return
    victim, signals, labels = prey(30)
    problem = scores_problem("margin", victim, signals, labels)
    least = {"steps": 3, "restarts": 1, "queries": 3, "step": 0.6, "norm": norm}
    few, many = (
        gains(search, problem, Budget(0.5, **least | {more: k * least[more]}))
        for k in (1, 5)
    )
    assert (many >= few - 1e-5).all()
    assert (many > few + 1e-3).any()


# ---- the optimum ---------------------------------------------------------------------


FOLLOWING = [
    "pgd-ce",
    "pgd-margin",
    "apgd-ce",
    "apgd-bce",
    "apgd-margin",
    "apgd-margin-even",
    "pgd-l2",
    "apgd-l2",
]


@pytest.mark.parametrize("name", ["fgsm", *FOLLOWING])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("epsilon", [0.01, 0.5])
def test_on_a_linear_model_the_score_changes_by_epsilon_times_the_dual_norm(
    name, norm, masked, epsilon
):
    victim, weight = linear(leads=3, samples=8, classes=1)
    signals, labels = (
        torch.randn(8, 3, 8, generator=seeded(1)),
        (torch.arange(8) % 2).float()[:, None],
    )
    mask = torch.tensor([[1.0], [0], [1]]) if masked else torch.ones(1)
    budget = Budget(epsilon, 20, step=1.0, norm=norm, mask=mask)
    delta = get_attack(name)(victim, signals, labels, budget, seeded())
    change = (victim.scores(signals + delta) - victim.scores(signals))[:, 0]
    free, n = (weight * mask).flatten(), 16 if masked else 24
    reach = free.abs().sum() if norm_of(name, norm) == "linf" else n**0.5 * free.norm()
    torch.testing.assert_close(
        change, (1 - 2 * labels[:, 0]) * epsilon * reach, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("search", ["pgd", "apgd"])
@pytest.mark.parametrize("norm", NORMS)
def test_on_a_linear_model_the_shared_attack_reaches_the_best_of_all_labels_together(
    search, norm
):
    victim, weight = linear()
    signals, labels = ecgs(9)
    problem = scores_problem("margin", victim, signals, labels)
    pulled = auroc_targets(labels) @ weight.flatten(1)
    best = pulled.abs().sum(1) if norm == "linf" else 10**0.5 * pulled.norm(dim=1)
    found = gains(search, problem, Budget(0.1, 20, step=1.0, norm=norm))
    torch.testing.assert_close(found, 0.1 * best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("search", ["pgd", "apgd"])
def test_on_two_linear_classes_the_even_margin_rises_by_the_dual_norm(
    search,
):
    victim, weight = linear(classes=2)
    signals, labels = ecgs(6, classes=2)[0], torch.eye(2)[torch.arange(6) % 2]
    problem = scores_problem(
        "margin-even", replace(victim, multilabel=False), signals, labels
    )
    reach = 0.1 * (weight[0] - weight[1]).abs().sum()
    found = gains(search, problem, Budget(0.1, 20))
    torch.testing.assert_close(found, reach.expand(6), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("search", ["pgd", "apgd"])
def test_a_search_finds_the_largest_objective_of_a_fine_grid(search):
    """One lead of one sample: the ball is an interval, which a grid covers."""
    victim, signals = curved(1, 1, 1), ecgs(10, 1, 1, 1)[0]
    labels = (torch.arange(10) % 2).float()[:, None]
    problem = Problem.of(victim, signals, signed_scores, label_targets(labels, 0))
    grid = torch.stack(
        [
            problem.values(torch.full_like(signals, d), 256)
            for d in torch.linspace(-1.5, 1.5, 3001)
        ]
    )
    found = gains(search, problem, Budget(1.5, 60, 20)) + problem.values(
        torch.zeros_like(signals), 256
    )
    assert (grid.amax(0) - found).max() < 0.01
    assert (grid.amax(0) - grid.amin(0)).min() > 0.1  # there is something to find


@pytest.mark.parametrize("search", ["pgd", "apgd"])
def test_nothing_stops_at_a_label_flip(search):
    victim, weight = linear(classes=1)
    signals, labels = (
        torch.zeros(2, 2, 5),
        torch.tensor([[0.0], [1.0]]),
    )  # both on the boundary
    delta = SEARCHES[search](
        scores_problem("margin", victim, signals, labels), Budget(0.1), seeded()
    )
    reach = 0.1 * weight.abs().sum().item()
    assert victim.scores(delta)[:, 0].tolist() == pytest.approx(
        [reach, -reach], rel=1e-4
    )


def test_each_target_class_is_tried_and_the_best_wrong_one_kept():
    """Four corners of a cross, a class each: from class 0 only the wrong class named by
    the ball is near."""
    centres = torch.tensor([[0.0, 0], [1, 0], [0, 1], [-1, 0]])
    victim = Victim(lambda x: -torch.cdist(x[:, 0], centres).square() * 5, False)
    signals, labels = (
        torch.tensor([[[0.3, 0.0]], [[0.0, 0.3]], [[-0.3, 0.0]]]),
        torch.eye(4)[[0, 0, 0]],
    )
    delta = get_attack("apgd-dlr-targeted")(
        victim, signals, labels, Budget(0.4, 10), seeded()
    )
    assert victim.scores(signals + delta).argmax(1).tolist() == [1, 2, 3]
    with_margin = get_attack("apgd-margin-even")(
        victim, signals, labels, Budget(0.4, 50, 5), seeded()
    )
    for found in (delta, with_margin):
        logits = victim.model(signals + found)
        margin = logits[:, 1:].amax(1) - logits[:, 0]
        torch.testing.assert_close(
            margin, torch.full((3,), 5 * (0.7**2 - 0.3**2)), rtol=0.02, atol=0
        )


def test_fgsm_takes_one_step_of_epsilon_along_the_sign_of_the_gradient():
    victim, signals, labels = prey(5)
    leaf = signals.clone().requires_grad_()
    nn.functional.cross_entropy(
        victim.model(leaf), labels.argmax(1), reduction="sum"
    ).backward()
    delta = get_attack("fgsm")(victim, signals, labels, Budget(0.001), seeded())
    torch.testing.assert_close(delta, 0.001 * leaf.grad.sign())


@pytest.mark.parametrize("name", ["fgsm", *FOLLOWING, "square"])
def test_attacks_lower_the_auroc_where_noise_does_not(name):
    victim, signals = replace(linear()[0], multilabel=False), ecgs(90)[0]
    labels = torch.eye(3)[victim.scores(signals).argmax(1)]

    def auroc(attack):
        delta = get_attack(attack)(
            victim, signals, labels, Budget(0.3, queries=100), seeded()
        )
        return roc_auc_score(labels, victim.scores(signals + delta))

    clean = roc_auc_score(labels, victim.scores(signals))
    assert auroc(name) < 0.7 * clean
    assert abs(auroc("noise") - clean) < 0.02


@pytest.mark.parametrize("search", ["pgd", "apgd"])
def test_records_do_not_depend_on_their_company(search):
    victim, signals, labels = prey(6)
    targets, start = auroc_targets(labels), Ball(0.1).draw(signals, seeded(3))
    problem = Problem.of(victim, signals, signed_scores, targets, start)
    together = SEARCHES[search](problem, Budget(0.1, 5), seeded())
    for i in range(6):
        part = Problem.of(victim, signals[[i]], signed_scores, targets[[i]], start[[i]])
        torch.testing.assert_close(
            SEARCHES[search](part, Budget(0.1, 5), seeded())[0], together[i]
        )


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_default_step_lets_any_start_reach_any_corner(steps):
    assert Budget(0.02, steps).step_mv * steps == pytest.approx(2.5 * 0.02)


def test_scores_are_float32_even_where_the_model_is_not():
    victim = Victim(lambda x: x.flatten(1).bfloat16(), True)
    assert victim.scores(torch.zeros(2, 1, 3)).dtype == torch.float32


# ---- passes that tell nothing new ----------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"noise"}))
@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
def test_known_scores_of_the_clean_ecgs_change_no_attack(name, gradients):
    victim, signals, labels = prey()
    victim = replace(victim, gradients=gradients, fs=100.0)
    budget = Budget(0.3, 3, restarts=2, queries=5)
    told = replace(victim, clean_scores=(signals, victim.scores(signals)))
    found = [
        get_attack(name)(each, signals, labels, budget, seeded())
        for each in (victim, told)
    ]
    assert torch.equal(*found)


def test_known_scores_are_those_of_the_very_signals_alone():
    victim, signals, labels = prey()
    told = replace(
        victim, clean_scores=(signals, torch.full((6, CLASSES), 1e6))
    )  # wrong, so that use would show
    for rows in (slice(0, 3), torch.tensor([5, 4, 3, 2, 1, 0])):
        plain, other = (
            scores_problem("margin", v, signals[rows], labels[rows])
            for v in (victim, told)
        )
        assert other.clean_values is None
        assert torch.equal(
            *(apgd(each, Budget(0.3, 3), seeded()) for each in (plain, other))
        )
    assert (
        scores_problem("margin", told, signals, labels).clean_values.abs().min() > 1e5
    )


@pytest.mark.parametrize("search", [pgd, apgd])
@pytest.mark.parametrize("started", [False, True])
def test_no_perturbation_is_valued_twice(search, started):
    victim, signals, labels = prey()
    seen = []
    model = lambda x: seen.append(x.detach().clone()) or victim.model(x)  # noqa: E731
    told = replace(victim, model=model, clean_scores=(signals, victim.scores(signals)))
    start = 0.3 * Ball(1.0).draw(signals, seeded(3)) if started else None
    search(
        scores_problem("margin", told, signals, labels, start), Budget(0.3, 4), seeded()
    )
    assert len(seen) == 4 + 1  # a gradient a step, and the last iterate
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert not started or torch.equal(seen[0], signals + start)


@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
@pytest.mark.parametrize("search", [pgd, apgd])
def test_a_start_that_no_step_improves_is_the_result(search, gradients):
    signals, start = torch.zeros(3, 1, 20), torch.zeros(3, 1, 20)
    start[1:] = 0.1  # the best there is, for the last two
    peak = torch.tensor([0.0, 0.1, 0.1])

    def value(x, rows):
        return -((x - peak[rows, None, None]) ** 2).sum((1, 2))

    problem = Problem(signals, value, start, exact=gradients == "float32")
    found = search(problem, Budget(0.2, 5), seeded())
    assert torch.equal(found, start)
