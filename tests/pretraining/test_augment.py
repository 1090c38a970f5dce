import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from ecgstudy.pretraining.augment import draw_view
from ecgstudy.study import ViewOptions

NOTHING = {
    "stretch": 0.0,
    "shift_s": 0.0,
    "amplitude": 0.0,
    "noise_mv": 0.0,
    "wander_mv": 0.0,
    "powerline_mv": 0.0,
    "timeout": 0.0,
    "lead_dropout": 0.0,
}


def seeded(seed=0):
    return Generator().manual_seed(seed)


def signals(records=8, leads=3, samples=200, seed=1):
    return torch.randn(records, leads, samples, generator=seeded(seed))


def one(x, fs=100.0, seed=0, **strengths):
    """A view with only the named augmentations."""
    return draw_view(x, fs, ViewOptions(**{**NOTHING, **strengths}), seeded(seed))


def ramp(records=400, samples=500):
    """Two leads whose value is the sample number: a view shows where it was taken."""
    return torch.arange(samples, dtype=torch.float64).repeat(records, 2, 1)


def test_with_all_strengths_at_zero_a_view_is_the_record():
    torch.testing.assert_close(one(signals()), signals(), atol=1e-4, rtol=0)


def test_the_same_generator_gives_the_same_views_and_the_next_call_others():
    options, x, generator = (
        ViewOptions(crop_s=1.0, lead_dropout=0.2),
        signals(),
        seeded(3),
    )
    first, second = (
        draw_view(x, 100.0, options, generator),
        draw_view(x, 100.0, options, generator),
    )
    assert torch.equal(first, draw_view(x, 100.0, options, seeded(3)))
    assert not torch.equal(first, second)


def test_views_ignore_the_global_generator_and_leave_the_signals_alone():
    x = signals()
    torch.manual_seed(0)
    state, before = torch.get_rng_state(), x.clone()
    first = draw_view(x, 100.0, ViewOptions(), seeded())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(draw_view(x, 100.0, ViewOptions(), seeded()), first)
    assert torch.equal(x, before)


