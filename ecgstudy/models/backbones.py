"""The networks of the study: an ECG in, one vector of features out.

Convolutions are Conv2d of height 1 in channels-last memory: on CPUs 1.3 to 1.9 times as
fast as Conv1d (measured). Every network takes any number of leads and any length from
64 samples, and ends in a mean over time in float32. Each has two sizes: ``small``
trains on one CPU core, ``base`` is the literature's.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecgstudy.errors import StudyError
from ecgstudy.models.layers import ConvNorm, make_pool
from ecgstudy.registry import ENCODERS


def backbone(name: str, small: dict, base: dict) -> Callable[[type], type]:
    """Register a network of two sizes as the encoder `name`.

    Parameters
    ----------
    name
        What params files call it.
    small, base
        Keyword arguments of the network in each size; a params file may replace some.
    """
    sizes = {"small": small, "base": base}

    def register(network: type[nn.Module]) -> type[nn.Module]:
        @ENCODERS.register(name)
        def build(leads: int, dual: bool, size: str = "small", **options) -> nn.Module:
            if size not in sizes:
                raise StudyError(f"{name} has no size {size!r}; known: small, base")
            _check_options(name, options, small)
            return network(leads, dual, **{**sizes[size], **options})

        return network

    return register


def _check_options(name: str, options: dict, known: dict) -> None:
    """Refuse unknown options, and values that are no whole number above 0."""
    for key, value in options.items():
        if key not in known:
            raise StudyError(
                f"{name} has no option {key!r}; known: size, {', '.join(known)}"
            )
        counts = value if isinstance(value, tuple) else (value,)
        if not all(type(count) is int and count > 0 for count in counts):
            raise StudyError(
                f"{name} takes a whole number above 0 as {key}, not {value!r}"
            )
        if key == "kernel" and value % 2 == 0:
            raise StudyError(f"{name} takes an odd kernel (with a middle), not {value}")


class _Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016), along time."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dual: bool):
        super().__init__()
        self.first = ConvNorm(inputs, outputs, kernel, stride, dual)
        self.second = ConvNorm(outputs, outputs, kernel, 1, dual)
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = ConvNorm(inputs, outputs, 1, stride, dual)

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        y = torch.relu(self.first(x, adversarial))
        y = self.second(y, adversarial)
        if self.shortcut is not None:
            x = self.shortcut(x, adversarial)
        return torch.relu(y + x)


@backbone(
    "resnet1d",
    small={"width": 16, "depth": (1, 1, 1, 1), "kernel": 5},
    base={"width": 64, "depth": (2, 2, 2, 2), "kernel": 5},
)
class ResNet1d(nn.Module):
    """Residual network along time (He et al. 2016); `base` is like a ResNet-18.

    Parameters
    ----------
    leads
        Input channels.
    dual
        Separate batch norms for adversarial input.
    width
        Channels of the first stage; each further one doubles them and halves the rate.
    depth
        Blocks of each stage.
    kernel
        Samples of the blocks' convolutions.
    """

    def __init__(
        self, leads: int, dual: bool, width: int, depth: tuple[int, ...], kernel: int
    ):
        super().__init__()
        self.stem, self.pool = ConvNorm(leads, width, 7, 2, dual), make_pool()
        self.blocks, inputs = nn.ModuleList(), width
        for stage, count in enumerate(depth):
            for index in range(count):
                outputs = width * 2**stage
                stride = 2 if stage and index == 0 else 1
                self.blocks.append(_Block(inputs, outputs, kernel, stride, dual))
                inputs = outputs
        self.features = inputs

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        x = self.pool(torch.relu(self.stem(x, adversarial)))
        for block in self.blocks:
            x = block(x, adversarial)
        return x.float().mean((2, 3))


class _Bottleneck(nn.Module):
    """Narrow, convolve with the stride, widen fourfold; the shortcut averages first.

    The last batch norm starts at zero, so that a fresh block is its shortcut (He et al.
    2019).
    """

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, dual: bool):
        super().__init__()
        outputs = 4 * width
        self.first = ConvNorm(inputs, width, 1, 1, dual)
        self.second = ConvNorm(width, width, kernel, stride, dual)
        self.third = ConvNorm(width, outputs, 1, 1, dual)
        for norm in self.third.norm.norms:
            nn.init.zeros_(norm.weight)
        self.pool = nn.Identity()
        if stride > 1:
            self.pool = nn.AvgPool2d((1, stride), ceil_mode=True)
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = ConvNorm(inputs, outputs, 1, 1, dual)

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        y = torch.relu(self.first(x, adversarial))
        y = torch.relu(self.second(y, adversarial))
        y = self.third(y, adversarial)
        x = self.pool(x)
        if self.shortcut is not None:
            x = self.shortcut(x, adversarial)
        return torch.relu(y + x)


@backbone(
    "xresnet1d",
    small={"width": 32, "depth": (1, 1, 1, 1), "kernel": 5},
    base={"width": 64, "depth": (3, 4, 23, 3), "kernel": 5},
)
class XResNet1d(nn.Module):
    """Bag-of-tricks residual network (He et al. 2019) as in the PTB-XL benchmark.

    Three convolutions as stem, strides in the middle of bottlenecks, and the same width
    in every stage (Strodthoff et al. 2021; `base` is their xresnet1d101). The end
    differs: the mean over time alone.

    Parameters
    ----------
    leads, dual, kernel
        As in `ResNet1d`.
    width
        Channels inside the bottlenecks; there are four times as many features.
    depth
        Bottlenecks of each stage; each stage but the first halves the rate.
    """

    def __init__(
        self, leads: int, dual: bool, width: int, depth: tuple[int, ...], kernel: int
    ):
        super().__init__()
        half = (width + 1) // 2
        self.stem = nn.ModuleList(
            [
                ConvNorm(leads, half, kernel, 2, dual),
                ConvNorm(half, half, kernel, 1, dual),
                ConvNorm(half, width, kernel, 1, dual),
            ]
        )
        self.pool, self.features = make_pool(), 4 * width
        self.blocks, inputs = nn.ModuleList(), width
        for stage, count in enumerate(depth):
            for index in range(count):
                stride = 2 if stage and index == 0 else 1
                self.blocks.append(_Bottleneck(inputs, width, kernel, stride, dual))
                inputs = self.features

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        for part in self.stem:
            x = torch.relu(part(x, adversarial))
        x = self.pool(x)
        for block in self.blocks:
            x = block(x, adversarial)
        return x.float().mean((2, 3))


@backbone(
    "cnn",
    small={"width": 8, "depth": 5, "kernel": 7},
    base={"width": 32, "depth": 5, "kernel": 7},
)
class Cnn1d(nn.Module):
    """Plain network: stages of convolution, batch norm, ReLU and pooling.

    The fully convolutional network of Wang et al. (2017) with pooling between its
    stages, which long records need: each stage halves the rate and doubles the
    channels.

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
        self.stages, inputs = nn.ModuleList(), leads
        for stage in range(depth):
            outputs = width * 2**stage
            self.stages.append(ConvNorm(inputs, outputs, kernel, 1, dual))
            inputs = outputs
        self.pool, self.features = make_pool(), inputs

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        for stage in self.stages:
            x = self.pool(torch.relu(stage(x, adversarial)))
        return x.float().mean((2, 3))


