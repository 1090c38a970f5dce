"""The steps of a study, and the cache keys that say whether each was done.

A step (prepare, pretrain, evaluate, figures) is one execution of a notebook, and has a
folder. ``run.json`` there says what is asked for, ``provenance.json`` what was done,
both with the step's key: a hash of its parameters, of the keys of the steps whose
results it reads, of the plugins that it uses, and of its `RESULTS_VERSION`.
"""

import glob
import inspect
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from ecgstudy.errors import StudyError
from ecgstudy.files import BEFORE, ROOT, read_json, short_hash
from ecgstudy.params import method, split_leads
from ecgstudy.registry import (
    ARMS,
    ATTACKS,
    CORRUPTIONS,
    DATASETS,
    ENCODERS,
    PLUGIN,
    PLUGINS,
    WEIGHTINGS,
    Registry,
)
from ecgstudy.study import Paths, Run, Study

RESULTS_VERSION = {
    "prepare": 1,
    "pretrain": 1,
    "evaluate": 1,
    "figures": 1,
    "explore": 1,
}
"""Raise a step's number when it computes something else: its results are made again."""

NOTEBOOKS = {
    "prepare": "01_prepare_data",
    "pretrain": "02_pretrain",
    "evaluate": "03_evaluate",
    "figures": "04_figures",
    "explore": "05_explore",
}
FILES = {
    "prepare": ("card.json", "labels.npy", "signals.npy", "table.parquet"),
    "pretrain": ("encoder.json", "encoder.safetensors", "history.jsonl"),
    "evaluate": ("evaluation.json", "head.safetensors", "scores.parquet"),
    "figures": (
        "claim_evidence.csv",
        "claims.csv",
        "contrast_sensitivity.csv",
        "contrasts.csv",
        "cost.csv",
        "factor_effects.csv",
        "headline_check.csv",
        "masking_checks.csv",
        "per_class.csv",
        "perturbations.csv",
        "pretraining.csv",
        "robust_auroc.csv",
        "sensitivity.csv",
        "subgroups.csv",
        "verdicts.csv",
    ),
}
DOWNLOADS = ROOT / "outputs" / "downloads"


@dataclass(frozen=True)
class Step:
    """One execution of a notebook: where, with what, and after which others."""

    name: str
    folder: Path
    arguments: dict[str, str | int]
    """Parameters of the notebook, beside the params file."""
    parameters: dict
    """Everything that decides the outcome, as plain JSON types."""
    needs: tuple["Step", ...] = ()

    def __str__(self) -> str:
        words = [f"seed {v}" if k == "seed" else v for k, v in self.arguments.items()]
        return " ".join([self.name, *words])

    @cached_property
    def key(self) -> str:
        """Short hash of all that decides the outcome."""
        return short_hash([self.name, RESULTS_VERSION[self.name], self.parameters])

    @property
    def content(self) -> dict:
        """What ``run.json`` says."""
        return {"key": self.key, **self.parameters}

    @property
    def files(self) -> tuple[str, ...]:
        """What the step leaves in its folder, beside the executed notebook."""
        if method(str(self.arguments.get("protocol"))) == "aff":
            return (*FILES[self.name], "encoder.json", "encoder.safetensors")
        return FILES[self.name]

    @property
    def marker(self) -> Path:
        """The file that says that the step was done, and how."""
        return self.folder / "provenance.json"

    @property
    def before(self) -> Path:
        """The marker of what was done before with another key, until the step
        starts."""
        return self.folder / BEFORE

    @property
    def notebook(self) -> Path:
        """The executed notebook."""
        return self.folder / f"{NOTEBOOKS[self.name]}.ipynb"

    @property
    def job(self) -> str:
        """Name of the job's files in ``logs``, and of its page in the report."""
        words = [f"seed{v}" if k == "seed" else v for k, v in self.arguments.items()]
        return "-".join([NOTEBOOKS[self.name], *words])


