"""What a stamp knows of data that a plugin reads: no checksums of ours pin them."""

import glob
import inspect
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from ecgstudy.datasets.download import SOURCES
from ecgstudy.datasets.prepare import find_folder
from ecgstudy.errors import StudyError
from ecgstudy.files import read_json, stamp
from ecgstudy.registry import DATASETS
from ecgstudy.study import ROOT, Paths, Study

DOWNLOADS = ROOT / "outputs" / "downloads"


def own_files(study: Study, dataset: str, paths: Paths) -> dict[str, str | None]:
    """``data_root`` as given, and a stamp of the ``files`` there; empty for a loader that takes no `root`.

    Where there is no such folder the stamp is that of last time, so that a clone of results, which has no
    data, makes nothing again.
    """
    root = study.datasets[dataset].data_root
    fetched = (
        root is None and dataset in SOURCES
    )  # has checksums, and must not be fetched to find a stamp
    if fetched or "root" not in inspect.signature(DATASETS.find(dataset)).parameters:
        return {}
    try:
        files = files_stamp(find_folder(dataset, root, DOWNLOADS))
    except StudyError:  # if the data are needed after all, preparation says so
        files = _files_of_last_time(dataset, paths)
    return {"data_root": root, "files": files}


@cache
def files_stamp(folder: Path) -> str:
    """Short hash of the names, sizes and times (whole seconds) of the files in and below `folder`.

    Hidden files and folders do not count, and links to folders are not followed. Looks once at each folder,
    until ``files_stamp.cache_clear()``: a study asks for each of its steps.
    """
    found = []
    for where, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for file in (Path(where, name) for name in names if not name.startswith(".")):
            with suppress(FileNotFoundError):  # a link to nowhere
                seen = file.stat()
                found.append(
                    (str(file.relative_to(folder)), seen.st_size, int(seen.st_mtime))
                )
    return stamp(sorted(found))


def _files_of_last_time(dataset: str, paths: Paths) -> str | None:
    """From what was asked of the preparation, which is in no clone, or of a pretraining."""
    runs = sorted(paths.home.glob(f"runs/{glob.escape(dataset)}/*/*/run.json"))
    asked = (
        read_json(paths.data(dataset) / "run.json"),
        *(read_json(run).get("data", {}) for run in runs),
    )
    return next((content["files"] for content in asked if content.get("files")), None)
