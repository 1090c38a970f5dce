"""Batches: shared views, momentum, teacher, pseudo-labels and controls."""

import dataclasses

import numpy as np
import pytest
import torch
from hand_filled import CPU, fresh, views_of
from toy import toy_records, toy_run

from ecgstudy.models.checkpoints import load_encoder
from ecgstudy.pretraining import step
from ecgstudy.pretraining.arms import Adversary
from ecgstudy.pretraining.loop import pretrain, train_step
from ecgstudy.pretraining.pairs import Pairs
from ecgstudy.pretraining.setup import make_state, prepare_training, use_original
from ecgstudy.pretraining.state import Data, RunningMean, State, evaluation_mode
from ecgstudy.pretraining.step import adaptive_alpha, arm_loss, draw_views, embed_batch
from ecgstudy.pretraining.suffixes import arm_names, get_arm
from ecgstudy.pretraining.weighting import compose

TRAINED = [name for name in arm_names() if get_arm(name).losses]
INDEX = torch.arange(0, 24, 2)  # twelve patients


# ---- what arms of one seed share


def test_arms_of_one_seed_see_the_same_views():
    data = Data.of(toy_records(), CPU)
    found = {}
    for name in TRAINED:
        state, _ = fresh(name)
        batches = [draw_views(state, data, INDEX, {"1", "2"}) for _ in range(2)]
        found[name] = torch.stack([b.signals[v] for b in batches for v in "12"])
    assert not torch.equal(found["simclr"][0], found["simclr"][1])
    assert [
        name for name, views in found.items() if not torch.equal(views, found["simclr"])
    ] == []


def test_equal_parts_of_models_begin_with_equal_weights():
    data, known = Data.of(toy_records(), CPU), {}
    data.pseudo_labels = torch.zeros(80, 1, dtype=torch.long)
    for name in arm_names():
        if get_arm(name).features:
            continue
        state = make_state(toy_run(name), data)
        for key, tensor in state.model.state_dict().items():
            key = key.removeprefix("momentum.")
            assert torch.equal(known.setdefault(key, tensor), tensor), (name, key)
    assert {"head.weight", "projector.out.weight", "prototypes.weight"} <= set(known)


# ---- momentum, teacher, pseudo-labels, permuted risk, adaptive α


def test_the_momentum_encoder_follows_without_gradient(monkeypatch):
    state, data = fresh("dynacl")
    followed = state.model["momentum"]
    before = {n: p.clone() for n, p in followed.named_parameters()}
    views, embed = [], State.features
    monkeypatch.setattr(
        State,
        "features",
        lambda self, x, a: (
            views.append((self.model is followed, a, len(x))) or embed(self, x, a)
        ),
    )
    batch = embed_batch(
        state, data, INDEX, views_of(state.arm), Adversary("1* 2*", "noise")
    )
    n = len(INDEX)
    assert sorted(views) == [
        (False, False, n),
        (False, True, n),
        (True, False, n),
        (True, True, n),
    ]
    assert batch.embedded["1"].requires_grad
    assert batch.embedded["1*"].requires_grad
    assert not batch.embedded["2"].requires_grad
    assert not batch.embedded["2*"].requires_grad
    train_step(state, data, INDEX, 0.01)
    online = dict(state.model.named_parameters())
    for name, parameter in followed.named_parameters():
        assert parameter.grad is None
        torch.testing.assert_close(parameter, 0.99 * before[name] + 0.01 * online[name])
    moved = [not torch.equal(p, before[n]) for n, p in followed.named_parameters()]
    assert sum(moved) > len(moved) / 2
    optimised = {
        id(p) for group in state.optimizer.param_groups for p in group["params"]
    }
    assert not optimised & {id(p) for p in followed.parameters()}


def test_augmentations_fade_as_dynacl_trains():
    data, spread = Data.of(toy_records(), CPU), []
    for progress in (0.0, 0.5, 0.95):
        state, _ = fresh("dynacl")
        state.progress = progress
        batch = draw_views(state, data, INDEX, {"1", "2"})
        spread.append((batch.signals["1"] - batch.signals["2"]).abs().mean().item())
    assert spread[0] > 1.1 * spread[1] > 2 * spread[2] > 0


def with_simclr(root):
    pretrain(toy_run("simclr"), toy_records(), root / "simclr" / "seed0")
    return root


