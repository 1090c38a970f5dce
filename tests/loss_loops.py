"""Contrastive losses as plain double loops, one function an equation.

They use exp directly and leave the gradient to autograd; ecgstudy works in log space on
whole matrices.
"""

import math

import torch
from torch import exp, log

from ecgstudy.pretraining.pairs import Rows


def batch(n=5, views=2, adversarial=False, seed=0, patients=None, dimensions=4):
    """Correlated unit vectors (views·n, dimensions), view below view; their rows."""
    stream = torch.Generator().manual_seed(seed)
    centre = torch.randn(n, dimensions, generator=stream, dtype=torch.float64).repeat(
        views, 1
    )
    noise = torch.randn(views * n, dimensions, generator=stream, dtype=torch.float64)
    z = torch.nn.functional.normalize(centre + 0.7 * noise, dim=1)
    record = torch.arange(n)
    patient = record if patients is None else torch.tensor(patients)
    metadata = {
        "risk": torch.rand(n, generator=stream, dtype=torch.float64),
        "missing": torch.rand(n, generator=stream, dtype=torch.float64),
    }
    attacked = [adversarial and view == views - 1 for view in range(views)]
    parts = [
        Rows(record, patient, torch.full((n,), flag), metadata) for flag in attacked
    ]
    return z, Rows.of_views(parts)


def of_record(rows, i):
    """Positives of row i: the other views of its record."""
    return [k for k in range(len(rows)) if k != i and rows.record[k] == rows.record[i]]


def of_others(rows, i):
    """Negatives of row i: rows of other records and other patients."""
    return [
        k
        for k in range(len(rows))
        if rows.record[k] != rows.record[i] and rows.patient[k] != rows.patient[i]
    ]


def mean(terms):
    return sum(terms) / len(terms)


def nt_xent(z, rows, tau):
    """Chen et al. 2020, eq. 1: two views, all but the row itself in the denominator."""
    terms = []
    for i in range(len(z)):
        (p,) = of_record(rows, i)
        below = sum(exp(z[i] @ z[k] / tau) for k in range(len(z)) if k != i)
        terms.append(-log(exp(z[i] @ z[p] / tau) / below))
    return mean(terms)


def debiased(z, rows, tau, tau_plus, beta=None):
    """Chuang et al. 2020, eq. 7 and 8; with β Robinson et al. 2021, weights detached.

    Returns the loss and the share of rows on the estimator's floor.
    """
    terms, floors = [], 0
    for i in range(len(z)):
        (p,) = of_record(rows, i)
        negatives = of_others(rows, i)
        positive, n = exp(z[i] @ z[p] / tau), len(negatives)
        importance = [
            exp((beta or 0) * (z[i] @ z[k]) / tau).detach() for k in negatives
        ]
        scale = mean(importance)
        total = sum(
            w / scale * exp(z[i] @ z[k] / tau)
            for w, k in zip(importance, negatives, strict=True)
        )
        estimate, floor = (
            (total - tau_plus * n * positive) / (1 - tau_plus),
            n * math.exp(-1 / tau),
        )
        floors += int(estimate < floor)
        below = estimate if estimate >= floor else torch.tensor(floor, dtype=z.dtype)
        terms.append(-log(positive / (positive + below)))
    return mean(terms), floors / len(z)


def supcon(z, labels, tau):
    """Khosla et al. 2020, eq. 2 (L_out)."""
    terms = []
    for i in range(len(z)):
        below = sum(exp(z[i] @ z[k] / tau) for k in range(len(z)) if k != i)
        same = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        terms.append(-mean([log(exp(z[i] @ z[p] / tau) / below) for p in same]))
    return mean(terms)


def dclw(z, rows, tau, sigma):
    """Yeh et al. 2022, eq. 6 and 7, with von Mises-Fisher weights of positives."""
    positive = [of_record(rows, i)[0] for i in range(len(z))]
    kernel = [exp(z[i] @ z[positive[i]] / sigma).detach() for i in range(len(z))]
    terms = []
    for i, p in enumerate(positive):
        omega = 2 - kernel[i] / mean(kernel)
        if negatives := of_others(rows, i):
            terms.append(
                -omega * (z[i] @ z[p]) / tau
                + log(sum(exp(z[i] @ z[k] / tau) for k in negatives))
            )
    return mean(terms) if terms else 0 * z.sum()


