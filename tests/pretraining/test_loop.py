import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from toy import toy_records, toy_run

from ecgstudy.devices import pick_device, pick_precision
from ecgstudy.errors import StudyError
from ecgstudy.models.checkpoints import load_encoder, load_tensors
from ecgstudy.pretraining import loop as training
from ecgstudy.pretraining import step
from ecgstudy.pretraining.loop import load_trained, pretrain
from ecgstudy.pretraining.setup import make_state, prepare_training
from ecgstudy.pretraining.state import Data, evaluation_mode
from ecgstudy.pretraining.step import arm_loss, embed_batch
from ecgstudy.pretraining.suffixes import arm_names, get_arm

RECORDS = toy_records()
STEPS = 5  # 80 training records in batches of 16
CPU = torch.device("cpu")
THREE = ("1", "2", "1*")
TRAINED = [name for name in arm_names() if get_arm(name).losses]


def fresh(arm, **options):
    """State and data of a run that has not trained yet."""
    data = Data.of(RECORDS, CPU)
    return make_state(toy_run(arm, **options), data), data


def weights(folder):
    return (folder / "encoder.safetensors").read_bytes()


def nt_xent(first, second, temperature):
    """SimCLR's loss as a cross-entropy over all other rows, anchor by anchor."""
    z = torch.cat([first, second]).double()
    losses = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positive = others.index((i + len(first)) % len(z))
        logits = torch.stack([z[i] @ z[j] / temperature for j in others])
        losses.append(functional.cross_entropy(logits[None], torch.tensor([positive])))
    return torch.stack(losses).mean()


@pytest.fixture(scope="module")
def trained_simclr(tmp_path_factory):
    """Folders with a trained simclr, by whether ECGs have several labels."""
    roots = {
        multilabel: tmp_path_factory.mktemp("runs") for multilabel in (False, True)
    }
    for multilabel, root in roots.items():
        pretrain(
            toy_run("simclr"),
            toy_records(multilabel=multilabel),
            root / "simclr" / "seed0",
        )
    return roots


def trained(arm, root, records, **options):
    """Of a short run: is the stem unchanged, history, loss and log before and after."""
    run, folder = toy_run(arm, attack_steps=1, **options), root / f"{arm}-run" / "seed0"
    state, data = prepare_training(run, records, folder)
    start = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    history = pretrain(run, records, folder)
    stored, _ = load_tensors(folder / "encoder.safetensors")
    assert set(stored) == set(start)
    stem = "encoder.backbone.stem.conv.weight"
    # Fresh states have equal random streams: the same views, starts of the attack and
    # shuffles.
    begun = ((state, data), load_trained(run, records, folder))
    before_and_after = [arm_loss(*each, torch.arange(48)) for each in begun]
    return torch.equal(stored[stem], start[stem].half()), history, before_and_after


def apart(log):
    """How much more alike positives are than negatives."""
    return log["positive_similarity"] - log["negative_similarity"]


@pytest.mark.parametrize(
    "arm",
    [*TRAINED, "rocl-hn-temperature", "rocl-clef-ip-hn-shuffled", "clef-shuffled"],
)
def test_every_arm_trains_with_a_finite_loss_that_falls(arm, trained_simclr):
    epochs = 1 if get_arm(arm).epochs > 1 else 3
    options = {"epochs": epochs, "learning_rate": 0.003}
    same, history, (before, after) = trained(
        arm, trained_simclr[False], toy_records(), **options
    )
    assert [entry["steps"] for entry in history] == [STEPS] * round(
        epochs * get_arm(arm).epochs
    )
    assert all(math.isfinite(value) for entry in history for value in entry.values())
    if (
        "hard-negatives" in get_arm(arm).schemes
    ):  # the weights follow what is left, and so hold the loss up
        assert apart(after[1]) > apart(before[1]) + 0.05
    elif arm == "dynacl":  # its second view's encoder has hardly moved yet
        assert history[-1]["loss"] < history[0]["loss"] - 0.05
    else:
        assert after[0] < before[0] - 0.02
    assert not same


