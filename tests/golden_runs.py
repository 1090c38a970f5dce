"""Short runs of everything that computes; `test_golden` compares their numbers.

The numbers are in ``golden.json``. Whoever changes some on purpose raises the
``RESULTS_VERSION`` of the step that computes them, writes the file anew with
``python tests/golden_runs.py`` from the repository's root, and says in the commit why
they changed. Never write it anew to pass a failing test without knowing the reason.

All runs are in float32 on one thread of a CPU. They touch the package only through the
names imported below.
"""

import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from golden_numbers import (
    as_text,
    brief,
    columns,
    digest,
    machine,
    parts,
    plain,
    without_times,
)
from torch import Generator, nn
from toy import toy_records

from ecgstudy.analysis.tables import write_tables
from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.corruptions import Recording, explain_skip
from ecgstudy.evaluation.attack_run import AttackRun
from ecgstudy.evaluation.embedding import compare_embeddings
from ecgstudy.evaluation.energy import find_r_peaks, profile_energy
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.models.checkpoints import load_tensors
from ecgstudy.models.encoders import build_encoder
from ecgstudy.params import AttackOptions, ViewOptions
from ecgstudy.pretraining.augment import draw_view, high_pass
from ecgstudy.registry import ATTACKS, CORRUPTIONS
from ecgstudy.running.launch import pretrain
from ecgstudy.running.workflow import prepared_records
from ecgstudy.study import Paths, Run, Study, load_study

STORED = Path(__file__).with_name("golden.json")
TINY = "params/tiny.yaml"
KINDS = ("single-label", "multi-label")
ARMS = [
    "random", "supervised", "pgd-at", "trades", "mart", "supcon-margin",
    "simclr", "supcon", "debiased", "hcl", "hcl-temperature", "hcl-shuffled", "dclw",
    "clef", "clef-shuffled", "clef-original",
    "rocl", "rocl-ip", "rocl-hn", "rocl-ip-hn", "rocl-debiased", "rocl-clef",
    "rocl-rsfgsm", "rocl-nfgsm", "rocl-long",
    "acl", "acl-hn", "advcl", "advcl-ip-hn", "clae", "clae-supcon", "clae-hcl",
    "swaro", "claf", "claf-ip-hn", "dynacl", "deacl",
    "adv-supcon", "adv-supcon-labels", "adv-supcon-noise", "anchor", "ascl",
]  # fmt: skip
FEATURES = ["features-lr", "features-tree", "features-forest"]
ORIGINALS = ["rocl-ip-hn", "acl", "advcl", "ascl"]
"""Arms that are also trained with their source's loss and attack."""
ENCODERS = {
    "resnet1d": {"size": "small", "width": 8},
    "xresnet1d": {"size": "small", "width": 8},
    "cnn": {"size": "small", "width": 4},
    "lstm": {"size": "small", "width": 8},
    "vit1d": {"size": "small", "width": 16},
}
ONE_CLASS = ("apgd-dlr", "apgd-dlr-targeted")
"""Attacks of records with one class each."""


# ---- What the package is asked to do ----------------------------------------------


def make_run(arm: str, **sections) -> Run:
    """A run of `arm` on the toy data set; `sections` replace those of its params."""
    content = {
        "study": "golden",
        "title": "Golden runs",
        "datasets": {
            "toy": {"headline_epsilon_mv": 0.05},
            "other": {"headline_epsilon_mv": 0.02, "pretrain": False},
        },
        "arms": [*ARMS, *FEATURES],
        "seeds": [0],
        "protocols": ["slf", "alf", "aff", "slf@other"],
        "encoder": {"options": {"size": "small", "width": 8}, "projection": 16},
        "views": {"crop_s": 0.8, "lead_dropout": 0.1},
        "training": training(),
        "probe": {"epochs": 5, "batch_size": 16},
        "alf": {"epochs": 2, "batch_size": 16, "attack_steps": 2},
        "aff": {"epochs": 1, "batch_size": 16, "attack_steps": 2},
        "evaluation": evaluation(),
        "statistics": {"resamples": 50},
        "device": "cpu",
    }
    return Run(Study.model_validate(content | sections), "toy", arm, seed=0)


def training(**changes) -> dict:
    """Options of a pretraining of a few steps."""
    options = {"epochs": 2, "batch_size": 16, "attack_steps": 2, "precision": "float32"}
    return options | changes


def evaluation(**changes) -> dict:
    """Options of an evaluation of one attack, so that it takes a moment."""
    options = {
        "ensemble": ["apgd-margin"],
        "attacks": ["noise"],
        "epsilons_mv": [0.02, 0.05],
        "steps": 2,
        "label_steps": 2,
        "queries": 5,
        "query_records": 8,
        "check_steps": 3,
        "check_restarts": 1,
        "check_records": 8,
    }
    return options | changes


