"""ECG leads as combinations of the potentials at electrodes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

CHEST = ("V1", "V2", "V3", "V4", "V5", "V6")
STANDARD = ("I", "II", "III", "aVR", "aVL", "aVF", *CHEST)
ELECTRODES = ("RA", "LA", "LL", *CHEST)
DEFINITIONS = {
    "I": {"LA": 1, "RA": -1},
    "II": {"LL": 1, "RA": -1},
    "III": {"LL": 1, "LA": -1},
    "AVR": {"RA": 1, "LA": -1 / 2, "LL": -1 / 2},
    "AVL": {"LA": 1, "RA": -1 / 2, "LL": -1 / 2},
    "AVF": {"LL": 1, "RA": -1 / 2, "LA": -1 / 2},
    **{name: {name: 1, "RA": -1 / 3, "LA": -1 / 3, "LL": -1 / 3} for name in CHEST},
}
"""Lead → weights of the electrodes (Einthoven, Goldberger, Wilson)."""


def lead_definitions(leads: Sequence[str]) -> list[dict[str, float]]:
    """Each lead in terms of electrodes; an unknown lead has two of its own.

    MIT-BIH's MLII is a lead II.
    """
    return [
        DEFINITIONS.get(
            lead.upper().removeprefix("ML"), {f"{lead}+": 1, f"{lead}-": -1}
        )
        for lead in leads
    ]


def electrodes_of(leads: Sequence[str]) -> tuple[str, ...]:
    """The standard electrodes, and those of unknown leads."""
    used = [name for lead in lead_definitions(leads) for name in lead]
    return tuple(dict.fromkeys([*ELECTRODES, *used]))


def lead_weights(leads: Sequence[str]) -> np.ndarray:
    """Share of each electrode in each lead, (leads, electrodes)."""
    weights = pd.DataFrame(lead_definitions(leads), columns=electrodes_of(leads))
    return np.ascontiguousarray(weights.fillna(0.0), dtype=float)


def derive_leads(
    wanted: np.ndarray, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How leads follow from others.

    A lead that is given, or its negative, is taken as it was recorded; others are
    combined (III = II − I).

    Parameters
    ----------
    wanted, given
        `lead_weights` of both, (leads, electrodes).

    Returns
    -------
    matrix, possible
        (wanted, given), and for which of the wanted leads it holds, (wanted,).
    """
    matrix = wanted @ np.linalg.pinv(given)
    for sign in (1, -1):
        same = np.isclose(sign * given[None], wanted[:, None]).all(2)
        rows = same.any(1)
        matrix[rows] = sign * np.eye(len(given))[same.argmax(1)[rows]]
    return matrix, np.isclose(matrix @ given, wanted).all(1)
