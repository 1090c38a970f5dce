import ast
import collections
import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from wfdb_fixtures import (
    cut,
    flip_a_byte,
    ptbxl_rows,
    replace_in,
    stem,
    write_ptbxl,
    write_ptbxl_rows,
    write_ptbxl_signals,
    write_sums,
)

from ecgstudy.datasets import ptbxl
from ecgstudy.datasets.leads import STANDARD
from ecgstudy.datasets.prepare import prepare
from ecgstudy.errors import StudyError
from ecgstudy.records import check_records
from ecgstudy.study import DatasetOptions

REAL = Path(os.environ.get("ECGSTUDY_DATA", "")) / "ptbxl"
needs_data = pytest.mark.skipif(
    not (REAL / ptbxl.DATABASE).exists(), reason="ECGSTUDY_DATA/ptbxl is absent"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny") / "ptbxl"
    root.mkdir()
    write_ptbxl(root)
    return root


@pytest.fixture
def copy(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "ptbxl"))


def prepare_from(root, **options):
    return prepare(
        "ptbxl",
        DatasetOptions(headline_epsilon_mv=0.1, data_root=str(root), options=options),
        "unused",
    )


def edit(root, row_id, **values):
    """Change columns of one row of ptbxl_database.csv."""
    write_ptbxl_rows(
        root,
        [
            {**row, **(values if row["ecg_id"] == row_id else {})}
            for row in ptbxl_rows()
        ],
    )


def test_signals_are_samples_5_to_984_in_millivolts(tiny, tmp_path):
    adc = write_ptbxl_signals(tmp_path, 7)
    records = check_records(ptbxl.load(tiny))
    (row,) = np.flatnonzero(records.table["record"] == "7")
    np.testing.assert_allclose(records.signals[row], adc.T[:, 5:985] / 1000, atol=1e-6)
    assert (records.fs, records.leads) == (100.0, STANDARD)


def test_leads_are_ordered_by_name(copy, tmp_path):
    adc = write_ptbxl_signals(copy, 7, names=STANDARD[::-1])
    records = ptbxl.load(copy)
    (row,) = np.flatnonzero(records.table["record"] == "7")
    np.testing.assert_allclose(
        records.signals[row], adc.T[::-1, 5:985] / 1000, atol=1e-6
    )


def test_superclasses_count_every_likelihood_and_records_without_one_are_counted(tiny):
    records = ptbxl.load(tiny)
    assert len(records) == 50
    assert records.card["without_label"] == 10
    assert records.card["counts"]["validation"] == dict.fromkeys(ptbxl.SUPERCLASSES, 1)
    assert records.labels[records.table["record"] == "2"].tolist() == [
        [0, 1, 0, 0, 0]
    ]  # IMI at likelihood 0


def test_several_superclasses_of_one_record_are_all_set(copy):
    edit(copy, 1, scp_codes="{'NORM': 0.0, 'LVH': 15.0, 'SR': 0.0}")
    assert ptbxl.load(copy).labels[0].tolist() == [1, 0, 0, 0, 1]


def test_folds_decide_the_split_and_training_is_never_attacked(tiny):
    table = ptbxl.load(tiny).table
    splits = {fold: set(part) for fold, part in table.groupby("fold")["split"]}
    assert splits == {
        **{fold: {"train"} for fold in range(1, 9)},
        9: {"validation"},
        10: {"test"},
    }
    assert (table["attacked"] == (table["fold"] > 8)).all()


def test_metadata_are_decoded_and_missing_values_stay_missing(copy):
    edit(copy, 1, age="300.0", patient_id="", height="180.0", weight="")
    table = ptbxl.load(copy).table
    row = table.iloc[0]
    assert (row["age"], row["sex"], row["height"], row["patient"]) == (
        90.0,
        "male",
        180.0,
        "record-1",
    )
    assert np.isnan(row["weight"])
    assert (table["sex"][1], table["patient"][1], table["age"][1]) == (
        "female",
        "9001",
        60.0,
    )


