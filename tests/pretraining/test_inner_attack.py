"""The inner attack of every arm: what it raises and where it stays."""

import pytest
import torch
from hand_filled import fresh, views_of
from label_loops import cosine, cross_entropy, kl
from loss_loops import equal_pull, equal_push, label_pull, label_push, shared

from ecgstudy.pretraining import losses, step
from ecgstudy.pretraining.arms import Adversary
from ecgstudy.pretraining.inner_attack import OBJECTIVES, next_of_another_cluster
from ecgstudy.pretraining.state import evaluation_mode, split_views, stack_views
from ecgstudy.pretraining.step import draw_views, embed_batch
from ecgstudy.pretraining.suffixes import arm_names, get_arm

EPSILON = 0.05
ATTACKED = [name for name in arm_names() if get_arm(name).adversary]
INDEX = torch.arange(0, 24, 2)  # twelve patients


def watched(name, monkeypatch, **options):
    """A batch of `name`, and what its inner attack saw and left behind."""
    state, data = fresh(name, **options)
    adversary, seen = state.arm.adversary, []
    if adversary.loss in OBJECTIVES:
        make_objective = OBJECTIVES[adversary.loss]

        def watch(batch, adversary):
            raised = make_objective(batch, adversary)

            def value(signals):
                values = raised(signals)
                found = split_views(signals.detach().clone(), adversary.starred)
                total = values.detach().sum().item()
                seen.append((found, total, state.model.training, batch))
                return values

            return value

        monkeypatch.setitem(OBJECTIVES, adversary.loss, watch)
    inner, left = step.attack_views, {}

    def around(batch, adversary):
        before = {n: b.clone() for n, b in state.model.named_buffers()}
        attacked = inner(batch, adversary)
        left["changed"] = [
            n for n, b in state.model.named_buffers() if not torch.equal(b, before[n])
        ]
        left["graded"] = [
            n for n, p in state.model.named_parameters() if p.grad is not None
        ]
        left["training"], left["clean"] = state.model.training, dict(batch.signals)
        if seen:  # in the statistics of the attack, before the training pass moves them
            clean = [batch.signals[view[:-1]] for view in attacked]
            with evaluation_mode(state.model), torch.no_grad():
                raised = make_objective(seen[0][3], adversary)
                last = stack_views([*attacked.values()])
                left["last"] = raised(last).sum().item()
                left["unattacked"] = raised(stack_views(clean)).sum().item()
        return attacked

    monkeypatch.setattr(step, "attack_views", around)
    batch = embed_batch(state, data, INDEX, views_of(state.arm), adversary)
    return state, batch, seen, left


@pytest.mark.parametrize("name", ATTACKED)
def test_the_attack_stays_in_its_ball_and_perturbs_starred_views_only(
    name, monkeypatch
):
    state, batch, seen, left = watched(name, monkeypatch, attack_steps=3)
    adversary = state.arm.adversary
    starred = {v for v in adversary.views.split() if v.endswith("*")}
    assert {v for v in batch.signals if v.endswith("*")} == starred
    for view in starred:
        delta = batch.signals[view] - batch.signals[view[:-1]]
        assert delta.abs().max() <= EPSILON + 1e-6
        assert delta.abs().mean() > 0.3 * EPSILON
        assert not batch.signals[view].requires_grad
    assert all(torch.equal(batch.signals[v], x) for v, x in left["clean"].items())
    assert (left["changed"], left["graded"], left["training"]) == ([], [], True)
    steps = 0 if adversary.loss == "noise" else adversary.steps or 3
    assert [mode for _, _, mode, _ in seen] == [False] * steps


@pytest.mark.parametrize(
    "name", [n for n in ATTACKED if get_arm(n).adversary.loss != "noise"]
)
def test_the_attack_begins_as_its_row_says_and_raises_its_loss(name, monkeypatch):
    state, _, seen, left = watched(name, monkeypatch, attack_steps=6)
    adversary, (start, first, _, _) = state.arm.adversary, seen[0]
    deltas = torch.cat([x - left["clean"][v[:-1]] for v, x in start.items()])
    if adversary.random_start:
        assert deltas.std().item() == pytest.approx(EPSILON / 3**0.5, rel=0.05)
    else:
        assert torch.count_nonzero(deltas) == 0
    assert left["last"] > first
    assert left["last"] > left["unattacked"]