def steps(study: Study, paths: Paths | None = None) -> dict[Path, Step]:
    """Every step of the study by its folder, each after those that it needs.

    Parameters
    ----------
    study
        The study.
    paths
        Where its outputs are, if not at `study.paths`.
    """
    paths = paths or study.paths
    files_hash.cache_clear()
    found = [prepare_step(study, dataset, paths) for dataset in study.datasets]
    found += [pretrain_step(run, paths) for run in study.runs()]
    evaluations = evaluate_steps(study, paths)
    found += sorted(evaluations, key=lambda step: len(step.needs))
    found.append(figures_step(study, paths))
    return {step.folder: step for step in found}


def shown_run(study: Study) -> Run:
    """The run that the report shows: the showcase arm's first seed."""
    arm = study.showcase or study.arms[-1]
    return Run(study, study.pretrained[0], arm, study.seeds[0])


def report_pages(
    study: Study, paths: Paths | None = None, *, every_run: bool = False
) -> dict[Path, Step]:
    """Page of the report → the step whose executed notebook it shows.

    Parameters
    ----------
    study
        The study.
    paths
        Where its outputs are, if not at `study.paths`.
    every_run
        A page for each run, not only for the one that the report shows.
    """
    paths, run = paths or study.paths, shown_run(study)
    shown, found = {"arm": run.arm, "seed": run.seed}, {}
    for step in steps(study, paths).values():
        of_run = {k: v for k, v in step.arguments.items() if k in shown}
        if every_run or not of_run or of_run == shown:
            name = "index" if step.name == "figures" else step.job
            found[paths.report / f"{name}.html"] = step
    return found


def prepare_step(study: Study, dataset: str, paths: Paths) -> Step:
    """Preparation of one data set.

    Parameters
    ----------
    study, dataset
        The study and the name of one of its data sets.
    paths
        Where its outputs are.
    """
    options = study.datasets[dataset].model_dump(mode="json")
    parameters = {"dataset": dataset, "options": options["options"]}
    for key in ("leads", "fs"):
        if options[key] is not None:
            parameters[key] = options[key]
    if dataset in DATASETS.plugins:
        parameters |= own_files(study, dataset, paths)
    parameters |= _plugins((DATASETS, [dataset]))
    arguments = {"dataset": dataset}
    return Step("prepare", paths.data(dataset), arguments, parameters)


def pretrain_step(run: Run, paths: Paths) -> Step:
    """Pretraining of one run.

    Parameters
    ----------
    run
        The run; its arm may need the encoder of another one.
    paths
        Where the study's outputs are.
    """
    arm, encoder = ARMS.find(run.arm), run.study.encoder
    data = prepare_step(run.study, run.dataset, paths)
    parameters = {**run.parameters(), "data": data.content}
    needs = [data]
    if arm.needs:
        needs.append(pretrain_step(replace(run, arm=arm.needs), paths))
        parameters["needs"] = {"arm": arm.needs, "key": needs[-1].key}
    parts = run.arm.split("-")
    stems = ["-".join(parts[:n]) for n in range(1, len(parts) + 1)]
    used = [(ARMS, stems), (WEIGHTINGS, arm.schemes), (ENCODERS, [encoder.name])]
    module = str(encoder.options.get("factory")).partition(":")[0]
    parameters |= _plugins(*used, factory=module)
    folder = paths.run(run.dataset, run.arm, run.seed)
    arguments = {"dataset": run.dataset, "arm": run.arm, "seed": run.seed}
    return Step("pretrain", folder, arguments, parameters, tuple(needs))


def evaluate_steps(study: Study, paths: Paths) -> list[Step]:
    """Evaluation of every run under each of its protocols."""
    return [
        evaluate_step(run, protocol, paths)
        for run in study.runs()
        for protocol in run.protocols
    ]


