"""Adaptation of leads, rates, bands, scales and lengths against scipy; networks against
their description."""

import importlib.util

import numpy as np
import pytest
import torch
from networks import noise
from scipy import signal

from ecgstudy.datasets.leads import DEFINITIONS
from ecgstudy.errors import StudyError
from ecgstudy.models.encoders import load_state
from ecgstudy.models.released import Input, net1d, signals
from ecgstudy.models.released.hubert import hubert_ecg
from ecgstudy.models.released.net1d import LEADS, clef, ecgfounder

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="needs the optional package transformers",
)


def takes(**changed):
    return Input(
        **{"leads": ("I",), "fs": 500.0, "samples": 5000, "scale": "lead", **changed}
    )


def in_time(x, data_fs, **what):
    """`x` at the network's rate and through its filters."""
    wanted = takes(samples=10**6, **what)
    return x @ signals.time_matrix(x.shape[-1], float(data_fs), wanted).T


@pytest.mark.parametrize(
    ("fs", "to"), [(100, 500), (360, 500), (500, 100), (360, 100), (250, 250)]
)
def test_resampling_is_that_of_scipy_and_leaves_constants_alone(fs, to):
    x = noise(2, 3, 4 * fs).double().cumsum(-1) / 10
    up, down = to // np.gcd(fs, to), fs // np.gcd(fs, to)
    expected = signal.resample_poly(x.numpy(), up, down, axis=2, padtype="edge")
    found = in_time(x, fs, fs=to)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=4e-3 * np.abs(expected).max())
    constant = in_time(torch.full((1, 1, 77), 3.0, dtype=torch.float64), fs, fs=to)
    torch.testing.assert_close(constant, torch.full_like(constant, 3.0))


def test_a_sine_keeps_its_frequency_at_another_rate():
    def sine(fs):
        time = torch.arange(3 * fs, dtype=torch.float64) / fs
        return torch.sin(2 * torch.pi * 7 * time)

    found, wanted = in_time(sine(360), 360), sine(500)
    middle = slice(300, 1200)
    torch.testing.assert_close(found[middle], wanted[middle], rtol=0, atol=2e-3)


@pytest.mark.parametrize("order", [4, 5])
def test_the_band_pass_is_filtfilt_with_a_butterworth_filter(order):
    x = noise(2, 2, 2500).double().cumsum(-1)
    band = signal.butter(order, (0.67, 40.0), "band", fs=500, output="sos")
    expected = signal.sosfiltfilt(band, x.numpy(), axis=-1, padlen=1500)
    found = in_time(x, 500, band_hz=(0.67, 40.0), band_order=order)
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.std())


def test_the_notch_is_that_of_scipy_and_the_median_too():
    x = noise(1, 2, 2000).double()
    notch = signal.iirnotch(50, 30, 500)
    expected = signal.filtfilt(*notch, x.numpy(), padlen=1500)
    np.testing.assert_allclose(in_time(x, 500, notch_hz=50.0), expected, atol=1e-6)
    baseline = np.stack([signal.medfilt(lead, 201) for lead in x[0].numpy()])
    found = signals.subtract_median(x, takes(baseline_s=0.4))
    np.testing.assert_allclose(found[0], x[0].numpy() - baseline)


def test_frequencies_beyond_the_band_are_gone_and_those_inside_stay():
    time = torch.arange(5000, dtype=torch.float64) / 500
    waves = [torch.sin(2 * torch.pi * rate * time) for rate in (0.1, 10.0, 120.0)]
    passed = in_time(torch.stack(waves), 500, band_hz=(0.67, 40.0))[:, 1000:-1000]
    slow, inside, fast = passed
    torch.testing.assert_close(inside, waves[1][1000:-1000], rtol=0, atol=0.01)
    assert slow.abs().max() < 0.02
    assert fast.abs().max() < 0.02


