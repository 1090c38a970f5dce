"""Figures show the values they are given, to scale, and are written the same way each time."""

import base64
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.font_manager import FontProperties, fontManager
from PIL import Image

from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT
from ecgstudy.plots import comparisons, ecg_paper
from ecgstudy.plots import single_run as figures
from ecgstudy.plots import style as plotting
from ecgstudy.plots.ecg_paper import _magnification
from ecgstudy.plots.style import STAMP, _spread, arm_colour, arm_look, arm_marker
from ecgstudy.pretraining.arms import ARMS
from ecgstudy.records import EcgRecords
from ecgstudy.study import load_study

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
EPSILONS = (0.0, 0.01, 0.1)


def ecg(leads: int = 12, seconds: float = 10, fs: int = 50) -> np.ndarray:
    t = np.arange(int(seconds * fs)) / fs
    return np.array(
        [
            (0.5 + 0.1 * i) * np.exp(-(((t % 1) - 0.5) ** 2) / 0.002)
            for i in range(leads)
        ]
    )


def some_records(n: int = 12) -> EcgRecords:
    rng = np.random.default_rng(0)
    signals = (ecg(2, 2)[None] * rng.uniform(0.5, 2, (n, 1, 1))).astype(np.float32)
    names = [f"r{i}" for i in range(n)]
    table = pd.DataFrame(
        {
            "record": names,
            "patient": names,
            "split": "train",
            "age": 50.0,
            "sex": "female",
        }
    )
    return EcgRecords(
        "made", signals, 50.0, ("I", "MLII"), np.arange(n) % 3, ("N", "S", "V"), table
    )


def auroc_table(arms: tuple[str, ...], failing: str = "") -> pd.DataFrame:
    rows = [
        {"dataset": d, "arm": arm, "seed": seed, "protocol": "slf", "epsilon_mv": e,
         "attack": "ensemble" if e else "none", "auroc_shared": 0.9 - 3 * e - 0.01 * i,
         "ci_low": 0.85 - 3 * e, "ci_high": 0.95 - 3 * e, "masking_ok": arm != failing}
        for d in ("one", "two") for i, arm in enumerate(arms) for seed in ("0", "all") for e in EPSILONS
    ]  # fmt: skip
    return pd.DataFrame(rows)


