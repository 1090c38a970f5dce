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
    ("given", "call"),
    [
        ("study", "study params/quick.yaml"),
        ("study STUDY=tiny PROFILE=slurm", "study params/tiny.yaml --profile slurm"),
        ("figures CORES=3", "figures params/quick.yaml --cores 3"),
        ("report RUNS=1", "report params/quick.yaml --runs"),
        ("report PROFILE=gpu", "report params/quick.yaml"),
        ("explore", "explore params/quick.yaml"),
        ("headline", "headline params/quick.yaml"),
    ],
)
def test_the_targets_call_the_command_line(given, call):
    ran = make(ROOT, "--dry-run", "ACTIVE=1", *given.split())
    assert ran.stdout.split() == f"python -m ecgstudy {call}".split()
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("mine.py", ["{here}/mine.py"]),
        ("a.py /b/c.py", ["{here}/a.py", "/b/c.py"]),
        ("a.py:d/b.py", ["{here}/a.py", "{here}/d/b.py"]),
        ("", [""]),
    ],
)
def test_plugins_are_found_from_everywhere_also_in_a_path_with_blanks(
    given, found, tmp_path
):
    here = tmp_path / "my projects"
    here.mkdir()
    shutil.copy(ROOT / "Makefile", here)
    show = "--eval=show: ; @printf '%s' \"$$ECGSTUDY_PLUGINS\""
    ran = make(here, "-s", show, "show", f"PLUGINS={given}", "ACTIVE=1")
    assert ran.stdout.split(":") == [path.format(here=here) for path in found]


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
