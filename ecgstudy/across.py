"""Several studies as one: the primary family adjusted over all of them, and the claims judged on all.

``python -m ecgstudy.across pilot params/mitdb.yaml params/ptbxl.yaml`` reads the tables of both and writes
``outputs/pilot/tables/contrasts.csv`` and ``claims.csv``.
"""

import sys
from pathlib import Path

import pandas as pd

from ecgstudy.claims import judge
from ecgstudy.errors import StudyError
from ecgstudy.statistics import holm
from ecgstudy.study import Paths, Study, load_study
from ecgstudy.tables import write_csv

PLACE = ["dataset", "protocol"]


def across(studies: list[Study], root: Path | None = None) -> dict[str, pd.DataFrame]:
    """Contrasts and claims over several studies.

    A data set and protocol that two studies have counts in the first alone: no run is counted twice.

    Parameters
    ----------
    studies
        Whose tables are there already.
    root
        Folder of all outputs, if it is another.

    Returns
    -------
    dict
        ``contrasts``: the studies' rows, `p_holm` over the primary family of all. ``claims``: judged on them.

    Raises
    ------
    StudyError
        When a study has no tables yet.
    """
    contrasts, cost = (_joined(studies, name, root) for name in ("contrasts", "cost"))
    first = (contrasts["family"] == "primary").to_numpy()
    contrasts.loc[first, "p_holm"] = holm(contrasts.loc[first, "p"].to_numpy(float))
    return {"contrasts": contrasts, "claims": judge(contrasts, cost, studies[0].statistics.confidence)}


def _joined(studies: list[Study], name: str, root: Path | None) -> pd.DataFrame:
    parts, seen = [], set()
    for study in studies:
        paths = Paths(study.study, root) if root else Paths(study.study)
        try:
            table = pd.read_csv(paths.tables / f"{name}.csv")
        except FileNotFoundError as error:
            raise StudyError(
                f"{error.filename} is missing; run `make study STUDY={study.study}` first"
            ) from None
        places = pd.Series(list(zip(*(table[column] for column in PLACE), strict=True)), table.index, object)
        parts.append(table[~places.isin(seen)].assign(study=study.study))
        seen |= set(places)
    return pd.concat(parts, ignore_index=True)


def main(arguments: list[str]) -> None:
    """Command line: a name for the whole, and the params files of its studies."""
    name, *params = arguments
    studies = [load_study(file) for file in params]
    write_csv(across(studies), Paths(name).tables)
    print(Paths(name).tables / "claims.csv")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except StudyError as error:
        sys.exit(f"error: {error}")