def clef_softmax(rows):
    """CLEF's published weights: softmax over the row of the damped risk distance."""
    risk, missing, n = rows.metadata["risk"], rows.metadata["missing"], len(rows)
    squared = [[float((risk[i] - risk[j]) ** 2) for j in range(n)] for i in range(n)]
    largest = max(max(row) for row in squared)
    weights = []
    for i in range(n):
        distance = [
            (0.8 * squared[i][j] / (largest + 1e-6) + 0.2)
            * math.exp(-missing[i] * missing[j])
            for j in range(n)
        ]
        total = sum(math.exp(d) for d in distance)
        weights.append([math.exp(d) / total for d in distance])
    return weights


def clef(z, rows, tau, *, mean_one):
    """CLEF's weighted InfoNCE, with its own softmax or a row mean of 1."""
    softmax, terms = clef_softmax(rows), []
    for i in range(len(z)):
        (p,), negatives = of_record(rows, i), of_others(rows, i)
        scale = mean([softmax[i][k] for k in negatives]) if mean_one else 1.0
        positive = exp(z[i] @ z[p] / tau)
        below = sum(softmax[i][k] / scale * exp(z[i] @ z[k] / tau) for k in negatives)
        terms.append(-log(positive / (positive + below)))
    return mean(terms)


def a_infonce_rocl(z, n, tau, alpha, clean_weight=1.0):
    """RoCL with inferior positives as in the authors' code (rows t1, t2, a).

    α None is the RoCL loss itself, every ordered pair with weight 1.
    """
    forward, backward = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    fixed = z.detach()

    def term(i, p):
        below = sum(exp(z[i] @ fixed[k] / tau) for k in range(3 * n) if k != i)
        return -log(exp(z[i] @ fixed[p] / tau) / below)

    total = 0.0
    for i in range(n):
        t1, t2, a = i, i + n, i + 2 * n
        total = total + clean_weight * (term(t1, t2) + term(t2, t1))
        total = (
            total
            + forward * (term(t1, a) + term(t2, a))
            + backward * (term(a, t1) + term(a, t2))
        )
    return total / (3 * n)


def contract(z, rows, tau, *, tau_plus=0.0, denominator="own", detach=False, beta=0.0):
    """The shared equation with uniform pull and W ∝ exp(βS), any denominator."""
    fixed = z.detach() if detach else z
    total = norm = 0.0
    for i in range(len(z)):
        positives, negatives = of_record(rows, i), of_others(rows, i)
        e = [exp(z[i] @ c / tau) for c in fixed]
        w = [(e[k].detach() ** beta) for k in negatives]
        push = sum(a / mean(w) * e[k] for a, k in zip(w, negatives, strict=True))
        pos = mean([e[p] for p in positives])
        if tau_plus:
            floor = torch.tensor(len(negatives) * math.exp(-1 / tau), dtype=z.dtype)
            push = torch.maximum(
                (push - tau_plus * len(negatives) * pos) / (1 - tau_plus), floor
            )
        for p in positives:
            den = {
                "own": e[p] + push,
                "all": pos * len(positives) + push,
                "mean": pos + push,
                "none": push,
            }
            total = total + (log(den[denominator]) - log(e[p])) / len(positives)
            norm = norm + 1 / len(positives)
    return total / norm


# ---- the shared equation with any weights


def labels_of(rows, i):
    return {c for c, y in enumerate(rows.metadata["labels"][i]) if y}


def jaccard(rows, i, k):
    """Overlap of the labels; views of one record are alike also without any."""
    if rows.record[i] == rows.record[k]:
        return 1.0
    ours, theirs = labels_of(rows, i), labels_of(rows, k)
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 0.0


def equal_pull(rows):
    """Row → {positive: weight}: the other views of the record, equally."""
    return [
        {p: 1 / len(of_record(rows, i)) for p in of_record(rows, i)}
        for i in range(len(rows))
    ]


def label_pull(rows):
    """Weights by overlap of labels, of sum 1."""
    found = []
    for i in range(len(rows)):
        raw = {
            p: jaccard(rows, i, p)
            for p in range(len(rows))
            if p != i and jaccard(rows, i, p) > 0
        }
        found.append({p: w / sum(raw.values()) for p, w in raw.items()})
    return found


def equal_push(rows):
    """Row → {negative: weight}: other patients, equally."""
    return [dict.fromkeys(of_others(rows, i), 1.0) for i in range(len(rows))]


