import errno
import fcntl
import hashlib
import json
import os
import subprocess

import pytest

from ecgstudy.errors import StudyError
from ecgstudy.files import (
    SUMS,
    check_sum,
    lock,
    lock_file,
    sha256,
    whole_file,
    write_json,
    write_result,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_appears_whole_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as partial:
        assert partial.parent == path.parent, (
            "a rename is atomic within a file system only"
        )
        partial.write_text("half")
        assert not path.exists()
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["file.txt", "new"]


@pytest.mark.parametrize(
    "reason", [OSError(28, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("written", ["", "half"])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    reason, written, tmp_path
):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with whole_file(path) as partial:
            if written:
                partial.write_text(written)
            raise reason

    with pytest.raises(
        StudyError if isinstance(reason, OSError) else type(reason)
    ) as caught:
        write()
    if isinstance(reason, OSError):
        assert str(caught.value).startswith(
            f"{path} cannot be written (No space left on device); free some"
        )
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_what_killed_writers_left_is_removed_and_what_live_ones_write_is_not(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    kept = [
        f".a[1].txt.{os.getppid()}.part",
        f".a1.txt.{dead.pid}.part",
        ".a[1].txt.b.part",
    ]
    for name in (f".a[1].txt.{dead.pid}.part", *kept):
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "a[1].txt", "whole")
    assert names(tmp_path) == sorted([*kept, "a[1].txt"])


def test_whoever_reads_the_old_file_reads_it_to_the_end(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with open(path) as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_text_is_utf8_and_replaces_what_was_there(tmp_path):
    write_text(tmp_path / "a.txt", "long enough to leave a rest")
    write_text(tmp_path / "a.txt", "ε = 5 µV\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xce\xb5 = 5 \xc2\xb5V\n"


def test_json_comes_back_and_is_readable(tmp_path):
    content = {"ε": [0.1, None, True], "b": {"c": "µV"}}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert '"ε"' in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}])
def test_json_refuses_what_json_cannot_say_and_keeps_the_old_file(bad, tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"value": bad})
    assert json.loads((tmp_path / "a.json").read_text()) == 1
    assert names(tmp_path) == ["a.json"]


def test_sha256_is_that_of_the_content(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_lock_is_shared_or_one_holders_until_its_file_is_closed(tmp_path):
    first, second, third = (lock_file(tmp_path / "new/.lock") for _ in range(3))
    with first, second, third:
        assert lock(first, shared=True)
        assert lock(second, shared=True)
        assert not lock(third, wait=False)
        first.close()
        assert not lock(third, wait=False)
        second.close()
        assert lock(third, wait=False)
        with lock_file(tmp_path / "new/.lock") as fourth:
            assert not lock(fourth, shared=True, wait=False)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("wait", [True, False])
def test_a_file_system_without_locks_is_named_and_not_taken_for_another_run(
    number, wait, tmp_path, monkeypatch
):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        lock_file(tmp_path / ".lock") as file,
        pytest.raises(StudyError, match=r"\.lock cannot be locked \("),
    ):
        lock(file, wait=wait)


def test_a_result_appears_with_checksums_that_sha256sum_accepts(tmp_path):
    with write_result(tmp_path / "run") as new:
        new("a.txt").write_text("one")
        new("b.bin").write_bytes(bytes(range(256)))
        assert not (tmp_path / "run" / "a.txt").exists()
    assert names(tmp_path / "run") == [SUMS, "a.txt", "b.bin"]
    check = subprocess.run(["sha256sum", "-c", SUMS], cwd=tmp_path / "run")
    assert check.returncode == 0


def test_results_of_one_folder_keep_each_others_checksums(tmp_path):
    for name, text in (("a.txt", "one"), ("b.txt", "two"), ("a.txt", "three")):
        with write_result(tmp_path) as new:
            new(name).write_text(text)
    assert len((tmp_path / SUMS).read_text().splitlines()) == 2
    assert check_sum(tmp_path / "a.txt").read_text() == "three"
    assert check_sum(tmp_path / "b.txt").read_text() == "two"


def test_a_result_that_fails_leaves_the_earlier_one(tmp_path):
    with write_result(tmp_path) as new:
        new("a.txt").write_text("one")

    def fail() -> None:
        with write_result(tmp_path) as new:
            new("a.txt").write_text("two")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert check_sum(tmp_path / "a.txt").read_text() == "one"
    assert names(tmp_path) == [SUMS, "a.txt"]


@pytest.mark.parametrize("bit", range(8))
def test_one_flipped_bit_is_found(bit, tmp_path):
    with write_result(tmp_path) as new:
        new("a.bin").write_bytes(b"weights")
    content = bytearray(b"weights")
    content[3] ^= 1 << bit
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(StudyError, match=r"a\.bin: damaged"):
        check_sum(tmp_path / "a.bin")
