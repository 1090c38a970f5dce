"""The notebooks as files: paired, without outputs, short cells, no definitions, and they run in batch."""

import ast
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest
from IPython.core.inputtransformer2 import TransformerManager

import ecgstudy as es
from ecgstudy.errors import StudyError
from ecgstudy.running.papermill import execute
from ecgstudy.study import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def sources(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_and_text_twin_agree(path):
    twin = path.parent / "scripts" / f"{path.stem}.py"
    assert sources(path) == sources(twin), (
        f"run: jupytext --sync {path.relative_to(ROOT)}"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_has_no_outputs_one_parameters_cell_and_short_cells_without_definitions(
    path,
):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    for cell in code:
        assert len(cell.source.splitlines()) <= 15, cell.source
        defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(
            isinstance(node, defined) for node in ast.walk(ast.parse(cell.source))
        ), cell.source


def small_notebook(path: Path, *cells: str) -> Path:
    parameters = nbformat.v4.new_code_cell(
        "study = ''\nvalue = 1", metadata={"tags": ["parameters"]}
    )
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    metadata = {
        "kernelspec": {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
    }
    nbformat.write(
        nbformat.v4.new_notebook(cells=[parameters, *code], metadata=metadata), path
    )
    return path


def test_executed_notebook_and_provenance_appear_together(tmp_path):
    source = small_notebook(tmp_path / "small.ipynb", "print(value * 2)")
    (tmp_path / "step").mkdir()
    (tmp_path / "step/run.json").write_text('{"key": "abc"}')
    execute(
        source,
        tmp_path / "step/small.ipynb",
        {"value": 21},
        tmp_path / "logs/small.ipynb",
    )
    executed = nbformat.read(tmp_path / "step/small.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "42\n"
    done = json.loads((tmp_path / "step/provenance.json").read_text())
    assert done["key"] == "abc"
    assert done["parameters"] == {"value": 21}
    assert not list((tmp_path / "logs").iterdir())


def test_notebooks_run_the_code_of_this_checkout_whichever_is_installed(
    tmp_path, monkeypatch
):
    other = (
        tmp_path / "other/ecgstudy"
    )  # as installed in an environment that clones share
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    source = small_notebook(
        tmp_path / "small.ipynb", "import ecgstudy\nprint(ecgstudy.__file__)"
    )
    execute(source, tmp_path / "out.ipynb", {}, tmp_path / "logs/small.ipynb")
    found = (
        nbformat.read(tmp_path / "out.ipynb", as_version=4)
        .cells[-1]
        .outputs[0]
        .text.strip()
    )
    assert Path(found).parents[1] == ROOT


def test_a_folder_that_is_not_there_yet_is_made(tmp_path):
    source = small_notebook(tmp_path / "small.ipynb", "print(value)")
    execute(source, tmp_path / "a/b/small.ipynb", {}, tmp_path / "logs/small.ipynb")
    assert (tmp_path / "a/b/provenance.json").exists()


def test_unknown_parameter_fails_before_anything_runs(tmp_path):
    source = small_notebook(tmp_path / "small.ipynb", "print(value)")
    with pytest.raises(
        StudyError, match=r"small.ipynb has no parameter 'valu'; it has study, value"
    ):
        execute(source, tmp_path / "out.ipynb", {"valu": 2}, tmp_path / "logs/x.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_failed_notebook_is_kept_and_its_error_named(tmp_path):
    source = small_notebook(tmp_path / "small.ipynb", "1 / 0")
    with pytest.raises(
        StudyError, match=r"ZeroDivisionError: division by zero"
    ) as raised:
        execute(
            source,
            tmp_path / "out.ipynb",
            {"value": 2},
            tmp_path / "logs/small-2.ipynb",
        )
    assert (tmp_path / "logs/small-2.ipynb").exists()
    assert str(tmp_path / "logs/small-2.ipynb") in str(raised.value)
    assert not (tmp_path / "out.ipynb").exists()
    assert not (tmp_path / "provenance.json").exists()
    assert "\n" not in str(raised.value)
    assert (tmp_path / "logs/small-2.status").read_text() == f"failed: {raised.value}"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            'type("AcceleratorError", (RuntimeError,), {})("CUDA error: out of memory")',
            True,
        ),
        ('RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")', True),
        (
            'RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")',
            True,
        ),
        (
            '__import__("ecgstudy.errors").errors.StudyError("rocl seed 0: one of 2 processes failed with'
            ' OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")',
            True,
        ),
        ('RuntimeError("CUDA error: an illegal memory access was encountered")', False),
    ],
    ids=["accelerator", "cudnn", "cublas", "processes", "another"],
)
def test_whatever_says_that_memory_is_short_is_told_what_to_do(error, told, tmp_path):
    source = small_notebook(tmp_path / "small.ipynb", f"raise {error}")
    with pytest.raises(StudyError, match=r"memory|ALLOC_FAILED") as raised:
        execute(source, tmp_path / "out.ipynb", {}, tmp_path / "logs/small.ipynb")
    assert ("; lower training.batch_size" in str(raised.value)) is told


HOSTILE = [
    "'; import os; os.mkdir('ran') #",
    '"; import os; os.mkdir("ran") #',
    '"""\nimport os; os.mkdir(\'ran\')\n"""',
    "\\'; import os; os.mkdir('ran') #\\",
    "x\rimport os; os.mkdir('ran')",
    "{__import__('os').mkdir('ran')}",
    "%mkdir ran",
    "!mkdir ran",
    "`mkdir ran` $(mkdir ran)",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_parameter_with_code_in_it_stays_a_string(value, tmp_path):
    """As papermill writes it into the notebook's cell, which is all that a kernel would run."""
    source, out = (
        small_notebook(tmp_path / "small.ipynb", "value"),
        tmp_path / "out.ipynb",
    )
    papermill.execute_notebook(
        str(source), str(out), {"value": value}, prepare_only=True, progress_bar=False
    )
    (cell,) = (
        c
        for c in nbformat.read(out, as_version=4).cells
        if "injected-parameters" in c.metadata.get("tags", [])
    )
    (assignment,) = ast.parse(TransformerManager().transform_cell(cell.source)).body
    assert (assignment.targets[0].id, ast.literal_eval(assignment.value)) == (
        "value",
        value,
    )


def test_a_running_notebook_says_how_far_it_is(tmp_path):
    say = "from ecgstudy.files import note_progress, STATUS\nimport os, pathlib\n"
    say += "note_progress('epoch 3')\npathlib.Path(os.environ[STATUS]).read_text()"
    source, log = (
        small_notebook(tmp_path / "small.ipynb", say),
        tmp_path / "logs/x.ipynb",
    )
    execute(source, tmp_path / "out.ipynb", {}, log)
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert "epoch 3" in executed.cells[-1].outputs[0].data["text/plain"]
    assert not log.with_suffix(".status").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_disk_that_is_full_is_one_error_that_names_the_notebook(
    tmp_path, monkeypatch
):
    source = small_notebook(tmp_path / "small.ipynb", "print(value)")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/small-2.ipynb").symlink_to("/dev/full")
    monkeypatch.setattr(
        papermill,
        "execute_notebook",
        partial(papermill.execute_notebook, prepare_only=True),
    )
    with pytest.raises(
        StudyError,
        match=r"out\.ipynb cannot be written \(No space left on device\); free",
    ):
        execute(
            source,
            tmp_path / "out.ipynb",
            {"value": 2},
            tmp_path / "logs/small-2.ipynb",
        )
    assert not (tmp_path / "out.ipynb").exists()


def test_a_misspelt_parameter_is_refused_by_the_notebook_itself():
    known = "params = 'a'\nseed = 0"
    given = ["", known, "# Parameters\nseed = 7\nparams = 'b'"]
    es.check_parameters({"In": given})
    es.check_parameters({"In": ["", known, "other = 3"]})  # of a person, not papermill
    with pytest.raises(StudyError, match="no parameter 'sed'; there are params, seed"):
        es.check_parameters({"In": [*given[:2], "# Parameters\nsed = 7"]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("protocl slf", "no parameter 'protocl'; there are params, dataset, arm"),
        ("dataset ptbxl", "study 'tiny' has no dataset 'ptbxl'; it has builtin"),
        ("protocol slff", "protocol 'slff' is not one of this run's: slf"),
    ],
)
def test_papermills_own_command_ends_with_one_line(given, line, tmp_path):
    call = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks/03_evaluate.ipynb"),
    ]
    call += [str(tmp_path / "out.ipynb"), "-p", "params", "params/tiny.yaml"]
    done = subprocess.run(
        [*call, "-p", *given.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"StudyError: {line}" in done.stderr
