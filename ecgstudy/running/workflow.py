"""From a params file to a finished study: steps, their stamps, notebooks, and the engine's call.

Every step (prepare, pretrain, evaluate, figures) has a folder with two small files. ``run.json`` is
what is asked for: parameters and a stamp of them and of the code that acts on them. It is rewritten
only when its content changes. ``provenance.json`` is what was done: the stamp it was done for,
versions, commit and wall time. A step is up to date when the two stamps agree, whatever the
files' times say; `plan` sets the times of ``run.json`` so that Snakemake comes to that conclusion.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from ecgstudy.attacks.corruptions import get_corruption
from ecgstudy.attacks.named import get_attack
from ecgstudy.datasets import prepare as datasets_package
from ecgstudy.errors import StudyError, command
from ecgstudy.files import read_json, stamp, write_json, write_text
from ecgstudy.models import encoders
from ecgstudy.models.released.adapter import encoder_code
from ecgstudy.models.released.weights import check_weights
from ecgstudy.params import method
from ecgstudy.pretraining import losses, weighting
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.records import EcgRecords, load_records, save_records
from ecgstudy.registry import DATASETS
from ecgstudy.running import engine, gpus
from ecgstudy.running.custom_cache import DOWNLOADS, files_stamp, own_files
from ecgstudy.running.provenance import is_done
from ecgstudy.study import PLUGIN, Paths, Run, Study, load_study


def _modules(names: str) -> tuple[str, ...]:
    """Modules of the package by name: a plan reads their source and need not wait for their imports."""
    return tuple(f"ecgstudy.{name}" for name in names.split())


PRETRAIN_CODE = (
    *_modules(
        "models.encoders pretraining.contrast pretraining.augment pretraining.loop pretraining.step pretraining.losses datasets.clinical_risk models.heads attacks.ball"
    ),
    weighting.uniform,
)
EVALUATE_CODE = _modules(
    "evaluation.runner evaluation.sample attacks.corruptions evaluation.masking evaluation.embedding evaluation.energy attacks.named attacks.ball attacks.ensemble attacks.gradient attacks.objectives attacks.api attacks.smooth_band attacks.square attacks.targeted attacks.universal attacks.label_free models.heads models.encoders"
)
FEATURES_CODE = _modules("datasets.features evaluation.blackbox")
FIGURES_CODE = _modules(
    "analysis.statistics analysis.scores analysis.contrasts analysis.verdict pretraining.suffixes analysis.sensitivity analysis.tables analysis.claims plots.comparisons plots.heatmaps plots.tables_html plots.style"
)
LONG_AGO = 946684800
"""1 January 2000: the time given to the ``run.json`` of steps that are up to date."""


@dataclass(frozen=True)
class Step:
    """One notebook execution: its folder and what decides its outcome."""

    folder: Path
    parameters: dict
    code: tuple[ModuleType | Callable | str, ...]
    feeds: tuple[str, ...] = ()
    """Its files that later steps read."""
    on_demand: bool = False
    """Made only when a later step has to run: prepared data are in no clone, and none is fetched in vain."""

    def content(self) -> dict:
        """What ``run.json`` says."""
        return {"stamp": stamp(self.parameters, self.code), **self.parameters}


def prepare_step(study: Study, dataset: str, paths: Paths) -> Step:
    """Preparation of one data set."""
    options = study.datasets[dataset].model_dump(mode="json")
    form = {key: options[key] for key in ("leads", "fs") if options[key] is not None}
    parameters = {"dataset": dataset, "options": options["options"], **form}
    loader = sys.modules[DATASETS.find(dataset).__module__]
    code = (
        loader,
        *_modules("datasets.wfdb_io datasets.resample" if form else "datasets.wfdb_io"),
    )
    if loader.__name__.startswith(PLUGIN):
        code = (*code, *_modules("datasets.custom"))
        parameters |= own_files(study, dataset, paths)
    return Step(paths.data(dataset), parameters, code, ("card.json",), True)


def pretrain_step(run: Run, paths: Paths) -> Step:
    """Pretraining of one run; its code includes the schemes and losses that the arm uses, and its network."""
    arm = get_arm(run.arm)
    schemes = tuple(weighting.SCHEMES[name] for name in arm.schemes)
    terms = tuple(losses.LOSSES[loss.name] for loss in arm.losses)
    chosen = run.study.encoder
    home = sys.modules[encoders.get_encoder(chosen.name).__module__]
    network = encoder_code(chosen.name, chosen.options, home)
    parameters = {
        **run.parameters(),
        "data": prepare_step(run.study, run.dataset, paths).content(),
    }
    if arm.needs:
        needed = pretrain_step(replace(run, arm=arm.needs), paths)
        parameters["needs"] = {"arm": arm.needs, "stamp": needed.content()["stamp"]}
    folder = paths.run(run.dataset, run.arm, run.seed)
    feeds = ("encoder.safetensors", "encoder.json")
    code = (
        FEATURES_CODE if arm.features else (*PRETRAIN_CODE, *network, *schemes, *terms)
    )
    code += _modules("pretraining.distributed") if run.processes > 1 else ()
    return Step(folder, parameters, code, feeds)


def evaluate_step(run: Run, protocol: str, paths: Paths) -> Step:
    """Evaluation of one run under one protocol; of the settings of protocols, its own alone count."""
    study, how, tested = (
        run.study.model_dump(mode="json"),
        method(protocol),
        run.tested_on(protocol),
    )
    own = "probe" if how == "slf" else how
    parameters = {
        "dataset": run.dataset, "arm": run.arm, "seed": run.seed, "protocol": protocol,
        "pretrain": pretrain_step(run, paths).content()["stamp"],
        own: study[own], "evaluation": study["evaluation"],
        "headline_epsilon_mv": tested.headline_epsilon_mv,
    }  # fmt: skip
    if tested != run:
        parameters["target"] = prepare_step(run.study, tested.dataset, paths).content()[
            "stamp"
        ]
    if run.attack_source:
        source = pretrain_step(replace(run, arm=run.attack_source), paths)
        parameters["source"] = {
            "arm": run.attack_source,
            "stamp": source.content()["stamp"],
        }
    folder = paths.protocol(run.dataset, run.arm, run.seed, protocol)
    code = EVALUATE_CODE + FEATURES_CODE if get_arm(run.arm).features else EVALUATE_CODE
    code += () if how == "slf" else _modules("evaluation.finetune")
    return Step(
        folder, parameters, (*code, *_own_attacks(run.study)), ("scores.parquet",)
    )


def _own_attacks(study: Study) -> list[ModuleType]:
    """Plugins that the study's attacks and corruptions come from."""
    options = study.evaluation
    used = [
        get_attack(name)
        for name in (*options.ensemble, *options.attacks)
        if name != "transfer"
    ]
    used += [get_corruption(name) for name in options.corruptions]
    names = {part.__module__ for function in used for part in _parts_of(function)}
    return [sys.modules[name] for name in sorted(names) if name.startswith(PLUGIN)]


