"""Layers that the networks share: dual batch norm, convolution along time, pooling."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class DualBatchNorm(nn.Module):
    """Batch norm with other statistics and weights for adversarial input.

    As in AdvCL and ACL (Fan et al. 2021, Jiang et al. 2020).

    Parameters
    ----------
    channels
        Of the input.
    dual
        False: both kinds of input share one set.
    norm
        Makes a norm of so many channels.
    """

    def __init__(
        self,
        channels: int,
        dual: bool,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(2 if dual else 1))

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        return self.norms[-1 if adversarial else 0](x)


class ConvNorm(nn.Module):
    """Convolution along time and batch norm.

    Parameters
    ----------
    inputs, outputs
        Channels.
    kernel, stride
        In samples.
    dual
        Separate batch norm for adversarial input.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dual: bool):
        super().__init__()
        padding = (0, kernel // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, (1, kernel), (1, stride), padding, bias=False
        )
        self.norm: nn.Module | None = DualBatchNorm(outputs, dual)

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x, adversarial)

    def fold(self) -> None:
        """Merge the adversarial batch norm into the convolution (irreversible)."""
        self.conv = fuse_conv_bn_eval(self.conv, self.norm.norms[-1])
        self.norm = None


def make_pool() -> nn.Module:
    """Maxima of three samples at half the rate."""
    return nn.MaxPool2d((1, 3), (1, 2), (0, 1))
