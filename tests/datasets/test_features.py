"""Engineered features against planted waves and closed forms, and their models."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from torch import Generator
from toy import toy_records

from ecgstudy.attacks.api import Budget, Problem
from ecgstudy.attacks.objectives import auroc_targets, signed_scores
from ecgstudy.attacks.square import square
from ecgstudy.datasets.features import extract
from ecgstudy.errors import StudyError
from ecgstudy.models.feature_models import MODELS, FeatureVictim, fit_features_model

FS = 250


def ecg(peaks_s, seconds, fs=FS, noise=0.002, seed=0):
    """One lead: P of 0.15 mV 160 ms before each R of 1 mV, T of 0.3 mV 280 ms after."""
    time = np.arange(round(seconds * fs)) / fs
    waves = (
        (0.15, -0.16, 0.02),
        (1.0, 0.0, 0.012),
        (-0.2, 0.03, 0.01),
        (0.3, 0.28, 0.04),
    )
    lead = sum(
        a * np.exp(-(((time - peak - shift) / width) ** 2) / 2)
        for peak in peaks_s
        for a, shift, width in waves
    )
    return lead + noise * np.random.default_rng(seed).normal(size=len(time))


def strip(rr_s, leads=(1.0,)):
    peaks = 0.5 + np.concatenate([[0], np.cumsum(rr_s)])
    lead = ecg(peaks, peaks[-1] + 0.6)
    return np.array(leads)[None, :, None] * lead


def named(signals, fs=FS, leads=("II",), **options):
    """Feature name → values (records,)."""
    values, names = extract(np.asarray(signals, np.float32), fs, leads, **options)
    assert values.dtype == np.float32
    assert values.shape == (len(signals), len(names))
    assert len(set(names)) == len(names)
    return dict(zip(names, values.T, strict=True))


# ---- any length ----------------------------------------------------------------------


def test_amplitudes_are_those_of_numpy_and_scipy():
    signals = np.random.default_rng(0).gamma(2, size=(5, 2, 300)).astype(np.float32)
    found = named(signals, leads=("II", "V1"))
    for lead, name in enumerate(("II", "V1")):
        x = signals[:, lead].astype(float)
        expected = {
            "min": x.min(1),
            "max": x.max(1),
            "std": x.std(1),
            "skewness": stats.skew(x, axis=1),
            "kurtosis": stats.kurtosis(x, axis=1, fisher=False),
            "q95": np.quantile(x, 0.95, axis=1),
        }
        for feature, values in expected.items():
            np.testing.assert_allclose(found[f"{feature} {name}"], values, rtol=1e-4)


def test_a_sine_has_its_energy_in_its_band():
    time = np.arange(500) / FS
    found = named(0.4 * np.sin(2 * np.pi * 10 * time)[None, None])
    assert np.exp(found["8-15 Hz II"][0]) == pytest.approx(0.4**2 / 4, rel=1e-4)
    assert np.exp(found["15-25 Hz II"][0]) < 1e-9
    assert found["zero crossings II"][0] == pytest.approx(20, abs=1)
    assert found["line length II"][0] == pytest.approx(4 * 0.4 * 10, rel=0.02)


def test_bands_above_the_nyquist_frequency_are_left_out():
    signals = np.random.default_rng(0).normal(size=(2, 1, 120))
    assert "15-25 Hz II" in named(signals, fs=50)
    assert "25-40 Hz II" not in named(signals, fs=50)


def test_wavelet_shares_add_up_and_slow_waves_are_in_the_first():
    time = np.arange(600) / FS
    signals = np.stack([np.sin(2 * np.pi * f * time) for f in (1.0, 100.0)])[:, None]
    found = named(signals)
    shares = np.exp(
        [values for name, values in found.items() if name.startswith("wavelet")]
    )
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-5)
    assert shares[:2, 0].sum() > 0.9
    assert shares[-1, 1] > 0.9


@pytest.mark.parametrize("seconds", [1.8, 8])
def test_a_record_has_the_same_features_in_any_company(seconds):
    rng = np.random.default_rng(3)
    signals = np.stack(
        [
            ecg(np.arange(0.4, seconds, rr), seconds, noise=0.02)
            for rr in (0.5, 0.8, 1.1)
        ]
    )
    signals = (signals[:, None] + 0.01 * rng.normal(size=(3, 2, 1))).astype(np.float32)
    together, _ = extract(signals, FS, ("V1", "II"))
    for i in range(3):
        np.testing.assert_array_equal(
            extract(signals[[i]], FS, ("V1", "II"))[0][0], together[i]
        )


# ---- strips --------------------------------------------------------------------------


def test_rhythm_is_that_of_the_planted_beats():
    rr = np.array([0.8, 0.9, 0.7, 0.88, 0.8, 0.8, 0.72, 1.0, 0.8])
    found = {name: values[0] for name, values in named(strip(rr)).items()}
    assert found["beats"] == 10
    expected = {
        "RR mean": rr.mean(),
        "RR min": 0.7,
        "RR max": 1.0,
        "SDNN": rr.std(),
        "RMSSD": np.sqrt(np.mean(np.diff(rr) ** 2)),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.006), name
    assert found["pNN50"] == pytest.approx(np.mean(np.abs(np.diff(rr)) > 0.05))
    assert found["QTc"] == pytest.approx(found["QT"] / np.sqrt(rr.mean()), rel=0.01)


def test_waves_are_measured_in_every_lead_at_the_times_of_lead_two():
    found = named(
        strip(np.full(9, 0.8), leads=(0.5, 1.0, -2.0)), leads=("I", "II", "aVR")
    )
    size = {
        name: [found[f"{name} {lead}"][0] for lead in ("I", "II", "aVR")]
        for name in ("P wave", "T wave")
    }
    assert size["P wave"] == pytest.approx([0.075, 0.15, -0.3], rel=0.15)
    assert size["T wave"] == pytest.approx([0.15, 0.3, -0.6], rel=0.15)
    assert found["R wave I"][0] == pytest.approx(0.5, rel=0.1)
    assert found["S wave aVR"][0] == pytest.approx(-2, rel=0.1)
    assert found["PR"][0] == pytest.approx(0.16, abs=0.06)
    assert 0.03 < found["QRS"][0] < 0.12
    assert found["QT"][0] == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("kind", ["flat", "noise", "step", "one beat", "huge"])
def test_a_strip_without_beats_has_nan_and_no_exception(kind):
    rng = np.random.default_rng(0)
    bad = {
        "flat": np.zeros(2000),
        "noise": rng.normal(size=2000),
        "step": np.r_[np.zeros(1000), np.ones(1000)],
        "one beat": ecg([4.0], 8, noise=0),
        "huge": 1e6 * rng.normal(size=2000),
    }[kind]
    good = strip(np.full(9, 0.8))[0, 0, :2000]
    values, names = extract(
        np.stack([bad, good])[:, None].astype(np.float32), FS, ("II",)
    )
    assert not np.isinf(values).any()
    assert np.isfinite(values[1]).all()
    if kind in ("flat", "step", "one beat"):
        assert np.isnan(
            values[
                0, [names.index("RR mean"), names.index("SDNN"), names.index("pNN50")]
            ]
        ).all()


# ---- single beats --------------------------------------------------------------------


@pytest.mark.parametrize("fs", [100, 360])
def test_rr_intervals_of_a_window_are_those_of_the_neighbouring_beats(fs):
    neighbours = ((-0.6, 0.8), (-0.35, 0.7), (-0.8, 0.5))
    signals = np.stack([ecg([0.9 + a, 0.9, 0.9 + b], 1.8, fs) for a, b in neighbours])[
        :, None
    ]
    found = named(signals, fs)
    np.testing.assert_allclose(
        found["RR before"], [-a for a, _ in neighbours], atol=0.03
    )
    np.testing.assert_allclose(found["RR after"], [b for _, b in neighbours], atol=0.03)
    np.testing.assert_allclose(
        found["RR ratio"], found["RR before"] / found["RR after"], rtol=1e-5
    )


def test_without_neighbours_the_intervals_end_with_the_window():
    found = named(ecg([0.9], 1.8)[None, None])
    assert found["RR before"][0] == pytest.approx(0.9, abs=0.01)
    assert found["RR after"][0] == pytest.approx(0.9, abs=0.01)


def test_likeness_tells_a_beat_from_another_shape():
    same = ecg([0.3, 0.9, 1.5], 1.8, noise=0)
    turned = same.copy()
    turned[: round(0.6 * FS)] *= -1
    found = named(np.stack([same, turned])[:, None])
    assert found["likeness before II"][0] > 0.95
    assert found["likeness before II"][1] < -0.8
    assert found["likeness after II"].min() > 0.95


def test_the_wider_beat_has_the_wider_qrs_and_the_waves_have_their_sizes():
    time = np.arange(450) / FS - 0.9
    signals = np.stack(
        [np.exp(-((time / width) ** 2) / 2) for width in (0.01, 0.02, 0.04)]
    )[:, None]
    found = named(signals)
    expected = (
        2 * np.sqrt(2 * np.log(2)) * np.array([0.01, 0.02, 0.04])
    )  # of a Gaussian, at half height
    np.testing.assert_allclose(found["QRS width at 50% II"], expected, atol=1.1 / FS)
    whole = named(ecg([0.9], 1.8, noise=0)[None, None])
    assert whole["R wave II"][0] == pytest.approx(1, rel=0.1)
    assert whole["P max II"][0] == pytest.approx(0.15, rel=0.05)
    assert whole["T max II"][0] == pytest.approx(0.3, rel=0.05)


def test_the_centre_may_lie_anywhere_in_the_window():
    lead = ecg([1.0, 1.7, 2.5], 4.0, noise=0)
    middle = named(lead[None, None, round(0.8 * FS) : round(2.6 * FS)])
    early = named(
        lead[None, None, round(1.3 * FS) : round(2.8 * FS)], centre=round(0.4 * FS)
    )
    assert middle["R wave II"] == pytest.approx(early["R wave II"], rel=0.02)
    assert middle["QRS width at 50% II"] == early["QRS width at 50% II"]
    assert early["RR after"][0] == pytest.approx(0.8, abs=0.03)


def test_the_smallest_windows_have_features_too():
    assert np.isfinite(
        named(np.random.default_rng(0).normal(size=(4, 2, 20)), 100, ("I", "II"))[
            "RR ratio"
        ]
    ).all()


# ---- models --------------------------------------------------------------------------


def toy(multilabel):
    records = toy_records(train=200, multilabel=multilabel)
    values, _ = extract(records.signals, records.fs, records.leads)
    return records, values, (records.table["split"] == "train").to_numpy()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("multilabel", [True, False])
def test_every_model_ranks_the_toy_records_and_repeats_with_its_seed(kind, multilabel):
    records, values, train = toy(multilabel)
    values[::5, :4] = np.nan
    labels = records.multi_hot()
    scores = [
        fit_features_model(kind, values[train], labels[train], multilabel, 0).scores(
            values[~train]
        )
        for _ in range(2)
    ]
    assert scores[0].dtype == np.float32
    assert scores[0].shape == (32, 3)
    assert np.isfinite(scores[0]).all()
    assert np.array_equal(*scores)
    assert roc_auc_score(labels[~train], scores[0]) > (0.7 if kind == "tree" else 0.9)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("multilabel", [True, False])
def test_scores_are_the_log_odds_of_the_probabilities(kind, multilabel):
    records, values, train = toy(multilabel)
    model = fit_features_model(
        kind, values[train], records.multi_hot()[train], multilabel, 0
    )
    p = model.pipeline.predict_proba(values)
    if isinstance(p, list):  # trees: one array (records, 2) per label
        p = np.stack([label[:, 1] for label in p], axis=1)
    found = expit(model.scores(values))
    if kind == "lr" and multilabel:
        np.testing.assert_allclose(found, p, atol=1e-5)
    elif kind == "lr":
        np.testing.assert_allclose(found, p, atol=1e-5)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    else:  # leaves are shrunk by two records: by 2 / (leaf + 2) at most
        np.testing.assert_allclose(
            found, p, atol=2 / ((5 if kind == "tree" else 3) + 2)
        )
        assert ((found > 0) & (found < 1)).all()


def test_leaves_are_shrunk_towards_the_share_of_the_class():
    """One feature that splits 150 records into two leaves."""
    values = np.r_[np.zeros(100), np.ones(60)][:, None]
    labels = np.r_[np.zeros(100), np.ones(60)][:, None] == np.array([[0, 1]])
    model = fit_features_model("tree", values, labels, False, 0)
    expected = (100 + 2 * 100 / 160) / 102, 2 * 60 / 160 / 102
    assert expit(model.scores([[0.0]]))[0] == pytest.approx(
        [expected[0], expected[1]], rel=1e-4
    )


def test_two_classes_have_opposite_scores():
    records, values, train = toy(False)
    labels = np.eye(2)[(records.labels == 0).astype(int)]
    for kind in MODELS:
        scores = fit_features_model(
            kind, values[train], labels[train], False, 0
        ).scores(values)
        np.testing.assert_allclose(scores[:, 0], -scores[:, 1], atol=1e-4)
        assert scores[labels[:, 1] == 1, 1].mean() > scores[labels[:, 1] == 0, 1].mean()


@pytest.mark.parametrize(
    ("share", "message"),
    [(0, "no training record has class 'B'"), (1, "every training")],
)
def test_a_class_that_cannot_be_learned_is_named(share, message):
    labels = np.eye(3)[np.arange(30) % 3]
    labels[:, 1] = share
    with pytest.raises(StudyError, match=message):
        fit_features_model(
            "lr", np.ones((30, 2)), labels, True, 0, classes=("A", "B", "C")
        )


def test_an_unknown_model_is_an_error_that_names_those_there_are():
    with pytest.raises(StudyError, match="unknown features model 'svm'; known: lr"):
        fit_features_model("svm", np.ones((4, 1)), np.eye(2)[[0, 1, 0, 1]], False, 0)


@pytest.mark.parametrize("multilabel", [True, False])
def test_a_black_box_attack_finds_its_way_through_the_features(multilabel):
    records, values, train = toy(multilabel)
    model = fit_features_model(
        "forest", values[train], records.multi_hot()[train], multilabel, 0
    )
    victim = FeatureVictim(model, records.fs, records.leads)
    assert victim.multilabel == multilabel
    signals = torch.from_numpy(records.signals[~train])
    scores = victim.scores(signals)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores, model.scores(values[~train]), rtol=1e-5)
    labels = torch.from_numpy(records.multi_hot()[~train].astype(np.float32))
    targets = auroc_targets(labels)
    problem = Problem.of(victim, signals, signed_scores, targets)
    delta = square(problem, Budget(0.1, queries=30), Generator().manual_seed(0))
    gain = signed_scores(victim.scores(signals + delta), targets) - signed_scores(
        scores, targets
    )
    assert (gain >= -1e-6).all()
    assert (gain > 0.05).float().mean() > 0.9
