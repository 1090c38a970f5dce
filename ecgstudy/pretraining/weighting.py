"""Weighting schemes: which pairs attract, which repel, and how strongly.

A scheme takes the similarities S = a·cᵀ/τ (A, C) without gradient, what is known of the
pairs, and the weights so far, and returns new weights. Arms list the schemes that they
apply on top of `uniform`, in order. Your own scheme is a function of the same
arguments, decorated with ``es.weighting("its-name")``.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ecgstudy.errors import StudyError
from ecgstudy.pretraining.contrast import Weighting
from ecgstudy.pretraining.pairs import MASKED, Pairs, Weights
from ecgstudy.registry import WEIGHTINGS

scheme = WEIGHTINGS.register


def compose(schemes: Sequence[tuple[str, dict]]) -> Weighting:
    """The weighting that applies `schemes` (name, options) in order to uniform weights.

    Raises
    ------
    StudyError
        When a name is not registered.
    """
    functions = [(WEIGHTINGS.find(name), options) for name, options in schemes]

    def weighting(similarity: Tensor, pairs: Pairs) -> Weights:
        weights = uniform(similarity, pairs)
        for function, options in functions:
            weights = function(similarity, pairs, weights, **options)
        return weights

    return weighting


def uniform(similarity: Tensor, pairs: Pairs) -> Weights:
    """Equal weights of a record's other views and of all other patients (NT-Xent)."""
    same = pairs.match("record")
    positives = same & ~pairs.itself()
    share = 1 / positives.sum(1, keepdim=True, dtype=similarity.dtype).clamp(min=1)
    eligible = ~(same | pairs.match("patient"))
    pull = torch.where(positives, share, 0.0)
    return Weights(pull, eligible, log_push=torch.zeros_like(similarity))


