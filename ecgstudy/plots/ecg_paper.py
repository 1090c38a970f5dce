"""ECGs on ECG paper: 25 mm/s and 10 mm/mV, so that 1 mV is as high as 0.4 s is long.

All geometry is in mm of paper; a figure of magnification 1 prints at the true size.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.signal import periodogram

from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords

MM_PER_S, MM_PER_MV = 25.0, 10.0
LABEL_MM, MARGIN_MM = 5.0, 10.0
SPECTRUM_MM = 40.0
INK, ATTACKED, DELTA = "#1a1a1a", "#0072B2", "#D55E00"
STANDARD_LAYOUT = (
    ("I", "aVR", "V1", "V4"),
    ("II", "aVL", "V2", "V5"),
    ("III", "aVF", "V3", "V6"),
)


class Trace(NamedTuple):
    """One curve on a sheet: samples (mV), left end, baseline and top (mm), label, colour and gain."""

    samples: np.ndarray
    x: float
    y: float
    top: float
    label: str = ""
    colour: str = INK
    gain: float = 1.0


def ecg_values(signals: np.ndarray, fs: float, leads: tuple[str, ...]) -> pd.DataFrame:
    """The numbers behind an ECG drawing: `time_s`, and one column a lead (mV)."""
    time = np.arange(signals.shape[-1]) / fs
    return pd.DataFrame({"time_s": time, **dict(zip(leads, signals, strict=True))})


def draw_ecg(
    signals: np.ndarray,
    fs: float,
    leads: tuple[str, ...],
    perturbation: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """One ECG on paper; with `perturbation` also the attacked ECG and, magnified, δ itself beneath.

    Twelve leads of 5 s or more come in the usual 3 × 4 layout with lead II as rhythm strip, others as strips.

    Parameters
    ----------
    signals, perturbation
        (leads, samples) in mV.
    fs
        Sampling rate in Hz.

    Raises
    ------
    StudyError
        When signals, leads and perturbation do not fit together.
    """
    signals = np.asarray(signals, dtype=float)
    if signals.ndim != 2 or len(signals) != len(leads):
        raise StudyError(
            f"signals of shape {signals.shape} do not fit the {len(leads)} leads {tuple(leads)}"
        )
    if perturbation is None:
        sheets = [("", signals, INK, 1.0)]
    elif np.shape(perturbation) != signals.shape:
        raise StudyError(
            f"perturbation {np.shape(perturbation)} and signals {signals.shape} differ in shape"
        )
    else:
        delta = np.asarray(perturbation, dtype=float)
        peak, gain = np.abs(delta).max(), _magnification(delta)
        scale = f"perturbation δ × {gain:g}: 5 mm = {500 / gain:g} µV, max |δ| = {1000 * peak:.3g} µV"
        sheets = [
            ("clean", signals, INK, 1.0),
            ("attacked", signals + delta, ATTACKED, 1.0),
            (scale, delta, DELTA, gain),
        ]
    return _draw_sheets(sheets, fs, tuple(leads), title)


def draw_perturbations(
    signal: np.ndarray,
    deltas: Mapping[str, np.ndarray],
    fs: float,
    leads: tuple[str, ...],
    title: str = "",
    seconds: float = 4.0,
) -> Figure:
    """Several perturbations of one ECG beneath it, each magnified as it says, with their spectra beside.

    The lead on which most of their energy lies is drawn, `seconds` from the record's middle; spectra are of
    all leads and the whole record. `signal` and each attack's perturbation are (leads, samples) in mV.
    """
    energy = sum(
        (np.square(delta).sum(1) for delta in deltas.values()), np.zeros(len(leads))
    )
    lead, length = int(energy.argmax()), min(signal.shape[1], round(seconds * fs))
    shown = slice((signal.shape[1] - length) // 2, (signal.shape[1] + length) // 2)
    rows = [("ECG", signal, INK, 1.0)]
    rows += [
        (name, delta, DELTA, _magnification(delta)) for name, delta in deltas.items()
    ]
    sheets = []
    for name, values, colour, gain in rows:
        scaled = f" × {gain:g}: 5 mm = {500 / gain:g} µV, max |δ| = {1000 * np.abs(values).max():.3g} µV"
        scaled *= values is not signal
        traces, height = _traces(
            [[(values[lead, shown], 0.0, f"{name}{scaled}")]], colour, gain
        )
        sheets.append(("", traces, (MM_PER_S * length / fs, height)))
    figure = _figure(sheets, fs, f"{title}, lead {leads[lead]}", right=SPECTRUM_MM)
    for axes, (_, values, colour, _) in zip(list(figure.axes), rows, strict=True):
        still = values - values.mean(1, keepdims=True) if values is signal else values
        spectrum = _draw_spectrum(axes, still, fs, colour)
        if values is signal:
            spectrum.set_title("energy by frequency, all leads", fontsize=8)
    spectrum.tick_params(labelbottom=True, labelsize=7)
    spectrum.set_xlabel("Hz", fontsize=7, labelpad=0)
    return figure


def typical_records(records: EcgRecords, limit: int = 200) -> np.ndarray:
    """Row of one typical record a class: of its first `limit` records, that of median amplitude (std)."""
    labels, rows = records.multi_hot(), []
    for column in range(len(records.classes)):
        candidates = np.flatnonzero(labels[:, column] > 0)
        alone = candidates[labels[candidates].sum(1) == 1]
        chosen = (alone if len(alone) else candidates)[:limit]
        if not len(chosen):
            raise StudyError(
                f"{records.name}: class {records.classes[column]!r} has no record to draw"
            )
        amplitude = np.asarray(records.signals[chosen]).std(axis=2).mean(1)
        rows.append(chosen[np.argsort(amplitude)[len(chosen) // 2]])
    return np.array(rows)


def record_amplitudes(records: EcgRecords) -> pd.DataFrame:
    """Per record, in mV: standard deviation and peak-to-peak amplitude, each the median over leads."""
    blocks = (
        np.asarray(records.signals[i : i + 2048]) for i in range(0, len(records), 2048)
    )
    spread = [
        np.median([block.std(2), np.ptp(block, axis=2)], axis=2).T for block in blocks
    ]
    return pd.DataFrame(
        np.concatenate(spread), columns=["std_mv", "peak_to_peak_mv"]
    ).assign(record=records.table["record"].to_numpy())


def _draw_sheets(
    sheets: list[tuple], fs: float, leads: tuple[str, ...], title: str
) -> Figure:
    samples = sheets[0][1].shape[1]
    standard = (
        set(leads) >= {lead for row in STANDARD_LAYOUT for lead in row}
        and samples / fs >= 5
    )
    drawn = []
    for heading, signals, colour, gain in sheets:
        rows = (_standard_rows if standard else _strip_rows)(signals, leads, fs)
        traces, height = _traces(rows, colour, gain)
        drawn.append((heading, traces, (MM_PER_S * samples / fs, height)))
    return _figure(drawn, fs, title)


def _strip_rows(
    signals: np.ndarray, leads: tuple[str, ...], fs: float
) -> list[list[tuple]]:
    return [[(signal, 0.0, lead)] for signal, lead in zip(signals, leads, strict=True)]


def _standard_rows(
    signals: np.ndarray, leads: tuple[str, ...], fs: float
) -> list[list[tuple]]:
    quarter, by_name = signals.shape[1] // 4, dict(zip(leads, signals, strict=True))
    rows = [
        [
            (
                by_name[lead][i * quarter : (i + 1) * quarter],
                MM_PER_S * i * quarter / fs,
                lead,
            )
            for i, lead in enumerate(names)
        ]
        for names in STANDARD_LAYOUT
    ]
    return [*rows, [(by_name["II"], 0.0, "II")]]


def _traces(
    rows: list[list[tuple]], colour: str = INK, gain: float = 1.0
) -> tuple[list[Trace], float]:
    """Stack rows of (samples, x, label): each as high as its amplitude and its label need."""
    traces, top, scale = [], 0.0, MM_PER_MV * gain
    for row in rows:
        low = min(scale * samples.min() for samples, _, _ in row)
        high = max(scale * samples.max() for samples, _, _ in row)
        height = 5 * math.ceil(max(15.0, high - low + LABEL_MM + 2) / 5)
        baseline = top - (height + LABEL_MM) / 2 - (low + high) / 2
        traces += [
            Trace(samples, x, baseline, top, label, colour, gain)
            for samples, x, label in row
        ]
        top -= height
    return traces, -top


def _magnification(delta: np.ndarray) -> float:
    """The largest of 1, 2, 5 × 10^k that keeps max |δ| within 5 mm."""
    room = 5.0 / (MM_PER_MV * max(float(np.abs(delta).max()), 1e-9))
    decade = 10.0 ** math.floor(math.log10(room))
    return next(m * decade for m in (5, 2, 1) if m * decade <= room * (1 + 1e-9))


def _figure(
    sheets: list[tuple[str, list[Trace], tuple[float, float]]],
    fs: float,
    title: str,
    right: float = 0.0,
) -> Figure:
    """Sheets (heading, traces, (width, height) in mm) above one another, everything to scale.

    `right` leaves so many mm free beside them.
    """
    width = max(size[0] for _, _, size in sheets) + MARGIN_MM + 5 + right
    scale = min(
        3.0, max(1.0, 180 / width)
    )  # short strips are enlarged, the aspect is kept
    above, footer = [6 / scale * bool(heading) for heading, _, _ in sheets], 5 / scale
    height = (
        (7 / scale if title else 0)
        + sum(above)
        + sum(size[1] for _, _, size in sheets)
        + footer
    )
    figure = plt.figure(figsize=(width * scale / 25.4, height * scale / 25.4))
    plt.close(figure)
    bottom = footer + sum(above) + sum(size[1] for _, _, size in sheets)
    for (heading, traces, size), room in zip(sheets, above, strict=True):
        bottom -= size[1] + room
        box = (0, bottom / height, (size[0] + MARGIN_MM + 5) / width, size[1] / height)
        axes = figure.add_axes(box, xlim=(-MARGIN_MM, size[0] + 5), ylim=(-size[1], 0))
        _paper(axes, line=0.25 * scale)
        _calibration(axes, traces[0])
        for trace in traces:
            _draw_trace(axes, trace, fs)
        axes.set_title(heading, loc="left", fontsize=9, color=traces[0].colour, pad=3)
    figure.suptitle(
        title, x=0, y=1, ha="left", va="top", fontsize=10, fontweight="bold"
    )
    figure.text(
        1 - right / width,
        0,
        "25 mm/s   10 mm/mV",
        ha="right",
        va="bottom",
        fontsize=7,
        color="#666666",
    )
    return figure


def _draw_spectrum(sheet: Axes, values: np.ndarray, fs: float, colour: str) -> Axes:
    """Mean energy of all leads by frequency, right of `sheet`, on a scale of its own."""
    frequency, power = periodogram(values, fs, detrend=False, axis=1)
    edges = np.arange(0, fs / 2 + 1, max(1.0, fs / 100))
    energy, count = (
        np.histogram(frequency, edges, weights=w)[0] for w in (power.sum(0), None)
    )
    box, mm = (
        sheet.get_position(),
        sheet.get_position().width / np.ptp(sheet.get_xlim()),
    )
    axes = sheet.figure.add_axes(
        (box.x1 + 4 * mm, box.y0, (SPECTRUM_MM - 6) * mm, 0.85 * box.height)
    )
    axes.stairs(energy / count.clip(min=1), edges, fill=True, color=colour, alpha=0.7)
    axes.set(xlim=(0, fs / 2), yticks=[])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelbottom=False, length=2)
    return axes


def _paper(axes: Axes, line: float) -> None:
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    for step, colour, width in ((1, "#f8dcdc", line), (5, "#eeb4b4", 2 * line)):
        xs, ys = np.arange(x0, x1 + 0.1, step), np.arange(y0, y1 + 0.1, step)
        grid = [((x, y0), (x, y1)) for x in xs] + [((x0, y), (x1, y)) for y in ys]
        axes.add_collection(
            LineCollection(
                grid, colors=colour, linewidths=width, zorder=0, clip_on=False
            )
        )
    axes.set_axis_off()


def _calibration(axes: Axes, trace: Trace) -> None:
    """The usual mark: 1 mV high (0.5 / gain mV for a magnified curve) and 0.2 s long."""
    high = MM_PER_MV if trace.gain == 1 else 5.0
    x, y = np.array([-8, -7, -7, -2, -2, -1]), np.array([0, 0, high, high, 0, 0])
    axes.plot(
        x,
        np.clip(trace.y, axes.get_ylim()[0] + 1, -high - 1) + y,
        color=trace.colour,
        lw=0.9,
    )


def _draw_trace(axes: Axes, trace: Trace, fs: float) -> None:
    x = trace.x + MM_PER_S * np.arange(len(trace.samples)) / fs
    axes.plot(
        x, trace.y + MM_PER_MV * trace.gain * trace.samples, color=trace.colour, lw=0.9
    )
    axes.text(trace.x + 1, trace.top - 1, trace.label, fontsize=8, va="top", color=INK)
