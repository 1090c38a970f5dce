"""What `make` says and calls before anything of the project runs."""

import shutil
import subprocess
import sys

import pytest

from ecgstudy.study import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
OLD = """#!/bin/sh
pretend='import sys; sys.version_info, sys.version = (3, 9, 2), "3.9.2 (main)"; exec(sys.argv[2])'
exec {python} -c "$pretend" "$@"
"""


def make(folder, *arguments):
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_python_that_is_too_old_is_said_before_anything_is_installed(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3.9"
    old.write_text(OLD.format(python=sys.executable))
    old.chmod(0o755)
    ran = make(tmp_path, "study", f"PYTHON={old}")
    assert ran.returncode != 0
    assert f"error: {old} is Python 3.9.2; 3.11 or later is needed" in ran.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("driver", "profile"),
    [
        ("echo 'GPU 0: pretended (UUID: GPU-x)'", "gpu"),
        ("echo 'No devices found.'", "local"),
        ("echo failed >&2; exit 9", "local"),
        (None, "local"),
    ],
)
def test_jobs_go_to_the_gpus_where_there_are_some_unless_told_otherwise(
    driver, profile, tmp_path, monkeypatch
):
    for name in ("make", "sh", "grep"):  # and no driver of the machine's own
        (tmp_path / name).symlink_to(shutil.which(name))
    if driver:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{driver}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PROFILE", raising=False)
    call = "python -m ecgstudy.running.workflow study params/quick.yaml --profile"
    for arguments, expected in (
        ([], profile),
        (["PROFILE=local"], "local"),
        (["PROFILE=slurm"], "slurm"),
    ):
        ran = make(ROOT, "--dry-run", "study", "ACTIVE=1", *arguments)
        assert (ran.stdout.strip(), ran.stderr) == (f"{call} {expected}", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides them all
    assert (
        make(ROOT, "--dry-run", "study", "ACTIVE=1").stdout.strip() == f"{call} local"
    )


def test_a_params_file_instead_of_a_name_is_refused():
    ran = make(ROOT, "--dry-run", "study", "params/tiny.yaml", "ACTIVE=1")
    assert ran.returncode
    assert "a study is named by STUDY=: make study STUDY=tiny." in ran.stderr


@pytest.mark.parametrize(
    "target", ["study", "figures", "lab", "test", "lint", "doctor"]
)
def test_an_active_environment_is_used_if_so_told(target):
    called = make(ROOT, "--dry-run", target, "ACTIVE=1").stdout
    assert ".venv" not in called
    assert "python -m " in called
