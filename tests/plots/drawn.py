"""Tables and ECGs to draw, and what a figure shows of them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ecgstudy.records import EcgRecords

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
HEADLINE = {"one": 0.02, "two": 0.05}
CLEAN = {"dataset": "one", "protocol": "slf", "severity": np.nan}


def texts(figure):
    return [text.get_text() for text in figure.findobj(plt.Text)]


def ecg(leads=12, seconds=10.0, fs=50):
    t = np.arange(int(seconds * fs)) / fs
    beat = np.exp(-(((t % 1) - 0.5) ** 2) / 0.002)
    return np.array([(0.5 + 0.1 * lead) * beat for lead in range(leads)])


def some_records(n=12):
    rng = np.random.default_rng(0)
    signals = (ecg(2, 2)[None] * rng.uniform(0.5, 2, (n, 1, 1))).astype(np.float32)
    names = [f"r{i}" for i in range(n)]
    people = {"split": "train", "age": 50.0, "sex": "female"}
    table = pd.DataFrame({"record": names, "patient": names, **people})
    leads, classes = ("I", "MLII"), ("N", "S", "V")
    return EcgRecords("made", signals, 50.0, leads, np.arange(n) % 3, classes, table)


def robust_table(arms, failing="", seeds=(0, 1)):
    """AUROC falls by 0.1 from attack to attack, from arm to arm and seed to seed."""
    rows = []
    for i, arm in enumerate(arms):
        for seed in (*seeds, "all"):
            for dataset, headline in HEADLINE.items():
                for level, (attack, epsilon) in enumerate(
                    [("none", 0.0), ("fgsm", headline), ("ensemble", headline)]
                ):
                    value = 0.9 - 0.1 * level - 0.1 * i
                    value -= 0.01 * seed if seed != "all" else 0.005
                    rows.append({
                        **CLEAN, "dataset": dataset, "arm": arm, "seed": seed,
                        "attack": attack, "epsilon_mv": epsilon, "auroc_shared": value,
                        "auroc_label": value - 0.1, "ci_low": value - 0.05,
                        "ci_high": value + 0.05, "masking_ok": arm != failing,
                        "n_records": 20 if attack == "fgsm" else 100,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def contrast_table(pairs, **more):
    """Differences as in `robust_table`; the first pair is the primary family."""
    rows = []
    for place, (adaptive, standard, delta) in enumerate(pairs):
        for attack, epsilon in (("none", 0.0), ("ensemble", 0.02)):
            primary = place == 0 and attack != "none"
            rows.append({
                **CLEAN, "attack": attack, "epsilon_mv": epsilon, "adaptive": adaptive,
                "standard": standard, "delta": delta, "ci_low": delta - 0.01,
                "ci_high": delta + 0.01, "p": 0.04, "p_holm": 0.08 if primary else None,
                "family": "primary" if primary else "exploratory",
                "headline": attack != "none", "masking_ok": adaptive != "hcl", **more,
            })  # fmt: skip
    return pd.DataFrame(rows).astype({"p_holm": float})
