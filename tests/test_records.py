import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ecgstudy.errors import StudyError
from ecgstudy.files import SUMS
from ecgstudy.records import EcgRecords, check_records, load_records, save_records

SPLITS = ["train", "train", "validation", "validation", "test", "test", "sensitivity"]


def tiny(**changes):
    """Seven records of two leads, classes A and B alternating, six patients."""
    n = len(SPLITS)
    table = pd.DataFrame(
        {
            "record": [f"r{i}" for i in range(n)],
            "patient": ["p0", "p1", "p2", "p3", "p4", "p5", "p0"],
            "split": SPLITS,
            "attacked": [split != "train" for split in SPLITS],
            "age": [50.0, np.nan, 60.0, 61.0, 62.0, 63.0, 50.0],
            "sex": ["female", None, "male", "male", "male", "female", "female"],
        }
    )
    signals = np.random.default_rng(0).normal(size=(n, 2, 20)).astype(np.float32)
    records = EcgRecords(
        "tiny",
        signals,
        100.0,
        ("I", "II"),
        np.arange(n) % 2,
        ("A", "B"),
        table,
        {"adc_mv": 0.001},
    )
    return dataclasses.replace(records, **changes)


class Trap:
    """Unpickled, it says so."""

    sprung = False

    @classmethod
    def spring(cls):
        cls.sprung = True

    def __reduce__(self):
        return self.spring, ()


def with_column(column, row, value):
    table = tiny().table
    table.loc[row, column] = value
    return tiny(table=table)


def with_sample(value, index):
    signals = tiny().signals
    signals[index] = value
    return tiny(signals=signals)


def test_fit_records_pass_unchanged():
    records = tiny()
    assert check_records(records) is records


