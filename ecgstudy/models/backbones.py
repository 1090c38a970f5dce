"""The networks of the study, along time: records in, one vector of features a record out.

Convolutions are Conv2d of height 1 in channels-last memory: measured 1.3 to 1.9 times as fast as
Conv1d on CPUs. Every network takes any number of leads and any length from 64 samples, and ends in a
mean over time in float32. Its sizes are a table beside it: `small` trains on one CPU core, `base` is the
literature's.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ecgstudy.errors import StudyError
from ecgstudy.registry import ENCODERS

encoder = ENCODERS.register
"""Decorator of a factory (leads, dual, **options) of a backbone.

A backbone maps (records, leads, 1, samples) and a flag `adversarial` to
(records, features), and has an attribute `features`.
"""


Sizes = dict[str, dict[str, int | tuple[int, ...]]]


def settings(name: str, sizes: Sizes, size: str, options: dict[str, int]) -> dict:
    """The options of a size, some replaced by `options`.

    Raises
    ------
    StudyError
        For an unknown size or option, or a value that is not a whole number above 0 (odd for `kernel`).
    """
    if size not in sizes:
        raise StudyError(f"{name} has no size {size!r}; known: {', '.join(sizes)}")
    for key, value in options.items():
        if key not in sizes[size]:
            raise StudyError(
                f"{name} has no option {key!r}; known: size, {', '.join(sizes[size])}"
            )
        parts = value if isinstance(value, tuple) else (value,)
        if any(
            isinstance(part, bool) or not isinstance(part, int) or part < 1
            for part in parts
        ):
            raise StudyError(
                f"{name} takes a whole number above 0 as {key}, not {value!r}"
            )
        if key == "kernel" and value % 2 == 0:
            raise StudyError(
                f"{name} takes an odd kernel, so that it has a middle, not {value!r}"
            )
    return {**sizes[size], **options}


class DualBatchNorm(nn.Module):
    """Batch norm with separate statistics and affine parameters for clean and adversarial input.

    As in AdvCL and ACL (Fan et al. 2021, Jiang et al. 2020). With ``dual=False`` both kinds of
    input share one set.
    """

    def __init__(
        self, channels: int, dual: bool, norm: type[nn.Module] = nn.BatchNorm2d
    ):
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(2 if dual else 1))

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        return self.norms[-1 if adversarial else 0](x)


class ConvNorm(nn.Module):
    """Convolution along time and batch norm; `folded` makes them one convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dual: bool):
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, (1, kernel), (1, stride), (0, kernel // 2), bias=False
        )
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
        return torch.relu(
            y + (x if self.shortcut is None else self.shortcut(x, adversarial))
        )


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

    def __init__(
        self, leads: int, dual: bool, width: int, depth: tuple[int, ...], kernel: int
    ):
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


RESNET = {
    "small": {"width": 16, "depth": (1, 1, 1, 1), "kernel": 5},
    "base": {"width": 64, "depth": (2, 2, 2, 2), "kernel": 5},
}
"""`base` is the references' ResNet-18 style."""


@encoder("resnet1d")
def resnet1d(leads: int, dual: bool, size: str = "small", **options: int) -> ResNet1d:
    """Residual network (He et al. 2016) in the sizes of `RESNET`."""
    return ResNet1d(leads, dual, **settings("resnet1d", RESNET, size, options))


class _Bottleneck(nn.Module):
    """Narrow, convolve with the stride, widen fourfold; the shortcut averages before it widens.

    The last batch norm starts at zero, so that a fresh block is its shortcut (He et al. 2019).
    """

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, dual: bool):
        super().__init__()
        self.first = ConvNorm(inputs, width, 1, 1, dual)
        self.second = ConvNorm(width, width, kernel, stride, dual)
        self.third = ConvNorm(width, 4 * width, 1, 1, dual)
        for norm in self.third.norm.norms:
            nn.init.zeros_(norm.weight)
        self.pool = (
            nn.AvgPool2d((1, stride), ceil_mode=True) if stride > 1 else nn.Identity()
        )
        self.shortcut = (
            ConvNorm(inputs, 4 * width, 1, 1, dual) if inputs != 4 * width else None
        )

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x, adversarial)), adversarial))
        y, x = self.third(y, adversarial), self.pool(x)
        return torch.relu(
            y + (x if self.shortcut is None else self.shortcut(x, adversarial))
        )


