import multiprocessing

import numpy as np
import pandas as pd
import pytest
import wfdb

from ecgstudy.datasets.wfdb_io import _quick_headers, on_cores, read_leads, read_records
from ecgstudy.errors import StudyError
from tests.wfdb_fixtures import write_mitdb_signals

RECORDS = ("100", "101", "102", "103", "104")


@pytest.fixture
def stems(tmp_path):
    for record in RECORDS:
        write_mitdb_signals(tmp_path, record)
    return [tmp_path / record for record in RECORDS]


def test_records_read_on_all_cores_are_those_read_one_by_one(stems):
    together = list(read_records(stems, ["MLII"], 360.0))
    for stem, (signals, comments) in zip(stems, together, strict=True):
        alone, told = read_leads(stem, ["MLII"], 360.0)
        np.testing.assert_array_equal(signals, alone)
        assert comments == told
        plain = wfdb.rdrecord(str(stem), channel_names=["MLII"]).p_signal.T.astype(
            np.float32
        )
        np.testing.assert_array_equal(signals, plain)


def test_errors_on_all_cores_are_those_of_one(stems):
    (stems[3].with_suffix(".hea")).write_text("103 2 360\n103.dat 212 200(24)/mV x\n")
    with pytest.raises(StudyError) as alone:
        read_leads(stems[3], ["MLII"], 360.0)
    with pytest.raises(StudyError) as together:
        list(read_records(stems, ["MLII"], 360.0))
    assert str(together.value) == str(alone.value)


def _differing_cells(_: int) -> list:
    """Cells of wfdb's own tables that the dicts give otherwise."""
    from wfdb.io import _header

    names = ("RECORD_SPECS", "SIGNAL_SPECS")
    tables = [getattr(_header, name) for name in names]
    _quick_headers()
    found = []
    for table, quick in zip(
        tables, (getattr(_header, name) for name in names), strict=True
    ):
        assert quick.index == list(table.index)
        cells = [(row, column) for row in table.index for column in table.columns]
        found += [cell for cell in cells if quick.loc[cell] is not table.loc[cell]]
    return found


def test_dicts_of_header_fields_hold_what_the_tables_of_wfdb_hold():
    with multiprocessing.get_context("spawn").Pool(
        1
    ) as pool:  # this process keeps its tables
        assert pool.map(_differing_cells, [0]) == [[]]


def test_reading_on_all_cores_leaves_wfdb_as_it_is_in_this_process(stems):
    from wfdb.io import _header

    list(on_cores(str, stems))
    assert isinstance(_header.SIGNAL_SPECS, pd.DataFrame)
