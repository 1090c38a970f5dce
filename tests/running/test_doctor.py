"""Each fault that the doctor knows is found, named and told how to fix; a sound place has none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ecgstudy.running import doctor
from ecgstudy.study import ROOT


def only(findings, what):
    (finding,) = (f for f in findings if f.what == what)
    return finding


def test_a_package_of_another_version_and_a_missing_one_are_named(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "# pins\nnumpy==0.1\nno-such-package==1.0\npandas=="
        + doctor._version("pandas")
        + "\n"
    )
    found = list(doctor._packages(lock))
    assert [(f.what, f.good) for f in found] == [
        ("numpy", False),
        ("no-such-package", False),
    ]
    assert found[0].found == f"{doctor._version('numpy')}; pinned is 0.1"
    assert found[1].found == "missing; pinned is 1.0"
    assert found[1].fix == doctor.INSTALL


@pytest.mark.parametrize(
    "missing", [["torch"], [f"no-such-{i}" for i in range(11)]], ids=["torch", "many"]
)
def test_an_environment_that_is_not_there_is_one_line(missing, tmp_path, monkeypatch):
    found = {**dict.fromkeys(missing), "numpy": "2.0"}
    monkeypatch.setattr(doctor, "_version", found.get)
    lock = tmp_path / "requirements.lock"
    lock.write_text("numpy==2.0\n" + "".join(f"{name}==1.0\n" for name in missing))
    (line,) = doctor._packages(lock)
    said = (
        f"{len(missing)} of {len(missing) + 1} missing or not as in requirements.lock"
    )
    assert line == ("packages", said, False, "rm -rf .venv && make .venv/installed")


def test_packages_as_pinned_are_one_line(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        f"numpy=={doctor._version('numpy')}\ntorch=={doctor._version('torch')}\n"
    )
    assert list(doctor._packages(lock)) == [
        ("packages", "all 2 as in requirements.lock", True, "")
    ]


def test_data_are_counted_where_they_are(tmp_path, monkeypatch):
    (tmp_path / "mitdb").mkdir()
    for record in ("100", "101"):
        (tmp_path / "mitdb" / f"{record}.hea").touch()
    (tmp_path / "ptbxl").mkdir()
    monkeypatch.setenv("ECGSTUDY_DATA", str(tmp_path))
    found = list(doctor._data())
    assert only(found, "mitdb").found == f"2 of 48 records in {tmp_path / 'mitdb'}"
    assert only(found, "mitdb").good is None
    assert only(found, "ptbxl").good is False  # a folder without records


def test_a_folder_of_data_that_is_not_there_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("ECGSTUDY_DATA", str(tmp_path / "gone"))
    found = only(doctor._data(), "ECGSTUDY_DATA")
    assert found == (
        "ECGSTUDY_DATA",
        f"{tmp_path / 'gone'} is no folder",
        False,
        found.fix,
    )
    assert "or unset it" in found.fix


def test_a_full_disk_is_a_fault(monkeypatch):
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e9})
    )
    assert only(doctor._disk(), "disk") == (
        "disk",
        "1 GB free",
        False,
        "free 5 GB, or clone elsewhere",
    )


def test_packages_that_are_not_installed_yet_need_room_too(monkeypatch):
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 9e9})
    )
    assert only(doctor._disk(), "disk").good
    monkeypatch.setattr(doctor, "_version", {}.get)
    assert only(doctor._disk(), "disk").fix == "free 13 GB, or clone elsewhere"


@pytest.mark.parametrize(
    ("hidden", "good"), [(None, False), ("", None)], ids=["visible", "hidden"]
)
def test_gpus_that_torch_does_not_find_are_a_fault_unless_they_are_hidden(
    hidden, good, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '0, GPU-x'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    found = only(doctor._device(), "GPU")
    assert found.good is good
    if hidden is None:
        assert (
            found.found
            == f"nvidia-smi lists GPU-x, but torch {torch.__version__} finds none"
        )
        assert "a newer driver" in found.fix
        assert "PROFILE=local" in found.fix


@pytest.mark.parametrize(("faults", "code"), [(0, 0), (1, 1), (2, 1)])
def test_the_number_of_faults_decides_the_exit_status(
    faults, code, monkeypatch, capsys
):
    bad = [doctor.Finding("disk", "full", False, "free some")] * faults
    monkeypatch.setattr(
        doctor, "examine", lambda: [doctor.Finding("Python", "3.12"), *bad]
    )
    assert doctor.print_findings() == code
    printed = capsys.readouterr().out
    assert printed.count("!!  disk") == printed.count("→ free some") == faults
    assert ("all checks passed" in printed) == (not faults)


def test_it_speaks_without_any_package():
    """As where nothing is installed: an interpreter that sees the standard library alone."""
    ran = subprocess.run(
        [sys.executable, "-S", "-m", "ecgstudy", "doctor"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1, ran.stderr
    assert "missing or not as in requirements.lock" in ran.stdout
    assert len(ran.stdout.splitlines()) < 25
    assert not ran.stderr


def test_it_speaks_in_a_python_that_is_too_old():
    """Python 3.9 parses all it imports of ours, and evaluates no annotation, of which some came with 3.10."""
    ours = (
        "[m.__file__ for name, m in sys.modules.items() if name.startswith('ecgstudy')]"
    )
    code = f"import sys, ecgstudy.running.cli, ecgstudy.running.doctor; print(*{ours})"
    call = [sys.executable, "-S", "-c", code]
    files = subprocess.run(
        call, cwd=ROOT, capture_output=True, text=True, timeout=60
    ).stdout
    assert "doctor.py" in files
    for path in map(Path, files.split()):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
        defines = any(isinstance(node, ast.FunctionDef) for node in ast.walk(tree))
        assert not defines or "from __future__ import annotations" in path.read_text(
            encoding="utf-8"
        ), path
