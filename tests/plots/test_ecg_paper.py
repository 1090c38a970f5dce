"""ECGs are drawn to scale, and their perturbations magnified as they say."""

import numpy as np
import pytest
from drawn import LEADS, ecg, some_records, texts

from ecgstudy import plots
from ecgstudy.errors import StudyError
from ecgstudy.plots.ecg_paper import _magnification


def curves(axes):
    """The drawn signals, without the calibration marks."""
    return [line for line in axes.lines if len(line.get_xdata()) > 6]


@pytest.mark.parametrize(
    ("leads", "seconds"), [(LEADS, 10.0), (("MLII",), 1.8), (LEADS[:3], 4.0)]
)
def test_one_millivolt_is_as_high_as_four_tenths_of_a_second(leads, seconds):
    signals = ecg(len(leads), seconds)
    (axes,) = plots.draw_ecg(signals, 50, leads, 0.01 * signals).axes
    axes.figure.canvas.draw()
    drawn = curves(axes)
    assert np.diff(drawn[0].get_xdata()).mean() * 50 == pytest.approx(25)
    box, span = axes.get_window_extent(), np.ptp(axes.get_xlim())
    assert box.width / span == pytest.approx(box.height / np.ptp(axes.get_ylim()))
    last = drawn[len(drawn) // 3 - 1].get_ydata()  # of the clean ECG
    expected = signals[1 if len(leads) == 12 else -1]
    assert np.ptp(last) == pytest.approx(10 * np.ptp(expected))


def test_ten_seconds_print_at_true_size():
    figure = plots.draw_ecg(ecg(), 50, LEADS)
    axes = figure.axes[0]
    width = axes.get_window_extent().width / figure.dpi * 25.4
    assert width == pytest.approx(np.ptp(axes.get_xlim()))


def test_twelve_leads_come_in_four_columns_with_a_rhythm_strip():
    axes = plots.draw_ecg(ecg(), 50, LEADS).axes[0]
    labels = [text.get_text() for text in axes.texts]
    assert all(labels.count(lead) == 1 + (lead == "II") for lead in LEADS)
    drawn = curves(axes)
    assert [len(line.get_xdata()) for line in drawn] == [125] * 12 + [500]
    starts = [line.get_xdata()[0] for line in drawn[:4]]
    assert starts == pytest.approx([0, 62.5, 125, 187.5])
    strip = np.diff(drawn[-1].get_ydata())
    np.testing.assert_allclose(strip, 10 * np.diff(ecg()[1]), atol=1e-9)


def test_the_perturbation_is_drawn_magnified_and_says_so():
    delta = np.clip(ecg(), -0.02, 0.02)
    figure = plots.draw_ecg(ecg(), 50, LEADS, delta)
    assert any("× 20: 5 mm = 25 µV, max |δ| = 20 µV" in text for text in texts(figure))
    drawn = curves(figure.axes[0])[-1].get_ydata()
    assert np.ptp(drawn) == pytest.approx(10 * 20 * np.ptp(delta[1]))


def test_perturbations_are_drawn_on_the_lead_of_most_energy():
    alone = (np.arange(12) == 4)[:, None]
    slow = 0.02 * np.sin(2 * np.pi * 3 * np.arange(500) / 50) * alone
    fast = 0.1 * np.sin(2 * np.pi * 12 * np.arange(500) / 50) * alone
    deltas = {"slow": slow, "fast": fast}
    figure = plots.draw_perturbations(ecg(), deltas, 50, LEADS, "record 7")
    assert "record 7, lead aVL" in texts(figure)
    assert "slow × 20: 5 mm = 25 µV, max |δ| = 20 µV" in texts(figure)
    assert "fast × 5: 5 mm = 100 µV, max |δ| = 99.8 µV" in texts(figure)
    drawn = zip(curves(figure.axes[0]), (ecg(), slow, fast), (1, 20, 5), strict=True)
    for line, values, gain in drawn:
        part = np.diff(values[4])
        np.testing.assert_allclose(
            np.diff(line.get_ydata()), 10 * gain * part, atol=1e-9
        )


@pytest.mark.parametrize(
    ("peak", "gain"), [(0.02, 20), (0.01, 50), (0.005, 100), (0.1, 5), (0.5, 1)]
)
def test_magnification_is_the_largest_round_number_that_fits(peak, gain):
    assert _magnification(np.array([[peak, -peak / 2]])) == pytest.approx(gain)


def test_ill_fitting_signals_are_refused():
    with pytest.raises(StudyError, match="2 leads"):
        plots.draw_ecg(ecg(1), 50, ("I", "II"))
    with pytest.raises(StudyError, match="does not fit signals"):
        plots.draw_ecg(ecg(1), 50, ("I",), np.zeros((1, 3)))


def test_the_typical_record_of_a_class_has_its_median_amplitude():
    records = some_records()
    rows = plots.pick_typical(records)
    assert list(records.labels[rows]) == [0, 1, 2]
    spread = records.signals.std(axis=2).mean(1)
    for column, row in enumerate(rows):
        assert spread[row] == np.sort(spread[records.labels == column])[2]


def test_ecg_values_are_the_samples_themselves():
    frame = plots.ecg_values(ecg(2), 50, ("I", "II"))
    np.testing.assert_array_equal(frame["II"], ecg(2)[1])
    assert frame["time_s"].iloc[-1] == pytest.approx(9.98)
