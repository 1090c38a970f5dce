"""Where a perturbation's energy lies, against sums over single samples and frequencies."""

import dataclasses

import numpy as np
import pytest
import torch
from toy import toy_records

from ecgstudy.datasets.builtin import load
from ecgstudy.evaluation.energy import (
    PARTS,
    Profiler,
    parts_of_beats,
    profile,
    r_peaks,
    with_r_peaks,
)
from ecgstudy.records import load_records, save_records

FS, LEADS = 100.0, ("I", "II")


def shares(rows, kind, value="share"):
    return {row["name"]: row[value] for row in rows if row["kind"] == kind}


def no_peaks(records, samples):
    return np.zeros((records, samples), dtype=bool)


def test_a_sine_lies_in_its_band_and_lead():
    delta = np.zeros((3, 2, 400))
    delta[:, 1] = np.sin(2 * np.pi * 10 * np.arange(400) / FS)
    rows = profile(delta, FS, LEADS, no_peaks(3, 400))
    assert shares(rows, "band")["5–15 Hz"] == pytest.approx(1)
    assert shares(rows, "lead") == pytest.approx({"I": 0, "II": 1})
    assert shares(rows, "part") == {"no R peak": 1.0}


@pytest.mark.parametrize("samples", [400, 401, 648])
def test_a_constant_and_an_alternating_perturbation_lie_at_both_ends(samples):
    """Parseval: at the first and the last frequency of an even length nothing is doubled."""
    constant = profile(np.ones((1, 1, samples)), FS, ("II",), no_peaks(1, samples))
    assert shares(constant, "band")["0–0.5 Hz"] == pytest.approx(1)
    both = np.array([[1.0 + 2 * (-1.0) ** np.arange(samples)]])
    found = shares(profile(both, FS, ("II",), no_peaks(1, samples)), "band")
    assert found["≥ 40 Hz"] == pytest.approx(0.8, abs=0.01)


def test_white_noise_uses_every_part_in_proportion_to_its_size():
    rng = np.random.default_rng(0)
    peaks = no_peaks(200, 500)
    peaks[:150, 60::80] = True
    rows = profile(rng.normal(size=(200, 3, 500)), FS, ("I", "II", "V1"), peaks)
    assert {row["name"] for row in rows if row["kind"] == "part"} == set(PARTS)
    for row in rows:
        assert row["share"] / row["size"] == pytest.approx(1, abs=0.05), row
    for kind in ("band", "lead", "part"):
        for value in ("share", "size"):
            assert sum(shares(rows, kind, value).values()) == pytest.approx(1)
    assert shares(rows, "part", "size")["no R peak"] == pytest.approx(0.25)


def test_parts_of_beats_are_those_of_a_loop_over_samples():
    peaks = no_peaks(3, 300)
    peaks[0, [50, 130, 160, 280]] = True  # the third beat comes early
    peaks[1, 150] = True
    found = parts_of_beats(peaks, FS)
    for row in range(3):
        at = np.flatnonzero(peaks[row])
        for t in range(300):
            if not len(at):
                expected = "no R peak"
            elif np.abs(t - at).min() <= 6:
                expected = "QRS"
            elif any(0 <= r - t <= 20 for r in at):
                expected = "P"
            elif any(0 <= t - r <= 40 for r in at):
                expected = "ST-T"
            else:
                expected = "before P" if any(0 <= r - t <= 40 for r in at) else "rest"
            assert PARTS[found[row, t]] == expected, (row, t)


def test_energy_is_summed_over_the_parts():
    rng = np.random.default_rng(1)
    delta, peaks = rng.normal(size=(2, 2, 300)), no_peaks(2, 300)
    peaks[0, 150] = True
    codes, expected = parts_of_beats(peaks, FS), dict.fromkeys(PARTS, 0.0)
    for record in range(2):
        for t in range(300):
            expected[PARTS[codes[record, t]]] += (delta[record, :, t] ** 2).sum() / (
                delta**2
            ).sum()
    assert shares(profile(delta, FS, LEADS, peaks), "part") == pytest.approx(expected)


def test_peaks_of_simulated_ecgs_are_found_and_centres_are_taken_as_given():
    records = load(patients=48, records_per_patient=1)
    peaks = r_peaks(records.signals, records.fs, records.leads)
    assert (peaks.sum(1) >= 6).all()
    lead = np.abs(records.signals[:, 1])
    ratios = [
        signal[row].mean() / signal.mean()
        for signal, row in zip(lead, peaks, strict=True)
    ]
    assert np.min(ratios) > 1.5
    assert np.median(ratios) > 3
    assert np.argwhere(
        r_peaks(records.signals, records.fs, records.leads, 7)
    ).tolist() == [[row, 7] for row in range(len(records))]


def test_a_record_without_beats_is_counted_as_such():
    peaks = r_peaks(np.zeros((1, 1, 500)), FS, ("II",))
    rows = profile(np.ones((1, 1, 500)), FS, ("II",), peaks)
    assert shares(rows, "part") == {"no R peak": 1.0}


def test_peaks_found_at_preparation_are_those_found_at_the_attack(tmp_path):
    records = load(patients=48, records_per_patient=1)
    save_records(with_r_peaks(records), tmp_path)
    prepared = load_records(tmp_path)
    tests = [
        (r.table["split"].eq("test") & r.table["attacked"]).to_numpy()
        for r in (records, prepared)
    ]
    assert prepared.table["r_peaks"].isna().tolist() == (~tests[1]).tolist()
    now, then = (
        Profiler(r.select(t), most=5)
        for r, t in zip((records, prepared), tests, strict=True)
    )
    assert now.peaks.sum() > 25
    np.testing.assert_array_equal(now.peaks, then.peaks)


def test_no_perturbation_has_no_profile():
    assert profile(np.zeros((2, 2, 50)), FS, LEADS, no_peaks(2, 50)) == []


def test_the_profiler_looks_at_some_records_of_every_class():
    records = dataclasses.replace(
        toy_records(train=8), card={"window_samples": [48, 48]}
    )
    delta = torch.zeros(40, 2, 96)
    profiler = Profiler(records, most=9)
    delta[profiler.chosen[0], 0, 48] = 1.0
    delta[profiler.chosen[1], 1, 0] = 1.0
    delta[np.setdiff1d(np.arange(40), profiler.chosen)] = 5.0  # not looked at
    profiler("all", torch.arange(40), delta)
    some = torch.tensor(profiler.chosen[[1, 4]])
    profiler("some", some, delta[some])
    assert sorted(np.bincount(records.labels[profiler.chosen])) == [3, 3, 3]
    rows = {
        attack: [r for r in profiler.rows if r["attack"] == attack]
        for attack in ("all", "some")
    }
    assert shares(rows["all"], "lead") == pytest.approx({"I": 0.5, "II": 0.5})
    assert shares(rows["all"], "part")["QRS"] == pytest.approx(0.5)
    assert shares(rows["some"], "part")["rest"] == pytest.approx(1)
