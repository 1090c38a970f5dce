"""Square attack along time and leads: random search that sees scores, never gradients.

After Andriushchenko et al. 2020 (ECCV, algorithms 1 and 2): only corners of the ℓ∞ ball
are tried (δ = ±ε), the first candidate is made of stripes, each query changes one
patch, and p, the share of the signal in the patch, falls from query to query. What is
different for ECGs:

- a stripe is √samples long (in images: a column), with a random sign in every lead;
- a patch is one window of time on a random subset of leads, a sign each, √p of the
  leads wide;
- a patch that would change nothing has its signs turned (there: drawn again);
- p follows the paper's schedule as for `HORIZON` queries, whatever the budget (there:
  scaled to the budget), so that a larger budget continues a smaller one.
"""

import torch
from torch import Generator, Tensor

from ecgstudy.attacks.api import Best, Budget, Problem, best_candidate
from ecgstudy.errors import StudyError

HORIZON = 500
"""Schedules of 50 to 100 and of 1,000 to 3,000 queries were weaker on MIT-BIH beats."""
P_INITIAL = 0.8
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, after which p is halved (their section 3.2)."""


def patch_share(query: int) -> float:
    """Share p of samples × leads that the patch of this `query` (1, 2, …) covers."""
    passed = [end for end in HALVINGS if query * 10_000 / HORIZON > end]
    return P_INITIAL / 2 ** len(passed)


def square(problem: Problem, budget: Budget, generator: Generator) -> Tensor:
    """Each record's best of δ = 0, the problem's start and `budget.queries` candidates.

    Parameters
    ----------
    problem, budget, generator
        As of `ecgstudy.attacks.api.Search`.

    Returns
    -------
    Tensor
        δ in mV, (records, leads, samples).

    Raises
    ------
    StudyError
        In an ℓ2 ball, which has no corners.
    """
    if budget.norm != "linf":
        raise StudyError(f"square searches the ℓ∞ ball; norm {budget.norm!r} has none")
    first = best_candidate(problem, budget)
    if budget.queries < 1:
        return first.delta
    free = torch.ones_like(problem.signals, dtype=torch.bool)
    if budget.mask is not None:
        free = (budget.mask != 0).expand_as(problem.signals)
    stripes = budget.epsilon_mv * _stripes(problem.signals, generator) * free
    best = Best(stripes, problem.values(stripes, budget.batch_size))
    for query in range(1, budget.queries):
        patch = _draw_patch(free, patch_share(query), generator)
        tried = _change_patch(best.delta, patch, budget.epsilon_mv, generator)
        best.update(tried, problem.values(tried, budget.batch_size))
    first.update(best.delta, best.values)
    return first.delta


def _stripes(signals: Tensor, generator: Generator) -> Tensor:
    """Signs (records, leads, samples), constant over stripes of √samples."""
    records, leads, samples = signals.shape
    length = max(1, round(samples**0.5))
    count = -(-samples // length)
    signs = _draw_signs((records, leads, count), signals, generator)
    return signs.repeat_interleave(length, dim=2)[:, :, :samples]


def _draw_patch(free: Tensor, share: float, generator: Generator) -> Tensor:
    """Boolean (records, leads, samples): a window of time on some leads, where `free`.

    Leads and samples are counted among those that are free somewhere, so that neither
    masked leads nor padding use up queries.
    """
    device, (records, leads, _) = free.device, free.shape
    leads_free, samples_free = free.any(2), free.any(1)
    n_leads, n_samples = leads_free.sum(1), samples_free.sum(1)
    # √p of the leads, and as many samples as make the patch p of the signal.
    width = (share**0.5 * n_leads).round().clamp(min=1)
    length = (share * n_leads * n_samples / width).round().clamp(min=1)
    length = length.minimum(n_samples)

    # The free leads of lowest random rank; masked leads rank behind all of them.
    rank = torch.rand(records, leads, generator=generator, device=device)
    rank = (rank + 2 * ~leads_free).argsort(1).argsort(1)
    chosen = rank < width[:, None]

    start = torch.rand(records, generator=generator, device=device)
    start = (start * (n_samples - length + 1)).floor()
    place = samples_free.cumsum(1) - 1 - start[:, None]
    window = (place >= 0) & (place < length[:, None])
    return chosen[:, :, None] & window[:, None] & free


def _change_patch(
    best: Tensor, patch: Tensor, epsilon_mv: float, generator: Generator
) -> Tensor:
    """`best` with ±ε in the `patch` of each record, a sign for each lead."""
    signs = epsilon_mv * _draw_signs((*best.shape[:2], 1), best, generator)
    changes = (best != signs) & patch
    idle = ~changes.flatten(1).any(1)
    signs = torch.where(idle[:, None, None], -signs, signs)
    return torch.where(patch, signs, best)


def _draw_signs(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    """Random ±1 of the device and type of `like`."""
    draw = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return (2 * draw - 1).to(like.dtype)
