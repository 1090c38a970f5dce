"""Contrastive losses as plain double loops, one function an equation, on small batches of unit vectors.

They use exp directly and leave the gradient to autograd; ecgstudy works in log space on whole matrices.
"""

import math

import torch
from torch import exp, log

from ecgstudy.contrast import Rows


def batch(n=5, views=2, adversarial=False, seed=0, patients=None, dimensions=4):
    """Correlated unit vectors (views·n, dimensions), stacked view by view, and their rows."""
    stream = torch.Generator().manual_seed(seed)
    centre = torch.randn(n, dimensions, generator=stream, dtype=torch.float64).repeat(views, 1)
    noise = torch.randn(views * n, dimensions, generator=stream, dtype=torch.float64)
    z = torch.nn.functional.normalize(centre + 0.7 * noise, dim=1)
    record = torch.arange(n)
    patient = record if patients is None else torch.tensor(patients)
    metadata = {"risk": torch.rand(n, generator=stream, dtype=torch.float64),
                "missing": torch.rand(n, generator=stream, dtype=torch.float64)}  # fmt: skip
    attacked = [adversarial and view == views - 1 for view in range(views)]
    parts = [Rows(record, patient, torch.full((n,), flag), metadata) for flag in attacked]
    return z, Rows.of_views(parts)


def of_record(rows, i):
    """Positives of row i: the other views of its record."""
    return [k for k in range(len(rows)) if k != i and rows.record[k] == rows.record[i]]


def of_others(rows, i):
    """Negatives of row i: rows of other records and other patients."""
    return [k for k in range(len(rows))
            if rows.record[k] != rows.record[i] and rows.patient[k] != rows.patient[i]]  # fmt: skip


def mean(terms):
    return sum(terms) / len(terms)


def nt_xent(z, rows, tau):
    """Chen et al. 2020, eq. 1: two views, everything but the row itself in the denominator."""
    terms = []
    for i in range(len(z)):
        (p,) = of_record(rows, i)
        below = sum(exp(z[i] @ z[k] / tau) for k in range(len(z)) if k != i)
        terms.append(-log(exp(z[i] @ z[p] / tau) / below))
    return mean(terms)


def debiased(z, rows, tau, tau_plus, beta=None):
    """Chuang et al. 2020, eq. 7 and 8; with β Robinson et al. 2021 with detached importance weights.

    Returns the loss and the share of rows on the estimator's floor.
    """
    terms, floors = [], 0
    for i in range(len(z)):
        (p,) = of_record(rows, i)
        negatives = of_others(rows, i)
        positive, n = exp(z[i] @ z[p] / tau), len(negatives)
        importance = [exp((beta or 0) * (z[i] @ z[k]) / tau).detach() for k in negatives]
        scale = mean(importance)
        total = sum(w / scale * exp(z[i] @ z[k] / tau) for w, k in zip(importance, negatives, strict=True))
        estimate, floor = (total - tau_plus * n * positive) / (1 - tau_plus), n * math.exp(-1 / tau)
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
    """Yeh et al. 2022, eq. 6 and 7: no positive in the denominator, von Mises-Fisher positive weights."""
    positive = [of_record(rows, i)[0] for i in range(len(z))]
    kernel = [exp(z[i] @ z[positive[i]] / sigma).detach() for i in range(len(z))]
    terms = []
    for i, p in enumerate(positive):
        omega = 2 - kernel[i] / mean(kernel)
        terms.append(
            -omega * (z[i] @ z[p]) / tau + log(sum(exp(z[i] @ z[k] / tau) for k in of_others(rows, i)))
        )
    return mean(terms)


def clef_softmax(rows):
    """CLEF's weights as published: softmax over the row of the damped, scaled squared risk difference."""
    risk, missing, n = rows.metadata["risk"], rows.metadata["missing"], len(rows)
    squared = [[float((risk[i] - risk[j]) ** 2) for j in range(n)] for i in range(n)]
    largest = max(max(row) for row in squared)
    weights = []
    for i in range(n):
        distance = [(0.8 * squared[i][j] / (largest + 1e-6) + 0.2) * math.exp(-missing[i] * missing[j])
                    for j in range(n)]  # fmt: skip
        total = sum(math.exp(d) for d in distance)
        weights.append([math.exp(d) / total for d in distance])
    return weights


def clef(z, rows, tau, *, mean_one):
    """CLEF's weighted InfoNCE; its own softmax averages the negatives, ours has a row mean of 1."""
    softmax, terms = clef_softmax(rows), []
    for i in range(len(z)):
        (p,), negatives = of_record(rows, i), of_others(rows, i)
        scale = mean([softmax[i][k] for k in negatives]) if mean_one else 1.0
        positive = exp(z[i] @ z[p] / tau)
        below = sum(softmax[i][k] / scale * exp(z[i] @ z[k] / tau) for k in negatives)
        terms.append(-log(positive / (positive + below)))
    return mean(terms)


def a_infonce_rocl(z, n, tau, alpha, clean_weight=1.0):
    """RoCL with inferior positives as the authors implement it (rows [t1; t2; a], columns detached).

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
        total = total + forward * (term(t1, a) + term(t2, a)) + backward * (term(a, t1) + term(a, t2))
    return total / (3 * n)


def contract(z, rows, tau, *, tau_plus=0.0, denominator="own", detach=False, beta=0.0):
    """The design's equation with uniform pull, W ∝ exp(βS): any number of views, any denominator."""
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
            push = torch.maximum((push - tau_plus * len(negatives) * pos) / (1 - tau_plus), floor)
        for p in positives:
            den = {"own": e[p] + push, "all": pos * len(positives) + push, "mean": pos + push, "none": push}
            total = total + (log(den[denominator]) - log(e[p])) / len(positives)
            norm = norm + 1 / len(positives)
    return total / norm
