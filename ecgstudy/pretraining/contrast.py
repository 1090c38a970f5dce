"""The one weighted contrastive loss; every contrastive arm of the study is a choice of its weights."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ecgstudy.errors import StudyError
from ecgstudy.pretraining.distributed import own_range, sum_over_processes

Denominator = Literal["own", "all", "mean", "none"]
Similarity = Literal["cosine", "chebyshev"]

MASKED = -1e30
"""Stands for log 0: exp gives exactly 0, and unlike -inf it leaves no NaN in gradients."""
WHOLE_ROWS, BLOCK_ROWS = 1024, 512
"""More rows than these are taken in blocks: memory then grows with their number, not its square."""
LOGGED = (
    "effective_negatives", "negatives", "positive_similarity", "negative_similarity", "floor_fraction",
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """What is known of each embedded view: (rows,) tensors, indices of its ECG record and of its patient.

    `adversarial`: whether an attack perturbed it. `metadata`: named (rows, …) tensors for weighting, such as
    ``risk`` and ``missing`` (clinical), ``labels`` and ``predictions`` (multi-hot), ``noise`` (controls).
    """

    record: Tensor
    patient: Tensor
    adversarial: Tensor
    metadata: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.record)

    def __getitem__(self, rows: slice | Tensor) -> "Rows":
        metadata = {name: values[rows] for name, values in self.metadata.items()}
        return Rows(
            self.record[rows], self.patient[rows], self.adversarial[rows], metadata
        )

    @staticmethod
    def of_views(views: list["Rows"]) -> "Rows":
        """Stack the rows of several views."""
        keys = ("record", "patient", "adversarial")
        stacked = (torch.cat([getattr(view, key) for view in views]) for key in keys)
        names = views[0].metadata
        return Rows(
            *stacked,
            {
                name: torch.cat([view.metadata[name] for view in views])
                for name in names
            },
        )


@dataclass(frozen=True)
class Pairs:
    """Anchors (A rows) against candidates (C rows), of which number `first` is the first anchor itself."""

    anchors: Rows
    candidates: Rows
    first: int = 0
    temperature: float = 1.0
    """τ, for schemes that need the cosine S τ."""

    def match(self, key: str) -> Tensor:
        """(A, C) booleans: whether anchor and candidate agree in `key`, e.g. ``"patient"``."""
        return (
            getattr(self.anchors, key)[:, None]
            == getattr(self.candidates, key)[None, :]
        )

    def itself(self) -> Tensor:
        """(A, C) booleans: whether the candidate is the anchor's own row."""
        own = self.first + torch.arange(
            len(self.anchors), device=self.anchors.record.device
        )
        return own[:, None] == torch.arange(len(self.candidates), device=own.device)


@dataclass(frozen=True)
class Weights:
    """Who pulls, who pushes and how strongly; all tensors are (A, C) and carry no gradient.

    Attributes
    ----------
    pull
        P >= 0. Zero on the anchor itself.
    eligible
        N: which candidates are negatives. Never the anchor, a positive, or the same patient.
    log_push
        log W. Only its values on N matter; the loss scales W to a mean of 1 over each row's N, except with
        `mean_one` False (CLEF's own softmax).
    positive
        ω, factor of the positive logit; None is 1.
    """

    pull: Tensor
    eligible: Tensor
    log_push: Tensor
    positive: Tensor | None = None
    mean_one: bool = True

    def with_push(self, log_factor: Tensor) -> "Weights":
        """Push weights multiplied by exp(`log_factor`)."""
        return replace(self, log_push=self.log_push + log_factor)

    def with_pull(self, factor: Tensor) -> "Weights":
        """Pull weights multiplied by `factor`."""
        return replace(self, pull=self.pull * factor)

    def redistribute_pull(self, factor: Tensor) -> "Weights":
        """Pull weights multiplied by `factor` >= 0, each row scaled back to its sum if any is left."""
        pull, total = self.pull * factor, self.pull.sum(1, keepdim=True)
        left = pull.sum(1, keepdim=True)
        return replace(self, pull=pull * total / torch.where(left > 0, left, 1.0))

    @cached_property
    def positives(self) -> tuple[Tensor, Tensor]:
        """Anchor and candidate of each pair that pulls: mostly one or two a row."""
        return self.pull.nonzero(as_tuple=True)

    @cached_property
    def scaled_push(self) -> tuple[Tensor, Tensor]:
        """log W scaled to a row mean of 1 over the negatives, `MASKED` elsewhere; and their number."""
        count = self.eligible.sum(1).to(self.log_push.dtype)
        masked = torch.where(self.eligible, self.log_push, MASKED)
        if not self.mean_one:
            return masked, count
        scale = count.clamp(min=1).log() - torch.logsumexp(masked, 1)
        return torch.where(self.eligible, masked + scale[:, None], MASKED), count