def train(run: Run, records, root: Path) -> dict:
    """Pretrain `run`, after one that it needs; its history and its weights' digests."""
    needed = {"advcl": "simclr", "deacl": "simclr", "features": "supervised"}
    if teacher := needed.get(run.arm.partition("-")[0]):
        train(replace(run, arm=teacher), records, root)
    folder = Paths("golden", root).run(run.dataset, run.arm, run.seed)
    history = pretrain(run, records, folder)
    tensors, _ = load_tensors(folder / "encoder.safetensors")
    return {"history": without_times(history), "stored": parts(tensors)}


def score(protocol: str, run: Run, records, root: Path) -> dict:
    """Evaluate a pretrained `run`; every score, check and digest that was stored."""
    folder = Paths("golden", root).protocol(run.dataset, run.arm, run.seed, protocol)
    evaluate(run, records, folder, protocol)
    found = {"scores": scores_of(folder), "evaluation": evaluation_of(folder)}
    for name in ("head", "encoder"):
        path = folder / f"{name}.safetensors"
        if path.exists():
            found[name] = parts(load_tensors(path)[0])
    return found


def scores_of(folder: Path) -> dict:
    """Digests and means of scores by split, attack, view, ε and severity."""
    table = pd.read_parquet(folder / "scores.parquet")
    keys = ["split", "attack", "view", "epsilon_mv", "severity"]
    names = [name for name in table if name.startswith("score_")]
    found = {}
    for key, rows in table.groupby(keys, dropna=False, sort=False):
        values = rows[names].to_numpy()
        found[" ".join(map(str, key))] = {
            "digests": [digest(column) for column in values.T],
            "means": [float(np.mean(column, dtype=np.float64)) for column in values.T],
        }
    return found


def evaluation_of(folder: Path) -> dict:
    """What an evaluation stored beside its scores: checks, embedding, energy."""
    content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    for name in ("checks", "profiles"):
        content[name] = columns(pd.DataFrame(content.get(name, [])))
    return without_times(content)


def tables_of(study: Study, root: Path) -> dict:
    """Values of every table of `study`, but what things cost."""
    tables = write_tables(study, Paths(study.study, root))
    for name in ("claims", "claim_evidence"):
        tables[name] = tables[name][tables[name]["measure"] != "step_ms"]
    return {name: columns(table) for name, table in tables.items() if name != "cost"}


def make_victim(leads: int, classes: int, multilabel: bool) -> Victim:
    """A small network with fixed weights, frozen, to be attacked; it takes 100 Hz."""
    torch.manual_seed(0)
    mean, std = torch.zeros(leads), torch.tensor(0.4)
    encoder = build_encoder("resnet1d", ENCODERS["resnet1d"], mean, std, dual=True)
    head = nn.Linear(encoder.features, classes)
    nn.init.normal_(head.weight, std=2.0)
    model = nn.Sequential(encoder, head).eval().requires_grad_(False)
    return Victim(model, multilabel, encoder, fs=100.0)


# ---- The runs --------------------------------------------------------------------


def toy(kind: str):
    """Toy records of one class each, or of any number; two patients are set apart."""
    records = toy_records(train=48, multilabel=kind == "multi-label")
    table = records.table.copy()
    table.loc[table.index[-4:], "split"] = "sensitivity"
    return replace(records, table=table)


def tiny_records(root: Path):
    """The tiny study and its prepared records."""
    study = load_study(TINY)
    on_cpu = {"precision": "float32"}
    changed = study.training.model_copy(update=on_cpu)
    study = study.model_copy(update={"training": changed, "device": "cpu"})
    return study, prepared_records(study, "builtin", Paths(study.study, root))


def tiny_study(root: Path) -> dict:
    """The tiny study from its data to its tables."""
    study, records = tiny_records(root)
    paths, found = Paths(study.study, root), {}
    for run in study.runs():
        folder = paths.run(run.dataset, run.arm, run.seed)
        history = pretrain(run, records, folder)
        evaluate(run, records, folder / "slf", "slf")
        tensors, _ = load_tensors(folder / "encoder.safetensors")
        found[run.arm] = {
            "history": without_times(history),
            "tensors": {name: digest(tensor) for name, tensor in tensors.items()},
            "scores": scores_of(folder / "slf"),
            "evaluation": evaluation_of(folder / "slf"),
            "head": parts(load_tensors(folder / "slf/head.safetensors")[0]),
        }
    return found | {"tables": tables_of(study, root)}


