"""Weighting schemes: each says in one function who pulls, who pushes and how strongly.

A scheme takes the similarities S = a·cᵀ/τ (A, C) without gradient, the pairs and the weights so
far, and returns new weights. Schemes chain: an arm lists the ones it uses, in order, on top of
`uniform`. Add one with a function and the decorator; nothing else changes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ecgstudy.contrast import Pairs, Weighting, Weights
from ecgstudy.errors import StudyError

Scheme = Callable[..., Weights]
SCHEMES: dict[str, Scheme] = {}


def scheme(name: str) -> Callable[[Scheme], Scheme]:
    """Register a weighting scheme under `name`, for use in an arm."""

    def register(function: Scheme) -> Scheme:
        SCHEMES[name] = function
        return function

    return register


def compose(schemes: Sequence[tuple[str, dict]]) -> Weighting:
    """The weighting that applies `schemes` (name, options) in order to uniform weights.

    Raises
    ------
    StudyError
        When a name is not registered.
    """
    unknown = [name for name, _ in schemes if name not in SCHEMES]
    if unknown:
        raise StudyError(f"unknown weighting scheme {unknown[0]!r}; registered: {', '.join(sorted(SCHEMES))}")

    def weighting(similarity: Tensor, pairs: Pairs) -> Weights:
        weights = uniform(similarity, pairs)
        for name, options in schemes:
            weights = SCHEMES[name](similarity, pairs, weights, **options)
        return weights

    return weighting


def uniform(similarity: Tensor, pairs: Pairs) -> Weights:
    """Other views of the record pull equally; every other patient pushes equally (NT-Xent, SimCLR)."""
    positives = pairs.match("record") & ~pairs.itself()
    pull = positives / positives.sum(1, keepdim=True).clamp(min=1)
    eligible = ~(pairs.match("record") | pairs.match("patient"))
    return Weights(pull.to(similarity.dtype), eligible, torch.zeros_like(similarity))


@scheme("hard-negatives")
def push_hard_negatives(similarity: Tensor, pairs: Pairs, weights: Weights, beta: float = 1.0) -> Weights:
    """W ∝ exp(β S): the closer a negative, the harder it is pushed.

    HCL (Robinson et al. 2021, eq. 4) and A-InfoNCE's HN (Yu et al. 2022), both as read in the
    authors' code; here the weights are detached, and normalised per row over the true negatives
    (A-InfoNCE's code divides by the mean of another row and counts masked entries).
    """
    return weights.with_push(beta * similarity)


@scheme("inferior-positives")
def pull_inferior_positives(
    similarity: Tensor, pairs: Pairs, weights: Weights, alpha: float = 0.2
) -> Weights:
    """Adversaries are pulled to clean views more strongly (1−α) than clean views to adversaries (α).

    A-InfoNCE's IP (Yu et al. 2022; read in the authors' code). Needs detached candidates, so that
    each term moves its anchor only. The factor 2 keeps the total pull, which the original halves;
    α = ½ is the base loss.
    """
    anchor = pairs.anchors.adversarial[:, None]
    mixed = anchor != pairs.candidates.adversarial[None, :]
    factor = torch.where(anchor, 2 * (1 - alpha), 2 * alpha).to(similarity.dtype)
    return weights.with_pull(torch.where(mixed, factor, torch.ones_like(factor)))


@scheme("clinical-risk")
def push_by_clinical_risk(similarity: Tensor, pairs: Pairs, weights: Weights) -> Weights:
    """W ∝ exp(D″): the more two patients differ in clinical risk, the harder they are pushed apart.

    CLEF (arXiv 2512.02180, read in the authors' code): D = (r_i − r_j)² scaled to [0, 1] over the
    batch, D′ = 0.8 D + 0.2, damped by exp(−m_i m_j) where metadata are missing. CLEF's softmax
    averages the negatives; here, as everywhere, the row mean of W is 1.
    """
    risk, missing = pairs.candidates.metadata["risk"], pairs.candidates.metadata["missing"]
    difference = (pairs.anchors.metadata["risk"][:, None] - risk[None, :]) ** 2
    # The largest squared difference in the batch, from the whole batch even when anchors come in blocks.
    distance = 0.8 * difference / ((risk.max() - risk.min()) ** 2 + 1e-6) + 0.2
    damping = torch.exp(-pairs.anchors.metadata["missing"][:, None] * missing[None, :])
    return weights.with_push((distance * damping).to(similarity.dtype))
