"""Pretrain a run, here or in several processes with `torchrun`.

Run as a module, be one of these processes. They are a subprocess's, because a
notebook's kernel can neither be forked (threads, CUDA) nor imported by spawned
children; torchrun finds a free port and ends all when one fails. Their standard input
is a pipe that the starting process holds open: however that dies, the pipe closes, and
they end.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from threading import Thread

import numpy as np
import torch

from ecgstudy.devices import pick_device
from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT, write_json
from ecgstudy.pretraining import loop
from ecgstudy.pretraining.distributed import join
from ecgstudy.records import EcgRecords, load_records, save_records
from ecgstudy.registry import ARMS, PLUGINS, load_plugins
from ecgstudy.running.processes import use_this_checkout
from ecgstudy.study import Run, Study


def pretrain(run: Run, records: EcgRecords, folder: Path) -> list[dict]:
    """Pretrain one run's encoder, here or in as many processes as the study asks for.

    Parameters
    ----------
    run, records
        The run, and the prepared records of its data set.
    folder
        Where encoder, history and checkpoint go.

    Returns
    -------
    list of dict
        One entry an epoch; none for an arm on engineered features.
    """
    folder = Path(folder)
    if (history := loop.read_finished(run, folder)) is not None:
        return history
    if ARMS.find(run.arm).features:
        from ecgstudy.evaluation.blackbox import store_features  # seconds to import

        store_features(run, records, folder, loop.cache_entry(run, folder))
        return []
    if run.processes > 1:
        pretrain_in_processes(run, records, folder)
        return loop.read_history(folder)
    return loop.pretrain(run, records, folder)


def pretrain_in_processes(run: Run, records: EcgRecords, folder: Path) -> None:
    """`ecgstudy.pretraining.loop.pretrain` in `run.processes` processes here.

    Parameters
    ----------
    run, records, folder
        As for `pretrain`.

    Raises
    ------
    StudyError
        When there are fewer GPUs than processes, or a process fails: with its error.
    """
    if pick_device(run.study.device).type == "cuda":
        gpus = torch.cuda.device_count()
        if gpus < run.processes:
            raise StudyError(
                f"processes is {run.processes}, but torch finds only {gpus} GPUs; "
                f"use {gpus}"
            )
    use_this_checkout()
    # Snakemake's OMP_NUM_THREADS is that of all processes together.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    call += [f"--nproc-per-node={run.processes}", "--local-ranks-filter=0"]
    with tempfile.TemporaryDirectory() as job:
        asked = {
            "plugins": [sys.modules[n].__file__ for n in PLUGINS if n in sys.modules],
            "study": run.study.model_dump(mode="json"),
            "run": [run.dataset, run.arm, run.seed],
            "records": str(prepared_folder(records, Path(job))),
            "folder": str(folder.resolve()),
        }
        write_json(Path(job) / "job.json", asked)
        call += ["-m", "ecgstudy.running.launch", job]
        how = {"cwd": ROOT, "env": environment, "stdin": subprocess.PIPE}
        with subprocess.Popen(call, **how) as running:
            failed = running.wait()
        if failed:
            raise StudyError(_reason(run, Path(job) / "error.json"))


def prepared_folder(records: EcgRecords, job: Path) -> Path:
    """The folder that `records` were loaded from, all of them; else saved to `job`."""
    file = getattr(records.signals, "filename", None)
    if file is not None:
        stored = np.load(file, mmap_mode="r", allow_pickle=False)
        if stored.shape == records.signals.shape:
            return Path(file).parent
    save_records(records, job)
    return job


def _reason(run: Run, error: Path) -> str:
    """What the first process that failed says, and where, if it is no StudyError."""
    what = f"{run.arm} seed {run.seed}: one of {run.processes} processes"
    if not error.exists():
        return f"{what} was killed or could not start; see the output of torchrun"
    kind, message, where = json.loads(error.read_text(encoding="utf-8"))
    if kind == StudyError.__name__:
        return message
    print(where, file=sys.stderr)
    return f"{what} failed with {kind}: {message}"


def main(job: Path) -> None:
    """Be one process of the job; of those that fail, the first one says why."""
    Thread(target=_end_with_starter, daemon=True).start()
    try:
        _pretrain(job)
    except Exception as error:
        ours = job / f"error-{os.getpid()}.json"
        write_json(ours, [type(error).__name__, str(error), traceback.format_exc()])
        with suppress(FileExistsError):
            os.link(ours, job / "error.json")
        os._exit(1)  # at once: an orderly end would wait for those that wait for us


def _end_with_starter() -> None:
    os.read(0, 1)  # returns when nobody holds the other end any more
    os._exit(1)


def _pretrain(job: Path) -> None:
    asked = json.loads((job / "job.json").read_text(encoding="utf-8"))
    given = os.environ.get("ECGSTUDY_PLUGINS", "")
    load_plugins(os.pathsep.join([given, *asked["plugins"]]))
    study = Study.model_validate(asked["study"])
    join(pick_device(study.device))
    run, records = Run(study, *asked["run"]), load_records(asked["records"])
    loop.pretrain(run, records, Path(asked["folder"]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