def contrast_table() -> pd.DataFrame:
    pairs = [
        ("rocl-ip", "rocl", 0.02, "primary"),
        ("hcl", "simclr", -0.01, "exploratory"),
    ]
    rows = [
        {"dataset": "one", "protocol": "slf", "attack": "ensemble", "epsilon_mv": e, "adaptive": a,
         "standard": b, "delta": d, "ci_low": d - 0.01, "ci_high": d + 0.01, "p": 0.04,
         "p_holm": 0.08 if family == "primary" else np.nan, "family": family, "headline": e == 0.01,
         "masking_ok": a != "hcl"}
        for a, b, d, family in pairs for e in (0.01, 0.1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(plt.Text)]


@pytest.mark.parametrize(
    ("leads", "seconds"), [(LEADS, 10.0), (("MLII",), 1.8), (LEADS[:3], 4.0)]
)
def test_one_millivolt_is_as_high_as_four_tenths_of_a_second(leads, seconds):
    figure = ecg_paper.draw_ecg(
        ecg(len(leads), seconds), 50, leads, 0.01 * ecg(len(leads), seconds)
    )
    figure.canvas.draw()
    for axes in figure.axes:
        curves = [line for line in axes.lines if len(line.get_xdata()) > 6]
        step = np.diff(curves[0].get_xdata()).mean() * 50  # paper mm in one second
        box, (x0, x1), (y0, y1) = (
            axes.get_window_extent(),
            axes.get_xlim(),
            axes.get_ylim(),
        )
        assert step == pytest.approx(25)
        assert box.width / (x1 - x0) == pytest.approx(box.height / (y1 - y0), rel=1e-6)
    clean = figure.axes[0].lines[-1].get_ydata()
    assert np.ptp(clean) == pytest.approx(
        10 * np.ptp(ecg(len(leads), seconds)[1 if len(leads) == 12 else -1])
    )


def test_ten_seconds_print_at_true_size():
    figure = ecg_paper.draw_ecg(ecg(), 50, LEADS)
    axes = figure.axes[0]
    assert axes.get_window_extent().width / figure.dpi * 25.4 == pytest.approx(
        np.ptp(axes.get_xlim())
    )


def test_twelve_leads_come_in_four_columns_with_a_rhythm_strip():
    figure = ecg_paper.draw_ecg(ecg(), 50, LEADS)
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(labels) == sorted([*LEADS, "II"])
    assert [len(line.get_xdata()) for line in figure.axes[0].lines[1:]] == [
        125
    ] * 12 + [500]


def test_the_perturbation_is_drawn_magnified_and_says_so():
    delta = np.clip(ecg(), -0.02, 0.02)
    figure = ecg_paper.draw_ecg(ecg(), 50, LEADS, delta)
    assert any(
        "δ × 20: 5 mm = 25 µV, max |δ| = 20 µV" in text for text in texts(figure)
    )
    assert np.ptp(figure.axes[2].lines[-1].get_ydata()) == pytest.approx(
        10 * 20 * np.ptp(delta[1])
    )


def test_perturbations_are_drawn_on_the_lead_of_most_energy_beside_their_spectra():
    slow = (
        0.02
        * np.sin(2 * np.pi * 3 * np.arange(500) / 50)
        * (np.arange(12) == 4)[:, None]
    )
    fast = (
        0.1
        * np.sin(2 * np.pi * 12 * np.arange(500) / 50)
        * (np.arange(12) == 4)[:, None]
    )
    figure = ecg_paper.draw_perturbations(
        ecg(), {"slow": slow, "fast": fast}, 50, LEADS, "record 7"
    )
    sheets, spectra = figure.axes[:3], figure.axes[3:]
    assert "record 7, lead aVL" in texts(figure)
    assert {
        "slow × 20: 5 mm = 25 µV, max |δ| = 20 µV",
        "fast × 5: 5 mm = 100 µV, max |δ| = 99.8 µV",
    } <= set(texts(figure))
    for sheet, values, gain in zip(
        sheets, (ecg(), slow, fast), (1, 20, 5), strict=True
    ):
        drawn = sheet.lines[-1].get_ydata()
        np.testing.assert_allclose(
            np.diff(drawn), 10 * gain * np.diff(values[4, 150:350]), atol=1e-9
        )
    for axes, peak in zip(spectra[1:], (3, 12), strict=True):
        energy, edges, _ = axes.patches[0].get_data()
        assert edges[np.argmax(energy)] == peak
        assert energy.max() > 0.99 * energy.sum()


@pytest.mark.parametrize(
    ("peak", "gain"), [(0.02, 20), (0.01, 50), (0.005, 100), (0.1, 5), (0.5, 1)]
)
def test_magnification_is_the_largest_round_number_that_fits(peak, gain):
    assert _magnification(np.array([[peak, -peak / 2]])) == pytest.approx(gain)


def test_ill_fitting_signals_are_refused():
    with pytest.raises(StudyError, match="2 leads"):
        ecg_paper.draw_ecg(ecg(1), 50, ("I", "II"))
    with pytest.raises(StudyError, match="differ in shape"):
        ecg_paper.draw_ecg(ecg(1), 50, ("I",), np.zeros((1, 3)))


def test_the_typical_record_of_a_class_has_its_median_amplitude():
    records = some_records()
    rows = ecg_paper.typical_records(records)
    assert list(records.labels[rows]) == [0, 1, 2]
    spread = records.signals.std(axis=2).mean(1)
    for column, row in enumerate(rows):
        assert spread[row] == np.sort(spread[records.labels == column])[2]


def test_ecg_values_are_the_samples_themselves():
    frame = ecg_paper.ecg_values(ecg(2), 50, ("I", "II"))
    np.testing.assert_array_equal(frame["II"], ecg(2)[1])
    assert frame["time_s"].iloc[-1] == pytest.approx(9.98)


def test_record_amplitudes_match_a_plain_loop():
    records = some_records()
    frame = figures.record_amplitudes(records)
    for row, signal in zip(frame.itertuples(), records.signals, strict=True):
        assert row.std_mv == pytest.approx(
            np.median([lead.std() for lead in signal]), rel=1e-5
        )
        assert row.peak_to_peak_mv == pytest.approx(
            np.median([np.ptp(lead) for lead in signal]), rel=1e-5
        )


def test_budgets_stand_where_they_belong():
    figure = figures.amplitude_against_epsilon(some_records(), [0.01, 0.1])
    lines = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert lines == [0.01, 0.1]
    assert figure.axes[0].get_xscale() == "log"


def test_class_counts_and_ages_are_counted():
    table = pd.DataFrame(
        {"class": ["N", "V"] * 2, "split": ["train"] * 2 + ["test"] * 2}
    )
    figure = figures.class_counts(table.assign(records=[1200, 30, 400, 0]))
    assert [[bar.get_width() for bar in axes.patches] for axes in figure.axes] == [
        [1200, 30],
        [400, 0],
    ]
    people = pd.DataFrame(
        {"patient": list("aabc"), "age": [61, 61, 70, np.nan], "sex": ["male"] * 4}
    )
    figure = figures.age_sex(people)
    assert sum(bar.get_width() for bar in figure.axes[0].patches) == 2
    assert figure.axes[0].get_title(loc="left") == "3 patients, age or sex unknown in 1"


def test_loss_curves_leave_out_what_was_not_logged():
    history = pd.DataFrame(
        {"epoch": [1, 2], "loss": [3.0, 2.0], "floor_fraction": [np.nan, np.nan]}
    )
    figure = figures.loss_curves(history)
    assert [
        axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()
    ] == ["loss"]
    full = history.assign(
        positive_similarity=0.9, adversarial_similarity=0.8, negative_similarity=0.1
    )
    assert {"positive", "adversarial", "negative"} <= set(
        texts(figures.loss_curves(full))
    )


def test_fonts_are_matplotlibs_own_whatever_the_machine_has(tmp_path):
    own = Path(mpl.get_data_path()).resolve()
    copy = tmp_path / "DejaVuSans.ttf"
    copy.write_bytes((own / "fonts/ttf/DejaVuSans.ttf").read_bytes())
    known = list(fontManager.ttflist)
    try:
        fontManager.ttflist[:] = [
            font for font in known if not Path(font.fname).resolve().is_relative_to(own)
        ]
        fontManager.addfont(copy)
        assert not Path(fontManager.findfont("DejaVu Sans")).is_relative_to(own)
        plotting.prefer_own_fonts()
        for weight in ("normal", "bold"):
            found = fontManager.findfont(
                FontProperties(family="DejaVu Sans", weight=weight)
            )
            assert Path(found).is_relative_to(own)
    finally:
        fontManager.ttflist[:] = known
        fontManager.addfont(own / "fonts/ttf/DejaVuSans.ttf")  # forgets what was found


def test_rounding_errors_of_a_constant_are_not_drawn_as_a_curve():
    epoch = np.arange(1, 61)
    history = pd.DataFrame(
        {"epoch": epoch, "loss": 5 - 0.01 * epoch, "floor_fraction": 0.0}
    )
    history["effective_negatives"] = 380.99 + 1e-6 * np.sin(epoch)
    shown = {
        axes.get_title(loc="left"): axes.get_ylim()
        for axes in figures.loss_curves(history).axes
    }
    low, high = shown["effective number of negatives"]
    assert low < 380 < 382 < high
    assert shown["rows on the debiasing floor"] == (-0.5, 0.5)
    low, high = shown["loss"]
    assert 4.3 < low < 4.4 < 4.99 < high < 5.1


def test_pretraining_pictures_draw_every_kind():
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame(
        {
            "similarity": rng.uniform(-1, 1, 90),
            "kind": ["positive", "negative", "other"] * 30,
        }
    )
    assert {"positive", "negative", "other"} <= set(
        texts(figures.similarity_distributions(pairs))
    )
    points = pd.DataFrame(rng.normal(size=(40, 2)), columns=["x", "y"])
    points = points.assign(
        **{"class": ["N", "V"] * 20, "patient": [f"p{i % 10}" for i in range(40)]}
    )
    legends = [
        axes.get_legend().get_texts() for axes in figures.embedding_picture(points).axes
    ]
    assert [len(entries) for entries in legends] == [2, 6]
    weights = pd.DataFrame(
        {"similarity": [0.1, 0.5], "weight": [0.4, 1.6], "same_class": [True, False]}
    )
    axes = figures.weight_profile(weights).axes[0]
    assert axes.lines[0].get_ydata()[0] == 1
    assert sum(len(points.get_offsets()) for points in axes.collections) == 2


def test_pull_is_stacked_and_push_is_drawn_of_the_first_view_for_every_scheme():
    rows = [
        ("plain", "clean view", "pull", "its clean views", 0.9, 0.5),
        ("plain", "clean view", "pull", "its attacked view", 0.8, 0.5),
        ("plain", "attacked view", "pull", "its clean views", 0.8, 1.0),
        ("plain", "clean view", "push", "other class", 0.1, 1.5),
        ("plain", "clean view", "push", "same class", 0.3, 0.5),
        ("plain", "attacked view", "push", "same class", 0.3, 9.0),
    ]
    frame = pd.DataFrame(
        rows, columns=["scheme", "anchor", "role", "kind", "similarity", "weight"]
    )
    frame = pd.concat(
        [
            frame,
            frame.assign(scheme="other", weight=2 * frame["weight"]),
            frame.assign(scheme="3"),
        ]
    )
    figure = figures.pull_and_push(frame)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown[::2]] == [
        "plain",
        "other",
        "3",
    ]
    bars = [
        (bar.get_x(), bar.get_width()) for bar in shown[0].patches if bar.get_width()
    ]
    assert bars == [(0, 0.5), (0, 1.0), (0.5, 0.5)]
    assert [text.get_text() for text in shown[2].texts] == ["2", "2"]
    assert [tuple(dots.get_offsets()[0]) for dots in shown[1].collections] == [
        (0.1, 1.5),
        (0.3, 0.5),
    ]


