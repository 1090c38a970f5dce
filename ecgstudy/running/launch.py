"""Start one pretraining in several processes with `torchrun`; run as a module, be one of these processes.

They are a subprocess's, because a notebook's kernel can neither be forked (threads, CUDA) nor imported by
spawned children; torchrun finds a free port and ends all when one fails. Their standard input is a pipe that
the starting process holds open: however that dies, the pipe closes, and they end.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import replace
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
from ecgstudy.registry import ARMS
from ecgstudy.study import Run, Study, load_plugins


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
    """`ecgstudy.pretraining.loop.pretrain` in `run.processes` processes of this machine.

    Raises
    ------
    StudyError
        When there are fewer GPUs than processes, or a process fails: with its error.
    """
    gpus = (
        torch.cuda.device_count()
        if pick_device(run.study.device).type == "cuda"
        else run.processes
    )
    if gpus < run.processes:
        raise StudyError(
            f"processes is {run.processes}, but torch finds only {gpus} GPUs; use {gpus}"
        )
    with tempfile.TemporaryDirectory() as job:
        _hand_over(run, records, folder, Path(job))
        how = [
            "--standalone",
            f"--nproc-per-node={run.processes}",
            "--local-ranks-filter=0",
        ]
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *how,
            "-m",
            "ecgstudy.running.launch",
            job,
        ]
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
        }  # Snakemake sets it to the job's threads: all processes'
        with subprocess.Popen(
            command, env=env, cwd=ROOT, stdin=subprocess.PIPE
        ) as running:
            failed = running.wait()
        if failed:
            raise StudyError(_reason(run, Path(job) / "error.json"))


def _hand_over(run: Run, records: EcgRecords, folder: Path, job: Path) -> None:
    """Put what the processes need into the folder `job`; prepared signals are linked, not copied."""
    asked = {
        "dataset": run.dataset,
        "arm": run.arm,
        "seed": run.seed,
        "folder": str(folder.resolve()),
    }
    write_json(job / "job.json", {**asked, "study": run.study.model_dump(mode="json")})
    file = getattr(records.signals, "filename", None)
    if (
        file is None
        or np.load(file, mmap_mode="r", allow_pickle=False).shape
        != records.signals.shape
    ):
        return save_records(records, job)
    save_records(replace(records, signals=records.signals[:, :, :0]), job)
    (job / "signals.npy").unlink()
    (job / "signals.npy").symlink_to(file)


def _reason(run: Run, error: Path) -> str:
    """What the first process that failed says of it; where it failed is printed, if it is no StudyError."""
    what = f"{run.arm} seed {run.seed}: one of {run.processes} processes"
    if not error.exists():
        return f"{what} was killed or could not start; see the output of torchrun"
    kind, message, where = json.loads(error.read_text(encoding="utf-8"))
    if kind == StudyError.__name__:
        return message
    print(where, file=sys.stderr)
    return f"{what} failed with {kind}: {message}"


def main(job: Path) -> None:
    """Be one process of the pretraining that `job` describes; of those that fail, the first says why."""
    Thread(target=_end_with_starter, daemon=True).start()
    try:
        _pretrain(job)
    except Exception as error:
        ours = job / f"error-{os.getpid()}.json"
        write_json(ours, [type(error).__name__, str(error), traceback.format_exc()])
        with suppress(FileExistsError):
            os.link(ours, job / "error.json")
        os._exit(
            1
        )  # at once: the group's orderly end could wait for the others, which wait for this process


def _end_with_starter() -> None:
    os.read(0, 1)  # returns when nobody holds the other end any more
    os._exit(1)


def _pretrain(job: Path) -> None:
    load_plugins(os.environ.get("ECGSTUDY_PLUGINS", ""))
    asked = json.loads((job / "job.json").read_text(encoding="utf-8"))
    study = Study.model_validate(asked["study"])
    join(pick_device(study.device))
    loop.pretrain(
        Run(study, asked["dataset"], asked["arm"], asked["seed"]),
        load_records(job),
        Path(asked["folder"]),
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
