"""Scores of a frozen encoder and linear head, clean and under attack, and checks of the attacks."""

import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from ecgstudy.arms import get_arm
from ecgstudy.attacks import get_attack
from ecgstudy.attacks.gradient import Budget, Victim, pgd, random_start
from ecgstudy.attacks.objectives import auroc_targets, label_targets, signed_scores
from ecgstudy.checkpoints import halved, load_encoder, load_state, save_tensors
from ecgstudy.encoders import Encoder, folded
from ecgstudy.files import whole_file, write_json
from ecgstudy.objective import pick_device
from ecgstudy.records import EcgRecords
from ecgstudy.study import AttackOptions, Run, derived_seed
from ecgstudy.supervised import Classifier, fit_linear_probe

EXTREME_MV = 1.0
"""Extra budget at which a sound attack must have driven AUROC to about 0."""


@torch.no_grad()
def in_batches(
    function: Callable[[Tensor], Tensor], signals: np.ndarray, device: torch.device, batch: int = 512
) -> Tensor:
    """`function` of all `signals` (records, leads, samples), a batch at a time, on `device`."""
    starts = range(0, len(signals), batch)
    return torch.cat([function(torch.tensor(signals[s : s + batch], device=device)) for s in starts])


def attacked_sample(records: EcgRecords, split: str, most: int | None) -> EcgRecords:
    """The records of `split` that are attacked: the same for every arm and seed.

    With more than `most` candidates, `most` are drawn with a seed that depends on the data set only.
    """
    chosen = np.flatnonzero((records.table["split"].eq(split) & records.table["attacked"]).to_numpy())
    if most is not None and len(chosen) > most:
        draw = np.random.default_rng(derived_seed(records.name, split, "attacked sample"))
        chosen = np.sort(draw.choice(chosen, most, replace=False))
    mask = np.zeros(len(records), dtype=bool)
    mask[chosen] = True
    return records.select(mask)


def linear_probe(run: Run, encoder: Encoder, records: EcgRecords, device: torch.device) -> nn.Linear:
    """Protocol `slf`: a linear head on the frozen encoder, trained on the clean training split."""
    train = records.split("train")
    features = in_batches(encoder, train.signals, device)
    stream = Generator(device).manual_seed(derived_seed(run.dataset, run.seed, "probe"))
    labels = torch.tensor(train.multi_hot(), device=device)
    return fit_linear_probe(
        features, labels, train.multilabel, **run.study.probe.model_dump(), generator=stream
    )


@dataclass
class _Sample:
    """Records under attack, on the device, and the table columns that every row of theirs has."""

    signals: Tensor
    labels: Tensor
    columns: pd.DataFrame
    classes: tuple[str, ...]
    found: list[pd.DataFrame] = field(default_factory=list)

    @staticmethod
    def of(records: EcgRecords, protocol: str, device: torch.device) -> "_Sample":
        labels = records.multi_hot()
        keep = [c for c in ("record", "patient", "split", "age", "sex") if c in records.table]
        truth = {f"y_{c}": labels[:, i].astype(np.int8) for i, c in enumerate(records.classes)}
        columns = records.table[keep].assign(target=records.name, protocol=protocol, **truth)
        signals = torch.tensor(records.signals, device=device)
        return _Sample(signals, torch.tensor(labels, device=device), columns, records.classes)

    def scores(self, attack: str, epsilon_mv: float) -> Tensor:
        """Stored shared scores (records, classes) of one attack."""
        for frame in self.found:
            if (frame["attack"].iloc[0], frame["view"].iloc[0], frame["epsilon_mv"].iloc[0]) == (
                attack,
                "shared",
                epsilon_mv,
            ):
                values = frame[[f"score_{c}" for c in self.classes]].to_numpy()
                return torch.tensor(values, device=self.signals.device)
        raise KeyError((attack, epsilon_mv))

    def clean_scores(self) -> Tensor:
        """Stored scores of the unchanged ECGs."""
        return self.scores("none", 0.0)

    def store(self, scores: Tensor, attack: str, view: str, epsilon_mv: float) -> None:
        """Keep the scores of one attack as rows of ``scores.parquet``."""
        values = scores.cpu().numpy()
        named = {f"score_{c}": values[:, i] for i, c in enumerate(self.classes)}
        how = {"attack": attack, "view": view, "epsilon_mv": epsilon_mv, "severity": np.nan}
        self.found.append(self.columns.assign(**how, **named))


