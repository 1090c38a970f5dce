"""Data sets by name: find or download, read, check.

A data set of one's own is one line, ``DATASETS["mine"] = load``, where `load` returns `EcgRecords`. Its
keyword arguments are what ``options`` in the params file may set, checked against their annotations; if
one is called `root`, it gets the data set's folder.
"""

import inspect
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ConfigDict, ValidationError, validate_call

from ecgstudy.datasets import builtin, mitdb, ptbxl
from ecgstudy.datasets.download import SOURCES, fetch_dataset
from ecgstudy.errors import StudyError
from ecgstudy.files import in_checkout
from ecgstudy.params import DatasetOptions
from ecgstudy.records import EcgRecords, check_records
from ecgstudy.registry import DATASETS
from ecgstudy.study import Study

DATASETS.update(builtin=builtin.load, mitdb=mitdb.load, ptbxl=ptbxl.load)


def get_loader(name: str) -> Callable[..., EcgRecords]:
    """The loader registered as `name`; an unknown one is a `StudyError` that lists those there are."""
    return DATASETS.find(name)


def prepare(name: str, options: DatasetOptions, cache: str | Path) -> EcgRecords:
    """Load the data set `name`, checked, with the leads and at the rate that `options` ask for.

    One that is not on disk is downloaded to ``cache/<name>``.

    Raises
    ------
    StudyError
        Naming the unknown data set or option, the file or the record.
    """
    from ecgstudy.datasets.resample import reduced  # loads scipy's signals

    load = get_loader(name)
    arguments = dict(options.options)
    if "root" in inspect.signature(load).parameters:
        arguments["root"] = find_folder(name, options.data_root, cache)
    try:
        checked = validate_call(load, config=ConfigDict(arbitrary_types_allowed=True))
        return reduced(check_records(checked(**arguments)), options.leads, options.fs)
    except ValidationError as error:
        known = [
            option for option in inspect.signature(load).parameters if option != "root"
        ]
        problem = error.errors()[0]
        option = ".".join(str(part) for part in problem["loc"])
        raise StudyError(
            f"datasets.{name}.options.{option}: {problem['msg']} (found {problem['input']!r}); "
            f"known options: {', '.join(known) or 'none'}"
        ) from error


def find_folder(name: str, data_root: str | None, cache: str | Path) -> Path:
    """Folder of a data set: `data_root`, else ``ECGSTUDY_DATA/<name>``, else downloaded to `cache`.

    `data_root` may be the data set's own folder or the one above it, and relative to the checkout.
    """
    if data_root is not None:
        root = in_checkout(Path(data_root).expanduser())
        if not root.is_dir():
            raise StudyError(
                f"datasets.{name}.data_root: {root} is no folder; it should be that of {name}, or hold it"
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
    return any(get_loader(name) is builtin.load for name in study.datasets)