class XResNet1d(nn.Module):
    """Bag-of-tricks residual network (He et al. 2019), as the PTB-XL benchmark has it along time.

    Three convolutions as stem, strides in the middle of a bottleneck, and as in the benchmark
    (Strodthoff et al. 2021) the same `width` in every stage. Its end differs: the mean over time alone.

    Parameters
    ----------
    leads, dual, kernel
        As in `ResNet1d`.
    width
        Channels inside the bottlenecks; there are four times as many features.
    depth
        Bottlenecks per stage; each stage but the first halves the rate.
    """

    def __init__(
        self, leads: int, dual: bool, width: int, depth: tuple[int, ...], kernel: int
    ):
        super().__init__()
        half = (width + 1) // 2
        channels = [leads, half, half, width]
        self.stem = nn.ModuleList(
            ConvNorm(channels[i], channels[i + 1], kernel, 1 if i else 2, dual)
            for i in range(3)
        )
        self.pool = nn.MaxPool2d((1, 3), (1, 2), (0, 1))
        strides = [
            2 if stage and not i else 1
            for stage, count in enumerate(depth)
            for i in range(count)
        ]
        self.blocks = nn.ModuleList(
            _Bottleneck(4 * width if i else width, width, kernel, stride, dual)
            for i, stride in enumerate(strides)
        )
        self.features = 4 * width

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        for part in self.stem:
            x = torch.relu(part(x, adversarial))
        x = self.pool(x)
        for block in self.blocks:
            x = block(x, adversarial)
        return x.float().mean((2, 3))


XRESNET = {
    "small": {"width": 32, "depth": (1, 1, 1, 1), "kernel": 5},
    "base": {"width": 64, "depth": (3, 4, 23, 3), "kernel": 5},
}
"""`base` is the benchmark's xresnet1d101."""


@encoder("xresnet1d")
def xresnet1d(leads: int, dual: bool, size: str = "small", **options: int) -> XResNet1d:
    """Bag-of-tricks residual network in the sizes of `XRESNET`."""
    return XResNet1d(leads, dual, **settings("xresnet1d", XRESNET, size, options))


class Cnn1d(nn.Module):
    """Plain convolutional network: convolution, batch norm, ReLU, pooling; then the mean over time.

    The fully convolutional network of Wang et al. (2017) with pooling between its stages, which long
    records need: each stage halves the rate and doubles the channels.

    Parameters
    ----------
    leads, dual, kernel
        As in `ResNet1d`.
    width
        Channels of the first stage.
    depth
        Number of stages.
    """

    def __init__(self, leads: int, dual: bool, width: int, depth: int, kernel: int):
        super().__init__()
        channels = [leads, *(width * 2**stage for stage in range(depth))]
        self.stages = nn.ModuleList(
            ConvNorm(inputs, outputs, kernel, 1, dual)
            for inputs, outputs in pairwise(channels)
        )
        self.pool, self.features = nn.MaxPool2d((1, 3), (1, 2), (0, 1)), channels[-1]

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        for stage in self.stages:
            x = self.pool(torch.relu(stage(x, adversarial)))
        return x.float().mean((2, 3))


CNN = {
    "small": {"width": 8, "depth": 5, "kernel": 7},
    "base": {"width": 32, "depth": 5, "kernel": 7},
}


@encoder("cnn")
def cnn(leads: int, dual: bool, size: str = "small", **options: int) -> Cnn1d:
    """Plain convolutional network in the sizes of `CNN`."""
    return Cnn1d(leads, dual, **settings("cnn", CNN, size, options))


