"""Data sets of one's own: folders and arrays with a table, labels, splits, errors."""

import importlib
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from wfdb_fixtures import cut, flip_a_byte, replace_in, write_folder, write_sums

from ecgstudy.datasets.custom import from_arrays, from_wfdb
from ecgstudy.errors import StudyError
from ecgstudy.records import check_records

SIGNALS = np.random.default_rng(0).normal(size=(60, 2, 50))


def table(**columns):
    rhythm = ["AF", "sinus", "paced"] * 20
    patients = [f"p{index // 3}" for index in range(60)]
    return pd.DataFrame(
        {"record": range(60), "patient": patients, "rhythm": rhythm, **columns}
    )


def mine(given=None, labels="rhythm", signals=SIGNALS):
    given = table() if given is None else given
    return from_arrays(
        "mine", signals, given, fs=100, leads=["I", "II"], labels=labels, source="us"
    )


def test_one_column_names_the_class_of_each_record():
    records = check_records(mine())
    assert records.classes == ("AF", "paced", "sinus")
    assert [records.classes[label] for label in records.labels[:3]] == [
        "AF",
        "sinus",
        "paced",
    ]
    assert records.signals.dtype == np.float32
    assert records.card["source"] == "us"
    assert list(records.table["record"].iloc[:2]) == ["0", "1"]
    assert "rhythm" not in records.table


def test_several_columns_are_several_classes():
    hot = np.random.default_rng(1).integers(0, 2, (60, 2))
    records = check_records(mine(table(AF=hot[:, 0], MI=hot[:, 1]), ["AF", "MI"]))
    np.testing.assert_array_equal(records.labels, hot)
    assert records.classes == ("AF", "MI")


def test_patients_are_dealt_three_to_one_to_one_and_none_is_in_two_splits():
    dealt = mine().table
    assert dealt.groupby("patient")["split"].nunique().max() == 1
    assert dealt["split"].value_counts().to_dict() == {
        "train": 36,
        "test": 12,
        "validation": 12,
    }
    assert (dealt["attacked"] == (dealt["split"] != "train")).all()
    shuffled = mine(table().sample(frac=1, random_state=3)).table
    assert set(shuffled["split"]) == {"train", "test", "validation"}


def test_splits_and_attacked_records_of_the_table_are_kept():
    split = ["train"] * 30 + ["validation"] * 15 + ["test"] * 15
    attacked = [index % 2 == 0 for index in range(60)]
    given = mine(table(split=split, attacked=attacked, age=50.0)).table
    assert list(given["split"]) == split
    assert list(given["attacked"]) == attacked
    assert (given["age"] == 50).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="patient"), "the table has no column 'patient'"),
        (lambda t: t.assign(rhythm=[None] + ["AF"] * 59), "record '0' has no rhythm"),
        (lambda t: t.assign(patient="one"), "1 patients are too few to split"),
        (lambda t: t.assign(rhythm=range(60)), "too few records to split"),
    ],
)
def test_tables_that_will_not_do_are_refused_by_name(change, message):
    with pytest.raises(StudyError, match=f"mine: {message}"):
        mine(change(table()))


def test_a_label_other_than_0_and_1_is_refused():
    with pytest.raises(
        StudyError, match="mine: record '7' has AF '2'; it must be 0 or 1"
    ):
        mine(table(AF=[0, 1] * 3 + [0, 2] + [0] * 52), ["AF"])


def folder_records(folder, given, seconds=8.0, leads=("V1",)):
    return from_wfdb(
        "ward", folder, given, fs=500, leads=leads, seconds=seconds, labels="rhythm"
    )


def test_a_folder_gives_what_was_written_to_it(tmp_path):
    written = write_folder(tmp_path)
    given = table().iloc[:20].assign(record=list(written))
    write_sums(tmp_path)
    records = check_records(folder_records(tmp_path, given))
    for signals, wanted in zip(records.signals, written.values(), strict=True):
        np.testing.assert_allclose(signals[0], wanted[:4000, 1], atol=0.001)
    assert records.card["checksums"]["files_verified"] == 40


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f / "w003.dat", 100), "w003: .* truncated"),
        (lambda f: flip_a_byte(f / "w004.dat"), "w004.dat: checksum differs"),
        (lambda f: (f / "w005.hea").unlink(), "w005.hea: no such file"),
        (
            lambda f: write_folder(f, fs=360, records=1),
            "w000.hea: sampling rate 360 Hz; it must be 500 Hz",
        ),
        (
            lambda f: write_folder(f, seconds=3, records=1),
            "w000.hea: 3 s long; it must be 8 s or longer",
        ),
        (
            lambda f: write_folder(f, leads=("I", "II"), records=1),
            "w000.hea: lead 'V1' is missing",
        ),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, damage, message):
    given = table().iloc[:20].assign(record=list(write_folder(tmp_path)))
    write_sums(tmp_path)
    damage(tmp_path)
    with pytest.raises(StudyError, match=message):
        folder_records(tmp_path, given)


def test_a_folder_needs_no_memory_for_all_of_its_signals(tmp_path):
    written = write_folder(tmp_path, seconds=100.0, records=60)
    given = table().assign(record=list(written))
    few = given.iloc[:2].assign(split="train")
    folder_records(tmp_path, few)  # imports what is imported late, as
    importlib.import_module("sklearn.model_selection")  # splitting patients does
    tracemalloc.start()
    records = folder_records(tmp_path, given, seconds=100.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert records.signals.nbytes == 60 * 100 * 500 * 4
    assert peak < records.signals.nbytes / 2, peak


def test_all_files_of_a_record_are_compared_with_the_list(tmp_path):
    """Signals may be in files of another kind; lists may be in capitals."""
    given = table().iloc[:20].assign(record=list(write_folder(tmp_path)))
    for path in tmp_path.glob("*.hea"):
        replace_in(path, ".dat", ".bin")
        path.with_suffix(".dat").rename(path.with_suffix(".bin"))
    write_sums(tmp_path)
    sums = tmp_path / "SHA256SUMS.txt"
    lines = [line.partition(" ") for line in sums.read_text().splitlines()]
    sums.write_text("".join(f"{sha.upper()} {name}\n" for sha, _, name in lines))
    records = folder_records(tmp_path, given)
    assert records.card["checksums"]["files_verified"] == 40
    content = bytearray((tmp_path / "w003.bin").read_bytes())
    content[1000:1002], content[1200:1202] = content[1200:1202], content[1000:1002]
    (tmp_path / "w003.bin").write_bytes(content)  # two samples: their sum is the same
    with pytest.raises(StudyError, match=r"w003\.bin: checksum differs"):
        folder_records(tmp_path, given)


def test_records_without_a_patient_are_patients_of_their_own():
    patients = [None if row % 4 == 0 else f"p{row // 2}" for row in range(60)]
    given = mine(table(patient=patients)).table
    assert given["patient"][0] == "record-0"
    assert given["patient"].value_counts().max() == 2


def test_an_empty_table_is_refused(tmp_path):
    with pytest.raises(
        StudyError, match="ward: the table has no rows; it must have one per record"
    ):
        folder_records(tmp_path, table().iloc[:0])