def ecg_leads(names, samples=50):
    """Leads of random electrode potentials, by their definitions."""
    potentials = dict(
        zip(
            ("RA", "LA", "LL", *LEADS[6:]),
            np.random.default_rng(0).normal(size=(9, samples)),
            strict=True,
        )
    )
    rows = [
        sum(w * potentials[e] for e, w in DEFINITIONS[name.upper()].items())
        for name in names
    ]
    return torch.tensor(np.array(rows))


@pytest.mark.parametrize(
    "given", [("I", "II", *LEADS[6:]), ("III", "aVR", *LEADS[6:]), LEADS[::-1]]
)
def test_limb_leads_come_from_others_by_einthoven_and_goldberger(given):
    made = signals.lead_matrix(LEADS, given) @ ecg_leads(given)
    torch.testing.assert_close(made, ecg_leads(LEADS), rtol=0, atol=1e-7)


def test_a_lead_that_is_there_is_taken_as_it_is():
    assert torch.equal(
        signals.lead_matrix(LEADS, LEADS), torch.eye(12, dtype=torch.float64)
    )
    assert torch.equal(
        signals.lead_matrix(("II",), ("V1", "MLII")),
        torch.tensor([[0.0, 1.0]]).double(),
    )  # its electrodes are on the trunk


def test_a_lead_that_cannot_be_had_is_named():
    with pytest.raises(
        StudyError,
        match="takes lead V5, V6, which does not follow from the data's I, II, V1",
    ):
        signals.lead_matrix(("I", "aVF", "V5", "V6"), ("I", "II", "V1"))


