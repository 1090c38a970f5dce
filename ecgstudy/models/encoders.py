"""Encoders: a network behind its standardisation, so that attacks go through both; and the projector."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ecgstudy.errors import StudyError
from ecgstudy.models.backbones import ConvNorm, DualBatchNorm
from ecgstudy.models.backbones import encoder as encoder
from ecgstudy.registry import ENCODERS


class Encoder(nn.Module):
    """Signals in mV → features: fixed standardisation of each lead, then a backbone.

    Parameters
    ----------
    backbone
        From `ENCODERS`.
    mean_mv, std_mv
        (leads,) and a scalar, in mV: of the training records. One scale for all leads keeps their
        proportions, which carry the heart's axis.
    """

    def __init__(self, backbone: nn.Module, mean_mv: Tensor, std_mv: Tensor):
        super().__init__()
        self.backbone, self.features = backbone, backbone.features
        self.register_buffer("mean_mv", mean_mv.float())
        self.register_buffer("std_mv", std_mv.float())

    def forward(self, signals: Tensor, adversarial: bool = True) -> Tensor:
        """Features (records, features) of `signals` (records, leads, samples) in mV.

        `adversarial` chooses the statistics of dual batch norms; evaluation uses the adversarial
        ones for clean and attacked input alike (without dual norms there is only one set).
        """
        standard = (signals - self.mean_mv[:, None]) / self.std_mv
        image = standard.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        return self.backbone(image, adversarial)


class Projector(nn.Module):
    """Linear–BN–ReLU–Linear to unit vectors, with the encoder's dual batch norm; used in pretraining only."""

    def __init__(self, features: int, dimensions: int, dual: bool):
        super().__init__()
        self.hidden, self.norm = (
            nn.Linear(features, features, bias=False),
            DualBatchNorm(features, dual, nn.BatchNorm1d),
        )
        self.out = nn.Linear(features, dimensions)

    def forward(self, features: Tensor, adversarial: bool) -> Tensor:
        hidden = torch.relu(self.norm(self.hidden(features), adversarial))
        return nn.functional.normalize(self.out(hidden).float(), dim=1)


def get_encoder(name: str) -> Callable[..., nn.Module]:
    """The backbone factory called `name`; an unknown one is a `StudyError` that lists those there are."""
    return ENCODERS.find(name)


def build_encoder(
    name: str, options: dict, mean_mv: Tensor, std_mv: Tensor, dual: bool
) -> Encoder:
    """The encoder `name` with freshly drawn weights (from torch's global generator) for `len(mean_mv)` leads.

    Raises
    ------
    StudyError
        For an unknown encoder or option.
    """
    factory = get_encoder(name)
    try:
        backbone = factory(leads=len(mean_mv), dual=dual, **options)
    except TypeError as error:
        raise StudyError(
            f"encoder {name!r} does not take the options {options}: {error}"
        ) from error
    if getattr(
        backbone, "takes_mv", False
    ):  # a released network has a scale of its own
        mean_mv, std_mv = torch.zeros_like(mean_mv), torch.ones_like(std_mv)
    return Encoder(backbone, mean_mv, std_mv).to(memory_format=torch.channels_last)


def fold_batch_norms(encoder: Encoder) -> Encoder:
    """A frozen copy of `encoder` for evaluation, with batch norms folded into the convolutions.

    The same function to rounding; an attack step takes 1.3 to 1.8 times less time on a CPU.
    """
    frozen = copy.deepcopy(encoder).eval().requires_grad_(False)
    for module in list(frozen.modules()):
        if isinstance(module, ConvNorm):
            module.fold()
    return frozen.to(memory_format=torch.channels_last)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters())
