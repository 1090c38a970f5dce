import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from wfdb_fixtures import (
    SYMBOLS,
    cut,
    flip_a_byte,
    replace_in,
    write_beats,
    write_mitdb,
    write_mitdb_signals,
    write_sums,
)

from ecgstudy.datasets import mitdb
from ecgstudy.datasets.prepare import prepare
from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT
from ecgstudy.records import check_records
from ecgstudy.study import DatasetOptions

REAL = Path(os.environ.get("ECGSTUDY_DATA", "")) / "mitdb"
needs_data = pytest.mark.skipif(
    not (REAL / "100.dat").exists(), reason="ECGSTUDY_DATA/mitdb is absent"
)
PUBLISHED = {"DS1": (45_866, 944, 3_788, 415), "DS2": (44_259, 1_837, 3_221, 388)}
WINDOWED = {"DS1": (45_820, 943, 3_786, 414), "DS2": (44_213, 1_837, 3_219, 388)}
PARTS = {"DS1": ("train", "validation"), "DS2": ("test", "sensitivity")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny") / "mitdb"
    root.mkdir()
    write_mitdb(root)
    return root


@pytest.fixture
def copy(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "mitdb"))


@pytest.fixture(scope="module")
def real():
    return check_records(mitdb.load(REAL))


def beat(records, name):
    (row,) = np.flatnonzero(records.table["record"] == name)
    return records.signals[row, 0], records.labels[row], records.table.iloc[row]


def prepare_from(root, **options):
    return prepare(
        "mitdb",
        DatasetOptions(headline_epsilon_mv=0.1, data_root=str(root), options=options),
        "unused",
    )


def test_each_symbol_gets_its_aami_class_and_q_is_dropped(tiny):
    records = check_records(mitdb.load(tiny))
    one = records.table["recording"] == "100"
    assert "".join(records.table["symbol"][one]) == "NLRejAaJSVEF"
    assert [mitdb.CLASSES[label] for label in records.labels[one]] == list(
        "NNNNNSSSSVVF"
    )
    assert records.card["dropped_q"] == {
        "train": 18,
        "validation": 4,
        "test": 21,
        "sensitivity": 1,
    }


@pytest.mark.parametrize("record", ["100", "114"])  # MLII is the second channel of 114
def test_windows_are_millivolts_of_mlii_around_the_beat(tiny, tmp_path, record):
    adc = write_mitdb_signals(tmp_path, record)[:, 1 if record == "114" else 0]
    signal, _, row = beat(mitdb.load(tiny), f"{record}/720")
    np.testing.assert_allclose(
        signal, (adc[720 - 324 : 720 + 324] - 24) / 200, atol=1e-6
    )
    assert (row["age"], row["sex"]) == (69, "male")
    assert row["rr_before_s"] == row["rr_after_s"] == 1.0


def test_splits_follow_de_chazal_and_202_shares_the_patient_of_201(tiny):
    table = mitdb.load(tiny).table.drop_duplicates("recording").set_index("recording")
    assert set(table.index[table["split"] == "validation"]) == {
        "124",
        "203",
        "220",
        "223",
    }
    assert set(table.index[table["split"] == "sensitivity"]) == {"202"}
    assert set(table.index[table["split"] == "test"]) == set(mitdb.DS2) - {"202"}
    assert len(set(mitdb.DS1) | set(mitdb.DS2)) == 44
    assert not {"102", "104", "107", "217"} & set(table.index)
    assert table.loc["202", "patient"] == table.loc["201", "patient"] == "201"
    assert table["patient"].nunique() == 43


def test_beats_lost_at_record_ends_are_counted(tiny):
    # Beats are at 1…13 s of 14 s, N first and Q last: 2 s before lose the N of each of
    # 44 records.
    card = mitdb.load(tiny, before_s=2.0).card
    lost = {split: counts["N"] for split, counts in card["lost_at_record_ends"].items()}
    assert lost == {"train": 18, "validation": 4, "test": 21, "sensitivity": 1}
    assert card["annotations"]["test"]["N"] - card["counts"]["test"]["N"] == 21
    assert {counts["F"] for counts in card["lost_at_record_ends"].values()} == {0}


def test_unclassifiable_beats_count_in_rr_intervals(copy):
    write_beats(copy, "100", "NQNSVF", 360 * np.array([1, 2, 3, 5, 7, 9]))
    records = mitdb.load(copy)
    assert beat(records, "100/1080")[2]["rr_before_s"] == 1.0
    assert np.isnan(beat(records, "100/360")[2]["rr_before_s"])


def test_attacked_beats_are_limited_per_record_and_class_and_never_train(tiny):
    table = mitdb.load(tiny, attacked_per_class_and_record=2).table
    table["class"] = table["symbol"].map(mitdb.AAMI)
    assert not table["attacked"][table["split"] == "train"].any()
    counts = (
        table[table["split"] != "train"]
        .groupby(["recording", "class"])["attacked"]
        .sum()
        .unstack()
    )
    assert counts.to_dict("list") == {
        "F": [1] * 26,
        "N": [2] * 26,
        "S": [2] * 26,
        "V": [2] * 26,
    }


def test_the_attacked_draw_does_not_depend_on_other_options(tiny):
    def drawn(**options):
        table = mitdb.load(tiny, **options).table
        return set(table["record"][table["attacked"]])

    two = drawn(attacked_per_class_and_record=2)
    assert two == drawn(attacked_per_class_and_record=2, before_s=0.5)
    assert (
        drawn(attacked_per_class_and_record=1)
        < two
        < drawn(attacked_per_class_and_record=3)
    )


