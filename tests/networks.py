"""Small encoders of every kind, fresh or with statistics as after training."""

import torch
from torch import nn
from torch.nn import functional

from ecgstudy.models.encoders import build_encoder

NAMES = ["resnet1d", "xresnet1d", "cnn", "lstm", "vit1d"]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(leads=2, dual=False, seed=0, name="resnet1d", **options):
    torch.manual_seed(seed)
    options = {"size": "small", "width": 8, **options}
    return build_encoder(name, options, torch.zeros(leads), torch.ones(()), dual)


def trained(leads=2, dual=True, name="resnet1d", **options):
    """An encoder whose norms hold statistics and affine weights as after training."""
    made = build(leads, dual, name=name, **options)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    made.train()(noise(16, leads, 200), adversarial=False)
    made(2 * noise(16, leads, 200, seed=1) + 0.5, adversarial=True)
    return made.eval()


def norm(x, norms):
    """Batch norm in evaluation mode."""
    return functional.batch_norm(
        x, norms.running_mean, norms.running_var, norms.weight, norms.bias
    )


def conv_norm(part, x, which=-1):
    """A `ConvNorm` by Conv1d; `which` set of statistics."""
    weight = part.conv.weight.squeeze(2)
    y = functional.conv1d(
        x, weight, stride=part.conv.stride[1], padding=weight.shape[2] // 2
    )
    return norm(y, part.norm.norms[which])
