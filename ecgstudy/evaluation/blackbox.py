"""Runs of the arms on engineered features: no encoder, no gradient, attacked by transfer and by queries."""

from pathlib import Path

import pandas as pd
import torch

from ecgstudy.attacks.api import Victim
from ecgstudy.attacks.corruptions import Recording
from ecgstudy.datasets.features import extract
from ecgstudy.evaluation.sample import Attacker, Sample, StepCounter
from ecgstudy.models.checkpoints import load_tensors, save_result
from ecgstudy.models.feature_models import FeatureVictim, fit_features_model
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, derived_seed


def store_features(run: Run, records: EcgRecords, folder: Path, asked: dict) -> None:
    """Extract the training records' features into ``encoder.safetensors``; models are fitted from them.

    Parameters
    ----------
    asked
        What decides them, kept in ``encoder.json``.
    """
    train = records.split("train")
    values, names = extract(train.signals, train.fs, train.leads, _centre(records))
    tensors = {
        "features": torch.from_numpy(values),
        "labels": torch.from_numpy(train.multi_hot()),
    }
    form = {
        "features": get_arm(run.arm).features, "names": names, "parameters": len(names),
        "leads": list(records.leads), "fs": records.fs, "classes": list(records.classes),
        "multilabel": records.multilabel, "arm": run.arm,
        "dataset": run.dataset, "seed": run.seed, "precision": "float64", "training_records": len(train),
        "run": asked,
    }  # fmt: skip
    save_result(folder, tensors, form, history="")


def _centre(records: EcgRecords) -> int | None:
    """Sample of the R peak in records that are windows of beats."""
    window = records.card.get("window_samples")
    return window[0] if window else None


def features_victim(run: Run, records: EcgRecords, folder: Path) -> FeatureVictim:
    """The model of the run in `folder`, fitted again from its stored features: the same every time."""
    stored, _ = load_tensors(folder / "encoder.safetensors")
    kind, seed = (
        get_arm(run.arm).features,
        derived_seed(run.dataset, run.seed, "features") % 2**32,
    )
    model = fit_features_model(
        kind,
        stored["features"].numpy(),
        stored["labels"].numpy(),
        records.multilabel,
        seed,
        records.classes,
    )
    return FeatureVictim(model, records.fs, records.leads, _centre(records))


def attack_without_gradient(
    run: Run,
    victim: FeatureVictim,
    source: Victim,
    sample: Sample,
    recording: Recording,
) -> list[pd.DataFrame]:
    """Scores under corruptions, attacks made on `source` (``transfer``), and Square at the headline ε.

    Their worst, the ``ensemble``, is weaker than that of models whose gradients can be followed.
    """
    key = run.dataset, run.seed, "evaluation", "test"
    at = Attacker(victim, sample, run.study.evaluation, key, StepCounter(), source)
    at.clean()
    at.corruptions(recording)
    for epsilon in at.options.epsilons_mv:
        names = (
            ["transfer", "square"]
            if epsilon == run.headline_epsilon_mv
            else ["transfer"]
        )
        at.epsilon(epsilon, names, label_view=False, adc_mv=None)
    return sample.found