def test_each_scale_is_what_it_says_and_does_not_see_the_unit():
    x = 3 * noise(4, 2, 300) + 1
    lead, record, span = (
        signals.rescale(x, scale) for scale in ("lead", "record", "range")
    )
    torch.testing.assert_close(lead.mean(-1), torch.zeros(4, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(lead.std(-1, correction=0), torch.ones(4, 2))
    torch.testing.assert_close(record.std((1, 2), correction=0), torch.ones(4))
    torch.testing.assert_close(span.amin(-1), -torch.ones(4, 2))
    torch.testing.assert_close(span.amax(-1), torch.ones(4, 2))
    assert signals.rescale(x, "mv") is x
    for scale, found in (("lead", lead), ("record", record), ("range", span)):
        torch.testing.assert_close(
            signals.rescale(1000 * x, scale), found, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("scale", ["lead", "record", "range"])
def test_a_silent_lead_has_finite_values_and_gradients(scale):
    x = torch.zeros(2, 2, 60, requires_grad=True)
    out = signals.rescale(x, scale)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()


def test_a_long_record_is_covered_by_few_windows_and_a_short_one_is_one():
    x = torch.arange(1.0, 1201)[None, None]
    seen = signals.cut_windows(x, 500)
    assert seen.shape == (1, 3, 1, 500)
    assert set(seen.flatten().tolist()) == set(x.flatten().tolist())
    for length in (1200, 1205):
        assert torch.equal(signals.cut_windows(x, length)[:, 0], x)


def test_a_short_record_is_padded_only_where_the_network_is_strict():
    x = torch.arange(1.0, 1201)[None, None]
    assert signals.pad_to_length(x, takes(samples=1205)) is x
    padded = signals.pad_to_length(x, takes(samples=1205, exact=True))[0, 0]
    assert torch.equal(padded[2:-3], x[0, 0])
    assert padded[:2].abs().sum() + padded[-3:].abs().sum() == 0


# ---- Net1D ---------------------------------------------------------------------------


def published(leads, stem, widths, depths, ratio, group):
    """Names and shapes of a released Net1D, counted out from its published
    configuration, norms included."""

    def conv(name, outputs, inputs, kernel):
        return {
            f"{name}.conv.weight": (outputs, inputs, kernel),
            f"{name}.conv.bias": (outputs,),
        }

    def norm(name, channels):
        kept = {
            f"{name}.{part}": (channels,)
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        return kept | {f"{name}.num_batches_tracked": ()}

    shapes, inputs = conv("first_conv", stem, leads, 16) | norm("first_bn", stem), stem
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for block in range(depth):
            at, middle = f"stage_list.{stage}.block_list.{block}", int(width * ratio)
            shapes |= norm(f"{at}.bn1", inputs) | conv(f"{at}.conv1", middle, inputs, 1)
            shapes |= norm(f"{at}.bn2", middle)
            shapes |= conv(f"{at}.conv2", middle, middle // (width // group), 16)
            shapes |= norm(f"{at}.bn3", middle) | conv(f"{at}.conv3", width, middle, 1)
            shapes |= {
                f"{at}.se_fc1.weight": (width // 2, width),
                f"{at}.se_fc1.bias": (width // 2,),
            }
            shapes |= {
                f"{at}.se_fc2.weight": (width, width // 2),
                f"{at}.se_fc2.bias": (width,),
            }
            inputs = width
    return shapes


def trainable(shapes):
    return sum(
        int(np.prod(s))
        for name, s in shapes.items()
        if "running" not in name and s != ()
    )


@pytest.mark.parametrize(
    ("size", "parameters"), [("small", 447_792), ("medium", 30_654_000)]
)
def test_the_described_shapes_have_the_published_numbers_of_parameters(
    size, parameters
):
    assert (
        trainable(published(1, **net1d.SIZES[size])) == parameters
    )  # 448K; medium as counted in the file


@pytest.mark.parametrize("size", net1d.SIZES)
def test_every_size_of_clef_takes_exactly_the_described_shapes(size):
    with torch.device("meta"):
        made = clef(size)
    shapes, rename = published(1, **net1d.SIZES[size]), made.rename
    kept = {
        name: shape
        for name, shape in shapes.items()
        if rename(f"backbone.{name}") is not None
    }
    assert kept == {
        name: tuple(t.shape) for name, t in made.weights.state_dict().items()
    }
    assert {name.split(".")[-2] for name in shapes.keys() - kept.keys()} == {
        "first_bn",
        "bn1",
        "bn2",
        "bn3",
    }


def test_ecgfounder_takes_the_medium_shapes_with_one_lead_or_twelve():
    for single, leads in ((True, 1), (False, 12)):
        with torch.device("meta"):
            made = ecgfounder(single)
        shapes = published(leads, **net1d.SIZES["medium"])
        shapes |= {"dense.weight": (150, 1024), "dense.bias": (150,)}
        kept = {
            name: shape
            for name, shape in shapes.items()
            if made.rename(name) is not None
        }
        assert kept == {
            name: tuple(t.shape) for name, t in made.weights.state_dict().items()
        }
        assert len(made.takes.leads) == leads


def test_a_state_dict_of_the_published_shapes_loads_and_is_used():
    shapes, made = published(1, **net1d.SIZES["small"]), clef()
    state = {f"backbone.{name}": 0.1 * noise(*shape) for name, shape in shapes.items()}
    named = {made.rename(name): tensor for name, tensor in state.items()}
    del named[None]
    load_state(made.weights, named, "clef_small.ckpt")
    assert torch.equal(
        made.net.first_conv.conv.weight, state["backbone.first_conv.conv.weight"]
    )
    features = made.net(noise(2, 1, 900))
    assert features.shape == (2, made.features) == (2, 256)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(("samples", "stride"), [(10, 2), (11, 2), (7, 1)])
def test_a_same_convolution_sums_what_lies_around_each_stride(samples, stride):
    conv, x = net1d.SameConv(1, 1, 4, stride), noise(1, 1, samples)
    torch.nn.init.ones_(conv.conv.weight)
    torch.nn.init.zeros_(conv.conv.bias)
    count = -(-samples // stride)
    left = ((count - 1) * stride + 4 - samples) // 2
    sums = [
        x[0, 0, max(0, k * stride - left) : k * stride - left + 4].sum()
        for k in range(count)
    ]
    torch.testing.assert_close(conv(x)[0, 0], torch.stack(sums))


def test_a_block_without_weights_passes_on_the_larger_of_two_samples():
    block, x = net1d.Block(2, 5, 4, 2, 2, first=False), noise(1, 2, 6)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    pairs = torch.maximum(x[..., ::2], x[..., 1::2])
    expected = torch.cat([torch.zeros(1, 1, 3), pairs, torch.zeros(1, 2, 3)], 1)
    torch.testing.assert_close(block(x), expected)


# ---- HuBERT-ECG ----------------------------------------------------------------------


def hubert_shapes(hidden, layers, inner):
    """Names and shapes of a released HuBERT-ECG, from its published configuration."""
    shapes, kernels = {"masked_spec_embed": (hidden,)}, (10, 3, 3, 2, 2)

    def affine(name, outputs, inputs=None):
        weight = (outputs,) if inputs is None else (outputs, inputs)
        return {f"{name}.weight": weight, f"{name}.bias": (outputs,)}

    for k, kernel in enumerate(kernels):
        shapes[f"feature_extractor.conv_layers.{k}.conv.weight"] = (
            512,
            512 if k else 1,
            kernel,
        )
    shapes |= affine("feature_extractor.conv_layers.0.layer_norm", 512)
    shapes |= affine("feature_projection.layer_norm", 512) | affine(
        "feature_projection.projection", hidden, 512
    )
    conv = "encoder.pos_conv_embed.conv"
    shapes |= {
        f"{conv}.bias": (hidden,),
        f"{conv}.parametrizations.weight.original0": (1, 1, 128),
    }
    shapes |= {f"{conv}.parametrizations.weight.original1": (hidden, hidden // 16, 128)}
    shapes |= affine("encoder.layer_norm", hidden)
    for k in range(layers):
        at = f"encoder.layers.{k}"
        for part in "kqv":
            shapes |= affine(f"{at}.attention.{part}_proj", hidden, hidden)
        shapes |= affine(f"{at}.attention.out_proj", hidden, hidden) | affine(
            f"{at}.layer_norm", hidden
        )
        shapes |= affine(f"{at}.feed_forward.intermediate_dense", inner, hidden)
        shapes |= affine(f"{at}.feed_forward.output_dense", hidden, inner)
        shapes |= affine(f"{at}.final_layer_norm", hidden)
    return shapes


@needs_transformers
@pytest.mark.parametrize(
    ("size", "form"),
    [("small", (512, 8, 2048)), ("base", (768, 12, 3072)), ("large", (960, 16, 3840))],
)
def test_hubert_ecg_takes_exactly_the_described_shapes(size, form):
    with torch.device("meta"):
        made = hubert_ecg(size)
    shapes = hubert_shapes(*form)
    heads = {
        "final_proj.0.weight": (256, form[0]),
        "label_embedding.0.weight": (100, 256),
    }
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        )
        for name in shapes | heads
    }
    for names in (shapes | heads, older):
        assert {
            own for name in names if (own := made.rename(name)) is not None
        } == shapes.keys()
    assert shapes == {
        name: tuple(t.shape) for name, t in made.weights.state_dict().items()
    }


@needs_transformers
def test_hubert_ecg_gives_one_vector_a_record_and_a_gradient_to_every_lead():
    made, x = hubert_ecg("small"), noise(2, 12, 500).requires_grad_()
    features = made.net.train()(x)
    assert features.shape == (2, 512)
    torch.testing.assert_close(made.net.eval()(x), features)
    features.square().sum().backward()
    assert (x.grad.abs().amax(-1) > 0).all()


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is not None, reason="transformers is here"
)
def test_without_transformers_the_error_says_how_to_get_it():
    with pytest.raises(
        StudyError, match=r"needs the package transformers .*pip install .*hubert"
    ):
        hubert_ecg()


def test_an_unknown_size_is_named():
    for make in (clef, hubert_ecg):
        with pytest.raises(StudyError, match=r"has no size 'huge'; known: small, "):
            make("huge")