@scheme("hard-negatives")
def push_hard_negatives(
    similarity: Tensor, pairs: Pairs, weights: Weights, beta: float = 1.0
) -> Weights:
    """Negatives weighted by exp(β S): similar ones repel more.

    HCL (Robinson et al. 2021, eq. 4) and A-InfoNCE's HN (Yu et al. 2022), authors' code
    read. Here the weights are detached, and normalised per row over the true negatives
    (A-InfoNCE's code divides by the mean of another row and counts masked entries).

    Parameters
    ----------
    similarity, pairs, weights
        As of every scheme.
    beta
        β ≥ 0; 0 gives equal weights.
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
    """Asymmetric positives: adversarial views move to clean ones, less the reverse.

    A-InfoNCE's IP (Yu et al. 2022; authors' code read): on pairs of a clean and an
    adversarial view, P is multiplied by 2α where the anchor is clean and by 2(1 − α)
    where it is adversarial. The factor 2 keeps the sum of P, which the original halves;
    α = ½ is the base. Candidates must be detached, so that a term moves its anchor
    alone.

    Parameters
    ----------
    similarity, pairs, weights
        As of every scheme.
    alpha
        α in [0, 1].
    adaptive
        α is the metadata ``alpha`` instead, set in each step by the distance of clean
        and adversarial features (`ecgstudy.pretraining.step.adaptive_alpha`).
    """
    adversarial = pairs.anchors.adversarial[:, None]
    mixed = adversarial != pairs.candidates.adversarial[None, :]
    share = torch.tensor(alpha, device=mixed.device)
    if adaptive:
        share = pairs.anchors.metadata["alpha"][:, None]
    factor = torch.where(adversarial, 2 * (1 - share), 2 * share).to(similarity.dtype)
    return weights.with_pull(torch.where(mixed, factor, 1.0))


@scheme("clinical-risk")
def push_by_clinical_risk(
    similarity: Tensor, pairs: Pairs, weights: Weights, original: bool = False
) -> Weights:
    """Negatives weighted by exp(D″): patients who differ in clinical risk repel more.

    CLEF (arXiv 2512.02180, authors' code read): D′ as in `risk_distance`, and D″ = D′
    exp(−m_i m_j) with m the share of SCORE2's inputs that are missing: 5/7 for nearly
    every record of these data sets, which shrinks all D′ alike.

    Parameters
    ----------
    similarity, pairs, weights
        As of every scheme.
    original
        As released: W is a softmax over the whole row (with D′ = 0 for views of the
        same record), which averages the negatives, and missing inputs do not matter.
    """
    distance = risk_distance(pairs)
    if original:
        distance = distance.masked_fill(pairs.match("record"), 0.0).to(similarity.dtype)
        return replace(weights.with_push(distance.log_softmax(1)), mean_one=False)
    missing = pairs.candidates.metadata["missing"][None, :]
    damping = torch.exp(-pairs.anchors.metadata["missing"][:, None] * missing)
    return weights.with_push((distance * damping).to(similarity.dtype))


def risk_distance(pairs: Pairs) -> Tensor:
    """CLEF's D′ = 0.8 D + 0.2, D the squared difference of risks scaled to [0, 1]."""
    risk = pairs.candidates.metadata["risk"]
    difference = (pairs.anchors.metadata["risk"][:, None] - risk[None, :]) ** 2
    # Scaled by the largest of the whole batch, also when anchors come in blocks.
    return 0.8 * difference / ((risk.max() - risk.min()) ** 2 + 1e-6) + 0.2


@scheme("hard-positive-logits")
def weight_positive_logits(
    similarity: Tensor, pairs: Pairs, weights: Weights, sigma: float = 0.5
) -> Weights:
    """Dissimilar positives weigh more: ω = 2 − B · softmax(s_ip/σ) over the B anchors.

    DCLW (Yeh et al. 2022, eq. 6 and 7; another group's code read). The mean of ω is 1.

    Parameters
    ----------
    similarity, pairs, weights
        As of every scheme.
    sigma
        σ > 0.
    """
    if len(pairs.anchors) != len(pairs.candidates):
        raise StudyError(
            "hard-positive-logits compares all anchors of a batch: "
            "they cannot come in blocks"
        )
    positives = weights.pull > 0
    kernel = torch.exp(similarity * pairs.temperature / sigma) * positives
    mean = kernel.sum() / positives.sum().clamp(min=1)
    return replace(weights, positive=2 - kernel / mean)


@scheme("labels")
def pull_by_labels(similarity: Tensor, pairs: Pairs, weights: Weights) -> Weights:
    """Positives are ECGs that share labels, weighted by |y_i ∩ y_j| / |y_i ∪ y_j|.

    SupCon (Khosla et al. 2020; authors' code read): with one label each this is
    1/|P(i)|; the overlap of several labels is a reconstruction. Views of a record are
    always positives, also without any label, and records of one patient never
    negatives.

    Parameters
    ----------
    similarity, pairs, weights
        As of every scheme.
    """
    ours, theirs = pairs.anchors.metadata["labels"], pairs.candidates.metadata["labels"]
    common = ours @ theirs.T
    either = ours.sum(1)[:, None] + theirs.sum(1)[None, :] - common
    overlap = common / either.clamp(min=1)
    overlap = torch.where(pairs.match("record"), 1.0, overlap) * ~pairs.itself()
    pull = overlap / overlap.sum(1, keepdim=True).clamp(min=1e-12)
    eligible = weights.eligible & (overlap == 0)
    return replace(weights, pull=pull.to(similarity.dtype), eligible=eligible)


@scheme("hard-positives")
def pull_hard_positives(
    similarity: Tensor, pairs: Pairs, weights: Weights, gamma: float = 1.0
) -> Weights:
    """Positives weighted by exp(γ (1 − cos)): dissimilar ones attract more.

    ANCHOR (arXiv 2510.27599): a reconstruction, only its summary was available.

    Parameters
    ----------
    similarity, pairs, weights
        As of every scheme.
    gamma
        γ ≥ 0; 0 changes nothing.
    """
    cosine = similarity * pairs.temperature
    return weights.redistribute_pull(torch.exp(gamma * (1 - cosine)))


@scheme("leaked-local")
def select_by_prediction(similarity: Tensor, pairs: Pairs, weights: Weights) -> Weights:
    """Only ECGs with the same prediction are positives or negatives (ASCL).

    Bui et al. 2021 (arXiv 2101.10027; authors' code read): positives have the same
    label and prediction, negatives another label and the same prediction. With several
    labels "the same" is the same set of predicted labels (ours).

    Parameters
    ----------
    similarity, pairs, weights
        As of every scheme.
    """
    ours = pairs.anchors.metadata["predictions"]
    theirs = pairs.candidates.metadata["predictions"]
    same = (ours[:, None] == theirs[None, :]).all(2)
    weights = replace(weights, eligible=weights.eligible & same)
    return weights.redistribute_pull(same)


@scheme("shuffled")
def permute_push(similarity: Tensor, pairs: Pairs, weights: Weights) -> Weights:
    """Control: the weights of each row's negatives, permuted at random among them.

    Random numbers come from the rows' metadata ``noise`` instead of a generator, so
    that a block of anchors gets the same permutation when it is computed again in the
    backward pass. Each row has one number u in [0, 1), drawn for this batch; a pair's
    is made of both by u_i (1 + u_j) · 10⁶ mod 1, whose digits behind the sixth differ
    from pair to pair as if drawn.

    Parameters
    ----------
    similarity, pairs, weights
        As of every scheme.
    """
    noise = 1 + pairs.candidates.metadata["noise"][None, :]
    noise = pairs.anchors.metadata["noise"][:, None] * noise * 1e6 % 1
    others = ~weights.eligible
    # Negatives first, in random order, get the row's weights from large to small.
    order = noise.masked_fill(others, 2.0).argsort(1)
    masked = weights.log_push.masked_fill(others, MASKED)
    ranked = masked.sort(1, descending=True).values
    permuted = torch.empty_like(ranked).scatter_(1, order, ranked)
    return replace(weights, log_push=permuted)
