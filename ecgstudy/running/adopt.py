"""Keep results when the code has changed and they have not: recompute a few, compare, adopt the others.

A change of the code that acts on a result puts it out of date, and so does code that is only faster.
``python -m ecgstudy.running.adopt params/NAME.yaml`` recomputes some of the encoders and evaluations that are
out of date for that reason alone. If all of these come out as they are stored, the others are taken to be
up to date as well, and ``provenance.json`` of each says so: what was recomputed, at which commit, how far it
differed.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ecgstudy.analysis.scores import read_scores
from ecgstudy.errors import StudyError, command
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.files import ROOT, read_json, write_json
from ecgstudy.models.checkpoints import load_tensors
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.running.engine import study_lock
from ecgstudy.running.launch import pretrain
from ecgstudy.running.provenance import git_commit, is_done, settings
from ecgstudy.running.workflow import (
    Step,
    evaluate_step,
    plan,
    prepared_records,
    pretrain_step,
)
from ecgstudy.study import Paths, Run, Study, derived_seed, load_study

FILES = ("encoder.safetensors", "encoder.json", "history.jsonl")
"""A finished encoder."""


@dataclass(frozen=True)
class Result:
    """One encoder (`protocol` None) or evaluation."""

    run: Run
    protocol: str | None = None

    def __str__(self) -> str:
        return f"{self.run.arm} seed {self.run.seed}" + (
            f" {self.protocol}" if self.protocol else ""
        )

    def step(self, paths: Paths) -> Step:
        """As the study asks for it now."""
        if self.protocol is None:
            return pretrain_step(self.run, paths)
        return evaluate_step(self.run, self.protocol, paths)

    @property
    def rests_on(self) -> list["Result"]:
        """The encoders that it is made from."""
        run, needed = self.run, get_arm(self.run.arm).needs
        arms = [needed] if self.protocol is None else [run.arm, run.attack_source]
        return [Result(replace(run, arm=arm)) for arm in arms if arm]

    def only_code_changed(self, paths: Paths) -> bool:
        """Whether it is there, was made with these very settings, and is out of date all the same.

        What it rests on must be up to date, or out of date for no other reason either.
        """
        step = self.step(paths)
        done, wanted = read_json(step.folder / "provenance.json"), step.content()
        there = all((step.folder / name).exists() for name in step.feeds)
        same = (
            there
            and done.get("settings") == settings(wanted)
            and done["stamp"] != wanted["stamp"]
        )
        sound = (
            is_done(r.step(paths).folder) or r.only_code_changed(paths)
            for r in self.rests_on
        )
        return same and all(sound)


def adopt(
    study: Study, paths: Paths, checks: int, tolerance: float = 0.0
) -> dict[str, float]:
    """Adopt what is out of date because of code alone, if `checks` encoders and as many evaluations agree.

    Parameters
    ----------
    checks
        How many of each kind are recomputed, at least one; drawn, the same ones at each call.
    tolerance
        Largest difference allowed between a recomputed and a stored macro AUROC, under any attack.
        Encoders must agree to the last bit: another one would have to be evaluated again.

    Returns
    -------
    dict
        What was recomputed → largest difference.

    Raises
    ------
    StudyError
        Naming the result that came out differently; then none of its kind is adopted.
    """
    if checks < 1:
        raise StudyError(
            f"checks is {checks}; at least one result of each kind must be recomputed"
        )
    torch.set_num_threads(1)  # as in the study: sums in another order round differently
    runs = list(study.runs())
    kinds = [
        ([Result(run) for run in runs], _encoder_difference, 0.0),
        (
            [Result(run, p) for run in runs for p in run.protocols],
            _auroc_difference,
            tolerance,
        ),
    ]
    return {
        what: gap
        for kind in kinds
        for what, gap in _adopt_kind(study, paths, checks, *kind).items()
    }


def _adopt_kind(
    study: Study,
    paths: Paths,
    checks: int,
    results: list[Result],
    difference: Callable[[Result, Paths, Paths], float],
    tolerance: float,
) -> dict[str, float]:
    plan(study, paths)
    waiting = [result for result in results if result.only_code_changed(paths)]
    if not waiting:
        return {}
    drawn = np.random.default_rng(derived_seed("adopt")).permutation(len(waiting))[
        :checks
    ]
    found = {}
    for result in (waiting[i] for i in sorted(drawn)):
        found[str(result)] = gap = _recomputed(study, result, paths, difference)
        print(f"{result}: largest difference {gap:g}", flush=True)
        if not gap <= tolerance:
            raise StudyError(
                f"{result} comes out differently: by {gap:g}, more than {tolerance:g}; nothing of its kind is"
                f" adopted. `make study STUDY={study.study}` recomputes what is out of date"
            )
    for result in waiting:
        _take(result.step(paths), {"commit": git_commit(ROOT), "recomputed": found})
    print(
        f"{len(waiting)} {'evaluations' if waiting[0].protocol else 'encoders'} adopted"
    )
    return found


def _recomputed(
    study: Study,
    result: Result,
    paths: Paths,
    difference: Callable[[Result, Paths, Paths], float],
) -> float:
    """Difference between the stored result and one that is computed anew, beside copies of what it needs."""
    run, protocol = result.run, result.protocol
    with tempfile.TemporaryDirectory() as root:
        anew = Paths(study.study, Path(root))
        for needed in result.rests_on:
            here, there = (needed.step(p).folder for p in (paths, anew))
            there.mkdir(parents=True)
            for name in FILES:
                shutil.copy2(here / name, there / name)
        folder = anew.run(run.dataset, run.arm, run.seed)
        if protocol is None:
            pretrain(run, prepared_records(study, run.dataset, paths), folder)
        else:
            records = prepared_records(study, run.tested_on(protocol).dataset, paths)
            evaluate(run, records, folder / protocol, protocol)
        return difference(result, paths, anew)


def _encoder_difference(result: Result, paths: Paths, anew: Paths) -> float:
    run = result.run
    states = [
        load_tensors(p.run(run.dataset, run.arm, run.seed) / "encoder.safetensors")[0]
        for p in (paths, anew)
    ]
    if states[0].keys() != states[1].keys():
        return np.inf
    gaps = [
        (value.double() - states[1][name].double()).abs().max()
        for name, value in states[0].items()
    ]
    return float(max(gaps))


def _auroc_difference(result: Result, paths: Paths, anew: Paths) -> float:
    """Largest over the attacks, views, ε and splits; infinite where one of the two lacks some."""
    macros = [
        {
            (s.split, s.attack, s.view, s.epsilon_mv, s.severity): s.macro
            for s in found.sets
        }
        for found in (
            read_scores(p, [result.run], [result.protocol]) for p in (paths, anew)
        )
    ]
    if macros[0].keys() != macros[1].keys():
        return np.inf
    return max(abs(value - macros[1][key]) for key, value in macros[0].items())


def _take(step: Step, why: dict) -> None:
    """Mark a step as done for what is asked for now."""
    wanted, done = step.content(), read_json(step.folder / "provenance.json")
    form = read_json(step.folder / "encoder.json")
    if "stamp" in form.get("run", {}):
        write_json(
            step.folder / "encoder.json",
            {**form, "run": {**form["run"], "stamp": wanted["stamp"]}},
        )
    write_json(step.folder / "run.json", wanted)
    history = [*done.get("adopted", []), {"was": done["stamp"], **why}]
    write_json(
        step.folder / "provenance.json",
        {**done, "stamp": wanted["stamp"], "adopted": history},
    )


@command
def main(arguments: list[str] | None) -> None:
    """Command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(
        prog="python -m ecgstudy.running.adopt", description=__doc__.splitlines()[0]
    )
    parser.add_argument("params", type=Path)
    parser.add_argument(
        "--checks", type=int, default=2, help="encoders, and evaluations, to recompute"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="of a recomputed macro AUROC"
    )
    chosen = parser.parse_args(arguments)
    study = load_study(chosen.params)
    with study_lock(Paths(study.study)):
        adopt(study, Paths(study.study), chosen.checks, chosen.tolerance)


if __name__ == "__main__":
    sys.exit(main())
