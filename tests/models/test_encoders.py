import copy

import pytest
import torch
from networks import NAMES, build, noise, norm, trained
from torch import nn
from torch.nn import functional

from ecgstudy.devices import pick_device
from ecgstudy.errors import StudyError
from ecgstudy.models.checkpoints import load_encoder, save_encoder
from ecgstudy.models.encoders import (
    Projector,
    build_encoder,
    count_parameters,
    fold_batch_norms,
    load_state,
)
from ecgstudy.models.layers import DualBatchNorm
from ecgstudy.registry import ENCODERS

every_encoder = pytest.mark.parametrize("name", NAMES)
NORMED = [name for name in NAMES if name != "vit1d"]
"""Those with batch norm."""


@pytest.mark.parametrize("samples", [64, 101, 250, 650, 1000])
@pytest.mark.parametrize("leads", [1, 12])
@every_encoder
def test_any_length_and_number_of_leads_gives_one_vector_a_record(name, leads, samples):
    made = build(leads, name=name)
    features = made(noise(3, leads, samples))
    assert features.shape == (3, made.features)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("samples", [64, 250, 649])
@every_encoder
def test_the_gradient_reaches_every_sample_of_every_lead(name, samples):
    x = noise(2, 12, samples).requires_grad_()
    made = trained(12, name=name, width=16).requires_grad_(False)
    (made(x) @ noise(made.features)).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).float().mean() > 0.999


