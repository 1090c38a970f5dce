"""The order of imports, and how thin the package is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecgstudy.files import ROOT

PACKAGE = ROOT / "ecgstudy"
ORDER = (
    {"datasets"},
    {"models"},
    {"attacks"},
    {"pretraining"},
    {"evaluation"},
    {"analysis"},
    {"plots", "running"},
    {"api", "__init__", "__main__"},
)
"""Rooms from the lowest to the highest; files at the top of the package are lower
still. A room imports itself and rooms below it; rooms of one line do not import each
other."""
MOST_NODES = 112_000
FILES = sorted(PACKAGE.rglob("*.py"))


def room(parts: tuple[str, ...]) -> str:
    """First folder of a module, or the file's name for files at the top."""
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next((i for i, rooms in enumerate(ORDER, 1) if name in rooms), 0)


def imported(file: Path) -> Iterator[str]:
    """Rooms that a module imports, wherever in the module the import stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "ecgstudy":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package, _, rest = (node.module or "").partition(".")
            if package == "ecgstudy":
                yield rest.partition(".")[0]
            assert node.level == 0, f"{file}: relative import"
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("ecgstudy.")]
            yield from (name.split(".")[1] for name in names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    here = room(file.relative_to(PACKAGE).parts)
    others = {name for name in imported(file) if name != here and name != "__version__"}
    if level(here):
        assert not [name for name in others if level(name) >= level(here)]
    else:
        assert not [name for name in others if level(name)]


def test_files_at_the_top_do_not_import_each_other_in_a_circle():
    graph = {
        file.stem: {name for name in imported(file) if not level(name)} - {file.stem}
        for file in FILES
        if file.parent == PACKAGE and not level(file.stem)
    }
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph


def test_the_package_stays_thin():
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in FILES]
    assert sum(1 for tree in trees for _ in ast.walk(tree)) <= MOST_NODES


def test_files_stay_short_enough_to_read():
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert [str(file) for file, count in lines.items() if count > 400] == []
