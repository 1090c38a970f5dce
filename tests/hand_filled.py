"""Batches with embeddings, features and predictions filled in by hand."""

import dataclasses
import functools

import torch
from label_loops import code_loss, cosine, cross_entropy, kl, sinkhorn
from loss_loops import (
    equal_pull,
    equal_push,
    hard_pull,
    hard_push,
    inferior,
    label_pull,
    label_push,
    mean,
    predicted_alike,
    risk_push,
    shared,
)
from toy import toy_records, toy_run

from ecgstudy.pretraining import step
from ecgstudy.pretraining.pairs import Rows
from ecgstudy.pretraining.setup import make_state
from ecgstudy.pretraining.state import Batch, Data
from ecgstudy.pretraining.step import arm_loss
from ecgstudy.pretraining.suffixes import get_arm

CPU = torch.device("cpu")
VIEWS = ("1", "2", "h", "0", "1*", "2*", "0*")


@functools.cache
def state_of(name, multilabel=False, loss="shared"):
    """A fresh state in float64, with random heads."""
    records = toy_records(multilabel=multilabel)
    data = Data.of(records, CPU)
    data.pseudo_labels = torch.stack([torch.arange(80) % 2, torch.arange(80) % 3], 1)
    state = make_state(toy_run(name, loss=loss), data)
    stream = torch.Generator().manual_seed(3)
    state.model.double()
    heads = [*state.model["head"].parameters()] if "head" in state.model else []
    heads += (
        [*state.model["clusters"].parameters()] if "clusters" in state.model else []
    )
    for parameter in heads:
        parameter.data = torch.randn(
            parameter.shape, generator=stream, dtype=torch.float64
        )
    return state


@dataclasses.dataclass
class Case:
    """A batch filled by hand, and the same numbers for the loops."""

    patients: tuple[int, ...] = (0, 1, 1, 2, 3)
    labels: tuple[tuple[int, ...], ...] = (
        (1, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 1, 0),
        (0, 0, 1),
    )
    multilabel: bool = False
    missing: float | None = None
    predictions: str = "drawn"
    spread: float = 0.7
    width: int = 4
    seed: int = 0

    def fill(self, name, loss="shared"):
        """Draw everything; returns the state whose loss is looked at."""
        self.state = state_of(name, self.multilabel, loss)
        self.tau, n = self.state.temperature, len(self.patients)
        stream = torch.Generator().manual_seed(self.seed)

        def normal(*shape):
            return torch.randn(shape, generator=stream, dtype=torch.float64)

        size = self.state.model["encoder"].features
        width = (
            self.state.model["prototypes"].in_features
            if "prototypes" in self.state.model
            else self.width
        )
        centre = normal(n, width)
        self.before = {
            v: (centre + self.spread * normal(n, width)).requires_grad_() for v in VIEWS
        }
        self.z = {
            v: torch.nn.functional.normalize(x, dim=1) for v, x in self.before.items()
        }
        self.f = {v: normal(n, size).requires_grad_() for v in VIEWS}
        self.teacher = {"0": normal(n, size)}
        self.clusters = torch.stack([torch.arange(n) % 2, torch.arange(n) % 3], 1)
        self.y = torch.tensor(self.labels, dtype=torch.float32)
        risk = torch.rand(n, generator=stream, dtype=torch.float64)
        missing = torch.rand(n, generator=stream, dtype=torch.float64)
        if self.missing is not None:
            risk, missing = (
                torch.full_like(risk, 0.1),
                torch.full_like(missing, self.missing),
            )
        said = torch.rand((len(VIEWS), n, 3), generator=stream).argmax(2)
        onehot = torch.nn.functional.one_hot(said, 3).float()
        if self.predictions == "all different":
            onehot = torch.arange(len(VIEWS) * n * 3).reshape(len(VIEWS), n, 3).float()
        self.known = {v: {"predictions": p} for v, p in zip(VIEWS, onehot, strict=True)}
        self.metadata = {"risk": risk, "missing": missing, "labels": self.y}
        return self.state

    def rows(self, views):
        """Rows of `views` as the loops need them."""
        n = len(self.patients)
        return Rows.of_views(
            [
                Rows(
                    torch.arange(n),
                    torch.tensor(self.patients),
                    torch.full((n,), v.endswith("*")),
                    self.metadata | self.known[v],
                )
                for v in views.split()
            ]
        )

    def batch(self):
        """What the package gets."""
        n = len(self.patients)
        rows = Rows(
            torch.arange(n),
            torch.tensor(self.patients),
            torch.zeros(n, dtype=torch.bool),
            self.metadata,
        )
        return Batch(
            self.state,
            rows,
            self.y,
            self.multilabel,
            self.clusters,
            {},
            dict(self.f),
            dict(self.z),
            self.teacher,
            self.known,
        )

    # What the oracles below are made of.

    def of(self, views):
        """Unit vectors of `views` and their rows."""
        return torch.cat([self.z[v] for v in views.split()]), self.rows(views)

    def linear(self, part, view):
        return self.f[view] @ part.weight.T + part.bias

    def logits(self, view):
        return self.linear(self.state.model["head"], view)

    def ce(self, *views):
        return mean(
            [
                mean(cross_entropy(self.logits(v), self.y, self.multilabel))
                for v in views
            ]
        )

    def kl(self, clean, attacked):
        return mean(
            kl(self.logits(clean), self.logits(attacked), self.y, self.multilabel)
        )

    def pairs(
        self,
        views,
        *,
        labels=False,
        gamma=None,
        alike=False,
        ip=None,
        hn=None,
        clef=False,
        **options,
    ):
        """The shared form with these factors."""
        z, rows = self.of(views)
        pull = label_pull(rows) if labels else equal_pull(rows)
        push = label_push(rows) if labels else equal_push(rows)
        pull = pull if gamma is None else hard_pull(pull, z.detach(), gamma)
        if alike:
            pull, push = (
                predicted_alike(pull, rows, True),
                predicted_alike(push, rows, False),
            )
        pull = pull if ip is None else inferior(pull, rows, ip)
        push = push if hn is None else hard_push(push, z.detach(), self.tau, hn)
        push = risk_push(push, rows) if clef else push
        return shared(z, rows, self.tau, pull, push, **options)

    def rocl(self, **factors):
        return (
            self.pairs("1 2 1*", detach=True, **factors)
            + self.pairs("2 1*", detach=True) / 512
        )

    def pseudo(self):
        heads, y = self.state.model["clusters"], self.clusters
        each = []
        for head, truth in zip(heads, y.T, strict=True):
            shares = [
                torch.exp(row) / torch.exp(row).sum() for row in self.linear(head, "0*")
            ]
            each.append(
                mean(
                    [
                        -torch.log(share[k])
                        for share, k in zip(shares, truth, strict=True)
                    ]
                )
            )
        return mean(each)

    def advcl(self, **factors):
        return self.pairs("1 2 h 0*", detach=True, **factors) + 0.028 * self.pseudo()

    def acl(self, clean=0.5, **factors):
        streams = [
            self.pairs(views, detach=True, **factors) for views in ("1 2", "1* 2*")
        ]
        return clean * streams[0] + (1 - clean) * streams[1]

    def clae(self, **factors):
        return (
            self.pairs("1 2", detach=True, **factors)
            + self.pairs("1 1*", detach=True, **factors)
        ) / 2

    def claf(self, **factors):
        logits = [
            f.detach() @ h.weight.T + h.bias
            for h in [self.state.model["head"]]
            for f in (self.f["1"], self.f["2"])
        ]
        head = mean(
            [mean(cross_entropy(found, self.y, self.multilabel)) for found in logits]
        )
        return self.pairs("1 2 1*", detach=True, **factors) + head

    def swaro(self):
        prototypes = self.state.model["prototypes"].weight
        unit = (prototypes / prototypes.norm(dim=1, keepdim=True)).detach()
        codes = {v: sinkhorn(self.z[v].detach() @ unit.T) for v in "12"}
        swapped = {"1": "2", "2": "1", "1*": "2", "2*": "1"}
        return mean(
            [
                mean(code_loss(self.z[v], prototypes, codes[o]))
                for v, o in swapped.items()
            ]
        )

    def deacl(self):
        student = mean(
            [-cosine(a, b) for a, b in zip(self.f["0"], self.teacher["0"], strict=True)]
        )
        return student + 2 * mean(
            [-cosine(a, b) for a, b in zip(self.f["0"], self.f["0*"], strict=True)]
        )


