"""Several studies as one: the primary family adjusted over all of them, and the claims judged on all.

``python -m ecgstudy.running.pages.across pilot params/mitdb.yaml params/ptbxl.yaml`` reads the tables of both and
writes ``outputs/pilot``: tables ``contrasts.csv`` and ``claims.csv``, forest plot, ``report/index.html``.
"""

import sys
from pathlib import Path

import pandas as pd

from ecgstudy.analysis.claims import judge
from ecgstudy.analysis.tables import as_family, write_csv
from ecgstudy.datasets.prepare import is_synthetic
from ecgstudy.errors import StudyError, command
from ecgstudy.plots import alt_texts
from ecgstudy.plots.comparisons import contrast_forest
from ecgstudy.plots.style import is_true, save_figure
from ecgstudy.running.pages.index import write_joint_index
from ecgstudy.study import Paths, Study, load_study

PLACE = ["dataset", "protocol"]
CONTEXT = (
    "robust_auroc",
    "masking_checks",
    "per_class",
    "headline_check",
    "pretraining",
)
"""Tables that the report's caveats look at, where a study has them."""


def across(studies: list[Study], root: Path = Paths.root) -> dict[str, pd.DataFrame]:
    """``contrasts`` with the primary family of all studies as one, and ``claims`` judged on them.

    Their tables are there already. A data set and protocol that two studies have counts in the first alone:
    no run is counted twice. `root` is the folder of all outputs.

    Raises
    ------
    StudyError
        When a study has no tables yet.
    """
    contrasts, cost = (_joined(studies, name, root) for name in ("contrasts", "cost"))
    confidence = studies[0].statistics.confidence
    contrasts = as_family(contrasts, confidence)
    return {"contrasts": contrasts, "claims": judge(contrasts, cost, confidence)}


def _joined(
    studies: list[Study], name: str, root: Path, needed: bool = True
) -> pd.DataFrame:
    parts, seen = [], set()
    for study in studies:
        try:
            table = pd.read_csv(Paths(study.study, root).tables / f"{name}.csv")
        except FileNotFoundError as error:
            if not needed:
                continue
            raise StudyError(
                f"{error.filename} is missing; run `make study STUDY={study.study}` first"
            ) from None
        places = pd.MultiIndex.from_frame(table[[key for key in PLACE if key in table]])
        parts.append(table[~places.isin(list(seen))].assign(study=study.study))
        seen |= set(places)
    columns = dict.fromkeys(column for part in parts for column in part)
    known = [part.dropna(axis=1, how="all") for part in parts if len(part)] or [
        pd.DataFrame()
    ]
    return pd.concat(known, ignore_index=True).reindex(columns=list(columns))


def write_report(name: str, studies: list[Study], root: Path = Paths.root) -> Path:
    """Write tables, forest plot and index page of `studies` together; returns the page."""
    paths, synthetic = Paths(name, root), any(map(is_synthetic, studies))
    tables = across(studies, root)
    write_csv(tables, paths.tables)
    main = tables["contrasts"][is_true(tables["contrasts"]["headline"])]
    look = {"values": main, "alt": alt_texts.forest(main), "synthetic": synthetic}
    save_figure(contrast_forest(main), paths.figures, "contrasts", **look)
    beside = {table: _joined(studies, table, root, needed=False) for table in CONTEXT}
    write_joint_index(name, paths, studies, tables | beside, synthetic)
    return paths.report / "index.html"


@command
def main(arguments: list[str]) -> None:
    """Command line: a name for the whole, and the params files of its studies."""
    name, *params = arguments
    print(f"Report: {write_report(name, [load_study(file) for file in params])}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
