"""Engineered ECG features with models of scikit-learn: the references that learn no representation.

Strips of at least `STRIP_S` get rhythm and wave measures from neurokit2 (Makowski et al. 2021; waves by
the peak prominence of Emrich et al. 2024, 12 times faster than wavelets). It rejects shorter windows: those
hold one beat around a known sample, and everything about them is computed for all records at once.

The models' settings follow AUROC on validation records; AUROC on test records was seen while they were
chosen, so that clean AUROC of these references may be slightly high.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pywt
from scipy.ndimage import gaussian_filter1d

STRIP_S, BLOCK = 5.0, 2048
BANDS_HZ = ((0.5, 3), (3, 8), (8, 15), (15, 25), (25, 40))
QUANTILES = {
    "min": 0,
    "q01": 0.01,
    "q05": 0.05,
    "median": 0.5,
    "q95": 0.95,
    "q99": 0.99,
    "max": 1,
}
SPANS = {
    "P": ("P_On", "P_Off"),
    "PR": ("P_On", "R_On"),
    "QRS": ("R_On", "R_Off"),
    "QT": ("R_On", "T_Off"),
}
BEAT_S = {
    "P": (-0.26, -0.1),
    "PR": (-0.1, -0.06),
    "ST": (0.08, 0.14),
    "T": (0.14, 0.45),
}  # after the R peak
TINY = 1e-12  # mV²: keeps the logarithm of a flat lead's energy finite
Columns = dict[str, np.ndarray]
"""Feature name → values (records,), or (records, leads) when there is one per lead."""


def extract(
    signals: np.ndarray, fs: float, leads: Sequence[str], centre: int | None = None
) -> tuple[np.ndarray, list[str]]:
    """Features float32 (records, features), NaN where a record has no such measure, and their names.

    Parameters
    ----------
    signals
        (records, leads, samples) in mV at `fs` Hz.
    leads
        Lead names; the waves of a strip are found on II, or else on the first.
    centre
        Sample of the R peak in windows shorter than `STRIP_S`; None: the middle.
    """
    blocks = [
        _columns(signals[i : i + BLOCK], fs, leads, centre)
        for i in range(0, len(signals), BLOCK)
    ]
    names = [
        f"{name} {lead}"
        for name, x in blocks[0].items()
        for lead in (leads if x.ndim == 2 else ("",))
    ]
    values = np.concatenate([np.column_stack(list(block.values())) for block in blocks])
    return np.where(np.isfinite(values), values, np.nan).astype(np.float32), [
        name.strip() for name in names
    ]


def _columns(
    signals: np.ndarray, fs: float, leads: Sequence[str], centre: int | None
) -> Columns:
    signals = np.asarray(signals, dtype=np.float64)
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # a flat lead has no skewness: NaN
        columns = _amplitudes(signals, fs) | _energies(signals, fs)
        if signals.shape[2] < STRIP_S * fs:
            return columns | _beat(
                signals, signals.shape[2] // 2 if centre is None else centre, fs
            )
        strips = [
            _strip(record, list(leads).index("II") if "II" in leads else 0, fs)
            for record in signals
        ]
        return columns | {
            name: np.array([strip[name] for strip in strips]) for name in strips[0]
        }


def _amplitudes(signals: np.ndarray, fs: float) -> Columns:
    """Distribution of the samples of each lead, and how fast it moves."""
    quantiles = np.quantile(signals, list(QUANTILES.values()), axis=2)
    standard = (signals - signals.mean(2, keepdims=True)) / signals.std(
        2, keepdims=True
    )
    columns = dict(zip(QUANTILES, quantiles, strict=True))
    columns |= {
        "std": signals.std(2),
        "skewness": (standard**3).mean(2),
        "kurtosis": (standard**4).mean(2),
    }
    columns["line length"] = np.abs(np.diff(signals)).mean(2) * fs
    return columns | {"zero crossings": np.diff(standard > 0).mean(2) * fs}


def _energies(signals: np.ndarray, fs: float) -> Columns:
    """Log power in `BANDS_HZ` below the Nyquist frequency, and log shares of db4's wavelet levels."""
    n, frequency = signals.shape[2], np.fft.rfftfreq(signals.shape[2], 1 / fs)
    power = np.abs(np.fft.rfft(signals)) ** 2 / n**2
    inside = {
        f"{a}-{b} Hz": (frequency >= a) & (frequency < b)
        for a, b in BANDS_HZ
        if b <= fs / 2
    }
    level = min(6, pywt.dwt_max_level(n, "db4"))
    parts = pywt.wavedec(
        signals - signals.mean(2, keepdims=True), "db4", level=level, axis=2
    )
    energy = np.stack([(part**2).sum(2) for part in parts]) + TINY
    bands = {
        name: np.log(power[..., band].sum(2) + TINY) for name, band in inside.items()
    }
    return bands | {
        f"wavelet {i}": share for i, share in enumerate(np.log(energy / energy.sum(0)))
    }


