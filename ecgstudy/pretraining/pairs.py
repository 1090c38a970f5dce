"""What a contrastive loss compares: rows of a batch, their pairs, and weights."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

MASKED = -1e30
"""Stands for log 0: exp gives exactly 0, and unlike -inf it leaves no NaN behind."""


@dataclass(frozen=True)
class Rows:
    """What is known of each embedded view, as (rows,) tensors.

    Attributes
    ----------
    record, patient
        Index of the ECG record and of its patient.
    adversarial
        Whether an attack perturbed the view.
    metadata
        Named (rows, …) tensors for weighting schemes, such as ``risk`` and ``missing``
        (clinical risk), ``labels`` and ``predictions`` (multi-hot).
    """

    record: Tensor
    patient: Tensor
    adversarial: Tensor
    metadata: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.record)

    def __getitem__(self, rows: slice | Tensor) -> "Rows":
        return Rows(
            self.record[rows],
            self.patient[rows],
            self.adversarial[rows],
            {name: values[rows] for name, values in self.metadata.items()},
        )

    @staticmethod
    def of_views(views: list["Rows"]) -> "Rows":
        """The rows of several views, one below the other."""
        metadata = {}
        for name in views[0].metadata:
            metadata[name] = torch.cat([view.metadata[name] for view in views])
        return Rows(
            torch.cat([view.record for view in views]),
            torch.cat([view.patient for view in views]),
            torch.cat([view.adversarial for view in views]),
            metadata,
        )


@dataclass(frozen=True)
class Pairs:
    """Anchors (A rows) against candidates (C rows).

    Attributes
    ----------
    anchors, candidates
        What is known of both; each anchor is one of the candidates.
    first
        Place of the first anchor among the candidates.
    temperature
        τ, for schemes that need the cosine S τ.
    """

    anchors: Rows
    candidates: Rows
    first: int = 0
    temperature: float = 1.0

    def match(self, key: str) -> Tensor:
        """(A, C) booleans: do anchor and candidate agree in `key`, as ``"patient"``?"""
        anchors, candidates = getattr(self.anchors, key), getattr(self.candidates, key)
        return anchors[:, None] == candidates[None, :]

    def itself(self) -> Tensor:
        """(A, C) booleans: is the candidate the anchor's own row?"""
        place = torch.arange(len(self.candidates), device=self.candidates.record.device)
        own = place[self.first : self.first + len(self.anchors)]
        return own[:, None] == place


@dataclass(frozen=True)
class Weights:
    """Weights of all pairs; every tensor is (A, C) and carries no gradient.

    Attributes
    ----------
    pull
        P ≥ 0, weights of positives. Zero on the anchor itself.
    eligible
        N: which candidates are negatives. Never the anchor, a positive, or a record of
        the same patient.
    log_push
        log W, weights of negatives. Only values on N matter.
    positive
        ω, factor of the positive logit; None is 1.
    mean_one
        Whether the loss scales W to a mean of 1 over each row's negatives. False only
        for CLEF's published scale.
    """

    pull: Tensor
    eligible: Tensor
    log_push: Tensor
    positive: Tensor | None = None
    mean_one: bool = True

    def with_push(self, log_factor: Tensor) -> "Weights":
        """Weights of negatives multiplied by exp(`log_factor`)."""
        return replace(self, log_push=self.log_push + log_factor)

    def with_pull(self, factor: Tensor) -> "Weights":
        """Weights of positives multiplied by `factor`."""
        return replace(self, pull=self.pull * factor)

    def redistribute_pull(self, factor: Tensor) -> "Weights":
        """Weights of positives multiplied by `factor` ≥ 0; each row keeps its sum."""
        pull, total = self.pull * factor, self.pull.sum(1, keepdim=True)
        left = pull.sum(1, keepdim=True)  # 0 if no positive is left
        return replace(self, pull=pull * total / torch.where(left > 0, left, 1.0))

    @cached_property
    def positives(self) -> tuple[Tensor, Tensor]:
        """Anchor and candidate of each pair with P > 0: mostly one or two per row."""
        return self.pull.nonzero(as_tuple=True)

    @cached_property
    def negatives(self) -> Tensor:
        """(A,): number of negatives."""
        return self.eligible.sum(1).to(self.log_push.dtype)

    @cached_property
    def scaled_log_push(self) -> Tensor:
        """log W on N, scaled to a mean of W of 1 in each row; `MASKED` elsewhere."""
        masked = torch.where(self.eligible, self.log_push, MASKED)
        if not self.mean_one:
            return masked
        # The mean of W over n negatives is 1 if log W grows by log n − log Σ W.
        scale = self.negatives.clamp(min=1).log() - torch.logsumexp(masked, 1)
        return torch.where(self.eligible, masked + scale[:, None], MASKED)