def test_two_unknown_patients_may_be_in_different_splits(copy):
    write_ptbxl_rows(copy, [{**row, "patient_id": ""} for row in ptbxl_rows()])
    records = check_records(ptbxl.load(copy))
    assert records.table["patient"].nunique() == records.card["unknown_patients"] == 50


def test_statements_absent_from_training_or_test_are_left_out_and_named(copy):
    edit(copy, 59, scp_codes="{'SR': 0.0}")  # had the only LVH of fold 10
    records = check_records(ptbxl.load(copy, task="statements"))
    assert records.classes == ("NORM", "IMI", "NST_", "CLBBB", "PVC", "SR")
    assert records.card["statements_absent_from_training_or_test"] == ["LVH"]
    assert len(records) == 60


def test_a_subset_says_how_many_records_are_adapted(copy):
    lines = [
        f"{row['ecg_id']},resampled,{'codes-only' if row['ecg_id'] < 9 else 'official'}"
        for row in ptbxl_rows()
    ]
    (copy / "subset.csv").write_text("\n".join(["ecg_id,signal,metadata", *lines]))
    # Of the first eight records, number 6 has no superclass.
    assert ptbxl.load(copy).card["subset"] == {
        "resampled_from_500_hz": 50,
        "metadata_codes_only": 7,
    }


def test_complete_data_set_must_have_the_published_counts(copy, monkeypatch):
    monkeypatch.setattr(ptbxl, "COMPLETE", 60)
    with pytest.raises(StudyError, match=r"40.* records with a superclass; .* 17084"):
        ptbxl.load(copy)
    monkeypatch.setattr(ptbxl, "PUBLISHED", {"train": 40, "validation": 5, "test": 5})
    assert ptbxl.load(copy).card["complete"]


def flatten(root, *ecg_ids):
    for ecg_id in ecg_ids:
        write_ptbxl_signals(
            root, ecg_id, lambda adc: adc.__setitem__((slice(None), 3), 7)
        )


def test_excluded_records_are_named_in_the_card(copy):
    flatten(copy, 7, 8)
    with pytest.raises(StudyError, match=r"'aVR' is flat; .* leave out 2 records: 7 8"):
        prepare_from(copy)
    records = check_records(ptbxl.load(copy, exclude="7 8"))
    assert records.card["excluded"] == ["7", "8"]
    assert not records.table["record"].isin(["7", "8"]).any()


def change_after_sums(root):
    write_sums(root)
    flip_a_byte(root / f"{stem(7)}.dat")


def change_table_after_sums(root):
    write_sums(root)
    edit(root, 7, age="61.0")


def invalidate(root):
    write_ptbxl_signals(
        root, 7, lambda adc: adc.__setitem__((800, 3), -32768)
    )  # format 16's invalid value


def lose_class(root):
    rows = [
        row
        for row in ptbxl_rows()
        if not (row["strat_fold"] == 10 and "LVH" in row["scp_codes"])
    ]
    write_ptbxl_rows(root, rows)


