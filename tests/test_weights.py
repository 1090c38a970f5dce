"""Released weights: what is read, and what is refused."""

import hashlib
import os

import pytest
import torch
from networks import noise
from safetensors.torch import save_file
from test_download import site  # noqa: F401 (a fixture)
from torch import nn

from ecgstudy.errors import StudyError
from ecgstudy.foundation import weights as module
from ecgstudy.foundation.weights import fit_weights, released_weights

STATE = {"a.weight": noise(3, 4), "a.bias": noise(3)}


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def pickled(tmp_path):
    """A checkpoint as PyTorch Lightning writes it: weights beside a step and an optimiser."""
    file = tmp_path / "net.ckpt"
    torch.save({"state_dict": STATE, "epoch": 3, "optimizer_states": [{"lr": 0.1}]}, file)
    return file


def test_a_pickled_checkpoint_is_read_once_and_kept_as_safetensors(pickled, tmp_path):
    checksum, cache = digest(pickled), tmp_path / "cache"
    found = released_weights(str(pickled), checksum, cache)
    assert {name: t.tolist() for name, t in found.items()} == {n: t.tolist() for n, t in STATE.items()}
    assert [file.name for file in cache.iterdir()] == [f"{checksum}.safetensors"]
    pickled.unlink()
    again = released_weights(str(pickled), checksum, cache)
    assert again.keys() == STATE.keys()
    assert torch.equal(again["a.weight"], STATE["a.weight"])


def test_safetensors_are_read_as_they_are(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file(STATE, file)
    assert torch.equal(
        released_weights(str(file), digest(file).upper(), tmp_path / "cache")["a.bias"], STATE["a.bias"]
    )
    assert not (tmp_path / "cache").exists()


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path):
    marker, file = tmp_path / "ran", tmp_path / "hostile.pt"
    torch.save({"state_dict": STATE, "extra": Hostile(str(marker))}, file)
    with pytest.raises(
        StudyError, match=r"hostile\.pt: not read: .* more than tensors, which could run code"
    ):
        released_weights(str(file), digest(file), tmp_path / "cache")
    assert not marker.exists()
    assert not (tmp_path / "cache").exists()
    torch.load(file, weights_only=False)  # it was hostile
    assert marker.exists()


def test_damaged_and_empty_files_are_named(tmp_path):
    file = tmp_path / "net.pt"
    file.write_bytes(b"<html>please log in</html>")
    with pytest.raises(StudyError, match=r"net\.pt: not read: it is damaged"):
        released_weights(str(file), digest(file), tmp_path)
    torch.save([1, 2], file)
    with pytest.raises(StudyError, match=r"net\.pt: holds no weights by name"):
        released_weights(str(file), digest(file), tmp_path)
    plain = tmp_path / "net.safetensors"
    plain.write_bytes(b"short")
    with pytest.raises(StudyError, match=r"net\.safetensors: not a readable safetensors file"):
        released_weights(str(plain), digest(plain), tmp_path)


@pytest.mark.parametrize("wrong", ["0" * 64, "", None, "../../evil"])
def test_a_wrong_or_missing_checksum_is_an_error_that_gives_the_true_one(pickled, tmp_path, wrong):
    with pytest.raises(StudyError, match=rf"net\.ckpt: has the SHA-256 {digest(pickled)}, not"):
        released_weights(str(pickled), wrong, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_missing_weights_are_said_to_be_outside_the_repository(tmp_path):
    with pytest.raises(StudyError, match=r"no file .*gone\.pt; released weights are not part of this repos"):
        released_weights(str(tmp_path / "gone.pt"), "0" * 64, tmp_path)


@pytest.mark.parametrize(
    "url", ["http://zenodo.org/x.pt", "https://zenodo.org.evil.example/x.pt", "https://huggingface.co/x.pt"]
)
def test_other_hosts_and_bare_http_are_refused(url, tmp_path):
    with pytest.raises(StudyError, match=r"nothing is fetched from .*, only from https://zenodo"):
        released_weights(url, "0" * 64, tmp_path)


def test_nothing_is_fetched_without_a_checksum(tmp_path):
    with pytest.raises(StudyError, match=r"encoder\.sha256: '' is no SHA-256 of https://zenodo"):
        released_weights("https://zenodo.org/records/1/files/x.pt", None, tmp_path)


def test_weights_are_fetched_checked_and_kept(site, pickled, tmp_path, monkeypatch):  # noqa: F811
    site.files["net.ckpt"] = pickled.read_bytes()
    monkeypatch.setattr(module, "HOSTS", (site.source.base,))
    cache, url = tmp_path / "cache", f"{site.source.base}net.ckpt"
    assert released_weights(url, digest(pickled), cache).keys() == STATE.keys()
    site.log.clear()
    assert released_weights(url, digest(pickled), cache).keys() == STATE.keys()
    assert site.log == []
    with pytest.raises(StudyError, match=r"net\.ckpt has a wrong checksum; without network download"):
        released_weights(url, "0" * 64, cache)
    monkeypatch.setattr(module, "MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(StudyError, match=r"could not be fetched \(over 100 bytes\)"):
        released_weights(url, "1" * 64, cache)


def test_weights_that_do_not_fit_are_named():
    net = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(2, 2)})
    with pytest.raises(StudyError, match=r"x\.pt: 2 weights .*\(b\.bias is missing; b\.weight is missing\)"):
        fit_weights(net, STATE, lambda name: name, "x.pt")
    del net["b"]
    fit_weights(net, STATE, lambda name: name, "x.pt")
    assert torch.equal(net["a"].bias, STATE["a.bias"])
    with pytest.raises(StudyError, match=r"a\.weight has the shape \(2, 4\), not \(3, 4\)"):
        fit_weights(net, STATE | {"a.weight": noise(2, 4)}, lambda name: name, "x.pt")
    with pytest.raises(StudyError, match=r"1 weights .*\(c is unknown\)"):
        fit_weights(net, STATE | {"c": noise(1)}, lambda name: name, "x.pt")