def _parts_of(function: Callable) -> Iterator[Callable]:
    """A function and those it was made from (`functools.partial`, `ecgstudy.attacks.named.on_scores`)."""
    yield function
    cells = [
        cell.cell_contents for cell in getattr(function, "__closure__", None) or ()
    ]
    for part in (getattr(function, "func", None), *cells):
        if callable(part):
            yield from _parts_of(part)


def figures_step(study: Study, paths: Paths) -> Step:
    """Tables and figures of the whole study."""
    evaluated = [
        evaluate_step(run, p, paths).content()["stamp"]
        for run in study.runs()
        for p in run.protocols
    ]
    parameters = {
        "study": study.study,
        "statistics": study.statistics.model_dump(),
        "evaluated": evaluated,
    }
    return Step(paths.tables, parameters, FIGURES_CODE)


def steps(study: Study, paths: Paths) -> Iterator[Step]:
    """Every step of the study, those before that others need."""
    yield from (prepare_step(study, dataset, paths) for dataset in study.datasets)
    yield from (pretrain_step(run, paths) for run in study.runs())
    for run in sorted(study.runs(), key=lambda run: run.attack_source is not None):
        yield from (evaluate_step(run, protocol, paths) for protocol in run.protocols)
    yield figures_step(study, paths)


def plan(study: Study, paths: Paths) -> int:
    """Write every step's ``run.json`` and set file times by content; returns how many steps are out of date.

    ``run.json`` and the files that later steps read get a time long ago, in the steps' order, where
    the step is done; the ``run.json`` of other steps is new.
    """
    waiting = 0
    files_stamp.cache_clear()
    for order, step in enumerate(steps(study, paths)):
        wanted = step.content()
        if read_json(step.folder / "run.json") != wanted:
            write_json(step.folder / "run.json", wanted)
        done = is_done(step.folder)
        times = {
            "run.json": LONG_AGO + 2 * order if done or step.on_demand else time.time()
        }
        if step.on_demand and not done:
            for name in step.feeds:
                (step.folder / name).unlink(missing_ok=True)
        if done:
            times |= {name: LONG_AGO + 2 * order + 1 for name in step.feeds}
        for name, when in times.items():
            if (step.folder / name).exists():
                os.utime(step.folder / name, (when, when))
        waiting += not done
    return waiting


def prepared_records(study: Study, dataset: str, paths: Paths) -> EcgRecords:
    """The study's records of one data set: prepared now if they are not there yet.

    Raises
    ------
    StudyError
        When the data cannot be found, fetched or read.
    """
    files_stamp.cache_clear()
    folder, wanted = (
        paths.data(dataset),
        prepare_step(study, dataset, paths).content()["stamp"],
    )
    if read_json(folder / "card.json").get("stamp") != wanted:
        from ecgstudy.evaluation import energy as profiles  # loads scipy's signals

        records = datasets_package.prepare(dataset, study.datasets[dataset], DOWNLOADS)
        records = profiles.with_r_peaks(records)
        records.card["stamp"] = wanted
        save_records(records, folder)
    return load_records(folder)


