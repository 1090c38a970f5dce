"""Each network against an independent one: of other layers of torch, or of plain
loops."""

import pytest
import torch
from networks import build, conv_norm, noise, trained
from torch import nn
from torch.nn import functional

from ecgstudy.models.backbones import positions
from ecgstudy.models.encoders import build_encoder, count_parameters, fold_batch_norms


def resnet_by_hand(made, x, which):
    """The residual network with Conv1d, block by block; `which` set of statistics."""
    net = made.backbone
    x = (x - made.mean_mv[:, None]) / made.std_mv
    x = functional.max_pool1d(conv_norm(net.stem, x, which).relu(), 3, 2, 1)
    for block in net.blocks:
        skip = x if block.shortcut is None else conv_norm(block.shortcut, x, which)
        x = (
            conv_norm(block.second, conv_norm(block.first, x, which).relu(), which)
            + skip
        ).relu()
    return x.mean(2)


@pytest.mark.parametrize("samples", [96, 101])
@pytest.mark.parametrize("adversarial", [False, True])
def test_it_equals_a_residual_network_of_one_dimensional_convolutions(
    adversarial, samples
):
    made, x = trained(), noise(4, 2, samples, seed=3)
    expected = resnet_by_hand(made, x, int(adversarial))
    torch.testing.assert_close(made(x, adversarial), expected, rtol=1e-4, atol=1e-5)
    assert made(x, adversarial).std(0).mean() > 0.01


def expected_count(leads, width, depth, kernel, norms):
    """Weights of convolutions (no bias) and two per channel of each batch norm."""
    total, inputs = 7 * leads * width + 2 * width * norms, width
    for stage, blocks in enumerate(depth):
        for index in range(blocks):
            outputs = width * 2**stage
            total += (
                kernel * inputs * outputs
                + kernel * outputs**2
                + 2 * 2 * outputs * norms
            )
            if inputs != outputs or (stage and not index):
                total += inputs * outputs + 2 * outputs * norms
            inputs = outputs
    return total


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize(
    ("size", "leads", "width", "depth"),
    [("small", 1, 16, (1,) * 4), ("base", 12, 64, (2,) * 4)],
)
def test_parameter_counts_are_those_of_the_closed_form(size, leads, width, depth, dual):
    made = build_encoder(
        "resnet1d", {"size": size}, torch.zeros(leads), torch.ones(()), dual
    )
    assert count_parameters(made) == expected_count(leads, width, depth, 5, 1 + dual)
    assert made.features == width * 8


@pytest.mark.parametrize("samples", [96, 101])
def test_xresnet_is_bottlenecks_with_averaging_shortcuts(samples):
    made, x = trained(name="xresnet1d"), noise(4, 2, samples, seed=3)
    expected = x
    for part in made.backbone.stem:
        expected = conv_norm(part, expected).relu()
    expected = functional.max_pool1d(expected, 3, 2, 1)
    for block in made.backbone.blocks:
        skip = expected
        if (
            block.second.conv.stride[1] == 2
        ):  # of an odd length the last sample stands for itself
            last = expected[..., -1:] if expected.shape[2] % 2 else expected[..., :0]
            skip = functional.avg_pool1d(torch.cat([expected, last], 2), 2)
        if block.shortcut is not None:
            skip = conv_norm(block.shortcut, skip)
        for part in (block.first, block.second):
            expected = conv_norm(part, expected).relu()
        expected = (conv_norm(block.third, expected) + skip).relu()
    torch.testing.assert_close(made(x), expected.mean(2), rtol=1e-4, atol=1e-5)


def test_the_rate_of_xresnet_halves_in_each_stage_but_the_first():
    blocks = build(name="xresnet1d", depth=(2, 2, 1)).backbone.blocks
    assert [block.second.conv.stride[1] for block in blocks] == [1, 1, 2, 1, 2]
    assert [block.shortcut is not None for block in blocks] == [
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_fresh_block_of_xresnet_is_its_shortcut():
    block, x = (
        build(name="xresnet1d", depth=(1, 1)).backbone.blocks[1].eval(),
        noise(3, 32, 1, 20),
    )
    torch.testing.assert_close(
        block(x, True).squeeze(2), functional.avg_pool1d(x.squeeze(2), 2).relu()
    )


def test_cnn_is_stages_of_convolution_norm_relu_and_pooling():
    made, x = trained(name="cnn"), noise(4, 2, 101, seed=3)
    assert made.features == 8 * 2**4
    expected = x
    for stage in made.backbone.stages:
        expected = functional.max_pool1d(conv_norm(stage, expected).relu(), 3, 2, 1)
    torch.testing.assert_close(made(x), expected.mean(2), rtol=1e-4, atol=1e-5)


def lstm_by_hand(recurrent, x, ending):
    """One direction of one layer (records, steps, channels), step by step."""
    weights = [
        getattr(recurrent, f"{name}_l0{ending}") for name in ("weight_ih", "weight_hh")
    ]
    bias = getattr(recurrent, f"bias_ih_l0{ending}") + getattr(
        recurrent, f"bias_hh_l0{ending}"
    )
    hidden = cell = x.new_zeros(len(x), recurrent.hidden_size)
    outputs = []
    for step in x.unbind(1):
        remember, forget, new, show = (
            step @ weights[0].T + hidden @ weights[1].T + bias
        ).chunk(4, 1)
        cell = forget.sigmoid() * cell + remember.sigmoid() * new.tanh()
        hidden = show.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs, 1)


