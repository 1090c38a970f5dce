"""Arms on engineered features: no encoder and no gradient."""

import json
from pathlib import Path

import torch

from ecgstudy.datasets.features import extract
from ecgstudy.files import check_sum
from ecgstudy.models.checkpoints import load_tensors, save_result
from ecgstudy.models.feature_models import FeaturesModel, fit_features_model
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, derived_seed


def store_features(run: Run, records: EcgRecords, folder: Path, asked: dict) -> None:
    """Store the training records' features, from which models are fitted.

    They go into ``encoder.safetensors`` and are described in ``encoder.json``.

    Parameters
    ----------
    run, records
        A run on engineered features, and all records of its data set.
    folder
        The run's folder.
    asked
        What decides them, kept in ``encoder.json``.
    """
    train = records.split("train")
    values, names = extract(train.signals, train.fs, train.leads, records.centre)
    tensors = {
        "features": torch.from_numpy(values),
        "labels": torch.from_numpy(train.multi_hot()),
    }
    form = {
        "features": get_arm(run.arm).features,
        "names": names,
        "parameters": len(names),
        "leads": list(records.leads),
        "fs": records.fs,
        "classes": list(records.classes),
        "multilabel": records.multilabel,
        "arm": run.arm,
        "dataset": run.dataset,
        "seed": run.seed,
        "precision": "float64",
        "training_records": len(train),
        "run": asked,
    }
    save_result(folder, tensors, form, history="")


def fit_features(run: Run, folder: Path) -> tuple[FeaturesModel, dict]:
    """Fit a run's model from its stored features: the same every time.

    Returns the model, and the content of ``encoder.json`` in the run's `folder`.
    """
    stored, _ = load_tensors(folder / "encoder.safetensors")
    file = check_sum(folder / "encoder.json")
    form = json.loads(file.read_text(encoding="utf-8"))
    model = fit_features_model(
        form["features"],
        stored["features"].numpy(),
        stored["labels"].numpy(),
        form["multilabel"],
        derived_seed(run.dataset, run.seed, "features") % 2**32,
        form["classes"],
    )
    return model, form