def evaluate_step(run: Run, protocol: str, paths: Paths) -> Step:
    """Evaluation of one run; of the settings of protocols, its own alone count.

    Parameters
    ----------
    run, protocol
        The pretrained run, and one of its protocols.
    paths
        Where the study's outputs are.
    """
    study, how = run.study.model_dump(mode="json"), method(protocol)
    own, tested = "probe" if how == "slf" else how, run.tested_on(protocol)
    pretrained = pretrain_step(run, paths)
    data = prepare_step(run.study, tested.dataset, paths)
    arguments = {**pretrained.arguments, "protocol": protocol}
    parameters = {
        **arguments,
        "pretrain": pretrained.key,
        own: study[own],
        "evaluation": study["evaluation"],
        "headline_epsilon_mv": tested.headline_epsilon_mv,
    }
    needs = [pretrained, data]
    if tested != run:
        parameters["target"] = data.key
    if run.attack_source:
        other = replace(run, arm=run.attack_source)
        source = pretrain_step(other, paths)
        parameters["source"] = {"arm": other.arm, "key": source.key}
        # Fine-tuning is not repeated for the source of an attack.
        needs.append(source if how == "slf" else evaluate_step(other, protocol, paths))
    options = run.study.evaluation
    attacks = [split_leads(name)[0] for name in options.ensemble + options.attacks]
    parameters |= _plugins((ATTACKS, attacks), (CORRUPTIONS, options.corruptions))
    folder = paths.protocol(run.dataset, run.arm, run.seed, protocol)
    return Step("evaluate", folder, arguments, parameters, tuple(needs))


def figures_step(study: Study, paths: Paths) -> Step:
    """Tables and figures of the whole study."""
    needs = evaluate_steps(study, paths)
    parameters = {
        "study": study.study,
        "statistics": study.statistics.model_dump(),
        "evaluated": [step.key for step in needs],
    }
    return Step("figures", paths.tables, {}, parameters, tuple(needs))


def _plugins(*used: tuple[Registry, Iterable[str]], factory: str = "") -> dict:
    """The plugins that registered the names `used`, or whose module is `factory`."""
    module = f"{PLUGIN}{factory}_"
    found = {text for name, text in PLUGINS.items() if name.startswith(module)}
    for registry, names in used:
        found |= {registry.plugins[name] for name in names if name in registry.plugins}
    return {"plugins": sorted(found)} if found else {}


def own_files(study: Study, dataset: str, paths: Paths) -> dict[str, str | None]:
    """What a plugin's loader reads: ``data_root`` and a hash of the ``files`` there.

    Empty for a loader that takes no `root`. Where the folder is not there, the hash is
    that of last time: a clone of results has no data, and makes nothing again.

    Parameters
    ----------
    study, dataset
        The study and the name of the data set.
    paths
        Where its outputs are.
    """
    from ecgstudy.datasets.prepare import find_folder

    loader = DATASETS.find(dataset)
    if "root" not in inspect.signature(loader).parameters:
        return {}
    root = study.datasets[dataset].data_root
    try:
        files = files_hash(find_folder(dataset, root, DOWNLOADS))
    except StudyError:  # said by the preparation, if the data are needed
        asked = [read_json(paths.data(dataset) / "run.json")]
        for path in sorted(
            paths.home.glob(f"runs/{glob.escape(dataset)}/*/*/run.json")
        ):
            asked.append(read_json(path).get("data", {}))
        known = [content["files"] for content in asked if content.get("files")]
        files = known[0] if known else None
    return {"data_root": root, "files": files}


@cache
def files_hash(folder: Path) -> str:
    """Short hash of the names, sizes and times of all files in and below `folder`.

    Hidden ones do not count. Looked up once, until ``files_hash.cache_clear()``.
    """
    found = []
    for where, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            file = Path(where, name)
            if not name.startswith("."):
                with suppress(FileNotFoundError):  # a link to nowhere
                    seen = file.stat()
                    place = str(file.relative_to(folder))
                    found.append((place, seen.st_size, int(seen.st_mtime)))
    return short_hash(sorted(found))
