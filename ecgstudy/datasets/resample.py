"""Fewer leads and another rate, so that an encoder of one data set fits another."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from ecgstudy.errors import StudyError
from ecgstudy.records import BLOCK, EcgRecords

SUBSTITUTES = {"II": "MLII"}
"""Lead → the lead taken for it where it was not recorded: II from trunk electrodes."""


def adapt_records(
    records: EcgRecords, leads: Sequence[str] | None, fs: float | None
) -> EcgRecords:
    """`records` with some of their leads and at another rate; the card says so.

    Parameters
    ----------
    records
        Not changed.
    leads
        Names in the order wanted; None: all.
    fs
        Sampling rate in Hz; None: as it is.

    Raises
    ------
    StudyError
        Naming the lead that the data set lacks.
    """
    if leads is not None:
        records = _select_leads(records, leads)
    if fs is not None and fs != records.fs:
        records = _resample(records, fs)
    return records


def _select_leads(records: EcgRecords, leads: Sequence[str]) -> EcgRecords:
    names = list(records.leads)
    channels, notes = [], []
    for lead in leads:
        source = lead if lead in names else SUBSTITUTES.get(lead)
        if source not in names:
            raise StudyError(
                f"datasets.{records.name}.leads: there is no lead {lead!r}; it has"
                f" {', '.join(names)}"
            )
        if source != lead:
            notes.append(f"Lead {source} is taken for lead {lead}.")
        channels.append(names.index(source))
    if len(leads) < len(names):
        notes.append(f"Leads {', '.join(leads)} of {', '.join(names)} only.")
    return replace(
        records,
        signals=np.ascontiguousarray(records.signals[:, channels]),
        leads=tuple(leads),
        card=_add_notes(records.card, notes),
    )


def _resample(records: EcgRecords, fs: float) -> EcgRecords:
    """By a polyphase filter against aliasing.

    Beyond its ends a record continues as the line between them, not with zeros.
    """
    ratio = Fraction(fs / records.fs).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    parts = []
    for start in range(0, len(records), BLOCK):
        block = records.signals[start : start + BLOCK]
        part = resample_poly(block, up, down, axis=2, padtype="line")
        parts.append(part.astype(np.float32))
    signals = np.concatenate(parts)
    note = f"Resampled from {records.fs:g} to {fs:g} Hz."
    card = _add_notes(records.card, [note])
    if "adc_mv" in card:
        card["adc_mv"] = None  # no longer whole ADC units
    if "window_samples" in card:
        before = round(card["window_samples"][0] * fs / records.fs)
        card["window_samples"] = [before, signals.shape[2] - before]
    return replace(records, signals=signals, fs=float(fs), card=card)


def _add_notes(card: dict, notes: list[str]) -> dict:
    return {**card, "adaptations": [*card.get("adaptations", []), *notes]}