def run_study(
    study: Study,
    params: Path,
    *,
    arguments: list[str],
    profile: str = "local",
    cores: int | None = None,
) -> None:
    """Bring the study up to date with Snakemake: only what is missing or out of date is run.

    The rest is as for `ecgstudy.running.engine.snakemake`.

    Raises
    ------
    StudyError
        When a step failed (Snakemake has printed which and why) or another process runs the study.
    """
    if profile == "gpu":
        gpus.visible_gpus()  # one error here instead of one from each job
    paths = Paths(study.study)
    with engine.study_lock(paths):
        engine.await_left_over_jobs(paths.home)
        plan(study, paths)
        if "--allowed-rules" not in arguments:
            _check_weights(study, paths)
        status = engine.snakemake(
            paths.home, params, profile=profile, cores=cores, arguments=arguments
        )
    if status:
        raise StudyError(
            f"study {study.study!r} is not finished: see the errors above; what was done is kept"
        )


def _check_weights(study: Study, paths: Paths) -> None:
    """Released weights that pretraining will ask for, before its data are fetched and prepared."""
    asked = study.encoder.options if study.encoder.name == "pretrained" else {}
    done = all(
        is_done(paths.run(run.dataset, run.arm, run.seed)) for run in study.runs()
    )
    if "weights" in asked and not done:
        check_weights(asked["weights"], asked.get("sha256"))


def choose_headline(
    study: Study, params: Path, **where: str | int | None
) -> dict[str, float]:
    """Choose each data set's headline ε on validation records and write it into the params file.

    The smallest ε of the grid at which the seed-mean shared AUROC of the arm that sets it
    (`supervised`) under PGD margin is at most 0.5; if there is none, the largest.
    """
    from ecgstudy.evaluation import (
        runner as robustness,  # and with it all that evaluation needs
    )

    paths = Paths(study.study)
    runs = [run for run in study.runs() if get_arm(run.arm).sets_headline]
    if not runs:
        raise StudyError(
            f"{params}: no arm of the study sets the headline ε; add 'supervised' to its arms"
        )
    folders = [paths.run(run.dataset, run.arm, run.seed) for run in runs]
    targets = [
        str((folder / "encoder.json").relative_to(paths.home)) for folder in folders
    ]
    run_study(study, params, arguments=targets, **where)
    chosen, text = {}, params.read_text(encoding="utf-8")
    for dataset in study.pretrained:
        records = prepared_records(study, dataset, paths)
        curves = [
            robustness.validation_curve(run, records, folder)
            for run, folder in zip(runs, folders, strict=True)
            if run.dataset == dataset
        ]
        mean = {
            epsilon: sum(c[epsilon] for c in curves) / len(curves)
            for epsilon in sorted(curves[0])
        }
        chosen[dataset] = next(
            (epsilon for epsilon, auroc in mean.items() if auroc <= 0.5), max(mean)
        )
        print(f"{dataset}: {mean} -> {chosen[dataset]} mV")
        text = re.sub(
            rf"(^  {re.escape(dataset)}:.*?headline_epsilon_mv: )[0-9.e-]+",
            rf"\g<1>{chosen[dataset]}", text, flags=re.DOTALL | re.MULTILINE,
        )  # fmt: skip
    write_text(params, text)
    return chosen


COMMANDS = {
    "study": [],
    "figures": [
        "report/index.html",
        "report/methods.html",
        "--forcerun",
        "figures",
        "methods",
        "--allowed-rules",
        "figures",
        "page",
        "methods",
    ],
    "report": [
        "report/index.html",
        "report/methods.html",
        "--forcerun",
        "page",
        "methods",
        "--allowed-rules",
        "page",
        "methods",
    ],
    "pages": ["pages"],
    "explore": ["report/05_explore.html", "--forcerun", "explore"],
}
"""What each command asks of Snakemake."""


@command
def main(arguments: list[str] | None) -> None:
    """Command line of the study; ``--help`` lists the commands."""
    parser = argparse.ArgumentParser(
        prog="python -m ecgstudy.running.workflow", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*COMMANDS, "plan", "headline"):
        added = commands.add_parser(name)
        added.add_argument("params", type=Path)
        added.add_argument(
            "--profile",
            default="local",
            help="where jobs run: a folder of profiles/ or a path",
        )
        added.add_argument(
            "--cores", type=int, help="jobs at a time, instead of the profile's"
        )
    chosen = parser.parse_args(arguments)
    _on_study(chosen.command, chosen.params, profile=chosen.profile, cores=chosen.cores)


def _on_study(command: str, params: Path, **where: str | int | None) -> None:
    study = load_study(params)
    paths = Paths(study.study)
    if command == "plan":
        print(f"{plan(study, paths)} steps are out of date")
    elif command == "headline":
        choose_headline(study, params, **where)
    else:
        run_study(study, params, arguments=COMMANDS[command], **where)
        print(
            f"Report: {paths.report / ('05_explore.html' if command == 'explore' else 'index.html')}"
        )


if __name__ == "__main__":
    sys.exit(main())
