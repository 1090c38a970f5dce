"""Each weighting scheme by itself, row by row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from ecgstudy.errors import StudyError
from ecgstudy.pretraining.contrast import (
    weighted_contrastive_loss,
)
from ecgstudy.pretraining.pairs import Pairs, Rows, Weights
from ecgstudy.pretraining.weighting import (
    compose,
    pull_inferior_positives,
    push_by_clinical_risk,
    push_hard_negatives,
    uniform,
)
from ecgstudy.registry import WEIGHTINGS

RISK, MISSING = [0.02, 0.05, 0.30, 0.11], [0.0, 0.7, 0.3, 1.0]
LABELS = [[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]


def pairs_of(views=2, adversarial=False, patients=(0, 1, 2, 3)):
    n = len(patients)
    metadata = {
        "risk": torch.tensor(RISK[:n]),
        "missing": torch.tensor(MISSING[:n]),
        "labels": torch.tensor(LABELS[:n], dtype=torch.float32),
        "predictions": torch.tensor(LABELS[:n][::-1], dtype=torch.float32),
    }
    stream = torch.Generator().manual_seed(1)
    noise = torch.rand(views, n, generator=stream, dtype=torch.float64)
    rows = Rows.of_views(
        [
            Rows(
                torch.arange(n),
                torch.tensor(patients),
                torch.full((n,), adversarial and v == views - 1),
                metadata | {"noise": noise[v]},
            )
            for v in range(views)
        ]
    )
    return Pairs(rows, rows)


def similarity_of(pairs, seed=0, temperature=0.5):
    z = torch.randn(
        len(pairs.anchors),
        4,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    z = torch.nn.functional.normalize(z, dim=1)
    return z @ z.T / temperature


def row_mean_one(weights):
    """W scaled by hand: each row's mean over its own negatives is 1, NaN elsewhere."""
    w = torch.full_like(weights.log_push, math.nan)
    for i, eligible in enumerate(weights.eligible):
        push = weights.log_push[i, eligible].exp()
        w[i, eligible] = push / push.mean()
    return w


@pytest.mark.parametrize("views", [1, 2, 3])
def test_uniform_pulls_other_views_equally_and_pushes_other_patients_equally(views):
    pairs = pairs_of(views, patients=(0, 1, 1, 2))
    weights = uniform(similarity_of(pairs), pairs)
    for i in range(4 * views):
        for k in range(4 * views):
            pull = 1 / (views - 1) if i != k and i % 4 == k % 4 else 0
            assert weights.pull[i, k] == pull
            same_patient = (0, 1, 1, 2)[i % 4] == (0, 1, 1, 2)[k % 4]
            assert weights.eligible[i, k] == (not same_patient)
    assert (weights.log_push == 0).all()
    assert weights.positive is None


def test_hard_negatives_weigh_by_the_exponential_of_their_similarity():
    pairs = pairs_of()
    similarity = similarity_of(pairs)
    weights = push_hard_negatives(
        similarity, pairs, uniform(similarity, pairs), beta=2.0
    )
    ratio = weights.log_push[0, 1] - weights.log_push[0, 2]
    assert ratio.item() == pytest.approx(
        2 * (similarity[0, 1] - similarity[0, 2]).item()
    )


def test_hard_negatives_are_normalised_by_their_own_row():
    """A-InfoNCE's code divides by the mean of row k, masked entries included."""
    pairs = pairs_of()
    similarity = similarity_of(pairs)
    weights = compose([("hard-negatives", {"beta": 1.0})])(similarity, pairs)
    importance = similarity.exp() * weights.eligible
    theirs = importance / importance.mean(dim=-1)
    ours = row_mean_one(weights)
    own_row = importance / (
        importance.sum(1, keepdim=True) / weights.eligible.sum(1, keepdim=True)
    )
    torch.testing.assert_close(ours[weights.eligible], own_row[weights.eligible])
    assert (ours - theirs)[weights.eligible].abs().max() > 0.5


def test_the_loss_uses_the_row_mean_of_the_true_negatives():
    """The loss has another value with another row's mean."""
    pairs, tau = pairs_of(), 0.5
    similarity = similarity_of(pairs, temperature=1.0)
    z = torch.linalg.cholesky(
        similarity + 1e-9 * torch.eye(8)
    )  # vectors of these cosines
    weights = compose([("hard-negatives", {"beta": 1.0})])(similarity / tau, pairs)
    e = (similarity / tau).exp()
    importance = e * weights.eligible
    right = importance / (importance.sum(1, keepdim=True) / 6)
    values = []
    for w in (right, importance / importance.mean(dim=-1)):
        positive = torch.stack([e[i, (i + 4) % 8] for i in range(8)])
        values.append(
            ((positive + (w * e).sum(1)).log() - positive.log()).mean().item()
        )
    loss, _ = weighted_contrastive_loss(
        z, pairs.anchors, compose([("hard-negatives", {"beta": 1.0})]), temperature=tau
    )
    assert loss.item() == pytest.approx(values[0], rel=1e-6)
    assert abs(values[1] - values[0]) > 0.05


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
def test_inferior_positives_split_the_pull_between_clean_and_adversarial(alpha):
    pairs = pairs_of(views=3, adversarial=True)
    similarity = similarity_of(pairs)
    base = uniform(similarity, pairs)
    weights = pull_inferior_positives(similarity, pairs, base, alpha)
    clean, other, adversary = 0, 4, 8  # the three views of record 0
    assert weights.pull[clean, other] == weights.pull[other, clean] == 0.5
    assert weights.pull[clean, adversary].item() == pytest.approx(alpha)
    assert weights.pull[other, adversary].item() == pytest.approx(alpha)
    assert weights.pull[adversary, clean].item() == pytest.approx(1 - alpha)
    assert weights.pull.sum().item() == pytest.approx(base.pull.sum().item())


