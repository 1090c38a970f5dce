"""Small models to attack, and the ECGs and labels they are attacked on."""

import pandas as pd
import torch
from torch import Generator, nn
from toy import toy_records

from ecgstudy.attacks import named as attacks
from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.evaluation.attack_run import AttackRun
from ecgstudy.evaluation.sample import macro_auroc
from ecgstudy.records import EcgRecords


def seeded(seed=0):
    return Generator().manual_seed(seed)


def as_records(signals, labels, leads=("I", "II"), multilabel=True):
    """Test records of these signals (records, leads, samples) in mV and labels."""
    ids = [str(row) for row in range(len(signals))]
    table = pd.DataFrame({"record": ids, "patient": ids, "split": "test"})
    y, classes = labels.numpy(), tuple("ABCD"[: labels.shape[1]])
    y = y if multilabel else y.argmax(1)
    table["attacked"] = True
    return EcgRecords("toy", signals.numpy(), 100.0, leads, y, classes, table)


def attack_run(victim, records, options):
    """An attack run on the CPU that has not begun."""
    return AttackRun(victim, records, options, ("test",), torch.device("cpu"))


def linear(leads=2, samples=5, classes=3, fs=100.0, seed=0):
    """A linear victim and its weights (classes, leads, samples)."""
    weight = torch.randn(classes, leads, samples, generator=seeded(seed))
    return Victim(
        lambda x: x.flatten(1) @ weight.flatten(1).T, True, lambda x: x.flatten(1), fs
    ), weight


def curved(leads=2, samples=5, classes=3, fs=100.0, seed=0):
    """A victim with a curved loss surface."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inner, outer = nn.Linear(leads * samples, 16), nn.Linear(16, classes)
    model = nn.Sequential(inner, outer).requires_grad_(False)
    features = lambda x: torch.sin(3 * model[0](x.flatten(1)))  # noqa: E731
    return Victim(lambda x: model[1](features(x)), True, features, fs)


def ecgs(records=6, leads=2, samples=5, classes=3, seed=1):
    """Random signals in mV and multi-hot labels that have both kinds in every class."""
    labels = torch.eye(classes)[torch.arange(records) % classes]
    labels[0] = 1 - labels[0]
    return torch.randn(records, leads, samples, generator=seeded(seed)), labels


def fitted():
    """A victim that tells the toy classes apart, and the ECGs and labels it was fitted on."""
    records = toy_records(multilabel=True)
    signals, labels = torch.tensor(records.signals), torch.tensor(records.multi_hot())
    inner = torch.randn(signals[0].numel(), 64, generator=seeded()) / 15
    features = lambda x: torch.tanh(x.flatten(1) @ inner)  # noqa: E731
    clean = features(signals)
    head = torch.linalg.solve(
        clean.T @ clean + torch.eye(64), clean.T @ (2 * labels - 1)
    )
    return (
        Victim(lambda x: features(x) @ head, True, features, records.fs),
        signals,
        labels,
    )


def aurocs(name, epsilon_mv, **budget):
    """Macro AUROC of the fitted victim: clean, under noise, under the attack called `name`."""
    victim, signals, labels = fitted()
    found = [torch.zeros_like(signals)]
    for attack in ("noise", name):
        budgeted = Budget(epsilon_mv, **budget)
        found.append(
            attacks.get_attack(attack)(victim, signals, labels, budgeted, seeded())
        )
    return [macro_auroc(labels, victim.scores(signals + delta)) for delta in found]