Weighting = Callable[[Tensor, Pairs], Weights]
"""(similarities S (A, C) without gradient, pairs) -> weights."""


def keep_weights(weighting: Weighting) -> Weighting:
    """`weighting`, which does not look at similarities, computed once for the rows of an inner attack.

    Weights of more rows than are taken at once are not kept: memory would grow with their square.
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
    similarity: Similarity = "cosine",
    anchors: int | None = None,
    block: int | None = None,
    logged: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Weighted contrastive loss among the rows of one batch.

    With S = a·cᵀ/τ, push weights W of row mean 1 over the negatives N, w_i = Σ_{k∈N} W_ik and pull
    weights P,

        D_i = Σ_{k∈N} W_ik exp(S_ik),   debiased: max{(D_i − τ⁺ w_i pos_i)/(1 − τ⁺), w_i e^(−1/τ)}
        L = Σ_ip P_ip (−ω_ip S_ip + log den_ip) / Σ_ip P_ip

    where pos_i is the mean positive exp(S) and den is exp(S_ip) + D_i (`own`), Σ_p exp(S_ip) + D_i
    (`all`), pos_i + D_i (`mean`) or D_i (`none`). Uniform weights give NT-Xent (Chen et al. 2020);
    W = exp(βS) with τ⁺ gives HCL (Robinson et al. 2021, eq. 4 and 5) with detached weights; τ⁺ alone
    gives the debiased loss (Chuang et al. 2020, eq. 8).

    Parameters
    ----------
    embeddings
        (rows, dimensions), unit length.
    rows
        What each row shows.
    weighting
        Gives P, N, W and ω from the similarities (without gradient).
    temperature
        τ > 0.
    tau_plus
        τ⁺ in [0, 1): the assumed probability that a negative has the anchor's class.
    detach_candidates
        Gradient through the anchors only (RoCL's rule, needed by inferior positives).
    similarity
        S τ: the cosine a·c, or `chebyshev`: −max |a − c| over coordinates (ASCL).
    anchors
        How many rows, from the first, are anchors; the others are candidates only. None: all of them.
    block
        Anchors at a time, recomputed in the backward pass, so that memory grows linearly in the rows. None:
        all of them up to `WHOLE_ROWS`, above that `BLOCK_ROWS`.
    logged
        False leaves the log empty, for inner attacks.

    Returns
    -------
    loss : Tensor
        Scalar; 0 with zero gradients when no row has a positive.
    log : dict of Tensor
        `effective_negatives` (Σw)²/Σw², `negatives`, `positive_similarity`, `negative_similarity`
        (S τ) and `floor_fraction`, each a detached scalar.

    Raises
    ------
    StudyError
        For τ ≤ 0, τ⁺ outside [0, 1), or τ⁺ > 0 with the denominator `none`.
    """
    if not temperature > 0:
        raise StudyError(f"temperature {temperature} must be positive")
    if not 0 <= tau_plus < 1:
        raise StudyError(f"tau_plus {tau_plus} must be in [0, 1)")
    if tau_plus > 0 and denominator == "none":
        raise StudyError(
            "tau_plus > 0 needs the positive in the denominator; 'none' leaves it out"
        )
    embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    candidates = embeddings.detach() if detach_candidates else embeddings
    ours = own_range(len(rows) if anchors is None else anchors)
    block = block or (len(ours) if len(ours) <= WHOLE_ROWS else BLOCK_ROWS)

    def part(anchors: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        cosine = similarity == "cosine"
        alike = (
            anchors @ candidates.T
            if cosine
            else -torch.cdist(anchors, candidates, p=torch.inf)
        )
        alike = alike / temperature
        pairs = Pairs(rows[first : first + len(anchors)], rows, first, temperature)
        with torch.no_grad():
            weights = weighting(alike.detach(), pairs)
        return _sums(alike, weights, temperature, tau_plus, denominator, logged)

    starts = ours[::block]
    ends = (*starts[1:], ours.stop)
    blocks = [
        (embeddings[start:end], start) for start, end in zip(starts, ends, strict=True)
    ]
    if len(blocks) == 1:
        found = part(*blocks[0])
    else:
        parts = [checkpoint(part, *each, use_reentrant=False) for each in blocks]
        found = [sum(each) for each in zip(*parts, strict=True)]
    terms, pull, sums = (sum_over_processes(each) for each in found)
    log = sums.detach()[:, 0] / sums.detach()[:, 1].clamp(min=1)
    return terms / pull.clamp(min=1e-12), dict(
        zip(LOGGED if logged else (), log, strict=True)
    )


def _sums(
    similarity: Tensor,
    weights: Weights,
    temperature: float,
    tau_plus: float,
    denominator: str,
    logged: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Over a block of anchors: the sum_over_processes loss and its weight, and numerators and denominators of the log."""
    pull, eligible, where = weights.pull, weights.eligible, weights.positives
    log_push, count = weights.scaled_push
    if tau_plus > 0 or denominator in ("all", "mean"):
        log_positives = _LogSumExpOf.apply(similarity, where)
        log_mean = log_positives - (pull > 0).sum(1).clamp(min=1).log()
    log_negatives = torch.logsumexp(similarity + log_push, 1)
    log_d, on_floor = log_negatives, torch.zeros_like(count, dtype=torch.bool)
    if tau_plus > 0:
        log_total = torch.logsumexp(log_push, 1)  # log w
        bias, floor = log_total + log_mean, log_total - 1 / temperature
        log_d, on_floor = _debiased(log_negatives, bias, floor, tau_plus)
        log_d, on_floor = (
            torch.where(count > 0, log_d, log_negatives),
            on_floor & (count > 0),
        )
    if (
        denominator == "none"
    ):  # a row without negatives has no denominator left: it drops out
        pull = pull * (count > 0)[:, None]
    pulled, log_den = similarity[where], log_d[where[0]]
    if denominator == "own":
        log_den = torch.logaddexp(pulled, log_den)
    elif denominator != "none":
        log_den = torch.logaddexp(
            (log_positives if denominator == "all" else log_mean)[where[0]], log_den
        )
    logit = (
        pulled
        if weights.positive is None
        else weights.positive.expand_as(pull)[where] * pulled
    )
    terms = (pull[where] * (log_den - logit)).sum()
    if not logged:
        return terms, pull.sum(), terms.new_zeros(0, 2)
    push, alike = log_push.exp(), similarity.detach()
    effective = push.sum(1) ** 2 / push.square_().sum(1).clamp(min=1e-30)
    active = torch.zeros_like(on_floor).index_fill(0, where[0], True)
    numbers = [
        (effective.sum(), (count > 0).sum()), (count.sum(), (count > 0).sum()),
        (temperature * alike[where].sum(), alike.new_tensor(len(where[0]))),
        (temperature * torch.where(eligible, alike, 0.0).sum(), count.sum()),
        ((on_floor & active).sum(), active.sum()),
    ]  # fmt: skip
    return terms, pull.sum(), torch.stack([torch.stack(pair) for pair in numbers])


class _LogSumExpOf(torch.autograd.Function):
    """log Σ exp of the entries `where` (rows, columns) of each row of a matrix; `MASKED` where it has none.

    Few entries: with all others at `MASKED`, torch's own takes ten times as long, since exp is slow there.
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        entries, row = matrix[where], where[0]
        top = matrix.new_full((len(matrix),), MASKED).scatter_reduce(
            0, row, entries, "amax"
        )
        total = (
            torch.zeros_like(matrix)
            .index_put_(where, (entries - top[row]).exp())
            .sum(1)
        )
        found = torch.where(total > 0, top + total.log(), MASKED)
        ctx.save_for_backward(matrix, *where, found)
        return found

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        matrix, row, column, found = ctx.saved_tensors
        share = gradient[row] * (matrix[row, column] - found[row]).exp()
        return torch.zeros_like(matrix).index_put_((row, column), share), None


def _debiased(
    log_negatives: Tensor, log_bias: Tensor, floor: Tensor, tau_plus: float
) -> tuple[Tensor, Tensor]:
    """log max{(R − τ⁺ w pos)/(1 − τ⁺), floor} and whether the floor holds, in log space."""
    tau = torch.tensor(tau_plus, dtype=log_negatives.dtype, device=log_negatives.device)
    ratio = (
        tau.log() + log_bias - log_negatives
    )  # log of (τ⁺ w pos / R); the difference is positive below 0
    safe = ratio.clamp(max=-1e-6)
    log_d = log_negatives + torch.log(-torch.expm1(safe)) - torch.log1p(-tau)
    on_floor = (ratio >= -1e-6) | (log_d <= floor)
    return torch.where(on_floor, floor, log_d), on_floor
