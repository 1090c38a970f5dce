"""Files of a data set compared with its official list of checksums."""

from collections.abc import Collection
from pathlib import Path

from ecgstudy.errors import StudyError
from ecgstudy.files import read_sums, sha256

SUMS = "SHA256SUMS.txt"
"""PhysioNet's name for the list, in the data set's folder."""


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
    sums = read_sums(root / SUMS)
    verified = 0
    for name in names:
        if not (root / name).is_file():
            raise StudyError(
                f"{root / name}: no such file; "
                "download the data set again or complete it"
            )
        if name not in sums:
            continue
        if sha256(root / name) != sums[name].lower():
            raise StudyError(
                f"{root / name}: checksum differs from {SUMS}; "
                "delete the file and download it again"
            )
        verified += 1
    return {
        "files": len(names),
        "files_verified": verified,
        "sha256sums": sha256(root / SUMS) if sums else None,
    }