def test_epsilon_curve_keeps_the_values():
    frame = pd.DataFrame({"epsilon_mv": EPSILONS, "auroc": [0.9, 0.6, 0.2]})
    both = pd.concat(
        [frame.assign(view="shared"), frame.assign(view="label", auroc=[0.9, 0.5, 0.1])]
    )
    axes = figures.epsilon_curve(both).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines[1:]] == [
        [0.9, 0.6, 0.2],
        [0.9, 0.5, 0.1],
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "0",
        "0.01",
        "0.1",
    ]
    assert {"shared", "label"} <= set(texts(axes.figure))


def test_attack_bars_run_from_weakest_to_strongest():
    frame = pd.DataFrame(
        {"attack": ["none", "pgd", "fgsm", "ensemble"], "auroc": [0.9, 0.5, 0.7, 0.4]}
    )
    axes = figures.attack_bars(frame).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.7, 0.5, 0.4]
    assert {"0.400", "clean", "chance"} <= set(texts(axes.figure))


def test_curves_by_arm_draw_each_arm_once_and_bases_in_grey():
    table = auroc_table(("random", "simclr", "hcl", "rocl", "rocl-ip"), failing="hcl")
    figure = comparisons.epsilon_curves_by_arm(table)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:3] == [
        "one: references",
        "one: clean views, adaptive weights",
        "one: adversarial, adaptive",
    ]
    clean_views = figure.axes[1].lines[1:]
    assert [to_hex(line.get_color()) for line in clean_views] == [
        "#9b9b9b",
        arm_colour("hcl").lower(),
    ]
    assert clean_views[1].get_markerfacecolor() == "white"
    assert {"hcl †", "simclr", "rocl-ip"} <= set(texts(figure))
    np.testing.assert_allclose(
        clean_views[1].get_ydata(), [0.9 - 0.02, 0.9 - 0.05, 0.9 - 0.32]
    )


