import numpy as np
import pandas as pd
import pytest

from ecgstudy import files
from ecgstudy.datasets import prepare as datasets
from ecgstudy.datasets.prepare import DATASETS, find_folder, prepare
from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords
from ecgstudy.study import DatasetOptions


def options(**options):
    return DatasetOptions(headline_epsilon_mv=0.1, options=options)


def mine(*, scale: float = 1.0) -> EcgRecords:
    splits = ["train", "validation", "test"]
    table = pd.DataFrame(
        {"record": ["a", "b", "c"], "patient": ["a", "b", "c"], "split": splits}
    )
    signals = np.random.default_rng(0).normal(size=(3, 1, 10)).astype(
        np.float32
    ) * np.float32(scale)
    labels = np.zeros(3, np.int64)
    return EcgRecords(
        "mine",
        signals,
        100.0,
        ("I",),
        labels,
        ("only",),
        table.assign(attacked=True),
        {},
    )


@pytest.fixture
def no_downloads(monkeypatch):
    monkeypatch.delenv("ECGSTUDY_DATA", raising=False)
    monkeypatch.setattr(datasets, "fetch_dataset", lambda name, folder: folder)


def test_the_three_data_sets_are_known():
    assert {"builtin", "mitdb", "ptbxl"} <= set(DATASETS)


def test_a_data_set_of_ones_own_is_registered_in_a_line(monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", mine)
    plain, scaled = (
        prepare("mine", options(), "unused"),
        prepare("mine", options(scale=2), "unused"),
    )
    np.testing.assert_allclose(scaled.signals, 2 * plain.signals)


def test_what_a_loader_returns_is_checked(monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", mine)
    with pytest.raises(StudyError, match="mine: record 'a', lead 'I' is flat"):
        prepare("mine", options(scale=0), "unused")


def test_unknown_names_are_answered_with_the_known_ones(monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", mine)
    with pytest.raises(
        StudyError, match="unknown data set 'mitbd'; known: builtin, mitdb, ptbxl, mine"
    ):
        prepare("mitbd", options(), "unused")
    with pytest.raises(
        StudyError, match=r"datasets\.mine\.options\.gain: .*known options: scale"
    ):
        prepare("mine", options(gain=2), "unused")
    with pytest.raises(StudyError, match=r"datasets\.mine\.options\.scale: .*'much'"):
        prepare("mine", options(scale="much"), "unused")


def test_data_root_may_be_the_folder_or_the_one_above(tmp_path, no_downloads):
    (tmp_path / "mitdb").mkdir()
    for root in (tmp_path, tmp_path / "mitdb"):
        assert find_folder("mitdb", str(root), "cache") == tmp_path / "mitdb"
    with pytest.raises(
        StudyError, match=r"datasets\.mitdb\.data_root: .*absent is no folder"
    ):
        find_folder("mitdb", str(tmp_path / "absent"), "cache")


def test_data_root_goes_before_the_environment_and_that_before_a_download(
    tmp_path, no_downloads, monkeypatch
):
    for place in ("root", "shared"):
        (tmp_path / place / "mitdb").mkdir(parents=True)
    monkeypatch.setenv("ECGSTUDY_DATA", str(tmp_path / "shared"))
    assert (
        find_folder("mitdb", str(tmp_path / "root"), "cache")
        == tmp_path / "root" / "mitdb"
    )
    assert find_folder("mitdb", None, "cache") == tmp_path / "shared" / "mitdb"
    assert (
        find_folder("ptbxl", None, tmp_path / "cache") == tmp_path / "cache" / "ptbxl"
    )


def test_a_data_set_without_an_address_needs_data_root(no_downloads, tmp_path):
    with pytest.raises(StudyError, match=r"datasets\.mine: set data_root"):
        find_folder("mine", None, tmp_path)


def test_a_relative_folder_means_the_checkout_where_nothing_is_here(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    (tmp_path / "ward/mine").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert find_folder("mine", "ward", "cache") == tmp_path / "ward/mine"