def simulated_data(root: Path) -> dict:
    """The simulated ECGs, their R peaks, and engineered features of strips."""
    study, records = tiny_records(root)
    run = Run(study, "builtin", "features-lr", 0)
    pretrain(run, records, root / "features")
    features, _ = load_tensors(root / "features/encoder.safetensors")
    table = records.table
    peaks = np.concatenate([row for row in table["r_peaks"] if row is not None])
    return {
        "signals": brief(records.signals),
        "labels": brief(records.labels),
        "ages": brief(table["age"].to_numpy(float)),
        "splits": table["split"].value_counts().to_dict(),
        "r_peaks": brief(peaks),
        "features": brief(features["features"].nan_to_num()),
    }


def one_arm(arm: str, kind: str, root: Path, **changes) -> dict:
    """A short pretraining of one arm."""
    return train(make_run(arm, training=training(**changes)), toy(kind), root)


def features_arm(arm: str, kind: str, root: Path) -> dict:
    """A model on engineered features, attacked by transfer and by queries."""
    run, records = make_run(arm, training=training(epochs=1)), toy(kind)
    return train(run, records, root) | score("slf", run, records, root)


def linear_probe(kind: str, root: Path) -> dict:
    """A classifier and an encoder under several attacks and all corruptions."""
    attacks = [
        "noise",
        "fgsm",
        "pgd-margin",
        "pgd-l2",
        "square",
        "apgd-margin[II]",
        "transfer",
    ]
    options = evaluation(
        ensemble=["apgd-ce", "apgd-margin"],
        attacks=attacks,
        further_steps=3,
        restarts=2,
        corruptions=CORRUPTIONS.names(),
    )
    records = toy(kind)
    records.card["adc_mv"] = 0.005
    found = {}
    for arm in ("supervised", "rocl"):
        run = make_run(arm, training=training(epochs=1), evaluation=options)
        train(run, records, root)
        found[arm] = score("slf", run, records, root)
    return found


def fine_tuning(protocol: str, kind: str, root: Path) -> dict:
    """A head on attacked ECGs, all weights by TRADES, or transfer to other records."""
    records, run = toy(kind), make_run("rocl", training=training(epochs=1))
    train(run, records, root)
    tested = replace(records, name="other") if "@" in protocol else records
    return score(protocol, run, tested, root)


def statistics(root: Path) -> dict:
    """Tables of a study of six arms and three seeds, with several labels."""
    records = toy("multi-label")
    arms = ["supervised", "simclr", "rocl", "rocl-ip", "rocl-hn", "rocl-ip-hn"]
    grid = {"arms": arms, "seeds": [0, 1, 2], "protocols": ["slf"]}
    options = evaluation(transfer_from="supervised", max_records=14)
    datasets = {"toy": {"headline_epsilon_mv": 0.05}}
    sections = grid | {"datasets": datasets, "evaluation": options}
    study = make_run("rocl", **sections, training=training(epochs=1)).study
    for run in study.runs():
        train(run, records, root)
        score("slf", run, records, root)
    return tables_of(study, root)


def every_attack(kind: str, root: Path) -> dict:
    """δ of every attack on one fixed network, and what it does to its scores."""
    multilabel = kind == "multi-label"
    signals = torch.tensor(toy(kind).split("test").signals)
    victim = make_victim(leads=2, classes=4, multilabel=multilabel)
    labels = torch.eye(4)[torch.arange(len(signals)) % 4]
    if multilabel:
        labels[::3] += labels[::3].roll(1, dims=1)
    found = {"clean": brief(victim.scores(signals))}
    for name in [*ATTACKS.names(), "apgd-margin[II]"]:
        if multilabel and name in ONE_CLASS:
            continue
        mask = torch.tensor([[0.0], [1.0]]) if name.endswith("[II]") else None
        budget = Budget(0.05, steps=4, restarts=2, queries=12, mask=mask)
        attack = ATTACKS.find(name.partition("[")[0])
        delta = attack(victim, signals, labels, budget, seeded())
        found[name] = {
            "delta": brief(delta),
            "scores": brief(victim.scores(signals + delta)),
        }
    options = AttackOptions(label_steps=3, restarts=2)
    test = replace(
        toy(kind).split("test"), labels=labels.numpy(), classes=tuple("ABCD")
    )
    attack_run = AttackRun(victim, test, options, (), torch.device("cpu"))
    worst = attack_run.attack_each_label(0.05, seeded())
    return found | {"per label": brief(worst)}


def corruptions(root: Path) -> dict:
    """Every corruption of the toy's two leads and of twelve."""
    _, twelve = tiny_records(root)
    found = {}
    for name, records in {"two leads": toy(KINDS[0]), "twelve leads": twelve}.items():
        recording = Recording.of(records)
        signals = torch.tensor(records.split("test").signals[:8])
        for corruption in CORRUPTIONS.names():
            corrupt = CORRUPTIONS.find(corruption)
            for severity in (1, 3, 5):
                if explain_skip(corruption, severity, recording) is None:
                    changed = corrupt(signals, recording, severity, seeded())
                    found[f"{name}, {corruption}, {severity}"] = brief(changed)
    return found


