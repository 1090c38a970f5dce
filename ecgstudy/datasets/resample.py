"""Fewer leads and another rate, so that an encoder of one data set fits another."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords

STANDS_FOR = {"II": "MLII"}
"""Lead → the lead taken for it where it was not recorded: limb lead II with its electrodes on the trunk."""


def reduced(
    records: EcgRecords, leads: Sequence[str] | None, fs: float | None
) -> EcgRecords:
    """`records` with the given leads only (None: all) at `fs` Hz (None: as they are); the card says so.

    Raises
    ------
    StudyError
        Naming the lead that the data set lacks.
    """
    if leads is not None:
        records = _with_leads(records, leads)
    if fs is not None and fs != records.fs:
        records = _resampled(records, fs)
    return records


def _with_leads(records: EcgRecords, leads: Sequence[str]) -> EcgRecords:
    names, taken, notes = list(records.leads), [], []
    for lead in leads:
        source = lead if lead in names else STANDS_FOR.get(lead)
        if source not in names:
            raise StudyError(
                f"datasets.{records.name}.leads: there is no lead {lead!r}; it has {', '.join(names)}"
            )
        taken.append(names.index(source))
        notes += [f"Lead {source} is taken for lead {lead}."] if source != lead else []
    notes += (
        [f"Leads {', '.join(leads)} of {', '.join(names)} only."]
        if len(leads) < len(names)
        else []
    )
    signals = np.ascontiguousarray(records.signals[:, taken])
    return replace(
        records, signals=signals, leads=tuple(leads), card=_noted(records.card, notes)
    )


def _resampled(records: EcgRecords, fs: float, block: int = 4096) -> EcgRecords:
    """By a polyphase filter that lets nothing alias; the ends continue the line between them, not zeros."""
    ratio = Fraction(fs / records.fs).limit_denominator(1000)
    parts = [
        resample_poly(
            part, ratio.numerator, ratio.denominator, axis=2, padtype="line"
        ).astype(np.float32)
        for part in (
            records.signals[start : start + block]
            for start in range(0, len(records), block)
        )
    ]
    signals = np.concatenate(parts)
    card = _noted(records.card, [f"Resampled from {records.fs:g} to {fs:g} Hz."])
    if card.get("adc_mv") is not None:
        card["adc_mv"] = None  # no longer whole ADC units
    if "window_samples" in card:
        before = round(card["window_samples"][0] * fs / records.fs)
        card["window_samples"] = [before, signals.shape[2] - before]
    return replace(records, signals=signals, fs=float(fs), card=card)


def _noted(card: dict, notes: list[str]) -> dict:
    return (
        {**card, "adaptations": [*card.get("adaptations", []), *notes]}
        if notes
        else dict(card)
    )
