"""Released weights: what is read, and what is refused."""

import hashlib
import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import noise
from safetensors.torch import save_file
from test_download import site  # noqa: F401 (a fixture)

from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT, write_json
from ecgstudy.models.released import weights as module
from ecgstudy.models.released.weights import (
    check_weights,
    read_weights,
)
from ecgstudy.running import engine, workflow
from ecgstudy.running.cache import steps
from ecgstudy.study import load_study

STATE = {"a.weight": noise(3, 4), "a.bias": noise(3)}


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def pickled(tmp_path):
    """A checkpoint as PyTorch Lightning writes it: weights beside a step and an
    optimiser."""
    file = tmp_path / "net.ckpt"
    torch.save(
        {"state_dict": STATE, "epoch": 3, "optimizer_states": [{"lr": 0.1}]}, file
    )
    return file


@pytest.mark.parametrize("kind", ["pickled", "safetensors"])
def test_a_file_is_read_as_it_is(kind, pickled, tmp_path):
    file = pickled
    if kind == "safetensors":
        file = tmp_path / "net.safetensors"
        save_file(STATE, file)
    found = read_weights(str(file), digest(file), tmp_path / "cache")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
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
        StudyError,
        match=r"hostile\.pt: not read: .* more than tensors, which could run code",
    ):
        read_weights(str(file), digest(file), tmp_path / "cache")
    assert not marker.exists()
    assert not (tmp_path / "cache").exists()
    torch.load(file, weights_only=False)  # it was hostile
    assert marker.exists()


@pytest.mark.parametrize(
    ("rename", "added", "readable"),
    [
        (lambda name: name, "../../evil", False),
        (
            lambda name: name,
            "net/../../../evil",
            True,
        ),  # not one that weights are looked for in
        (lambda name: f"../{name}", None, False),
        (lambda name: name.replace("data/0", "data/../../../evil"), None, False),
    ],
)
def test_an_archive_with_paths_out_of_it_writes_nothing_outside(
    tmp_path, rename, added, readable
):
    plain, file = tmp_path / "net.pt", tmp_path / "a" / "b" / "c" / "evil.pt"
    torch.save(STATE, plain)
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(file, "w") as new:
        for member in old.namelist():
            new.writestr(rename(member), old.read(member))
        if added:
            new.writestr(added, b"evil")
    assert any(".." in name for name in zipfile.ZipFile(file).namelist())
    before, cache = set(tmp_path.rglob("*")), tmp_path / "a" / "cache"
    if readable:
        assert torch.equal(
            read_weights(str(file), digest(file), cache)["a.bias"], STATE["a.bias"]
        )
    else:
        with pytest.raises(StudyError, match=r"evil\.pt: not read: it is damaged"):
            read_weights(str(file), digest(file), cache)
    assert set(tmp_path.rglob("*")) == before


def test_damaged_and_empty_files_are_named(tmp_path):
    file = tmp_path / "net.pt"
    file.write_bytes(b"<html>please log in</html>")
    with pytest.raises(StudyError, match=r"net\.pt: not read: it is damaged"):
        read_weights(str(file), digest(file), tmp_path)
    torch.save([1, 2], file)
    with pytest.raises(StudyError, match=r"net\.pt: holds no weights by name"):
        read_weights(str(file), digest(file), tmp_path)
    plain = tmp_path / "net.safetensors"
    plain.write_bytes(b"short")
    with pytest.raises(StudyError, match=r"net\.safetensors: not a safetensors file"):
        read_weights(str(plain), digest(plain), tmp_path)


@pytest.mark.parametrize("wrong", ["0" * 64, "", None, "../../evil"])
def test_a_wrong_or_missing_checksum_is_an_error_that_gives_the_true_one(
    pickled, tmp_path, wrong
):
    with pytest.raises(
        StudyError, match=rf"net\.ckpt: has the SHA-256 {digest(pickled)}, not"
    ):
        read_weights(str(pickled), wrong, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_missing_weights_are_said_to_be_outside_the_repository(tmp_path):
    with pytest.raises(
        StudyError,
        match=r"no file .*gone\.pt; released weights are not part of this repos",
    ):
        read_weights(str(tmp_path / "gone.pt"), "0" * 64, tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "http://zenodo.org/x.pt",
        "https://zenodo.org.evil.example/x.pt",
        "https://huggingface.co/x.pt",
    ],
)
def test_other_hosts_and_bare_http_are_refused(url, tmp_path):
    with pytest.raises(
        StudyError, match=r"nothing is fetched from .*, only from https://zenodo"
    ):
        read_weights(url, "0" * 64, tmp_path)