@backbone(
    "lstm",
    small={"width": 64, "depth": 1, "kernel": 5},
    base={"width": 256, "depth": 2, "kernel": 5},
)
class Lstm1d(nn.Module):
    """LSTM (Hochreiter & Schmidhuber 1997) in both directions, on an eighth of the
    rate.

    Three strided convolutions lower the rate: recurrence over every sample would be
    slow and forget. The recurrence itself has no norm, hence nothing to double.

    Parameters
    ----------
    leads, dual, kernel
        As in `ResNet1d`.
    width
        Channels of the convolutions and of each direction; twice as many features.
    depth
        Recurrent layers.
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
        """As of every module, but the recurrence stays in training mode.

        In evaluation mode cuDNN keeps nothing for a backward pass, so that no attack
        would get a gradient on a GPU. Without dropout both modes are the same function.
        """
        super().train(mode)
        self.recurrent.train()
        return self

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        for part in self.stem:
            x = torch.relu(part(x, adversarial))
        steps, _ = self.recurrent(x.squeeze(2).mT)
        return steps.float().mean(1)


def positions(tokens: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sinusoids that mark the places of tokens (Vaswani et al. 2017).

    Parameters
    ----------
    tokens, width
        Shape of the result; any number of tokens.
    device
        Where it is.
    """
    even = torch.arange(0, width, 2, device=device)
    frequencies = torch.exp(even * (-math.log(10_000) / width))
    angles = torch.arange(tokens, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


class _Transformer(nn.Module):
    """Self-attention and two linear layers, each on normalised input and added to
    it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.queries_keys_values(self.norms[0](x))
        # (records, tokens, 3 · width) → three of (records, heads, tokens, width of
        # each)
        split = mixed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*split)
        x = x + self.attended(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.wide(self.norms[1](x))))


@backbone(
    "vit1d",
    small={"width": 96, "depth": 4, "heads": 4, "patch": 25},
    base={"width": 384, "depth": 12, "heads": 6, "patch": 25},
)
class Vit1d(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021) along time.

    A token is a stretch of all leads; zeros fill the last one, so that every sample
    counts. Layer norm keeps no statistics, so clean and adversarial input have none to
    keep apart, and `dual` and `adversarial` change nothing. `base` has the width, depth
    and heads of ViT-S (Touvron et al. 2021).

    Parameters
    ----------
    leads, dual
        As in `ResNet1d`.
    width
        Size of a token, and number of features.
    depth
        Transformer blocks.
    heads
        Attention heads; they divide `width`.
    patch
        Samples of a token.
    """

    def __init__(
        self, leads: int, dual: bool, width: int, depth: int, heads: int, patch: int
    ):
        super().__init__()
        if width % heads:
            raise StudyError(
                f"vit1d takes heads that divide its width {width}, not {heads}"
            )
        self.patch, self.features = patch, width
        self.embed = nn.Conv2d(leads, width, (1, patch), (1, patch))
        self.blocks = nn.ModuleList(_Transformer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        missing = -x.shape[3] % self.patch
        x = self.embed(functional.pad(x, (0, missing))).squeeze(2).mT
        x = x + positions(x.shape[1], x.shape[2], x.device)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).float().mean(1)