def test_clinical_risk_weighs_by_the_scaled_and_damped_squared_difference():
    pairs = pairs_of()
    weights = push_by_clinical_risk(
        *(s := similarity_of(pairs), pairs), uniform(s, pairs)
    )
    for i in range(8):
        for k in range(8):
            scaled = (RISK[i % 4] - RISK[k % 4]) ** 2 / ((0.30 - 0.02) ** 2 + 1e-6)
            damped = (0.8 * scaled + 0.2) * math.exp(-MISSING[i % 4] * MISSING[k % 4])
            assert weights.log_push[i, k].item() == pytest.approx(damped, rel=1e-5)


def test_clinical_weights_spread_by_at_most_a_factor_of_2_23():
    pairs = pairs_of()
    weights = compose([("clinical-risk", {})])(similarity_of(pairs), pairs)
    w = weights.log_push[weights.eligible].exp()
    assert 1.3 < w.max() / w.min() <= math.exp(1.0)
    undamped = Pairs(
        *[
            Rows(
                r.record,
                r.patient,
                r.adversarial,
                {**r.metadata, "missing": torch.zeros(8)},
            )
            for r in (pairs.anchors, pairs.candidates)
        ]
    )
    w = (
        compose([("clinical-risk", {})])(similarity_of(pairs), undamped)
        .log_push[weights.eligible]
        .exp()
    )
    assert w.max() / w.min() == pytest.approx(math.exp(0.8), rel=0.02)


def test_equal_risks_weigh_uniformly():
    pairs = pairs_of()
    same = {"risk": torch.full((8,), 0.1), "missing": torch.full((8,), 5 / 7)}
    rows = Rows(
        pairs.anchors.record, pairs.anchors.patient, pairs.anchors.adversarial, same
    )
    weights = compose([("clinical-risk", {})])(similarity_of(pairs), Pairs(rows, rows))
    torch.testing.assert_close(
        row_mean_one(weights)[weights.eligible], torch.ones(48, dtype=torch.float64)
    )


def test_schemes_chain_in_any_order():
    pairs = pairs_of(views=3, adversarial=True)
    similarity = similarity_of(pairs)
    names = [
        ("inferior-positives", {"alpha": 0.2}),
        ("hard-negatives", {"beta": 1.0}),
        ("clinical-risk", {}),
    ]
    one, other = (
        compose(names)(similarity, pairs),
        compose(names[::-1])(similarity, pairs),
    )
    torch.testing.assert_close(one.pull, other.pull)
    torch.testing.assert_close(one.log_push, other.log_push)
    assert not torch.equal(one.pull, uniform(similarity, pairs).pull)
    single = [compose([name])(similarity, pairs).log_push for name in names]
    torch.testing.assert_close(one.log_push, sum(single))


@settings(max_examples=30, deadline=None)
@given(
    some.integers(0, 2**31),
    some.lists(some.sampled_from(WEIGHTINGS.names()), max_size=3, unique=True),
)
def test_every_scheme_keeps_the_promises_of_weights(seed, names):
    pairs = pairs_of(views=3, adversarial=True, patients=(0, 1, 1, 2))
    weights = compose([(name, {}) for name in names])(similarity_of(pairs, seed), pairs)
    assert (weights.pull >= 0).all()
    assert (weights.pull.diagonal() == 0).all()
    assert not (weights.eligible & (weights.pull > 0)).any()
    assert not (weights.eligible & pairs.match("patient")).any()
    assert torch.isfinite(weights.log_push).all()


def test_labels_pull_by_overlap_and_leave_records_without_common_labels_to_push():
    pairs = pairs_of(patients=(0, 1, 2, 2))
    weights = compose([("labels", {})])(similarity_of(pairs), pairs)
    # Labels {a}, {a, b}, {c}, none: overlap ½ between the first two; the last has its
    # other view only.
    assert weights.pull[0].tolist() == pytest.approx([0, 0.25, 0, 0, 0.5, 0.25, 0, 0])
    assert weights.pull[3].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert weights.eligible[0].tolist() == [False, False, True, True] * 2
    assert (
        weights.eligible[2].tolist() == [True, True, False, False] * 2
    )  # the last is of the same patient


