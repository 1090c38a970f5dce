"""A study brought up to date: which steps are out of date, and Snakemake to make them.

What is out of date is decided by content, never by the times of files: the cache key of
a step (`ecgstudy.running.cache`), and the SHA-256 of its files. The marker of such a
step (``provenance.json``) is deleted, and Snakemake makes what has none.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ecgstudy.errors import StudyError
from ecgstudy.files import STATUS, SUMS, read_json, read_sums, sha256, write_json
from ecgstudy.records import EcgRecords, load_records, save_records
from ecgstudy.running import engine
from ecgstudy.running.cache import (
    DOWNLOADS,
    Step,
    evaluate_step,
    figures_step,
    files_hash,
    prepare_step,
    report_pages,
    shown_run,
    steps,
)
from ecgstudy.running.processes import study_lock
from ecgstudy.running.provenance import write_provenance
from ecgstudy.study import Paths, Study

CHECKED = ".checked.json"
"""File of a study: size, time and SHA-256 of its results when they were last read."""

NO_PAGE = "its page in the report is missing"


def out_of_date(
    study: Study, paths: Paths | None = None, *, verify: bool = False
) -> dict[Path, str]:
    """Folder of each step that is not as it should be → what is wrong, in order.

    Parameters
    ----------
    study
        The study.
    paths
        Where its outputs are, if not at `study.paths`.
    verify
        Read every result again, also where size and time are those of last time.
    """
    paths = paths or study.paths
    known = {} if verify else read_json(paths.home / CHECKED)
    checked: dict[str, list] = {}
    found: dict[Path, str] = {}
    unshown = {
        step.folder
        for page, step in report_pages(study, paths).items()
        if not (page.exists() or step.notebook.exists())
    }
    for folder, step in steps(study, paths).items():
        late = [
            need
            for need in step.needs
            if need.name != "prepare" and need.folder in found
        ]
        reason = _changed(step) or _damage(step, paths.home, known, checked)
        if reason is None and folder in unshown:
            reason = NO_PAGE
        if reason is None and late:
            reason = f"{late[0]} is computed again"
        if reason is not None:
            found[folder] = reason
    if checked != known:
        with suppress(StudyError):  # a read-only folder can be looked at, too
            write_json(paths.home / CHECKED, checked)
    return found


def _changed(step: Step) -> str | None:
    done = read_json(step.marker) or read_json(step.before)
    if not done:
        return "not made yet"
    if done.get("key") == step.key:
        return None
    before = read_json(step.folder / "run.json")
    changed = [k for k, v in step.parameters.items() if before.get(k) != v]
    return f"changed: {', '.join(changed) or 'its version of results'}"


def _damage(step: Step, home: Path, known: dict, checked: dict) -> str | None:
    """What is wrong with the files of a step; notes in `checked` what was looked at."""
    sums = read_sums(step.folder / SUMS)
    for name in step.files:
        path = step.folder / name
        if not path.exists():
            return f"{name} is missing"
        place, seen = str(path.relative_to(home)), path.stat()
        looked = [seen.st_size, seen.st_mtime_ns]
        before = known.get(place, [])
        digest = before[2] if before[:2] == looked else sha256(path)
        checked[place] = [*looked, digest]
        if sums.get(name) != digest:
            return f"{name} is damaged"
    return None


def late_steps(
    study: Study, wanted: Iterable[Step] | None = None, *, verify: bool = False
) -> list[tuple[Step, str]]:
    """The steps that have to be made, each after those that it needs, and why.

    Data are prepared only for what has to be made.

    Parameters
    ----------
    study
        The study.
    wanted
        Steps that should be up to date in the end; None: all.
    verify
        As for `out_of_date`.
    """
    late = out_of_date(study, verify=verify)
    if wanted is None:
        wanted = [
            step
            for folder, step in steps(study).items()
            if step.name != "prepare" or late.get(folder) == NO_PAGE
        ]
    seen: set[Path] = set()
    found: list[tuple[Step, str]] = []

    def visit(step: Step) -> None:
        if step.folder in seen:
            return
        seen.add(step.folder)
        for need in step.needs:
            if need.name != "prepare" or step.folder in late:
                visit(need)
        if step.folder in late:
            found.append((step, late[step.folder]))

    for step in wanted:
        visit(step)
    return found


def run_study(
    study: Study,
    wanted: Iterable[Step] | None = None,
    *,
    verify: bool = False,
    profile: str | None = None,
    cores: int | None = None,
) -> list[Step]:
    """Bring the study up to date; returns what had to be made.

    Parameters
    ----------
    study
        The study, read from a params file.
    wanted
        Steps that should be up to date; None: all.
    verify
        Read every result again, also where size and time are those of last time.
    profile, cores
        As for `ecgstudy.running.engine.make`.

    Raises
    ------
    StudyError
        When a step failed, or another process runs the study.
    """
    _check_name(study)
    with study_lock(study.paths.home) as killed:
        engine.await_left_over_jobs(study.paths.home, killed)
        todo = [step for step, _ in late_steps(study, wanted, verify=verify)]
        late = {step.folder for step in todo}
        for step in steps(study).values():
            if step.folder not in late and step.before.exists():
                os.replace(step.before, step.marker)
        if todo:
            _check_released(study, todo)
            begin(todo)
            engine.make(study, todo, profile=profile, cores=cores)
    return todo


def run_figures(
    study: Study, *, profile: str | None = None, cores: int | None = None
) -> None:
    """Make tables and figures again from the stored scores.

    Parameters
    ----------
    study
        The study, read from a params file.
    profile, cores
        As for `ecgstudy.running.engine.make`.

    Raises
    ------
    StudyError
        When there are not all scores, or the step failed.
    """
    step = figures_step(study, study.paths)
    for need in step.needs:
        if not need.marker.exists():
            raise StudyError(f"{need} is not done; run `ecgstudy study` first")
    with study_lock(study.paths.home) as killed:
        engine.await_left_over_jobs(study.paths.home, killed)
        begin([step])
        engine.make(study, [step], profile=profile, cores=cores)


def run_explore(
    study: Study, *, profile: str | None = None, cores: int | None = None
) -> Step:
    """Execute the notebook that explores one ECG of the run that the report shows.

    Parameters
    ----------
    study
        The study, read from a params file.
    profile, cores
        As for `ecgstudy.running.engine.make`.

    Raises
    ------
    StudyError
        When the step, or one that it needs, failed.
    """
    paths, run = study.paths, shown_run(study)
    evaluated = evaluate_step(run, run.protocols[0], paths)
    run_study(study, [evaluated], profile=profile, cores=cores)
    data = prepare_step(study, run.dataset, paths)
    arguments = {"dataset": run.dataset, "arm": run.arm, "seed": run.seed}
    needs = (data, evaluated)
    step = Step("explore", paths.home / "explore", arguments, {}, needs)
    with study_lock(paths.home):
        step.marker.unlink(missing_ok=True)
        if data.folder in out_of_date(study):
            begin([data])
        engine.make(study, [step], profile=profile, cores=cores)
    return step


def ask(step: Step) -> None:
    """Write ``run.json``, if it does not ask for the same already."""
    if read_json(step.folder / "run.json") != step.content:
        write_json(step.folder / "run.json", step.content)


def begin(todo: Iterable[Step]) -> None:
    """Write what is asked for to each folder, and take away that it is done.

    What was done for something else is noted until the step starts: whoever stops the
    study, and asks for that again, has it.
    """
    for step in todo:
        ask(step)
        if read_json(step.marker).get("key", step.key) != step.key:
            os.replace(step.marker, step.before)
        step.marker.unlink(missing_ok=True)


def is_done(step: Step) -> bool:
    """Whether a step was done with its key, and its files are as they were written."""
    done = read_json(step.marker).get("key") == step.key
    return done and _damage(step, step.folder, {}, {}) is None


@contextmanager
def recorded(step: Step) -> Iterator[None]:
    """Note what is asked for, and in the end that it was done.

    The jobs of a study note the end themselves, when the notebook is through.
    """
    started = time.time()
    ask(step)
    yield
    if STATUS not in os.environ:
        write_provenance(step.folder, step.arguments, time.time() - started)


def _check_name(study: Study) -> None:
    """A copy with the name of the original would overwrite the original's results."""
    own = study.file.with_name(f"{study.study}.yaml")
    if study.file != own and own.exists():
        raise StudyError(
            f"{study.file}: study: {study.study} is the name of {own.name}; "
            f"call it {study.file.stem}"
        )


