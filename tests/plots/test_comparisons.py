"""Figures that compare arms show the values of the tables, each once."""

import numpy as np
import pandas as pd
import pytest
from drawn import HEADLINE, contrast_table, robust_table, texts
from matplotlib.colors import to_hex

from ecgstudy import plots
from ecgstudy.errors import StudyError
from ecgstudy.plots.style import arm_colour


def markers(axes, *kinds):
    return [line for line in axes.lines if line.get_marker() in kinds]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_summary_has_every_arm_by_robustness_and_the_planned_comparisons():
    robust = robust_table(["rocl", "supervised", "rocl-ip"], failing="supervised")
    pairs = [("rocl-ip", "rocl", -0.2), ("supervised", "rocl", -0.1)]
    figure = plots.summary(robust, contrast_table(pairs), HEADLINE)
    left, right, other, hidden = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["rocl-ip", "supervised †", "rocl"]
    assert left.get_title(loc="left") == "one, ε = 0.02 mV"
    assert other.get_title(loc="left") == "two, ε = 0.05 mV"
    clean = [line.get_xdata()[0] for line in markers(left, "|")]
    assert clean == pytest.approx([0.695, 0.795, 0.895])
    drawn = [line.get_xdata()[0] for line in markers(left, "s", "D")]
    assert drawn == pytest.approx([0.495, 0.595, 0.695])
    seeds = [list(line.get_xdata()) for line in markers(left, ".")]
    assert seeds == [pytest.approx([v, v - 0.01]) for v in (0.5, 0.6, 0.7)]
    assert [label.get_text() for label in right.get_yticklabels()] == ["rocl-ip − rocl"]
    assert not hidden.get_visible()  # no planned comparison there


def test_a_summary_without_planned_comparisons_has_the_small_exploratory_ones():
    pairs = [("rocl-ip", "rocl", 0.01), ("rocl", "simclr", 0.3)]
    robust = robust_table(["simclr", "rocl", "rocl-ip"])
    contrasts = contrast_table(pairs, family="exploratory")
    right = plots.summary(robust, contrasts, HEADLINE).axes[1]
    assert [label.get_text() for label in right.get_yticklabels()] == ["rocl-ip − rocl"]


def test_the_forest_tells_families_apart_and_shows_seeds():
    pairs = [("rocl-ip", "rocl", 0.02), ("hcl", "simclr", -0.01)]
    contrasts = contrast_table(pairs).query("headline")
    robust = robust_table(["rocl", "rocl-ip", "simclr", "hcl"])
    figure = plots.forest(contrasts, robust)
    planned, other = figure.axes
    assert planned.get_title(loc="left") == "one, ε = 0.02 mV, ensemble: primary"
    (point,) = markers(planned, "D")
    assert point.get_xdata()[0] == 0.02
    assert point.get_markerfacecolor() != "white"
    assert markers(other, "D")[0].get_markerfacecolor() == "white"
    assert markers(planned, ".")[0].get_xdata() == pytest.approx([-0.1, -0.1])
    shown = [text.replace("\u00a0", " ") for text in texts(figure)]
    assert "+0.020 [+0.010, +0.030]  p = 0.080" in shown
    assert "−0.010 [−0.020, +0.000]  p = 0.040" in shown
    assert "hcl − simclr †" in shown


def test_large_or_wide_differences_do_not_hide_small_ones():
    pairs = [
        ("rocl-ip", "rocl", 0.02),
        ("hcl", "simclr", 0.01),
        ("rocl", "simclr", 0.3),
    ]
    contrasts = contrast_table(pairs).query("headline")
    contrasts.loc[contrasts["adaptive"] == "hcl", ["ci_low", "ci_high"]] = [-0.9, 0.9]
    robust = robust_table(["rocl", "rocl-ip", "simclr", "hcl"], seeds=())
    figure = plots.forest(contrasts, pd.concat([robust, robust.assign(seed=0)]))
    spans = [np.ptp(axes.get_xlim()) for axes in figure.axes]
    assert len(spans) == 3
    assert spans[0] < 0.4
    assert spans[2] > 0.3


