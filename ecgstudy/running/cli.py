"""The command line ``ecgstudy``; the targets of the Makefile call it."""

from __future__ import annotations  # `doctor` runs where Python is too old

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT

if TYPE_CHECKING:
    from ecgstudy.study import Study


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. ``--help`` lists the commands.

    An error is one line, and so is what to do after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    work_in_checkout_here(arguments)
    chosen = parser().parse_args(arguments)
    try:
        return chosen.run(chosen) or 0
    except (StudyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "stopped: finished steps are kept, and pretraining up to its last epoch\n"
            f"to go on: ecgstudy {' '.join(arguments)}",
            file=sys.stderr,
        )
        return 130


def work_in_checkout_here(arguments: list[str]) -> None:
    """Start again with the code of the checkout that one stands in, if it is another.

    Several checkouts may share an environment, in which one of them is installed.
    """
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "Snakefile").exists() and (folder / "ecgstudy/study.py").exists():
            if folder.resolve() != ROOT:
                os.environ["PYTHONPATH"] = str(folder)
                call = [sys.executable, "-m", "ecgstudy", *arguments]
                os.execv(sys.executable, call)
            return


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(prog="ecgstudy", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(
        run: Callable[[argparse.Namespace], int | None],
    ) -> argparse.ArgumentParser:
        says = run.__doc__.splitlines()[0]
        added = commands.add_parser(run.__name__, help=says, description=says)
        added.set_defaults(run=run)
        return added

    for run in (study, plan, figures, report, explore, headline):
        added = command(run)
        added.add_argument("params", type=Path, help="such as params/quick.yaml")
        added.add_argument(
            "--plugin", action="append", default=[], help="a Python file of yours"
        )
        if run in (study, plan):
            added.add_argument(
                "--verify", action="store_true", help="read every result again"
            )
        if run is report:
            added.add_argument(
                "--runs", action="store_true", help="a page for every run, too"
            )
        if run not in (plan, report):
            added.add_argument("--profile", help="local, gpu, slurm, or your folder")
            added.add_argument("--cores", type=int, help="jobs at a time")
    command(doctor)
    command(new).add_argument("name")
    hidden = commands.add_parser("job")  # what the Snakefile starts
    hidden.set_defaults(run=job)
    hidden.add_argument("notebook", type=Path)
    hidden.add_argument("marker", type=Path)
    hidden.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    hidden.add_argument("--gpus", type=int, default=0)
    hidden.add_argument("--jobs-per-gpu", type=int, default=0)
    return top


def study(chosen: argparse.Namespace) -> None:
    """Compute what is missing or out of date, from data to report."""
    from ecgstudy.running.report import write_report
    from ecgstudy.running.workflow import run_study

    asked = _study(chosen)
    made = run_study(asked, verify=chosen.verify, **_where(chosen))
    if not made:
        print(f"nothing to do: {asked.study} is up to date with {chosen.params}")
    print(f"report: {write_report(asked)}")


def plan(chosen: argparse.Namespace) -> None:
    """List what `study` would compute, and why."""
    from ecgstudy.running.workflow import late_steps

    todo = late_steps(_study(chosen), verify=chosen.verify)
    for step, reason in todo:
        print(f"{step}: {reason}")
    print(f"{len(todo)} steps to run" if todo else "nothing to do")


def figures(chosen: argparse.Namespace) -> None:
    """Make tables, figures and report again, from the stored scores."""
    from ecgstudy.running.report import write_report
    from ecgstudy.running.workflow import run_figures

    asked = _study(chosen)
    run_figures(asked, **_where(chosen))
    print(f"report: {write_report(asked)}")


def report(chosen: argparse.Namespace) -> None:
    """Make the report's pages again, from the executed notebooks."""
    from ecgstudy.running.report import write_report

    page = write_report(_study(chosen), every_run=chosen.runs, again=True)
    print(f"report: {page}")


def explore(chosen: argparse.Namespace) -> None:
    """Make a page about one ECG of the run that the report shows."""
    from ecgstudy.running.report import write_page
    from ecgstudy.running.workflow import run_explore

    asked = _study(chosen)
    step = run_explore(asked, **_where(chosen))
    page = asked.paths.report / f"{step.notebook.stem}.html"
    write_page(asked, step, page)
    print(f"page: {page}")


def headline(chosen: argparse.Namespace) -> None:
    """Choose the headline ε on validation records, and write it into the params."""
    from ecgstudy.running.headline import choose_headline

    choose_headline(_study(chosen), **_where(chosen))


def doctor(_: argparse.Namespace) -> int:
    """Say what is missing here, and the command that fixes it."""
    from ecgstudy.running.doctor import print_findings

    return print_findings()


def new(chosen: argparse.Namespace) -> None:
    """Write a params file and a plugin to start a study of your own from."""
    from ecgstudy.running.new import write_templates

    params = write_templates(Path(chosen.name))
    print(f"written: {params} and {params.with_suffix('.py')}")
    print(f"to run it: ecgstudy study {params}")


def job(chosen: argparse.Namespace) -> None:
    """Execute the notebook of one step, on a GPU that it holds."""
    from ecgstudy.running.gpus import held
    from ecgstudy.running.papermill import execute
    from ecgstudy.running.processes import at_work

    values = dict(item.split("=", 1) for item in chosen.parameters)
    words = [
        f"seed{v}" if k == "seed" else v for k, v in values.items() if k != "params"
    ]
    logs, executed = Path("logs"), chosen.marker.with_name(chosen.notebook.name)
    log = logs / ("-".join([chosen.notebook.stem, *words]) + ".ipynb")
    for name, value in values.items():
        if re.fullmatch("-?[0-9]+", value) and name == "seed":
            values[name] = int(value)
    with at_work(logs), held(chosen.jobs_per_gpu, chosen.gpus):
        execute(chosen.notebook, executed, values, log)


def _study(chosen: argparse.Namespace) -> Study:
    from ecgstudy.running.processes import use_this_checkout
    from ecgstudy.study import load_study

    use_this_checkout()
    given = os.environ.get("ECGSTUDY_PLUGINS", "").split(os.pathsep)
    plugins = [os.path.abspath(file) for file in [*given, *chosen.plugin] if file]
    os.environ["ECGSTUDY_PLUGINS"] = os.pathsep.join(plugins)
    return load_study(chosen.params)


def _where(chosen: argparse.Namespace) -> dict[str, str | int | None]:
    return {"profile": chosen.profile, "cores": chosen.cores}
