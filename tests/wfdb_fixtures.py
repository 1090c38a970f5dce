"""Tiny data sets in the layout of MIT-BIH and PTB-XL, with random signals."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import wfdb

from ecgstudy.datasets import mitdb
from ecgstudy.datasets.leads import STANDARD

SYMBOLS = "NLRejAaJSVEFQ"
"""One beat of each symbol a second, from 1 s on, and half a second before a note."""
BEAT_SAMPLES = 360 * np.arange(1, len(SYMBOLS) + 1)


def write_mitdb(root: Path) -> None:
    for record in mitdb.DS1 + mitdb.DS2:
        write_mitdb_signals(root, record)
        write_beats(root, record, SYMBOLS)


def write_mitdb_signals(
    root: Path, record: str, change=None, fs=360, names=("MLII", "V1"), units="mV"
) -> np.ndarray:
    """14 s of two channels in format 212; returns ADC values, edited by `change`."""
    adc = np.random.default_rng(int(record)).integers(-900, 900, (14 * 360, 2))
    if change is not None:
        change(adc)
    names = names[::-1] if record == "114" else names
    write = {
        "fmt": ["212"] * 2,
        "adc_gain": [200.0] * 2,
        "baseline": [24] * 2,
        "write_dir": str(root),
    }
    wfdb.wrsamp(
        record,
        fs,
        [units] * 2,
        list(names),
        d_signal=adc,
        comments=["69 M 1085 1629 x1"],
        **write,
    )
    return adc


def write_beats(
    root: Path, record: str, symbols: str, samples: np.ndarray = BEAT_SAMPLES
) -> None:
    """Write annotations: each beat, and a note that is no beat before it."""
    pairs = sorted(
        [*zip(samples, symbols, strict=True), *((s - 180, "+") for s in samples)]
    )
    notes = ["(N" if symbol == "+" else "" for _, symbol in pairs]
    at = np.array([sample for sample, _ in pairs])
    wfdb.wrann(
        record,
        "atr",
        at,
        [symbol for _, symbol in pairs],
        aux_note=notes,
        write_dir=str(root),
    )


STATEMENTS = {
    "NORM": (1.0, "NORM"),
    "IMI": (1.0, "MI"),
    "NST_": (1.0, "STTC"),
    "CLBBB": (1.0, "CD"),
    "LVH": (1.0, "HYP"),
    "PVC": ("", ""),
    "SR": ("", ""),
}
COLUMNS = [
    "ecg_id",
    "patient_id",
    "age",
    "sex",
    "height",
    "weight",
    "scp_codes",
    "strat_fold",
    "filename_lr",
]


def ptbxl_rows() -> list[dict]:
    """Six records a fold: one a superclass, and one with the rhythm alone."""
    rows = []
    for number in range(60):
        ecg_id, fold, code = number + 1, number // 6 + 1, list(STATEMENTS)[number % 6]
        codes = {code: 0.0, "SR": 0.0} if code != "PVC" else {"PVC": 100.0}
        values = (
            ecg_id,
            f"{9000 + number}.0",
            60.0,
            number % 2,
            "",
            70.0,
            repr(codes),
            fold,
            stem(ecg_id),
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def stem(ecg_id: int) -> str:
    return f"records100/00000/{ecg_id:05d}_lr"


def write_ptbxl(root: Path) -> None:
    with open(root / "scp_statements.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["", "description", "diagnostic", "diagnostic_class"])
        table.writerows(
            [code, "some words, and more", *values]
            for code, values in STATEMENTS.items()
        )
    write_ptbxl_rows(root, ptbxl_rows())
    for row in ptbxl_rows():
        write_ptbxl_signals(root, row["ecg_id"])


def write_ptbxl_rows(root: Path, rows: list[dict]) -> None:
    with open(root / "ptbxl_database.csv", "w", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        table.writerows(rows)


def write_ptbxl_signals(
    root: Path, ecg_id: int, change=None, fs=100, names=STANDARD, samples=1000
) -> np.ndarray:
    """10 s of 12 leads in format 16; returns ADC values, edited by `change`."""
    adc = np.random.default_rng(ecg_id).integers(-3000, 3000, (samples, 12))
    if change is not None:
        change(adc)
    folder = root / stem(ecg_id)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write = {
        "fmt": ["16"] * 12,
        "adc_gain": [1000.0] * 12,
        "baseline": [0] * 12,
        "write_dir": str(folder.parent),
    }
    names = [name.upper() for name in names]
    wfdb.wrsamp(folder.name, fs, ["mV"] * 12, names, d_signal=adc, **write)
    return adc


def write_folder(
    folder: Path, fs=500, seconds=10.0, leads=("II", "V1"), records=20
) -> dict[str, np.ndarray]:
    """Slow sines in format 16; returns record → (samples, leads) in mV."""
    folder.mkdir(parents=True, exist_ok=True)
    time, written = np.arange(round(seconds * fs))[:, None] / fs, {}
    for number in range(records):
        phase = np.random.default_rng(number).uniform(0, 6, len(leads))
        written[f"w{number:03}"] = signals = np.sin(2 * np.pi * 1.5 * time + phase)
        form = {
            "fmt": ["16"] * len(leads),
            "adc_gain": [1000.0] * len(leads),
            "baseline": [0] * len(leads),
        }
        names = {"sig_name": list(leads), "units": ["mV"] * len(leads)}
        wfdb.wrsamp(
            f"w{number:03}",
            fs,
            p_signal=signals,
            write_dir=str(folder),
            **names,
            **form,
        )
    return written


def write_sums(root: Path) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(root)}\n"
        for path in files
    ]
    (root / "SHA256SUMS.txt").write_text("".join(lines))


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip_a_byte(path: Path, at: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