def test_records_get_views_of_their_own():
    same = signals(1).expand(6, -1, -1)
    made = draw_view(same, 100.0, ViewOptions(), seeded())
    assert len(made[:, 0, 0].unique()) == 6


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(8, 300)),
    fs=st.sampled_from([50.0, 100.0, 102.0, 360.0, 500.0]),
    crop_s=st.none() | st.floats(0.02, 4.0),
    centred=st.booleans(),
    strengths=st.fixed_dictionaries(
        {name: st.sampled_from([0.0, 0.5, 1.0]) for name in NOTHING}
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_options_give_finite_views_of_the_wanted_shape_and_type(
    shape, fs, crop_s, centred, strengths, dtype
):
    x = signals(*shape).to(dtype)
    made = draw_view(
        x, fs, ViewOptions(crop_s=crop_s, centred=centred, **strengths), seeded()
    )
    length = shape[2] if crop_s is None else min(shape[2], round(crop_s * fs))
    assert made.shape == (*shape[:2], length)
    assert made.dtype == dtype
    assert torch.isfinite(made).all()


@pytest.mark.parametrize("crop", [100, 101])
def test_a_centred_crop_is_the_middle_of_the_record(crop):
    x = signals(samples=200 + crop % 2)
    start = (x.shape[2] - crop) // 2
    made = one(x, crop_s=crop / 100, centred=True)
    torch.testing.assert_close(made, x[:, :, start : start + crop], atol=1e-4, rtol=0)


def test_crops_lie_anywhere_inside_the_record_and_all_over_it():
    made = one(ramp(), crop_s=1.0)
    torch.testing.assert_close(
        made.diff(dim=2), torch.ones(400, 2, 99, dtype=torch.float64)
    )
    starts = made[:, 0, 0]
    assert starts.min() >= -1e-6
    assert starts.max() <= 400 + 1e-6
    counts = torch.histc(starts, 4, 0, 400)
    assert (counts > 60).all(), "uniform over the record: 100 expected in each quarter"


def test_a_crop_longer_than_the_record_keeps_all_of_it():
    torch.testing.assert_close(
        one(signals(), crop_s=60.0), signals(), atol=1e-4, rtol=0
    )


def test_shifts_move_the_window_by_at_most_the_given_seconds():
    starts = one(ramp(), crop_s=1.0, centred=True, shift_s=0.05)[:, 0, 0] - 200
    assert starts.abs().max() <= 5
    assert starts.min() < -4.5
    assert starts.max() > 4.5


def test_stretches_change_the_speed_by_at_most_the_given_share():
    made = one(ramp(), crop_s=1.0, centred=True, stretch=0.2)
    speed = made.diff(dim=2)
    assert torch.allclose(speed.amax(2), speed.amin(2))
    assert 0.8 <= speed.min() < 0.82
    assert 1.18 < speed.max() <= 1.2
    torch.testing.assert_close(
        made.mean(2), torch.full((400, 2), 249.5, dtype=torch.float64)
    )


def test_stretched_and_shifted_windows_are_linear_interpolation():
    x, strengths = signals(samples=300), {"crop_s": 1.0, "stretch": 0.3, "shift_s": 0.2}
    x = x.double()
    positions = one(ramp(8, 300), **strengths)[
        :, 0
    ]  # where each sample of the same views was taken
    made = one(x, **strengths)
    for record in range(8):
        for lead in range(3):
            expected = np.interp(positions[record], np.arange(300), x[record, lead])
            np.testing.assert_allclose(made[record, lead], expected, atol=1e-9)


def test_beyond_the_ends_of_a_record_its_edge_goes_on():
    made = one(ramp(50, 100), centred=True, stretch=0.5)
    longest = made[:, 0].diff(dim=1).amax(1).argmax()
    assert made[longest, 0, 0] == 0
    assert made[longest, 0, -1] == 99


def test_amplitudes_scale_all_leads_of_a_record_by_one_factor_within_the_range():
    x = signals(300)
    factor = one(x, amplitude=0.3) / one(x)
    assert torch.allclose(factor.amax((1, 2)), factor.amin((1, 2)), atol=1e-3)
    assert 0.7 - 1e-3 <= factor.min() < 0.72
    assert 1.28 < factor.max() <= 1.3 + 1e-3


def test_noise_is_white_of_a_level_drawn_up_to_the_given_one():
    made = one(torch.zeros(300, 2, 1000), noise_mv=0.04)
    level = made.std((1, 2))
    assert level.max() <= 0.042
    assert abs(level.mean() - 0.02) < 0.003
    neighbours = (made[:, :, 1:] * made[:, :, :-1]).mean() / (made**2).mean()
    assert abs(neighbours) < 0.01


def peak_hz(made, fs):
    spectrum = np.abs(np.fft.rfft(made.numpy(), axis=2))
    return np.fft.rfftfreq(made.shape[2], 1 / fs)[spectrum.argmax(2)]


@pytest.mark.parametrize(
    ("fs", "low", "high"), [(360.0, 49, 51), (500.0, 49, 51), (100.0, 40, 45)]
)
def test_mains_hum_is_50_hz_or_below_nyquist_and_no_larger_than_given(fs, low, high):
    made = one(torch.zeros(100, 2, int(10 * fs)), fs, powerline_mv=0.03)
    peaks = peak_hz(made, fs)
    assert high < fs / 2
    assert low - 0.2 <= peaks.min()
    assert peaks.max() <= high + 0.2
    assert 0.025 < made.abs().max() <= 0.03


def test_baseline_wander_is_slow_and_no_larger_than_given():
    made = one(torch.zeros(100, 2, 2000), wander_mv=0.2)
    assert 0.18 < made.abs().max() <= 0.2 + 1e-6
    per_second = made.diff(dim=2).abs().max() * 100
    assert per_second <= 2 * np.pi * 0.5 * 0.2 + 1e-4
    assert made.std(2).mean() > 0.03


def test_a_timeout_silences_one_stretch_in_all_leads_up_to_the_given_share():
    silent = (one(torch.ones(400, 3, 200), timeout=0.4) == 0).int()
    assert torch.equal(silent.amax(1), silent.amin(1)), "all leads together"
    edges = silent[:, 0].diff(dim=1).abs().sum(1) + silent[:, 0, 0] + silent[:, 0, -1]
    assert edges.max() <= 2, "one stretch"
    length = silent[:, 0].sum(1)
    assert 75 < length.max() <= 81
    assert abs(length.float().mean() - 40) < 4
    assert silent[:, 0, :50].sum() > 0
    assert silent[:, 0, -50:].sum() > 0


@pytest.mark.parametrize("probability", [0.3, 0.9, 1.0])
def test_leads_drop_out_with_the_given_probability_but_never_all(probability):
    silent = (one(torch.ones(3000, 3, 20), lead_dropout=probability) == 0).float()
    assert torch.equal(silent.amax(2), silent.amin(2)), "whole leads"
    assert silent[:, :, 0].sum(1).max() < 3
    expected = probability - probability**3  # all three dropped: all three kept
    assert abs(silent.mean() - expected) < 0.02


def test_a_single_lead_is_never_dropped():
    x = signals(20, 1)
    torch.testing.assert_close(one(x, lead_dropout=0.9), x, atol=1e-4, rtol=0)
