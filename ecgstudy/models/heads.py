"""Heads on features: class scores, the loss of labels, the classifier, linear
probes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


def class_scores(logits: Tensor, multilabel: bool) -> Tensor:
    """Scores whose order gives each class's AUROC, from logits (records, classes).

    The logits themselves if `multilabel`, else log(p_c / (1 − p_c)) of the softmax in
    log space: f_c − logsumexp_{k≠c} f_k.
    """
    if multilabel:
        return logits
    itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].masked_fill(itself, -1e30)
    return logits - torch.logsumexp(others, 2)


def label_loss(logits: Tensor, labels: Tensor, multilabel: bool) -> Tensor:
    """Cross-entropy of each record, (records,).

    Parameters
    ----------
    logits, labels
        (records, classes); labels are one-hot if not `multilabel`.
    multilabel
        Sum of binary cross-entropies instead of that of the softmax.
    """
    scores = class_scores(logits.float(), multilabel)
    return cross_entropy(scores, cross_entropy_targets(labels, multilabel))


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Summed binary cross-entropies of `scores` with `targets`, (records,).

    Targets of NaN are left out. With the true class alone this is the cross-entropy of
    the softmax, since the sigmoid of a softmax margin is the class's probability.
    """
    counted = ~targets.isnan()
    targets = targets.nan_to_num()
    loss = binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return (loss * counted).sum(1)


def cross_entropy_targets(labels: Tensor, multilabel: bool) -> Tensor:
    """Targets of `cross_entropy`: multi-hot labels, or the true class (others NaN)."""
    return labels if multilabel else torch.where(labels > 0, labels, torch.nan)


class Classifier(nn.Module):
    """Signals in mV → logits: an encoder, with adversarial statistics, and a head."""

    def __init__(self, encoder: nn.Module, head: nn.Linear):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, signals: Tensor) -> Tensor:
        features = self.encoder(signals, adversarial=True).float()
        # Attacks may pass the encoder in bfloat16, the head never.
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features)


def zero_head(features: int, classes: int) -> nn.Linear:
    """A linear head that starts at zero: every class is equally likely."""
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
    """A linear head on frozen features: zero start, clean cross-entropy, last epoch.

    Features are standardised for the fit (AdamW, cosine decay, no class weights), and
    the standardisation is folded into the head, which thus takes raw features.

    Parameters
    ----------
    features, labels
        Of the training records, (records, features) and multi-hot (records, classes).
    multilabel
        Whether a record may have several classes or none.
    epochs, batch_size, learning_rate, weight_decay
        Of the optimisation; an incomplete batch is left out.
    generator
        Source of the order of records, on the features' device.
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
