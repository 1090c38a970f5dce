"""Losses of predictions, codes and features, as loops over records and classes.

Logits are (records, classes), labels multi-hot; exp directly, gradients by autograd.
"""

import math

from loss_loops import jaccard, mean
from torch import exp, log


def outcomes(logits, y, multilabel):
    """Per record a list of (probabilities, index of the truth): one softmax, or yes and no for each label."""
    found = []
    for row, truth in zip(logits, y, strict=True):
        if multilabel:
            yes = [1 / (1 + exp(-f)) for f in row]
            found.append(
                [([p, 1 - p], 0 if t else 1) for p, t in zip(yes, truth, strict=True)]
            )
        else:
            total = sum(exp(f) for f in row)
            found.append([([exp(f) / total for f in row], int(truth.argmax()))])
    return found


def cross_entropy(logits, y, multilabel):
    """Per record −log p_y, summed over the labels."""
    return [
        sum(-log(p[t]) for p, t in record) for record in outcomes(logits, y, multilabel)
    ]


def kl(clean, attacked, y, multilabel):
    """TRADES: per record KL(clean ‖ attacked), summed over the labels."""
    found = []
    for ours, theirs in zip(
        outcomes(clean, y, multilabel), outcomes(attacked, y, multilabel), strict=True
    ):
        pairs = [
            (a, b)
            for (p, _), (q, _) in zip(ours, theirs, strict=True)
            for a, b in zip(p, q, strict=True)
        ]
        found.append(sum(a * (log(a) - log(b)) for a, b in pairs))
    return found


def mart(clean, attacked, y, multilabel, beta=6.0):
    """MART, each label a problem of two classes when there are several."""
    found = []
    for ours, theirs in zip(
        outcomes(clean, y, multilabel), outcomes(attacked, y, multilabel), strict=True
    ):
        total = 0.0
        for (p, t), (q, _) in zip(ours, theirs, strict=True):
            runner_up = max(
                (v for k, v in enumerate(q) if k != t), key=lambda v: v.item()
            )
            divergence = sum(a * (log(a) - log(b)) for a, b in zip(p, q, strict=True))
            total = (
                total
                - log(q[t])
                - log(1.0001 - runner_up)
                + beta * divergence * (1 - p[t])
            )
        found.append(total)
    return mean(found)


# ---- SwARo and DeACL


def sinkhorn(scores, eta=0.05, rounds=3):
    """Codes [row][prototype]: prototypes, then rows are scaled to sum 1, in turn."""
    q = [[math.exp(float(s) / eta) for s in row] for row in scores]
    for _ in range(rounds):
        used = [sum(row[k] for row in q) for k in range(len(q[0]))]
        q = [[v / u for v, u in zip(row, used, strict=True)] for row in q]
        q = [[v / sum(row) for v in row] for row in q]
    return q


def code_loss(z, prototypes, codes, tau=0.1):
    """Per record −Σ q log p."""
    found = []
    for row, code in zip(z, codes, strict=True):
        scores = [row @ c / c.norm() / tau for c in prototypes]
        total = log(sum(exp(s) for s in scores))
        found.append(-sum(q * (s - total) for q, s in zip(code, scores, strict=True)))
    return found


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def pair_margin(z, rows, near, far):
    """Wang et al. 2024 as reconstructed: means over like and over unlike pairs."""
    alike, apart = [], []
    for i in range(len(z)):
        for k in range(len(z)):
            distance = (z[i] - z[k]).pow(2).sum().sqrt() if i != k else None
            if i != k and jaccard(rows, i, k) > 0:
                alike.append((distance - near).clamp(min=0) ** 2)
            elif i != k and rows.patient[i] != rows.patient[k]:
                apart.append((far - distance).clamp(min=0) ** 2)
    return (mean(alike) if alike else 0) + (mean(apart) if apart else 0)
