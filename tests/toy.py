"""A small data set and study: each class has its bump at another time."""

import numpy as np
import pandas as pd

from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, Study

CLASSES = ("A", "B", "C")


def toy_records(train=80, multilabel=False):
    """`train` + 16 + 16 records of two leads and 96 samples at 100 Hz, two a patient."""
    rng = np.random.default_rng(5)
    split = ["train"] * train + ["validation"] * 16 + ["test"] * 16
    n, time = len(split), np.arange(96)
    hot = (
        rng.random((n, 3)) < 0.4
        if multilabel
        else np.eye(3, dtype=bool)[np.arange(n) % 3]
    )
    bumps = np.exp(-(((time - np.array([[24], [48], [72]])) / 5) ** 2))
    signals = (hot @ bumps)[:, None, :] * np.array([[1.0], [-0.5]]) + rng.normal(
        0, 0.2, (n, 2, 96)
    )
    table = pd.DataFrame(
        {
            "record": [f"r{i}" for i in range(n)],
            "patient": [f"p{i // 2}" for i in range(n)],
            "split": split,
            "attacked": True,
            "age": np.where(np.arange(n) % 7 == 0, np.nan, 40.0 + np.arange(n) % 45),
            "sex": np.array(["female", "male", None], dtype=object)[
                np.arange(n) // 2 % 3
            ],
        }
    )
    labels = hot.astype(np.float32) if multilabel else hot.argmax(1)
    return EcgRecords(
        "toy", signals.astype(np.float32), 100.0, ("I", "II"), labels, CLASSES, table
    )


def toy_run(arm, seed=0, **training):
    """A run of `arm` on the toy data set; keywords change its training options."""
    options = {
        "epochs": 1,
        "batch_size": 16,
        "attack_steps": 2,
        "precision": "float32",
        **training,
    }
    study = Study.model_validate(
        {
            "study": "toy",
            "title": "Toy",
            "datasets": {"toy": {"headline_epsilon_mv": 0.05}},
            "arms": [arm for arm in (get_arm(arm).needs, arm) if arm],
            "seeds": [seed],
            "encoder": {"options": {"size": "small", "width": 8}, "projection": 16},
            "training": options,
            "device": "cpu",
        }
    )
    return Run(study, "toy", arm, seed)
