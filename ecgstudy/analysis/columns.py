"""The columns of every table of a study: ``columns.yaml``."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ecgstudy.plain_yaml import read_yaml

COLUMNS = read_yaml(Path(__file__).with_name("columns.yaml").read_text("utf-8"))
"""Table → names of its columns; ``cost`` may have more."""


def as_table(name: str, rows: Iterable[dict]) -> pd.DataFrame:
    """Rows as the table `name`: with its columns and no others."""
    return pd.DataFrame(rows, columns=COLUMNS[name])
