"""The benchmarks measure what they say, and both sides compute the same."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from benchmarks import growth, loss, plot, steps, timing
from benchmarks.shapes import case
from ecgstudy.pretraining.contrast import weighted_contrastive_loss
from ecgstudy.pretraining.loop import train_step
from ecgstudy.pretraining.pairs import Rows
from ecgstudy.pretraining.weighting import compose

CPU = torch.device("cpu")


def test_variants_are_called_in_turn_and_once_more_than_is_counted():
    called = []
    found = timing.side_by_side(
        {name: lambda n=name: called.append(n) for name in "abc"}, 3, CPU
    )
    assert "".join(called) == "abc" + "abc" + "cab" + "bca"
    assert {name: len(values) for name, values in found.items()} == {
        "a": 3,
        "b": 3,
        "c": 3,
    }


def test_rows_are_medians_per_unit_and_ratios_within_a_round():
    seconds = {"ours": np.array([1.0, 2.0, 8.0]), "theirs": np.array([3.0, 4.0, 8.0])}
    units = {"ours": 2, "theirs": 4}
    rows = timing.compare_times("b", "c", seconds, units, "ours", "step")
    ours, theirs = rows
    assert (ours["value"], ours["unit"], ours["ratio"]) == (1000.0, "ms / step", 1.0)
    assert theirs["value"] == 1000.0
    assert theirs["ratio"] == pytest.approx(1.0)  # of 0.5 / 0.75, 1 / 1 and 4 / 2


@pytest.mark.parametrize("megabytes", [50, 200])
def test_peak_memory_is_what_a_call_takes_at_most(megabytes):
    def call():
        torch.ones(megabytes * 2**18).sum()  # freed again
        torch.ones(2**18).sum()

    assert timing.peak_mb(call, CPU) == pytest.approx(megabytes, abs=12)


def test_memory_that_earlier_calls_left_free_counts_as_new():
    parts = [np.ones(2**13) for _ in range(3201)]  # of 64 kB, on the heap
    last = parts.pop()  # the heap cannot shrink below it
    parts.clear()
    assert timing.peak_mb(
        lambda: [np.ones(2**13) for _ in range(1600)], CPU
    ) == pytest.approx(100, abs=12)
    assert last.all()


def test_the_plain_loss_is_what_the_weighted_one_is_with_uniform_weights():
    embedded = normalize(
        torch.randn(
            12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
    )
    record = torch.arange(6).repeat(2)
    rows = Rows(record, record, torch.zeros(12, dtype=torch.bool))
    ours, _ = weighted_contrastive_loss(embedded, rows, compose(()), temperature=0.5)
    assert loss.nt_xent(embedded, 0.5).item() == pytest.approx(ours.item(), rel=1e-9)


@pytest.mark.parametrize("arm", ["supervised", "pgd-at", "simclr", "rocl-ip-hn", "acl"])
def test_the_bare_step_passes_as_many_signals_through_the_encoder_as_ours(arm):
    state, data = case("ptbxl", records=64).training(arm, CPU, batch_size=16)
    index, seen = torch.arange(16), []
    state.model["encoder"].register_forward_hook(
        lambda module, given, out: seen.append((len(given[0]), torch.is_grad_enabled()))
    )
    steps.bare_step(state, data, index)()
    bare = sorted(seen)
    seen.clear()
    train_step(state, data, index, 1e-4)
    assert bare == sorted(seen)


def test_growth_fits_the_exponent_of_time():
    def busy(n):
        return lambda: np.linalg.matrix_power(np.ones((n, n)) / n, 2).sum()

    rows = growth.fit_growth("squares", {n: busy(n) for n in (300, 600, 1200)}, CPU, 3)
    time = [r for r in rows if r["benchmark"] == "growth, time"]
    assert [r["size"] for r in time] == [300, 600, 1200]
    slope = np.polyfit(np.log([300, 600, 1200]), np.log([r["value"] for r in time]), 1)[
        0
    ]
    assert time[0]["exponent"] == pytest.approx(slope)


def test_the_figure_names_every_ratio_that_was_measured():
    seconds = {"bare": np.array([1.0]), "ours": np.array([1.25])}
    rows = timing.compare_times(
        "efficiency of an attack step",
        "here",
        seconds,
        {"bare": 1, "ours": 1},
        "bare",
        "step",
    )
    figure = plot.plot_ratios(pd.DataFrame(rows), "a machine")
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts] == ["0.80"]