def damage_sample(root):
    # −2048 is the invalid value of format 212.
    write_mitdb_signals(root, "103", lambda adc: adc.__setitem__((800, 0), -2048))


def flatten(root):
    write_mitdb_signals(root, "103", lambda adc: adc.__setitem__((slice(None), 0), 5))


def lose_class(root):
    for record in mitdb.DS2:
        write_beats(root, record, SYMBOLS.replace("F", "N"))


def change_after_sums(root):
    write_sums(root)
    flip_a_byte(root / "103.dat")


BAD = {
    "truncated .dat": (
        lambda root: cut(root / "103.dat", 3001),
        r"103: the .hea is damaged or the .dat truncated",
    ),
    "missing .dat": (
        lambda root: (root / "103.dat").unlink(),
        r"103\.dat: no such file",
    ),
    "missing .hea": (
        lambda root: (root / "103.hea").unlink(),
        r"103\.hea: no such file",
    ),
    "missing .atr": (
        lambda root: (root / "103.atr").unlink(),
        r"103\.atr: no such file",
    ),
    "empty .hea": (lambda root: cut(root / "103.hea", 0), r"103: the .hea is damaged"),
    "header cut in a line": (
        lambda root: cut(root / "103.hea", 9),
        r"103: the .hea is damaged",
    ),
    "truncated .atr, odd": (
        lambda root: cut(root / "103.atr", 21),
        r"103\.atr: missing or truncated annotations",
    ),
    "truncated .atr, even": (
        lambda root: cut(root / "103.atr", 20),
        r"103\.atr: missing or truncated annotations",
    ),
    "changed .dat": (
        lambda root: flip_a_byte(root / "103.dat"),
        r"103: lead 'MLII' does not have the checksum",
    ),
    "no beats": (
        lambda root: (root / "103.atr").write_bytes(b"\0\0"),
        r"103\.atr: missing or truncated annotations",
    ),
    "wrong rate": (
        lambda root: write_mitdb_signals(root, "103", fs=250),
        r"103\.hea: sampling rate 250 Hz; .* 360",
    ),
    "no MLII": (
        lambda root: replace_in(root / "103.hea", "MLII", "V5"),
        r"103\.hea: lead 'MLII' is missing; it has V5",
    ),
    "wrong unit": (
        lambda root: write_mitdb_signals(root, "103", units="uV"),
        r"103\.hea: unit 'uV'",
    ),
    "invalid sample": (damage_sample, r"record '103/\d+', lead 'MLII' has NaN"),
    "flat lead": (flatten, r"record '103/360', lead 'MLII' is flat"),
    "wrong checksum": (change_after_sums, r"103\.dat: checksum differs"),
    "unknown beat": (
        lambda root: write_beats(root, "103", "B" + SYMBOLS[1:]),
        r"103\.atr: unknown beat symbol 'B'",
    ),
    "class absent": (lose_class, r"class 'F' has no record in the test split"),
    "duplicate beat": (
        lambda root: write_beats(root, "103", SYMBOLS[:2], np.array([720, 720])),
        r"record '103/720' occurs twice",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_error_that_names_the_file_or_record(copy, case):
    spoil, message = BAD[case]
    spoil(copy)
    with pytest.raises(StudyError, match=message):
        prepare_from(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1.8}, r"options\.window: .*known options: before_s, after_s"),
        ({"before_s": "long"}, r"options\.before_s: .*'long'"),
        ({"after_s": 700}, r"options\.after_s: .*700"),
    ],
)
def test_unknown_or_ill_typed_options_are_named(tiny, options, message):
    with pytest.raises(StudyError, match=message):
        prepare_from(tiny, **options)


@needs_data
@pytest.mark.parametrize("part", PARTS)
def test_real_counts_before_and_after_windowing_are_the_published_ones(real, part):
    for key, expected in (("annotations", PUBLISHED), ("counts", WINDOWED)):
        counts = real.card[key]
        assert (
            tuple(sum(counts[split][c] for split in PARTS[part]) for c in "NSVF")
            == expected[part]
        )


@needs_data
def test_real_table_agrees_with_the_card(real):
    for split, counts in real.card["counts"].items():
        rows = (real.table["split"] == split).to_numpy()
        assert np.bincount(real.labels[rows], minlength=4).tolist() == list(
            counts.values()
        )
    assert real.card["checksums"]["files_verified"] == 132
    sizes = (
        real.table[real.table["attacked"]]
        .groupby(["recording", real.labels[real.table["attacked"]]])
        .size()
    )
    assert sizes.max() == 50


@needs_data
def test_real_attacked_beats_are_the_committed_ones(real):
    committed = ROOT / "params/mitdb_attacked_beats.txt"
    assert (
        real.table["record"][real.table["attacked"]].tolist()
        == committed.read_text().split()
    )


@needs_data
def test_real_window_equals_format_212_decoded_by_hand(real):
    raw = np.fromfile(REAL / "114.dat", dtype=np.uint8).reshape(-1, 3).astype(int)
    second = raw[:, 2] + ((raw[:, 1] & 0xF0) << 4)  # MLII is the second channel of 114
    adc = np.where(second > 2047, second - 4096, second)
    name = real.table["record"][real.table["recording"] == "114"].iloc[100]
    sample = int(name.split("/")[1])
    signal, _, _ = beat(real, name)
    np.testing.assert_allclose(
        signal, (adc[sample - 324 : sample + 324] - 1024) / 200, atol=1e-6
    )
