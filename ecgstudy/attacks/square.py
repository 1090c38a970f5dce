"""Square attack along time and leads: random search in ‖δ‖∞ ≤ ε that sees scores, never gradients.

After Andriushchenko et al. 2020 (ECCV, algorithms 1 and 2): only corners of the ball are tried (δ = ±ε),
the first candidate is made of stripes, each query changes one patch, and p, the share of the signal in the
patch, falls from query to query. What time and leads change about it:

- a stripe is √samples long, as a column holds √pixels of a picture, with a random sign in every lead;
- a patch is one window of time on a random subset of leads, a sign each, √p of the leads wide;
- a patch that would change nothing has its signs turned (there: drawn again);
- p follows the paper's schedule as if there were `HORIZON` queries, whatever the budget (there: scaled to
  the budget), so that a larger budget continues a smaller one and never ends below it.
"""

import torch
from torch import Generator, Tensor

from ecgstudy.attacks.api import Best, Budget, Problem, first_best
from ecgstudy.errors import StudyError

HORIZON = 500
"""Schedules of 50 to 100 and of 1,000 to 3,000 queries were weaker on beats of MIT-BIH."""
P_INITIAL = 0.8
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, after which p is halved (their section 3.2, and AutoAttack's first p)."""


def patch_share(query: int) -> float:
    """Share p of the samples × leads that the patch of this `query` (1, 2, …) covers."""
    return P_INITIAL / 2 ** sum(query * 10_000 / HORIZON > end for end in HALVINGS)


def square(problem: Problem, budget: Budget, generator: Generator) -> Tensor:
    """Each record's best δ among δ = 0, the problem's start and `budget.queries` of the random search.

    Raises
    ------
    StudyError
        In an ℓ2 ball.
    """
    if budget.norm != "linf":
        raise StudyError(
            f"Square searches corners of the ℓ∞ ball; norm {budget.norm!r} has none"
        )
    signals, epsilon, first = (
        problem.signals,
        budget.epsilon_mv,
        first_best(problem, budget),
    )
    if budget.queries < 1:
        return first.delta
    free = torch.ones_like(signals, dtype=torch.bool)
    if budget.mask is not None:
        free = (budget.mask != 0).expand_as(signals)
    stripes = epsilon * _stripes(signals, generator) * free
    best = Best(stripes, problem.values(stripes, budget.batch_size))
    for query in range(1, budget.queries):
        tried = _patched(best.delta, free, patch_share(query), epsilon, generator)
        best.visit(slice(None), tried, problem.values(tried, budget.batch_size))
    first.visit(slice(None), best.delta, best.values)
    return first.delta


def _stripes(signals: Tensor, generator: Generator) -> Tensor:
    """Signs (records, leads, samples), constant over stripes of √samples."""
    records, leads, samples = signals.shape
    length = max(1, round(samples**0.5))
    signs = _signs((records, leads, -(-samples // length)), signals, generator)
    return signs.repeat_interleave(length, dim=2)[:, :, :samples]


def _patched(
    best: Tensor, free: Tensor, share: float, epsilon_mv: float, generator: Generator
) -> Tensor:
    """`best` with ±ε in one random patch of each record."""
    patch = _patch(free, share, generator)
    signs = epsilon_mv * _signs((*best.shape[:2], 1), best, generator)
    idle = ((best == signs) | ~patch).flatten(1).all(1)
    return torch.where(patch, torch.where(idle[:, None, None], -signs, signs), best)


def _patch(free: Tensor, share: float, generator: Generator) -> Tensor:
    """Boolean (records, leads, samples): a window of time on some leads, where `free` allows.

    Leads and samples are counted among those that are free somewhere, so that neither masked leads nor
    padding use up queries.
    """
    device, (records, leads, _) = free.device, free.shape
    leads_free, samples_free = free.any(2), free.any(1)
    n_leads, n_samples = leads_free.sum(1), samples_free.sum(1)
    width = (share**0.5 * n_leads).round().clamp(min=1)
    length = (
        (share * n_leads * n_samples / width).round().clamp(min=1).minimum(n_samples)
    )
    rank = (
        torch.rand(records, leads, generator=generator, device=device) + 2 * ~leads_free
    )
    chosen = rank.argsort(1).argsort(1) < width[:, None]
    start = (
        torch.rand(records, generator=generator, device=device)
        * (n_samples - length + 1)
    ).floor()
    place = samples_free.cumsum(1) - 1 - start[:, None]
    window = (place >= 0) & (place < length[:, None])
    return chosen[:, :, None] & window[:, None] & free


def _signs(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    """Random ±1 of the device and type of `like`."""
    draw = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return (2 * draw - 1).to(like.dtype)
