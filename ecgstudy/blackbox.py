"""Runs of the arms on engineered features: no encoder, no gradient, attacked by transfer and by queries."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from ecgstudy.attacked import Sample, budget_of, victim_scores
from ecgstudy.attacks import get_attack
from ecgstudy.attacks.gradient import Victim
from ecgstudy.attacks.objectives import auroc_targets, signed_scores
from ecgstudy.attacks.square import square
from ecgstudy.checkpoints import load_tensors, save_tensors
from ecgstudy.factors import get_arm
from ecgstudy.features import FeatureVictim, extract, fit_features_model
from ecgstudy.files import write_json, write_text
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
    tensors = {"features": torch.from_numpy(values), "labels": torch.from_numpy(train.multi_hot())}
    save_tensors(folder / "encoder.safetensors", tensors)
    write_text(folder / "history.jsonl", "")
    form = {
        "features": get_arm(run.arm).features, "names": names, "parameters": len(names),
        "leads": list(records.leads), "fs": records.fs, "classes": list(records.classes), 
        "multilabel": records.multilabel, "arm": run.arm,
        "dataset": run.dataset, "seed": run.seed, "precision": "float64", "training_records": len(train),
        "run": asked,
    }  # fmt: skip
    write_json(folder / "encoder.json", form)


def _centre(records: EcgRecords) -> int | None:
    """Sample of the R peak in records that are windows of beats."""
    window = records.card.get("window_samples")
    return window[0] if window else None


def features_victim(run: Run, records: EcgRecords, folder: Path) -> FeatureVictim:
    """The model of the run in `folder`, fitted again from its stored features: the same every time."""
    stored, _ = load_tensors(folder / "encoder.safetensors")
    kind, seed = get_arm(run.arm).features, derived_seed(run.dataset, run.seed, "features") % 2**32
    model = fit_features_model(
        kind, stored["features"].numpy(), stored["labels"].numpy(), records.multilabel, seed, records.classes
    )
    return FeatureVictim(model, records.fs, records.leads, _centre(records))


def attack_without_gradient(
    run: Run, victim: FeatureVictim, source: Victim, sample: Sample, generator: Generator
) -> Iterator[Sample]:
    """Store scores under attacks made on `source` (`transfer`), and under Square on some records.

    Yields
    ------
    Sample
        `sample` itself, then that of the records shown to Square, with its scores.
    """
    options = run.study.evaluation
    sample.store(victim_scores(victim, sample.signals, options), "none", "shared", 0.0)
    for epsilon in options.epsilons_mv:
        attack = get_attack(options.headline_attack)
        delta = attack(source, sample.signals, sample.labels, budget_of(options, epsilon), generator)
        scores = victim_scores(victim, sample.signals + delta, options)
        sample.store(scores, "transfer", "shared", epsilon)
    yield sample
    few = sample.some(spread(sample.labels, options.query_records))
    budget, targets = budget_of(options, run.headline_epsilon_mv), auroc_targets(few.labels)
    delta = square(victim, few.signals, signed_scores, targets, budget, generator, queries=options.queries)
    scores = victim_scores(victim, few.signals + delta, options)
    few.store(scores, "square", "shared", run.headline_epsilon_mv)
    yield few


def spread(labels: Tensor, most: int) -> Tensor:
    """Indices of at most `most` records in which the classes are as even as they can be.

    Records are taken in turn from each class, the first that is left in the sample's order.
    """
    hot, chosen = labels.cpu().numpy() > 0, []
    waiting = [list(np.flatnonzero(column)) for column in (*hot.T, ~hot.any(1))]
    while len(chosen) < min(most, len(hot)):
        for queue in waiting:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < most:
                chosen.append(queue.pop(0))
    return torch.tensor(sorted(chosen), device=labels.device)
