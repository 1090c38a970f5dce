"""Execute the notebook of a step: parameters checked, failures kept, results whole.

Imports little, since every step of a study starts it: the kernel loads torch, this
process need not.
"""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

# jsonschema, which nbformat imports, would compile a grammar of URIs for a second.
sys.modules.setdefault("rfc3987_syntax", None)

import papermill  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402
from traitlets.config import Config  # noqa: E402

from ecgstudy.errors import StudyError  # noqa: E402
from ecgstudy.files import (  # noqa: E402
    BEFORE,
    FAILED,
    ROOT,
    STATUS,
    note_progress,
    unwritable,
)
from ecgstudy.running.processes import use_this_checkout  # noqa: E402
from ecgstudy.running.provenance import write_provenance  # noqa: E402

MEMORY = re.compile("OutOfMemoryError|out of memory|ALLOC_FAILED")
"""Errors that say that memory was short, in their kind or words."""


def execute(notebook: Path, executed: Path, parameters: dict, log: Path) -> None:
    """Execute a notebook with papermill; the result appears only when it succeeded.

    Beside it, ``provenance.json`` records the key of the ``run.json`` there, versions,
    commit and seconds.

    Parameters
    ----------
    notebook, executed
        The notebook, and where its executed copy goes.
    parameters
        Values of its parameters.
    log
        Where the copy is meanwhile, and stays if it fails. Beside it, a file that ends
        in ``.status`` says how far it is.

    Raises
    ------
    StudyError
        For a parameter that the notebook does not have, a failed cell (with its error),
        a kernel that died, or a folder that cannot be written.
    """
    started, status = time.time(), log.with_suffix(".status")
    try:
        for folder in (log.parent, executed.parent):
            folder.mkdir(parents=True, exist_ok=True)
        os.environ[STATUS] = str(status.resolve())
        note_progress("starting")
        check_names(notebook, parameters)
        executed.with_name(BEFORE).unlink(missing_ok=True)
        _papermill(notebook, log, parameters)
        os.replace(log, executed)
        write_provenance(executed.parent, parameters, time.time() - started)
        status.unlink()
    except StudyError as error:
        note_progress(f"{FAILED}{error}")
        raise
    except OSError as error:
        raise unwritable(executed, error) from error


def check_names(notebook: Path, parameters: dict) -> None:
    """Papermill only warns of an unknown parameter, and runs with the default.

    Raises
    ------
    StudyError
        For a parameter that the notebook does not have.
    """
    known = papermill.inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            raise StudyError(
                f"{notebook.name} has no parameter {name!r}; it has {', '.join(known)}"
            )


def _papermill(notebook: Path, log: Path, parameters: dict) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # progress bars are for people, not for logs
    use_this_checkout()
    options = {"progress_bar": False, "log_output": False, "cwd": str(ROOT)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            if os.name == "posix":  # sockets are files: parallel jobs share no ports
                sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
                options["config"] = Config({"KernelManager": sockets})
            papermill.execute_notebook(str(notebook), str(log), parameters, **options)
    except PapermillExecutionError as error:
        what = f"{error.ename}: {error.evalue}"
        if MEMORY.search(what):
            what += (
                "; lower training.batch_size or evaluation.batch_size, or run fewer "
                "jobs a GPU"
            )
        raise StudyError(
            f"{notebook.name} failed in cell {error.exec_count}: {what} (the notebook "
            f"is kept: {log})"
        ) from None
    except RuntimeError as error:  # nbclient's DeadKernelError
        raise StudyError(
            f"{notebook.name}: {error}: it was killed, or the memory was not enough "
            f"(the notebook is kept: {log})"
        ) from None
