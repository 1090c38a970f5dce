"""Objectives that learn from labels: the references that contrastive arms are held against."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


def label_loss(logits: Tensor, labels: Tensor, multilabel: bool) -> Tensor:
    """Cross-entropy per record (records,): softmax, or the sum of binary cross-entropies.

    `logits` and `labels` are (records, classes); labels are one-hot when not `multilabel`.
    """
    scores = class_scores(logits.float(), multilabel)
    return cross_entropy(scores, cross_entropy_targets(labels, multilabel))


class Classifier(nn.Module):
    """Signals in mV → logits: an encoder and a linear head, with adversarial statistics throughout."""

    def __init__(self, encoder: nn.Module, head: nn.Linear):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, signals: Tensor) -> Tensor:
        features = self.encoder(signals, adversarial=True).float()
        with torch.autocast(
            features.device.type, enabled=False
        ):  # attacks may pass the encoder in bfloat16
            return self.head(features)


def zero_head(features: int, classes: int) -> nn.Linear:
    """Linear head that starts at zero: every class equally likely."""
    head = nn.Linear(features, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    multilabel: bool,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    generator: torch.Generator,
) -> nn.Linear:
    """Linear head on frozen features: zero start, clean cross-entropy, no class weights, last epoch.

    Features are standardised for the fit (AdamW, cosine decay) and the standardisation is folded
    into the head, which thus takes raw features.

    Parameters
    ----------
    features
        (records, features) of the training records.
    labels
        Multi-hot (records, classes).
    """
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    standard = (features - mean) / std
    head = zero_head(features.shape[1], labels.shape[1]).to(features.device)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    batches = max(1, len(features) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        order = torch.randperm(
            len(features), generator=generator, device=features.device
        )
        for rows in order[: batches * batch_size].split(batch_size):
            loss = label_loss(head(standard[rows]), labels[rows], multilabel).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        head.weight /= std
        head.bias -= head.weight @ mean
    return head.requires_grad_(False)


def class_scores(logits: Tensor, multilabel: bool) -> Tensor:
    """Scores (records, classes) whose order gives each class's AUROC, from `logits` of the same shape.

    If `multilabel` the logits themselves, else log(p_c / (1 − p_c)) of the softmax, in log space.
    """
    if multilabel:
        return logits
    classes = logits.shape[1]
    itself = torch.eye(classes, dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].masked_fill(itself, -1e30)
    return logits - torch.logsumexp(others, 2)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the true class (softmax), or summed binary cross-entropies (multi-label).

    Both are the sum over true classes of softplus(−score) here: a softmax margin's sigmoid is the
    class's probability. `targets` are multi-hot for multi-label and one-hot for single-label data;
    NaN targets are left out of the sum.
    """
    counted = ~targets.isnan()
    loss = binary_cross_entropy_with_logits(
        scores, targets.nan_to_num(), reduction="none"
    )
    return (loss * counted).sum(1)


def cross_entropy_targets(labels: Tensor, multilabel: bool) -> Tensor:
    """Targets of `cross_entropy`: multi-hot labels, or the true class alone (others NaN)."""
    return labels if multilabel else torch.where(labels > 0, labels, torch.nan)
