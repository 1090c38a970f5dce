"""Scores of one classifier: clean, corrupted, and under every attack."""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ecgstudy.devices import pick_device
from ecgstudy.evaluation.attack_run import AttackRun
from ecgstudy.evaluation.classifier import fit_victim, load_source
from ecgstudy.evaluation.embedding import measure_geometry
from ecgstudy.evaluation.energy import profile_attacks
from ecgstudy.evaluation.masking import NOT_APPLICABLE, check_masking
from ecgstudy.evaluation.sample import clean_auroc, macro_auroc, select_attacked
from ecgstudy.files import json_text, write_result
from ecgstudy.models.checkpoints import to_float16, write_tensors
from ecgstudy.params import ENSEMBLE, AttackOptions
from ecgstudy.pretraining.loop import read_history
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.records import EcgRecords
from ecgstudy.study import Run, derived_seed


def evaluate(
    run: Run, records: EcgRecords, folder: Path, protocol: str
) -> pd.DataFrame:
    """Fit one run's classifier under `protocol`, attack it, and store its scores.

    Writes ``head.safetensors``, ``scores.parquet`` and ``evaluation.json``. Encoder and
    head are used as stored, in float32.

    Parameters
    ----------
    run
        A pretrained run.
    records
        All records of the data set that `protocol` tests on.
    folder
        The protocol's folder inside the run's.
    protocol
        Such as ``"slf"``, ``"aff"`` or ``"slf@mitdb"``.

    Returns
    -------
    DataFrame
        What ``scores.parquet`` holds: one row a record, attack, view and ε.
    """
    # The model, as it is stored.
    started, run = time.perf_counter(), run.tested_on(protocol)
    arm, device = get_arm(run.arm), pick_device(run.study.device)
    options, headline_mv = run.study.evaluation, run.headline_epsilon_mv
    gradient = arm.features is None
    if gradient:
        victim, form = fit_victim(run, records, folder.parent, protocol)
        head = to_float16(victim.model.head.state_dict())
        splits = ["test", "sensitivity"]
    else:
        from ecgstudy.evaluation.blackbox import fit_features  # loads scikit-learn
        from ecgstudy.models.feature_models import FeatureVictim

        model, form = fit_features(run, folder.parent)
        victim = FeatureVictim(model, records.fs, records.leads, records.centre)
        head, splits, options = {}, ["test"], _without_gradient(options)
    source = load_source(run, records, folder.parent, protocol)
    fitted = time.perf_counter()

    # The records that are attacked, and their scores.
    attack_runs = {}
    for split in [*splits, "validation"] if arm.sets_headline else splits:
        chosen = select_attacked(records, split, options.max_records)
        if len(chosen):
            spent = _for_validation(options) if split == "validation" else options
            key = run.dataset, run.seed, "evaluation", split
            attack_runs[split] = AttackRun(
                victim, chosen, spent, key, device, protocol, source
            )
    embedding = attack_all(attack_runs, headline_mv, gradient=gradient)
    scores = [attack_run.table() for attack_run in attack_runs.values()]
    scores, test = pd.concat(scores, ignore_index=True), attack_runs["test"]

    # Checks for gradient masking, and the cost.
    checks = [NOT_APPLICABLE]
    if gradient:
        seed = derived_seed(run.dataset, run.seed, "checks")
        checks = check_masking(test, headline_mv, seed)
    sound = all(check["verdict"] != "fail" for check in checks)
    summary = {
        "masking_ok": sound if gradient else None,
        "checks": checks,
        "clean_all": clean_auroc(victim, records, device),
        "seconds": {
            "probe": fitted - started,
            "attacks": time.perf_counter() - fitted,
        },
        "attack_steps_per_second": test.steps / test.seconds if gradient else None,
        "peak_memory_mb": _peak_memory_mb(device),
        "parameters": form["parameters"],
        **_training_cost(folder.parent),
        "precision": form["precision"],
        "skipped": test.skipped,
        **embedding,
    }
    classes, multilabel = list(records.classes), records.multilabel
    note = {"protocol": protocol, "classes": classes, "multilabel": multilabel}
    with write_result(folder) as new:
        new("evaluation.json").write_text(json_text(summary), encoding="utf-8")
        scores.to_parquet(new("scores.parquet"), compression="zstd", index=False)
        write_tensors(new("head.safetensors"), head, note)
    return scores