def _check_released(study: Study, todo: list[Step]) -> None:
    """A released network and its weights, before data are fetched and prepared."""
    options = study.encoder.options
    if "factory" in options and any(step.name == "pretrain" for step in todo):
        from ecgstudy.models.released.adapter import find_factory
        from ecgstudy.models.released.weights import check_weights

        find_factory(options["factory"])
        if "weights" in options:
            check_weights(options["weights"], options.get("sha256"))


def prepared_records(
    study: Study, dataset: str, paths: Paths | None = None
) -> EcgRecords:
    """The study's records of one data set: prepared now if they are not there yet.

    Parameters
    ----------
    study, dataset
        The study, and the name of one of its data sets.
    paths
        Where its outputs are, if not at `study.paths`.

    Raises
    ------
    StudyError
        When the data cannot be found, fetched or read.
    """
    from ecgstudy.datasets.prepare import prepare
    from ecgstudy.evaluation.energy import add_r_peaks

    files_hash.cache_clear()
    step = prepare_step(study, dataset, paths or study.paths)
    if read_json(step.folder / "card.json").get("key") == step.key:
        with suppress(StudyError):  # damaged data are prepared again
            return load_records(step.folder)
    records = add_r_peaks(prepare(dataset, study.datasets[dataset], DOWNLOADS))
    records.card["key"] = step.key
    save_records(records, step.folder)
    return load_records(step.folder)
