"""The weighted contrastive loss: every contrastive arm is a choice of its weights."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ecgstudy.pretraining.distributed import own_range, sum_over_processes
from ecgstudy.pretraining.pairs import MASKED, Pairs, Rows, Weights

Denominator = Literal["own", "all", "mean", "none"]
SIMILARITIES = {
    "cosine": lambda anchors, candidates: anchors @ candidates.T,
    "chebyshev": lambda anchors, candidates: (
        -torch.cdist(anchors, candidates, p=torch.inf)
    ),
}
"""Similarity of all pairs of unit vectors, (A, C)."""

WHOLE_ROWS, BLOCK_ROWS = 1024, 512
"""More anchors than the first are taken in blocks of the second: memory then grows with
their number, not with its square."""
LOGGED = (
    "effective_negatives",
    "negatives",
    "positive_similarity",
    "negative_similarity",
    "floor_fraction",
)


Weighting = Callable[[Tensor, Pairs], Weights]
"""(similarities S (A, C) without gradient, pairs) → weights."""


def keep_weights(weighting: Weighting) -> Weighting:
    """`weighting` evaluated once, for an inner attack whose weights do not change.

    Of more than `WHOLE_ROWS` rows they are not kept: memory would grow with the square.
    """
    kept: list[Weights] = []

    def once(similarity: Tensor, pairs: Pairs) -> Weights:
        if len(pairs.candidates) > WHOLE_ROWS:
            return weighting(similarity, pairs)
        if not kept:
            kept.append(weighting(similarity, pairs))
        return kept[0]

    return once


def weighted_contrastive_loss(
    embeddings: Tensor,
    rows: Rows,
    weighting: Weighting,
    *,
    temperature: float,
    tau_plus: float = 0.0,
    denominator: Denominator = "own",
    detach_candidates: bool = False,
    similarity: str = "cosine",
    anchors: int | None = None,
    block: int | None = None,
    logged: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Weighted contrastive loss among the rows of one batch.

    With similarities S = a·cᵀ/τ, weights P of positives, and weights W of the negatives
    N with a mean of 1 in each row, w_i = Σ_{k∈N} W_ik,

        D_i = Σ_{k∈N} W_ik exp(S_ik)
        D_i ← max{(D_i − τ⁺ w_i pos_i) / (1 − τ⁺), w_i e^(−1/τ)}      if τ⁺ > 0
        L = Σ_ip P_ip (−ω_ip S_ip + log den_ip) / Σ_ip P_ip

    where pos_i is the mean of exp(S_ip) over the positives and den_ip is
    exp(S_ip) + D_i (`own`), Σ_p exp(S_ip) + D_i (`all`), pos_i + D_i (`mean`) or
    D_i (`none`).

    Uniform weights give NT-Xent (Chen et al. 2020). W = exp(β S) with τ⁺ gives HCL
    (Robinson et al. 2021, eq. 4 and 5) with detached weights; τ⁺ alone gives the
    debiased loss (Chuang et al. 2020, eq. 8).

    Parameters
    ----------
    embeddings
        (rows, dimensions), unit length.
    rows
        What is known of each row.
    weighting
        Gives P, N, W and ω from the similarities, without gradient.
    temperature
        τ > 0.
    tau_plus
        τ⁺ in [0, 1): assumed probability that a negative has the anchor's class. Not
        with the denominator `none`.
    denominator
        den_ip, see above.
    detach_candidates
        Gradient through the anchors only (RoCL's rule, needed by inferior positives).
    similarity
        S τ: the cosine a·c, or `chebyshev`: −max |a − c| over coordinates (ASCL).
    anchors
        How many rows, from the first, are anchors; the others are candidates only.
        None: all of them.
    block
        Anchors at a time. Blocks are computed again in the backward pass, so that
        memory grows linearly in the rows. None: all anchors up to `WHOLE_ROWS`, above
        that `BLOCK_ROWS`.
    logged
        False leaves the log empty, for inner attacks.

    Returns
    -------
    loss : Tensor
        Scalar; 0 with zero gradients when no row has a positive.
    log : dict of Tensor
        Detached scalars: `effective_negatives` (Σw)²/Σw², `negatives`,
        `positive_similarity` and `negative_similarity` (S τ), `floor_fraction`.

    Examples
    --------
    >>> from ecgstudy.pretraining.weighting import uniform
    >>> record = torch.arange(4).repeat(2)  # two views of four records
    >>> rows = Rows(record, patient=record, adversarial=record < 0)
    >>> embeddings = torch.eye(4).repeat(2, 1)
    >>> loss, log = weighted_contrastive_loss(
    ...     embeddings, rows, uniform, temperature=0.5
    ... )
    >>> float(log["negatives"])
    6.0
    """
    if embeddings.dtype != torch.float64:
        embeddings = embeddings.float()
    candidates = embeddings.detach() if detach_candidates else embeddings
    compare = SIMILARITIES[similarity]
    own = own_range(len(rows) if anchors is None else anchors)
    if block is None:
        block = len(own) if len(own) <= WHOLE_ROWS else BLOCK_ROWS

    def sum_block(anchors: Tensor, first: int) -> tuple[Tensor, ...]:
        """Sums over a block of anchors, of which the first is row `first`."""
        alike = compare(anchors, candidates) / temperature
        pairs = Pairs(rows[first : first + len(anchors)], rows, first, temperature)
        with torch.no_grad():
            weights = weighting(alike.detach(), pairs)
        return _sum_terms(alike, weights, temperature, tau_plus, denominator, logged)

    if len(own) > block:
        sum_block = partial(checkpoint, sum_block, use_reentrant=False)
    firsts = own[::block]
    blocks = [embeddings[first : min(first + block, own.stop)] for first in firsts]
    parts = map(sum_block, blocks, firsts)
    terms, pull, sums = (
        sum_over_processes(sum(part)) for part in zip(*parts, strict=True)
    )
    log = {}
    if logged:
        means = sums.detach()[:, 0] / sums.detach()[:, 1].clamp(min=1)
        log = dict(zip(LOGGED, means, strict=True))
    return terms / pull.clamp(min=1e-12), log


