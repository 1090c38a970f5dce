"""The same attacks by foolbox, ART and AutoAttack's authors, on one small softmax model
of two leads."""

import warnings

import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from pyautoattack import AutoAttack
from torch import Generator, nn
from torch.nn.functional import cross_entropy

from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.ball import ascend
from ecgstudy.attacks.ensemble import combine
from ecgstudy.attacks.gradient import pgd
from ecgstudy.attacks.named import get_attack, scores_problem
from ecgstudy.evaluation.sample import macro_auroc

with warnings.catch_warnings():  # foolbox imports a name that scipy is about to drop
    warnings.filterwarnings(
        "ignore", "Please import `gaussian_filter`", DeprecationWarning
    )
    import foolbox

EPSILON, LEADS, SAMPLES, CLASSES = 0.1, 2, 64, 4


def bumps(records, seed):
    """Noisy ECG-like signals in mV: class c has its bump at a time of its own."""
    rng, sample = np.random.default_rng(seed), np.arange(SAMPLES)
    y = np.arange(records) % CLASSES
    centre = 12 + 13 * y + rng.normal(0, 2.5, records)
    bump = np.exp(-(((sample - centre[:, None]) / 4) ** 2)) * rng.uniform(
        0.3, 1, (records, 1)
    )
    signals = bump[:, None] * np.array([[1.0], [-0.6]]) + rng.normal(
        0, 0.15, (records, LEADS, SAMPLES)
    )
    return torch.tensor(signals, dtype=torch.float32), torch.tensor(y)


@pytest.fixture(scope="module")
def model():
    """A convolutional network, trained for a second to an accuracy of 0.99."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv1d(LEADS, 12, 7, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv1d(12, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.AvgPool1d(4),
            nn.Flatten(),
            nn.Linear(64, CLASSES),
        )
    signals, y = bumps(400, 1)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        cross_entropy(net(signals), y).backward()
        optimiser.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sample():
    """Other records than the model was trained on: signals, classes, one-hot labels."""
    signals, y = bumps(200, 2)
    return signals, y, torch.eye(CLASSES)[y]


@pytest.fixture
def own_stream():
    """Peers draw from the global streams: seeded here, and put back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        yield
    np.random.set_state(state)  # noqa: NPY002


def art_classifier(model):
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (LEADS, SAMPLES), CLASSES, device_type="cpu"
    )


def seeded(seed=0):
    return Generator().manual_seed(seed)


def loss_of(model, signals, y):
    return cross_entropy(model(signals), y).item()


def accuracy_of(model, signals, y):
    return (model(signals).argmax(1) == y).float().mean().item()


def foolbox_pgd(model, signals, y, epsilon, norm, steps, step):
    size = {"linf": 1.0, "l2": signals[0].numel() ** 0.5}[norm]
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    attack = kind(abs_stepsize=step * size, steps=steps, random_start=False)
    known = foolbox.PyTorchModel(model, bounds=(-10, 10), device="cpu")
    return attack.run(
        known, signals, foolbox.criteria.Misclassification(y), epsilon=epsilon * size
    )


def art_pgd(model, signals, y, epsilon, norm, steps, step):
    size = {"linf": 1.0, "l2": signals[0].numel() ** 0.5}[norm]
    attack = ProjectedGradientDescent(
        art_classifier(model),
        {"linf": np.inf, "l2": 2}[norm],
        epsilon * size,
        step * size,
        max_iter=steps,
        batch_size=len(signals),
        verbose=False,
    )
    return torch.tensor(attack.generate(signals.numpy(), np.eye(CLASSES)[y]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("peer", [foolbox_pgd, art_pgd])
def test_pgd_reaches_the_loss_of_its_peers_at_equal_budget(
    peer, norm, model, sample, own_stream
):
    """Equal steps of equal length from δ = 0.

    On torch's cross-entropy the loops agree (0.1 %). On our own, whose gradient stays
    exact where a prediction is sure, and with the best iterate kept, we end higher.
    """
    signals, y, labels = sample
    budget = Budget(EPSILON, steps=20, norm=norm)
    theirs = loss_of(
        model, peer(model, signals, y, EPSILON, norm, 20, budget.step_mv), y
    )
    same = ascend(
        lambda x: cross_entropy(model(x), y, reduction="none"),
        signals,
        torch.zeros_like(signals),
        budget.ball,
        steps=20,
        step_mv=budget.step_mv,
    )
    problem = scores_problem("ce", Victim(model, False), signals, labels)
    ours = signals + pgd(problem, budget, seeded(), random_start=False)
    assert theirs > 5 * loss_of(model, signals, y)
    assert loss_of(model, signals + same, y) == pytest.approx(theirs, rel=0.001)
    assert loss_of(model, ours, y) > theirs


@pytest.mark.parametrize(
    ("name", "loss"),
    [("apgd-ce", "cross_entropy"), ("apgd-dlr", "difference_logits_ratio")],
)
def test_apgd_reaches_the_robust_accuracy_of_arts_autopgd(
    name, loss, model, sample, own_stream
):
    signals, y, labels = sample
    attack = AutoProjectedGradientDescent(
        art_classifier(model),
        np.inf,
        EPSILON,
        2 * EPSILON,
        max_iter=100,
        nb_random_init=1,
        batch_size=len(signals),
        loss_type=loss,
        verbose=False,
    )
    theirs = torch.tensor(attack.generate(signals.numpy(), labels.numpy()))
    delta = get_attack(name)(
        Victim(model, False), signals, labels, Budget(EPSILON, 100), seeded()
    )
    ours = accuracy_of(model, signals + delta, y)
    assert ours <= accuracy_of(model, theirs, y) + 0.005
    assert ours < 0.5 < 0.98 < accuracy_of(model, signals, y)


class Picture(nn.Module):
    """The model for pictures (records, leads, 1, samples) of values from 0, which is
    −10 mV, to 1, 10 mV."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pictures):
        return self.model(20 * pictures[:, :, 0] - 10)


def autoattack(model, signals, y):
    """Signals perturbed by AutoAttack's standard version, with as many targets as there
    are wrong classes."""
    peer = AutoAttack(Picture(model), eps=EPSILON / 20, seed=0)
    peer.apgd_targeted.n_target_classes = peer.fab.n_target_classes = CLASSES - 1
    pictures, _ = peer.run_standard_evaluation(((signals + 10) / 20)[:, :, None], y)
    return 20 * pictures[:, :, 0] - 10


MEMBERS = ["apgd-ce", "apgd-margin", "apgd-margin-even", "apgd-dlr-targeted", "square"]


def test_the_ensemble_reaches_the_robust_accuracy_and_auroc_of_autoattack(
    model, sample, own_stream
):
    """A record is robust when no member changes its class.

    AutoAttack stops there, and leaves the robust records as they are; the ensemble goes
    on to lower AUROC, which shows.
    """
    signals, y, labels = sample
    victim, budget = Victim(model, False), Budget(EPSILON, 100, queries=300)
    deltas = [
        get_attack(name)(victim, signals, labels, budget, seeded()) for name in MEMBERS
    ]
    scores = torch.stack([victim.scores(signals + delta) for delta in deltas])
    theirs = autoattack(model, signals, y)
    assert (theirs - signals).abs().max() <= EPSILON + 1e-5
    robust = (scores.argmax(2) == y).all(0).float().mean().item()
    assert 0.1 < robust <= accuracy_of(model, theirs, y) + 0.005
    worst = scores[combine(scores, labels), torch.arange(len(y))]
    assert (
        macro_auroc(labels, worst) < macro_auroc(labels, victim.scores(theirs)) - 0.02
    )