def package_loss(case, monkeypatch):
    """`arm_loss` on the batch of `case`, in place of one that the encoder embeds."""
    monkeypatch.setattr(step, "embed_batch", lambda *given: case.batch())
    return arm_loss(case.state, None, None)[0]


def gradients(value, case):
    model = case.state.model
    parts = [
        model[name] for name in ("head", "clusters", "prototypes") if name in model
    ]
    leaves = [
        *case.before.values(),
        *case.f.values(),
        *(p for part in parts for p in part.parameters()),
    ]
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(value, leaves, **options)
    return torch.cat([g.flatten() for g in found])


def assert_same(case, oracle, monkeypatch, tolerance=1e-6):
    ours, expected = package_loss(case, monkeypatch), oracle(case)
    torch.testing.assert_close(
        ours, expected, rtol=tolerance, atol=tolerance, check_dtype=False
    )
    slope, wanted = gradients(ours, case), gradients(expected, case)
    assert torch.isfinite(wanted).all()
    assert (slope - wanted).abs().max() <= tolerance * max(
        1e-3, wanted.abs().max().item()
    )
    return expected, wanted


def fresh(name, multilabel=False, **options):
    """A state with random heads, a teacher where the arm needs one; and the data."""
    data = Data.of(toy_records(multilabel=multilabel), CPU)
    data.pseudo_labels = torch.stack([torch.arange(80) % 2, torch.arange(80) % 3], 1)
    state = make_state(toy_run(name, **options), data)
    if get_arm(name).needs:
        state.teacher = (
            make_state(toy_run("simclr", seed=1), data).model["encoder"].eval()
        )
    stream = torch.Generator().manual_seed(4)
    for part in ("head", "clusters"):
        for parameter in state.model[part].parameters() if part in state.model else []:
            parameter.data = torch.randn(parameter.shape, generator=stream)
    return state, data


def views_of(arm):
    return tuple(dict.fromkeys(view for loss in arm.losses for view in loss.names))
