"""Where a perturbation has its energy: by frequency, lead and part of the heartbeat."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.signal import periodogram
from torch import Tensor

from ecgstudy.evaluation.sample import pick_evenly
from ecgstudy.records import EcgRecords

BANDS_HZ = {
    "0–0.5 Hz": 0.0,
    "0.5–5 Hz": 0.5,
    "5–15 Hz": 5.0,
    "15–40 Hz": 15.0,
    "≥ 40 Hz": 40.0,
}
"""Lower edges; the last band ends at the Nyquist frequency."""
WINDOWS_S = {
    "before P": (0.40, 0.0),
    "ST-T": (0.0, 0.40),
    "P": (0.20, 0.0),
    "QRS": (0.06, 0.06),
}
"""Seconds before and after an R peak; where they overlap, the later one counts."""
PARTS = ("before P", "P", "QRS", "ST-T", "rest", "no R peak")
"""Parts of a beat; `no R peak`: all of a record in which none was found."""


def profile_energy(
    delta: np.ndarray, fs: float, leads: Sequence[str], peaks: Sequence[np.ndarray]
) -> list[dict]:
    """Shares of perturbations' energy by frequency band, lead and part of the beat.

    Parameters
    ----------
    delta
        (records, leads, samples) in mV.
    fs
        Sampling rate in Hz.
    leads
        Names of the leads.
    peaks
        R peaks of each record, in samples: `find_r_peaks`.

    Returns
    -------
    list of dict
        `kind` (band, lead, part), `name`, `share` of the energy, and `size`: the share
        that white noise on all samples would have. The shares of a kind sum to 1, and
        so do its sizes. Empty if δ is 0.
    """
    energy, samples = np.square(delta, dtype=np.float64), delta.shape[2]
    if not energy.any():
        return []
    hertz, power = periodogram(delta.astype(np.float64), fs, detrend=False, axis=2)
    # A one-sided spectrum holds all frequencies twice but the first and, of an even
    # number of samples, the last.
    once = (hertz == 0) | (2 * np.arange(len(hertz)) == samples)
    bands = np.searchsorted(list(BANDS_HZ.values()), hertz, side="right") - 1
    parts = locate_in_beats(peaks, samples, fs)
    each = np.arange(len(leads))
    rows = []
    for kind, names, codes, energies, sizes in (
        ("band", BANDS_HZ, bands, power.sum((0, 1)), np.where(once, 1, 2)),
        ("lead", leads, each, energy.sum((0, 2)), np.ones(len(leads))),
        ("part", PARTS, parts, energy.sum(1), np.ones(parts.shape)),
    ):
        share = np.bincount(codes.ravel(), energies.ravel(), len(names))
        size = np.bincount(codes.ravel(), sizes.ravel(), len(names))
        share, size = share / share.sum(), size / size.sum()
        for index, name in enumerate(names):
            if size[index] > 0:
                shares = {"share": float(share[index]), "size": float(size[index])}
                rows.append({"kind": kind, "name": name, **shares})
    return rows


def locate_in_beats(peaks: Sequence[np.ndarray], samples: int, fs: float) -> np.ndarray:
    """Index in `PARTS` of every sample, (records, samples).

    Parameters
    ----------
    peaks
        R peaks of each record, in samples.
    samples
        Length of the records.
    fs
        Sampling rate in Hz.
    """
    parts = np.full((len(peaks), samples), PARTS.index("rest"))
    for row, found in zip(parts, peaks, strict=True):
        if not len(found):
            row[:] = PARTS.index("no R peak")
        for part, (before_s, after_s) in WINDOWS_S.items():
            before, after = round(before_s * fs), round(after_s * fs)
            for peak in found:
                row[max(0, peak - before) : peak + after + 1] = PARTS.index(part)
    return parts


def find_r_peaks(records: EcgRecords) -> list[np.ndarray]:
    """R peaks of each record, in samples.

    They are known in windows of beats, or from the table's column ``r_peaks``; else
    neurokit2 finds them on lead II, or on the first lead where there is no II.
    """
    if "r_peaks" in records.table:
        return list(records.table["r_peaks"])
    if records.centre is not None:
        return [np.array([records.centre])] * len(records)
    leads = list(records.leads)
    lead = leads.index("II") if "II" in leads else 0
    return [_find_peaks(ecg, round(records.fs)) for ecg in records.signals[:, lead]]


def _find_peaks(signal: np.ndarray, fs: int) -> np.ndarray:
    import neurokit2  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few beats
        try:
            clean = neurokit2.ecg_clean(signal, sampling_rate=fs)
            found = neurokit2.ecg_peaks(clean, sampling_rate=fs)[1]["ECG_R_Peaks"]
        except Exception:  # neurokit2 fails in many ways on what is no ECG
            found = []
    return np.unique(np.asarray(found, int))


def add_r_peaks(records: EcgRecords) -> EcgRecords:
    """Add R peaks (in samples) of attacked test records to the table, as ``r_peaks``.

    So neurokit2 is needed where data are prepared, and not where models are attacked.
    Windows of beats are returned as they are.
    """
    if records.centre is not None:
        return records
    attacked = records.table["split"].eq("test") & records.table["attacked"]
    found = iter(find_r_peaks(records.select(attacked.to_numpy())))
    column = [next(found) if row else None for row in attacked]
    return replace(records, table=records.table.assign(r_peaks=column))


def profile_attacks(records: EcgRecords, deltas: dict[str, Tensor]) -> list[dict]:
    """`profile_energy` of each attack's δ, with its name as `attack`.

    At most 200 of the `records`, of all classes in turn, are used.
    """
    rows = pick_evenly(torch.tensor(records.multi_hot()), 200).numpy()
    seen = records.select(np.isin(np.arange(len(records)), rows))
    peaks, profiles = find_r_peaks(seen), []
    for attack, delta in deltas.items():
        delta = delta.cpu().numpy()[rows]
        made = np.flatnonzero(~np.isnan(delta).any((1, 2)))
        found = [peaks[row] for row in made]
        shares = profile_energy(delta[made], records.fs, records.leads, found)
        profiles += [{"attack": attack, **share} for share in shares]
    return profiles
