"""YAML files as plain data: nothing in them runs, and nothing in them is silently dropped."""

import re

import yaml

from ecgstudy.errors import StudyError


class _Plain(yaml.SafeLoader):
    """Refuses tags that build Python objects (as its parent does), and keys that occur twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [
            (key.value, key.start_mark.line)
            for key, _ in node.value
            if isinstance(key, yaml.ScalarNode)
        ]
        for index, (key, line) in enumerate(keys):
            if key in (earlier for earlier, _ in keys[:index]):
                raise StudyError(
                    f"line {line + 1}: the key {key!r} occurs twice; keep one"
                )
        return super().construct_mapping(node, deep)


# As in YAML 1.2; YAML 1.1 takes 1e-3 for text, because it has no point.
_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(text: str) -> object:
    """Content of a YAML document.

    Raises
    ------
    StudyError
        Naming the line: not YAML, a tag that is no plain data, or a key that occurs twice.
    """
    try:
        return yaml.load(text, _Plain)
    except yaml.YAMLError as error:
        raise StudyError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise StudyError("not valid params: nested too deeply") from None
