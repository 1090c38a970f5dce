"""From a params file to a finished study: steps, their stamps, notebooks, and the engine's call.

Every step (prepare, pretrain, evaluate, figures) has a folder with two small files. ``run.json`` is
what is asked for: parameters and a stamp of them and of the code that acts on them. It is rewritten
only when its content changes. ``provenance.json`` is what was done: the stamp it was done for,
versions, commit, device and wall time. A step is up to date when the two stamps agree, whatever the
files' times say; `plan` sets the times of ``run.json`` so that Snakemake comes to that conclusion.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import papermill
from papermill.exceptions import PapermillExecutionError

from ecgstudy import (
    arms,
    attacks,
    contrast,
    encoders,
    risk,
    robustness,
    supervised,
    training,
    views,
    weighting,
)
from ecgstudy import datasets as datasets_package
from ecgstudy.attacks import gradient, objectives
from ecgstudy.errors import StudyError
from ecgstudy.files import write_json
from ecgstudy.provenance import environment, stamp
from ecgstudy.records import EcgRecords, load_records, save_records
from ecgstudy.study import ROOT, Paths, Run, Study, load_study

PRETRAIN_CODE = (
    encoders,
    contrast,
    views,
    training,
    risk,
    supervised,
    gradient,
    objectives,
    weighting.uniform,
)
EVALUATE_CODE = (robustness, attacks, gradient, objectives, supervised, encoders)
LONG_AGO = 946684800
"""1 January 2000: the time given to the ``run.json`` of steps that are up to date."""


@dataclass(frozen=True)
class Step:
    """One notebook execution: its folder and what decides its outcome."""

    folder: Path
    parameters: dict
    code: tuple[ModuleType | Callable, ...] = ()

    def content(self) -> dict:
        """What ``run.json`` says."""
        return {"stamp": stamp(self.parameters, self.code), **self.parameters}


def prepare_step(study: Study, dataset: str, paths: Paths) -> Step:
    """Preparation of one data set."""
    options = study.datasets[dataset].model_dump(mode="json", exclude={"headline_epsilon_mv", "data_root"})
    loader = sys.modules[datasets_package.DATASETS[dataset].__module__]
    return Step(paths.data(dataset), {"dataset": dataset, **options}, (loader,))


def pretrain_step(run: Run, paths: Paths) -> Step:
    """Pretraining of one run; its code includes the weighting schemes that the arm uses, no others."""
    schemes = tuple(weighting.SCHEMES[name] for name, _ in arms.get_arm(run.arm).weighting)
    data = prepare_step(run.study, run.dataset, paths).content()
    folder = paths.run(run.dataset, run.arm, run.seed)
    return Step(folder, {**run.parameters(), "data": data}, PRETRAIN_CODE + schemes)


def evaluate_step(run: Run, protocol: str, paths: Paths) -> Step:
    """Evaluation of one run under one protocol."""
    study = run.study.model_dump(mode="json")
    parameters = {
        "dataset": run.dataset, "arm": run.arm, "seed": run.seed, "protocol": protocol,
        "pretrain": pretrain_step(run, paths).content()["stamp"],
        "probe": study["probe"], "evaluation": study["evaluation"],
        "headline_epsilon_mv": run.headline_epsilon_mv,
    }  # fmt: skip
    return Step(paths.protocol(run.dataset, run.arm, run.seed, protocol), parameters, EVALUATE_CODE)


def figures_step(study: Study, paths: Paths) -> Step:
    """Tables and figures of the whole study."""
    from ecgstudy import claims, figures, statistics, tables

    evaluated = [
        evaluate_step(run, p, paths).content()["stamp"] for run in study.runs() for p in study.protocols
    ]
    parameters = {"study": study.study, "statistics": study.statistics.model_dump(), "evaluated": evaluated}
    return Step(paths.tables, parameters, (statistics, tables, claims, figures))


def steps(study: Study, paths: Paths) -> Iterator[Step]:
    """Every step of the study."""
    yield from (prepare_step(study, dataset, paths) for dataset in study.datasets)
    for run in study.runs():
        yield pretrain_step(run, paths)
        yield from (evaluate_step(run, protocol, paths) for protocol in study.protocols)
    yield figures_step(study, paths)


def plan(study: Study, paths: Paths) -> int:
    """Write every step's ``run.json``; returns how many steps are not up to date."""
    waiting = 0
    for step in steps(study, paths):
        wanted, asked = step.content(), _read(step.folder / "run.json")
        if asked != wanted:
            write_json(step.folder / "run.json", wanted)
        done = _read(step.folder / "provenance.json").get("stamp") == wanted["stamp"]
        when = LONG_AGO if done else time.time()
        os.utime(step.folder / "run.json", (when, when))
        waiting += not done
    return waiting


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def prepared_records(study: Study, dataset: str, paths: Paths) -> EcgRecords:
    """The study's records of one data set: prepared now if they are not there yet.

    Raises
    ------
    StudyError
        When the data cannot be found, fetched or read.
    """
    folder, wanted = paths.data(dataset), prepare_step(study, dataset, paths).content()["stamp"]
    card = folder / "card.json"
    if _read(card).get("stamp") != wanted:
        card.unlink(missing_ok=True)  # its presence means that the arrays beside it are complete
        records = datasets_package.prepare(dataset, study.datasets[dataset], ROOT / "outputs" / "downloads")
        records.card["stamp"] = wanted
        save_records(records, folder)
    return load_records(folder)


