"""Simulated ECGs, measured as a cardiologist or an independent detector would."""

import neurokit2
import numpy as np
import pandas as pd
import pytest
from scipy.signal import butter, find_peaks, sosfiltfilt

from ecgstudy.datasets.builtin import CLASSES, load
from ecgstudy.datasets.leads import STANDARD
from ecgstudy.datasets.prepare import prepare
from ecgstudy.errors import StudyError
from ecgstudy.params import DatasetOptions
from ecgstudy.records import EcgRecords, check_records

FS = 250
BEFORE, AFTER = round(0.3 * FS), round(0.45 * FS)


@pytest.fixture(scope="module")
def records() -> EcgRecords:
    return load(rng_seed=1, patients=90, records_per_patient=3, fs=FS)


@pytest.fixture(scope="module")
def beats(records) -> np.ndarray:
    """Median beats around the R wave, PR segment at 0, (records, leads, samples)."""
    return np.stack([median_beat(signals) for signals in records.signals])


def r_peaks(signals):
    """R samples from all leads together: peaks of the summed QRS-band power."""
    band = sosfiltfilt(butter(2, (5, 30), "bandpass", fs=FS, output="sos"), signals)
    power = np.sqrt((band**2).sum(0))
    return find_peaks(
        power, height=0.4 * np.quantile(power, 0.985), distance=round(0.3 * FS)
    )[0]


def median_beat(signals):
    peaks = [r for r in r_peaks(signals) if BEFORE <= r < signals.shape[1] - AFTER]
    beat = np.median([signals[:, r - BEFORE : r + AFTER] for r in peaks], axis=0)
    return beat - beat[:, at(-0.085) : at(-0.065)].mean(1, keepdims=True)


def at(seconds):
    """Sample of a median beat at a time from the R wave."""
    return BEFORE + round(seconds * FS)


def is_class(records, name):
    return records.labels == CLASSES.index(name)


def lead(beats, name):
    return beats[:, STANDARD.index(name)]


def qrs_width(beat):
    """Seconds in which the smoothed beat moves at 15 % of its top speed or faster."""
    smooth = sosfiltfilt(butter(2, 40, fs=FS, output="sos"), beat)[
        :, at(-0.12) : at(0.15)
    ]
    speed = np.sqrt((np.diff(smooth, axis=1) ** 2).sum(0))
    return np.ptp(np.flatnonzero(speed > 0.15 * speed.max())) / FS


def test_records_are_fit_for_the_study(records):
    check_records(records)
    assert (records.name, records.leads) == ("builtin", STANDARD)
    assert records.classes == CLASSES
    assert records.signals.shape == (270, 12, 2500)
    assert records.labels.shape == (270,)
    assert records.card["synthetic"] is True
    assert records.card["adc_mv"] is None
    assert list(records.card["counts"]) == list(CLASSES)
    assert list(records.card["counts"].values()) == [
        int(n) for n in records.multi_hot().sum(0)
    ]


@pytest.mark.parametrize(
    ("name", "of_i_and_ii"),
    [("III", (-1, 1)), ("aVR", (-0.5, -0.5)), ("aVL", (1, -0.5)), ("aVF", (-0.5, 1))],
)
def test_limb_leads_follow_einthoven_and_goldberger(records, name, of_i_and_ii):
    expected = (
        of_i_and_ii[0] * records.signals[:, 0] + of_i_and_ii[1] * records.signals[:, 1]
    )
    np.testing.assert_allclose(
        records.signals[:, STANDARD.index(name)], expected, atol=3e-6
    )


def test_equal_seeds_give_identical_records_and_others_do_not():
    first, again, other = (
        load(rng_seed=seed, patients=27, records_per_patient=1) for seed in (5, 5, 6)
    )
    assert first.signals.tobytes() == again.signals.tobytes()
    pd.testing.assert_frame_equal(first.table, again.table)
    assert not np.array_equal(first.signals, other.signals)


def test_a_larger_population_contains_the_smaller_one():
    few, many = (load(patients=n, records_per_patient=1, seconds=5) for n in (27, 36))
    np.testing.assert_array_equal(many.signals[:27], few.signals)
    np.testing.assert_array_equal(many.labels[:27], few.labels)