def _sum_terms(
    similarity: Tensor,
    weights: Weights,
    temperature: float,
    tau_plus: float,
    denominator: Denominator,
    logged: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_ip P_ip (−ω_ip S_ip + log den_ip), Σ_ip P_ip, and sums for the log.

    Sums are over a block of anchors. Everything is in log space: exp(S) would overflow
    at small temperatures.
    """
    pull, log_push = weights.pull, weights.scaled_log_push
    anchor, _ = positives = weights.positives

    # log Σ_p exp(S_ip), and the logarithm of the mean pos_i
    if tau_plus > 0 or denominator in ("all", "mean"):
        log_positives = _PositiveLogSumExp.apply(similarity, positives)
        log_mean_positive = log_positives - (pull > 0).sum(1).clamp(min=1).log()

    # log D_i = log Σ_{k∈N} W_ik exp(S_ik)
    log_d = torch.logsumexp(similarity + log_push, 1)
    on_floor = torch.zeros_like(log_d, dtype=torch.bool)
    if tau_plus > 0:
        log_w = torch.logsumexp(log_push, 1)
        floor = log_w - 1 / temperature
        log_d, on_floor = _debias(log_d, log_w + log_mean_positive, floor, tau_plus)

    # log den_ip, of each positive pair
    logit, log_den = similarity[positives], log_d[anchor]
    if denominator == "own":
        log_den = torch.logaddexp(logit, log_den)
    elif denominator == "all":
        log_den = torch.logaddexp(log_positives[anchor], log_den)
    elif denominator == "mean":
        log_den = torch.logaddexp(log_mean_positive[anchor], log_den)
    else:  # `none`: a row without negatives has no denominator, and drops out
        pull = pull * (weights.negatives > 0)[:, None]

    # Σ_ip P_ip (log den_ip − ω_ip S_ip)
    if weights.positive is not None:
        logit = weights.positive.expand_as(pull)[positives] * logit
    terms = (pull[positives] * (log_den - logit)).sum()

    sums = terms.new_zeros(0, 2)
    if logged:
        sums = _sum_log(similarity.detach(), weights, on_floor, temperature)
    return terms, pull.sum(), sums


def _debias(
    log_negatives: Tensor, log_false: Tensor, floor: Tensor, tau_plus: float
) -> tuple[Tensor, Tensor]:
    """log max{(R_i − τ⁺ w_i pos_i) / (1 − τ⁺), floor}, and where the floor holds.

    R_i = Σ_{k∈N} W_ik exp(S_ik), of which τ⁺ w_i pos_i are expected to be false
    negatives. The floor w_i e^(−1/τ) is the smallest value of R_i: all negatives are
    opposite to the anchor. On it negatives get no gradient.
    """
    tau = torch.tensor(tau_plus, dtype=log_negatives.dtype, device=log_negatives.device)
    # With r = τ⁺ w_i pos_i / R_i the logarithm is log R_i + log(1 − r) − log(1 − τ⁺).
    # It exists for r < 1, which is log r < 0.
    log_r = tau.log() + log_false - log_negatives
    log_difference = torch.log(-torch.expm1(log_r.clamp(max=-1e-6)))
    log_d = log_negatives + log_difference - torch.log1p(-tau)
    on_floor = (log_r >= -1e-6) | (log_d <= floor)
    return torch.where(on_floor, floor, log_d), on_floor


def _sum_log(
    similarity: Tensor, weights: Weights, on_floor: Tensor, temperature: float
) -> Tensor:
    """Numerator and denominator of each of `LOGGED` over some anchors, (5, 2)."""
    positives, count = weights.positives, weights.negatives
    rows = (count > 0).sum()
    push = weights.scaled_log_push.exp()
    # (Σw)²/Σw² is n for n equal weights, and 1 if one of them outgrows the others.
    effective = push.sum(1) ** 2 / push.square_().sum(1).clamp(min=1e-30)
    pulls = torch.zeros_like(on_floor).index_fill(0, positives[0], True)
    of_negatives = torch.where(weights.eligible, similarity, 0.0)
    sums = [
        (effective.sum(), rows),
        (count.sum(), rows),
        (
            temperature * similarity[positives].sum(),
            count.new_tensor(len(positives[0])),
        ),
        (temperature * of_negatives.sum(), count.sum()),
        ((on_floor & pulls & (count > 0)).sum(), pulls.sum()),
    ]
    return torch.stack([torch.stack(pair) for pair in sums])


class _PositiveLogSumExp(torch.autograd.Function):
    """log Σ_p exp(S_ip) over the positives of each row; `MASKED` where it has none.

    The same as torch's logsumexp with all other entries at `MASKED`, which takes ten
    times as long: exp is slow there, and a row has few positives.
    """

    @staticmethod
    def forward(ctx, similarity: Tensor, positives: tuple[Tensor, Tensor]) -> Tensor:
        values, anchor = similarity[positives], positives[0]
        largest = similarity.new_full((len(similarity),), MASKED)
        largest = largest.scatter_reduce(0, anchor, values, "amax")
        shares = torch.zeros_like(similarity)
        shares.index_put_(positives, (values - largest[anchor]).exp())
        total = shares.sum(1)
        result = torch.where(total > 0, largest + total.log(), MASKED)
        ctx.save_for_backward(similarity, *positives, result)
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        similarity, anchor, candidate, result = ctx.saved_tensors
        # d log Σ_q exp(S_iq) / d S_ip = exp(S_ip − log Σ_q exp(S_iq))
        share = (similarity[anchor, candidate] - result[anchor]).exp()
        values = gradient[anchor] * share
        positives = (anchor, candidate)
        return torch.zeros_like(similarity).index_put_(positives, values), None
