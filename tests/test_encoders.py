import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ecgstudy.encoders import (
    ENCODERS,
    DualBatchNorm,
    Projector,
    build_encoder,
    count_parameters,
    encoder,
    folded,
)
from ecgstudy.errors import StudyError

SMALL = {"size": "small", "width": 8}


def build(leads=2, dual=False, seed=0, **options):
    torch.manual_seed(seed)
    return build_encoder("resnet1d", {**SMALL, **options}, torch.zeros(leads), torch.ones(()), dual)


def trained(leads=2, dual=True):
    """An encoder whose batch norms hold statistics and affine weights as after training."""
    made = build(leads, dual)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    made.train()(noise(16, leads, 200), adversarial=False)
    made(2 * noise(16, leads, 200, seed=1) + 0.5, adversarial=True)
    return made.eval()


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [64, 101, 997])
@pytest.mark.parametrize("leads", [1, 12])
def test_any_length_and_number_of_leads_gives_one_vector_a_record(leads, samples):
    made = build(leads)
    assert made(noise(3, leads, samples)).shape == (3, made.features) == (3, 64)


def test_the_gradient_reaches_every_sample_of_every_lead():
    x = noise(2, 12, 250).requires_grad_()
    made = trained(12)
    made(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).float().mean() > 0.99


def test_each_lead_is_centred_and_all_share_one_scale():
    x, mean, std = noise(4, 2, 100), torch.tensor([0.3, -0.1]), torch.tensor(0.7)
    plain = trained()
    inside = copy.deepcopy(plain)
    inside.mean_mv.copy_(mean)
    inside.std_mv.copy_(std)
    torch.testing.assert_close(inside(x), plain((x - mean[:, None]) / std))
    assert not torch.allclose(inside(x), plain(x), rtol=0.01)


def test_the_unit_of_the_signals_does_not_matter():
    x, in_mv = noise(4, 2, 100), trained()
    in_uv = copy.deepcopy(in_mv)
    in_uv.mean_mv.mul_(1000)
    in_uv.std_mv.mul_(1000)
    torch.testing.assert_close(in_uv(1000 * x), in_mv(x), rtol=1e-4, atol=1e-5)


def norm(x, norms):
    return functional.batch_norm(x, norms.running_mean, norms.running_var, norms.weight, norms.bias)


