"""What a result rests on: stamps of parameters and code, versions, commit, machine."""

from __future__ import annotations  # `make doctor` speaks in Python 3.9 too

import ast
import hashlib
import inspect
import io
import json
import platform
import re
import subprocess
import textwrap
import tokenize
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

PACKAGES = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "wfdb", "neurokit2", "matplotlib")


@cache
def plain_source(code: ModuleType | Callable | str) -> str:
    """Source of a module or function without comments, docstrings and blank lines.

    A module may be given by its name, and is not imported then. Works on lines, not on a printed syntax
    tree, so that every Python version gives the same text.
    """
    if isinstance(code, str):
        source = Path(find_spec(code).origin).read_text(encoding="utf-8")
    else:
        source = textwrap.dedent(inspect.getsource(code))
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if constant and isinstance(node.value.value, str):  # of a module, class, function or attribute
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def stamp(parameters: object, code: Iterable[ModuleType | Callable | str] = ()) -> str:
    """Short hash of JSON-serialisable `parameters` and of the `code` that acts on them."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for part in code:
        digest.update(plain_source(part).encode())
    return digest.hexdigest()[:16]


STAMP = re.compile("[0-9a-f]{16}")
"""What `stamp` returns."""


def settings(content: dict) -> str:
    """Short hash of what a ``run.json`` asks for, without the stamps of code in it."""
    return stamp(_without_stamps(content))


def _without_stamps(content: object) -> object:
    if isinstance(content, dict):
        return {key: _without_stamps(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_stamps(value) for value in content]
    return None if isinstance(content, str) and STAMP.fullmatch(content) else content


def read_json(path: Path) -> dict:
    """Content of a JSON file; empty when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_done(folder: Path) -> bool:
    """Whether the step in `folder` was done for what its ``run.json`` asks for now."""
    stamps = [read_json(folder / name).get("stamp") for name in ("run.json", "provenance.json")]
    return stamps[0] is not None and stamps[0] == stamps[1]


def git_commit(folder: str | Path = ".") -> str | None:
    """Commit of the checkout at `folder`, with ``+`` when files differ from it; None outside git."""
    try:
        call = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--match="]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment(folder: str | Path = ".") -> dict:
    """Versions, commit and machine, as plain JSON types."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": git_commit(folder),
        "machine": f"{platform.system()} {platform.machine()}",
    }