def test_an_attack_without_rows_is_named():
    with pytest.raises(StudyError, match=r"'square'.*ensemble"):
        comparisons.epsilon_curves_by_arm(auroc_table(("rocl",)), attack="square")


def test_the_forest_draws_headline_rows_and_tells_families_apart():
    figure = comparisons.contrast_forest(contrast_table())
    labels = [
        [label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes
    ]
    assert labels == [["rocl-ip − rocl"], ["hcl − simclr"]]
    markers = [
        line
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() in ("D", "o")
    ]
    assert [line.get_xdata()[0] for line in markers] == [0.02, -0.01]
    assert markers[0].get_markerfacecolor() != "white"
    assert markers[1].get_markerfacecolor() == "white"
    shown = texts(figure)
    assert "+0.020 [+0.010, +0.030]  p = 0.08" in shown
    assert "−0.010 [−0.020, +0.000]  p = 0.04 †" in shown


def test_wide_exploratory_intervals_do_not_hide_those_of_the_primary_family():
    table = contrast_table()
    table.loc[table["family"] == "exploratory", ["ci_low", "ci_high"]] = [-0.9, 0.9]
    planned, other = (
        axes.get_xlim() for axes in comparisons.contrast_forest(table).axes
    )
    assert planned[1] < 0.05
    assert other[1] > 0.9


def test_the_forest_draws_differences_without_intervals():
    table = contrast_table().assign(
        ci_low=np.nan, ci_high=np.nan, p=np.nan, p_holm=np.nan
    )
    assert "+0.020" in texts(comparisons.contrast_forest(table))


def test_a_study_without_contrasts_gets_a_figure_that_says_so():
    assert "this study has no two arms to compare" in texts(
        comparisons.contrast_forest(contrast_table().iloc[:0])
    )


def test_pareto_puts_clean_against_robust_and_labels_do_not_overlap():
    arms = (
        "random",
        "supervised",
        "simclr",
        "hcl",
        "rocl",
        "rocl-ip",
        "rocl-hn",
        "rocl-ip-hn",
        "clef",
    )
    figure = comparisons.pareto(auroc_table(arms), {"one": 0.01, "two": 0.1})
    figure.canvas.draw()
    points = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 1]
    assert [line.get_ydata()[0] for line in points] == pytest.approx(
        [0.6 - 0.01 * i for i in range(9)]
    )
    assert [line.get_xdata()[0] for line in points] == pytest.approx(
        [0.9 - 0.01 * i for i in range(9)]
    )
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(arms)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_pareto_without_the_asked_budget_says_so():
    with pytest.raises(StudyError, match=r"0\.03 mV"):
        comparisons.pareto(auroc_table(("rocl",)), {"one": 0.03, "two": 0.03})


