"""Data sets by name: find or download, read, check.

A data set of your own is a function decorated with ``@DATASETS.register("mine")``
that returns `EcgRecords`. Its keyword arguments are what ``options`` in the params
file may set, checked against their annotations; if one is called `root`, it gets the
data set's folder.
"""

import inspect
import os
from pathlib import Path

from pydantic import ConfigDict, ValidationError, validate_call

from ecgstudy.datasets import builtin, mitdb, ptbxl  # noqa: F401 (they register)
from ecgstudy.datasets.download import SOURCES, fetch_dataset
from ecgstudy.errors import StudyError
from ecgstudy.files import in_checkout
from ecgstudy.params import DatasetOptions
from ecgstudy.records import EcgRecords, check_records
from ecgstudy.registry import DATASETS
from ecgstudy.study import Study


def prepare(name: str, options: DatasetOptions, cache: str | Path) -> EcgRecords:
    """Load a data set, checked, with the leads and at the rate that `options` ask for.

    Parameters
    ----------
    name
        One of `DATASETS`.
    options
        What the params file says of it.
    cache
        A data set that is not on disk is downloaded to ``cache/<name>``.

    Raises
    ------
    StudyError
        Naming the unknown data set or option, the file or the record.
    """
    from ecgstudy.datasets.resample import adapt_records  # imports scipy.signal

    load = DATASETS.find(name)
    known = [*inspect.signature(load).parameters]
    arguments = dict(options.options)
    if "root" in known:
        arguments["root"] = find_folder(name, options.data_root, cache)
        known.remove("root")
    checked = validate_call(load, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        records = checked(**arguments)
    except ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(map(str, problem["loc"]))
        raise StudyError(
            f"datasets.{name}.options.{option}: {problem['msg']} (found "
            f"{problem['input']!r}); known options: {', '.join(known) or 'none'}"
        ) from error
    return adapt_records(check_records(records), options.leads, options.fs)


def find_folder(name: str, data_root: str | None, cache: str | Path) -> Path:
    """Folder of a data set, downloaded if it is nowhere.

    Parameters
    ----------
    name
        One of `DATASETS`.
    data_root
        The data set's own folder or the one above it, absolute or in the checkout.
        None: ``ECGSTUDY_DATA/<name>``, or else the download.
    cache
        Downloads go to ``cache/<name>``.

    Raises
    ------
    StudyError
        When there is no such folder, or nowhere to download it from.
    """
    if data_root is not None:
        root = in_checkout(Path(data_root).expanduser())
        if not root.is_dir():
            raise StudyError(
                f"datasets.{name}.data_root: {root} is no folder; it should be that of"
                f" {name}, or hold it"
            )
        return root / name if (root / name).is_dir() else root
    shared = os.environ.get("ECGSTUDY_DATA")
    if shared and (Path(shared) / name).is_dir():
        return Path(shared) / name
    if name not in SOURCES:
        raise StudyError(
            f"datasets.{name}: set data_root, there is no address to download it from"
        )
    return fetch_dataset(name, Path(cache) / name)


def is_synthetic(study: Study) -> bool:
    """Whether any of the study's data are simulated."""
    return any(DATASETS.find(name) is builtin.load for name in study.datasets)
