import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Generator, nn
from torch.nn import functional

from ecgstudy.models.heads import Classifier, fit_linear_probe, label_loss, zero_head


def noise(*shape, seed=0):
    return torch.randn(shape, generator=Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_single_label_loss_and_gradient_are_those_of_softmax_cross_entropy(
    classes, scale
):
    logits, index = (
        (scale * noise(20, classes)).requires_grad_(),
        torch.arange(20) % classes,
    )
    loss = label_loss(
        logits, functional.one_hot(index, classes).float(), multilabel=False
    )
    expected = functional.cross_entropy(logits, index, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(loss.sum(), logits)
    (theirs,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_multi_label_loss_is_the_sum_of_binary_cross_entropies(scale):
    logits, labels = scale * noise(20, 5), (noise(20, 5, seed=1) > 0).float()
    expected = functional.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    ).sum(1)
    torch.testing.assert_close(label_loss(logits, labels, multilabel=True), expected)


def test_loss_is_float32_for_bfloat16_logits():
    labels = functional.one_hot(torch.arange(4) % 3, 3).float()
    assert (
        label_loss(noise(4, 3).bfloat16(), labels, multilabel=False).dtype
        == torch.float32
    )


def test_a_zero_head_finds_every_class_equally_likely():
    head = zero_head(7, 4)
    torch.testing.assert_close(head(noise(5, 7)).softmax(1), torch.full((5, 4), 0.25))


def problem(multilabel, records=600, features=6):
    """Overlapping classes, features of very different means and scales."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(records, features))
    logits = x @ rng.normal(size=(features, 3)) + rng.logistic(size=(records, 3))
    labels = logits > 0.3 if multilabel else np.eye(3, dtype=bool)[logits.argmax(1)]
    raw = x * np.array([1, 10, 0.01, 5, 1, 100]) + np.array([0, 30, 1, -5, 0.1, 40])
    return torch.tensor(raw, dtype=torch.float32), torch.tensor(
        labels, dtype=torch.float32
    )


def fit(features, labels, multilabel, **changes):
    options = {
        "epochs": 60,
        "batch_size": 50,
        "learning_rate": 0.02,
        "weight_decay": 0.0,
        **changes,
    }
    return fit_linear_probe(
        features, labels, multilabel, **options, generator=Generator().manual_seed(0)
    )


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_probe_comes_near_the_optimum_of_logistic_regression(multilabel):
    features, labels = problem(multilabel)
    standard = ((features - features.mean(0)) / features.std(0)).double().numpy()
    best = LogisticRegression(C=1e6, max_iter=1000)
    if multilabel:
        logits = [
            best.fit(standard, column).decision_function(standard)
            for column in labels.numpy().T
        ]
        optimum = np.stack(logits, 1)
    else:
        optimum = best.fit(standard, labels.numpy().argmax(1)).decision_function(
            standard
        )
    reached, lowest, start = (
        label_loss(torch.as_tensor(logits).float(), labels, multilabel).mean().item()
        for logits in (
            fit(features, labels, multilabel)(features),
            optimum,
            torch.zeros_like(labels),
        )
    )
    assert lowest - 1e-4 <= reached < lowest + 0.01
    assert start > lowest + 0.2, "there is something to learn"


def test_the_probe_starts_at_zero():
    features, labels = problem(False)
    head = fit(features, labels, False, learning_rate=0.0)
    torch.testing.assert_close(head(features), torch.zeros(600, 3))


def test_the_standardisation_is_folded_into_the_head_exactly():
    features, labels = problem(True)
    mean, std = features.mean(0), features.std(0)
    raw, standard = (
        fit(features, labels, True),
        fit((features - mean) / std, labels, True),
    )
    torch.testing.assert_close(raw.weight * std, standard.weight, rtol=1e-3, atol=1e-3)
    new = 2 * features[:50] + 1
    torch.testing.assert_close(
        raw(new), standard((new - mean) / std), rtol=1e-2, atol=1e-2
    )


def test_a_feature_that_never_changes_in_training_gets_no_weight():
    features, labels = problem(False)
    dead = torch.cat([features, torch.zeros(600, 1)], 1)
    head = fit(dead, labels, False)
    assert torch.equal(head.weight[:, -1], torch.zeros(3))
    assert torch.isfinite(head.weight).all()


def test_a_constant_feature_does_not_spoil_the_others():
    features, labels = problem(False)
    constant = torch.cat([features, torch.full((600, 1), 1234.567)], 1)
    loss = label_loss(fit(constant, labels, False)(constant), labels, False).mean()
    assert (
        loss
        < label_loss(fit(features, labels, False)(features), labels, False).mean()
        + 0.01
    )


def test_the_probe_depends_on_its_generator_only_and_keeps_the_features():
    features, labels = problem(False)
    before = copy.deepcopy(features)
    torch.manual_seed(1)
    first = fit(features, labels, False, epochs=3)
    torch.manual_seed(2)
    second = fit(features, labels, False, epochs=3)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(features, before)
    assert not any(p.requires_grad for p in first.parameters())


def test_fewer_records_than_a_batch_are_one_batch():
    features, labels = problem(False, records=20)
    head = fit(features, labels, False, batch_size=512)
    assert label_loss(head(features), labels, False).mean() < 0.8


def test_a_classifier_applies_the_head_to_features_of_adversarial_statistics():
    class Encoder(nn.Module):
        def forward(self, signals, adversarial):
            return signals.mean(2).bfloat16() * (2 if adversarial else 1)

    x, head = noise(4, 3, 10), nn.Linear(3, 2)
    expected = (x.mean(2).bfloat16() * 2).float() @ head.weight.T + head.bias
    torch.testing.assert_close(Classifier(Encoder(), head)(x), expected)
