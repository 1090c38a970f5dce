"""Where a perturbation's energy lies, against sums over single samples and
frequencies."""

import dataclasses

import numpy as np
import pytest
import torch
from toy import toy_records

from ecgstudy.datasets.builtin import load
from ecgstudy.evaluation.energy import (
    PARTS,
    add_r_peaks,
    find_r_peaks,
    locate_in_beats,
    profile_attacks,
    profile_energy,
)
from ecgstudy.evaluation.sample import pick_evenly
from ecgstudy.records import load_records, save_records

FS, LEADS = 100.0, ("I", "II")


def shares(rows, kind, value="share"):
    return {row["name"]: row[value] for row in rows if row["kind"] == kind}


def no_peaks(records):
    return [np.zeros(0, int)] * records


def test_a_sine_lies_in_its_band_and_lead():
    delta = np.zeros((3, 2, 400))
    delta[:, 1] = np.sin(2 * np.pi * 10 * np.arange(400) / FS)
    rows = profile_energy(delta, FS, LEADS, no_peaks(3))
    assert shares(rows, "band")["5–15 Hz"] == pytest.approx(1)
    assert shares(rows, "lead") == pytest.approx({"I": 0, "II": 1})
    assert shares(rows, "part") == {"no R peak": 1.0}


@pytest.mark.parametrize("samples", [400, 401, 648])
def test_a_constant_and_an_alternating_perturbation_lie_at_both_ends(samples):
    """Parseval: at the first and the last frequency of an even length nothing is
    doubled."""
    constant = profile_energy(np.ones((1, 1, samples)), FS, ("II",), no_peaks(1))
    assert shares(constant, "band")["0–0.5 Hz"] == pytest.approx(1)
    both = np.array([[1.0 + 2 * (-1.0) ** np.arange(samples)]])
    found = shares(profile_energy(both, FS, ("II",), no_peaks(1)), "band")
    assert found["≥ 40 Hz"] == pytest.approx(0.8, abs=0.01)


def test_white_noise_uses_every_part_in_proportion_to_its_size():
    rng = np.random.default_rng(0)
    peaks = [np.arange(60, 500, 80)] * 150 + no_peaks(50)
    rows = profile_energy(rng.normal(size=(200, 3, 500)), FS, ("I", "II", "V1"), peaks)
    assert {row["name"] for row in rows if row["kind"] == "part"} == set(PARTS)
    for row in rows:
        assert row["share"] / row["size"] == pytest.approx(1, abs=0.05), row
    for kind in ("band", "lead", "part"):
        for value in ("share", "size"):
            assert sum(shares(rows, kind, value).values()) == pytest.approx(1)
    assert shares(rows, "part", "size")["no R peak"] == pytest.approx(0.25)


def test_parts_of_beats_are_those_of_a_loop_over_samples():
    early = np.array([50, 130, 160, 280])  # the third beat comes early
    peaks = [early, np.array([150]), np.zeros(0, int)]
    found = locate_in_beats(peaks, 300, FS)
    for row, at in enumerate(peaks):
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
    delta, peaks = rng.normal(size=(2, 2, 300)), [np.array([150]), np.zeros(0, int)]
    codes, expected = locate_in_beats(peaks, 300, FS), dict.fromkeys(PARTS, 0.0)
    for record in range(2):
        for t in range(300):
            expected[PARTS[codes[record, t]]] += (delta[record, :, t] ** 2).sum() / (
                delta**2
            ).sum()
    assert shares(profile_energy(delta, FS, LEADS, peaks), "part") == pytest.approx(
        expected
    )


def test_peaks_of_simulated_ecgs_are_found_and_centres_are_taken_as_given():
    records = load(patients=48, records_per_patient=1)
    peaks = find_r_peaks(records)
    assert min(len(found) for found in peaks) >= 6
    lead = np.abs(records.signals[:, 1])
    ratios = [
        signal[found].mean() / signal.mean()
        for signal, found in zip(lead, peaks, strict=True)
    ]
    assert np.min(ratios) > 1.5
    assert np.median(ratios) > 3
    windows = dataclasses.replace(records, card={"window_samples": [7, 20]})
    assert [found.tolist() for found in find_r_peaks(windows)] == [[7]] * len(records)


def test_a_record_without_beats_is_counted_as_such():
    flat = dataclasses.replace(toy_records(), signals=np.zeros((112, 2, 500)))
    (peaks,) = find_r_peaks(flat.select(np.arange(112) == 0))
    rows = profile_energy(np.ones((1, 1, 500)), FS, ("II",), [peaks])
    assert shares(rows, "part") == {"no R peak": 1.0}


def test_peaks_found_at_preparation_are_those_found_at_the_attack(tmp_path):
    records = load(patients=48, records_per_patient=1)
    save_records(add_r_peaks(records), tmp_path)
    prepared = load_records(tmp_path)
    tests = [
        (r.table["split"].eq("test") & r.table["attacked"]).to_numpy()
        for r in (records, prepared)
    ]
    assert prepared.table["r_peaks"].isna().tolist() == (~tests[1]).tolist()
    now = find_r_peaks(records.select(tests[0]))
    then = find_r_peaks(prepared.select(tests[1]))
    assert sum(map(len, now)) > 25
    for one, other in zip(now, then, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_perturbation_has_no_profile():
    assert profile_energy(np.zeros((2, 2, 50)), FS, LEADS, no_peaks(2)) == []


def test_attacks_are_profiled_on_the_records_that_they_attacked():
    records = dataclasses.replace(
        toy_records(train=8), card={"window_samples": [48, 48]}
    )
    delta = torch.zeros(40, 2, 96)
    delta[3, 0, 48] = delta[7, 1, 0] = 1.0
    some = torch.full_like(delta, torch.nan)
    some[7] = delta[7]
    rows = profile_attacks(records, {"all": delta, "some": some})
    rows = {a: [r for r in rows if r["attack"] == a] for a in ("all", "some")}
    assert shares(rows["all"], "lead") == pytest.approx({"I": 0.5, "II": 0.5})
    assert shares(rows["all"], "part")["QRS"] == pytest.approx(0.5)
    assert shares(rows["some"], "part")["rest"] == pytest.approx(1)


def test_of_many_records_some_of_every_class_are_profiled():
    records = dataclasses.replace(
        toy_records(train=800), card={"window_samples": [48, 48]}
    )
    chosen = pick_evenly(torch.tensor(records.multi_hot()), 200)
    assert sorted(np.bincount(records.labels[chosen])) == [66, 67, 67]
    delta = torch.full((832, 2, 96), 5.0)
    delta[chosen] = 0.0
    assert profile_attacks(records, {"others": delta}) == []