def test_hard_positives_pull_more_and_rows_keep_their_sum():
    pairs = pairs_of(views=3)
    similarity = similarity_of(pairs)
    weights = compose([("hard-positives", {"gamma": 2.0})])(similarity, pairs)
    torch.testing.assert_close(weights.pull.sum(1), torch.ones(12, dtype=torch.float64))
    cosine = similarity  # the pairs' temperature is 1
    ratio = weights.pull[0, 4] / weights.pull[0, 8]
    assert ratio.item() == pytest.approx(
        math.exp(2 * (cosine[0, 8] - cosine[0, 4]).item())
    )


def test_leaked_local_keeps_rows_of_one_prediction():
    pairs = pairs_of(patients=(0, 1, 2, 3))
    for rows in (pairs.anchors, pairs.candidates):
        rows.metadata["predictions"] = torch.tensor(
            [[1.0, 0], [0, 1], [1, 0], [0, 1], [0, 1], [0, 1], [1, 0], [0, 1]]
        )
    weights = compose([("leaked-local", {})])(similarity_of(pairs), pairs)
    assert weights.eligible[0].tolist() == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
        False,
    ]
    assert weights.pull[0].sum() == 0  # its other view is predicted otherwise
    assert weights.pull[1].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


def test_hard_positive_logits_have_mean_one_and_grow_with_distance():
    pairs = pairs_of()
    similarity = similarity_of(pairs)
    weights = compose([("hard-positive-logits", {"sigma": 0.5})])(similarity, pairs)
    of_positives = weights.positive[weights.pull > 0]
    assert of_positives.mean().item() == pytest.approx(1)
    softmax = (similarity[weights.pull > 0] / 0.5).softmax(0)
    torch.testing.assert_close(of_positives, 2 - 8 * softmax)


def test_clefs_own_weights_are_a_softmax_over_the_whole_row():
    pairs = pairs_of()
    weights = compose([("clinical-risk", {"original": True})])(
        similarity_of(pairs), pairs
    )
    for i in range(8):
        scaled = [
            (RISK[i % 4] - RISK[k % 4]) ** 2 / ((0.30 - 0.02) ** 2 + 1e-6)
            for k in range(8)
        ]
        distance = [
            0.0 if k % 4 == i % 4 else 0.8 * d + 0.2 for k, d in enumerate(scaled)
        ]
        expected = [math.exp(d) / sum(map(math.exp, distance)) for d in distance]
        assert weights.log_push[i].exp().tolist() == pytest.approx(expected, rel=1e-5)
    assert not weights.mean_one


def test_shuffled_weights_are_the_same_when_anchors_come_in_blocks():
    pairs = pairs_of(views=3)
    similarity, weighting = (
        similarity_of(pairs),
        compose([("hard-negatives", {}), ("shuffled", {})]),
    )
    whole = weighting(similarity, pairs)
    assert not torch.equal(
        whole.log_push, compose([("hard-negatives", {})])(similarity, pairs).log_push
    )
    for first in (0, 4, 8):
        block = Pairs(pairs.anchors[first : first + 4], pairs.candidates, first)
        part = weighting(similarity[first : first + 4], block)
        assert torch.equal(part.log_push, whole.log_push[first : first + 4])


def test_inferior_positives_take_the_alpha_of_each_row_when_it_adapts():
    pairs = pairs_of(views=3, adversarial=True)
    alpha = torch.arange(12) / 20
    rows = Rows(
        *(getattr(pairs.anchors, k) for k in ("record", "patient", "adversarial")),
        {"alpha": alpha},
    )
    weights = compose([("inferior-positives", {"adaptive": True})])(
        similarity_of(pairs), Pairs(rows, rows)
    )
    assert weights.pull[4, [0, 8]].tolist() == pytest.approx([0.5, 4 / 20])
    assert weights.pull[9, [1, 5]].tolist() == pytest.approx([1 - 9 / 20] * 2)


def test_a_new_scheme_is_one_function(monkeypatch):
    monkeypatch.setitem(WEIGHTINGS, "far-negatives", None)  # taken away afterwards

    @WEIGHTINGS.register("far-negatives")
    def push_far_negatives(similarity, pairs, weights, beta=1.0):
        return weights.with_push(-beta * similarity)

    pairs = pairs_of()
    weights = compose([("far-negatives", {"beta": 3.0})])(similarity_of(pairs), pairs)
    assert isinstance(weights, Weights)
    torch.testing.assert_close(weights.log_push, -3 * similarity_of(pairs))


def test_an_unknown_scheme_is_an_error_that_names_those_there_are():
    with pytest.raises(
        StudyError,
        match="unknown weighting scheme 'harder'; known: hard-negatives",
    ):
        compose([("hard-negatives", {}), ("harder", {})])
