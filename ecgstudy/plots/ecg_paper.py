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


class Sheet(NamedTuple):
    """Rows of curves on one piece of paper, under a heading."""

    rows: list[list[Trace]]
    heading: str = ""
    colour: str = INK
    gain: float = 1.0


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
    sheets = [Sheet(_rows_of(signals, fs, leads))]
    if perturbation is not None:
        delta = np.asarray(perturbation, dtype=float)
        if delta.shape != signals.shape:
            raise StudyError(
                f"perturbation {delta.shape} does not fit signals {signals.shape}"
            )
        attacked, gain = _rows_of(signals + delta, fs, leads), _magnification(delta)
        scale = f"perturbation δ{_scale(delta, gain)}"
        sheets = [
            sheets[0]._replace(heading="clean"),
            Sheet(attacked, "attacked", BLUE),
            Sheet(_rows_of(delta, fs, leads), scale, ORANGE, gain),
        ]
    return _draw_sheets(sheets, fs, title)


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
    sheets = [Sheet([[Trace(signal[lead], 0.0, "ECG")]])]
    for name, delta in deltas.items():
        gain = _magnification(delta)
        trace = Trace(delta[lead], 0.0, f"{name}{_scale(delta, gain)}")
        sheets.append(Sheet([[trace]], "", ORANGE, gain))
    return _draw_sheets(sheets, fs, f"{title}, lead {leads[lead]}")


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


def _rows_of(signals: np.ndarray, fs: float, leads: Sequence[str]) -> list[list[Trace]]:
    """The usual layout of twelve leads, if they are long enough, or strips."""
    by_name = dict(zip(leads, signals, strict=True))
    layout = [row.split() for row in STANDARD]
    there = {lead for row in layout for lead in row} <= set(by_name)
    if not there or signals.shape[1] < 5 * fs:
        return [[Trace(samples, 0.0, lead)] for lead, samples in by_name.items()]
    length, rows = signals.shape[1] // 4, []
    for names in layout:
        parts = [by_name[lead][i * length :][:length] for i, lead in enumerate(names)]
        starts = MM_PER_S * length / fs * np.arange(4)
        rows.append([Trace(*trace) for trace in zip(parts, starts, names, strict=True)])
    return [*rows, [Trace(by_name["II"], 0.0, "II")]]


def _magnification(delta: np.ndarray) -> float:
    """The largest of 1, 2, 5 × 10^k that keeps max |δ| within `MAGNIFIED_MM`."""
    peak = max(float(np.abs(delta).max()), 1e-9)
    room = MAGNIFIED_MM / (MM_PER_MV * peak) * (1 + 1e-9)
    decade = 10.0 ** math.floor(math.log10(room))
    return max(m * decade for m in (1, 2, 5) if m * decade <= room)


def _scale(delta: np.ndarray, gain: float) -> str:
    peak = 1000 * np.abs(delta).max()
    return f" × {gain:g}: 5 mm = {500 / gain:g} µV, max |δ| = {peak:.3g} µV"


def _heights(sheet: Sheet) -> list[float]:
    """Of each row in mm: as high as its amplitude and its label need."""
    heights = []
    for row in sheet.rows:
        low, high = _extent(row, sheet.gain)
        heights.append(5 * math.ceil(max(15.0, high - low + LABEL_MM + 2) / 5))
    return heights


def _extent(row: list[Trace], gain: float) -> tuple[float, float]:
    values = np.concatenate([trace.samples for trace in row]) * MM_PER_MV * gain
    return values.min(), values.max()


def _draw_sheets(sheets: list[Sheet], fs: float, title: str) -> Figure:
    """Sheets above one another, to scale."""
    last = sheets[0].rows[-1][-1]
    length = last.x + MM_PER_S * len(last.samples) / fs
    width = length + MARGIN_MM + 5
    scale = min(3.0, max(1.0, 180 / width))  # short strips are enlarged
    heights = [sum(_heights(sheet)) for sheet in sheets]
    above = [6 / scale if sheet.heading else 0 for sheet in sheets]
    top = (7 if title else 0) / scale
    height = top + sum(above) + sum(heights) + 5 / scale
    figure = plt.figure(figsize=(width * scale / 25.4, height * scale / 25.4))
    plt.close(figure)
    y = height - top
    for sheet, room, tall in zip(sheets, above, heights, strict=True):
        y -= room + tall
        box = (0, y / height, 1, tall / height)
        limits = {"xlim": (-MARGIN_MM, length + 5), "ylim": (-tall, 0)}
        axes = figure.add_axes(box, **limits)
        _draw_paper(axes, line=0.25 * scale)
        _draw_traces(axes, sheet, fs)
        axes.set_title(sheet.heading, loc="left", fontsize=9, color=sheet.colour, pad=3)
    bold = {"fontsize": 10, "fontweight": "bold"}
    figure.suptitle(title, x=0, y=1, ha="left", va="top", **bold)
    small = {"fontsize": 7, "color": "#666666", "ha": "right", "va": "bottom"}
    figure.text(1, 0, "25 mm/s   10 mm/mV", **small)
    return figure


def _draw_paper(axes: Axes, line: float) -> None:
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    for step, colour, width in ((1, "#f8dcdc", line), (5, "#eeb4b4", 2 * line)):
        look = {"colors": colour, "lw": width, "zorder": 0, "clip_on": False}
        axes.vlines(np.arange(x0, x1 + 0.1, step), y0, y1, **look)
        axes.hlines(np.arange(y0, y1 + 0.1, step), x0, x1, **look)
    axes.set_axis_off()


def _draw_traces(axes: Axes, sheet: Sheet, fs: float) -> None:
    """The curves, and left of the first the usual mark: 0.2 s long and 1 mV high.

    Of a magnified curve the mark is 5 mm high.
    """
    top, look = 0.0, {"color": sheet.colour, "lw": 0.9}
    for row, height in zip(sheet.rows, _heights(sheet), strict=True):
        baseline = top - (height + LABEL_MM) / 2 - sum(_extent(row, sheet.gain)) / 2
        if top == 0:
            high = MM_PER_MV if sheet.gain == 1 else MAGNIFIED_MM
            foot = np.clip(baseline, axes.get_ylim()[0] + 1, -high - 1)
            mark = foot + high * np.array([0, 0, 1, 1, 0, 0])
            axes.plot([-8, -7, -7, -2, -2, -1], mark, **look)
        for trace in row:
            x = trace.x + MM_PER_S * np.arange(len(trace.samples)) / fs
            y = baseline + MM_PER_MV * sheet.gain * trace.samples
            axes.plot(x, y, **look)
            axes.text(trace.x + 1, top - 1, trace.label, fontsize=8, va="top")
        top -= height
