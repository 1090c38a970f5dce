"""Scores of a pretrained or fine-tuned encoder and its linear head, clean and under attack, and checks."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from ecgstudy import metrics
from ecgstudy.attacks.api import Victim
from ecgstudy.attacks.corruptions import Recording, list_skipped
from ecgstudy.devices import pick_device
from ecgstudy.evaluation.embedding import geometry
from ecgstudy.evaluation.energy import Profiler
from ecgstudy.evaluation.finetune import fine_tuned, pretrained
from ecgstudy.evaluation.masking import NOT_APPLICABLE, masking_checks
from ecgstudy.evaluation.sample import (
    Attacker,
    Sample,
    StepCounter,
    attacked_sample,
    in_batches,
    macro_auroc,
)
from ecgstudy.files import json_text, whole_files
from ecgstudy.models.checkpoints import (
    to_float16,
    load_classifier,
    load_state,
    write_tensors,
)
from ecgstudy.models.encoders import Encoder, fold_batch_norms
from ecgstudy.models.heads import Classifier, fit_linear_probe
from ecgstudy.params import method
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.records import EcgRecords
from ecgstudy.study import AttackOptions, Run, derived_seed

if TYPE_CHECKING:
    from ecgstudy.models.feature_models import FeatureVictim


def linear_probe(
    run: Run, encoder: Encoder, records: EcgRecords, device: torch.device
) -> nn.Linear:
    """Protocol `slf`: a linear head on the frozen encoder, trained on the clean training split."""
    train = records.split("train")
    features = in_batches(encoder, train.signals, device)
    stream = Generator(device).manual_seed(derived_seed(run.dataset, run.seed, "probe"))
    labels = torch.tensor(train.multi_hot(), device=device)
    return fit_linear_probe(
        features,
        labels,
        train.multilabel,
        **run.study.probe.model_dump(),
        generator=stream,
    )


def frozen_victim(
    run: Run, records: EcgRecords, folder: Path, protocol: str = "slf"
) -> tuple[Victim, dict[str, Tensor], dict]:
    """The run's encoder with a linear head, as `protocol` asks, rounded as stored, ready to be attacked.

    Parameters
    ----------
    run
        As of the data set that is tested on (`Run.tested_on`).
    folder
        The run's folder. Some arms keep the head that they were trained with (`Arm.own_head`), for their
        own data under ``slf``; otherwise it is dropped and they are encoders like all others.

    Returns
    -------
    victim, head, form
        The model, the head's state as stored, and the content of ``encoder.json``.
    """
    device = pick_device(run.study.device)
    if method(protocol) == "slf":
        encoder, head, form = pretrained(folder, records, device)
        if not (get_arm(form["arm"]).own_head and protocol == "slf"):
            head = linear_probe(run, encoder, records, device)
    else:
        encoder, head, form = fine_tuned(run, records, folder / protocol, protocol)
    stored = to_float16(head.state_dict())
    load_state(head, stored, folder)
    model = Classifier(fold_batch_norms(encoder), head).eval().requires_grad_(False)
    return _victim(run, model, records), stored, form


def _victim(run: Run, model: Classifier, records: EcgRecords) -> Victim:
    options = run.study.evaluation
    return Victim(
        model, records.multilabel, model.encoder, records.fs, options.gradients
    )


def evaluate(
    run: Run, records: EcgRecords, folder: Path, protocol: str
) -> pd.DataFrame:
    """Score one run's encoder under `protocol`, clean and under every attack of the study.

    Writes ``head.safetensors``, ``scores.parquet`` and ``evaluation.json`` into `folder` (the
    protocol folder inside the run's). Encoder and head are used as stored, in float32. Under transfer
    `records` are the target's.

    Returns
    -------
    DataFrame
        What ``scores.parquet`` holds: one row per record, attack, view and ε.
    """
    started, device = time.perf_counter(), pick_device(run.study.device)
    run, arm, head, options = (
        run.tested_on(protocol),
        get_arm(run.arm),
        {},
        run.study.evaluation,
    )
    if arm.features:
        from ecgstudy.evaluation.blackbox import features_victim

        victim = features_victim(run, records, folder.parent)
        form = json.loads((folder.parent / "encoder.json").read_text(encoding="utf-8"))
    else:
        victim, head, form = frozen_victim(run, records, folder.parent, protocol)
    probed = time.perf_counter()
    beside = folder.parents[2] / str(run.attack_source) / folder.parent.name
    source = (
        _source(run, records, beside, protocol, device) if run.attack_source else None
    )
    attack = _attack_features if arm.features else _attack_all
    scores, checks, speed, looked_at = attack(
        run, records, victim, source, protocol, device
    )
    summary = {
        "masking_ok": None
        if arm.features
        else all(check["verdict"] != "fail" for check in checks),
        "checks": checks,
        "clean_all": _clean_all(victim, records, device),
        "seconds": {"probe": probed - started, "attacks": time.perf_counter() - probed},
        "attack_steps_per_second": speed,
        "peak_memory_mb": peak_memory_mb(device),
        "parameters": form["parameters"],
        **_training_cost(folder.parent),
        "precision": form["precision"],
        "skipped": list_skipped(
            options.corruptions, options.severities, Recording.of(records)
        ),
        **looked_at,
    }
    told = {
        "protocol": protocol,
        "classes": list(records.classes),
        "multilabel": records.multilabel,
    }
    with whole_files() as new:
        new(folder / "evaluation.json").write_text(json_text(summary), encoding="utf-8")
        scores.to_parquet(
            new(folder / "scores.parquet"), compression="zstd", index=False
        )
        write_tensors(new(folder / "head.safetensors"), head, told)
    return scores


def _source(
    run: Run, records: EcgRecords, folder: Path, protocol: str, device: torch.device
) -> Victim:
    """The other arm's model, for the attack ``transfer``: with its probe fitted again, or as it was tuned."""
    if method(protocol) == "slf":
        return frozen_victim(run, records, folder, protocol)[0]
    model, _ = load_classifier(folder / protocol, str(device))
    model = (
        Classifier(fold_batch_norms(model.encoder), model.head)
        .eval()
        .requires_grad_(False)
    )
    return _victim(run, model, records)


def validation_curve(run: Run, records: EcgRecords, folder: Path) -> dict[float, float]:
    """ε (mV) → shared macro AUROC under PGD margin on validation records; it chooses the headline ε."""
    options, device = run.study.evaluation, pick_device(run.study.device)
    victim, _, _ = frozen_victim(run, records, folder)
    sample = Sample.of(
        attacked_sample(records, "validation", options.max_records), "", device
    )
    key = run.dataset, run.seed, "evaluation", "validation"
    at = Attacker(victim, sample, _of_headline_rule(options), key, StepCounter())
    at.clean()
    for epsilon in options.epsilons_mv:
        at.epsilon(epsilon, ["pgd-margin"], label_view=False, adc_mv=None)
    return {
        e: macro_auroc(sample.labels, sample.scores("pgd-margin", e))
        for e in options.epsilons_mv
    }


def _of_headline_rule(options: AttackOptions) -> AttackOptions:
    """The budget that chooses the headline ε, whatever the study's own: PGD-20, one restart."""
    return options.model_copy(
        update={"steps": 20, "further_steps": None, "restarts": 1}
    )


def _attack_all(
    run: Run,
    records: EcgRecords,
    victim: Victim,
    source: Victim | None,
    protocol: str,
    device: torch.device,
) -> tuple[pd.DataFrame, list[dict], float, dict]:
    """Scores of test and sensitivity records (of validation too where ε is chosen), checks, steps/s.

    And what attacks at the headline ε use of an ECG, and do to its embedding.
    """
    options, samples, counter, looked_at = run.study.evaluation, {}, StepCounter(), {}
    for split in ("test", "sensitivity", "validation"):
        chosen = attacked_sample(records, split, options.max_records)
        if not len(chosen) or (
            split == "validation" and not get_arm(run.arm).sets_headline
        ):
            continue
        samples[split] = Sample.of(chosen, protocol, device)
        key = run.dataset, run.seed, "evaluation", split
        spent = _of_headline_rule(options) if split == "validation" else options
        at = Attacker(victim, samples[split], spent, key, counter, source)
        at.clean()
        if split == "test":
            at.corruptions(Recording.of(records))
        for epsilon in tqdm(
            options.epsilons_mv, f"attacks on {split} records", leave=False
        ):
            at_headline = epsilon == run.headline_epsilon_mv
            headline = at_headline and split == "test"
            names = ["pgd-margin"] if split == "validation" else options.ensemble
            names = [
                *names,
                *(options.attacks if at_headline and split != "validation" else []),
            ]
            names = [
                name for name in dict.fromkeys(names) if name != "transfer" or source
            ]
            labels = split == "test" and epsilon in (
                options.label_epsilons_mv or [run.headline_epsilon_mv]
            )
            adc = records.card.get("adc_mv") if headline else None
            profiler = Profiler(chosen) if headline else None
            delta = at.epsilon(
                epsilon, names, label_view=labels, adc_mv=adc, watch=profiler
            )
            if headline:
                looked_at = _geometry(victim, samples[split], delta) | {
                    "profiles": profiler.rows
                }
    seed = derived_seed(run.dataset, run.seed, "checks")
    checks = masking_checks(
        victim, samples["test"], options, run.headline_epsilon_mv, seed
    )
    found = [frame for sample in samples.values() for frame in sample.found]
    return pd.concat(found, ignore_index=True), checks, counter.rate(), looked_at


def _geometry(victim: Victim, sample: Sample, delta: Tensor) -> dict[str, float]:
    """`geometry` of the encoder's features, clean and under `delta`."""
    features = [
        torch.cat([victim.model.encoder(part) for part in signals.split(512)])
        for signals in (sample.signals, sample.signals + delta)
    ]
    return geometry(*features, sample.labels, sample.columns["patient"].to_numpy())


def _attack_features(
    run: Run,
    records: EcgRecords,
    victim: "FeatureVictim",
    source: Victim,
    protocol: str,
    device: torch.device,
) -> tuple[pd.DataFrame, list[dict], None, dict]:
    """As `_attack_all`, for a model without gradients: by transfer from `source`, and by queries."""
    from ecgstudy.evaluation.blackbox import attack_without_gradient

    chosen = attacked_sample(records, "test", run.study.evaluation.max_records)
    sample = Sample.of(chosen, protocol, device)
    found = attack_without_gradient(run, victim, source, sample, Recording.of(records))
    return pd.concat(found, ignore_index=True), [NOT_APPLICABLE], None, {}


def _clean_all(
    victim: "Victim | FeatureVictim", records: EcgRecords, device: torch.device
) -> dict[str, float | None]:
    """Clean AUROC on the whole test split, not only its attacked sample; None where every record agrees."""
    test = records.split("test")
    scores = in_batches(victim.scores, test.signals, device).cpu().numpy()
    each = dict(
        zip(records.classes, metrics.auroc(test.multi_hot(), scores), strict=True)
    )
    known = {
        name: None if np.isnan(value) else float(value) for name, value in each.items()
    }
    return {"macro": float(np.nanmean(list(each.values()))), **known}


def _training_cost(folder: Path) -> dict[str, float]:
    """Seconds of pretraining and median milliseconds of a step, from the run's history."""
    epochs = [
        json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()
    ]
    step_ms = [1000 * epoch["seconds"] / epoch["steps"] for epoch in epochs]
    total = sum(epoch["seconds"] for epoch in epochs)
    return {
        "training_seconds": total,
        "step_ms": float(np.median(step_ms)) if step_ms else None,
    }


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MB: of the GPU if that is the device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