def test_nothing_is_fetched_without_a_checksum(tmp_path):
    with pytest.raises(
        StudyError, match=r"encoder\.sha256: None is no SHA-256 of https://zenodo"
    ):
        read_weights("https://zenodo.org/records/1/files/x.pt", None, tmp_path)


def test_weights_are_fetched_checked_and_kept(site, pickled, tmp_path, monkeypatch):  # noqa: F811
    site.files["net.ckpt"] = pickled.read_bytes()
    monkeypatch.setattr(module, "HOSTS", (site.base,))
    cache, url = tmp_path / "cache", f"{site.base}net.ckpt"
    assert read_weights(url, digest(pickled), cache).keys() == STATE.keys()
    site.log.clear()
    assert read_weights(url, digest(pickled), cache).keys() == STATE.keys()
    assert site.log == []
    with pytest.raises(
        StudyError, match=r"net\.ckpt has a wrong checksum; without network download"
    ):
        read_weights(url, "0" * 64, cache)


def test_of_jobs_that_need_the_same_weights_one_fetches_them_and_the_others_wait(
    site,  # noqa: F811
    pickled,
    tmp_path,
    monkeypatch,
):
    site.files["net.ckpt"] = pickled.read_bytes()
    monkeypatch.setattr(module, "HOSTS", (site.base,))
    ask = (f"{site.base}net.ckpt", digest(pickled), tmp_path / "cache")
    # Jobs are processes; locks keep threads apart as well.
    with ThreadPoolExecutor(4) as jobs:
        found = list(jobs.map(lambda _: read_weights(*ask), range(4)))
    assert all(torch.equal(each["a.bias"], STATE["a.bias"]) for each in found)
    assert site.log == ["net.ckpt"]


def test_weights_are_checked_without_being_fetched_or_read(pickled, tmp_path):
    cache, checksum = tmp_path / "cache", digest(pickled)
    address = "https://zenodo.org/records/1/files/x.pt"
    check_weights(str(pickled), checksum, cache)
    check_weights(address, "0" * 64, cache)  # the first job that needs it fetches it
    assert not cache.exists()
    for weights, wrong, why in (
        (str(pickled), "0" * 64, rf"net\.ckpt: has the SHA-256 {checksum}, not '0000"),
        (str(pickled), None, rf"net\.ckpt: has the SHA-256 {checksum}, not None"),
        (str(tmp_path / "gone.pt"), checksum, r"no file .*gone\.pt"),
        (address, "abc", r"encoder\.sha256: 'abc' is no SHA-256 of https://zenodo"),
        ("https://example.org/x.pt", checksum, "nothing is fetched from https://exam"),
    ):
        with pytest.raises(StudyError, match=why):
            check_weights(weights, wrong, cache)


def test_a_study_without_its_weights_is_stopped_before_any_job_but_not_its_figures(
    monkeypatch, tmp_path
):
    text = (ROOT / "params/foundation.yaml").read_text()
    path, gone, made = tmp_path / "foundation.yaml", tmp_path / "gone.ckpt", []
    path.write_text(re.sub("weights: weights/.*", f"weights: {gone}", text))
    monkeypatch.setattr(engine, "make", lambda study, todo, **where: made.append(todo))
    study = load_study(path)
    with pytest.raises(
        StudyError, match=r"encoder\.weights: there is no file .*gone\.ckpt"
    ):
        workflow.run_study(study)
    assert made == []
    for step in steps(study).values():
        write_json(step.marker, {"key": step.key})
    workflow.run_figures(study)
    assert [step.name for step in made[0]] == ["figures"]
