"""Corruptions against lead definitions written out by hand, spectra by SciPy, and files
of a tiny run."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, periodogram, sosfilt
from sklearn.metrics import roc_auc_score
from test_tables import attacked, make_study, sample
from torch import Generator
from toy import toy_records, toy_run

from ecgstudy.analysis import tables
from ecgstudy.analysis.scores import read_scores
from ecgstudy.attacks.api import Victim
from ecgstudy.attacks.corruptions import (
    CORRUPTIONS,
    RMS_MV,
    SEVERITIES,
    SNR_DB,
    Recording,
    explain_skip,
)
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.evaluation.sample import select_attacked
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.pretraining.loop import pretrain
from ecgstudy.study import AttackOptions, Paths, Study, derived_seed

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
TWELVE = Recording(500.0, LEADS)
ONE = Recording(360.0, ("MLII",), 60.0)
ADDITIVE = ("baseline-wander", "muscle", "electrode-motion", "powerline")
SERVED = {
    "RA": {*LEADS} - {"III"},
    "LA": {*LEADS} - {"II"},
    "LL": {*LEADS} - {"I"},
    **{f"V{k}": {f"V{k}"} for k in range(1, 7)},
}
"""The leads that each electrode contributes to."""


def seeded(seed=0):
    return Generator().manual_seed(seed)


def potentials(records=6, samples=300, seed=1):
    """Potentials at the nine electrodes, (records, samples) each, in mV."""
    names = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")
    drawn = torch.randn(
        9, records, samples, generator=seeded(seed), dtype=torch.float64
    )
    return dict(zip(names, drawn, strict=True))


def leads_of(e):
    """The twelve leads as text books define them."""
    terminal = (e["RA"] + e["LA"] + e["LL"]) / 3
    limb = [e["LA"] - e["RA"], e["LL"] - e["RA"], e["LL"] - e["LA"]]
    augmented = [
        e["RA"] - (e["LA"] + e["LL"]) / 2,
        e["LA"] - (e["RA"] + e["LL"]) / 2,
        e["LL"] - (e["RA"] + e["LA"]) / 2,
    ]
    return torch.stack(
        [*limb, *augmented, *(e[f"V{k}"] - terminal for k in range(1, 7))], 1
    )


def changed(name, severity, recording=TWELVE, seconds=4.0, records=6, seed=0):
    """What an additive corruption adds, (records, leads, samples) as numpy."""
    flat = torch.zeros(
        records,
        len(recording.leads),
        round(seconds * recording.fs),
        dtype=torch.float64,
    )
    return CORRUPTIONS[name](flat, recording, severity, seeded(seed)).numpy()


def rms(x, axis=None):
    return np.sqrt(np.mean(np.square(x), axis=axis))


# ---- what all have in common ---------------------------------------------------------


@pytest.mark.parametrize("recording", [TWELVE, ONE])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_zero_is_the_clean_ecg(name, recording):
    x = torch.randn(3, len(recording.leads), 500, generator=seeded(2))
    assert torch.equal(CORRUPTIONS[name](x, recording, 0, seeded()), x)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_generator_decides_everything_and_the_ecgs_stay(name):
    x = torch.randn(40, 12, 500, generator=seeded(2))
    before, state = x.clone(), torch.get_rng_state()
    once = CORRUPTIONS[name](x, TWELVE, 1, seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)
    torch.manual_seed(9)
    assert torch.equal(CORRUPTIONS[name](x, TWELVE, 1, seeded(3)), once)
    assert not torch.equal(CORRUPTIONS[name](x, TWELVE, 1, seeded(4)), once)
    assert not torch.equal(once, x)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(CORRUPTIONS)),
    leads=st.sets(st.sampled_from([*LEADS, "MLII", "ECG"]), min_size=1),
    fs=st.sampled_from([50.0, 100.0, 257.0, 500.0]),
    samples=st.integers(40, 400),
    severity=st.sampled_from(SEVERITIES),
    mains=st.sampled_from([50.0, 60.0]),
)
def test_any_corruption_that_applies_is_finite_and_keeps_shape(
    name, leads, fs, samples, severity, mains
):
    recording = Recording(fs, tuple(leads), mains)
    x = torch.randn(3, len(leads), samples, generator=seeded(samples))
    if explain_skip(name, severity, recording) is None:
        y = CORRUPTIONS[name](x, recording, severity, seeded())
        assert y.isfinite().all()
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
    else:
        assert name in ("muscle", "powerline", "lead-swap")


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", sorted({*CORRUPTIONS} - {"lead-loss"}))
def test_the_relations_between_leads_survive(name, severity):
    y = CORRUPTIONS[name](leads_of(potentials()), TWELVE, severity, seeded())
    one, two, three, right, left, foot = y[:, :6].unbind(1)
    torch.testing.assert_close(one + three, two)
    torch.testing.assert_close(right, -(one + two) / 2)
    torch.testing.assert_close(left, (one - three) / 2)
    torch.testing.assert_close(right + left + foot, torch.zeros_like(one))


def test_the_severities_are_signal_to_noise_ratios_of_a_one_millivolt_sine():
    sine = np.sin(np.linspace(0, 20 * np.pi, 10_000, endpoint=False)) / 2
    found = [10 * np.log10(np.var(sine) / level**2) for level in RMS_MV[1:]]
    np.testing.assert_allclose(found, SNR_DB, atol=1e-6)


@pytest.mark.parametrize("name", ADDITIVE)
def test_more_of_the_same_disturbance_comes_with_severity(name):
    first = changed(name, 1)
    for severity in SEVERITIES[1:]:
        np.testing.assert_allclose(
            changed(name, severity), first * 2 ** (severity - 1), rtol=0.02, atol=1e-6
        )


@pytest.mark.parametrize("name", ["baseline-wander", "muscle", "powerline"])
def test_noise_has_the_stated_rms_in_bipolar_leads_and_less_in_chest_leads(name):
    noise = changed(
        name, 3, dataclasses.replace(TWELVE, fs=125.0), seconds=8.0, records=400
    )
    found = rms(noise, (0, 2))
    np.testing.assert_allclose(found[:3], RMS_MV[3], rtol=0.1)
    np.testing.assert_allclose(
        found[6:], RMS_MV[3] * np.sqrt((1 + 3 / 9) / 2), rtol=0.1
    )


# ---- spectra -------------------------------------------------------------------------


def shares(name, fs, edges_hz, mains_hz=50.0):
    """Share of the added power in each band, over long records."""
    noise = changed(
        name, 5, Recording(fs, ("I", "V1"), mains_hz), seconds=100.0, records=3
    )
    rates, power = periodogram(noise, fs)
    total = power.sum((0, 1))
    return [
        total[(rates >= low) & (rates < high)].sum() / total.sum()
        for low, high in edges_hz
    ]


def test_baseline_wander_is_slower_than_half_a_hertz():
    slow, fast = shares("baseline-wander", 100.0, [(0, 0.52), (0.52, 51)])
    assert slow > 0.98
    assert fast < 0.02


@pytest.mark.parametrize(("fs", "top"), [(100.0, 50.0), (500.0, 150.0)])
def test_muscle_artefact_fills_its_band_and_nothing_else(fs, top):
    (inside,) = shares("muscle", fs, [(19.99, top + 0.01)])
    assert inside > 1 - 1e-9
    width = (top - 20) / 3
    for third in shares(
        "muscle", fs, [(20 + i * width, 20 + (i + 1) * width) for i in range(3)]
    ):
        assert third == pytest.approx(1 / 3, abs=0.08)


def test_muscle_artefact_comes_in_bursts():
    """Power in windows of 0.1 s varies far more than that of even noise of the same
    band."""

    def unevenness(x):
        power = np.square(x[: len(x) // 50 * 50]).reshape(-1, 50).mean(1)
        return power.std() / power.mean()

    band = butter(4, [20, 150], "bandpass", fs=500, output="sos")
    even = sosfilt(band, np.random.default_rng(0).normal(size=10_000))
    bursts = changed("muscle", 5, seconds=20.0, records=1)[0, 0]
    assert unevenness(bursts) > 1.5 * unevenness(even)


@pytest.mark.parametrize(
    ("fs", "mains", "kept"), [(500, 50, (1, 3, 5)), (360, 60, (1, 3)), (200, 60, (1,))]
)
def test_powerline_hum_is_at_the_mains_and_the_odd_harmonics_that_fit(fs, mains, kept):
    bands = [(m * mains * 0.995, m * mains * 1.005 + 0.1) for m in kept]
    found = shares("powerline", float(fs), bands, float(mains))
    assert sum(found) > 0.97
    assert found[0] > 0.85
    assert found == sorted(found, reverse=True)


def test_hum_at_half_the_sampling_rate_alternates_and_above_it_is_said_not_to_fit():
    (top,) = shares("powerline", 100.0, [(49.5, 50.01)])
    assert top > 0.97
    found = changed(
        "powerline", 5, Recording(100.0, ("I",)), seconds=100.0, records=300
    )
    assert rms(found) == pytest.approx(RMS_MV[5], rel=0.1)
    assert explain_skip("powerline", 1, Recording(100.0, ("I",), 50.0)) is None
    assert explain_skip("powerline", 1, Recording(100.0, ("I",), 60.0)) == (
        "60 Hz mains is above half of 100 Hz sampling"
    )


# ---- electrodes ----------------------------------------------------------------------


def test_motion_of_an_electrode_is_seen_in_all_leads_it_serves_and_no_other():
    silent = {name: torch.zeros(1, 1, dtype=torch.float64) for name in potentials()}
    columns = {
        name: leads_of(silent | {name: silent[name] + 1}).flatten().numpy()
        for name in silent
    }
    found, moved = changed("electrode-motion", 4, records=60, seconds=2), set()
    for record in found:
        errors = {}
        for name, column in columns.items():
            motion = column @ record / (column @ column)
            errors[name] = np.abs(record - np.outer(column, motion)).max()
            if errors[name] < 1e-9:
                assert rms(motion) == pytest.approx(RMS_MV[4])
                seen = {
                    lead
                    for lead, row in zip(LEADS, record, strict=True)
                    if np.abs(row).max() > 0
                }
                assert seen == SERVED[name]
        assert sorted(errors.values())[0] < 1e-9 < 1e-3 < sorted(errors.values())[1]
        moved.add(min(errors, key=errors.get))
    assert moved == set(columns)


def test_a_step_of_motion_returns_exponentially():
    """Two seconds hold one step: nothing before it, then a straight line in the
    logarithm."""
    for record in changed("electrode-motion", 5, ONE, seconds=2.0, records=20)[:, 0]:
        start = np.flatnonzero(record)[0]
        assert start < 0.8 * len(record)
        after = np.log(np.abs(record[start:]))
        rate = np.diff(after) * ONE.fs
        assert np.ptp(rate) < 1e-6
        assert -10.01 < rate[0] < -0.99
        assert len(np.unique(np.sign(record[start:]))) == 1


def test_a_lead_of_unknown_electrodes_is_disturbed_too():
    for name in ADDITIVE:
        found = rms(changed(name, 3, Recording(250.0, ("ECG",)), records=300))
        assert found == pytest.approx(RMS_MV[3], rel=0.12)


# ---- loss ----------------------------------------------------------------------------


def lost_leads(severity, records=200, recording=TWELVE, seed=0):
    x = torch.randn(records, len(recording.leads), 50, generator=seeded(5))
    y = CORRUPTIONS["lead-loss"](x, recording, severity, seeded(seed))
    lost = (y == 0).all(2)
    assert torch.equal(y[~lost], x[~lost])
    return [
        {lead for lead, gone in zip(recording.leads, row, strict=True) if gone}
        for row in lost.tolist()
    ]


def test_a_lost_electrode_takes_exactly_its_leads():
    assert {frozenset(lost) for lost in lost_leads(1)} == {
        frozenset(leads) for leads in SERVED.values()
    }


def test_more_electrodes_are_lost_with_severity_and_some_lead_is_always_left():
    before = lost_leads(1)
    for severity in SEVERITIES[1:]:
        after = lost_leads(severity)
        assert all(a <= b < {*LEADS} for a, b in zip(before, after, strict=True))
        chest_only = [b for b in after if not b & {*LEADS[:6]}]
        assert {len(b) for b in chest_only} == {severity}
        assert sum(map(len, after)) > sum(map(len, before))
        before = after


def test_of_two_limb_leads_the_electrode_of_both_stays_on():
    lost = lost_leads(5, recording=Recording(100.0, ("I", "II")))
    assert {frozenset(each) for each in lost} == {frozenset({"I"}), frozenset({"II"})}


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_single_lead_loses_a_growing_stretch(severity):
    x = torch.randn(50, 1, 648, generator=seeded(5))
    y = CORRUPTIONS["lead-loss"](x, ONE, severity, seeded())
    starts = set()
    for before, after in zip(x[:, 0], y[:, 0], strict=True):
        gone = torch.nonzero(after == 0).flatten()
        assert torch.equal(gone, torch.arange(gone[0], gone[-1] + 1))
        assert abs(len(gone) - severity / 10 * 648) <= 1
        assert torch.equal(after[after != 0], before[after != 0])
        starts.add(int(gone[0]))
    assert len(starts) > 30


# ---- interchange ---------------------------------------------------------------------

PAIRS = {
    2: [("LA", "LL")],
    3: [("RA", "LA")],
    4: [("V1", "V6"), ("V2", "V5"), ("V3", "V4")],
    5: [("RA", "LL")],
}


def interchanged(e, pairs):
    e = dict(e)
    for a, b in pairs:
        e[a], e[b] = e[b], e[a]
    return leads_of(e)


@pytest.mark.parametrize("severity", PAIRS)
def test_interchanged_leads_are_those_of_interchanged_electrodes(severity):
    e = potentials()
    found = CORRUPTIONS["lead-swap"](leads_of(e), TWELVE, severity, seeded())
    torch.testing.assert_close(found, interchanged(e, PAIRS[severity]))


def test_the_mildest_interchange_is_of_two_chest_neighbours():
    e, found = potentials(records=60), []
    y = CORRUPTIONS["lead-swap"](leads_of(e), TWELVE, 1, seeded())
    for k in range(1, 6):
        alike = (y == interchanged(e, [(f"V{k}", f"V{k + 1}")])).all(2).all(1)
        found.append(alike)
    assert torch.equal(torch.stack(found).sum(0), torch.ones(60, dtype=torch.long))
    assert torch.stack(found).any(1).all()


def test_right_and_left_arm_interchanged_invert_lead_one_bit_by_bit():
    """Also where the recorded leads do not obey Einthoven to the last bit."""
    x = torch.randn(4, 12, 100, generator=seeded(1))
    y = CORRUPTIONS["lead-swap"](x, TWELVE, 3, seeded())
    wanted = torch.stack(
        [-x[:, 0], x[:, 2], x[:, 1], x[:, 4], x[:, 3], x[:, 5], *x[:, 6:].unbind(1)], 1
    )
    assert torch.equal(y, wanted)


def test_two_limb_leads_hold_every_limb_interchange():
    x = torch.randn(4, 2, 100, generator=seeded(1), dtype=torch.float64)
    one, two = x.unbind(1)
    recording = Recording(100.0, ("I", "II"))
    wanted = {2: (two, one), 3: (-one, two - one), 5: (one - two, -two)}
    for severity, leads in wanted.items():
        found = CORRUPTIONS["lead-swap"](x, recording, severity, seeded())
        torch.testing.assert_close(found, torch.stack(leads, 1))


@pytest.mark.parametrize(
    ("leads", "applies"),
    [
        (LEADS, [1, 2, 3, 4, 5]),
        (("I", "II"), [2, 3, 5]),
        (("I",), [3]),
        (("MLII",), [5]),
        (("III",), [2]),
        (("aVR",), []),
        (("V2",), []),
        (("V2", "V3"), [1]),
        (("MLII", "V1"), [5]),
        (("ECG",), [5]),
    ],
)
def test_interchanges_apply_where_the_leads_suffice_and_something_changes(
    leads, applies
):
    recording = Recording(100.0, leads)
    reasons = {s: explain_skip("lead-swap", s, recording) for s in SEVERITIES}
    assert [s for s, reason in reasons.items() if reason is None] == applies
    for reason in filter(None, reasons.values()):
        assert f"none of the leads {', '.join(leads)}" in reason


@pytest.mark.parametrize(
    ("lead", "severity"), [("I", 3), ("III", 2), ("II", 5), ("MLII", 5), ("ECG", 5)]
)
def test_a_single_bipolar_lead_is_inverted(lead, severity):
    x = torch.randn(4, 1, 100, generator=seeded(1))
    assert torch.equal(
        CORRUPTIONS["lead-swap"](x, Recording(100.0, (lead,)), severity, seeded()), -x
    )


def test_an_interchange_that_cannot_be_computed_is_an_error():
    with pytest.raises(
        StudyError, match="RA–LA changes none of the leads MLII, or needs others"
    ):
        CORRUPTIONS["lead-swap"](torch.zeros(1, 1, 9), ONE, 3, seeded())


def test_recordings_know_the_mains_of_their_data_set():
    records = toy_records()
    assert Recording.of(records) == Recording(100.0, ("I", "II"), 50.0)
    assert Recording.of(dataclasses.replace(records, name="mitdb")).mains_hz == 60.0


# ---- in a study ----------------------------------------------------------------------


def options(**changes):
    return toy_run("simclr").study.model_dump() | {"evaluation": changes}


def test_a_study_names_corruptions_that_exist_and_severities_from_one_to_five(
    monkeypatch,
):
    with pytest.raises(
        StudyError, match="unknown corruption 'rain'; known: baseline-wander, muscle"
    ):
        Study.model_validate(options(corruptions=["rain"]))
    for severities in ([0], [6], [1, 1], []):
        with pytest.raises(ValueError, match="severities"):
            Study.model_validate(options(severities=severities))
    monkeypatch.setitem(CORRUPTIONS, "rain", CORRUPTIONS["muscle"])
    assert Study.model_validate(
        options(corruptions=["rain"])
    ).evaluation.severities == [1, 3, 5]


OPTIONS = AttackOptions(
    ensemble=["fgsm"],
    attacks=[],
    epsilons_mv=[0.05],
    label_steps=1,
    queries=2,
    query_records=4,
    check_steps=1,
    check_restarts=1,
    check_records=4,
    batch_size=7,
    severities=[1, 3],
    corruptions=["muscle", "lead-swap"],
)


def evaluated(arm, folder, seed=0):
    run, records = toy_run(arm, seed), toy_records()
    run = dataclasses.replace(
        run, study=run.study.model_copy(update={"evaluation": OPTIONS})
    )
    pretrain(run, records, folder)
    return run, records, evaluate(run, records, folder / "slf", "slf")


def test_an_evaluation_stores_every_corruption_that_applies(tmp_path):
    _, records, scores = evaluated("simclr", tmp_path)
    graded = scores[scores["severity"].notna()]
    kinds = graded.groupby(["split", "attack", "view", "epsilon_mv", "severity"]).size()
    assert kinds.to_dict() == {
        ("test", "lead-swap", "shared", 0.0, 3.0): 16,
        ("test", "muscle", "shared", 0.0, 1.0): 16,
        ("test", "muscle", "shared", 0.0, 3.0): 16,
    }
    (row,) = json.loads((tmp_path / "slf" / "evaluation.json").read_text())["skipped"]
    assert (row["corruption"], row["severity"]) == ("lead-swap", 1)
    model, form = load_classifier(tmp_path / "slf")
    test, recording = (
        select_attacked(records, "test", None),
        Recording(100.0, ("I", "II")),
    )
    for (name, severity), stored in graded.groupby(["attack", "severity"]):
        stream = seeded(
            derived_seed("toy", "corruption", name)
        )  # no seed of the run: the same ECGs for all
        signals = CORRUPTIONS[name](
            torch.tensor(test.signals), recording, int(severity), stream
        )
        with torch.no_grad():
            expected = Victim(model, form["multilabel"]).scores(signals)
        np.testing.assert_allclose(
            stored[["score_A", "score_B", "score_C"]], expected, rtol=1e-4, atol=1e-5
        )


def test_tables_grade_corruptions_beside_the_clean_ecgs(tmp_path):
    """Stored rows of severities 1 and 5 at ε = 0 are neither the clean ones nor each
    other's."""
    study, paths, test = (
        make_study(seeds=(0,)),
        Paths("small", tmp_path),
        sample("test", 160, 0),
    )
    frames = {}
    for arm in ("rocl", "rocl-ip"):
        folder = paths.protocol("mitdb", arm, 0, "slf")
        folder.mkdir(parents=True)
        parts = [attacked(test, "none", "shared", 0.0, 3.0, 1)]
        for severity, strength in ((1, 2.0), (5, 0.5)):
            gain = strength * (1.5 if arm == "rocl-ip" else 1)
            parts.append(
                attacked(test, "muscle", "shared", 0.0, gain, severity).assign(
                    severity=severity
                )
            )
        frames[arm] = dict(zip((None, 1.0, 5.0), parts, strict=True))
        pd.concat(parts).to_parquet(folder / "scores.parquet")
    scores = read_scores(paths, study.runs(), study.protocols)

    def auroc(arm, severity):
        frame = frames[arm][severity]
        return np.mean(
            [roc_auc_score(frame[f"y_{c}"], frame[f"score_{c}"]) for c in "NSF"]
        )

    robust = tables.robust_auroc(scores)
    for arm in frames:
        own = robust[(robust["arm"] == arm) & (robust["seed"] == 0)]
        assert own["attack"].tolist() == ["muscle", "muscle", "none"]
        assert own["severity"].tolist()[:2] == [1, 5]
        assert np.isnan(own["severity"].iloc[2])
        expected = [auroc(arm, severity) for severity in (1.0, 5.0, None)]
        np.testing.assert_allclose(own["auroc_shared"], expected)
        assert own["auroc_label"].isna().tolist() == [True, True, False]
    found = tables.contrasts(scores, [], 0.95)
    graded = found[found["attack"] == "muscle"].set_index("severity")
    assert len(graded) == 2
    for severity, row in graded.iterrows():
        assert row["delta"] == pytest.approx(
            auroc("rocl-ip", severity) - auroc("rocl", severity)
        )
        assert (row["family"], row["headline"]) == ("exploratory", False)
        assert row["clean_delta"] == pytest.approx(0)
