"""Fine-tuning under attack: against closed forms, plain recomputation, and clean training."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from test_resume import of_a_gpu
from torch import Generator
from torch.nn import functional
from toy import toy_records, toy_run

from ecgstudy.errors import StudyError
from ecgstudy.evaluation import finetune
from ecgstudy.evaluation import runner as robustness
from ecgstudy.evaluation.finetune import (
    aff_start,
    alf_start,
    fine_tuned,
    tuning_loss,
    unstandardised,
)
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.models.checkpoints import load_classifier, load_encoder
from ecgstudy.models.heads import fit_linear_probe
from ecgstudy.params import AffOptions, AlfOptions, AttackOptions
from ecgstudy.pretraining.state import Data
from ecgstudy.running.launch import pretrain
from ecgstudy.study import derived_seed

CPU = torch.device("cpu")


def with_options(run, epsilon_mv=0.2, **sections):
    """`run` with another headline ε and other sections of its study."""
    datasets = {
        "toy": run.study.datasets["toy"].model_copy(
            update={"headline_epsilon_mv": epsilon_mv}
        )
    }
    return dataclasses.replace(
        run, study=run.study.model_copy(update={"datasets": datasets, **sections})
    )


@pytest.fixture(scope="module", params=["rocl-multi-label", "supervised-one-label"])
def trained(request, tmp_path_factory):
    """A pretrained run (dual batch norm, no head; or one set and a head of its own), records, folder."""
    arm, _, kind = request.param.partition("-")
    records = toy_records(multilabel=kind == "multi-label")
    run = with_options(toy_run(arm, epochs=4, learning_rate=0.005))
    folder = tmp_path_factory.mktemp(arm) / "seed0"
    pretrain(run, records, folder)
    return SimpleNamespace(run=run, records=records, folder=folder)


def loaded(trained):
    return load_encoder(trained.folder)[0], Data.of(trained.records, CPU)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- alf -------------------------------------------------------------------------------------------


def test_alf_without_perturbation_is_clean_training_of_the_same_head(trained, tmp_path):
    encoder, data = loaded(trained)
    options = AlfOptions(epochs=5, batch_size=16, attack_steps=1)
    run = with_options(trained.run, epsilon_mv=1e-9)
    state = alf_start(run, encoder, data, options)
    finetune._train(state, data, options, tmp_path / "checkpoint.safetensors", "")
    found = unstandardised(state.model["head"])
    stream = Generator().manual_seed(derived_seed("toy", 0, "fine-tuning", "batches"))
    settings = {
        "epochs": 5,
        "batch_size": 16,
        "learning_rate": 0.01,
        "weight_decay": 1e-4,
    }
    with torch.no_grad():
        features = encoder(data.signals)
    expected = fit_linear_probe(
        features, data.labels, data.multilabel, **settings, generator=stream
    )
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-3, atol=1e-4)


def test_alf_leaves_the_encoder_alone_bit_for_bit(trained):
    before, stored = load_encoder(trained.folder)[0].state_dict(), files(trained.folder)
    run = with_options(
        trained.run, alf=AlfOptions(epochs=1, batch_size=16, attack_steps=2)
    )
    encoder, _, _ = fine_tuned(run, trained.records, trained.folder / "alf", "alf")
    assert not encoder.training
    assert all(
        torch.equal(before[name], tensor)
        for name, tensor in encoder.state_dict().items()
    )
    assert files(trained.folder) == stored


def test_alf_minimises_the_loss_of_the_worst_case_of_a_linear_model():
    """Behind a linear encoder the worst δ of a two-class linear model is known: −ε y sign(w)."""
    rng = np.random.default_rng(0)
    signals = torch.tensor(rng.normal(size=(64, 1, 4)), dtype=torch.float32)
    hot = torch.eye(2)[(signals[:, 0, 0] > 0).long()]
    run, records = with_options(toy_run("supervised"), epsilon_mv=0.1), toy_records()
    data = dataclasses.replace(
        Data.of(records, CPU), signals=signals, labels=hot, multilabel=False
    )
    state = alf_start(
        run, Flat(), data, AlfOptions(batch_size=64, attack_steps=20, attack_step=0.2)
    )
    index = torch.arange(64)
    tuning_loss(state, data, index).backward()
    state.optimizer.step()  # away from zero, where no attack has a direction
    linear = unstandardised(copy_of(state.model["head"]))
    w, b = linear.weight[1] - linear.weight[0], linear.bias[1] - linear.bias[0]
    y = 2 * hot[:, 1] - 1
    margins = y * (signals.flatten(1) @ w + b) - 0.1 * w.abs().sum()
    found = tuning_loss(state, data, index)
    torch.testing.assert_close(found.detach(), functional.softplus(-margins).mean())


class Flat(torch.nn.Module):
    """Signals as features."""

    def forward(self, signals, adversarial=True):
        return signals.flatten(1)


def copy_of(head):
    return torch.nn.Sequential(*(load_like(part) for part in head))


def load_like(part):
    other = (
        type(part)(4, eps=0.0, affine=False)
        if hasattr(part, "eps")
        else torch.nn.Linear(4, 2)
    )
    other.load_state_dict(part.state_dict())
    return other


# ---- aff -------------------------------------------------------------------------------------------


def test_aff_starts_as_the_pretrained_encoder_under_attack_and_a_zero_head(trained):
    encoder, data = loaded(trained)
    with torch.no_grad():
        expected = encoder(data.signals, adversarial=True)
    state = aff_start(trained.run, encoder, data, AffOptions())
    assert state.model.training
    model = state.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model["encoder"](data.signals), expected)
    assert not any(tensor.any() for tensor in model["head"].state_dict().values())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_aff_minimises_cross_entropy_and_beta_times_the_shift_of_predictions(
    trained, monkeypatch
):
    encoder, data = loaded(trained)
    index, beta = torch.arange(12), 3.0
    moved = 0.1 * torch.randn(12, 2, 96, generator=Generator().manual_seed(1))
    state = aff_start(trained.run, encoder, data, AffOptions(beta=beta))
    torch.nn.init.normal_(
        state.model["head"].weight, generator=Generator().manual_seed(2)
    )
    monkeypatch.setattr(
        finetune,
        "attack_views",
        lambda state, batch, attack: {"0*": batch.signals["0"] + moved},
    )
    start = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    found = tuning_loss(state, data, index)
    state.model.load_state_dict(start)  # batch norm has moved
    encoder, head = state.model["encoder"], state.model["head"]
    clean, attacked = (
        head(encoder(x)) for x in (data.signals[index], data.signals[index] + moved)
    )
    labels, terms = data.labels[index], []
    for row in range(12):
        p, q, y = clean[row], attacked[row], labels[row]
        if data.multilabel:
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
        terms.append(ce + beta * kl)
    torch.testing.assert_close(found, torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)


def test_without_beta_the_attack_counts_for_nothing(trained, monkeypatch):
    losses = []
    for size in (0.0, 0.5):
        encoder, data = loaded(trained)
        state = aff_start(trained.run, encoder, data, AffOptions(beta=0.0))
        monkeypatch.setattr(
            finetune,
            "attack_views",
            lambda state, batch, attack, by=size: {"0*": batch.signals["0"] + by},
        )
        losses.append(tuning_loss(state, data, torch.arange(20)).item())
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(
        np.log(2) * 3 if data.multilabel else np.log(3), rel=1e-5
    )  # zero head


def test_the_attack_stays_in_the_ball_and_raises_what_it_should(trained):
    for start, options in ((alf_start, AlfOptions()), (aff_start, AffOptions())):
        encoder, data = loaded(trained)
        state = start(trained.run, encoder, data, options)
        last = [
            m for m in state.model["head"].modules() if isinstance(m, torch.nn.Linear)
        ][-1]
        torch.nn.init.normal_(last.weight, generator=Generator().manual_seed(0))
        seen = []
        original = finetune.attack_views

        def watched(*args, seen=seen, original=original):
            seen.append(original(*args)["0*"])
            return {"0*": seen[-1]}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finetune, "attack_views", watched)
            tuning_loss(state, data, torch.arange(32))
        delta = seen[0] - data.signals[:32]
        assert 0.15 < float(delta.abs().max()) <= 0.2 + 1e-5
        assert float((delta.abs() > 0.1).float().mean()) > 0.5


# ---- stored, resumed, refused ----------------------------------------------------------------------


def test_an_interrupted_fine_tuning_continues_exactly(trained, tmp_path, monkeypatch):
    run = with_options(
        trained.run, aff=AffOptions(epochs=3, batch_size=16, attack_steps=2)
    )
    whole, broken = trained.folder / "aff", trained.folder / "aff@again"
    fine_tuned(run, trained.records, whole, "aff")
    original, calls = finetune._epoch, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(finetune, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        fine_tuned(run, trained.records, broken, "aff")
    assert {path.name for path in broken.iterdir()} == {"checkpoint.safetensors"}
    ours = (broken / "checkpoint.safetensors").read_bytes()
    of_a_gpu(broken / "checkpoint.safetensors")
    with pytest.raises(
        StudyError, match=r"aff@again/checkpoint\.safetensors: begun on a GPU"
    ):
        fine_tuned(run, trained.records, broken, "aff")
    (broken / "checkpoint.safetensors").write_bytes(ours)
    fine_tuned(run, trained.records, broken, "aff")
    assert len(calls) == 4  # the third epoch again, and no other
    assert files(broken) == files(whole)
    assert set(files(broken)) == {"encoder.safetensors", "encoder.json"}
    fine_tuned(run, trained.records, broken, "aff")
    assert len(calls) == 4  # what is stored is used
    other = with_options(run, aff=AffOptions(epochs=1, batch_size=16, attack_steps=1))
    fine_tuned(other, trained.records, broken, "aff")
    assert len(calls) == 5
    assert files(broken)["encoder.safetensors"] != files(whole)["encoder.safetensors"]


def test_a_loss_that_is_not_finite_is_an_error(trained):
    options = AffOptions(epochs=1, batch_size=16, attack_steps=1, learning_rate=1e30)
    run, says = (
        with_options(trained.run, aff=options),
        r"seed 0: the loss became (nan|inf) in epoch 1 of fine-",
    )
    with pytest.raises(StudyError, match=says):
        fine_tuned(run, trained.records, trained.folder / "aff@bad", "aff")
    assert not (trained.folder / "aff@bad").exists()


@pytest.mark.parametrize("change", [{"fs": 360.0}, {"leads": ("I", "MLII")}])
@pytest.mark.parametrize("protocol", ["slf@toy2", "alf", "aff"])
def test_leads_and_rate_that_differ_are_an_error_that_names_both(
    trained, change, protocol
):
    records = dataclasses.replace(trained.records, name="toy2", **change)
    says = "this encoder of toy takes leads I, II at 100 Hz, toy2 has leads .*; give both data sets the same"
    run = with_options(trained.run)
    study = run.study.model_copy(
        update={"datasets": {**run.study.datasets, "toy2": run.study.datasets["toy"]}}
    )
    with pytest.raises(StudyError, match=says):
        evaluate(
            dataclasses.replace(run, study=study),
            records,
            trained.folder / protocol,
            protocol,
        )


def shared_auroc(scores, attack):
    rows = scores[
        (scores["attack"] == attack)
        & (scores["view"] == "shared")
        & (scores["split"] == "test")
    ]
    return np.mean([roc_auc_score(rows[f"y_{c}"], rows[f"score_{c}"]) for c in "ABC"])


def test_adversarial_fine_tuning_raises_robust_auroc(trained, monkeypatch):
    monkeypatch.setattr(
        robustness, "masking_checks", lambda *_: []
    )  # costs more than all else here
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
