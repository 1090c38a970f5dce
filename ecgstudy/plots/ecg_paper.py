"""ECGs on ECG paper: 25 mm/s and 10 mm/mV, so 1 mV is as high as 0.4 s is long.

All geometry is in mm of paper; ten seconds print at their true size.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ecgstudy.errors import StudyError
from ecgstudy.plots.style import BLUE, ORANGE
from ecgstudy.records import EcgRecords

MM_PER_S, MM_PER_MV = 25.0, 10.0
LABEL_MM, MARGIN_MM = 5.0, 10.0
"""Room for a label above its curve, and left of the curves."""
MAGNIFIED_MM = 5.0
"""How high a magnified perturbation is drawn."""
INK = "#1a1a1a"
STANDARD = ("I aVR V1 V4", "II aVL V2 V5", "III aVF V3 V6")
"""The usual layout of twelve leads, four in a row."""


class Trace(NamedTuple):
    """One curve: samples (mV), its left end (mm) and its label."""

    samples: np.ndarray
    x: float
    label: str


class Row(NamedTuple):
    """Curves beside each other on the paper, magnified by `gain`, under a heading."""

    traces: list[Trace]
    colour: str = INK
    gain: float = 1.0
    heading: str = ""


def ecg_values(signals: np.ndarray, fs: float, leads: Sequence[str]) -> pd.DataFrame:
    """The numbers behind an ECG drawing: `time_s`, and one column a lead (mV).

    Parameters
    ----------
    signals
        (leads, samples) in mV.
    fs
        Sampling rate in Hz.
    leads
        Names.
    """
    time = np.arange(signals.shape[-1]) / fs
    return pd.DataFrame({"time_s": time, **dict(zip(leads, signals, strict=True))})


def draw_ecg(
    signals: np.ndarray,
    fs: float,
    leads: Sequence[str],
    perturbation: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """One ECG on paper; attacked and, magnified, its perturbation beneath.

    Twelve leads of 5 s or more come in the usual 3 × 4 layout with lead II as rhythm
    strip, others as strips.

    Parameters
    ----------
    signals, perturbation
        (leads, samples) in mV.
    fs
        Sampling rate in Hz.
    leads
        Names of the leads.
    title
        Above all.

    Raises
    ------
    StudyError
        When signals, leads and perturbation do not fit together.
    """
    signals = np.asarray(signals, dtype=float)
    if signals.ndim != 2 or len(signals) != len(leads):
        raise StudyError(
            f"signals of shape {signals.shape} do not fit {len(leads)} leads {leads}"
        )
    rows = _rows_of(signals, fs, leads)
    if perturbation is not None:
        delta = np.asarray(perturbation, dtype=float)
        if delta.shape != signals.shape:
            raise StudyError(
                f"perturbation {delta.shape} does not fit signals {signals.shape}"
            )
        gain = _magnification(delta)
        heading = f"perturbation δ{_scale(delta, gain)}"
        rows = [
            *_rows_of(signals, fs, leads, heading="clean"),
            *_rows_of(signals + delta, fs, leads, BLUE, heading="attacked"),
            *_rows_of(delta, fs, leads, ORANGE, gain, heading),
        ]
    return _draw_rows(rows, fs, title)


def draw_perturbations(
    signal: np.ndarray,
    deltas: Mapping[str, np.ndarray],
    fs: float,
    leads: Sequence[str],
    title: str = "",
) -> Figure:
    """Several perturbations of one ECG beneath it, each magnified as it says.

    Parameters
    ----------
    signal
        (leads, samples) in mV.
    deltas
        Attack → perturbation of that shape. Drawn is the lead with most of their
        energy.
    fs
        Sampling rate in Hz.
    leads
        Names of the leads.
    title
        Above all.
    """
    energy = sum(np.square(delta).sum(axis=1) for delta in deltas.values())
    lead = int(np.argmax(energy))
    rows = [Row([Trace(signal[lead], 0.0, "ECG")])]
    for name, delta in deltas.items():
        gain = _magnification(delta)
        trace = Trace(delta[lead], 0.0, f"{name}{_scale(delta, gain)}")
        rows.append(Row([trace], ORANGE, gain))
    return _draw_rows(rows, fs, f"{title}, lead {leads[lead]}")


def pick_typical(records: EcgRecords) -> list[int]:
    """A typical record of each class: of median amplitude among its first 200.

    Records of no other class are preferred.
    """
    labels, rows = records.multi_hot() > 0, []
    for column, name in enumerate(records.classes):
        having = np.flatnonzero(labels[:, column])
        alone = having[labels[having].sum(axis=1) == 1]
        chosen = (alone if len(alone) else having)[:200]
        if not len(chosen):
            raise StudyError(f"{records.name}: class {name!r} has no record to draw")
        amplitude = records.signals[chosen].std(axis=2).mean(axis=1)
        rows.append(int(chosen[np.argsort(amplitude)[len(chosen) // 2]]))
    return rows


def _rows_of(
    signals: np.ndarray,
    fs: float,
    leads: Sequence[str],
    colour: str = INK,
    gain: float = 1.0,
    heading: str = "",
) -> list[Row]:
    """The usual layout of twelve leads, if they are long enough, or strips."""
    by_name = dict(zip(leads, signals, strict=True))
    rows = [[Trace(samples, 0.0, lead)] for lead, samples in by_name.items()]
    layout = [row.split() for row in STANDARD]
    there = {lead for row in layout for lead in row} <= set(by_name)
    if there and signals.shape[1] >= 5 * fs:
        length, rows = signals.shape[1] // 4, []
        starts = MM_PER_S * length / fs * np.arange(4)
        for names in layout:
            parts = [
                by_name[lead][i * length :][:length] for i, lead in enumerate(names)
            ]
            rows.append(
                [Trace(*trace) for trace in zip(parts, starts, names, strict=True)]
            )
        rows.append([Trace(by_name["II"], 0.0, "II")])
    headings = [heading, *[""] * len(rows)]
    return [
        Row(row, colour, gain, above)
        for row, above in zip(rows, headings, strict=False)
    ]


def _magnification(delta: np.ndarray) -> float:
    """The largest of 1, 2, 5 × 10^k that keeps max |δ| within `MAGNIFIED_MM`."""
    peak = max(float(np.abs(delta).max()), 1e-9)
    room = MAGNIFIED_MM / (MM_PER_MV * peak) * (1 + 1e-9)
    decade = 10.0 ** math.floor(math.log10(room))
    return max(m * decade for m in (1, 2, 5) if m * decade <= room)


def _scale(delta: np.ndarray, gain: float) -> str:
    peak = 1000 * np.abs(delta).max()
    return f" × {gain:g}: 5 mm = {500 / gain:g} µV, max |δ| = {peak:.3g} µV"


def _draw_rows(rows: list[Row], fs: float, title: str) -> Figure:
    """Rows beneath one another, each as high as its amplitude and label need."""
    last = rows[0].traces[-1]
    length = last.x + MM_PER_S * len(last.samples) / fs
    baselines, tops = [], [0.0]
    for row in rows:
        values = np.concatenate([trace.samples for trace in row.traces])
        low, high = (
            MM_PER_MV * row.gain * values.min(),
            MM_PER_MV * row.gain * values.max(),
        )
        room = LABEL_MM * (2 if row.heading else 1)
        height = 5 * math.ceil(max(15.0, high - low + room + 2) / 5)
        baselines.append(tops[-1] - (height + room + low + high) / 2)
        tops.append(tops[-1] - height)
    width, height = length + MARGIN_MM + 5, 13 - tops[-1]
    scale = min(2.0, max(1.0, 180 / width))  # short strips are enlarged
    figure = plt.figure(figsize=(width * scale / 25.4, height * scale / 25.4))
    plt.close(figure)
    limits = {"xlim": (-MARGIN_MM, length + 5), "ylim": (tops[-1] - 5, 8)}
    axes = figure.add_axes((0, 0, 1, 1), **limits)
    axes.set_axis_off()
    _draw_paper(axes, tops[-1], 0.25 * scale)
    for row, baseline, top in zip(rows, baselines, tops, strict=False):
        _draw_row(axes, row, fs, baseline, top)
    axes.text(-MARGIN_MM, 2, title, fontsize=10, fontweight="bold")
    look = {"fontsize": 7, "color": "#666666", "ha": "right"}
    axes.text(length + 5, tops[-1] - 4, "25 mm/s   10 mm/mV", **look)
    return figure


def _draw_paper(axes: Axes, bottom: float, line: float) -> None:
    x0, x1 = axes.get_xlim()
    for step, colour, width in ((1, "#f8dcdc", line), (5, "#eeb4b4", 2 * line)):
        look = {"colors": colour, "lw": width, "zorder": 0}
        axes.vlines(np.arange(x0, x1 + 0.1, step), bottom, 0, **look)
        axes.hlines(np.arange(bottom, 0.1, step), x0, x1, **look)


def _draw_row(axes: Axes, row: Row, fs: float, baseline: float, top: float) -> None:
    """The curves, and left of them the usual mark: 0.2 s long and 1 mV high.

    Of a magnified curve the mark is 5 mm high.
    """
    look = {"color": row.colour, "lw": 0.9}
    high = MM_PER_MV if row.gain == 1 else MAGNIFIED_MM
    mark = baseline + high * np.array([0, 0, 1, 1, 0, 0])
    axes.plot([-8, -7, -7, -2, -2, -1], mark, **look)
    if row.heading:
        axes.text(1 - MARGIN_MM, top - 1, row.heading, va="top", color=row.colour)
        top -= LABEL_MM
    for trace in row.traces:
        x = trace.x + MM_PER_S * np.arange(len(trace.samples)) / fs
        axes.plot(x, baseline + MM_PER_MV * row.gain * trace.samples, **look)
        axes.text(trace.x + 1, top - 1, trace.label, fontsize=8, va="top")