BAD = {
    "sex as a letter": (
        lambda: with_column("sex", 3, "F"),
        "record 'r3' has sex 'F'; it must be female or male",
    ),
    "sex as a number": (
        lambda: tiny(table=tiny().table.assign(sex=1)),
        "record 'r0' has sex '1'; it must be",
    ),
    "age in days": (
        lambda: with_column("age", 2, 23725.0),
        "record 'r2' has age '23725.0'; it must be 0 to 130",
    ),
    "age in words": (
        lambda: tiny(table=tiny().table.assign(age="old")),
        "record 'r0' has age 'old'",
    ),
    "µV": (
        lambda: tiny(signals=1000 * tiny().signals),
        r"spans \d+\S* mV \(median\); ECGs span 0.05 to 20 mV",
    ),
    "V": (lambda: tiny(signals=tiny().signals / 1000), r"spans 0.00\d+ mV \(median\)"),
    "no rate": (lambda: tiny(fs=0.0), "sampling rate 0.0; it must be above 0 Hz"),
    "rate unknown": (lambda: tiny(fs=float("nan")), "sampling rate nan"),
    "one name twice": (
        lambda: tiny(leads=("I", "I")),
        "leads are I, I; each must have its own name",
    ),
    "float64 signals": (
        lambda: tiny(signals=tiny().signals.astype(float)),
        "float64 of shape",
    ),
    "no lead axis": (lambda: tiny(signals=tiny().signals[:, 0]), r"shape \(7, 20\)"),
    "lead names": (lambda: tiny(leads=("I",)), "2 leads in the signals, 1 lead names"),
    "row count": (
        lambda: tiny(labels=np.zeros(6, np.int64)),
        "7 signals, 6 labels and 7 table rows",
    ),
    "duplicate": (lambda: with_column("record", 3, "r1"), "record 'r1' occurs twice"),
    "NaN": (
        lambda: with_sample(np.nan, (5, 1, 3)),
        "record 'r5', lead 'II' has NaN or Inf",
    ),
    "Inf": (
        lambda: with_sample(np.inf, (5, 0, 3)),
        "record 'r5', lead 'I' has NaN or Inf",
    ),
    "flat lead": (lambda: with_sample(0.25, (4, 1)), "record 'r4', lead 'II' is flat"),
    "unknown split": (
        lambda: with_column("split", 0, "dev"),
        "record 'r0' has split 'dev'; it must be one of train",
    ),
    "empty split": (
        lambda: tiny().split("train", "test"),
        "the validation split has no records",
    ),
    "class absent": (
        lambda: with_column("split", 5, "sensitivity"),
        "class 'B' has no record in the test split",
    ),
    "shared patient": (
        lambda: with_column("patient", 4, "p1"),
        "patient 'p1' is in test and train",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_unfit_records_are_one_error_that_names_what_is_wrong(case):
    make, message = BAD[case]
    with pytest.raises(StudyError, match=message):
        check_records(make())


def test_a_sensitivity_record_may_be_of_a_training_patient():
    assert tiny().table["patient"].iloc[[0, 6]].nunique() == 1
    check_records(tiny())


def test_a_class_may_be_absent_from_validation_only():
    records = tiny(labels=np.array([0, 1, 0, 0, 0, 1, 0]))
    assert check_records(records) is records


def test_select_keeps_signals_labels_and_rows_together():
    records, rows = tiny(), np.array([1, 5])
    part = records.select(np.isin(np.arange(7), rows))
    np.testing.assert_array_equal(part.signals, records.signals[rows])
    np.testing.assert_array_equal(part.labels, records.labels[rows])
    assert part.table["record"].tolist() == ["r1", "r5"]
    assert part.table.index.tolist() == [0, 1]


def test_split_takes_one_or_several_splits_in_record_order():
    assert tiny().split("test", "sensitivity").table["record"].tolist() == [
        "r4",
        "r5",
        "r6",
    ]


def test_single_labels_become_multi_hot():
    assert tiny().multi_hot().tolist() == [
        [1, 0] if i % 2 == 0 else [0, 1] for i in range(7)
    ]
    several = np.ones((7, 2), np.float32)
    assert tiny(labels=several).multilabel
    assert tiny(labels=several).multi_hot() is several


def test_saved_records_come_back_equal(tmp_path):
    records = tiny()
    save_records(records, tmp_path)
    again = load_records(tmp_path)
    np.testing.assert_array_equal(again.signals, records.signals)
    np.testing.assert_array_equal(again.labels, records.labels)
    pd.testing.assert_frame_equal(again.table, records.table)
    fields = ("name", "fs", "leads", "classes", "card")
    assert [getattr(again, field) for field in fields] == [
        getattr(records, field) for field in fields
    ]
    assert not again.signals.flags.writeable


@pytest.mark.parametrize(
    "name", ["signals.npy", "labels.npy", "table.parquet", "card.json"]
)
@pytest.mark.parametrize("size", [None, 40])
def test_missing_or_damaged_files_are_one_error_that_names_them(tmp_path, name, size):
    save_records(tiny(), tmp_path / "data")
    path = tmp_path / "data" / name
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(content[:size])
    says = "data holds no prepared records" if size is None else f"{name}: damaged"
    with pytest.raises(StudyError, match=says):
        load_records(tmp_path / "data")


@pytest.mark.parametrize("name", ["signals.npy", "labels.npy"])
def test_pickled_arrays_are_refused_and_do_not_run(tmp_path, name):
    save_records(tiny(), tmp_path)
    (tmp_path / SUMS).unlink()
    np.save(tmp_path / name, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(StudyError, match="holds no prepared records"):
        load_records(tmp_path)
    assert not Trap.sprung


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("name", ["signals.npy", "table.parquet", "card.json"])
def test_a_full_disk_leaves_the_earlier_records(tmp_path, name):
    save_records(tiny(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    partial = tmp_path / f".{name}.{os.getpid()}.part"
    partial.symlink_to("/dev/full")
    with pytest.raises(StudyError, match=rf"{name} cannot be written .*space"):
        save_records(tiny(signals=tiny().signals + 1), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_all_files_are_written_or_none(tmp_path):
    save_records(tiny(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_records(
            tiny(card={"age": float("nan")}, signals=tiny().signals + 1), tmp_path
        )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_checksums_go_first_and_come_last(tmp_path, monkeypatch):
    """So that no kill leaves them beside arrays that are not their own."""
    save_records(tiny(), tmp_path)
    placed, replace = [], os.replace

    def noted(source, target):
        assert not (tmp_path / SUMS).exists()
        replace(source, target)
        placed.append(target.name)

    monkeypatch.setattr(os, "replace", noted)
    save_records(tiny(), tmp_path)
    assert placed == ["signals.npy", "labels.npy", "table.parquet", "card.json", SUMS]


def test_the_card_is_plain_json(tmp_path):
    save_records(tiny(), tmp_path)
    card = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert card == {
        "name": "tiny",
        "fs": 100.0,
        "leads": ["I", "II"],
        "classes": ["A", "B"],
        "adc_mv": 0.001,
    }


def test_each_split_of_saved_records_is_a_part_of_the_memory_map(tmp_path):
    records = tiny()
    mixed = dataclasses.replace(
        records,
        table=records.table.assign(split=["test", "train"] * 3 + ["validation"]),
    )
    save_records(mixed, tmp_path)
    again = load_records(tmp_path)
    for split in ("train", "validation", "test"):
        part, wanted = again.split(split), mixed.split(split)
        assert np.shares_memory(part.signals, again.signals)
        np.testing.assert_array_equal(part.signals, wanted.signals)
        np.testing.assert_array_equal(part.labels, wanted.labels)
        pd.testing.assert_frame_equal(part.table, wanted.table)


def test_missing_ages_and_sexes_and_ages_of_a_hundred_are_fine():
    table = tiny().table.assign(age=[np.nan] * 6 + [101], sex=[None] * 6 + ["male"])
    assert check_records(tiny(table=table)).table is table
    assert check_records(tiny(table=table.drop(columns=["age", "sex"])))