def frozen_victim(run: Run, records: EcgRecords, folder: Path) -> tuple[Victim, dict[str, Tensor], dict]:
    """The run's frozen encoder with a linear head, rounded as it is stored, ready to be attacked.

    Parameters
    ----------
    folder
        The run's folder. A supervised arm keeps the head that it was trained with.

    Returns
    -------
    victim, head, form
        The model, the head's state as stored, and the content of ``encoder.json``.
    """
    device = pick_device(run.study.device)
    encoder, own_head, form = load_encoder(folder, str(device))
    head = own_head if own_head is not None else linear_probe(run, encoder, records, device)
    stored = halved(head.state_dict())
    load_state(head, stored, folder)
    return (
        Victim(Classifier(folded(encoder), head).eval().requires_grad_(False), records.multilabel),
        stored,
        form,
    )


def evaluate(run: Run, records: EcgRecords, folder: Path, protocol: str) -> pd.DataFrame:
    """Score one run's encoder under `protocol`, clean and under every attack of the study.

    Writes ``head.safetensors``, ``scores.parquet`` and ``evaluation.json`` into `folder` (the
    protocol folder inside the run's). Encoder and head are used as stored, in float32.

    Returns
    -------
    DataFrame
        What ``scores.parquet`` holds: one row per record, attack, view and ε.
    """
    started, device = time.perf_counter(), pick_device(run.study.device)
    victim, head, form = frozen_victim(run, records, folder.parent)
    save_tensors(folder / "head.safetensors", head)
    probed = time.perf_counter()
    scores, checks, speed = _attack_all(run, records, victim, protocol, device)
    summary = {
        "masking_ok": all(check["verdict"] != "fail" for check in checks),
        "checks": checks,
        "clean_all": _clean_all(victim, records, device),
        "seconds": {"probe": probed - started, "attacks": time.perf_counter() - probed},
        "attack_steps_per_second": speed,
        "peak_memory_mb": peak_memory_mb(device),
        "parameters": form["parameters"],
        **_training_cost(folder.parent),
        "precision": form["precision"],
    }
    with whole_file(folder / "scores.parquet") as partial:
        scores.to_parquet(partial, compression="zstd", index=False)
    write_json(folder / "evaluation.json", summary)
    return scores


def validation_curve(run: Run, records: EcgRecords, folder: Path) -> dict[float, float]:
    """ε (mV) → shared macro AUROC under PGD margin on validation records; it chooses the headline ε."""
    options, device = run.study.evaluation, pick_device(run.study.device)
    victim, _, _ = frozen_victim(run, records, folder)
    sample = _Sample.of(attacked_sample(records, "validation", options.max_records), "", device)
    generator = Generator(device).manual_seed(derived_seed(run.dataset, run.seed, "evaluation", "validation"))
    curve = {}
    for epsilon in options.epsilons_mv:
        budget = _budget(options, epsilon)
        delta = get_attack("pgd-margin")(victim, sample.signals, sample.labels, budget, generator)
        curve[epsilon] = macro_auroc(sample.labels, victim_scores(victim, sample.signals + delta, options))
    return curve


def _attack_all(
    run: Run, records: EcgRecords, victim: Victim, protocol: str, device: torch.device
) -> tuple[pd.DataFrame, list[dict], float]:
    """Scores of test and sensitivity records (of validation too where ε is chosen), checks, steps/s."""
    options, samples, counter = run.study.evaluation, {}, _StepCounter()
    for split in ("test", "sensitivity", "validation"):
        chosen = attacked_sample(records, split, options.max_records)
        if not len(chosen) or (split == "validation" and not get_arm(run.arm).sets_headline):
            continue
        samples[split] = _Sample.of(chosen, protocol, device)
        generator = Generator(device).manual_seed(derived_seed(run.dataset, run.seed, "evaluation", split))
        at = _Attacker(victim, samples[split], options, generator, counter)
        at.clean()
        for epsilon in tqdm(options.epsilons_mv, f"attacks on {split} records", leave=False):
            headline = epsilon == run.headline_epsilon_mv
            full = split == "test"
            labels = epsilon in (options.label_epsilons_mv or [run.headline_epsilon_mv])
            adc = records.card.get("adc_mv") if headline and full else None
            at.epsilon(epsilon, further=headline and full, label_view=labels and full, adc_mv=adc)
    seed = derived_seed(run.dataset, run.seed, "checks")
    checks = masking_checks(victim, samples["test"], options, run.headline_epsilon_mv, seed)
    found = [frame for sample in samples.values() for frame in sample.found]
    return pd.concat(found, ignore_index=True), checks, counter.rate()


