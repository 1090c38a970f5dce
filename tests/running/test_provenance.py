import importlib
import importlib.util
import json
import linecache
import subprocess
import sys

import pytest

from ecgstudy.files import ROOT, plain_source, stamp
from ecgstudy.running.provenance import PACKAGES, environment, git_commit
from ecgstudy.running.workflow import FIGURES_CODE

CODE = '''"""Module."""

LIMIT = 3
"""What LIMIT means."""


class Box:
    """A box."""

    size: int = 1
    """Its size."""

    def double(self, x):
        """Twice."""
        # why
        text = """
        # not a comment
        """
        return 2 * x, text  # because
'''


@pytest.fixture
def module(tmp_path):
    """Imports a source text as a module."""
    count = iter(range(99))

    def load(source):
        path = tmp_path / f"code{next(count)}.py"
        path.write_text(source)
        linecache.clearcache()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return load


SAME = {
    "module docstring": ('"""Module."""', '"""Another\n\nmodule."""'),
    "class docstring": ('"""A box."""', '"""Not a crate."""'),
    "no function docstring": ('        """Twice."""\n', ""),
    "attribute docstring": ('"""What LIMIT means."""', '"""LIMIT is three."""'),
    "comment line": ("        # why\n", "        # why not\n        # at all\n"),
    "trailing comment": ("  # because", ""),
    "blank lines": ("LIMIT = 3\n", "\n\n\nLIMIT = 3   \n"),
}
OTHER = {
    "constant": ("LIMIT = 3", "LIMIT = 4"),
    "statement": ("2 * x", "3 * x"),
    "default": ("size: int = 1", "size: int = 2"),
    "text that looks like a comment": ("# not a comment", "# still not a comment"),
    "name": ("def double", "def twice"),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_words_about_the_code_leave_the_stamp(change, module):
    assert change[0] in CODE
    assert stamp({}, [module(CODE.replace(*change))]) == stamp({}, [module(CODE)])


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_changed_code_changes_the_stamp(change, module):
    assert change[0] in CODE
    assert stamp({}, [module(CODE.replace(*change))]) != stamp({}, [module(CODE)])


def test_a_function_is_stamped_without_the_rest_of_its_module(module):
    whole, changed = module(CODE), module(CODE.replace("LIMIT = 3", "LIMIT = 4"))
    assert stamp({}, [whole.Box.double]) == stamp({}, [changed.Box.double])
    assert plain_source(whole.Box.double).splitlines()[0] == "def double(self, x):"


def test_the_stamp_depends_on_parameters_and_not_on_their_order(module):
    code = [module(CODE)]
    assert stamp({"a": 1, "b": 2}, code) == stamp({"b": 2, "a": 1}, code)
    assert (
        len({stamp(p, c) for p in ({"a": 1}, {"a": 2}, {"b": 1}) for c in (code, [])})
        == 6
    )


def git(folder, *arguments):
    who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    call = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(
        call, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_git_commit_names_the_commit_and_marks_changes(tmp_path):
    assert git_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == commit + "+"


def test_environment_is_json_and_lists_the_packages(tmp_path):
    known = json.loads(json.dumps(environment(tmp_path)))
    assert set(PACKAGES) <= set(known)
    assert known["commit"] is None
    assert known["torch"].startswith("2.")


def test_a_module_by_its_name_has_the_source_it_would_have_imported():
    assert FIGURES_CODE
    for name in FIGURES_CODE:
        assert plain_source(name) == plain_source(importlib.import_module(name))


def test_a_plan_imports_neither_matplotlib_nor_scipys_signals():
    """Seconds, which each job and each study with nothing to do would wait for."""
    slow = (
        "matplotlib",
        "seaborn",
        "sklearn",
        "scipy.signal",
        "wfdb",
        "neurokit2",
        "papermill",
    )
    code = (
        "import sys; from pathlib import Path; from ecgstudy.running import workflow as w;"
        "study = w.load_study(Path(sys.argv[1])); "
        "[step.content() for step in w.steps(study, w.Paths('x'))];"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    call = [sys.executable, "-c", code, str(ROOT / "params/quick.yaml")]
    assert (
        subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()
        == "[]"
    )
