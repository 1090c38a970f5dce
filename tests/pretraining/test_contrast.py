"""The weighted contrastive loss against plain double loops (`loss_loops`)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from loss_loops import (
    a_infonce_rocl,
    batch,
    clef,
    clef_softmax,
    contract,
    dclw,
    debiased,
    mean,
    nt_xent,
    of_others,
    of_record,
    supcon,
)
from torch import exp, log

from ecgstudy.pretraining.contrast import (
    BLOCK_ROWS,
    WHOLE_ROWS,
    _PositiveLogSumExp,
    weighted_contrastive_loss,
)
from ecgstudy.pretraining.pairs import MASKED, Pairs, Rows, Weights
from ecgstudy.pretraining.weighting import compose, uniform

PLAIN = compose([])
HARD = compose([("hard-negatives", {"beta": 1.0})])
RISK = compose([("clinical-risk", {})])


def inferior(alpha):
    return compose([("inferior-positives", {"alpha": alpha})])


def value_and_gradient(loss, z):
    leaf = z.detach().clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    return value.detach().double(), leaf.grad.double()


def assert_same(ours, oracle, z):
    """Equal value and gradient: to 1e-6 in float64, to 1e-5 in float32."""
    value, gradient = value_and_gradient(oracle, z)
    assert gradient.abs().max() > 1e-4, "a vanishing gradient would prove nothing"
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        found, slope = value_and_gradient(ours, z.to(dtype))
        torch.testing.assert_close(found, value, rtol=tolerance, atol=0)
        assert (slope - gradient).abs().max() <= tolerance * gradient.abs().max()


def ours(rows, weighting=PLAIN, temperature=0.5, **options):
    return lambda z: weighted_contrastive_loss(
        z, rows, weighting, temperature=temperature, **options
    )[0]


# ---- equalities


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_uniform_weights_give_nt_xent(temperature):
    z, rows = batch()
    assert_same(
        ours(rows, temperature=temperature), lambda z: nt_xent(z, rows, temperature), z
    )


def test_nt_xent_of_orthogonal_records_has_its_closed_form():
    z, rows = torch.eye(3, dtype=torch.float64).repeat(2, 1), batch(n=3)[1]
    expected = (
        math.log(math.exp(2) + 4) - 2
    )  # positives at S = 2, four negatives at S = 0
    assert ours(rows)(z).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(
    ("denominator", "tau_plus"),
    [
        (d, t)
        for d in ("own", "all", "mean", "none")
        for t in (0.0, 0.1)
        if (d, t) != ("none", 0.1)
    ],
)
def test_every_denominator_equals_the_loop(denominator, tau_plus, views, detach):
    z, rows = batch(n=4, views=views, patients=[0, 1, 1, 2])
    options = {"tau_plus": tau_plus, "denominator": denominator}
    assert_same(
        ours(rows, HARD, detach_candidates=detach, **options),
        lambda z: contract(z, rows, 0.5, beta=1.0, detach=detach, **options),
        z,
    )


def test_tau_plus_debiases_as_published():
    z, rows = batch(n=6)
    assert (
        debiased(z, rows, 0.5, 0.1)[1] < 0.5
    )  # most rows are off the floor, where it is easy
    assert_same(ours(rows, tau_plus=0.1), lambda z: debiased(z, rows, 0.5, 0.1)[0], z)


def test_hard_negatives_with_beta_zero_are_the_debiased_loss():
    z, rows = batch()
    beta_zero = compose([("hard-negatives", {"beta": 0.0})])
    assert_same(ours(rows, beta_zero, tau_plus=0.1), ours(rows, tau_plus=0.1), z)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_hard_negatives_with_debiasing_are_hcl_with_detached_weights(beta):
    z, rows = batch(n=6, seed=1)
    weighting = compose([("hard-negatives", {"beta": beta})])
    assert_same(
        ours(rows, weighting, tau_plus=0.1),
        lambda z: debiased(z, rows, 0.5, 0.1, beta)[0],
        z,
    )


def test_vanishing_tau_plus_is_the_plain_loss():
    z, rows = batch()
    assert_same(ours(rows, tau_plus=1e-12), ours(rows, tau_plus=0.0), z)


def test_label_positives_give_supcon():
    z, rows = batch(n=5)
    labels = torch.tensor([0, 0, 1, 1, 2]).repeat(2)

    def same_label(similarity, pairs):
        same = labels[:, None] == labels[None, :]
        positives = same & ~pairs.itself()
        pull = (positives / positives.sum(1, keepdim=True)).to(similarity)
        return Weights(pull, ~same, torch.zeros_like(similarity))

    assert_same(
        ours(rows, same_label, 0.1, denominator="all"),
        lambda z: supcon(z, labels, 0.1),
        z,
    )


def test_positive_weights_without_positive_in_the_denominator_give_dclw():
    z, rows = batch()

    def von_mises_fisher(similarity, pairs, tau=0.1, sigma=0.5):
        weights = uniform(similarity, pairs)
        cosine = (similarity * tau * weights.pull).sum(1)  # of the one positive
        omega = 2 - len(cosine) * (cosine / sigma).softmax(0)
        return Weights(weights.pull, weights.eligible, weights.log_push, omega[:, None])

    assert_same(
        ours(rows, von_mises_fisher, 0.1, denominator="none"),
        lambda z: dclw(z, rows, 0.1, 0.5),
        z,
    )


def test_clinical_risk_gives_clef_with_negatives_of_mean_weight_one():
    z, rows = batch(n=6, patients=[0, 1, 2, 3, 4, 4])
    assert_same(ours(rows, RISK, 0.07), lambda z: clef(z, rows, 0.07, mean_one=True), z)


def test_clefs_own_scaling_is_another_loss():
    """Its weights sum to less than 1: negatives count about 1/(2B) of ours."""
    z, rows = batch(n=6)
    assert max(sum(row) for row in clef_softmax(rows)) == pytest.approx(1)
    assert clef(z, rows, 0.5, mean_one=False) < 0.5 * ours(rows, RISK)(z)


def test_inferior_positives_with_half_equal_the_base():
    z, rows = batch(views=3, adversarial=True)
    for denominator in ("own", "all"):
        options = {"detach_candidates": True, "denominator": denominator}
        assert_same(ours(rows, inferior(0.5), **options), ours(rows, **options), z)


def test_rocl_is_half_the_authors_sum_over_pairs():
    z, rows = batch(n=4, views=3, adversarial=True)
    loss = ours(rows, denominator="all", detach_candidates=True)
    assert_same(loss, lambda z: a_infonce_rocl(z, 4, 0.5, None) / 2, z)


def test_inferior_positives_are_the_authors_loss_with_the_clean_pairs_halved():
    """Their α and 1−α halve the pull of mixed pairs, ours keep it."""
    z, rows = batch(n=4, views=3, adversarial=True)
    loss = ours(rows, inferior(0.2), denominator="all", detach_candidates=True)
    assert_same(loss, lambda z: a_infonce_rocl(z, 4, 0.5, 0.2, clean_weight=0.5), z)


def test_inferior_positives_move_adversaries_more_than_clean_views():
    z, rows = batch(n=4, views=3, adversarial=True)
    options = {"denominator": "all", "detach_candidates": True}
    base = value_and_gradient(ours(rows, **options), z)[1].norm(dim=1)
    moved = (
        value_and_gradient(ours(rows, inferior(0.2), **options), z)[1].norm(dim=1)
        / base
    )
    assert moved[rows.adversarial].min() > 1 > moved[~rows.adversarial].max()


# ---- negatives, floor, log


@pytest.mark.parametrize(
    "weighting", [PLAIN, HARD, RISK], ids=["uniform", "hard", "risk"]
)
def test_records_of_one_patient_never_push_each_other(weighting):
    z, rows = batch(n=4, patients=[0, 0, 1, 2])
    weights = weighting(z @ z.T, Pairs(rows, rows))
    for i in range(len(z)):
        assert weights.eligible[i].nonzero().flatten().tolist() == of_others(rows, i)


def test_a_push_between_records_of_one_patient_would_show():
    """Two equal records: of one patient they do nothing, of two they repel."""
    z, rows = batch(n=2)
    z = torch.cat([z[:1], z[:1], z[:1], z[:1]])
    one_patient = Rows(
        rows.record, torch.zeros(4, dtype=torch.long), rows.adversarial, rows.metadata
    )
    assert ours(one_patient)(z) == 0
    assert ours(rows)(z).item() == pytest.approx(math.log(3))


def test_rows_on_the_debiased_floor_give_negatives_no_gradient():
    z, rows = torch.eye(4, dtype=torch.float64).repeat(2, 1), batch(n=4)[1]
    # S is 5 on positives and 0 on the six negatives: 6 − 0.1 · 6 · e⁵ < 0, so that D =
    # 6 e⁻⁵.
    leaf = z.clone().requires_grad_()
    loss, logged = weighted_contrastive_loss(
        leaf, rows, PLAIN, temperature=0.2, tau_plus=0.1
    )
    loss.backward()
    assert logged["floor_fraction"] == 1
    assert loss.item() == pytest.approx(
        math.log1p(6 * math.exp(-5) * math.exp(-5)), rel=1e-9
    )
    assert (
        torch.count_nonzero(leaf.grad * (1 - z)) == 0
    )  # orthogonal directions are those to negatives


@pytest.mark.parametrize("temperature", [0.2, 0.35, 0.5, 1.0])
def test_floor_fraction_counts_the_rows_on_the_floor(temperature):
    z, rows = batch(n=8)
    _, logged = weighted_contrastive_loss(
        z, rows, PLAIN, temperature=temperature, tau_plus=0.1
    )
    assert logged["floor_fraction"].item() == pytest.approx(
        debiased(z, rows, temperature, 0.1)[1]
    )


def test_the_loss_logs_similarities_and_numbers_of_negatives():
    z, rows = batch(n=4, views=3, patients=[0, 1, 1, 2])
    _, logged = weighted_contrastive_loss(z, rows, PLAIN, temperature=0.3)
    cosine, pairs = z @ z.T, range(12)
    positive = [cosine[i, k] for i in pairs for k in of_record(rows, i)]
    negative = [cosine[i, k] for i in pairs for k in of_others(rows, i)]
    assert logged["positive_similarity"].item() == pytest.approx(mean(positive).item())
    assert logged["negative_similarity"].item() == pytest.approx(mean(negative).item())
    assert logged["negatives"].item() == pytest.approx(len(negative) / 12)
    assert logged["effective_negatives"].item() == pytest.approx(len(negative) / 12)
    assert logged["floor_fraction"] == 0


@pytest.mark.parametrize("weighting", [HARD, RISK], ids=["hard", "risk"])
def test_effective_number_of_negatives_equals_its_closed_form(weighting):
    z, rows = batch(n=5)
    _, logged = weighted_contrastive_loss(z, rows, weighting, temperature=0.5)
    softmax, numbers = clef_softmax(rows), []
    for i in range(len(z)):
        push = [
            float(exp(z[i] @ z[k] / 0.5)) if weighting is HARD else softmax[i][k]
            for k in of_others(rows, i)
        ]
        numbers.append(sum(push) ** 2 / sum(w * w for w in push))
    assert logged["effective_negatives"].item() == pytest.approx(
        mean(numbers), rel=1e-9
    )
    assert logged["effective_negatives"] < logged["negatives"]


# ---- invariances


@settings(max_examples=30, deadline=None)
@given(
    some.integers(0, 2**31),
    some.integers(2, 6),
    some.integers(2, 3),
    some.sampled_from([0.0, 0.1]),
)
def test_the_order_of_rows_does_not_matter(seed, n, views, tau_plus):
    z, rows = batch(
        n, views, adversarial=True, seed=seed, patients=[i // 2 for i in range(n)]
    )
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    for weighting in (HARD, RISK, inferior(0.2)):
        value, gradient = value_and_gradient(
            ours(rows, weighting, tau_plus=tau_plus), z
        )
        other, moved = value_and_gradient(
            ours(rows[order], weighting, tau_plus=tau_plus), z[order]
        )
        torch.testing.assert_close(other, value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(moved, gradient[order], rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(some.integers(0, 2**31), some.floats(-50, 50), some.sampled_from([0.0, 0.1]))
def test_the_scale_of_a_rows_push_weights_does_not_matter(seed, shift, tau_plus):
    z, rows = batch(n=4, seed=seed)
    row_shifts = shift * torch.linspace(-1, 1, len(z), dtype=torch.float64)[:, None]

    def rescaled(similarity, pairs):
        return HARD(similarity, pairs).with_push(row_shifts.expand_as(similarity))

    value, gradient = value_and_gradient(ours(rows, HARD, tau_plus=tau_plus), z)
    other, moved = value_and_gradient(ours(rows, rescaled, tau_plus=tau_plus), z)
    torch.testing.assert_close(other, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("block", [1, 4, 7, 100])
@pytest.mark.parametrize(
    "weighting", [HARD, RISK, inferior(0.2)], ids=["hard", "risk", "inferior"]
)
def test_blocks_of_anchors_change_neither_value_nor_gradient_nor_log(block, weighting):
    z, rows = batch(n=5, views=3, adversarial=True, patients=[0, 1, 2, 2, 3])
    for detach in (False, True):
        options = {"tau_plus": 0.1, "detach_candidates": detach}
        value, gradient = value_and_gradient(ours(rows, weighting, **options), z)
        other, moved = value_and_gradient(
            ours(rows, weighting, block=block, **options), z
        )
        torch.testing.assert_close(other, value, rtol=1e-12, atol=0)
        torch.testing.assert_close(moved, gradient, rtol=1e-9, atol=1e-14)
    whole = weighted_contrastive_loss(
        z, rows, weighting, temperature=0.5, tau_plus=0.1
    )[1]
    parts = weighted_contrastive_loss(
        z, rows, weighting, temperature=0.5, tau_plus=0.1, block=block
    )[1]
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("block", [None, 3])
def test_without_the_log_value_and_gradient_are_the_same_to_the_last_bit(block):
    z, rows = batch(n=5, views=3, adversarial=True)
    options = {"tau_plus": 0.1, "block": block}
    value, gradient = value_and_gradient(ours(rows, HARD, **options), z)
    other, moved = value_and_gradient(ours(rows, HARD, logged=False, **options), z)
    assert torch.equal(value, other)
    assert torch.equal(gradient, moved)
    assert (
        weighted_contrastive_loss(
            z, rows, HARD, temperature=0.5, logged=False, **options
        )[1]
        == {}
    )


def test_a_logsumexp_of_few_entries_is_torchs_of_the_masked_matrix_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        matrix = (
            torch.randn(40, 30, generator=generator, dtype=dtype)
            .mul_(5)
            .requires_grad_()
        )
        chosen = torch.rand(40, 30, generator=generator) < 0.1
        chosen[7] = False
        chosen[8] = True
        masked = torch.logsumexp(matrix.masked_fill(~chosen, MASKED), 1)
        ours = _PositiveLogSumExp.apply(matrix, chosen.nonzero(as_tuple=True))
        factors = torch.randn(40, generator=generator, dtype=dtype)
        assert torch.equal(ours, masked)
        given, wanted = (
            torch.autograd.grad(value, matrix, factors)[0] for value in (ours, masked)
        )
        assert torch.equal(given, wanted)
        assert given[7].eq(0).all()
        assert (given[8] != 0).all()


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("weighting", [PLAIN, HARD])
def test_anchors_are_the_first_rows_and_the_others_candidates_only(weighting, block):
    """The loss of some anchors is that of all rows in which the others pull nobody."""
    z, rows = batch(n=5, views=3, adversarial=True)
    options = {"tau_plus": 0.1, "detach_candidates": True}

    def first_six(similarity, pairs):
        weights = weighting(similarity, pairs)
        return weights.with_pull((torch.arange(15) < 6)[:, None].to(similarity.dtype))

    assert_same(
        ours(rows, weighting, anchors=6, block=block, **options),
        ours(rows, first_six, **options),
        z,
    )


def test_an_inner_attack_that_moves_some_rows_has_the_gradient_of_the_loss_of_all():
    # Every row has one positive: losses of 6 and of 12 anchors differ by a factor of 2.
    z, rows = batch(n=6)
    moved, held = z.split(6)

    def gradient(anchors):
        leaf = moved.clone().requires_grad_()
        whole = torch.cat([leaf, held])
        value = ours(rows, detach_candidates=True, anchors=anchors)(whole)
        return torch.autograd.grad(value, leaf)[0]

    torch.testing.assert_close(gradient(6), 2 * gradient(None), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("records", "most"), [(WHOLE_ROWS // 2, WHOLE_ROWS), (WHOLE_ROWS, BLOCK_ROWS)]
)
def test_many_rows_are_taken_in_blocks_unless_told_otherwise(records, most):
    z, rows = batch(n=records, patients=list(range(records)))
    seen = []

    def watched(similarity, pairs):
        seen.append(len(similarity))
        return PLAIN(similarity, pairs)

    value, gradient = value_and_gradient(ours(rows, watched), z)
    assert max(seen) == most
    other, moved = value_and_gradient(ours(rows, block=len(rows)), z)
    torch.testing.assert_close(other, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved, gradient, rtol=1e-9, atol=1e-14)


# ---- extremes

EXTREMES = {
    "batch of two": batch(n=2),
    "one patient, no negatives": batch(n=3, patients=[0, 0, 0]),
    "all rows equal": (torch.ones(8, 4, dtype=torch.float64) / 2, batch(n=4)[1]),
    "opposite records": (
        torch.tensor([[1.0], [-1.0]] * 2, dtype=torch.float64),
        batch(n=2)[1],
    ),
    "a patient of two records": batch(
        n=3, views=3, adversarial=True, patients=[0, 0, 1]
    ),
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_stay_finite(case, temperature, dtype):
    z, rows = EXTREMES[case]
    for denominator in ("own", "all", "mean", "none"):
        for tau_plus in (0.0, 0.1) if denominator != "none" else (0.0,):
            options = {"denominator": denominator, "tau_plus": tau_plus}
            value, gradient = value_and_gradient(
                ours(rows, HARD, temperature, **options), z.to(dtype)
            )
            assert torch.isfinite(value)
            assert torch.isfinite(gradient).all()


def test_bfloat16_embeddings_are_summed_in_float32():
    z, rows = batch(n=6)
    rounded = z.bfloat16()
    assert ours(rows, HARD)(rounded) == ours(rows, HARD)(rounded.float())


def test_small_temperatures_keep_their_value():
    """S reaches ±100, where float32 has the loss to about 1e-5 in absolute terms."""
    z, rows = batch(n=4, seed=2)
    value, gradient = value_and_gradient(lambda z: nt_xent(z, rows, 0.01), z)
    assert value > 0.1
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        found, slope = value_and_gradient(ours(rows, temperature=0.01), z.to(dtype))
        torch.testing.assert_close(found, value, rtol=tolerance, atol=0)
        assert (slope - gradient).abs().max() <= tolerance * gradient.abs().max()


@pytest.mark.parametrize(
    ("denominator", "tau_plus"), [("own", 0.0), ("own", 0.1), ("none", 0.0)]
)
def test_without_negatives_there_is_nothing_to_learn(denominator, tau_plus):
    z, rows = batch(n=3, patients=[0, 0, 0])
    value, gradient = value_and_gradient(
        ours(rows, denominator=denominator, tau_plus=tau_plus), z
    )
    assert value.abs() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("denominator", ["own", "all", "mean", "none"])
def test_without_positives_the_loss_and_its_gradient_are_zero(denominator):
    z, rows = batch(n=4, views=1)
    value, gradient = value_and_gradient(ours(rows, HARD, denominator=denominator), z)
    assert value == 0
    assert torch.count_nonzero(gradient) == 0


def test_a_row_without_positives_drops_out_but_still_repels():
    z, rows = batch(n=3)
    kept = torch.tensor([0, 1, 2, 3, 4])  # record 2 keeps its first view only
    terms = []
    for i, p in ((0, 3), (1, 4), (3, 0), (4, 1)):
        below = exp(z[i] @ z[p] / 0.5) + sum(
            exp(z[i] @ z[k] / 0.5) for k in kept if k % 3 != i % 3
        )
        terms.append(log(below) - z[i] @ z[p] / 0.5)
    assert ours(rows[kept])(z[kept]).item() == pytest.approx(
        mean(terms).item(), rel=1e-9
    )