class _StepCounter:
    """Record-steps and seconds spent in attacks."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0

    def add(self, steps: int, started: float) -> None:
        self.steps, self.seconds = self.steps + steps, self.seconds + time.perf_counter() - started

    def rate(self) -> float:
        return self.steps / max(self.seconds, 1e-9)


def victim_scores(victim: Victim, signals: Tensor, options: AttackOptions) -> Tensor:
    """Class scores (records, classes) of `signals`, without gradient, in batches."""
    with torch.no_grad():
        return torch.cat([victim.scores(part) for part in signals.split(options.batch_size)])


def _budget(
    options: AttackOptions, epsilon_mv: float, steps: int | None = None, restarts: int | None = None
) -> Budget:
    chosen = steps or options.steps, restarts or options.restarts
    return Budget(epsilon_mv, *chosen, batch_size=options.batch_size)


@dataclass
class _Attacker:
    """One victim, one sample: runs attacks and stores their scores."""

    victim: Victim
    sample: _Sample
    options: AttackOptions
    generator: Generator
    counter: _StepCounter

    def clean(self) -> None:
        """Store the scores of the unchanged ECGs."""
        self.sample.store(
            victim_scores(self.victim, self.sample.signals, self.options), "none", "shared", 0.0
        )

    def epsilon(self, epsilon_mv: float, *, further: bool, label_view: bool, adc_mv: float | None) -> None:
        """Attack at one ε; then each label's own attack, started from the headline attack's δ.

        Per-label candidates include δ = 0 and every shared δ, so that the per-label AUROC never
        exceeds the shared one.
        """
        sample, candidates = self.sample, [self.sample.clean_scores()]
        delta, main = torch.zeros_like(sample.signals), self.options.headline_attack
        others = [name for name in self.options.attacks if further and name != main]
        for name in [*others, main]:
            delta = self._perturbation(name, epsilon_mv)
            candidates.append(victim_scores(self.victim, sample.signals + delta, self.options))
            sample.store(candidates[-1], name, "shared", epsilon_mv)
        if adc_mv is not None:  # as a recorder would store the attacked ECG: in whole ADC units
            rounded = torch.round((sample.signals + delta) / adc_mv) * adc_mv
            sample.store(
                victim_scores(self.victim, rounded, self.options), f"{main}-adc", "shared", epsilon_mv
            )
        if label_view:
            args = (self.victim, sample.signals, sample.labels, self.options, epsilon_mv, self.generator)
            candidates.append(label_scores(*args, start=delta))
            sample.store(worst_scores(candidates, sample.labels), main, "label", epsilon_mv)

    def _perturbation(self, name: str, epsilon_mv: float) -> Tensor:
        started, sample = time.perf_counter(), self.sample
        budget = _budget(self.options, epsilon_mv)
        delta = get_attack(name)(self.victim, sample.signals, sample.labels, budget, self.generator)
        if name == self.options.headline_attack:
            self.counter.add(len(sample.signals) * budget.steps * budget.restarts, started)
        return delta


def label_scores(
    victim: Victim, signals: Tensor, labels: Tensor, options: AttackOptions, epsilon: float,
    generator: Generator, start: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Scores under per-label perturbations: column c under the δ that attacks label c alone.

    Because a pairwise worst case separates per record (positives minimise, negatives maximise their
    score), the AUROC of column c is the exact worst case over independent δ, up to the optimiser.

    Returns
    -------
    Tensor
        (records, classes).
    """
    columns = []
    for label in range(labels.shape[1]):
        budget = _budget(options, epsilon, steps=options.label_steps)
        delta = pgd(
            victim, signals, signed_scores, label_targets(labels, label), budget, generator, start=start
        )
        columns.append(victim_scores(victim, signals + delta, options)[:, label])
    return torch.stack(columns, 1)


