"""The examples of docs/extend.md, and data for those that read some."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
from wfdb_fixtures import write_folder

from ecgstudy.study import ROOT

EXAMPLES = (ROOT / "docs/extend.md").read_text(encoding="utf-8")


def shown(file: str) -> str:
    """What the page shows as the content of a file."""
    return re.search(
        rf"```\w+\n# {re.escape(file)}\n(.*?)```", EXAMPLES, re.DOTALL
    ).group(1)


def write_ward(folder: Path, records: int = 60) -> dict[str, np.ndarray]:
    """Records of 9 s, two a patient, with table and checksums; returns signals."""
    signals = write_folder(
        folder, fs=500, seconds=9, leads=("V1", "II"), records=records
    )
    rows = range(len(signals))
    rhythm = ["AF" if row % 4 < 2 else "sinus" for row in rows]
    table = pd.DataFrame(
        {
            "record": list(signals),
            "patient": [row // 2 for row in rows],
            "rhythm": rhythm,
        }
    )
    table.to_csv(folder / "labels.csv", index=False)
    (command,) = re.findall(r"`cd ~/ward7 && (sha256sum [^`]*)`", EXAMPLES)
    subprocess.run(command, shell=True, cwd=folder, check=True)
    return signals


def write_arrays(folder: Path, records: int = 60) -> None:
    """Signals as one array, and a table with several classes a record."""
    folder.mkdir()
    random = np.random.default_rng(0)
    np.save(folder / "signals.npy", random.normal(size=(records, 2, 500)))
    table = {
        "record": range(records),
        "patient": [f"p{row // 2}" for row in range(records)],
    }
    table |= {name: random.integers(0, 2, records) for name in ("AF", "LBBB")}
    pd.DataFrame(table).to_csv(folder / "labels.csv", index=False)
