"""Released weights from strangers: found or fetched, checked by SHA-256, read without running any code."""

import re
from collections.abc import Callable
from pathlib import Path

import requests
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecgstudy.datasets.download import fetch_file
from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT, lock, lock_file, sha256, whole_file

HOSTS = ("https://zenodo.org/",)
"""Addresses that weights are fetched from; Hugging Face sends on to other hosts, so fetch those by hand."""
CACHE = ROOT / "outputs" / "downloads" / "weights"
NESTS = ("state_dict", "model_state_dict", "model")
"""Where checkpoints keep their weights, if not at the top."""


def released_weights(
    weights: str, digest: str | None, cache: Path = CACHE
) -> dict[str, Tensor]:
    """Tensors of a released file by name.

    A pickled checkpoint is read once, with ``weights_only=True``, and kept as safetensors in `cache`.

    Parameters
    ----------
    weights
        Path (a relative one starts at the checkout) or ``https`` address of one of `HOSTS`.
    digest
        SHA-256 of that file.

    Raises
    ------
    StudyError
        When the file is not there, cannot be fetched, has another checksum or holds more than tensors.
    """
    digest = (digest or "").lower()
    kept = cache / f"{digest}.safetensors"
    if _is_sha256(digest) and kept.exists():
        return _plain(kept)
    file = _fetched(weights, digest, cache) if "://" in weights else _found(weights)
    _compare(file, digest)
    if file.suffix == ".safetensors":
        return _plain(file)
    tensors = _unpickled(file)
    with whole_file(kept) as partial:
        save_file(tensors, partial)
    return tensors


def check_weights(weights: str, digest: str | None, cache: Path = CACHE) -> None:
    """Refuse now what `released_weights` would refuse, without fetching or reading tensors.

    Raises
    ------
    StudyError
        When the file is not there or has another checksum, or nothing is fetched from the address.
    """
    digest = (digest or "").lower()
    if _is_sha256(digest) and (cache / f"{digest}.safetensors").exists():
        return
    if "://" in weights:
        _check_address(weights, digest)
    else:
        _compare(_found(weights), digest)


def _is_sha256(digest: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", digest) is not None


def _compare(file: Path, digest: str) -> None:
    if (found := sha256(file)) != digest:
        said = f"has the SHA-256 {found}, not {digest!r}"
        raise StudyError(
            f"{file}: {said}; if the file is the one you mean, set encoder.sha256 to its checksum"
        )


def _found(weights: str) -> Path:
    file = ROOT / Path(weights).expanduser()
    if not file.is_file():
        raise StudyError(
            f"encoder.weights: there is no file {file}; released weights are not part of this repository:"
            " download them (docs/released_encoders.md says where) and give their path"
        )
    return file


def _check_address(url: str, digest: str) -> None:
    if not url.startswith(HOSTS):
        raise StudyError(
            f"encoder.weights: nothing is fetched from {url}, only from {', '.join(HOSTS)};"
            " download the file yourself and give its path"
        )
    if not _is_sha256(digest):
        raise StudyError(
            f"encoder.sha256: {digest!r} is no SHA-256 of {url}, and nothing is fetched without one;"
            " download the file yourself, compare it with the checksum its authors publish, and run sha256sum"
        )


def _fetched(url: str, digest: str, cache: Path) -> Path:
    _check_address(url, digest)
    file = cache / digest / url.split("?")[0].rsplit("/", 1)[1]
    with lock_file(file.parent / ".lock") as held, requests.Session() as session:
        lock(held)  # other jobs may be fetching the same: one does, they wait for it
        problem = fetch_file(session, url, file, digest)
    if problem:
        raise StudyError(
            f"encoder.weights: {url} {problem}; without network download it elsewhere and give its path"
        )
    return file


def _plain(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise StudyError(
            f"{file}: not a readable safetensors file ({error}); delete it"
        ) from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever their bytes lead to
        reason = (
            str(error).split(". ")[0].splitlines()[0]
            if str(error)
            else type(error).__name__
        )
        raise StudyError(
            f"{file}: not read: it is damaged, or holds more than tensors, which could run code ({reason})"
        ) from error
    for nest in NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    tensors = content.items() if isinstance(content, dict) else ()
    kept = {
        str(name): t.clone().contiguous()
        for name, t in tensors
        if isinstance(t, Tensor)
    }
    if not kept:
        raise StudyError(
            f"{file}: holds no weights by name, neither at its top nor under {', '.join(NESTS)}"
        )
    return kept


def fit_weights(
    module: nn.Module, released: dict[str, Tensor], rename: Callable, where: str
) -> None:
    """Load `released` into `module`, every name and shape; `rename` says None of names without use.

    Raises
    ------
    StudyError
        Naming the weights that are missing, unknown or of another shape.
    """
    own = module.state_dict()
    given = {
        name: tensor
        for old, tensor in released.items()
        if (name := rename(old)) is not None
    }
    problems = [f"{name} is missing" for name in own.keys() - given.keys()]
    problems += [f"{name} is unknown" for name in given.keys() - own.keys()]
    problems += [
        f"{name} has the shape {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if own[name].shape != given[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3])
        raise StudyError(
            f"{where}: {len(problems)} weights do not fit the encoder ({shown}); choose its options (size,"
            " leads) as those of the file"
        )
    module.load_state_dict(given)