def worst_scores(candidates: list[Tensor], labels: Tensor) -> Tensor:
    """Per record and label, the worst of several scores: lowest for positives, highest for negatives."""
    stacked = torch.stack(candidates)
    return torch.where(labels > 0, stacked.amin(0), stacked.amax(0))


def macro_auroc(labels: Tensor, scores: Tensor) -> float:
    """Mean AUROC over the labels that have positives and negatives."""
    y, s = labels.cpu().numpy(), scores.cpu().numpy()
    defined = [c for c in range(y.shape[1]) if 0 < y[:, c].sum() < len(y)]
    return float(np.mean([roc_auc_score(y[:, c], s[:, c]) for c in defined]))


def masking_checks(
    victim: Victim, sample: _Sample, options: AttackOptions, headline: float, seed: int
) -> list[dict]:
    """Signs of gradient masking (Athalye et al. 2018, Carlini et al. 2019) in one evaluated model.

    Returns
    -------
    list of dict
        `check`, `value`, `limit`, `verdict` ("pass" or "fail").
    """
    return [
        {
            "check": name,
            "value": float(value),
            "limit": limit,
            "verdict": "pass" if value <= limit else "fail",
        }
        for name, value, limit in _measured_checks(victim, sample, options, headline, seed)
    ]


def _measured_checks(
    victim: Victim, sample: _Sample, options: AttackOptions, headline: float, seed: int
) -> Iterator[tuple[str, float, float]]:
    generator = Generator(sample.signals.device).manual_seed(seed)
    clean, grid = sample.clean_scores(), sorted(options.epsilons_mv)
    attacked = [sample.scores(options.headline_attack, epsilon) for epsilon in grid]
    curve = [macro_auroc(sample.labels, scores) for scores in (clean, *attacked)]
    yield "largest rise of AUROC with ε", max(np.diff(curve).max(), 0.0), 0.005
    extreme = label_scores(victim, sample.signals, sample.labels, options, EXTREME_MV, generator)
    extreme = worst_scores([clean, extreme], sample.labels)
    yield f"per-label AUROC at {EXTREME_MV:g} mV", macro_auroc(sample.labels, extreme), 0.05
    noise = random_start(sample.signals, headline, generator)
    noisy = macro_auroc(sample.labels, victim_scores(victim, sample.signals + noise, options))
    yield "change of AUROC under noise of the headline ε", abs(noisy - curve[0]), 0.02
    yield (
        "share of exactly zero input gradients",
        zero_gradients(victim, sample.signals[:256], sample.labels),
        0.01,
    )


def zero_gradients(victim: Victim, signals: Tensor, labels: Tensor) -> float:
    """Share of samples whose input gradient of the margin objective is exactly 0."""
    leaf = signals.clone().requires_grad_()
    value = signed_scores(victim.scores(leaf), auroc_targets(labels)[: len(signals)]).sum()
    (gradient,) = torch.autograd.grad(value, leaf)
    return float((gradient == 0).float().mean())


def _clean_all(victim: Victim, records: EcgRecords, device: torch.device) -> dict[str, float | None]:
    """Clean AUROC on the whole test split, not only its attacked sample; None where every record agrees."""
    test = records.split("test")
    scores, labels = in_batches(victim.scores, test.signals, device).cpu().numpy(), test.multi_hot()
    each = {
        c: float(roc_auc_score(labels[:, i], scores[:, i])) if 0 < labels[:, i].sum() < len(labels) else None
        for i, c in enumerate(records.classes)
    }
    return {"macro": float(np.mean([value for value in each.values() if value is not None])), **each}


def _training_cost(folder: Path) -> dict[str, float]:
    """Seconds of pretraining and median milliseconds of a step, from the run's history."""
    epochs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    step_ms = [1000 * epoch["seconds"] / epoch["steps"] for epoch in epochs]
    total = sum(epoch["seconds"] for epoch in epochs)
    return {"training_seconds": total, "step_ms": float(np.median(step_ms)) if step_ms else None}


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MB: of the GPU if that is the device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
