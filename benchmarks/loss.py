"""The weighted contrastive loss beside a plain NT-Xent: time and memory by rows."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.timing import Row, compare_times, peak_mb, row, side_by_side
from ecgstudy.pretraining.contrast import weighted_contrastive_loss
from ecgstudy.pretraining.pairs import Rows
from ecgstudy.pretraining.weighting import compose

ROWS, DIMENSIONS = (512, 4096, 16384), 128
IP_HN = (("inferior-positives", {"alpha": 0.2}), ("hard-negatives", {"beta": 1.0}))
WEIGHTINGS = {"uniform": ((), 0.0), "IP and HN, debiased": (IP_HN, 0.1)}
"""Schemes and τ⁺: plain and as in ``rocl-ip-hn``."""


def nt_xent(embedded: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views, row i with row i + n/2, as it is usually written."""
    similarity = embedded @ embedded.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    other = torch.arange(len(embedded), device=embedded.device).roll(len(embedded) // 2)
    return cross_entropy(similarity, other)


def measure(device: torch.device, repeats: int) -> list[Row]:
    """Milliseconds and peak MB of forward and backward pass."""
    rows = []
    for n in ROWS:
        calls, what = _calls(n, device), f"{n} rows of {DIMENSIONS}"
        times = max(3, repeats // (4 if n > 10_000 else 1))
        seconds = side_by_side(calls, times, device)
        units = dict.fromkeys(calls, 1)
        title = "contrastive loss, time"
        rows += compare_times(title, what, seconds, units, "NT-Xent", "pass")
        memory = {name: peak_mb(call, device) for name, call in calls.items()}
        for name, value in memory.items():
            more = {"ratio": memory["NT-Xent"] / value, "base": "NT-Xent"}
            title = "contrastive loss, memory"
            rows.append(row(title, what, name, value, "MB", **more))
    return rows


def _calls(n: int, device: torch.device) -> dict[str, Callable[[], object]]:
    stream = Generator(device).manual_seed(0)
    embedded = normalize(
        torch.randn(n, DIMENSIONS, generator=stream, device=device), dim=1
    ).requires_grad_()
    record = torch.arange(n // 2, device=device).repeat(2)
    adversarial = torch.arange(n, device=device) >= n // 2
    known = Rows(record, record, adversarial)

    def plain() -> None:
        torch.autograd.grad(nt_xent(embedded, 0.5), embedded)

    def weighted(name: str) -> None:
        schemes, tau_plus = WEIGHTINGS[name]
        loss, _ = weighted_contrastive_loss(
            embedded, known, compose(schemes), temperature=0.5, tau_plus=tau_plus
        )
        torch.autograd.grad(loss, embedded)

    return {"NT-Xent": plain} | {
        name: (lambda name=name: weighted(name)) for name in WEIGHTINGS
    }
