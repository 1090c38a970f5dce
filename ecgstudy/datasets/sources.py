"""Where data sets come from: facts for their cards, and official checksums."""

import json
from collections.abc import Collection
from pathlib import Path

from ecgstudy.errors import StudyError
from ecgstudy.files import read_sums, sha256

SUMS = "SHA256SUMS.txt"
"""PhysioNet's name for the list of checksums, in the data set's folder."""


def read_card(name: str) -> dict:
    """What is known of one of this package's data sets before it is read."""
    cards = Path(__file__).with_name("cards.json").read_text(encoding="utf-8")
    return json.loads(cards)[name]


def verify_checksums(root: Path, names: Collection[str]) -> dict[str, object]:
    """Compare the files `names` with `SUMS` in `root`, where it exists and lists them.

    Returns
    -------
    dict
        For the card: ``files``, ``files_verified`` and the SHA-256 of the list
        itself (or None).

    Raises
    ------
    StudyError
        Naming the file that is missing or differs.
    """
    sums, verified = read_sums(root / SUMS), 0
    for name in names:
        file = root / name
        if not file.is_file():
            raise StudyError(
                f"{file}: no such file; download the data set again or complete it"
            )
        if name in sums:
            if sha256(file) != sums[name].lower():
                raise StudyError(
                    f"{file}: checksum differs from {SUMS}; "
                    "delete the file and download it again"
                )
            verified += 1
    return {
        "files": len(names),
        "files_verified": verified,
        "sha256sums": sha256(root / SUMS) if sums else None,
    }
