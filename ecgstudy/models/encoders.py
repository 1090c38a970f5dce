"""Encoders: a standardisation and a backbone, attacked together; and the projector."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from ecgstudy.errors import StudyError
from ecgstudy.models.layers import ConvNorm, DualBatchNorm
from ecgstudy.registry import ENCODERS


class Encoder(nn.Module):
    """Signals in mV → features: fixed standardisation of each lead, then a backbone.

    Parameters
    ----------
    backbone
        From `ENCODERS`: standardised signals (records, leads, 1, samples) and a flag
        `adversarial` → (records, features). Its attribute `features` is their number.
    mean_mv, std_mv
        Of the training records, (leads,) and a scalar in mV. One scale for all leads
        keeps their proportions, which carry the heart's axis.
    """

    def __init__(self, backbone: nn.Module, mean_mv: Tensor, std_mv: Tensor):
        super().__init__()
        self.backbone, self.features = backbone, backbone.features
        self.register_buffer("mean_mv", mean_mv.float())
        self.register_buffer("std_mv", std_mv.float())

    def forward(self, signals: Tensor, adversarial: bool = True) -> Tensor:
        """Features (records, features) of `signals` (records, leads, samples) in mV.

        `adversarial` chooses the set of dual batch norms. Evaluation uses the
        adversarial one for clean and attacked input alike.

        Raises
        ------
        StudyError
            For another number of leads: one would be spread over all, unseen.
        """
        if signals.ndim != 3 or signals.shape[1] != len(self.mean_mv):
            raise StudyError(
                f"signals of shape {tuple(signals.shape)}; this encoder takes "
                f"(records, {len(self.mean_mv)} leads, samples)"
            )
        standard = (signals - self.mean_mv[:, None]) / self.std_mv
        image = standard.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        return self.backbone(image, adversarial)


class Projector(nn.Module):
    """Features → unit vectors, in pretraining only: linear, batch norm, ReLU, linear.

    Parameters
    ----------
    features, dimensions
        Of input and output.
    dual
        Separate batch norm for adversarial input.
    """

    def __init__(self, features: int, dimensions: int, dual: bool):
        super().__init__()
        self.hidden = nn.Linear(features, features, bias=False)
        self.norm = DualBatchNorm(features, dual, nn.BatchNorm1d)
        self.out = nn.Linear(features, dimensions)

    def forward(self, features: Tensor, adversarial: bool) -> Tensor:
        hidden = torch.relu(self.norm(self.hidden(features), adversarial))
        return nn.functional.normalize(self.out(hidden).float(), dim=1)


def build_encoder(
    name: str, options: dict, mean_mv: Tensor, std_mv: Tensor, dual: bool
) -> Encoder:
    """An encoder with fresh weights, from torch's global generator.

    Parameters
    ----------
    name, options
        One of `ENCODERS`, and its options.
    mean_mv, std_mv
        As of `Encoder`; there are as many leads as means.
    dual
        Separate batch norms for adversarial input.

    Raises
    ------
    StudyError
        For an unknown encoder or option.
    """
    factory = ENCODERS.find(name)
    try:
        backbone = factory(leads=len(mean_mv), dual=dual, **options)
    except TypeError as error:
        raise StudyError(
            f"encoder {name!r} does not take the options {options}: {error}"
        ) from error
    if getattr(backbone, "takes_mv", False):  # a released network scales by itself
        mean_mv, std_mv = torch.zeros_like(mean_mv), torch.ones_like(std_mv)
    encoder = Encoder(backbone, mean_mv, std_mv)
    return encoder.to(memory_format=torch.channels_last)


def fold_batch_norms(encoder: Encoder) -> Encoder:
    """A frozen copy for evaluation, with batch norms folded into the convolutions.

    The same function to rounding; an attack step takes 1.3 to 1.8 times less on a CPU.
    """
    frozen = copy.deepcopy(encoder).eval().requires_grad_(False)
    for module in list(frozen.modules()):
        if isinstance(module, ConvNorm):
            module.fold()
    return frozen.to(memory_format=torch.channels_last)


def load_state(module: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Load weights into `module`, in the module's own precision.

    Parameters
    ----------
    module, state
        Their names and shapes must agree.
    source
        Where `state` is from.

    Raises
    ------
    StudyError
        When they do not.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise StudyError(
            f"{source}: made for another encoder or head ({reason}); use the options "
            "that it was made with"
        ) from error


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters())
