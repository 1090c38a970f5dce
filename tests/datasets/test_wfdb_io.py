"""WFDB records: read as wfdb reads them, refused when damaged."""

import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from wfdb_fixtures import (
    SYMBOLS,
    stem,
    write_beats,
    write_mitdb_signals,
    write_ptbxl_signals,
    write_sums,
)

from ecgstudy.datasets import mitdb, ptbxl
from ecgstudy.datasets.leads import STANDARD
from ecgstudy.datasets.sources import verify_checksums
from ecgstudy.datasets.wfdb_io import read_leads
from ecgstudy.errors import StudyError


def ecg(samples, seed=0):
    """ADC values (samples,)."""
    return np.random.default_rng(seed).integers(-900, 900, samples)


def checksum(adc):
    """WFDB's: the sum of the samples as a signed number of 16 bits."""
    return int(np.int64(adc.sum()).astype(np.int16))


def write_header(path, record, *signals):
    path.with_suffix(".hea").write_text("\n".join([record, *signals, ""]))


def test_leads_are_read_by_name_as_wfdb_reads_them(tmp_path):
    for record in ("100", "114"):  # MLII is the second channel of 114
        write_mitdb_signals(tmp_path, record)
        signals, comments = read_leads(tmp_path / record, ["V1", "mlii"], 360.0)
        plain = wfdb.rdrecord(str(tmp_path / record), channel_names=["MLII", "V1"])
        columns = [plain.sig_name.index("V1"), plain.sig_name.index("MLII")]
        expected = plain.p_signal[:, columns].T.astype(np.float32)
        np.testing.assert_array_equal(signals, expected)
        assert comments == ["69 M 1085 1629 x1"]


def test_leads_with_several_samples_a_frame_have_their_own_rate(tmp_path):
    """As monitors store an ECG beside respiration."""
    lead, breath = ecg(5000), ecg(1250, seed=1)
    frames = np.c_[lead.reshape(1250, 4), breath].astype("<i2")
    (tmp_path / "m.dat").write_bytes(frames.tobytes())
    write_header(
        tmp_path / "m",
        "m 2 125 1250",
        f"m.dat 16x4 1000/mV 16 0 {lead[0]} {checksum(lead)} 0 II",
        f"m.dat 16 1000/mV 16 0 {breath[0]} {checksum(breath)} 0 RESP",
    )
    (signal,), _ = read_leads(tmp_path / "m", ["II"], 500)
    np.testing.assert_allclose(signal, lead / 1000, atol=1e-6)
    with pytest.raises(StudyError, match=r"m\.hea: sampling rate 500 Hz; .* 125 Hz"):
        read_leads(tmp_path / "m", ["II"], 125)


def test_a_checksum_of_0_is_none_and_a_wrong_one_is_an_error(tmp_path):
    """PhysioNet's challenge of 2017 has .mat files, and 0 in every header."""
    adc = ecg(3000)
    savemat(tmp_path / "A.mat", {"val": adc[None].astype(np.int16)}, format="4")
    record, signal = "A 1 300 3000", f"A.mat 16+24 1000/mV 16 0 {adc[0]}"
    write_header(tmp_path / "A", record, f"{signal} 0 0 ECG")
    (lead,), _ = read_leads(tmp_path / "A", ["ECG"], 300)
    np.testing.assert_allclose(lead, adc / 1000, atol=1e-6)
    write_header(tmp_path / "A", record, f"{signal} {checksum(adc) ^ 1} 0 ECG")
    with pytest.raises(StudyError, match="lead 'ECG' does not have the checksum"):
        read_leads(tmp_path / "A", ["ECG"], 300)


def test_other_signals_need_no_description(tmp_path):
    adc = np.stack([ecg(5000), ecg(5000, seed=1)], axis=1)
    (tmp_path / "n.dat").write_bytes(adc.astype("<i2").tobytes())
    first = f"n.dat 16 1000/mV 16 0 {adc[0, 0]} {checksum(adc[:, 0])} 0 II"
    write_header(tmp_path / "n", "n 2 500 5000", first, "n.dat 16 1000/mV")
    (lead,), _ = read_leads(tmp_path / "n", ["II"], 500)
    np.testing.assert_allclose(lead, adc[:, 0] / 1000, atol=1e-6)
    with pytest.raises(StudyError, match="lead 'V1' is missing; it has II"):
        read_leads(tmp_path / "n", ["V1"], 500)


@st.composite
def damaged(draw, content):
    """`content` cut, shortened, stretched, overwritten, or with another bit."""
    start = draw(st.integers(0, len(content) - 1))
    stop = min(len(content), start + draw(st.integers(1, 64)))
    noise = draw(st.binary(min_size=1, max_size=24))
    flipped = bytes([content[start] ^ 1 << draw(st.integers(0, 7))])
    before, after = content[:start], content[start + len(noise) :]
    kinds = [
        before,
        before + content[stop:],
        before + noise + content[start:],
        (before + noise + after)[: len(content)],
        before + flipped + content[start + 1 :],
    ]
    return draw(st.sampled_from(kinds))


def read_mitdb(root):
    (lead,), _ = read_leads(root / "103", [mitdb.LEAD], mitdb.FS)
    return lead, mitdb._read_beats(root / "103.atr")


def read_ptbxl(root):
    return read_leads(root / stem(7), STANDARD, ptbxl.FS)[0], pd.DataFrame()


@pytest.mark.parametrize("cases", [50, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("read", "file"),
    [
        (read_mitdb, "103.hea"),
        (read_mitdb, "103.dat"),
        (read_mitdb, "103.atr"),
        (read_ptbxl, f"{stem(7)}.hea"),
        (read_ptbxl, f"{stem(7)}.dat"),
    ],
)
def test_a_damaged_file_is_refused_or_read_as_if_whole(read, file, cases, tmp_path):
    write_mitdb_signals(tmp_path, "103")
    write_beats(tmp_path, "103", SYMBOLS)
    write_ptbxl_signals(tmp_path, 7)
    write_sums(tmp_path)
    signals, table = read(tmp_path)
    refusals, silent = [], []

    @settings(max_examples=cases, deadline=None, derandomize=True, database=None)
    @given(damaged((tmp_path / file).read_bytes()))
    def read_damaged(content):
        (tmp_path / file).write_bytes(content)
        try:
            found, beats = read(tmp_path)
        except StudyError as error:
            refusals.append(str(error))
            return
        if np.array_equal(found, signals, equal_nan=True) and beats.equals(table):
            return
        # Nothing in a record tells that its gain or its beats are others: the data
        # set's checksums do.
        with pytest.raises(StudyError, match="checksum differs"):
            verify_checksums(tmp_path, [file])
        silent.append(content)

    read_damaged()
    if file.endswith(".dat"):  # the header has the sum of the samples, in 16 bits
        assert len(silent) <= cases / 1000
    assert refusals
    assert all(str(tmp_path) in refusal for refusal in refusals)