def independent_forward(made, x, which):
    """The residual network with Conv1d, block by block; `which` set of statistics."""

    def conv_norm(part, x):
        weight = part.conv.weight.squeeze(2)
        y = functional.conv1d(x, weight, stride=part.conv.stride[1], padding=weight.shape[2] // 2)
        return norm(y, part.norm.norms[which])

    net = made.backbone
    x = (x - made.mean_mv[:, None]) / made.std_mv
    x = functional.max_pool1d(conv_norm(net.stem, x).relu(), 3, 2, 1)
    for block in net.blocks:
        skip = x if block.shortcut is None else conv_norm(block.shortcut, x)
        x = (conv_norm(block.second, conv_norm(block.first, x).relu()) + skip).relu()
    return x.mean(2)


@pytest.mark.parametrize("samples", [96, 101])
@pytest.mark.parametrize("adversarial", [False, True])
def test_it_equals_a_residual_network_of_one_dimensional_convolutions(adversarial, samples):
    made, x = trained(), noise(4, 2, samples, seed=3)
    expected = independent_forward(made, x, int(adversarial))
    torch.testing.assert_close(made(x, adversarial), expected, rtol=1e-4, atol=1e-5)
    assert made(x, adversarial).std(0).mean() > 0.01


def test_folded_batch_norms_are_the_same_function_and_leave_the_original():
    made, x = trained(), noise(4, 2, 150, seed=4)
    before = copy.deepcopy(made.state_dict())
    fast = folded(made)
    torch.testing.assert_close(fast(x, True), made(x, True), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made(x, False), made(x, True), rtol=0.01)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_the_first_statistics_are_for_clean_input_and_the_last_for_adversarial():
    x = noise(8, 3, 1, 20)
    for adversarial in (False, True):
        dual = DualBatchNorm(3, dual=True)
        own, other = dual.norms[int(adversarial)], dual.norms[1 - int(adversarial)]
        dual(x, adversarial)
        torch.testing.assert_close(own.running_mean, 0.1 * x.mean((0, 2, 3)))
        assert torch.equal(other.running_mean, torch.zeros(3))
        assert (own.num_batches_tracked, other.num_batches_tracked) == (1, 0)


def test_without_dual_norms_both_kinds_of_input_share_one_set():
    made, x = build(dual=False).eval(), noise(4, 2, 100)
    assert torch.equal(made(x, False), made(x, True))
    assert len([m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]) * 2 == len(
        [m for m in build(dual=True).modules() if isinstance(m, nn.BatchNorm2d)]
    )


def test_evaluation_uses_the_adversarial_statistics_unless_told_otherwise():
    made, x = trained(), noise(4, 2, 100)
    assert torch.equal(made(x), made(x, True))
    assert not torch.equal(made(x), made(x, False))


def expected_count(leads, width, depth, kernel, norms):
    """Weights of convolutions (no bias) and two per channel of each batch norm."""
    total, inputs = 7 * leads * width + 2 * width * norms, width
    for stage, blocks in enumerate(depth):
        for index in range(blocks):
            outputs = width * 2**stage
            total += kernel * inputs * outputs + kernel * outputs**2 + 2 * 2 * outputs * norms
            if inputs != outputs or (stage and not index):
                total += inputs * outputs + 2 * outputs * norms
            inputs = outputs
    return total


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize(
    ("size", "leads", "width", "depth"), [("small", 1, 16, (1,) * 4), ("base", 12, 64, (2,) * 4)]
)
def test_parameter_counts_are_those_of_the_closed_form(size, leads, width, depth, dual):
    made = build_encoder("resnet1d", {"size": size}, torch.zeros(leads), torch.ones(()), dual)
    assert count_parameters(made) == expected_count(leads, width, depth, 5, 1 + dual)
    assert made.features == width * 8


def test_weights_come_from_the_global_generator_and_not_from_dual_norms():
    assert torch.equal(build().backbone.stem.conv.weight, build(dual=True).backbone.stem.conv.weight)
    assert not torch.equal(build().backbone.stem.conv.weight, build(seed=1).backbone.stem.conv.weight)


def test_weights_are_channels_last():
    assert build().backbone.blocks[0].first.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_features_are_float32_under_bfloat16_and_near_those_of_float32():
    made, x = trained(), noise(4, 2, 200)
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, made(x), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("dual", [False, True])
def test_the_projector_is_linear_norm_relu_linear_to_unit_vectors(dual):
    torch.manual_seed(0)
    projector, x = Projector(6, 4, dual), noise(16, 6)
    projector(x, adversarial=True)
    projector.eval()
    hidden = norm(x @ projector.hidden.weight.T, projector.norm.norms[-1]).relu()
    out = hidden @ projector.out.weight.T + projector.out.bias
    torch.testing.assert_close(projector(x, True), out / out.norm(dim=1, keepdim=True))
    assert torch.equal(projector(x, True), projector(x, False)) is not dual


BAD = {
    "size": ({"size": "huge"}, "no size 'huge'; known: small, base"),
    "option": ({"colour": "red"}, r"does not take the options \{.*'colour': 'red'\}"),
    "no width": ({"width": 0}, "whole width above 0 and an odd kernel, not 0 and 5"),
    "half a width": ({"width": 8.5}, "not 8.5 and 5"),
    "text": ({"width": "8"}, "not '8' and 5"),
    "even kernel": ({"kernel": 4}, "not 8 and 4"),
}


@pytest.mark.parametrize(("options", "says"), BAD.values(), ids=BAD)
def test_an_impossible_option_is_an_error(options, says):
    with pytest.raises(StudyError, match=says):
        build(**options)


def test_an_unknown_encoder_is_an_error_that_names_those_there_are():
    with pytest.raises(StudyError, match=r"unknown encoder 'resnet9000'; known: resnet1d"):
        build_encoder("resnet9000", {}, torch.zeros(1), torch.ones(()), False)


def test_an_encoder_of_ones_own_is_one_decorated_function(monkeypatch):
    monkeypatch.setitem(ENCODERS, "mean", None)  # goes away after the test

    class Mean(nn.Module):
        def __init__(self, leads):
            super().__init__()
            self.features = leads

        def forward(self, x, adversarial):
            return x.mean((2, 3))

    @encoder("mean")
    def mean(leads, dual):
        return Mean(leads)

    x = noise(5, 3, 40)
    made = build_encoder("mean", {}, torch.ones(3), torch.tensor(2.0), False)
    torch.testing.assert_close(made(x), (x.mean(2) - 1) / 2)