def test_nfgsm_steps_once_from_wide_noise_and_is_not_clipped(monkeypatch):
    _, batch, seen, left = watched("rocl-nfgsm", monkeypatch)
    assert len(seen) == 1
    noise = seen[0][0]["1*"] - left["clean"]["1"]
    assert noise.std().item() == pytest.approx(2 * EPSILON / 3**0.5, rel=0.05)
    delta = batch.signals["1*"] - left["clean"]["1"]
    assert 2.5 * EPSILON < delta.abs().max() <= 3 * EPSILON + 1e-6
    moved = (delta - noise).abs()  # by ε, or not at all where the gradient is 0
    assert ((moved - EPSILON).abs() < 1e-6).float().mean() > 0.99


def test_rsfgsm_steps_once_and_is_clipped(monkeypatch):
    _, batch, seen, left = watched("rocl-rsfgsm", monkeypatch)
    assert len(seen) == 1
    noise, delta = (x["1*"] - left["clean"]["1"] for x in (seen[0][0], batch.signals))
    expected = (noise + 1.25 * EPSILON * (delta - noise).sign()).clamp(
        -EPSILON, EPSILON
    )
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-6)


def test_clae_takes_one_whole_step_from_the_clean_view(monkeypatch):
    _, batch, seen, _ = watched("clae", monkeypatch)
    assert len(seen) == 1
    delta = (batch.signals["1*"] - batch.signals["1"]).abs()
    assert (delta > 0.999 * EPSILON).float().mean() > 0.99


def test_noise_is_uniform_and_uses_the_arms_own_stream(monkeypatch):
    _, noisy, _, _ = watched("adv-supcon-noise", monkeypatch)
    delta = noisy.signals["1*"] - noisy.signals["1"]
    assert delta.std().item() == pytest.approx(EPSILON / 3**0.5, rel=0.05)


def both(state, data, views):
    """A batch of clean views in evaluation mode, and starred `views` with noise."""
    with evaluation_mode(state.model), torch.no_grad():
        batch = draw_views(state, data, INDEX, {v.rstrip("*") for v in views})
        batch.embed([v for v in views if not v.endswith("*")], False)
    noise = torch.Generator().manual_seed(0)
    attacked = {
        v: batch.signals[v[:-1]]
        + 0.02 * torch.randn(batch.signals[v[:-1]].shape, generator=noise)
        for v in views
        if v.endswith("*")
    }
    return batch, attacked


LOOK = Adversary("1* 2")  # as notebooks ask for, of any arm
OTHERS = [
    ("supervised", LOOK),
    ("acl", LOOK),
    ("adv-supcon-labels", LOOK),
    ("deacl", LOOK),
]


