"""Which part of an ECG a perturbation uses: shares of its energy by frequency, lead and part of the beat."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.signal import periodogram
from torch import Tensor

from ecgstudy.evaluation.sample import spread
from ecgstudy.records import EcgRecords

BANDS_HZ = {
    "0–0.5 Hz": 0.0,
    "0.5–5 Hz": 0.5,
    "5–15 Hz": 5.0,
    "15–40 Hz": 15.0,
    "≥ 40 Hz": 40.0,
}
"""Lower edges; the last band ends at the Nyquist frequency."""
QRS_S, P_S, T_S, BEFORE_S = 0.06, 0.20, 0.40, 0.40
"""Seconds around an R peak: QRS ± 0.06, P from −0.20, ST and T to +0.40, before P from −0.40; the rest."""
PARTS = ("before P", "P", "QRS", "ST-T", "rest", "no R peak")
"""The earlier of QRS, P, ST-T, before P has a sample to itself; `no R peak`: records where none was found."""


def profile(
    delta: np.ndarray, fs: float, leads: Sequence[str], peaks: np.ndarray
) -> list[dict]:
    """Shares of the energy of all perturbations by frequency band, lead and part of the beat.

    Parameters
    ----------
    delta
        (records, leads, samples) in mV.
    fs
        Sampling rate in Hz.
    peaks
        True at R peaks, (records, samples): `r_peaks`.

    Returns
    -------
    list of dict
        `kind` (band, lead, part), `name`, `share` of the energy, and `size`: the share that white noise
        on all samples would have. The shares of a kind sum to 1, so do its sizes. Empty if δ is 0.
    """
    energy = np.square(delta, dtype=np.float64)
    if not energy.any():
        return []
    codes = parts_of_beats(peaks, fs)
    frequencies, power = periodogram(
        delta.astype(np.float64), fs, detrend=False, axis=2
    )
    bands = np.searchsorted(list(BANDS_HZ.values()), frequencies, side="right") - 1
    # A one-sided spectrum counts all but the first and, of an even length, the last frequency twice.
    width = np.where(
        (frequencies == 0) | (2 * np.arange(len(frequencies)) == delta.shape[2]), 1, 2
    )
    kinds = {
        "band": (BANDS_HZ, _sums(bands, power.sum((0, 1))), _sums(bands, width)),
        "lead": (leads, energy.sum((0, 2)), np.ones(len(leads))),
        "part": (
            PARTS,
            _sums(codes, energy.sum(1)),
            _sums(codes, np.ones(codes.shape)),
        ),
    }
    return [
        {"kind": kind, "name": name, "share": float(share), "size": float(size)}
        for kind, (names, shares, sizes) in kinds.items()
        for name, share, size in zip(
            names, shares / shares.sum(), sizes / sizes.sum(), strict=False
        )
        if size > 0
    ]


def _sums(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.bincount(codes.ravel(), values.ravel(), max(len(BANDS_HZ), len(PARTS)))


def parts_of_beats(peaks: np.ndarray, fs: float) -> np.ndarray:
    """Index in `PARTS` of every sample (records, samples), by its time from the nearest R peaks."""
    time = np.arange(peaks.shape[1])
    since = time - np.maximum.accumulate(np.where(peaks, time, -np.inf), axis=1)
    until = (
        np.minimum.accumulate(np.where(peaks, time, np.inf)[:, ::-1], axis=1)[:, ::-1]
        - time
    )
    qrs, p, t, before = (round(seconds * fs) for seconds in (QRS_S, P_S, T_S, BEFORE_S))
    found = [
        ~peaks.any(axis=1, keepdims=True),
        (since <= qrs) | (until <= qrs),
        until <= p,
        since <= t,
    ]
    names = ["no R peak", "QRS", "P", "ST-T", "before P"]
    return np.select(
        [*found, until <= before], [PARTS.index(n) for n in names], PARTS.index("rest")
    )


def r_peaks(
    signals: np.ndarray, fs: float, leads: Sequence[str], centre: int | None = None
) -> np.ndarray:
    """True at R peaks, (records, samples).

    Parameters
    ----------
    signals
        (records, leads, samples) in mV.
    centre
        The sample of the R peak of records that are windows of beats. Otherwise neurokit2 finds peaks on
        lead II, or on the first lead where there is no II.
    """
    peaks = np.zeros((len(signals), signals.shape[2]), dtype=bool)
    if centre is not None:
        peaks[:, centre] = True
        return peaks
    lead = list(leads).index("II") if "II" in leads else 0
    for row, signal in zip(peaks, signals[:, lead], strict=True):
        row[_found_peaks(signal, round(fs))] = True
    return peaks


def _found_peaks(signal: np.ndarray, fs: int) -> np.ndarray:
    import neurokit2  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few beats
        try:
            clean = neurokit2.ecg_clean(signal, sampling_rate=fs)
            return np.asarray(
                neurokit2.ecg_peaks(clean, sampling_rate=fs)[1]["ECG_R_Peaks"], int
            )
        except Exception:  # neurokit2 fails in many ways on what is no ECG
            return np.zeros(0, int)


def with_r_peaks(records: EcgRecords) -> EcgRecords:
    """`records` with R peaks (samples) of the attacked test records in the table, as column ``r_peaks``.

    So that neurokit2 is needed where data are prepared, and not where models are attacked. Windows of beats
    have their R peak where the card says, and are returned as they are.
    """
    if "window_samples" in records.card:
        return records
    rows = np.flatnonzero(records.table["split"].eq("test") & records.table["attacked"])
    found = np.empty(len(records), dtype=object)
    for row, peaks in zip(
        rows, r_peaks(records.signals[rows], records.fs, records.leads), strict=True
    ):
        found[row] = np.flatnonzero(peaks)
    return replace(records, table=records.table.assign(r_peaks=found))


class Profiler:
    """Called with one attack's perturbations after another, collects `rows`: each one's `profile`.

    Parameters
    ----------
    records
        All that are attacked; at most `most` of them, of all classes in turn, are looked at.
    """

    def __init__(self, records: EcgRecords, most: int = 200):
        self.fs, self.leads, self.rows = records.fs, records.leads, []
        self.chosen = spread(torch.tensor(records.multi_hot()), most).numpy()
        self.peaks = np.zeros((len(records), records.signals.shape[2]), dtype=bool)
        if "r_peaks" in records.table:
            for row in self.chosen:
                self.peaks[row, records.table["r_peaks"].iloc[row]] = True
            return
        centre = (records.card.get("window_samples") or [None])[0]
        self.peaks[self.chosen] = r_peaks(
            records.signals[self.chosen], self.fs, self.leads, centre
        )

    def __call__(self, attack: str, rows: Tensor, delta: Tensor) -> None:
        """`delta` (mV) of the records `rows` under `attack`."""
        rows = rows.cpu().numpy()
        seen = np.isin(rows, self.chosen)
        found = profile(
            delta.cpu().numpy()[seen], self.fs, self.leads, self.peaks[rows[seen]]
        )
        self.rows += [{"attack": attack, **row} for row in found]