class Lstm1d(nn.Module):
    """Long short-term memory in both directions on an eighth of the rate; then the mean over time.

    Three strided convolutions with (dual) batch norm lower the rate: recurrence over every sample would
    be slow and forget. The recurrence itself has no norm, hence nothing to double.

    Parameters
    ----------
    leads, dual, kernel
        As in `ResNet1d`.
    width
        Channels of the convolutions and of each direction; there are twice as many features.
    depth
        Recurrent layers (Hochreiter and Schmidhuber 1997).
    """

    def __init__(self, leads: int, dual: bool, width: int, depth: int, kernel: int):
        super().__init__()
        self.stem = nn.ModuleList(
            ConvNorm(inputs, width, kernel, 2, dual) for inputs in (leads, width, width)
        )
        self.recurrent = nn.LSTM(
            width, width, depth, batch_first=True, bidirectional=True
        )
        self.features = 2 * width

    def train(self, mode: bool = True) -> "Lstm1d":
        """As in every module, but the recurrence stays in training mode.

        In evaluation mode cuDNN keeps nothing for a backward pass and refuses one, so that no attack
        would get a gradient on a GPU. Without dropout both modes are the same function.
        """
        super().train(mode)
        self.recurrent.train()
        return self

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        for part in self.stem:
            x = torch.relu(part(x, adversarial))
        return self.recurrent(x.squeeze(2).mT)[0].float().mean(1)


LSTM = {
    "small": {"width": 64, "depth": 1, "kernel": 5},
    "base": {"width": 256, "depth": 2, "kernel": 5},
}


@encoder("lstm")
def lstm(leads: int, dual: bool, size: str = "small", **options: int) -> Lstm1d:
    """Recurrent network in the sizes of `LSTM`."""
    return Lstm1d(leads, dual, **settings("lstm", LSTM, size, options))


def positions(tokens: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sinusoids (tokens, width) that mark the place of tokens (Vaswani et al. 2017); any number goes."""
    frequencies = torch.exp(
        torch.arange(0, width, 2, device=device) * (-math.log(10_000) / width)
    )
    angles = torch.arange(tokens, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


class _Transformer(nn.Module):
    """Self-attention, then two linear layers, each on normalised input and added to it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norms = (
            heads,
            nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)]),
        )
        self.queries_keys_values, self.attended = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.wide, self.narrow = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        split = self.queries_keys_values(self.norms[0](x)).unflatten(
            2, (3, self.heads, -1)
        )
        attended = functional.scaled_dot_product_attention(
            *split.permute(2, 0, 3, 1, 4)
        )
        x = x + self.attended(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.wide(self.norms[1](x))))


class Vit1d(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021) along time: a token is a stretch of all leads.

    Zeros (each lead's mean) fill the last stretch, so that every sample counts. Layer norm sees one
    record at a time and keeps no statistics, so clean and adversarial input have none to keep apart:
    the flag `adversarial` changes nothing here.

    Parameters
    ----------
    leads
        Input channels.
    width
        Size of a token, and number of features.
    depth
        Transformer blocks.
    heads
        Attention heads; they divide `width`.
    patch
        Samples of a token.
    """

    def __init__(self, leads: int, width: int, depth: int, heads: int, patch: int):
        super().__init__()
        self.patch, self.features = patch, width
        self.embed = nn.Conv2d(leads, width, (1, patch), (1, patch))
        self.blocks = nn.ModuleList(_Transformer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        x = self.embed(functional.pad(x, (0, -x.shape[3] % self.patch))).squeeze(2).mT
        x = x + positions(*x.shape[1:], x.device)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).float().mean(1)


VIT = {
    "small": {"width": 96, "depth": 4, "heads": 4, "patch": 25},
    "base": {"width": 384, "depth": 12, "heads": 6, "patch": 25},
}
"""`base` has the width, depth and heads of ViT-S (Touvron et al. 2021)."""


@encoder("vit1d")
def vit1d(leads: int, dual: bool, size: str = "small", **options: int) -> Vit1d:
    """Vision transformer in the sizes of `VIT`; without batch norm, `dual` has nothing to double."""
    chosen = settings("vit1d", VIT, size, options)
    if chosen["width"] % chosen["heads"]:
        raise StudyError(
            f"vit1d takes heads that divide its width {chosen['width']}, not {chosen['heads']}"
        )
    return Vit1d(leads, **chosen)
