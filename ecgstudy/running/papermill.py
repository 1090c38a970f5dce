"""Execute a notebook in batch: parameters checked, failures kept, results whole.

Imports little, since every step of a study starts it: the kernel loads torch, this process need not.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    # jsonschema, which nbformat imports, would compile a grammar of URIs for a second; no notebook needs it.
    sys.modules["rfc3987_syntax"] = None

import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from ecgstudy.errors import StudyError, command
from ecgstudy.files import ROOT, read_json, unwritable, write_json
from ecgstudy.running.jobs import at_work
from ecgstudy.running.provenance import environment, settings

REMEDIES = {
    "OutOfMemoryError|out of memory|ALLOC_FAILED": (
        "; lower training.batch_size or evaluation.batch_size, or run fewer jobs a GPU"
    )
}
"""Errors of others in a cell, a pattern in their kind or words → what to do."""


def execute(notebook: Path, executed: Path, parameters: dict, logs: Path) -> None:
    """Execute a notebook with papermill; the executed copy appears at `executed` only when it succeeded.

    While it runs, and for good when it fails, the copy is in `logs`. Beside `executed`,
    ``provenance.json`` records the stamp of the ``run.json`` there, versions, commit and wall time.

    Raises
    ------
    StudyError
        For a parameter that the notebook does not have, a failed cell (with its error), a kernel
        that died, or a folder that cannot be written.
    """
    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(parameters) - set(known))
    if unknown:  # papermill would only warn, and run with the default
        raise StudyError(
            f"{notebook.name} has no parameter {unknown[0]!r}; it has {', '.join(known)}"
        )
    cell = [str(value) for name, value in parameters.items() if name != "params"]
    log = logs / ("-".join([notebook.stem, *cell]) + ".ipynb")
    content, started = read_json(executed.parent / "run.json"), time.time()
    try:
        for folder in (log.parent, executed.parent):
            folder.mkdir(parents=True, exist_ok=True)
        _papermill(notebook, log, parameters)
        os.replace(log, executed)
    except OSError as error:
        raise unwritable(executed, error) from error
    done = {
        "stamp": content.get("stamp"),
        "settings": settings(content),
        "parameters": parameters,
    }
    done |= {"seconds": round(time.time() - started, 1)}
    write_json(executed.parent / "provenance.json", {**done, **environment(ROOT)})


def _papermill(notebook: Path, log: Path, parameters: dict) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # progress bars are for people, not for logs
    # The kernel shall run this checkout, whichever one its environment has installed.
    places = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(places)))
    options = {"progress_bar": False, "log_output": False, "cwd": str(ROOT)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            if (
                os.name == "posix"
            ):  # sockets are files: no ports for parallel jobs to fight over
                sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
                options["config"] = Config({"KernelManager": sockets})
            papermill.execute_notebook(str(notebook), str(log), parameters, **options)
    except PapermillExecutionError as error:
        what = f"{error.ename}: {error.evalue}"
        what += "".join(
            remedy for known, remedy in REMEDIES.items() if re.search(known, what)
        )
        raise StudyError(
            f"{notebook.name} failed in cell {error.exec_count}: {what}\n(the notebook is kept: {log})"
        ) from None
    except RuntimeError as error:  # nbclient's DeadKernelError
        why = f"{error}: it was killed, or the memory was not enough"
        raise StudyError(
            f"{notebook.name}: {why}\n(the notebook is kept: {log})"
        ) from None


@command
def main(arguments: list[str] | None) -> None:
    """Command line: ``NOTEBOOK EXECUTED KEY=VALUE …``; whole numbers become int."""
    parser = argparse.ArgumentParser(
        prog="python -m ecgstudy.running.papermill", description=__doc__.splitlines()[0]
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("executed", type=Path)
    parser.add_argument("parameters", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    chosen = parser.parse_args(arguments)
    pairs = dict(item.split("=", 1) for item in chosen.parameters)
    numbers = {
        key: int(value)
        for key, value in pairs.items()
        if re.fullmatch("-?[0-9]+", value)
    }
    with at_work(chosen.logs):
        execute(chosen.notebook, chosen.executed, pairs | numbers, chosen.logs)


if __name__ == "__main__":
    sys.exit(main())
