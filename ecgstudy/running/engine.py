"""Snakemake as a subprocess: its profile, what every run of it must do, and one run of a study at a time."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT, lock, lock_file
from ecgstudy.running.jobs import at_work, await_jobs
from ecgstudy.study import Paths


@contextmanager
def study_lock(paths: Paths) -> Iterator[None]:
    """Hold the study for this process; the kernel lets go of it when the process dies, however it dies.

    Raises
    ------
    StudyError
        When another live process runs the study, its folder cannot be written, or there are no locks in it.
    """
    with lock_file(paths.home / ".lock") as file:
        free = lock(file, wait=False)
        file.seek(0)
        if not free:
            who = file.read().strip()
            raise StudyError(
                f"study {paths.study!r} is being run by process {who}; wait for it or stop it"
            )
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def await_left_over_jobs(home: Path) -> None:
    """Let jobs of a killed run end first, since new ones would write the same files; what they make is kept.

    SLURM's are cancelled: those of other machines cannot be seen from here.

    Raises
    ------
    StudyError
        When SLURM does not answer, or the study's folder cannot be written.
    """
    if (
        any(home.glob(".snakemake/locks/*"))
        and (home / ".snakemake/slurm_logs").exists()
    ):
        cancel_left_over_jobs(home)
    await_jobs(home / "logs")


def profile_folder(name: str) -> Path:
    """Folder of a Snakemake profile: one of ``profiles/``, or a path to one of your own.

    Raises
    ------
    StudyError
        When there is none.
    """
    for folder in (ROOT / "profiles" / name, Path(name).resolve()):
        if (folder / "config.yaml").is_file():
            return folder
    known = ", ".join(
        sorted(path.parent.name for path in ROOT.glob("profiles/*/config.yaml"))
    )
    raise StudyError(
        f"profile {name!r} is neither one of {known} nor a folder with a config.yaml"
    )


def job_prefix(home: Path) -> str:
    """What the names of the study's SLURM jobs begin with, unlike those of another study or checkout."""
    return f"{home.name[:40]}-{hashlib.sha256(bytes(home.resolve())).hexdigest()[:8]}"


def cancel_left_over_jobs(home: Path) -> None:
    """Cancel the SLURM jobs of a killed run of the study, which would write the same files as new ones.

    Raises
    ------
    StudyError
        When SLURM does not answer.
    """
    queue = ["squeue", "--me", "--noheader", "--format", "%i %j"]
    try:
        while True:
            jobs = subprocess.run(
                queue, check=True, capture_output=True, text=True, timeout=60
            ).stdout
            left = [
                job.split()[0]
                for job in jobs.splitlines()
                if f" {job_prefix(home)}_" in job
            ]
            if not left:
                return
            subprocess.run(["scancel", *left], capture_output=True, timeout=60)
            time.sleep(1)
    except (OSError, subprocess.SubprocessError) as error:
        raise StudyError(
            f"{home}: a killed run may have left jobs in SLURM, but: {error}"
        ) from error


def snakemake(
    home: Path, params: Path, *, profile: str, cores: int | None, arguments: list[str]
) -> int:
    """Run Snakemake in the study's folder `home`, whose lock the caller holds; returns its exit status.

    `cores` replaces the profile's; `arguments` are targets (paths inside `home`) and further options.
    """
    params = params.resolve()
    inside = params.is_relative_to(
        ROOT
    )  # relative paths keep committed files free of ours
    where = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(home)]
    where += [
        "--workflow-profile",
        str(profile_folder(profile)),
        *(["--cores", str(cores)] if cores else []),
    ]
    how = ["--rerun-triggers", "mtime", "--rerun-incomplete", "--keep-going"]
    how += ["--slurm-jobname-prefix", job_prefix(home)]
    config = ["--config", f"params={params.relative_to(ROOT) if inside else params}"]
    call = [sys.executable, "-m", "snakemake"]
    if any(
        home.glob(".snakemake/locks/*")
    ):  # of a killed process: no live one holds the study
        subprocess.run(
            [*call, "--unlock", *where, *config], check=True, capture_output=True
        )
    with at_work(home / "logs") as held:
        return subprocess.run(
            [*call, *arguments, *where, *how, *config], pass_fds=[held]
        ).returncode