def test_differences_without_intervals_are_drawn():
    missing = {"ci_low": np.nan, "ci_high": np.nan, "p": np.nan, "p_holm": np.nan}
    contrasts = contrast_table([("rocl-ip", "rocl", 0.02)], **missing)
    figure = plots.forest(contrasts, robust_table(["rocl", "rocl-ip"]))
    assert "+0.020  p = –" in texts(figure)


def test_a_study_without_two_arms_has_no_forest():
    with pytest.raises(StudyError, match="no two arms"):
        plots.forest(contrast_table([("a", "b", 0.1)]).iloc[:0], robust_table(["a"]))


def test_curves_have_bases_in_one_panel_and_variants_as_differences():
    robust = robust_table(["random", "simclr", "hcl", "rocl", "rocl-ip"], "hcl")
    pairs = [
        ("rocl-ip", "rocl", 0.02),
        ("hcl", "simclr", -0.01),
        ("rocl", "simclr", 0.3),
    ]
    figure = plots.epsilon_curves(robust, contrast_table(pairs))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title(loc="left") for axes in shown]
    assert titles == ["one", "two", "one: arm − rocl", "one: arm − simclr"]
    assert legend_of(shown[0]) == ["random", "simclr", "rocl"]
    assert set(legend_of(shown[1])) == {"random", "simclr", "hcl †", "rocl", "rocl-ip"}
    np.testing.assert_allclose(shown[0].lines[0].get_ydata(), [0.895, 0.695])
    (curve, _) = shown[2].lines
    assert list(curve.get_ydata()) == [0.02, 0.02]
    assert to_hex(curve.get_color()) == arm_colour("rocl-ip").lower()
    assert legend_of(shown[3]) == ["hcl †"]


def test_pareto_puts_clean_against_robust():
    figure = plots.pareto(robust_table(["rocl", "simclr"], "simclr"), HEADLINE)
    for axes in figure.axes:
        drawn = np.asarray(axes.collections[0].get_offsets())
        np.testing.assert_allclose(drawn, [[0.895, 0.695], [0.795, 0.595]])
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["rocl", "simclr †"]


def geometry_tables():
    arms = ["simclr", "rocl", "rocl-ip"]
    rows = [
        {
            "dataset": "one", "protocol": "slf", "arm": arm, "seed": seed,
            "alignment": 0.1 * i + seed / 100, "uniformity": -2.0,
            "class_separation": -0.1 * i, "identity_confusion": 0.3,
        }
        for i, arm in enumerate(arms) for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows), robust_table(arms)


def test_geometry_is_drawn_against_robustness_run_by_run():
    points = plots.geometry_points(*geometry_tables(), HEADLINE)
    assert list(points["auroc_shared"]) == pytest.approx(
        [0.7, 0.69, 0.6, 0.59, 0.5, 0.49]
    )
    figure = plots.geometry(points)
    drawn = np.asarray(figure.axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(drawn[0], [0.0, 0.7])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "one: ρ = −1.00"
    assert titles[2] == "one: ρ = +1.00"


def test_geometry_without_measures_says_so():
    cost, robust = geometry_tables()
    with pytest.raises(StudyError, match="no run has measures"):
        plots.geometry_points(cost.drop(columns="alignment"), robust, HEADLINE)


def test_cost_shows_every_run():
    table = pd.DataFrame({
        "arm": ["rocl", "rocl", "simclr"], "training_seconds": [10.0, 14.0, 5.0],
        "attack_steps_per_second": [1.0, np.nan, 2.0], "masking_ok": True,
    })  # fmt: skip
    seconds, steps = plots.cost(table).axes
    drawn = [np.asarray(dots.get_offsets())[:, 0] for dots in seconds.collections]
    assert sorted(np.concatenate(drawn)) == [5, 10, 14]
    assert steps.get_xlabel() == "attack steps per second"
