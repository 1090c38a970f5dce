"""Released weights: found or fetched, checked by SHA-256, read without running code."""

import re
from pathlib import Path

import requests
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ecgstudy.datasets.download import fetch_file
from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT, lock, lock_file, sha256

HOSTS = ("https://zenodo.org/",)
"""Addresses that weights are fetched from; others, such as Hugging Face, redirect."""
CACHE = ROOT / "outputs" / "downloads" / "weights"
NESTS = ("state_dict", "model_state_dict", "model")
"""Where checkpoints keep their weights, if not at the top."""


def read_weights(
    weights: str, digest: str | None, cache: Path = CACHE
) -> dict[str, Tensor]:
    """Tensors of a released file by name.

    Parameters
    ----------
    weights
        Path (a relative one starts at the checkout) or ``https`` address on one of
        `HOSTS`.
    digest
        SHA-256 of the file.
    cache
        Where what was fetched is kept.

    Raises
    ------
    StudyError
        When the file is not there, cannot be fetched, has another checksum or holds
        more than tensors.
    """
    file = _place(weights, digest, cache)
    if "://" in weights:
        _fetch(weights, digest, file)
    _check_file(file, digest)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise StudyError(f"{file}: not a safetensors file ({error})") from error
    except Exception as error:  # damaged pickles raise whatever their bytes lead to
        raise StudyError(
            f"{file}: not read: it is damaged, or holds more than tensors, which could "
            f"run code ({type(error).__name__})"
        ) from error
    for nest in NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {str(name): t for name, t in named if isinstance(t, Tensor)}
    if not tensors:
        raise StudyError(f"{file}: holds no weights by name, nor does {NESTS} in it")
    return tensors


def check_weights(weights: str, digest: str | None, cache: Path = CACHE) -> None:
    """Refuse now what `read_weights` would refuse, without fetching or reading.

    Parameters
    ----------
    weights, digest, cache
        As of `read_weights`.

    Raises
    ------
    StudyError
        When the file is not there or has another checksum, or nothing is fetched from
        the address.
    """
    file = _place(weights, digest, cache)
    if "://" not in weights or file.exists():
        _check_file(file, digest)


def _place(weights: str, digest: str | None, cache: Path) -> Path:
    """Where the file is or will be."""
    if "://" not in weights:
        return ROOT / Path(weights).expanduser()
    if not weights.startswith(HOSTS):
        raise StudyError(
            f"encoder.weights: nothing is fetched from {weights}, only from "
            f"{', '.join(HOSTS)}; download the file yourself and give its path"
        )
    if not re.fullmatch("[0-9a-f]{64}", digest or ""):
        raise StudyError(
            f"encoder.sha256: {digest!r} is no SHA-256 of {weights}, and nothing is "
            "fetched without one; give the checksum that its authors publish"
        )
    return cache / digest / weights.split("?")[0].rsplit("/", 1)[1]


def _check_file(file: Path, digest: str | None) -> None:
    if not file.is_file():
        raise StudyError(
            f"encoder.weights: there is no file {file}; released weights are not part "
            "of this repository: docs/released_encoders.md says where they are"
        )
    found = sha256(file)
    if found != digest:
        raise StudyError(
            f"{file}: has the SHA-256 {found}, not {digest!r}; if the file is the one "
            "you mean, set encoder.sha256 to its checksum"
        )


def _fetch(url: str, digest: str, file: Path) -> None:
    with lock_file(file.parent / ".lock") as held, requests.Session() as session:
        lock(held)  # other jobs may be fetching the same: one does, they wait for it
        problem = fetch_file(session, url, file, digest)
    if problem:
        raise StudyError(
            f"encoder.weights: {url} {problem}; without network download it elsewhere "
            "and give its path"
        )