def _strip(record: np.ndarray, rhythm_lead: int, fs: float) -> Columns:
    """Rhythm, intervals and waves of one record (leads, samples)."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of too few beats: the features say so with NaN
        peaks, points = _delineate(record[rhythm_lead], round(fs))
        return _rhythm(peaks, points, fs) | _waves(record, peaks, points, fs)


def _delineate(lead: np.ndarray, fs: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """R peaks (beats,) and the points of the waves, all in samples; none where neurokit2 finds none."""
    import neurokit2  # slow to import, and only strips need it

    try:
        clean = neurokit2.ecg_clean(lead, sampling_rate=fs)
        peaks = neurokit2.ecg_peaks(clean, sampling_rate=fs)[1]["ECG_R_Peaks"]
        found = neurokit2.ecg_delineate(
            clean, peaks, sampling_rate=fs, method="prominence"
        )[1]
    except (
        Exception
    ):  # neurokit2 fails in many ways on what is no ECG, e.g. IndexError without beats
        peaks, found = (), {}
    points = {}
    for point in (
        "P_Onsets",
        "P_Peaks",
        "P_Offsets",
        "R_Onsets",
        "R_Offsets",
        "T_Peaks",
        "T_Offsets",
    ):
        samples = np.asarray(found.get(f"ECG_{point}", ()), float)
        # neurokit2 drops a point at sample 0, which can only be the first beat's.
        points[point.removesuffix("sets")] = np.r_[
            np.full(len(peaks) - len(samples), np.nan), samples
        ]
    return np.asarray(peaks, float), points


def _rhythm(peaks: np.ndarray, points: dict[str, np.ndarray], fs: float) -> Columns:
    """RR intervals, heart-rate variability (Task Force 1996) and median durations of waves, in s."""
    rr = np.diff(peaks) / fs if len(peaks) > 2 else np.full(2, np.nan)
    columns = {
        name: np.nanmedian(points[b] - points[a]) / fs for name, (a, b) in SPANS.items()
    }
    columns["QTc"] = columns["QT"] / np.sqrt(rr.mean())
    columns |= {
        "beats": np.float64(len(peaks)),
        "RR mean": rr.mean(),
        "RR min": rr.min(),
        "RR max": rr.max(),
    }
    columns |= {"SDNN": rr.std(), "RMSSD": np.sqrt((np.diff(rr) ** 2).mean())}
    # The added zero is NaN where there is no interval.
    return columns | {"pNN50": (np.abs(np.diff(rr)) > 0.05).mean() + 0 * rr.mean()}


def _waves(
    record: np.ndarray, peaks: np.ndarray, points: dict[str, np.ndarray], fs: float
) -> Columns:
    """Median amplitudes in mV of every lead (leads,), against the level at the onset of QRS."""

    def at(samples: np.ndarray) -> np.ndarray:
        inside = (samples >= 0) & (samples < record.shape[1])
        return np.where(
            inside, record[:, np.where(inside, samples, 0).astype(int)], np.nan
        )

    reach = round(0.08 * fs)
    level = at(points["R_On"])
    qrs = at(peaks[:, None] + np.arange(-reach, reach + 1)) - level[..., None]
    beats = {"R wave": qrs.max(2), "S wave": qrs.min(2), "QRS area": qrs.sum(2) / fs}
    places = {
        "P wave": points["P_Peaks"],
        "ST": points["R_Off"] + 0.06 * fs,
        "T wave": points["T_Peaks"],
    }
    beats |= {name: at(place) - level for name, place in places.items()}
    return {name: np.nanmedian(values, axis=1) for name, values in beats.items()}


def _beat(signals: np.ndarray, centre: int, fs: float) -> Columns:
    """Shape of the beat whose R peak is at the sample `centre`, and where its neighbours are."""
    level = signals - np.median(signals, axis=2, keepdims=True)
    qrs = _around(level, centre, -0.12 * fs, 0.12 * fs)
    size, slope = np.abs(qrs), np.diff(qrs) ** 2
    columns = {"R wave": qrs.max(2), "S wave": qrs.min(2), "QRS area": qrs.sum(2) / fs}
    columns["QRS slope"] = np.sqrt(slope.max(2)) * fs
    for height in (0.25, 0.5, 0.75):
        columns[f"QRS width at {height:.0%}"] = (
            size > height * size.max(2, keepdims=True)
        ).sum(2) / fs
        columns[f"slope width at {height:.0%}"] = (
            slope > height * slope.max(2, keepdims=True)
        ).sum(2) / fs
    for name, (start, end) in BEAT_S.items():
        wave = _around(level, centre, start * fs, end * fs)
        columns |= {
            f"{name} max": wave.max(2),
            f"{name} min": wave.min(2),
            f"{name} mean": wave.mean(2),
        }
    return columns | _neighbours(signals, centre, fs)


def _around(
    signals: np.ndarray, centre: int | np.ndarray, start: float, end: float
) -> np.ndarray:
    """Samples `start` to `end` after `centre`, one or (records,); beyond an edge its sample is repeated."""
    place = np.reshape(centre, (-1, 1, 1)) + np.arange(round(start), round(end) + 1)
    return np.take_along_axis(signals, np.clip(place, 0, signals.shape[2] - 1), axis=2)


def _neighbours(signals: np.ndarray, centre: int, fs: float) -> Columns:
    """RR intervals in s to the steepest stretch before and after the beat, and how alike the beats are."""
    gap, end, columns = round(0.2 * fs), signals.shape[2] - 1, {}
    energy = (np.gradient(signals, axis=2) ** 2).sum(1)
    energy = gaussian_filter1d(energy, 0.025 * fs, axis=1, mode="constant")
    start = max(centre - gap // 2, 0)
    near = energy[:, start : centre + gap // 2 + 1]
    itself, middle = near.max(1), near.argmax(1) + start
    before, after = (0, max(centre - gap, 1)), (min(centre + gap, end), end + 1)
    for side, (start, stop), edge in (("before", before, 0), ("after", after, end)):
        height = energy[:, start:stop].max(1)
        # A stretch with under a tenth of the slope energy is no beat: the interval ends with the window.
        peak = np.where(
            height > 0.1 * itself, energy[:, start:stop].argmax(1) + start, edge
        )
        columns[f"RR {side}"] = np.abs(peak - middle) / fs
        columns[f"slope {side}"] = np.log((height + TINY) / (itself + TINY))
        own, other = (
            _around(signals, place, -gap / 2, gap / 2) for place in (middle, peak)
        )
        own, other = (x - x.mean(2, keepdims=True) for x in (own, other))
        size = np.sqrt((own**2).sum(2) * (other**2).sum(2))
        columns[f"likeness {side}"] = (own * other).sum(2) / size
    return columns | {"RR ratio": columns["RR before"] / columns["RR after"]}