def test_the_teacher_is_the_trained_simclr_and_stays_as_it_is(tmp_path):
    root = with_simclr(tmp_path)
    state, data = prepare_training(
        toy_run("deacl"), toy_records(), root / "deacl" / "seed0"
    )
    stored = load_encoder(root / "simclr" / "seed0")[0].state_dict()
    for _ in range(2):
        train_step(state, data, torch.arange(16), 0.01)
    assert not state.teacher.training
    assert all(
        p.grad is None and not p.requires_grad for p in state.teacher.parameters()
    )
    assert all(torch.equal(t, stored[n]) for n, t in state.teacher.state_dict().items())


def test_pseudo_labels_come_from_training_records_and_repeat(tmp_path):
    root = with_simclr(tmp_path)
    one, again = (
        prepare_training(toy_run("advcl"), toy_records(), root / "advcl" / "seed0")[
            1
        ].pseudo_labels
        for _ in range(2)
    )
    other = toy_records()
    other.signals[80:] = 7.0
    other.labels[:] = np.roll(other.labels, 1)
    unseen = prepare_training(toy_run("advcl"), other, root / "advcl" / "seed0")[
        1
    ].pseudo_labels
    assert one.shape == (80, 1)  # only the k-means with ten records a cluster: k = 2
    assert torch.equal(one, again)
    assert torch.equal(one, unseen)
    assert set(one.flatten().tolist()) == {0, 1}
    features = load_encoder(root / "simclr" / "seed0")[0](
        torch.tensor(toy_records().signals[:80])
    )
    centres = torch.stack([features[one[:, 0] == k].mean(0) for k in (0, 1)])
    assert (torch.cdist(features, centres).argmin(1) == one[:, 0]).float().mean() > 0.9


def test_pseudo_label_heads_follow_the_clusters(tmp_path):
    root = with_simclr(tmp_path)
    state, _ = prepare_training(
        toy_run("advcl"), toy_records(), root / "advcl" / "seed0"
    )
    assert [head.out_features for head in state.model["clusters"]] == [2]


def risk_of(name, tmp_path):
    rows = prepare_training(toy_run(name), toy_records(), tmp_path / name / "seed0")[
        1
    ].rows
    return rows.patient, torch.stack(
        [rows.metadata["risk"], rows.metadata["missing"]], 1
    )


def test_shuffled_clinical_risk_is_permuted_over_patients(tmp_path):
    patient, plain = risk_of("clef", tmp_path)
    same, shuffled = risk_of("clef-shuffled", tmp_path)
    assert torch.equal(patient, same)
    first = torch.stack([plain[patient == p][0] for p in patient.unique()])
    moved = torch.stack([shuffled[patient == p][0] for p in patient.unique()])
    assert sorted(first.tolist()) == sorted(moved.tolist())
    assert (first != moved).any(1).float().mean() > 0.7
    for p in patient.unique():
        assert (shuffled[patient == p] == shuffled[patient == p][0]).all()
    assert torch.equal(shuffled, risk_of("clef-shuffled", tmp_path)[1])
    assert torch.equal(shuffled, risk_of("rocl-clef-ip-hn-shuffled", tmp_path)[1])


def shuffled_pushes(batches=40):
    """Weights of `rocl-hn-shuffled` and of `rocl-hn`, of random similarities."""
    state, data = fresh("rocl-hn-shuffled")
    stream = torch.Generator().manual_seed(0)
    for _ in range(batches):
        index = torch.randperm(80, generator=stream)[:24]
        batch = draw_views(state, data, index, {"1", "2"})
        batch.features = dict.fromkeys(("1", "2", "1*"), torch.zeros(24, 1))
        step._add_metadata(batch)
        rows = batch.rows_of(("1", "2", "1*"))
        z = torch.nn.functional.normalize(torch.randn(72, 8, generator=stream), dim=1)
        similarity, pairs = z @ z.T / 0.5, Pairs(rows, rows)
        shuffled = compose(state.arm.weighting)(similarity, pairs)
        yield (
            similarity,
            shuffled,
            compose([("hard-negatives", {"beta": 1.0})])(similarity, pairs),
        )


def test_shuffled_weights_are_each_rows_own_in_random_order():
    correlations, places = [], []
    for similarity, shuffled, plain in shuffled_pushes():
        assert torch.equal(shuffled.eligible, plain.eligible)
        for i, eligible in enumerate(plain.eligible):
            ours, before = shuffled.log_push[i, eligible], plain.log_push[i, eligible]
            assert torch.equal(ours.sort().values, before.sort().values)
            pair = torch.stack([ours, similarity[i, eligible]])
            correlations.append(torch.corrcoef(pair)[0, 1])
            places.append(ours.argmax() / (len(ours) - 1))
    assert torch.stack(correlations).mean().abs() < 0.02
    assert torch.stack(places).mean().item() == pytest.approx(
        0.5, abs=0.03
    )  # no place is preferred


