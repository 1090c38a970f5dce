"""One-dimensional encoders; normalisation is a layer of the model, so that attacks go through it.

Convolutions are Conv2d of height 1 in channels-last memory: measured 1.3 to 1.9 times as fast as
Conv1d on CPUs. The outer interface stays (records, leads, samples).
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ecgstudy.errors import StudyError

ENCODERS: dict[str, Callable[..., nn.Module]] = {}
"""Name → factory(leads, dual, **options) of a backbone.

A backbone maps (records, leads, 1, samples) and a flag `adversarial` to (records, features), and
has an attribute `features`.
"""


def encoder(name: str) -> Callable[[Callable], Callable]:
    """Register a backbone factory under `name`."""

    def register(factory: Callable) -> Callable:
        ENCODERS[name] = factory
        return factory

    return register


class DualBatchNorm(nn.Module):
    """Batch norm with separate statistics and affine parameters for clean and adversarial input.

    As in AdvCL and ACL (Fan et al. 2021, Jiang et al. 2020). With ``dual=False`` both kinds of
    input share one set.
    """

    def __init__(self, channels: int, dual: bool, norm: type[nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(2 if dual else 1))

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        return self.norms[-1 if adversarial else 0](x)


class ConvNorm(nn.Module):
    """Convolution along time and batch norm; `folded` makes them one convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dual: bool):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, (1, kernel), (1, stride), (0, kernel // 2), bias=False)
        self.norm: nn.Module | None = DualBatchNorm(outputs, dual)

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x, adversarial)

    def fold(self) -> None:
        """Put the adversarial statistics into the convolution, for good."""
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm.norms[-1]), None


class _Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016), along time."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dual: bool):
        super().__init__()
        self.first = ConvNorm(inputs, outputs, kernel, stride, dual)
        self.second = ConvNorm(outputs, outputs, kernel, 1, dual)
        changes = stride > 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, dual) if changes else None

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        y = self.second(torch.relu(self.first(x, adversarial)), adversarial)
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x, adversarial)))


class ResNet1d(nn.Module):
    """Residual network along time with global average pooling, so that any length goes in.

    Parameters
    ----------
    leads
        Input channels.
    dual
        Separate batch-norm statistics for adversarial input.
    width
        Channels of the first stage; each further stage doubles them and halves the rate.
    depth
        Blocks per stage; (2, 2, 2, 2) is ResNet-18.
    kernel
        Taps of the block convolutions.
    """

    def __init__(self, leads: int, dual: bool, width: int, depth: tuple[int, ...], kernel: int):
        super().__init__()
        self.stem = ConvNorm(leads, width, 7, 2, dual)
        self.pool = nn.MaxPool2d((1, 3), (1, 2), (0, 1))
        blocks, inputs = [], width
        for stage, count in enumerate(depth):
            for index in range(count):
                stride = 2 if stage and index == 0 else 1
                blocks.append(_Block(inputs, width * 2**stage, kernel, stride, dual))
                inputs = width * 2**stage
        self.blocks, self.features = nn.ModuleList(blocks), inputs

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        x = self.pool(torch.relu(self.stem(x, adversarial)))
        for block in self.blocks:
            x = block(x, adversarial)
        return x.float().mean((2, 3))


SIZES = {"small": {"width": 16, "depth": (1, 1, 1, 1)}, "base": {"width": 64, "depth": (2, 2, 2, 2)}}
"""`base` is the references' ResNet-18 style; `small` trains on one CPU core in minutes."""


@encoder("resnet1d")
def resnet1d(leads: int, dual: bool, size: str = "small", **options: int) -> ResNet1d:
    """ResNet along time in the sizes of `SIZES`."""
    if size not in SIZES:
        raise StudyError(f"resnet1d has no size {size!r}; known: {', '.join(SIZES)}")
    settings = {"kernel": 5, **SIZES[size], **options}
    width, kernel = settings["width"], settings["kernel"]
    if not (isinstance(width, int) and isinstance(kernel, int) and width > 0 and kernel > 0 and kernel % 2):
        raise StudyError(
            f"resnet1d takes a whole width above 0 and an odd kernel, not {width!r} and {kernel!r}"
        )
    return ResNet1d(leads, dual, **settings)


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
    """The backbone factory called `name`.

    Raises
    ------
    StudyError
        When there is none, naming those there are.
    """
    if name not in ENCODERS:
        raise StudyError(f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}")
    return ENCODERS[name]


def build_encoder(name: str, options: dict, mean_mv: Tensor, std_mv: Tensor, dual: bool) -> Encoder:
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
        raise StudyError(f"encoder {name!r} does not take the options {options}: {error}") from error
    return Encoder(backbone, mean_mv, std_mv).to(memory_format=torch.channels_last)


def folded(encoder: Encoder) -> Encoder:
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