def geometry_tables(arms=("simclr", "rocl", "rocl-ip"), seeds=(0, 1)):
    robust = auroc_table(arms).assign(severity=np.nan)
    robust = robust[robust["seed"] == "0"]
    robust = pd.concat(
        [
            robust.assign(seed=seed, auroc_shared=robust["auroc_shared"] - seed / 50)
            for seed in seeds
        ]
    )
    rows = [
        {"dataset": d, "arm": arm, "seed": seed, "protocol": "slf", "alignment": 0.1 * i + seed / 100,
         "uniformity": -2.0, "class_separation": -0.1 * i, "identity_confusion": 0.3}
        for d in ("one", "two") for i, arm in enumerate(arms) for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows), robust


def test_geometry_is_drawn_against_robustness_run_by_run():
    cost, robust = geometry_tables()
    figure = comparisons.geometry_figure(cost, robust, {"one": 0.01, "two": 0.1})
    assert len(figure.axes) == 8
    first, second = figure.axes[0], figure.axes[4]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in second.lines}
    expected = [[0.2, 0.9 - 0.3 - 0.02], [0.21, 0.9 - 0.3 - 0.02 - 0.02]]
    np.testing.assert_allclose(drawn["rocl-ip"], expected)
    assert "ρ = −1.00" in first.get_title(loc="left")
    assert "ρ = +1.00" in figure.axes[2].get_title(loc="left")
    assert "ρ" not in figure.axes[1].get_title(loc="left")  # the same everywhere
    assert "ε = 0.1 mV" in second.get_ylabel()


def test_geometry_without_measures_says_so():
    cost, robust = geometry_tables()
    with pytest.raises(StudyError, match="no run has measures"):
        comparisons.geometry_figure(
            cost.drop(columns="alignment"), robust, {"one": 0.01, "two": 0.1}
        )


def corruption_table(arms=("simclr", "rocl"), failing=""):
    clean = auroc_table(arms, failing).query("attack == 'none'").assign(severity=np.nan)
    rows = [
        clean.assign(attack=name, severity=level, auroc_shared=clean["auroc_shared"] - 0.1 * level)
        for name in ("muscle", "wander") for level in (1, 2, 3)
        ]  # fmt: skip
    table = pd.concat([clean, *rows], ignore_index=True)
    return table[(table["dataset"] == "one") | (table["attack"] != "wander")]


def test_corruption_curves_start_at_the_clean_auroc():
    figure = comparisons.corruption_curves(corruption_table(failing="rocl"))
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(drawn) == ["simclr", "rocl †"]
    np.testing.assert_allclose(drawn["rocl †"].get_xydata()[:, 0], [0, 1, 2, 3])
    np.testing.assert_allclose(
        drawn["rocl †"].get_xydata()[:, 1], 0.89 - 0.1 * np.arange(4)
    )
    assert drawn["rocl †"].get_markerfacecolor() == "white"
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    many = [f"simclr-{i}" for i in range(8)]  # others than the landmarks are grey
    axes = comparisons.corruption_curves(corruption_table(("simclr", *many))).axes[0]
    assert [line.get_label() for line in axes.lines] == ["other arms"] * 8 + ["simclr"]