def label_push(rows):
    """Other patients without a common label."""
    return [
        {k: 1.0 for k in of_others(rows, i) if jaccard(rows, i, k) == 0}
        for i in range(len(rows))
    ]


def inferior(pull, rows, alpha):
    """2α where a clean anchor meets an adversary, 2(1−α) the other way round."""

    def factor(i, p):
        if rows.adversarial[i] == rows.adversarial[p]:
            return 1.0
        return 2 * (1 - alpha) if rows.adversarial[i] else 2 * alpha

    return [{p: w * factor(i, p) for p, w in row.items()} for i, row in enumerate(pull)]


def hard_pull(pull, z, gamma):
    """ANCHOR: weights times exp(γ(1−s)), each row's sum as before."""
    found = []
    for i, row in enumerate(pull):
        raw = {
            p: w * math.exp(gamma * (1 - float(z[i] @ z[p]))) for p, w in row.items()
        }
        found.append(
            {p: w * sum(row.values()) / sum(raw.values()) for p, w in raw.items()}
        )
    return found


def predicted_alike(weights, rows, rescale):
    """ASCL: only rows whose predictions equal the anchor's."""
    said = [tuple(float(v) for v in p) for p in rows.metadata["predictions"]]
    found = []
    for i, row in enumerate(weights):
        kept = {k: w for k, w in row.items() if said[k] == said[i]}
        scale = sum(row.values()) / sum(kept.values()) if rescale and kept else 1.0
        found.append({k: w * scale for k, w in kept.items()})
    return found


def hard_push(push, z, tau, beta):
    """HN: weights times exp(s/τ)^β."""
    return [
        {k: w * math.exp(beta * float(z[i] @ z[k]) / tau) for k, w in row.items()}
        for i, row in enumerate(push)
    ]


def risk_distance(rows, i, k, damped):
    """CLEF's D″ of two rows."""
    risk, missing = rows.metadata["risk"], rows.metadata["missing"]
    largest = max(float((a - b) ** 2) for a in risk for b in risk)
    distance = 0.8 * float((risk[i] - risk[k]) ** 2) / (largest + 1e-6) + 0.2
    return distance * math.exp(-float(missing[i] * missing[k])) if damped else distance


def risk_push(push, rows):
    """CLEF: weights times exp(D″)."""
    return [
        {k: w * math.exp(risk_distance(rows, i, k, True)) for k, w in row.items()}
        for i, row in enumerate(push)
    ]


def shared(z, rows, tau, pull, push, *, tau_plus=0.0, detach=False, denominator="own"):
    """Design, section 5: push weights of mean 1 in each row, pull weights as given."""
    fixed = z.detach() if detach else z
    total, norm = 0 * z.sum(), 0.0
    for i in range(len(z)):
        if not pull[i]:
            continue
        e = {k: exp(z[i] @ fixed[k] / tau) for k in (*pull[i], *push[i])}
        n = len(push[i])
        below = (
            sum(w * n / sum(push[i].values()) * e[k] for k, w in push[i].items())
            + 0 * z.sum()
        )
        if tau_plus and n:
            estimate = (below - tau_plus * n * mean([e[p] for p in pull[i]])) / (
                1 - tau_plus
            )
            below = torch.maximum(
                estimate, torch.tensor(n * math.exp(-1 / tau), dtype=z.dtype)
            )
        together = sum(e[p] for p in pull[i])
        for p, weight in pull[i].items():
            positive = {"own": e[p], "all": together, "mean": together / len(pull[i])}[
                denominator
            ]
            total = total - weight * log(e[p] / (positive + below))
            norm += weight
    return total / norm if norm else total


# ---- as the sources have them


def a_infonce_hn(z, rows, tau, tau_plus, beta, *, detach, pair=None):
    """A-InfoNCE's hard negatives as intended: mean positive and debiased negatives.

    `pair` gives each ordered pair's weight and whether its columns are detached; the
    sum is over anchors of the mean over their positives, as everywhere here.
    """
    terms = []
    for i in range(len(z)):
        positives, negatives, n = (
            of_record(rows, i),
            of_others(rows, i),
            len(of_others(rows, i)),
        )
        row = []
        for p in positives:
            weight, stopped = pair(i, p) if pair else (1.0, detach)
            c = z.detach() if stopped else z
            e = {k: exp(z[i] @ c[k] / tau) for k in (*positives, *negatives)}
            importance = {k: e[k].detach() ** beta for k in negatives}
            scale = sum(importance.values()) / n
            reweighted = sum(importance[k] * e[k] for k in negatives) / scale
            pos = mean([e[q] for q in positives])
            ng = (reweighted - tau_plus * n * pos) / (1 - tau_plus)
            ng = torch.maximum(ng, torch.tensor(n * math.exp(-1 / tau), dtype=z.dtype))
            row.append(-weight * log(e[p] / (pos + ng)))
        terms.append(mean(row))
    return mean(terms)