def test_shuffling_tears_the_views_of_a_record_apart():
    """Two negatives are (n + 1)/3 ranks apart on average, also if of one record."""
    apart = []
    for _, shuffled, _ in shuffled_pushes(10):
        ranks = (
            shuffled.log_push.masked_fill(~shuffled.eligible, torch.inf)
            .argsort(1)
            .argsort(1)
        )
        gap = (ranks[:, :24] - ranks[:, 24:48]).abs()[shuffled.eligible[:, :24]].float()
        apart.append(gap.mean() / ((shuffled.eligible.sum(1).float().mean() + 1) / 3))
    assert torch.stack(apart).mean().item() == pytest.approx(1, abs=0.1)


def test_adaptive_alpha_averages_distances_first_and_then_follows_them(monkeypatch):
    state, data = fresh("rocl-ip")
    scheme = (("inferior-positives", {"alpha": 0.2, "adaptive": True}),)
    state.arm = dataclasses.replace(state.arm, weighting=scheme)
    state.model["running-distance"] = RunningMean()
    features = State.features
    monkeypatch.setattr(State, "features", lambda self, x, a: 20 * features(self, x, a))
    running, distances, views = state.model["running-distance"], [], ("1", "2", "1*")

    def alpha_and_distance():
        """α of all rows, and the adversary's distance, in clean statistics."""
        batch = embed_batch(state, data, INDEX, views, state.arm.adversary)
        with evaluation_mode(state.model), torch.no_grad():
            ours, theirs = (
                state.features(batch.signals[v], False) for v in ("1", "1*")
            )
        return batch.rows_of(views).metadata["alpha"], (ours - theirs).norm(
            dim=1
        ).mean()

    for _ in range(2):
        alpha, distance = alpha_and_distance()
        distances.append(distance.item())
        assert alpha.tolist() == pytest.approx([0.2] * 36)
    assert distances[0] != pytest.approx(distances[1], rel=1e-3)
    assert running.mean.item() == pytest.approx(np.mean(distances), rel=1e-5)
    state.progress, count, found = 0.5, running.count.item(), []
    for mean in (0.0, 8.0, 1e6):
        running.total = torch.tensor(count * mean)
        alpha, distance = alpha_and_distance()
        found.append(adaptive_alpha(distance, torch.tensor(mean), 0.2).item())
        assert alpha.tolist() == pytest.approx([found[-1]] * 36, rel=1e-5)
    assert found[::2] == pytest.approx([0.2, 0.5], abs=1e-4)
    assert 0.22 < found[1] < 0.48
    assert running.count == count


# ---- published options


@pytest.mark.parametrize("name", TRAINED)
def test_published_options_change_what_they_name_and_nothing_else(name):
    arm = get_arm(name)
    shared_options = toy_run("simclr").study.training
    assert use_original(arm, shared_options) == arm
    for key in ("loss", "attack"):
        theirs = use_original(arm, shared_options.model_copy(update={key: "original"}))
        changed = {
            f.name
            for f in dataclasses.fields(arm)
            if getattr(arm, f.name) != getattr(theirs, f.name)
        }
        assert changed <= (
            {"loss_options", "temperature_factor"} if key == "loss" else {"adversary"}
        )


def test_an_arm_loss_is_the_weighted_sum_of_its_logged_losses():
    state, data = fresh("ascl")
    total, log = arm_loss(state, data, INDEX)
    parts = log["ce 1*"] + log["contrast 1 1*"] + 2 * log["kl 1 1*"]
    torch.testing.assert_close(total.detach(), parts)


def test_attacked_views_of_ascl_are_selected_by_their_own_predictions():
    state, data = fresh("ascl")
    batch = embed_batch(state, data, INDEX, ("1", "1*"), state.arm.adversary)
    for view in ("1", "1*"):
        logits = state.model["head"](batch.features[view])
        assert (
            batch.known[view]["predictions"].argmax(1).tolist()
            == logits.argmax(1).tolist()
        )
    stacked = batch.rows_of(("1", "1*")).metadata["predictions"]
    assert torch.equal(stacked[12:], batch.known["1*"]["predictions"])
    assert not torch.equal(stacked[:12], stacked[12:])
