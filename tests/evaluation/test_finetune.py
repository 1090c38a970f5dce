"""Training under attack: against closed forms, recomputation, and clean training."""

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from test_resume import of_a_gpu
from torch import Generator, nn
from torch.nn import functional
from toy import toy_records, toy_run

from ecgstudy.errors import StudyError
from ecgstudy.evaluation import runner
from ecgstudy.evaluation.classifier import fit_victim
from ecgstudy.evaluation.finetune import (
    Tuning,
    fold_standardisation,
    free_all_weights,
    standardise,
)
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.models.checkpoints import load_classifier, load_encoder
from ecgstudy.models.encoders import fold_batch_norms
from ecgstudy.models.heads import Classifier, fit_linear_probe, zero_head
from ecgstudy.params import AffOptions, AlfOptions, AttackOptions
from ecgstudy.running.launch import pretrain
from ecgstudy.study import derived_seed


def with_options(run, **sections):
    """`run` with a headline ε of 0.2 mV and other sections of its study."""
    options = run.study.datasets["toy"]
    options = options.model_copy(update={"headline_epsilon_mv": 0.2})
    sections = {"datasets": {"toy": options}, **sections}
    return dataclasses.replace(run, study=run.study.model_copy(update=sections))


@pytest.fixture(scope="module", params=["rocl-multi-label", "supervised-one-label"])
def trained(request, tmp_path_factory):
    """A pretrained run (dual batch norm and no head; or one set and a head)."""
    arm, _, kind = request.param.partition("-")
    records = toy_records(multilabel=kind == "multi-label")
    run = with_options(toy_run(arm, epochs=4, learning_rate=0.005))
    folder = tmp_path_factory.mktemp(arm) / "seed0"
    pretrain(run, records, folder)
    return SimpleNamespace(run=run, records=records, folder=folder)


def training(trained):
    """Signals and labels of the training records."""
    train = trained.records.split("train")
    return torch.tensor(train.signals), torch.tensor(train.multi_hot())


def tuning(trained, options, encoder=None, epsilon_mv=0.2, **changes):
    """The pretrained encoder and a zero head, ready for `aff` or else `alf`."""
    encoder = encoder or load_encoder(trained.folder)[0]
    signals, labels = changes.get("data", training(trained))
    with torch.no_grad():
        features = encoder(signals)
    model = Classifier(encoder, zero_head(features.shape[1], labels.shape[1]))
    if isinstance(options, AffOptions):
        free_all_weights(model)
    else:
        standardise(model, features)
    streams = {}
    for name in ("batches", "attack"):
        seed = derived_seed("toy", 0, "fine-tuning", name)
        streams[name] = Generator().manual_seed(seed)
    multilabel = changes.get("multilabel", trained.records.multilabel)
    return Tuning(model, options, epsilon_mv, multilabel, streams)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- alf -------------------------------------------------------------------------


def test_alf_without_perturbation_is_clean_training_of_the_same_head(trained, tmp_path):
    options = AlfOptions(epochs=5, batch_size=16, attack_steps=1)
    one = tuning(trained, options, epsilon_mv=1e-9)
    one.run(trained.records.split("train"), tmp_path / "checkpoint.safetensors", "")
    found = fold_standardisation(one.model.head)
    signals, labels = training(trained)
    with torch.no_grad():
        features = load_encoder(trained.folder)[0](signals)
    expected = fit_linear_probe(
        features,
        labels,
        trained.records.multilabel,
        epochs=5,
        batch_size=16,
        learning_rate=0.01,
        weight_decay=1e-4,
        generator=Generator().manual_seed(
            derived_seed("toy", 0, "fine-tuning", "batches")
        ),
    )
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-3, atol=1e-4)


def test_alf_leaves_the_encoder_alone_bit_for_bit(trained):
    stored = files(trained.folder)
    options = AlfOptions(epochs=1, batch_size=16, attack_steps=2)
    run = with_options(trained.run, alf=options)
    victim, _ = fit_victim(run, trained.records, trained.folder, "alf")
    assert not victim.model.training
    before = fold_batch_norms(load_encoder(trained.folder)[0]).state_dict()
    for name, tensor in victim.model.encoder.state_dict().items():
        assert torch.equal(before[name], tensor)
    assert files(trained.folder) == stored


class Flat(nn.Module):
    """Signals as features."""

    def forward(self, signals, adversarial=True):
        return signals.flatten(1)