def advcl(z, rows, tau, pair=None):
    """AdvCL's four views: all other rows below, gradient through both sides."""
    terms = []
    for i in range(len(z)):
        row = []
        for p in of_record(rows, i):
            weight, stopped = pair(i, p) if pair else (1.0, False)
            c = z.detach() if stopped else z
            below = sum(exp(z[i] @ c[k] / tau) for k in range(len(z)) if k != i)
            row.append(-weight * log(exp(z[i] @ c[p] / tau) / below))
        terms.append(mean(row))
    return mean(terms)


def asymmetric(rows, alpha):
    """A-InfoNCE's IP on AdvCL with all columns stopped, α from clean anchors.

    The factor 2 keeps the pull of mixed pairs, which the original halves. The original
    stops columns of mixed pairs only, which changes gradients and not the value.
    """

    def pair(i, p):
        if rows.adversarial[i] == rows.adversarial[p]:
            return 1.0, True
        return (2 * (1 - alpha) if rows.adversarial[i] else 2 * alpha), True

    return pair


def ascl(z, rows, tau):
    """ASCL's leaked-local loss: largest coordinate differences, rows with positives."""
    said = [tuple(float(v) for v in p) for p in rows.metadata["predictions"]]

    def e(i, k):
        return exp(-(z[i] - z[k]).abs().max() / tau)

    terms = []
    for i in range(len(z)):
        alike = [k for k in range(len(z)) if k != i and said[k] == said[i]]
        positives = [k for k in alike if labels_of(rows, k) == labels_of(rows, i)]
        negatives = [k for k in alike if labels_of(rows, k) != labels_of(rows, i)]
        if positives:
            below = sum(e(i, k) for k in (*positives, *negatives))
            terms.append(-mean([log(e(i, p) / below) for p in positives]))
    return mean(terms)


def anchor(z, rows, tau, gamma):
    """ANCHOR's L_HW: SupCon with hardness weights of mean 1 over the positives."""
    terms = []
    for i in range(len(z)):
        below = sum(exp(z[i] @ z[k].detach() / tau) for k in range(len(z)) if k != i)
        same = [
            p
            for p in range(len(z))
            if p != i and labels_of(rows, p) == labels_of(rows, i)
        ]
        hardness = [math.exp(gamma * (1 - (z[i] @ z[p]).item())) for p in same]
        terms.append(
            -mean(
                [
                    h / mean(hardness) * log(exp(z[i] @ z[p].detach() / tau) / below)
                    for p, h in zip(same, hardness, strict=True)
                ]
            )
        )
    return mean(terms)


def clef_original(z, rows, tau):
    """CLEF as released, without damping: ½ (L_nce + L_sim)."""
    size = len(z)
    distance = [
        [
            0.0
            if rows.record[i] == rows.record[k]
            else risk_distance(rows, i, k, False)
            for k in range(size)
        ]
        for i in range(size)
    ]
    nce, cosines = [], [[z[i] @ z[k] for k in range(size)] for i in range(size)]
    for i in range(size):
        (p,), total = of_record(rows, i), sum(math.exp(d) for d in distance[i])
        below = sum(
            math.exp(distance[i][k]) / total * exp(cosines[i][k] / tau)
            for k in of_others(rows, i)
        )
        nce.append(-log(exp(cosines[i][p] / tau) / (exp(cosines[i][p] / tau) + below)))
    smallest = min((c for row in cosines for c in row), key=lambda v: v.item())
    largest = max((c for row in cosines for c in row), key=lambda v: v.item())
    squares = [
        (
            (cosines[i][k] - smallest) / (largest - smallest + 1e-6)
            - (1 - distance[i][k])
        )
        ** 2
        for i in range(size)
        for k in range(size)
    ]
    return (mean(nce) + mean(squares)) / 2