def test_every_patient_is_in_one_split_and_every_class_in_each(records):
    assert records.table.groupby("patient")["split"].nunique().eq(1).all()
    shares = records.table["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.6, abs=0.05)
    assert shares["test"] == pytest.approx(0.25, abs=0.05)
    for name in ("train", "validation", "test"):
        assert set(records.split(name).labels) == set(range(len(CLASSES)))
    assert (records.table["attacked"] == (records.table["split"] != "train")).all()


def test_the_smallest_population_is_fit_for_the_study():
    smallest = load(patients=27, records_per_patient=1, fs=50, seconds=5)
    assert check_records(smallest).signals.shape == (27, 12, 250)
    assert smallest.table.groupby("split").size().to_dict() == {
        "test": 9,
        "train": 10,
        "validation": 8,
    }


def test_patients_have_one_disease_or_sinus_rhythm(records):
    of_patient = pd.Series(records.labels).groupby(records.table["patient"]).unique()
    assert all(len(set(labels) - {0}) <= 1 for labels in of_patient)
    assert any({0} < set(labels) for labels in of_patient)


def test_some_ages_are_missing_and_the_others_adult_and_informative(records):
    patients = records.table.assign(label=records.labels).groupby("patient")
    age = patients["age"].first()
    assert 0 < age.isna().mean() < 0.1
    assert age.min() >= 25
    assert age.max() <= 90
    assert age.std() > 10
    disease = patients["label"].max()
    old, young = (
        ("atrial fibrillation", "left bundle branch block"),
        ("sinus rhythm", "sinus tachycardia"),
    )
    old, young = (
        disease.isin([CLASSES.index(c) for c in names]) for names in (old, young)
    )
    assert age[old].mean() > age[young].mean() + 5
    assert set(records.table["sex"]) == {"female", "male"}


def test_neurokit_finds_the_rates_and_rhythms_in_lead_ii(records):
    def rhythm(name):
        rates, variations = [], []
        for signals in records.signals[is_class(records, name)]:
            clean = neurokit2.ecg_clean(signals[1], sampling_rate=FS)
            found = neurokit2.ecg_peaks(clean, sampling_rate=FS)[1]["ECG_R_Peaks"]
            rr = np.diff(found) / FS
            rates.append(60 / rr.mean())
            variations.append(rr.std() / rr.mean())
        return np.array(rates), np.median(variations)

    sinus, sinus_variation = rhythm("sinus rhythm")
    tachycardia, tachycardia_variation = rhythm("sinus tachycardia")
    fibrillation, fibrillation_variation = rhythm("atrial fibrillation")
    assert np.median(sinus) == pytest.approx(72, abs=5)
    assert np.median(tachycardia) == pytest.approx(113, abs=7)
    assert (tachycardia > 95).mean() > 0.9
    assert (sinus < 103).mean() > 0.9
    assert 75 < np.median(fibrillation) < 110
    assert max(sinus_variation, tachycardia_variation) < 0.06
    assert fibrillation_variation > 0.1


def test_rate_follows_breathing_more_in_the_young():
    records = load(patients=120, records_per_patient=1, fs=FS)
    regular = (
        is_class(records, "sinus rhythm") & records.table["age"].notna().to_numpy()
    )
    rr = [np.diff(r_peaks(signals)) for signals in records.signals[regular]]
    variation = pd.Series([np.median(np.abs(r / np.median(r) - 1)) for r in rr])
    age = records.table["age"][regular].reset_index(drop=True)
    assert variation.corr(age, method="spearman") < -0.3


def test_ectopic_beats_are_early_and_followed_by_a_compensatory_pause(records):
    def share(name):
        return np.mean(
            [
                has_pause(np.diff(r_peaks(s)))
                for s in records.signals[is_class(records, name)]
            ]
        )

    def has_pause(rr):
        early, late = rr[:-1] / np.quantile(rr, 0.5), rr[1:] / np.quantile(rr, 0.5)
        return bool(
            np.any((early < 0.82) & (late > 1.15) & (np.abs(early + late - 2) < 0.12))
        )

    assert share("ventricular ectopy") > 0.6
    assert share("sinus rhythm") < 0.05


def test_blocks_widen_the_qrs(records, beats):
    def widths(name):
        return np.array([qrs_width(beat) for beat in beats[is_class(records, name)]])

    normal = np.median(widths("sinus rhythm"))
    assert 0.06 < normal < 0.115
    for block in ("left bundle branch block", "right bundle branch block"):
        # Partial blocks lower the median; complete ones are wide.
        assert np.median(widths(block)) > normal + 0.01
        assert np.quantile(widths(block), 0.9) > 0.115


def test_blocks_point_to_their_side_at_the_end_of_the_qrs(records, beats):
    def late(name, of_lead):
        return np.median(
            lead(beats[is_class(records, name)], of_lead)[:, at(0.03) : at(0.06)].mean(
                1
            )
        )

    assert late("right bundle branch block", "V1") > late("sinus rhythm", "V1") + 0.1
    assert late("right bundle branch block", "V6") < late("sinus rhythm", "V6") - 0.05
    assert late("left bundle branch block", "V1") < late("sinus rhythm", "V1") - 0.1
    assert late("left bundle branch block", "V6") > late("sinus rhythm", "V6") + 0.1


@pytest.mark.parametrize("name", ["V2", "V3", "V4"])
def test_anterior_st_elevation_lifts_the_st_segment(records, beats, name):
    level = lead(beats, name)[:, at(0.09) : at(0.13)].mean(1)
    elevated, normal = (
        level[is_class(records, c)] for c in ("anterior ST elevation", "sinus rhythm")
    )
    assert np.median(elevated) > np.median(normal) + 0.1
    assert np.median(normal) == pytest.approx(0.05, abs=0.06)


def test_inferior_t_waves_are_inverted_where_the_class_says_so(records, beats):
    def t_wave(name, of_lead):
        return np.median(
            lead(beats[is_class(records, name)], of_lead)[:, at(0.2) : at(0.3)].mean(1)
        )

    for inferior in ("II", "III", "aVF"):
        normal, inverted = (
            t_wave("sinus rhythm", inferior),
            t_wave("inferior T inversion", inferior),
        )
        assert normal > 0.05
        assert inverted < (
            normal - 0.1 if inferior == "II" else 0
        )  # milder in II than in III
    assert t_wave("inferior T inversion", "V4") > 0.1


def test_sinus_amplitudes_are_physiological(records, beats):
    sinus = beats[is_class(records, "sinus rhythm")]
    qrs = sinus[:, :, at(-0.06) : at(0.07)]
    swing = np.ptp(qrs, axis=2)
    for name in ("V2", "V3", "V4", "V5"):
        assert np.quantile(swing[:, STANDARD.index(name)], 0.05) > 0.5
        assert 0.9 < np.median(swing[:, STANDARD.index(name)]) < 2.5
    p_wave = lead(sinus, "II")[:, at(-0.24) : at(-0.08)].max(1)
    assert 0.05 < np.median(p_wave) < 0.2
    t_wave = lead(sinus, "V4")[:, at(0.15) : at(0.4)].max(1)
    assert 0.1 < np.median(t_wave) < 0.6
    assert np.median(lead(qrs, "aVR").sum(1)) < 0
    r_wave = [np.median(lead(qrs, name).max(1)) for name in ("V1", "V2", "V3", "V4")]
    assert r_wave == sorted(r_wave)
    assert r_wave[0] < 0.5 < r_wave[-1]


def test_atrial_fibrillation_has_no_p_wave(records):
    def p_wave(name):
        beats = np.stack(
            [
                median_beat(signals)
                for signals in records.signals[is_class(records, name)]
            ]
        )
        return np.median(lead(beats, "II")[:, at(-0.2) : at(-0.1)].mean(1))

    assert p_wave("sinus rhythm") > 0.03
    assert abs(p_wave("atrial fibrillation")) < 0.02


def test_beats_of_one_patient_are_more_alike_than_those_of_two(records, beats):
    rows = np.flatnonzero(is_class(records, "sinus rhythm"))
    # Every lead at its own scale: the anatomy counts, not the QRS of the largest.
    shape = beats[rows] / np.abs(beats[rows]).max(2, keepdims=True)
    alike = np.corrcoef(shape.reshape(len(rows), -1))
    patient = records.table["patient"].to_numpy()[rows]
    same, other = patient[:, None] == patient, patient[:, None] != patient
    np.fill_diagonal(same, False)
    assert np.median(alike[same]) > np.quantile(alike[other], 0.9)
    assert np.median(alike[other]) < 0.85


def test_records_of_one_patient_differ_in_rate_and_noise(records):
    for _, rows in records.table.groupby("patient").indices.items():
        assert np.abs(np.corrcoef(records.signals[rows, 1])[0, 1]) < 0.95


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("patients", 26),
        ("records_per_patient", 0),
        ("fs", 10.0),
        ("seconds", 4),
        ("rng_seed", -1),
    ],
)
def test_parameters_out_of_range_are_named(option, value):
    options = DatasetOptions(headline_epsilon_mv=0.1, options={option: value})
    with pytest.raises(StudyError, match=rf"options\.{option}: .*\(found {value}\)"):
        prepare("builtin", options, "unused")