BAD = {
    "truncated .dat": (
        lambda root: cut(root / f"{stem(7)}.dat", 3001),
        r"00007_lr: .* truncated",
    ),
    "missing .dat": (
        lambda root: (root / f"{stem(7)}.dat").unlink(),
        r"00007_lr\.dat: no such file",
    ),
    "missing .hea": (
        lambda root: (root / f"{stem(7)}.hea").unlink(),
        r"00007_lr\.hea: no such file",
    ),
    "damaged .hea": (
        lambda root: cut(root / f"{stem(7)}.hea", 30),
        r"00007_lr: the .hea is damaged",
    ),
    "missing table": (
        lambda root: (root / ptbxl.DATABASE).unlink(),
        r"ptbxl_database\.csv: no such file",
    ),
    "column absent": (
        lambda root: replace_in(root / ptbxl.DATABASE, "strat_fold", "fold"),
        r"damaged .*strat_fold",
    ),
    "wrong rate": (
        lambda root: write_ptbxl_signals(root, 7, fs=500),
        r"00007_lr\.hea: sampling rate 500 Hz",
    ),
    "short record": (
        lambda root: write_ptbxl_signals(root, 7, samples=900),
        r"00007_lr\.hea: 900 samples",
    ),
    "lead missing": (
        lambda root: replace_in(root / f"{stem(7)}.hea", "AVF", "X"),
        r"00007_lr.*lead 'aVF' is missing",
    ),
    "invalid sample": (invalidate, "record '7', lead .* has NaN"),
    "flat lead": (
        lambda root: flatten(root, 7),
        "record '7', lead .* is flat",
    ),
    "wrong checksum": (change_after_sums, r"00007_lr\.dat: checksum differs"),
    "changed table": (
        change_table_after_sums,
        r"ptbxl_database\.csv: checksum differs",
    ),
    "unknown SCP code": (
        lambda root: edit(root, 7, scp_codes="{'NORM': 80.0, 'XYZ': 0.0}"),
        r"ptbxl_database\.csv: record 7: unknown SCP code 'XYZ'",
    ),
    "garbled SCP codes": (
        lambda root: edit(root, 7, scp_codes="{'NORM': "),
        r"record 7: scp_codes .* is not a dict",
    ),
    "fold 11": (
        lambda root: edit(root, 7, strat_fold=11),
        "record '7' has split nan; it must be one of train",
    ),
    "duplicate record": (
        lambda root: edit(root, 7, ecg_id=8),
        "record '8' occurs twice",
    ),
    "patient in two splits": (
        lambda root: edit(root, 7, patient_id="9055.0"),
        r"patient '9055' is in test and train",
    ),
    "class absent": (lose_class, r"class 'HYP' has no record in the test split"),
    "empty fold": (
        lambda root: write_ptbxl_rows(
            root, [row for row in ptbxl_rows() if row["strat_fold"] != 9]
        ),
        r"validation split has no records",
    ),
    "unknown option": ({"rate": 500}, r"options\.rate: .*known options: task, exclude"),
    "unknown task": (
        {"task": "rhythm"},
        r"options\.task: .*'superclass' or 'statements'.*'rhythm'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_error_that_names_the_file_or_record(copy, case):
    spoil, message = BAD[case]
    options = spoil if isinstance(spoil, dict) else {}
    if not options:
        spoil(copy)
    with pytest.raises(StudyError, match=message):
        prepare_from(copy, **options)


def recount(root):
    """(split, superclass) → records, by a loop that shares nothing with the loader."""
    with open(root / "scp_statements.csv", newline="") as stream:
        classes = {
            r[""]: r["diagnostic_class"]
            for r in csv.DictReader(stream)
            if r["diagnostic"] == "1.0"
        }
    counts, sizes = collections.Counter(), collections.Counter()
    with open(root / "ptbxl_database.csv", newline="") as stream:
        for row in csv.DictReader(stream):
            found = {
                classes[code]
                for code in ast.literal_eval(row["scp_codes"])
                if code in classes
            }
            split = {"9": "validation", "10": "test"}.get(row["strat_fold"], "train")
            sizes[split] += bool(found)
            counts.update((split, name) for name in found)
    return counts, sizes


@needs_data
@pytest.mark.slow
def test_real_counts_equal_an_independent_recount():
    records = check_records(ptbxl.load(REAL))
    counts, sizes = recount(REAL)
    got = {
        (split, name): n
        for split, row in records.card["counts"].items()
        for name, n in row.items()
    }
    assert got == counts
    assert records.table["split"].value_counts().to_dict() == sizes
    assert records.card["checksums"]["files_verified"] == 2 + 2 * len(records)
    row = len(records) // 2
    folder = (
        REAL / "records100" / f"{int(records.table['record'][row]) // 1000 * 1000:05d}"
    )
    adc = np.fromfile(
        folder / f"{int(records.table['record'][row]):05d}_lr.dat", dtype="<i2"
    ).reshape(-1, 12)
    np.testing.assert_allclose(records.signals[row], adc.T[:, 5:985] / 1000, atol=1e-6)