def test_lstm_reads_an_eighth_of_the_rate_in_both_directions_and_so_does_its_gradient():
    made, x = (
        trained(name="lstm").requires_grad_(False),
        noise(4, 2, 101, seed=3).requires_grad_(),
    )
    steps, recurrent = x, made.backbone.recurrent
    for part in made.backbone.stem:
        steps = conv_norm(part, steps).relu()
    steps = steps.mT
    assert steps.shape[1] == 13
    both = [
        lstm_by_hand(recurrent, steps, ""),
        lstm_by_hand(recurrent, steps.flip(1), "_reverse"),
    ]
    expected = torch.cat(both, 2).mean(1)
    torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-6)
    toward = noise(*expected.shape, seed=9)
    ours, theirs = (
        torch.autograd.grad((y * toward).sum(), x)[0] for y in (made(x), expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)


def test_the_recurrence_of_lstm_stays_in_training_mode_for_gradients_on_gpus():
    made = build(name="lstm")
    for fixed in (
        made.eval(),
        fold_batch_norms(made),
        nn.ModuleDict({"encoder": made}).eval()["encoder"],
    ):
        trains = [module for module in fixed.modules() if module.training]
        assert trains == [fixed.backbone.recurrent]
    assert made.backbone.recurrent.dropout == 0
    assert all(module.training for module in made.train().modules())


def torch_block(ours, width, heads):
    """torch's own pre-norm transformer block with our weights."""
    theirs = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, functional.gelu, batch_first=True, norm_first=True
    )
    for part, state in {
        theirs.norm1: ours.norms[0].state_dict(),
        theirs.norm2: ours.norms[1].state_dict(),
        theirs.linear1: ours.wide.state_dict(),
        theirs.linear2: ours.narrow.state_dict(),
        theirs.self_attn.out_proj: ours.attended.state_dict(),
    }.items():
        part.load_state_dict(state)
    theirs.self_attn.in_proj_weight.data = ours.queries_keys_values.weight.data
    theirs.self_attn.in_proj_bias.data = ours.queries_keys_values.bias.data
    return theirs


@pytest.mark.parametrize("samples", [100, 110])
def test_vit_is_torchs_transformer_on_stretches_of_all_leads(samples):
    made, x = trained(name="vit1d"), noise(4, 2, samples, seed=3)
    net, whole = made.backbone, functional.pad(x, (0, -samples % 25))
    stretches = whole.unflatten(2, (-1, 25)).transpose(1, 2).flatten(2)
    tokens = stretches @ net.embed.weight.flatten(1).T + net.embed.bias
    tokens = tokens + positions(tokens.shape[1], 8)
    for block in net.blocks:
        tokens = torch_block(block, 8, 4)(tokens)
    torch.testing.assert_close(made(x), net.norm(tokens).mean(1), rtol=1e-4, atol=1e-5)


def test_positions_are_sinusoids_that_any_number_of_tokens_shares():
    table = positions(7, 6).double()
    for token in range(7):
        angles = [token / 10_000 ** (2 * k / 6) for k in range(3)]
        expected = torch.tensor(
            [f(torch.tensor(a)) for f in (torch.sin, torch.cos) for a in angles]
        )
        torch.testing.assert_close(
            table[token], expected.double(), rtol=1e-5, atol=1e-6
        )
    assert torch.equal(positions(40, 6)[:7], positions(7, 6))
    assert positions(7, 5).shape == (7, 5)


def test_vit_hears_the_order_of_its_tokens():
    made, x = trained(name="vit1d"), noise(1, 2, 100)
    assert not torch.allclose(made(x), made(x.roll(25, 2)), rtol=0.01)
