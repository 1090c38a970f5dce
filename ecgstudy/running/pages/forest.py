"""The forest plot of a report's first screen, as texts and places: the template draws it."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ecgstudy.plots.style import known_arm
from ecgstudy.plots.tables_html import interval, signed
from ecgstudy.running.pages.answer import place_name

RESULTS = {
    "higher": "▲ more robust",
    "lower": "▼ less robust",
    "undecided": "○ undecided",
}


def forest(rows: list[dict]) -> dict[str, object]:
    """`ecgstudy.running.pages.answer.comparisons` as lines: a pair each, with a panel for each data set.

    Places run from 0 to 100 along the axis of the panel; every data set has an axis of its own, for intervals
    of few patients would hide those of many.
    """
    if not rows:
        return {}
    found = {
        ((row["adaptive"], row["standard"]), (row["dataset"], row["protocol"])): row
        for row in rows
    }
    pairs, places = (list(dict.fromkeys(key)) for key in zip(*found, strict=True))
    axes = {
        place: _Axis.around([found[key] for key in found if key[1] == place])
        for place in places
    }
    return {
        "panels": [
            {"name": place_name(*p), "ticks": axes[p].ticks(), "zero": axes[p].at(0)}
            for p in places
        ],
        "lines": [
            {
                "name": " − ".join(pair),
                "idea": _idea(*pair),
                "cells": [
                    _cell(found[pair, p], axes[p]) if (pair, p) in found else None
                    for p in places
                ],
            }
            for pair in pairs
        ],
        "dagger": any(row["dagger"] for row in rows),
        "standards": _standards(rows),
        "planned": len(rows) if rows[0]["family"] == "primary" else 0,
    }


@dataclass(frozen=True)
class _Axis:
    """An axis of effects, from `low` to `high`; places on it run from 0 to 100."""

    low: float
    high: float

    @classmethod
    def around(cls, rows: list[dict]) -> "_Axis":
        """The axis that shows 0 and all intervals of `rows`."""
        ends = [row[key] for row in rows for key in ("delta", "ci_low", "ci_high")]
        low, high = np.nanmin([0, *ends]), np.nanmax([0, *ends])
        margin = 0.06 * (high - low) or 1.0
        return cls(float(low - margin), float(high + margin))

    def at(self, value: float) -> float | None:
        """The place of `value`; None where there is no value."""
        return (
            None
            if pd.isna(value)
            else round(100 * (value - self.low) / (self.high - self.low), 2)
        )

    def ticks(self) -> list[tuple[float, str]]:
        """(place, label) of round values, three or more; of many only every other one has a label."""
        power = math.floor(math.log10(self.high - self.low))
        for step in (f * 10.0**p for p in (power, power - 1) for f in (5, 2, 1)):
            values = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
            if len(values) >= 3:
                break
        every = 1 + (len(values) > 4)
        labels = [f"{k * step:+g}".replace("-", "−") if k else "0" for k in values]
        return [
            (self.at(k * step), label * (k % every == 0))
            for k, label in zip(values, labels, strict=True)
        ]


def _cell(row: dict, axis: _Axis) -> dict[str, object]:
    p = row["shown_p"]
    return {
        "kind": row["result"],
        "result": RESULTS[row["result"]],
        "effect": interval(row) + row["dagger"],
        "clean": signed(row.get("clean_delta", np.nan)),
        "p": ""
        if pd.isna(p)
        else "p < 0.001"
        if p < 0.001
        else f"p = {p:.{2 if p >= 0.1 else 3}f}",
        **{
            end: axis.at(row[key])
            for end, key in (("at", "delta"), ("low", "ci_low"), ("high", "ci_high"))
        },
    }


def _idea(adaptive: str, standard: str) -> str:
    """What `adaptive` adds to `standard`, in words; nothing of arms that are not known here."""
    row, base = known_arm(adaptive), known_arm(standard)
    return row.idea.removeprefix(f"{base.idea}; ") if row and base else ""


def _standards(rows: list[dict]) -> str:
    """“rocl: what it does.” of every standard that is compared with."""
    known = {
        name: known_arm(name) for name in dict.fromkeys(row["standard"] for row in rows)
    }
    return " ".join(f"{name}: {row.idea}." for name, row in known.items() if row)