def _without_gradient(options: AttackOptions) -> AttackOptions:
    """Transfer at every ε, and Square at the headline ε: a weaker ensemble."""
    steps = options.further_steps or options.steps
    changes = {"ensemble": ["transfer"], "attacks": ["square"], "steps": steps}
    return options.model_copy(update=changes)


def _for_validation(options: AttackOptions) -> AttackOptions:
    """What chooses the headline ε, whatever the study's own: PGD-20, one restart."""
    changes = {"ensemble": ["pgd-margin"], "attacks": [], "steps": 20, "restarts": 1}
    return options.model_copy(update=changes)


def attack_all(
    attack_runs: dict[str, AttackRun], headline_mv: float, *, gradient: bool = True
) -> dict:
    """Score clean ECGs, corrupted ones, and those under every attack at every ε.

    Parameters
    ----------
    attack_runs
        Split → a run on its records. Corruptions, the label view and what follows from
        the headline attack are for test records.
    headline_mv
        ε of the primary outcome in mV, at which further attacks are run.
    gradient
        Whether the model has input gradients.

    Returns
    -------
    dict
        What the headline attack does to the embedding, and where each attack at this ε
        has its energy (`profiles`).
    """
    embedding = {}
    for split, attack_run in attack_runs.items():
        attack_run.score_clean()
        if split == "test":
            attack_run.score_corrupted()
        options, progress = attack_run.options, f"attacks on {split} records"
        for epsilon_mv in tqdm(options.epsilons_mv, progress, leave=False):
            headline = epsilon_mv == headline_mv
            names = attack_run.names(further=headline)
            deltas = {name: attack_run.attack(name, epsilon_mv) for name in names}
            worst = deltas[ENSEMBLE] = attack_run.combine(deltas, epsilon_mv)
            if split != "test" or not gradient:
                continue
            if headline:
                attack_run.score_rounded(worst, epsilon_mv)
            if epsilon_mv in (options.label_epsilons_mv or [headline_mv]):
                attack_run.attack_labels(worst, names, epsilon_mv)
            if headline:
                embedding = measure_geometry(attack_run, worst)
                embedding["profiles"] = profile_attacks(attack_run.records, deltas)
    return embedding


def validation_curve(run: Run, records: EcgRecords, folder: Path) -> dict[float, float]:
    """ε (mV) → shared macro AUROC under PGD on validation records.

    It chooses the headline ε, before any test score is computed.

    Parameters
    ----------
    run
        Of an arm that sets the headline ε.
    records
        All records of its data set.
    folder
        The run's folder, with its encoder.
    """
    options, device = run.study.evaluation, pick_device(run.study.device)
    victim, _ = fit_victim(run, records, folder)
    chosen = select_attacked(records, "validation", options.max_records)
    key = run.dataset, run.seed, "evaluation", "validation"
    attack_run = AttackRun(victim, chosen, _for_validation(options), key, device)
    attack_all({"validation": attack_run}, run.headline_epsilon_mv)
    return {
        epsilon_mv: macro_auroc(
            attack_run.labels, attack_run.scores("pgd-margin", epsilon_mv)
        )
        for epsilon_mv in options.epsilons_mv
    }


def _training_cost(folder: Path) -> dict[str, float | None]:
    """Seconds of pretraining and median milliseconds of a step, from the history."""
    epochs = read_history(folder)
    step_ms = [1000 * epoch["seconds"] / epoch["steps"] for epoch in epochs]
    return {
        "training_seconds": sum(epoch["seconds"] for epoch in epochs),
        "step_ms": float(np.median(step_ms)) if step_ms else None,
    }


def _peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far: of the GPU if that is the device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
