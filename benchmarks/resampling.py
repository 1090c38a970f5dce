"""Patient-level resamples of stored scores, beside a loop over scikit-learn."""

from functools import partial

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.timing import Row, compare_times, row, side_by_side
from ecgstudy import metrics
from ecgstudy.analysis import statistics as st

RECORDS, LABELS, SETS, RESAMPLES = 10_000, 5, 30, 1_000
PATIENTS, THEIRS = {"one record a patient": 10_000, "22 patients": 22}, 3
"""Patients of each case, and resamples that scikit-learn is timed on."""


def measure(device: torch.device, repeats: int) -> list[Row]:
    """Milliseconds a resample of one score set, and seconds of 1,000 of 30 sets."""
    rows = []
    for case, patients in PATIENTS.items():
        y, scores, of = _sample(patients)
        drawn, _ = st.draw_patients(y, of, RESAMPLES, np.random.default_rng(1))
        calls = {
            "ours": partial(metrics.resampled_auroc, y, scores, of, drawn),
            "scikit-learn": partial(_theirs, y, scores, of, drawn),
        }
        seconds = side_by_side(calls, max(3, repeats // 3), torch.device("cpu"))
        what = f"{RECORDS} records × {LABELS} labels, {case}"
        units = {"ours": RESAMPLES, "scikit-learn": THEIRS}
        base = "scikit-learn"
        rows += compare_times("resampling", what, seconds, units, base, "resample")
        whole = float(np.median(seconds["ours"])) * SETS
        title = f"{what}, {RESAMPLES} resamples of {SETS} sets"
        rows.append(row("resampling", title, "ours", whole, "s on one core"))
    return rows


def _sample(patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = (rng.random((RECORDS, LABELS)) < 0.2).astype(np.float32)
    return y, rng.normal(size=y.shape) + y, np.arange(RECORDS) % patients


def _theirs(
    y: np.ndarray, scores: np.ndarray, of: np.ndarray, drawn: np.ndarray
) -> None:
    for times in drawn[:THEIRS]:
        for c in range(LABELS):
            roc_auc_score(y[:, c] > 0, scores[:, c], sample_weight=times[of])
