"""Net1D (Hong et al.), a ResNeXt along time with squeeze-and-excitation.

CLEF and ECGFounder are such networks. Written from the published configurations; names
and shapes of the parameters are the released ones. Both were released with batch norm
and dropout switched off: the norms are in the files, and take no part.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecgstudy.errors import StudyError
from ecgstudy.models.released import Input, Released

KERNEL = 16
SIZES = {
    "small": {
        "stem": 32,
        "widths": (32, 64, 64, 128, 128, 256),
        "depths": (1, 1, 2, 2, 2, 2),
        "ratio": 0.5,
        "group": 8,
    },
    "medium": {
        "stem": 64,
        "widths": (64, 160, 160, 400, 400, 1024, 1024),
        "depths": (2, 2, 2, 3, 3, 4, 4),
        "ratio": 1.0,
        "group": 16,
    },
    "large": {
        "stem": 128,
        "widths": (128, 256, 256, 512, 512, 1024, 1024, 2048, 2048),
        "depths": (2, 3, 3, 4, 4, 5, 5, 6, 6),
        "ratio": 1.5,
        "group": 32,
    },
}
"""CLEF's sizes; ECGFounder has the medium one. `ratio`: channels inside a block to
those around it; `group`: a block convolves in (channels around it / `group`) groups."""
UNUSED = r"(.*\.)?bn[123]\..*|first_bn\..*|dense\..*"
"""Batch norms that were switched off, and the classifier."""
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


class SameConv(nn.Module):
    """Convolution to ⌈samples / stride⌉ samples; odd padding has one more at the end.

    Parameters
    ----------
    inputs, outputs
        Channels.
    kernel, stride, groups
        As of `nn.Conv1d`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        samples = x.shape[-1]
        last = (samples - 1) // self.stride * self.stride  # where the last one starts
        missing = max(0, last + self.kernel - samples)
        return self.conv(functional.pad(x, (missing // 2, missing - missing // 2)))


class Block(nn.Module):
    """Bottleneck with a grouped convolution; activations come before convolutions.

    The shortcut takes the larger of two neighbouring samples where the block halves the
    rate, and pads missing channels with zeros on both sides.

    Parameters
    ----------
    inputs, outputs, middle
        Channels before, after and inside the block.
    groups
        Of the middle convolution.
    stride
        1 or 2.
    first
        Whether it is the network's first block, whose input was activated before.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        middle: int,
        groups: int,
        stride: int,
        first: bool,
    ):
        super().__init__()
        self.first, self.stride, self.more = first, stride, outputs - inputs
        self.conv1 = SameConv(inputs, middle)
        self.conv2 = SameConv(middle, middle, KERNEL, stride, groups)
        self.conv3 = SameConv(middle, outputs)
        self.se_fc1 = nn.Linear(outputs, outputs // 2)
        self.se_fc2 = nn.Linear(outputs // 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else functional.silu(x))
        y = self.conv2(functional.silu(y))
        y = self.conv3(functional.silu(y))
        excited = self.se_fc2(functional.silu(self.se_fc1(y.mean(-1))))
        if self.stride > 1:
            x = functional.max_pool1d(functional.pad(x, (0, 1)), 2)
        before, after = self.more // 2, self.more - self.more // 2
        shortcut = functional.pad(x, (0, 0, before, after))
        return y * torch.sigmoid(excited)[..., None] + shortcut


class Net1d(nn.Module):
    """(records, leads, samples) → mean over time of the last stage.

    Parameters
    ----------
    leads
        Input channels.
    stem, widths, depths, ratio, group
        As in `SIZES`; each stage halves the rate.
    """

    def __init__(
        self,
        leads: int,
        stem: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        ratio: float,
        group: int,
    ):
        super().__init__()
        self.first_conv = SameConv(leads, stem, KERNEL, 2)
        self.stage_list, inputs = nn.ModuleList(), stem
        for width, depth in zip(widths, depths, strict=True):
            blocks = nn.ModuleList()
            for index in range(depth):
                stride = 1 if index else 2
                first = not blocks and not self.stage_list
                middle, groups = int(width * ratio), width // group
                blocks.append(Block(inputs, width, middle, groups, stride, first))
                inputs = width
            self.stage_list.append(nn.ModuleDict({"block_list": blocks}))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.first_conv(x))
        for stage in self.stage_list:
            for block in stage["block_list"]:
                x = block(x)
        return x.mean(-1)


def _release(size: str, takes: Input, prefix: str = "") -> Released:
    if size not in SIZES:
        raise StudyError(f"clef has no size {size!r}; known: {', '.join(SIZES)}")
    net = Net1d(len(takes.leads), **SIZES[size])
    return Released(net, SIZES[size]["widths"][-1], takes, net, prefix, unused=UNUSED)


def clef(size: str = "small", lead: str = "I") -> Released:
    """CLEF (arXiv 2512.02180): contrastive with clinical weights, on single leads."""
    takes = Input((lead,), 500.0, 5000, "lead", band_hz=(0.67, 40.0), band_order=5)
    return _release(size, takes, prefix="backbone.")


def ecgfounder(single: bool = False) -> Released:
    """ECGFounder (arXiv 2410.04133): supervised, 150 labels of Harvard-Emory ECGs.

    `single`: the one of lead I alone.
    """
    takes = Input(
        LEADS[:1] if single else LEADS,
        fs=500.0,
        samples=5000,
        scale="record",
        band_hz=(0.67, 40.0),
        notch_hz=50.0,
        baseline_s=0.4,
    )
    return _release("medium", takes)