@every_encoder
def test_records_do_not_influence_each_other_in_evaluation(name):
    made, x = trained(name=name), noise(5, 2, 130, seed=5)
    together, alone = made(x), torch.cat([made(x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert together.std(0).mean() > 0.01


@every_encoder
def test_a_few_steps_tell_slow_waves_from_fast_ones(name):
    torch.manual_seed(0)
    made = build_encoder(name, {}, torch.zeros(2), torch.ones(()), dual=False).train()
    model, fast = nn.Sequential(made, nn.Linear(made.features, 1)), torch.arange(32) % 2
    x = torch.sin(torch.arange(100) * (0.2 + 0.2 * fast[:, None, None])) + 0.3 * noise(
        32, 2, 100
    )
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(25):
        losses.append(
            functional.binary_cross_entropy_with_logits(model(x)[:, 0], fast.float())
        )
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


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


@every_encoder
def test_folded_batch_norms_are_the_same_function_and_leave_the_original(name):
    made, x = trained(name=name), noise(4, 2, 150, seed=4)
    before = copy.deepcopy(made.state_dict())
    fast = fold_batch_norms(made)
    torch.testing.assert_close(fast(x, True), made(x, True), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items()
    )


@every_encoder
def test_a_folded_encoder_has_the_same_input_gradient(name):
    made, x = trained(name=name), noise(4, 2, 150, seed=4).requires_grad_()
    toward = noise(4, made.features, seed=6)
    slow, fast = (
        torch.autograd.grad((net(x) * toward).sum(), x)[0]
        for net in (made, fold_batch_norms(made))
    )
    torch.testing.assert_close(
        fast, slow, rtol=1e-3, atol=1e-5 * float(slow.abs().max())
    )


def test_the_first_statistics_are_for_clean_input_and_the_last_for_adversarial():
    x = noise(8, 3, 1, 20)
    for adversarial in (False, True):
        dual = DualBatchNorm(3, dual=True)
        own, other = dual.norms[int(adversarial)], dual.norms[1 - int(adversarial)]
        dual(x, adversarial)
        torch.testing.assert_close(own.running_mean, 0.1 * x.mean((0, 2, 3)))
        assert torch.equal(other.running_mean, torch.zeros(3))
        assert (own.num_batches_tracked, other.num_batches_tracked) == (1, 0)


def batch_norms(made):
    return [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]


@every_encoder
def test_without_dual_norms_both_kinds_of_input_share_one_set(name):
    made, x = build(name=name, dual=False).eval(), noise(4, 2, 100)
    assert torch.equal(made(x, False), made(x, True))
    assert len(batch_norms(made)) * 2 == len(batch_norms(build(name=name, dual=True)))


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("name", NORMED)
def test_each_kind_of_input_moves_its_own_statistics_in_every_layer(name, adversarial):
    made = build(name=name, dual=True).train()
    made(noise(4, 2, 100), adversarial)
    pairs = [
        module.norms for module in made.modules() if isinstance(module, DualBatchNorm)
    ]
    assert len(pairs) * 2 == len(batch_norms(made)) > 0
    for pair in pairs:
        own, other = pair[int(adversarial)], pair[1 - int(adversarial)]
        assert (own.num_batches_tracked, other.num_batches_tracked) == (1, 0)


@pytest.mark.parametrize("name", NORMED)
def test_evaluation_uses_the_adversarial_statistics_unless_told_otherwise(name):
    made, x = trained(name=name), noise(4, 2, 100)
    assert torch.equal(made(x), made(x, True))
    assert not torch.allclose(made(x), made(x, False), rtol=0.01)


def test_the_vision_transformer_has_no_statistics_and_dual_changes_nothing():
    single, dual, x = (
        *(build(name="vit1d", dual=d) for d in (False, True)),
        noise(4, 2, 100),
    )
    assert not batch_norms(dual)
    assert torch.equal(dual(x, False), dual(x, True))
    assert torch.equal(dual(x), single(x))


COUNTS = {
    ("resnet1d", "small"): (176_144, 177_376, 128),
    ("resnet1d", "base"): (6_285_120, 6_290_048, 512),
    ("xresnet1d", "small"): (60_112, 60_992, 128),
    ("xresnet1d", "base"): (1_802_912, 1_804_672, 256),
    ("cnn", "small"): (76_712, 77_328, 128),
    ("cnn", "base"): (1_220_768, 1_223_232, 512),
    ("lstm", "small"): (108_224, 111_744, 128),
    ("lstm", "base"): (3_287_808, 3_301_888, 512),
    ("vit1d", "small"): (450_048, 476_448, 96),
    ("vit1d", "base"): (21_304_320, 21_409_920, 384),
}
"""(encoder, size) → parameters for one lead and for twelve, and features: the README's
numbers."""


@pytest.mark.parametrize(("name", "size"), COUNTS)
def test_parameter_counts_are_those_of_the_readme(name, size):
    assert {name for name, _ in COUNTS} == set(NAMES)
    with torch.device("meta"):
        made = [
            build_encoder(name, {"size": size}, torch.zeros(n), torch.ones(()), False)
            for n in (1, 12)
        ]
        dual = build_encoder(name, {"size": size}, torch.zeros(1), torch.ones(()), True)
    assert (*map(count_parameters, made), made[0].features) == COUNTS[name, size]
    assert count_parameters(dual) - count_parameters(made[0]) == sum(
        map(count_parameters, batch_norms(made[0]))
    )


@every_encoder
def test_weights_come_from_the_global_generator_and_not_from_dual_norms(name):
    def weights(**options):
        made = build(name=name, **options)
        return torch.cat([p.flatten() for p in made.parameters() if p.ndim > 1])

    assert torch.equal(weights(), weights(dual=True))
    assert not torch.equal(weights(), weights(seed=1))


@every_encoder
def test_weights_are_channels_last(name):
    kernels = [p for p in build(name=name).parameters() if p.ndim == 4]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


@every_encoder
def test_features_are_float32_under_bfloat16_and_near_those_of_float32(name):
    made, x = trained(name=name), noise(4, 2, 200).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, made(x), rtol=0.1, atol=0.1)
    rough.square().sum().backward()
    assert torch.isfinite(x.grad).all()


@every_encoder
def test_a_stored_encoder_comes_back(name, tmp_path):
    form = {
        "encoder": {"name": name, "options": {"size": "small", "width": 8}},
        "dual": True,
    }
    made, x = trained(name=name), noise(4, 2, 100)
    save_encoder(
        tmp_path,
        nn.ModuleDict({"encoder": made}),
        {**form, "leads": ["I", "II"], "classes": ["A"]},
    )
    loaded, _, _ = load_encoder(tmp_path)
    for key, tensor in made.state_dict().items():
        assert torch.equal(
            loaded.state_dict()[key],
            tensor.half().float() if tensor.ndim > 1 else tensor,
        )
    torch.testing.assert_close(loaded(x), made(x), rtol=0.01, atol=0.01)


@pytest.fixture
def flags_kept(monkeypatch):
    """What `pick_device` sets for the process is put back."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with torch.backends.cudnn.flags(enabled=True):
        yield
    matmul.fp32_precision = before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.usefixtures("flags_kept")
@every_encoder
def test_an_attack_gets_the_same_gradient_on_a_gpu(name):
    made, x = fold_batch_norms(trained(name=name)), noise(4, 2, 100)
    gradients = []
    for device in map(pick_device, ("cpu", "cuda")):
        at = x.clone().to(device).requires_grad_()  # x itself wants no gradient
        made.to(device)(at).square().sum().backward()
        gradients.append(at.grad.cpu())
    torch.testing.assert_close(
        *gradients, rtol=0.01, atol=0.01 * float(gradients[0].abs().max())
    )


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
    "option": (
        {"colour": "red"},
        "{name} has no option 'colour'; known: size, width, depth, ",
    ),
    "no width": ({"width": 0}, "{name} takes a whole number above 0 as width, not 0"),
    "half a width": ({"width": 8.5}, "as width, not 8.5"),
    "text": ({"width": "8"}, "as width, not '8'"),
    "truth": ({"width": True}, "as width, not True"),
}


@pytest.mark.parametrize(("options", "says"), BAD.values(), ids=BAD)
@every_encoder
def test_an_impossible_option_is_an_error(name, options, says):
    with pytest.raises(StudyError, match=says.format(name=name)):
        build(name=name, **options)


@pytest.mark.parametrize("name", NORMED)
def test_an_even_kernel_is_an_error(name):
    with pytest.raises(StudyError, match=f"{name} takes an odd kernel .* not 4"):
        build(name=name, kernel=4)


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(
        StudyError, match="vit1d takes heads that divide its width 8, not 3"
    ):
        build(name="vit1d", heads=3)


@pytest.mark.parametrize(("name", "depth"), [("resnet1d", 3), ("lstm", (1, 1))])
def test_a_depth_of_the_wrong_kind_is_an_error(name, depth):
    with pytest.raises(
        StudyError, match=rf"encoder '{name}' does not take the options .*'depth'"
    ):
        build(name=name, depth=depth)


@pytest.mark.parametrize("shape", [(4, 1, 90), (2, 90), (4, 2, 1, 90)])
def test_signals_of_another_form_are_refused(shape):
    """One lead would be spread over all of them, and scored."""
    with pytest.raises(
        StudyError, match=r"shape .*; this encoder takes \(records, 2 l"
    ):
        build()(noise(*shape))


def test_weights_that_do_not_fit_are_named():
    state = {"a.weight": noise(3, 4), "a.bias": noise(3)}
    net = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(2, 2)})
    with pytest.raises(StudyError, match=r'x\.pt: made for another .*"b\.weight"'):
        load_state(net, state, "x.pt")
    del net["b"]
    load_state(net, state, "x.pt")
    assert torch.equal(net["a"].bias, state["a.bias"])
    for wrong in ({"a.weight": noise(2, 4)}, {"c": noise(1)}):
        (name,) = wrong
        with pytest.raises(StudyError, match=name):
            load_state(net, state | wrong, "x.pt")


def test_an_unknown_encoder_is_an_error_that_names_those_there_are():
    with pytest.raises(
        StudyError, match=r"unknown encoder 'resnet9000'; known: resnet1d"
    ):
        build_encoder("resnet9000", {}, torch.zeros(1), torch.ones(()), False)


def test_an_encoder_of_ones_own_is_one_decorated_function(monkeypatch):
    monkeypatch.setitem(ENCODERS, "mean", None)  # goes away after the test

    class Mean(nn.Module):
        def __init__(self, leads):
            super().__init__()
            self.features = leads

        def forward(self, x, adversarial):
            return x.mean((2, 3))

    @ENCODERS.register("mean")
    def mean(leads, dual):
        return Mean(leads)

    x = noise(5, 3, 40)
    made = build_encoder("mean", {}, torch.ones(3), torch.tensor(2.0), False)
    torch.testing.assert_close(made(x), (x.mean(2) - 1) / 2)