def execute(notebook: Path, executed: Path, parameters: dict) -> None:
    """Execute a notebook with papermill; the executed copy appears at `executed` only when it succeeded.

    While it runs, and for good when it fails, the copy is in the study's ``logs`` folder. Next to
    `executed`, ``provenance.json`` records the stamp of the step's ``run.json`` and the environment.

    Raises
    ------
    StudyError
        For a parameter that the notebook does not have, and for a failed cell (with its error).
    """
    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise StudyError(f"{notebook.name} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    home = Path(os.environ.get("ECGSTUDY_LOGS", executed.parent))
    log = home / f"{'-'.join([notebook.stem, *map(str, list(parameters.values())[1:])])}.ipynb"
    log.parent.mkdir(parents=True, exist_ok=True)
    folder = executed.parent
    asked, started = _read(folder / "run.json"), time.time()
    try:
        papermill.execute_notebook(
            str(notebook), str(log), parameters, progress_bar=False, log_output=False, cwd=str(ROOT)
        )
    except PapermillExecutionError as error:
        raise StudyError(
            f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"(the notebook is kept: {log})"
        ) from None
    os.replace(log, executed)
    done = {"stamp": asked.get("stamp"), "parameters": parameters, "seconds": time.time() - started}
    write_json(folder / "provenance.json", {**done, **environment(ROOT)})


@contextmanager
def study_lock(paths: Paths) -> Iterator[None]:
    """Hold the study for this process; the kernel lets go of it when the process dies, however it dies.

    Raises
    ------
    StudyError
        When another live process runs the study.
    """
    paths.home.mkdir(parents=True, exist_ok=True)
    with open(paths.home / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise StudyError(
                f"study {paths.study!r} is being run by process {lock.read().strip()}; wait for it or stop it"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def run_study(params: Path, *, cores: int, targets: list[str], extra: list[str]) -> None:
    """Bring the study up to date with Snakemake: only what is missing or out of date is run.

    Raises
    ------
    StudyError
        When a step failed (Snakemake has printed which and why) or another process runs the study.
    """
    study = load_study(params)
    paths = Paths(study.study)
    with study_lock(paths):
        plan(study, paths)
        where = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(paths.home)]
        how = ["--cores", str(cores), "--rerun-triggers", "mtime", "--config", f"params={params.resolve()}"]
        call = [sys.executable, "-m", "snakemake", *where, *how]
        # One thread a job and as many jobs as cores: two threads beside another busy process collapse.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "ECGSTUDY_LOGS": str(paths.home / "logs")}
        quiet = ["--quiet", "rules", "progress"]
        subprocess.run([*call, "--unlock", "--quiet", "all"], env=env, check=True, capture_output=True)
        result = subprocess.run(
            [*call, "--rerun-incomplete", "--keep-going", *quiet, *extra, *targets], env=env
        )
    if result.returncode:
        raise StudyError(
            f"study {study.study!r} is not finished: see the errors above; what was done is kept"
        )


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``study PARAMS``, ``plan PARAMS``, ``notebook NOTEBOOK EXECUTED KEY=VALUE …``."""
    parser = argparse.ArgumentParser(prog="python -m ecgstudy.workflow", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study", help="bring a study up to date")
    study.add_argument("params", type=Path)
    study.add_argument("--cores", type=int, default=os.cpu_count())
    study.add_argument("--target", action="append", default=[])
    study.add_argument("--only", nargs="*", default=[], help="allow only these rules")
    planning = commands.add_parser("plan", help="write every step's run.json, say what is out of date")
    planning.add_argument("params", type=Path)
    notebook = commands.add_parser("notebook", help="execute one notebook")
    notebook.add_argument("notebook", type=Path)
    notebook.add_argument("executed", type=Path)
    notebook.add_argument("parameters", nargs="*", metavar="KEY=VALUE")
    chosen = parser.parse_args(arguments)
    try:
        _dispatch(chosen)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _dispatch(chosen: argparse.Namespace) -> None:
    if chosen.command == "study":
        only = ["--allowed-rules", *chosen.only] if chosen.only else []
        run_study(chosen.params, cores=chosen.cores, targets=chosen.target, extra=only)
        home = Paths(load_study(chosen.params).study)
        print(f"Report: {home.report / 'index.html'}")
    elif chosen.command == "plan":
        study = load_study(chosen.params)
        print(f"{plan(study, Paths(study.study))} steps are out of date")
    else:
        pairs = dict(item.split("=", 1) for item in chosen.parameters)
        execute(
            chosen.notebook,
            chosen.executed,
            {k: json.loads(v) if v.isdigit() else v for k, v in pairs.items()},
        )


if __name__ == "__main__":
    sys.exit(main())