@pytest.mark.parametrize(
    ("name", "adversary"),
    [
        (n, get_arm(n).adversary)
        for n in ("rocl", "acl", "advcl", "clae", "adv-supcon-labels")
    ]
    + OTHERS,
)
def test_the_contrastive_attack_raises_the_plain_loss_of_its_views(name, adversary):
    state, data = fresh(name)
    views = tuple(adversary.views.split())
    batch, attacked = both(state, data, views)
    moved = [signals.detach().requires_grad_() for signals in attacked.values()]
    attacked = dict(zip(attacked, moved, strict=True))
    rows, labelled = batch.rows_of(views), adversary.loss == "labelled-contrast"
    pull, push = (label_pull, label_push) if labelled else (equal_pull, equal_push)
    with evaluation_mode(state.model):
        raised = OBJECTIVES[adversary.loss](batch, adversary)
        value = raised(stack_views(moved))
        held = {
            v: state.embed(batch.signals[v], False).detach()
            for v in views
            if v not in attacked
        }
        z = [held[v] if v in held else state.embed(attacked[v], True) for v in views]
        whole = shared(
            torch.cat(z).double(),
            rows,
            0.5,
            pull(rows),
            push(rows),
            detach=not adversary.both_sides,
        )
        ours, expected = (
            torch.cat(torch.autograd.grad(v, moved, retain_graph=True))
            for v in (value, whole)
        )
    # Rows whose terms the attack cannot move are left out: a factor, every row being
    # pulled by 1 in all.
    anchors = [adversary.both_sides or v in attacked for v in views for _ in INDEX]
    torch.testing.assert_close(
        ours, expected * len(anchors) / sum(anchors), rtol=1e-3, atol=1e-7
    )
    pulled = [
        pairs if moves else {} for pairs, moves in zip(pull(rows), anchors, strict=True)
    ]
    terms = shared(torch.cat(z).double(), rows, 0.5, pulled, push(rows))
    assert value.item() == pytest.approx(terms.item(), rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_attacks_on_predictions_raise_cross_entropy_or_kl_of_each_record(multilabel):
    for name, loop in (("pgd-at", cross_entropy), ("trades", None)):
        state, data = fresh(name, multilabel)
        batch, attacked = both(state, data, ("1", "1*"))
        with evaluation_mode(state.model), torch.no_grad():
            adversary = state.arm.adversary
            values = OBJECTIVES[adversary.loss](batch, adversary)(attacked["1*"])
            clean, worse = (
                state.logits(batch.signals["1"]),
                state.logits(attacked["1*"]),
            )
        given = (worse.double(), batch.labels, multilabel)
        expected = loop(*given) if loop else kl(clean.double(), *given)
        torch.testing.assert_close(
            values.double(), torch.stack(expected), rtol=1e-4, atol=1e-6
        )


def test_the_attack_on_a_student_leaves_its_teacher():
    state, data = fresh("deacl")
    batch, attacked = both(state, data, ("0", "0*"))
    with evaluation_mode(state.model), torch.no_grad():
        values = OBJECTIVES["teacher"](batch, state.arm.adversary)(attacked["0*"])
        student, teacher = (
            state.features(attacked["0*"], True),
            state.teacher(batch.signals["0"]),
        )
    expected = torch.stack(
        [-cosine(a, b) for a, b in zip(student, teacher, strict=True)]
    )
    torch.testing.assert_close(values, expected)


def test_the_attack_on_codes_nears_the_codes_of_another_cluster(monkeypatch):
    state, batch, seen, _ = watched("swaro", monkeypatch, attack_steps=8)
    at = seen[0][3]
    with evaluation_mode(state.model), torch.no_grad():
        for view in ("1*", "2*"):
            codes = losses.sinkhorn(state.prototype_scores(at.embedded[view[:-1]]))
            other = next_of_another_cluster(codes.argmax(1))
            assert (codes.argmax(1)[other] != codes.argmax(1)).all()
            shares = [
                (
                    state.prototype_scores(state.embed(batch.signals[v], True)) / 0.1
                ).softmax(1)
                for v in (view, view[:-1])
            ]
            near, before = ((codes[other] * p.log()).sum(1).mean() for p in shares)
            assert near > before


GROUPS = {
    "rocl": (
        "rocl-ip",
        "rocl-debiased",
        "rocl-hn",
        "rocl-ip-hn",
        "rocl-clef",
        "rocl-clef-ip-hn",
        "rocl-long",
        "rocl-hn-shuffled",
        "rocl-hn-temperature",
        "adv-supcon",
    ),
    "acl": ("acl-hn", "dynacl"),
    "advcl": ("advcl-ip", "advcl-hn", "advcl-ip-hn"),
    "clae": ("clae-hcl", "clae-supcon"),
    "claf": ("claf-ip-hn",),
}


@pytest.mark.parametrize(
    ("base", "name"), [(base, name) for base, names in GROUPS.items() for name in names]
)
def test_the_inner_attack_does_not_know_the_weighting(base, name, monkeypatch):
    _, one, _, _ = watched(base, monkeypatch)
    monkeypatch.undo()
    _, other, _, _ = watched(name, monkeypatch)
    for view in one.signals:
        assert torch.equal(one.signals[view], other.signals[view]), view


def test_published_attacks_take_their_own_steps(monkeypatch):
    for name, steps, mode in (
        ("ascl", 10, True),
        ("rocl", 7, False),
        ("clae", 1, True),
    ):
        _, _, seen, _ = watched(name, monkeypatch, attack="original")
        monkeypatch.undo()
        assert [training for _, _, training, _ in seen] == [mode] * steps
