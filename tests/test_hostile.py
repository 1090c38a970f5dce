"""What strangers hand over — weights, arrays, params, addresses — is data: nothing of it runs."""

import ast
import pickle
from pathlib import Path

import numpy as np
import pytest
from test_checkpoints import Trap
from toy import toy_records

from ecgstudy.errors import StudyError
from ecgstudy.records import load_records, save_records
from ecgstudy.running.workflow import plan
from ecgstudy.study import ROOT, Paths, load_study

SOURCES = sorted(
    [*(ROOT / "ecgstudy").rglob("*.py"), *(ROOT / "notebooks/scripts").glob("*.py")]
)
FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile", "zipfile",
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "shutil.unpack_archive",
    "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip
"""Modules and functions that run what they read, or unpack it to where it says."""
SAFE_WITH = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
ALLOWED = {("plain_yaml.py", "yaml.load")}
"""With a loader that builds plain data only (`tests/test_study.py`)."""


def called(node):
    """``a.b`` of a call ``a.b(…)`` or ``b`` of ``b(…)``; the modules of an import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [
            node.module or "",
            *(f"{node.module}.{alias.name}" for alias in node.names),
        ]
    return [ast.unparse(node.func)] if isinstance(node, ast.Call) else []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_module_runs_or_unpacks_what_it_reads(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in called(node):
            if (path.name, name) not in ALLOWED:
                assert name not in FORBIDDEN, f"{path.name}:{node.lineno}"
            if name in SAFE_WITH:
                given = {
                    k.arg: ast.literal_eval(k.value)
                    for k in node.keywords
                    if k.arg == SAFE_WITH[name][0]
                }
                assert given == dict([SAFE_WITH[name]]), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize(
    "name", ["signals.npy", "labels.npy", "table.parquet", "card.json"]
)
@pytest.mark.parametrize("form", ["pickle", "array of objects"])
def test_prepared_data_with_a_pickle_in_them_are_refused_and_it_does_not_run(
    form, name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_records(toy_records(), tmp_path / "data")
    if form == "pickle":
        (tmp_path / "data" / name).write_bytes(pickle.dumps(Trap()))
    else:
        with open(tmp_path / "data" / name, "wb") as stream:
            np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(StudyError, match="data holds no prepared records"):
        load_records(tmp_path / "data")
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    "name", ["../../elsewhere", "/elsewhere", "..", "a b; mkdir ran"]
)
def test_names_in_params_lead_nowhere_else(name, tmp_path):
    """They become folders and words of commands: only known data sets, arms and protocols do."""
    text = (ROOT / "params/tiny.yaml").read_text(encoding="utf-8")
    changes = {
        "study: tiny": f"study: {name!r}",
        "  builtin:": f"  {name!r}:",
        "[rocl,": f"[{name!r},",
    }
    for old, new in changes.items():
        assert old in text
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(StudyError) as caught:
            plan(load_study(path), Paths("tiny", tmp_path / "outputs"))
        assert name in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["params.yaml"]