def test_cost_shows_runs_and_means():
    cost = pd.DataFrame(
        {"arm": ["rocl", "rocl", "simclr"], "training_seconds": [10.0, 14.0, 5.0]}
    )
    (axes,) = comparisons.cost_figure(cost).axes
    drawn = [
        segment[0][0]
        for c in axes.collections
        if hasattr(c, "get_segments")
        for segment in c.get_segments()
    ]
    assert drawn == [12.0, 5.0]
    with pytest.raises(StudyError, match="cost table has neither"):
        comparisons.cost_figure(cost[["arm"]])


def test_an_arm_has_one_colour_and_weightings_share_theirs():
    assert (
        arm_colour("rocl-ip-hn")
        == arm_colour("advcl-ip-hn")
        == arm_colour("rocl-ip-hn-shuffled")
    )
    assert arm_colour("rocl-hn") == arm_colour("hcl")
    assert (
        len(
            {
                arm_colour(arm)
                for arm in ("rocl", "rocl-ip", "rocl-hn", "rocl-ip-hn", "rocl-clef")
            }
        )
        == 5
    )
    assert all(arm_colour(arm).startswith("#") for arm in ARMS)


@pytest.mark.parametrize(
    "params", ["mitdb", "ptbxl", "transfer", "single-step", "quick"]
)
def test_no_two_arms_of_a_study_look_alike(params):
    arms = load_study(ROOT / "params" / f"{params}.yaml").arms
    assert len({(arm_colour(arm), arm_marker(arm)) for arm in arms}) == len(arms) > 1


def test_an_arm_in_one_step_has_the_colour_of_the_one_in_several_and_a_line_of_its_own():
    arms = ["rocl-hn", "rocl-hn-rsfgsm", "rocl-hn-nfgsm", "rocl-hn-shuffled"]
    looks = [arm_look(arm, pd.DataFrame({"masking_ok": [True]})) for arm in arms]
    assert len({look["color"] for look in looks}) == 1
    assert (
        len({look["marker"] for look in looks})
        == len({look["ls"] for look in looks})
        == 4
    )


def test_spread_labels_keep_their_order_distance_and_room():
    placed = _spread(np.array([0.50, 0.51, 0.02, 0.99, 1.0]), 0.1, 0.0, 1.0)
    assert list(np.argsort(placed)) == [2, 0, 1, 3, 4]
    assert np.diff(np.sort(placed)).min() == pytest.approx(0.1)
    assert placed.max() <= 1.0


def test_a_saved_figure_is_the_same_bytes_each_time(tmp_path):
    values = pd.DataFrame({"arm": ["rocl"], "auroc": [0.1 + 0.2]})
    for folder in ("a", "b"):
        figure = comparisons.contrast_forest(contrast_table())
        figures.save_figure(
            figure, tmp_path / folder, "forest", values, alt="Δ of arms", synthetic=True
        )
    for suffix in ("png", "svg", "csv"):
        first, second = (
            (tmp_path / f / f"forest.{suffix}").read_bytes() for f in ("a", "b")
        )
        assert first == second
    assert pd.read_csv(tmp_path / "a/forest.csv", float_precision="round_trip").equals(
        values
    )
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "forest.csv",
        "forest.png",
        "forest.svg",
    ]


def test_saved_images_carry_the_description_and_the_stamp_only_if_simulated(tmp_path):
    values = pd.DataFrame({"x": [1]})
    for synthetic in (True, False):
        figure = comparisons.contrast_forest(contrast_table())
        shown = figures.save_figure(
            figure, tmp_path, "f", values, alt="Δ of arms", synthetic=synthetic
        )
        assert shown is figure
        assert (STAMP in texts(figure)) is synthetic
        with Image.open(tmp_path / "f.png") as image:
            assert image.text["Description"] == "Δ of arms"
            assert image.info["dpi"][0] >= 150
        assert "Δ of arms" in (tmp_path / "f.svg").read_text(encoding="utf-8")
        data, about = figure._repr_mimebundle_(include=None, exclude=None)
        assert base64.b64decode(data["image/png"]) == (tmp_path / "f.png").read_bytes()
        assert about["image/png"]["alt"] == "Δ of arms"


def test_figures_leave_no_global_state():
    before = dict(plt.rcParams)
    comparisons.contrast_forest(contrast_table())
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    "arms",
    [
        ["supervised", "simclr", "rocl", "rocl-hn"],
        ["simclr", "hcl", "rocl", "rocl-ip"],
        ["simclr"],
    ],
)
def test_every_arm_is_in_some_panel_of_the_epsilon_curves(arms):
    facets = comparisons._facets(arms)
    assert {arm for _, members, bases in facets for arm in (*members, *bases)} == set(
        arms
    )