def embedding_and_energy(root: Path) -> dict:
    """Geometry of the embedding under noise, and where the noise has its energy."""
    _, records = tiny_records(root)
    test = records.split("test")
    encoder = make_victim(len(test.leads), len(test.classes), multilabel=False).features
    signals, labels = torch.tensor(test.signals), torch.tensor(test.multi_hot())
    noise = 0.1 * torch.randn(signals.shape, generator=seeded())
    noise[:, 1] *= 2
    patients = test.table["patient"].to_numpy()
    features = encoder(signals), encoder(signals + noise)
    shape = compare_embeddings(*features, labels, patients)
    few = test.select(np.arange(len(test)) < 8)
    peaks = find_r_peaks(replace(few, table=few.table.drop(columns="r_peaks")))
    energy = profile_energy(noise[:8].numpy(), test.fs, test.leads, peaks)
    found = np.zeros((8, signals.shape[2]), dtype=bool)
    for row, samples in zip(found, peaks, strict=True):
        row[samples] = True
    return {
        "embedding": shape,
        "energy": columns(pd.DataFrame(energy)),
        "peaks": brief(found),
    }


def encoders(root: Path) -> dict:
    """Fresh weights of every encoder; features in training and evaluation mode."""
    signals = torch.randn(6, 3, 120, generator=seeded())
    found = {}
    for name, options in ENCODERS.items():
        for dual in (False, True):
            torch.manual_seed(0)
            mean = torch.tensor([0.0, 0.1, -0.1])
            encoder = build_encoder(name, options, mean, torch.tensor(0.5), dual)
            weights = parts(encoder.state_dict(prefix="encoder."))["encoder"]
            outputs = {
                "clean, training": encoder.train()(signals, adversarial=False),
                "attacked, training": encoder(signals, adversarial=True),
                "evaluation": encoder.eval()(signals),
            }
            outputs = {mode: brief(features) for mode, features in outputs.items()}
            found[f"{name}, dual {dual}"] = {"weights": weights} | outputs
    return found


def augmentations(root: Path) -> dict:
    """Views with each of several options."""
    signals = torch.tensor(toy(KINDS[0]).signals[:12])
    choices = {
        "as they are": ({}, 1.0),
        "cropped": ({"crop_s": 0.6}, 1.0),
        "centred": ({"crop_s": 0.6, "centred": True}, 1.0),
        "weaker": ({"crop_s": 0.6}, 0.5),
        "leads dropped": ({"lead_dropout": 0.5, "timeout": 0.0}, 1.0),
    }
    found = {
        name: brief(
            draw_view(signals, 100.0, ViewOptions(**options), seeded(), strength)
        )
        for name, (options, strength) in choices.items()
    }
    return found | {"fast part": brief(high_pass(signals, 100.0))}


def seeded() -> Generator:
    """A random stream that is the same each time."""
    return Generator().manual_seed(0)


def _runs() -> dict:
    runs = {
        "tiny study": tiny_study,
        "simulated data": simulated_data,
        "statistics": statistics,
        "corruptions": corruptions,
        "embedding and energy": embedding_and_energy,
        "encoders": encoders,
        "augmentations": augmentations,
    }
    for kind in KINDS:
        runs[f"attacks, {kind}"] = partial(every_attack, kind)
        runs[f"linear probe, {kind}"] = partial(linear_probe, kind)
        for protocol in ("alf", "aff", "slf@other"):
            runs[f"protocol {protocol}, {kind}"] = partial(fine_tuning, protocol, kind)
        for arm in ARMS:
            runs[f"arm {arm}, {kind}"] = partial(one_arm, arm, kind)
        for arm in ORIGINALS:
            published = partial(one_arm, arm, kind, loss="original", attack="original")
            runs[f"arm {arm} as published, {kind}"] = published
        for arm in FEATURES:
            runs[f"features {arm}, {kind}"] = partial(features_arm, arm, kind)
    return runs


RUNS = _runs()
"""Name → function of an empty folder that computes the numbers."""


def compute(name: str) -> dict:
    """The numbers of one of `RUNS`, as plain JSON."""
    with tempfile.TemporaryDirectory() as folder:
        return plain(RUNS[name](Path(folder)))


def main() -> None:
    """Write ``golden.json`` anew and name what has changed."""
    torch.set_num_threads(1)
    before = (
        json.loads(STORED.read_text(encoding="utf-8"))
        if STORED.exists()
        else {"runs": {}}
    )
    runs = {name: compute(name) for name in RUNS}
    text = as_text({"machine": machine(), "runs": runs})
    STORED.write_text(text + "\n", encoding="utf-8")
    for name, numbers in runs.items():
        if before["runs"].get(name) != numbers:
            print("changed:", name)


if __name__ == "__main__":
    sys.exit(main())