def test_alf_minimises_the_loss_of_the_worst_case_of_a_linear_model(trained):
    """Behind a linear encoder the worst δ of a two-class linear model is known: −ε y
    sign(w)."""
    rng = np.random.default_rng(0)
    signals = torch.tensor(rng.normal(size=(64, 1, 4)), dtype=torch.float32)
    hot = torch.eye(2)[(signals[:, 0, 0] > 0).long()]
    options = AlfOptions(batch_size=64, attack_steps=20, attack_step=0.2)
    data = {"data": (signals, hot), "multilabel": False}
    one = tuning(trained, options, Flat(), epsilon_mv=0.1, **data)
    linear = one.model.head[1]
    with torch.no_grad():  # away from zero, where no attack has a direction
        linear.weight += torch.tensor([[1.0], [-1.0]]) * torch.tensor(
            [-2, 1.0, 0.5, -1]
        )
    standard = one.model.head[0].running_var.sqrt()
    w = (linear.weight[1] - linear.weight[0]) / standard
    b = -(w * one.model.head[0].running_mean).sum()
    y = 2 * hot[:, 1] - 1
    margins = y * (signals.flatten(1) @ w + b) - 0.1 * w.abs().sum()
    found = one.loss(signals, hot)
    torch.testing.assert_close(found.detach(), functional.softplus(-margins).mean())


# ---- aff -------------------------------------------------------------------------


def test_aff_starts_as_the_pretrained_encoder_under_attack_and_a_zero_head(trained):
    signals, _ = training(trained)
    with torch.no_grad():
        expected = load_encoder(trained.folder)[0](signals, adversarial=True)
    model = tuning(trained, AffOptions()).model
    assert model.training
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(signals), expected)
    assert not any(tensor.any() for tensor in model.head.state_dict().values())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_aff_minimises_cross_entropy_and_beta_times_the_shift_of_predictions(
    trained, monkeypatch
):
    signals, labels = (values[:12] for values in training(trained))
    moved = signals + 0.1 * torch.randn(12, 2, 96, generator=Generator().manual_seed(1))
    one = tuning(trained, AffOptions(beta=3.0))
    nn.init.normal_(one.model.head.weight, generator=Generator().manual_seed(2))
    monkeypatch.setattr(one, "attack", lambda signals, value: moved)
    start = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    found = one.loss(signals, labels)
    one.model.load_state_dict(start)  # batch norm has moved
    encoder, head = one.model.encoder, one.model.head
    clean, attacked = (head(encoder(x)) for x in (signals, moved))
    terms = []
    for p, q, y in zip(clean, attacked, labels, strict=True):
        if trained.records.multilabel:
            ce = functional.binary_cross_entropy_with_logits(p, y, reduction="sum")
            pairs = [
                (torch.stack([a, -a]) / 2, torch.stack([b, -b]) / 2)
                for a, b in zip(p, q, strict=True)
            ]
        else:
            ce, pairs = functional.cross_entropy(p[None], y.argmax()[None]), [(p, q)]
        kl = sum(
            (a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0))).sum()
            for a, b in pairs
        )
        terms.append(ce + 3.0 * kl)
    torch.testing.assert_close(found, torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)


def test_without_beta_the_attack_counts_for_nothing(trained, monkeypatch):
    signals, labels = (values[:20] for values in training(trained))
    losses = []
    for size in (0.0, 0.5):
        one = tuning(trained, AffOptions(beta=0.0))
        monkeypatch.setattr(one, "attack", lambda signals, value, by=size: signals + by)
        losses.append(one.loss(signals, labels).item())
    assert losses[0] == losses[1]
    expected = np.log(2) * 3 if trained.records.multilabel else np.log(3)
    assert losses[0] == pytest.approx(expected, rel=1e-5)  # zero head