@pytest.mark.parametrize("arm", TRAINED)
def test_every_arm_trains_five_steps_on_ecgs_of_several_labels(arm, trained_simclr):
    same, history, _ = trained(arm, trained_simclr[True], toy_records(multilabel=True))
    assert [entry["steps"] for entry in history] == [STEPS] * round(get_arm(arm).epochs)
    assert all(math.isfinite(value) for value in history[0].values())
    assert not same


def test_the_random_encoder_is_not_trained(tmp_path):
    same, history, (before, after) = trained("random", tmp_path, toy_records())
    assert same
    assert history == []
    assert before == after == (0, {})


def test_supervised_training_learns_the_classes(tmp_path):
    pretrain(toy_run("supervised", epochs=8, learning_rate=0.005), RECORDS, tmp_path)
    encoder, head, _ = load_encoder(tmp_path)
    test = RECORDS.split("test")
    predicted = head(encoder(torch.tensor(test.signals))).argmax(1)
    assert (predicted.numpy() == test.labels).mean() > 0.8


def test_a_run_writes_its_encoder_form_and_history_and_no_checkpoint(tmp_path):
    history = pretrain(toy_run("rocl", epochs=2), RECORDS, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    result = {"encoder.safetensors", "encoder.json", "history.jsonl"}
    assert names == result | {"SHA256SUMS"}
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert [entry["epoch"] for entry in history] == [1, 2]
    form = json.loads((tmp_path / "encoder.json").read_text())
    assert (form["leads"], form["fs"], form["classes"]) == (
        ["I", "II"],
        100.0,
        ["A", "B", "C"],
    )
    assert (form["dual"], form["arm"], form["training_records"]) == (True, "rocl", 80)


def test_learning_rate_warms_up_linearly_and_decays_as_a_cosine(tmp_path):
    run = toy_run(
        "simclr", epochs=8, records_per_epoch=16, learning_rate=0.01, warmup=0.25
    )
    rates = [entry["learning_rate"] for entry in pretrain(run, RECORDS, tmp_path)]
    cosine = [0.005 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert rates == pytest.approx([0.005, 0.01, *cosine])


def test_arms_that_learn_from_labels_may_have_epochs_of_their_own(tmp_path):
    options = {
        "epochs": 2,
        "label_epochs": 3,
        "records_per_epoch": 16,
        "learning_rate": 0.01,
        "warmup": 0.0,
    }
    rates = {
        arm: [
            entry["learning_rate"]
            for entry in pretrain(toy_run(arm, **options), RECORDS, tmp_path / arm)
        ]
        for arm in ("supervised", "pgd-at", "simclr", "random")
    }
    assert rates["supervised"] == rates["pgd-at"] == pytest.approx([0.01, 0.01, 0.005])
    assert rates["simclr"] == pytest.approx([0.01, 0.01])
    assert rates["random"] == []


def test_records_per_epoch_draws_that_many_without_replacement(monkeypatch, tmp_path):
    seen, step = [], training.train_step
    monkeypatch.setattr(
        training,
        "train_step",
        lambda state, data, index, *more: (
            seen.append(index) or step(state, data, index, *more)
        ),
    )
    pretrain(toy_run("supervised", epochs=2, records_per_epoch=40), RECORDS, tmp_path)
    epochs = torch.stack(seen).reshape(2, 32)  # two whole batches each
    assert all(len(epoch.unique()) == 32 for epoch in epochs)
    assert not torch.equal(epochs[0].sort().values, epochs[1].sort().values)


def test_arms_of_one_seed_share_initial_weights_batches_and_views(
    monkeypatch, tmp_path
):
    seen, draw = [], step.draw_view

    def watched(*given):
        view = draw(*given)
        if view is not None:
            seen.append(view)
        return view

    monkeypatch.setattr(step, "draw_view", watched)
    views = {}
    for arm in ("simclr", "rocl-ip-hn", "clef", "pgd-at"):
        seen.clear()
        pretrain(toy_run(arm), RECORDS, tmp_path / arm)
        views[arm] = torch.stack(seen)
    assert len(views["simclr"]) == 2 * STEPS
    first = views.pop(
        "pgd-at"
    )  # the second view is no part of its loss, and is not made
    assert torch.equal(first, views["simclr"][::2])
    assert all(torch.equal(other, views["simclr"]) for other in views.values())
    plain = fresh("simclr")[0].model.state_dict()
    for arm in ("rocl-ip-hn", "supervised", "random", "pgd-at"):
        other = fresh(arm)[0].model["encoder"].state_dict()
        shared = [f"encoder.{name}" for name in other if f"encoder.{name}" in plain]
        assert "encoder.backbone.blocks.3.second.conv.weight" in shared
        assert all(
            torch.equal(other[name.removeprefix("encoder.")], plain[name])
            for name in shared
        )


def test_supervised_arms_share_batches_with_contrastive_ones(monkeypatch, tmp_path):
    seen, step = [], training.train_step
    monkeypatch.setattr(
        training,
        "train_step",
        lambda state, data, index, *more: (
            seen.append(index) or step(state, data, index, *more)
        ),
    )
    pretrain(toy_run("supervised"), RECORDS, tmp_path / "a")
    pretrain(toy_run("rocl"), RECORDS, tmp_path / "b")
    assert torch.equal(torch.stack(seen[:STEPS]), torch.stack(seen[STEPS:]))


@pytest.mark.parametrize("arm", ["rocl-ip-hn", "pgd-at"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(arm, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)  # the global generator must not matter
        pretrain(toy_run(arm, seed), RECORDS, tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_training_leaves_the_global_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    pretrain(toy_run("rocl"), RECORDS, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_training_records_count_and_contrastive_arms_never_see_labels(tmp_path):
    pretrain(toy_run("rocl"), RECORDS, tmp_path / "a")
    other = toy_records()
    other.signals[80:] = 7.0
    other.labels[:] = np.roll(other.labels, 1)
    pretrain(toy_run("rocl"), other, tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_fewer_records_than_a_batch_are_an_error(tmp_path):
    with pytest.raises(
        StudyError, match="80 training records are fewer than one batch of 128"
    ):
        pretrain(toy_run("simclr", batch_size=128), RECORDS, tmp_path)
    with pytest.raises(
        StudyError, match="8 training records are fewer than one batch of 16"
    ):
        pretrain(toy_run("simclr", records_per_epoch=8), RECORDS, tmp_path)


def test_a_loss_that_explodes_is_an_error_and_leaves_no_encoder(tmp_path):
    with pytest.raises(
        StudyError,
        match=r"supervised seed 0: the loss became .* lower training.learning_rate",
    ):
        pretrain(toy_run("supervised", learning_rate=1e30), RECORDS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StudyError, match="torch finds no GPU"):
        pick_device("cuda")
    assert pick_device("auto") == pick_device("cpu") == CPU


def test_auto_precision_is_bfloat16_only_where_the_hardware_multiplies_in_it(
    monkeypatch,
):
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native
        )
        assert pick_precision("auto", CPU) == expected
    # An old GPU emulates bfloat16, slower than float32.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation,
    )
    assert pick_precision("auto", torch.device("cuda")) == "float32"
    assert pick_precision("bfloat16", CPU) == "bfloat16"


def test_the_loss_of_simclr_is_nt_xent_of_two_views():
    state, data = fresh("simclr")
    index = torch.arange(0, 32, 2)  # 16 patients
    loss, _ = arm_loss(state, data, index)
    batch = embed_batch(fresh("simclr")[0], data, index, ("1", "2"), None)
    expected = nt_xent(batch.embedded["1"], batch.embedded["2"], 0.5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_of_rocl_pulls_three_views_and_adds_its_side_term():
    state, data = fresh("rocl")
    index = torch.arange(0, 16, 2)  # 8 patients
    loss, _ = arm_loss(state, data, index)
    other = fresh("rocl")[0]
    z, _ = embed_batch(other, data, index, THREE, other.arm.adversary).stacked(THREE)
    pairs = torch.exp(z.double() @ z.double().T / 0.5)
    terms = []
    for i in range(24):
        positives = [j for j in range(24) if j % 8 == i % 8 and j != i]
        negatives = sum(pairs[i, k] for k in range(24) if k % 8 != i % 8)
        terms += [
            -torch.log(pairs[i, j] / (pairs[i, j] + negatives)) for j in positives
        ]
    side = nt_xent(z[16:], z[8:16], 0.5)  # adversary against second view
    expected = torch.stack(terms).mean() + side / 512
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert abs(side - nt_xent(z[:8], z[8:16], 0.5)) / 512 > 1e-5 * expected, (
        "the side term must be told apart"
    )


def statistics(model, index):
    return {n: b.clone() for n, b in model.named_buffers() if f"norms.{index}." in n}


def test_clean_views_update_clean_statistics_and_adversaries_theirs():
    state, data = fresh("rocl")
    x = data.signals[:16]
    for adversarial in (False, True):
        before = [statistics(state.model, index) for index in (0, 1)]
        state.embed(x, adversarial)
        after = [statistics(state.model, index) for index in (0, 1)]
        own, other = int(adversarial), 1 - int(adversarial)
        assert all(
            torch.equal(after[other][name], before[other][name])
            for name in before[other]
        )
        assert not any(
            torch.equal(after[own][name], before[own][name]) for name in before[own]
        )


@pytest.mark.parametrize("arm", ["rocl", "acl", "adv-supcon"])
def test_one_step_updates_each_statistics_once(arm):
    state, data = fresh(arm)
    arm_loss(state, data, torch.arange(16))
    counts = [
        b.item() for n, b in state.model.named_buffers() if "num_batches_tracked" in n
    ]
    assert set(counts) == {1}


def test_evaluation_mode_nests_and_is_left_as_it_was():
    state, data = fresh("rocl")
    before = {name: b.clone() for name, b in state.model.named_buffers()}
    with evaluation_mode(state.model):
        arm_loss(state, data, torch.arange(16))
        assert not state.model.training
    assert state.model.training
    assert all(torch.equal(b, before[name]) for name, b in state.model.named_buffers())


def test_a_batch_stacks_two_clean_and_one_adversarial_row_a_record():
    state, data = fresh("rocl")
    batch = embed_batch(
        state, data, torch.tensor([3, 40, 41]), THREE, state.arm.adversary
    )
    embedded, rows = batch.stacked(THREE)
    assert embedded.shape == (9, 16)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(9))
    assert rows.record.tolist() == [3, 40, 41] * 3
    assert rows.adversarial.tolist() == [False] * 6 + [True] * 3
    assert rows.patient[1] == rows.patient[2] != rows.patient[0]


def test_a_finished_run_loads_as_it_was_stored(tmp_path):
    run = toy_run("rocl")
    pretrain(run, RECORDS, tmp_path)
    state, data = load_trained(run, RECORDS, tmp_path)
    stored, _ = load_tensors(tmp_path / "encoder.safetensors")
    assert all(
        torch.equal(t, stored[name].to(t.dtype))
        for name, t in state.model.state_dict().items()
    )
    assert len(data.signals) == 80


def test_a_standard_deviation_over_leads_and_a_mean_of_each_standardise_the_signals():
    state, _ = fresh("simclr")
    signals = RECORDS.split("train").signals
    np.testing.assert_allclose(
        state.model["encoder"].mean_mv, signals.mean((0, 2)), atol=1e-6
    )
    np.testing.assert_allclose(state.model["encoder"].std_mv, signals.std(), rtol=1e-4)
