"""Weighting schemes: each says in one function who pulls, who pushes and how strongly.

A scheme takes the similarities S = a·cᵀ/τ (A, C) without gradient, the pairs and the weights so
far, and returns new weights. Schemes chain: an arm lists the ones it uses, in order, on top of
`uniform`. Add one with a function and the decorator; nothing else changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ecgstudy.errors import StudyError
from ecgstudy.pretraining.contrast import MASKED, Pairs, Weighting, Weights
from ecgstudy.registry import WEIGHTINGS

Scheme = Callable[..., Weights]
SCHEMES = WEIGHTINGS
scheme = WEIGHTINGS.register


def compose(schemes: Sequence[tuple[str, dict]]) -> Weighting:
    """The weighting that applies `schemes` (name, options) in order to uniform weights.

    Raises
    ------
    StudyError
        When a name is not registered.
    """
    for name, _ in schemes:
        WEIGHTINGS.find(name)

    def weighting(similarity: Tensor, pairs: Pairs) -> Weights:
        weights = uniform(similarity, pairs)
        for name, options in schemes:
            weights = SCHEMES[name](similarity, pairs, weights, **options)
        return weights

    return weighting


def uniform(similarity: Tensor, pairs: Pairs) -> Weights:
    """Other views of the record pull equally; every other patient pushes equally (NT-Xent, SimCLR)."""
    same = pairs.match("record")
    positives = same & ~pairs.itself()
    share = 1 / positives.sum(1, keepdim=True, dtype=similarity.dtype).clamp(min=1)
    eligible = ~(same | pairs.match("patient"))
    return Weights(
        torch.where(positives, share, 0.0), eligible, torch.zeros_like(similarity)
    )


@scheme("hard-negatives")
def push_hard_negatives(
    similarity: Tensor, pairs: Pairs, weights: Weights, beta: float = 1.0
) -> Weights:
    """W ∝ exp(β S): the closer a negative, the harder it is pushed.

    HCL (Robinson et al. 2021, eq. 4) and A-InfoNCE's HN (Yu et al. 2022), both as read in the
    authors' code; here the weights are detached, and normalised per row over the true negatives
    (A-InfoNCE's code divides by the mean of another row and counts masked entries).
    """
    return weights.with_push(beta * similarity)


@scheme("inferior-positives")
def pull_inferior_positives(
    similarity: Tensor,
    pairs: Pairs,
    weights: Weights,
    alpha: float = 0.2,
    adaptive: bool = False,
) -> Weights:
    """Adversaries are pulled to clean views more strongly (1−α) than clean views to adversaries (α).

    A-InfoNCE's IP (Yu et al. 2022; read in the authors' code). Needs detached candidates, so that
    each term moves its anchor only. The factor 2 keeps the total pull, which the original halves;
    α = ½ is the base loss. `adaptive`: training sets α of each step by the distance between clean and
    adversarial features (`ecgstudy.pretraining.losses.adaptive_alpha`) and hands it over in the metadata.
    """
    anchor = pairs.anchors.adversarial[:, None]
    mixed = anchor != pairs.candidates.adversarial[None, :]
    share = (
        pairs.anchors.metadata["alpha"][:, None]
        if adaptive
        else torch.tensor(alpha, device=mixed.device)
    )
    factor = torch.where(anchor, 2 * (1 - share), 2 * share).to(similarity.dtype)
    return weights.with_pull(torch.where(mixed, factor, 1.0))


@scheme("clinical-risk")
def push_by_clinical_risk(
    similarity: Tensor, pairs: Pairs, weights: Weights, original: bool = False
) -> Weights:
    """W ∝ exp(D″): the more two patients differ in clinical risk, the harder they are pushed apart.

    CLEF (arXiv 2512.02180, read in the authors' code): D = (r_i − r_j)² scaled to [0, 1] over the
    batch, D′ = 0.8 D + 0.2, D″ = D′ exp(−m_i m_j) with m the share of SCORE2's inputs that are missing:
    5/7 for nearly every record of these data sets, so that all D′ shrink alike. Here, as everywhere, the
    row mean of W is 1. `original`: as released, W is a softmax over the whole row (the anchor and
    its views included, at D′ = 0), which averages the negatives, and missing metadata do not damp.
    """
    risk, missing = (
        pairs.candidates.metadata["risk"],
        pairs.candidates.metadata["missing"],
    )
    difference = (pairs.anchors.metadata["risk"][:, None] - risk[None, :]) ** 2
    # The largest squared difference in the batch, from the whole batch even when anchors come in blocks.
    distance = 0.8 * difference / ((risk.max() - risk.min()) ** 2 + 1e-6) + 0.2
    if original:
        distance = distance.masked_fill(pairs.match("record"), 0.0).to(similarity.dtype)
        return replace(weights.with_push(distance.log_softmax(1)), mean_one=False)
    damping = torch.exp(-pairs.anchors.metadata["missing"][:, None] * missing[None, :])
    return weights.with_push((distance * damping).to(similarity.dtype))


@scheme("hard-positive-logits")
def weigh_positive_logits(
    similarity: Tensor, pairs: Pairs, weights: Weights, sigma: float = 0.5
) -> Weights:
    """ω = 2 − softmax(s_ip/σ)·B over the anchors of a view: dissimilar positives count more (DCLW).

    Yeh et al. 2022, eq. 6 and 7; another group's implementation read. The mean of ω is 1.
    """
    if len(pairs.anchors) != len(pairs.candidates):
        raise StudyError(
            "hard-positive-logits compare all anchors of a batch: they cannot come in blocks"
        )
    kernel = torch.exp(similarity * pairs.temperature / sigma) * (weights.pull > 0)
    mean = kernel.sum() / (weights.pull > 0).sum().clamp(min=1)
    return replace(weights, positive=2 - kernel / mean)


@scheme("labels")
def pull_by_labels(similarity: Tensor, pairs: Pairs, weights: Weights) -> Weights:
    """ECGs with common labels pull by their overlap |y_i ∩ y_j| / |y_i ∪ y_j|; those with none push.

    SupCon (Khosla et al. 2020; authors' code read), where one label each gives 1/|P(i)|; the overlap for
    multi-label ECGs is a reconstruction. Views of a record always pull, also without any label. Records of
    one patient never push each other.
    """
    ours, theirs = pairs.anchors.metadata["labels"], pairs.candidates.metadata["labels"]
    common = ours @ theirs.T
    overlap = common / (ours.sum(1)[:, None] + theirs.sum(1)[None, :] - common).clamp(
        min=1
    )
    overlap = torch.where(pairs.match("record"), 1.0, overlap) * ~pairs.itself()
    pull = overlap / overlap.sum(1, keepdim=True).clamp(min=1e-12)
    return replace(
        weights,
        pull=pull.to(similarity.dtype),
        eligible=weights.eligible & (overlap == 0),
    )


@scheme("hard-positives")
def pull_hard_positives(
    similarity: Tensor, pairs: Pairs, weights: Weights, gamma: float = 1.0
) -> Weights:
    """P ∝ exp(γ (1 − cos)): the less similar a positive, the harder it pulls (row sums stay).

    ANCHOR (arXiv 2510.27599): a reconstruction, its summary only was available.
    """
    return weights.redistribute_pull(
        torch.exp(gamma * (1 - similarity * pairs.temperature))
    )


@scheme("leaked-local")
def select_by_prediction(similarity: Tensor, pairs: Pairs, weights: Weights) -> Weights:
    """Only ECGs for which the model now predicts the same pull or push (ASCL).

    Bui et al. 2021 (arXiv 2101.10027; authors' code read): P = same label and same prediction, N = other
    label and same prediction. With several labels "same" is the same set of predicted labels (ours).
    """
    ours, theirs = (
        pairs.anchors.metadata["predictions"],
        pairs.candidates.metadata["predictions"],
    )
    same = (ours[:, None] == theirs[None, :]).all(2)
    return replace(weights.redistribute_pull(same), eligible=weights.eligible & same)


@scheme("shuffled")
def shuffle_push(similarity: Tensor, pairs: Pairs, weights: Weights) -> Weights:
    """Control: the push weights so far, permuted at random within each row's negatives.

    The permutation is a function of the rows' ``noise``, so that it is the same when a block of anchors is
    computed again in the backward pass.
    """
    noise = pairs.anchors.metadata["noise"][:, None] * (
        1 + pairs.candidates.metadata["noise"][None, :]
    )
    outside = ~weights.eligible
    drawn = (
        (noise * 1e6 % 1).masked_fill(outside, 2.0).argsort(1)
    )  # negatives first, in random order
    ranked = (
        weights.log_push.masked_fill(outside, MASKED).sort(1, descending=True).values
    )
    return replace(
        weights, log_push=torch.empty_like(ranked).scatter_(1, drawn, ranked)
    )