@pytest.mark.parametrize("options", [AlfOptions(), AffOptions()])
def test_the_attack_stays_in_the_ball_and_raises_what_it_should(
    trained, options, monkeypatch
):
    signals, labels = (values[:32] for values in training(trained))
    one = tuning(trained, options)
    last = [m for m in one.model.head.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.normal_(last.weight, generator=Generator().manual_seed(0))
    seen, attack = [], one.attack
    monkeypatch.setattr(one, "attack", lambda *a: seen.append(attack(*a)) or seen[-1])
    one.loss(signals, labels)
    delta = (seen[0] - signals).abs()
    assert 0.15 < float(delta.max()) <= 0.2 + 1e-5
    assert float((delta > 0.1).float().mean()) > 0.5


# ---- stored, resumed, refused ----------------------------------------------------


def test_an_interrupted_fine_tuning_continues_exactly(trained, tmp_path, monkeypatch):
    options = AffOptions(epochs=3, batch_size=16, attack_steps=2)
    run = with_options(trained.run, aff=options)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        shutil.copytree(trained.folder, folder)
    fit_victim(run, trained.records, whole, "aff")
    loss, calls = Tuning.loss, []

    def killed(self, *batch):
        calls.append(batch)
        if len(calls) == 12:  # in the third epoch of five steps
            raise KeyboardInterrupt
        return loss(self, *batch)

    monkeypatch.setattr(Tuning, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_victim(run, trained.records, broken, "aff")
    folder = broken / "aff"
    assert {path.name for path in folder.iterdir()} == {"checkpoint.safetensors"}
    ours = (folder / "checkpoint.safetensors").read_bytes()
    of_a_gpu(folder / "checkpoint.safetensors")
    with pytest.raises(
        StudyError, match=r"aff/checkpoint\.safetensors: begun on a GPU"
    ):
        fit_victim(run, trained.records, broken, "aff")
    (folder / "checkpoint.safetensors").write_bytes(ours)
    fit_victim(run, trained.records, broken, "aff")
    assert len(calls) == 12 + 5  # the third epoch again, and no other
    assert files(folder) == files(whole / "aff")
    assert {"encoder.safetensors", "encoder.json"} <= set(files(folder))
    fit_victim(run, trained.records, broken, "aff")
    assert len(calls) == 12 + 5  # what is stored is used
    options = AffOptions(epochs=1, batch_size=16, attack_steps=1)
    other = with_options(run, aff=options)
    fit_victim(other, trained.records, broken, "aff")
    assert len(calls) == 12 + 5 + 5
    name = "encoder.safetensors"
    assert files(folder)[name] != files(whole / "aff")[name]


def test_a_damaged_encoder_is_trained_again(trained, tmp_path):
    options = AffOptions(epochs=1, batch_size=16, attack_steps=1)
    run, folder = with_options(trained.run, aff=options), tmp_path / "seed0"
    shutil.copytree(trained.folder, folder)
    fit_victim(run, trained.records, folder, "aff")
    weights = folder / "aff" / "encoder.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    fit_victim(run, trained.records, folder, "aff")
    assert weights.read_bytes() == sound


def test_a_loss_that_is_not_finite_is_an_error(trained):
    options = AffOptions(epochs=1, batch_size=16, attack_steps=1, learning_rate=1e30)
    run = with_options(trained.run, aff=options)
    says = r"seed0/aff@bad: the loss became (nan|inf) in epoch 1 of fine-tuning"
    with pytest.raises(StudyError, match=says):
        fit_victim(run, trained.records, trained.folder, "aff@bad")
    assert not (trained.folder / "aff@bad").exists()


@pytest.mark.parametrize("change", [{"fs": 360.0}, {"leads": ("I", "MLII")}])
@pytest.mark.parametrize("protocol", ["slf@toy2", "alf", "aff"])
def test_leads_and_rate_that_differ_are_an_error_that_names_both(
    trained, change, protocol
):
    records = dataclasses.replace(trained.records, name="toy2", **change)
    options = trained.run.study.datasets["toy"]
    run = with_options(trained.run, datasets={"toy": options, "toy2": options})
    says = "encoder of toy takes leads I, II at 100 Hz, toy2 has leads .*; give both"
    with pytest.raises(StudyError, match=says):
        evaluate(run, records, trained.folder / protocol, protocol)


def shared_auroc(scores, attack):
    rows = scores[
        (scores["attack"] == attack)
        & (scores["view"] == "shared")
        & (scores["split"] == "test")
    ]
    return np.mean([roc_auc_score(rows[f"y_{c}"], rows[f"score_{c}"]) for c in "ABC"])


def test_adversarial_fine_tuning_raises_robust_auroc(trained, monkeypatch):
    # The checks cost more than all else here.
    monkeypatch.setattr(runner, "check_masking", lambda *_: [])
    attacks = AttackOptions(
        ensemble=["apgd-margin"], attacks=[], epsilons_mv=[0.2], steps=5, label_steps=1
    )
    sections = {"alf": AlfOptions(batch_size=16), "aff": AffOptions(batch_size=16)}
    run, robust = with_options(trained.run, evaluation=attacks, **sections), {}
    for protocol in ("slf", "alf", "aff"):
        folder = trained.folder / protocol
        scores = evaluate(run, trained.records, folder, protocol)
        robust[protocol] = shared_auroc(scores, "ensemble")
        assert shared_auroc(scores, "none") > 0.95
        model, form = load_classifier(folder)
        test = trained.records.split("test")
        clean = scores[(scores["attack"] == "none") & (scores["split"] == "test")]
        logits = model(torch.tensor(test.signals)).detach()
        p = logits.sigmoid() if form["multilabel"] else logits.softmax(1)
        found = clean[["score_A", "score_B", "score_C"]].to_numpy()
        np.testing.assert_allclose(found, (p / (1 - p)).log(), rtol=1e-3, atol=1e-3)
        assert load_file(folder / "head.safetensors")["weight"].dtype == torch.float16
    assert robust["slf"] + 0.05 < robust["alf"] < robust["aff"] - 0.05
