"""Damaged WFDB files are refused or read as if whole: no hang, no crash, no full memory, no other numbers."""

import resource
import signal
import sys
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wfdb_fixtures import (
    SYMBOLS,
    stem,
    write_beats,
    write_mitdb_signals,
    write_ptbxl_signals,
    write_sums,
)

from ecgstudy.datasets import mitdb, ptbxl
from ecgstudy.datasets.wfdb_io import read_leads, verify_checksums
from ecgstudy.errors import StudyError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="memory is bounded by Linux's means"
)
CASES = [50, pytest.param(5000, marks=pytest.mark.slow)]
NUMBERS = "0 -1 1 3/2 99999999999 1e9 1e400 nan 103/103 16 80 310 508 8 x (1) 0/mV 200(24)/uV +"
FORMATS = "212x9999 212x99999999 212:9999 212:99999999 212+99999999 16x2 16:3 16+7"
WORDS = [word.encode() for word in ["", *NUMBERS.split(), *FORMATS.split()]]
"""What is put in the place of a word of a header."""


class Hang(BaseException):
    """No Exception, so that nobody takes it for damage."""


@contextmanager
def bounded(seconds=10, gigabytes=2):
    """Allow the process so much more time and memory."""

    def stop(*_):
        raise Hang

    before = (
        signal.signal(signal.SIGVTALRM, stop),
        resource.getrlimit(resource.RLIMIT_AS),
    )
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + gigabytes * 2**30, before[1][1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before[1])
        signal.signal(signal.SIGVTALRM, before[0])


@st.composite
def damaged(draw, content, words=False):
    """`content` cut, shortened, stretched, overwritten, or with another word or bit."""
    start = draw(st.integers(0, len(content) - 1))
    stop = min(len(content), start + draw(st.integers(1, 64)))
    noise = draw(st.binary(min_size=1, max_size=24))
    flipped = bytes([content[start] ^ 1 << draw(st.integers(0, 7))])
    kinds = {
        "cut": content[:start],
        "shortened": content[:start] + content[stop:],
        "doubled": content[:stop] + content[start:],
        "stretched": content[:start] + noise + content[start:],
        "overwritten": (content[:start] + noise + content[start + len(noise) :])[
            : len(content)
        ],
        "flipped": content[:start] + flipped + content[start + 1 :],
    }
    if words:
        parts = content.split(b" ")
        parts[draw(st.integers(0, len(parts) - 1))] = draw(st.sampled_from(WORDS))
        kinds |= {"reworded": b" ".join(parts), "again reworded": b" ".join(parts)}
    return kinds[draw(st.sampled_from(sorted(kinds)))]


def beats(root):
    """What is read of a record of MIT-BIH."""
    return mitdb._read_beats(root / "103", (324, 324), (None, 50))


def leads(root):
    """What is read of a record of PTB-XL."""
    return read_leads(root / stem(7), ptbxl.LEADS, ptbxl.FS)[0], pd.DataFrame()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """For each data set a folder with one record and its checksums, how it is read, and its files."""
    roots = {read: tmp_path_factory.mktemp(read.__name__) for read in (beats, leads)}
    write_mitdb_signals(roots[beats], "103")
    write_beats(roots[beats], "103", SYMBOLS)
    write_ptbxl_signals(roots[leads], 7)
    for root in roots.values():
        write_sums(root)
    return roots


FILES = {
    "mitdb .hea": (beats, "103.hea"),
    "mitdb .dat": (beats, "103.dat"),
    "mitdb .atr": (beats, "103.atr"),
    "ptbxl .hea": (leads, f"{stem(7)}.hea"),
    "ptbxl .dat": (leads, f"{stem(7)}.dat"),
}


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_or_read_as_if_whole(name, cases, whole):
    read, file = FILES[name]
    root = whole[read]
    content, expected, refusals, told = (root / file).read_bytes(), read(root), [], []

    @settings(max_examples=cases, deadline=None, derandomize=True, database=None)
    @given(damaged(content, words=file.endswith(".hea")))
    def meets(bad):
        (root / file).write_bytes(bad)
        try:
            with bounded():
                found = read(root)
        except StudyError as error:
            refusals.append(str(error))
            return
        if np.array_equal(found[0], expected[0], equal_nan=True) and found[1].equals(
            expected[1]
        ):
            return
        # Nothing in a record tells that its gain or its beats are others: the data set's checksums do.
        with pytest.raises(StudyError, match="checksum differs"):
            verify_checksums(root, [file])
        told.append(bad)

    try:
        meets()
    finally:
        (root / file).write_bytes(content)
    if file.endswith(".dat"):  # the header has the sum of the samples, in 16 bits
        assert len(told) <= cases / 1000
    assert refusals
    assert all(str(root) in refusal for refusal in refusals)
