"""Figures of data and single runs show the values that they are given."""

import numpy as np
import pandas as pd
import pytest
from drawn import HEADLINE, robust_table, some_records, texts

from ecgstudy import plots
from ecgstudy.plots.tables_html import select_headline


def test_record_amplitudes_match_a_plain_loop():
    records = some_records()
    frame = plots.measure_amplitudes(records)
    for row, signal in zip(frame.itertuples(), records.signals, strict=True):
        std = np.median([lead.std() for lead in signal])
        peak = np.median([np.ptp(lead) for lead in signal])
        assert row.std_mv == pytest.approx(std, rel=1e-5)
        assert row.peak_to_peak_mv == pytest.approx(peak, rel=1e-5)


def test_budgets_stand_where_they_belong():
    values = plots.measure_amplitudes(some_records())
    axes = plots.amplitudes(values, [0.01, 0.1]).axes[0]
    lines = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert lines == [0.01, 0.1]
    assert axes.get_xscale() == "log"


def test_class_counts_and_ages_are_counted():
    splits = {"class": ["N", "V"] * 2, "split": ["train"] * 2 + ["test"] * 2}
    counts = pd.DataFrame({**splits, "records": [1200, 30, 400, 0]})
    figure = plots.class_counts(counts)
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[1200, 30], [400, 0]]
    people = {"patient": list("abc"), "age": [61, 70, np.nan], "sex": ["male"] * 3}
    axes = plots.age_sex(pd.DataFrame(people)).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 2
    assert axes.get_title(loc="left") == "3 patients, age or sex unknown in 1"


def test_loss_curves_leave_out_what_was_not_logged_or_did_not_change():
    epoch = np.arange(1, 6)
    history = pd.DataFrame({"epoch": epoch, "loss": 5 - 0.1 * epoch})
    history["floor_fraction"], history["positive_similarity"] = 0.0, np.nan
    history["effective_negatives"] = 380 + epoch
    axes = plots.loss_curves(history).axes
    titles = [part.get_title(loc="left") for part in axes]
    assert titles == ["loss", "effective number of negatives"]
    assert list(axes[0].lines[0].get_ydata()) == list(history["loss"])


def test_every_kind_of_pair_has_a_row():
    values = np.random.default_rng(0).uniform(-1, 1, 90)
    kinds = ["positive", "negative", "other"] * 30
    figure = plots.similarities(pd.DataFrame({"similarity": values, "kind": kinds}))
    assert {"positive", "negative", "other"} <= set(texts(figure))


def test_embeddings_are_coloured_by_class_and_by_the_patients_of_most_records():
    points = pd.DataFrame(
        np.random.default_rng(0).normal(size=(40, 2)), columns=[*"xy"]
    )
    points["class"] = ["N", "V"] * 20
    points["patient"] = [f"p{i % 10}" for i in range(40)]
    figure = plots.embedding_plane(points)
    by_class, by_patient = (axes.collections[0].get_offsets() for axes in figure.axes)
    assert (len(by_class), len(by_patient)) == (40, 24)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["N", "V", "p0", "p1", "p2", "p3", "p4", "p5"]


def test_push_weights_are_drawn_of_negatives_alone():
    pairs = pd.DataFrame({
        "similarity": [0.1, 0.5, 0.9], "weight": [0.4, 1.6, np.nan],
        "kind": ["negative: same class", "negative: other class", "positive"],
    })  # fmt: skip
    axes = plots.push_weights(pairs).axes[0]
    drawn = np.concatenate([dots.get_offsets() for dots in axes.collections])
    np.testing.assert_allclose(sorted(drawn.tolist()), [[0.1, 0.4], [0.5, 1.6]])
    assert axes.lines[-1].get_ydata()[0] == 1


def test_pull_is_stacked_and_push_is_that_of_the_first_view_for_every_scheme():
    rows = [
        ("clean view", "pull", "its clean views", 0.9, 0.5),
        ("clean view", "pull", "its attacked view", 0.8, 0.5),
        ("attacked view", "pull", "its clean views", 0.8, 1.0),
        ("clean view", "push", "other class", 0.1, 1.5),
        ("clean view", "push", "same class", 0.3, 0.5),
        ("attacked view", "push", "same class", 0.3, 9.0),
    ]
    columns = ["anchor", "role", "kind", "similarity", "weight"]
    one = pd.DataFrame(rows, columns=columns).assign(scheme="plain")
    other = one.assign(scheme="other", weight=2 * one["weight"])
    weights = pd.concat([one, other], ignore_index=True)
    clean, attacked = plots.pull_weights(weights).axes
    assert clean.get_title(loc="left") == "of its clean view"
    assert [label.get_text() for label in clean.get_yticklabels()] == ["plain", "other"]
    widths = sorted(b.get_width() for b in clean.patches if b.get_width())
    assert widths == [0.5, 0.5, 1.0, 1.0]
    assert max(b.get_x() + b.get_width() for b in clean.patches) == 2.0
    assert [b.get_width() for b in attacked.patches if b.get_width()] == [1.0, 2.0]
    figure = plots.push_weights(weights)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["plain", "other"]
    drawn = np.concatenate([d.get_offsets() for d in figure.axes[0].collections])
    np.testing.assert_allclose(sorted(drawn.tolist()), [[0.1, 1.5], [0.3, 0.5]])


def test_the_epsilon_curve_keeps_the_values_of_both_views():
    table = robust_table(["rocl"]).query("seed == 0 and dataset == 'one'")
    table.loc[table["attack"] == "none", "auroc_label"] = 0.9
    axes = plots.epsilon_curve(table).axes[0]
    shared, label, _ = axes.lines
    np.testing.assert_allclose(shared.get_ydata(), [0.9, 0.7])
    np.testing.assert_allclose(label.get_ydata(), [0.9, 0.6])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.02"]


def test_attack_bars_run_from_weakest_to_strongest():
    table = robust_table(["rocl"]).query("seed == 0 and dataset == 'one'")
    axes = plots.attack_bars(select_headline(table, HEADLINE)).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([0.9, 0.8, 0.7])
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["clean", "fgsm *", "ensemble"]
    assert "0.700" in texts(axes.figure)
