"""Params files as plain data, by a reader of YAML 1.2."""

import re
from collections.abc import Sequence

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ecgstudy.errors import StudyError


def read_yaml(text: str) -> object:
    """Content of a YAML document; a key that occurs twice is an error.

    Raises
    ------
    StudyError
        Naming the line that is not YAML, or whose tag is no plain data.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        what = getattr(error, "problem", None) or error
        raise StudyError(f"{where}not valid YAML: {what}") from None


def with_value(text: str, keys: Sequence[str], value: float) -> str:
    """A YAML document with one value replaced, and nothing else changed.

    Parameters
    ----------
    text
        The document.
    keys
        Where the value is: the keys of the mappings around it, and its own.
    value
        The new value.

    Raises
    ------
    StudyError
        When the value is written in a way that cannot be replaced.
    """
    section = YAML().load(text)
    for key in keys[:-1]:
        section = section[key]
    line, column = section.lc.value(keys[-1])
    lines = text.split("\n")
    rest = re.sub(r"^[^\s,}#]+", str(value), lines[line][column:])
    lines[line] = lines[line][:column] + rest
    changed = "\n".join(lines)
    found = read_yaml(changed)
    for key in keys:
        found = found[key]
    if found != value:
        raise StudyError(f"line {line + 1}: write {keys[-1]}: {value} there yourself")
    return changed
