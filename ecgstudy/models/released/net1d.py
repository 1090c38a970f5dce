"""Net1D (Hong et al.), a one-dimensional ResNeXt with squeeze-and-excitation: CLEF and ECGFounder.

Written from the published configurations. Names and shapes of the parameters are the released ones. Both were
released with batch norm and dropout switched off: the norms are in the files, and take no part.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecgstudy.errors import StudyError
from ecgstudy.models.released import Input, Released

KERNEL = 16
SIZES = {
    "small": {"stem": 32, "widths": (32, 64, 64, 128, 128, 256), "depths": (1, 1, 2, 2, 2, 2),
              "ratio": 0.5, "group": 8},
    "medium": {"stem": 64, "widths": (64, 160, 160, 400, 400, 1024, 1024), "depths": (2, 2, 2, 3, 3, 4, 4),
               "ratio": 1.0, "group": 16},
    "large": {"stem": 128, "widths": (128, 256, 256, 512, 512, 1024, 1024, 2048, 2048),
              "depths": (2, 3, 3, 4, 4, 5, 5, 6, 6), "ratio": 1.5, "group": 32},
}  # fmt: skip
"""CLEF's sizes; ECGFounder has the medium one. `ratio`: channels inside a block to those around it;
`group`: a block convolves in (channels around it / `group`) groups."""
UNUSED = r"(.*\.)?bn[123]\..*|first_bn\..*|dense\..*"
"""Batch norms that were switched off, and the classifier."""
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


class SameConv(nn.Module):
    """Convolution to ⌈samples / stride⌉ samples; of an odd padding the larger half is on the right."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        (kernel,), (stride,) = self.conv.kernel_size, self.conv.stride
        short = max(0, (-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1])
        return self.conv(functional.pad(x, (short // 2, short - short // 2)))


class Block(nn.Module):
    """Bottleneck with a grouped convolution; each activation comes before its convolution.

    The shortcut takes the larger of two neighbouring samples where the block halves the rate, and pads
    missing channels with zeros on both sides.
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
        self.se_fc1, self.se_fc2 = (
            nn.Linear(outputs, outputs // 2),
            nn.Linear(outputs // 2, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else functional.silu(x))
        y = self.conv3(functional.silu(self.conv2(functional.silu(y))))
        excited = self.se_fc2(functional.silu(self.se_fc1(y.mean(-1))))
        return y * torch.sigmoid(excited)[..., None] + self._shortcut(x)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = functional.max_pool1d(functional.pad(x, (0, 1)), 2)
        return functional.pad(x, (0, 0, self.more // 2, self.more - self.more // 2))


class Net1d(nn.Module):
    """(records, leads, samples) → mean over time of the last stage, (records, features)."""

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
        stages, inputs = [], stem
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for index in range(depth):
                stride, first = 1 if index else 2, stage == index == 0
                blocks.append(
                    Block(
                        inputs, width, int(width * ratio), width // group, stride, first
                    )
                )
                inputs = width
            stages.append(nn.ModuleDict({"block_list": nn.ModuleList(blocks)}))
        self.stage_list = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.first_conv(x))
        for stage in self.stage_list:
            for block in stage["block_list"]:
                x = block(x)
        return x.mean(-1)


def _released(leads: int, size: str, takes: Input, prefix: str = "") -> Released:
    if size not in SIZES:
        raise StudyError(f"clef has no size {size!r}; known: {', '.join(SIZES)}")
    net = Net1d(leads, **SIZES[size])
    return Released(net, SIZES[size]["widths"][-1], takes, net, prefix, unused=UNUSED)


def clef(size: str = "small", lead: str = "I") -> Released:
    """CLEF (arXiv 2512.02180): contrastive with clinical weights, on single leads of MIMIC-IV-ECG."""
    takes = Input((lead,), 500.0, 5000, "lead", band_hz=(0.67, 40.0), band_order=5)
    return _released(1, size, takes, prefix="backbone.")


def ecgfounder(single: bool = False) -> Released:
    """ECGFounder (arXiv 2410.04133): supervised, 150 labels of Harvard-Emory ECGs; `single`: lead I alone."""
    leads = LEADS[:1] if single else LEADS
    band = {
        "band_hz": (0.67, 40.0),
        "band_order": 4,
        "notch_hz": 50.0,
        "baseline_s": 0.4,
    }
    return _released(len(leads), "medium", Input(leads, 500.0, 5000, "record", **band))
