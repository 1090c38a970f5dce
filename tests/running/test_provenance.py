"""What a result was made with."""

import json
import subprocess

from ecgstudy.running.provenance import PACKAGES, environment, git_commit


def git(folder, *arguments):
    who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    call = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(
        call, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_git_commit_names_the_commit_and_marks_changes(tmp_path):
    assert git_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == commit + "+"


def test_environment_is_json_and_lists_the_packages(tmp_path):
    known = json.loads(json.dumps(environment(tmp_path)))
    assert set(PACKAGES) <= set(known)
    assert known["commit"] is None
    assert known["torch"].startswith("2.")
