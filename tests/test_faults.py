"""A full disk and outputs that may only be read: one error, and earlier results stay.

Other faults (damaged files, impossible parameters, no GPU, …) are tested beside the
code that meets them.
"""

import os
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from toy import toy_records, toy_run

from ecgstudy.analysis import tables
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.files import sha256, write_json
from ecgstudy.plots import style
from ecgstudy.pretraining.loop import pretrain
from ecgstudy.records import save_records
from ecgstudy.running.processes import study_lock
from ecgstudy.study import AttackOptions, Paths

RUN = toy_run("supervised")
OTHER = toy_run("supervised", temperature=0.2)
"""A run of other parameters: the results of `RUN` are out of date for it."""
FOLDER = "runs/toy/supervised/seed0"
TABLE = toy_records().table[["record"]]
LEAST = AttackOptions(
    ensemble=["pgd-margin"],
    attacks=[],
    corruptions=[],
    epsilons_mv=[0.05],
    steps=1,
    check_steps=1,
    check_restarts=1,
    check_records=2,
    queries=1,
)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Outputs of an earlier study: prepared data, an encoder, a table, a figure."""
    paths = Paths("faults", tmp_path_factory.mktemp("earlier"))
    save_records(toy_records(), paths.data("mitdb"))
    pretrain(RUN, toy_records(), paths.home / FOLDER)
    for file in (
        f"{FOLDER}/provenance.json",
        f"{FOLDER}/slf/scores.parquet",
        f"{FOLDER}/slf/head.safetensors",
        f"{FOLDER}/slf/evaluation.json",
        "tables/claims.csv",
        "figures/forest.png",
        "figures/forest.csv",
    ):
        (paths.home / file).parent.mkdir(exist_ok=True)
        (paths.home / file).write_text("earlier")
    return paths


@pytest.fixture
def paths(earlier, tmp_path):
    shutil.copytree(earlier.home, tmp_path / "faults")
    return Paths("faults", tmp_path)


def save_data(paths):
    save_records(toy_records(), paths.data("mitdb"))


def pretrain_anew(paths):
    pretrain(OTHER, toy_records(), paths.home / FOLDER)


def evaluate_anew(paths):
    study = RUN.study.model_copy(update={"evaluation": LEAST})
    folder = paths.home / FOLDER / "slf"
    evaluate(replace(RUN, study=study), toy_records(), folder, "slf")


def write_table(paths):
    tables.write_csv({"claims": TABLE}, paths.tables)


def draw(paths):
    style.save_figure(Figure(), paths.figures, "forest", TABLE, "A forest", True)


def note(paths):
    write_json(paths.home / FOLDER / "provenance.json", {"seconds": "1" * 9999})


def hold(paths):
    with study_lock(paths.home):
        pytest.fail("held")


def check_refusal(paths, act, file):
    """`act` must fail naming `file`, and change or add no result."""
    before = contents(paths)
    with pytest.raises(StudyError) as caught:
        act(paths)
    assert str(caught.value).startswith(f"{paths.home / file} cannot be written")
    after = contents(paths)
    after.pop(f"{FOLDER}/checkpoint.safetensors", None)  # from which to go on
    assert after == before


def contents(paths):
    files = (path for path in paths.home.rglob("*") if path.is_file())
    return {str(path.relative_to(paths.home)): sha256(path) for path in files}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    ("act", "file"),
    [
        (save_data, "data/mitdb/signals.npy"),
        (save_data, "data/mitdb/table.parquet"),
        (pretrain_anew, f"{FOLDER}/checkpoint.safetensors"),
        (pretrain_anew, f"{FOLDER}/encoder.safetensors"),
        (pretrain_anew, f"{FOLDER}/history.jsonl"),
        (evaluate_anew, f"{FOLDER}/slf/scores.parquet"),
        (evaluate_anew, f"{FOLDER}/slf/head.safetensors"),
        (evaluate_anew, f"{FOLDER}/slf/evaluation.json"),
        (write_table, "tables/claims.csv"),
        (draw, "figures/forest.png"),
        (note, f"{FOLDER}/provenance.json"),
    ],
)
def test_a_full_disk_leaves_earlier_results(act, file, paths):
    path = paths.home / file
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.symlink_to("/dev/full")
    check_refusal(paths, act, file)


@pytest.mark.parametrize(
    ("act", "file"),
    [
        (hold, ""),
        (pretrain_anew, f"{FOLDER}/checkpoint.safetensors"),
        (save_data, "data/mitdb/SHA256SUMS"),
    ],
)
def test_outputs_that_may_only_be_read_are_left(act, file, paths):
    with ExitStack() as later:
        protect(paths.home, later)
        check_refusal(paths, act, file)


def protect(folder, later):
    """Take away the right to write; root, whom no mode stops, gets a mount."""
    if os.geteuid():
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o500)
                later.callback(path.chmod, 0o700)
        return
    for options in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
        command = ["mount", *options, str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("root may not mount here")
        if options[0] == "--bind":
            later.callback(subprocess.run, ["umount", str(folder)], check=True)
