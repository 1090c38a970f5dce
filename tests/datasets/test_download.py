import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from ecgstudy.datasets import download as module
from ecgstudy.datasets.download import SOURCES, fetch_dataset
from ecgstudy.errors import StudyError

BIG = 400_000
TREE = {
    "100.hea": b"100 2 360",
    "100.dat": np.random.default_rng(0).bytes(BIG),
    "101.dat": b"second file",
    "records/7.dat": b"in a folder",
    "notes.txt": b"listed, but not needed",
}
NEEDED = set(TREE) - {"notes.txt"}


def sums_of(files):
    lines = (f"{hashlib.sha256(files[name]).hexdigest()} {name}\n" for name in files)
    return "".join(lines).encode()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.site.files`; may cut answers short, or redirect."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site, name = self.server.site, self.path.removeprefix("/")
        site.log.append(name)
        if site.redirect:
            return self.reply(302, b"", {"Location": site.redirect})
        if name not in site.files:
            return self.reply(404, b"no such file")
        kept = None
        if site.cuts.get(name, 0) > 0:
            site.cuts[name] -= 1
            kept = len(site.files[name]) // 2
        self.reply(200, site.files[name], kept=kept)

    def reply(self, status, body, headers=None, kept=None):
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:kept])
        self.close_connection = kept is not None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def site(monkeypatch):
    """A server on this machine, of which the data set `tiny` can be fetched."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE_S", 0)
    monkeypatch.setitem(SOURCES, "tiny", ("", r"\d{3}\.(hea|dat|atr)|records/\d+\.dat"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = SimpleNamespace(
        files={**TREE, "SHA256SUMS.txt": sums_of(TREE)},
        cuts={},
        redirect=None,
        log=[],
        base=f"http://127.0.0.1:{server.server_port}/",
    )
    arguments = {"poll_interval": 0.01}
    thread = threading.Thread(target=server.serve_forever, kwargs=arguments)
    thread.start()
    yield server.site
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(site, folder):
    return fetch_dataset("tiny", folder, site.base)


def whole(folder):
    return {name for name in TREE if (folder / name).exists()}


def test_only_the_files_needed_are_fetched_and_they_are_whole(site, tmp_path):
    assert fetch(site, tmp_path / "new") == tmp_path / "new"
    assert whole(tmp_path / "new") == NEEDED
    for name in NEEDED:
        assert (tmp_path / "new" / name).read_bytes() == TREE[name]
    assert not list(tmp_path.rglob("*.part"))


def test_whole_files_are_not_fetched_again_and_damaged_ones_are(site, tmp_path):
    fetch(site, tmp_path)
    site.log.clear()
    fetch(site, tmp_path)
    assert site.log == []
    (tmp_path / "101.dat").write_bytes(b"second  ile")
    fetch(site, tmp_path)
    assert site.log == ["101.dat"]
    assert (tmp_path / "101.dat").read_bytes() == TREE["101.dat"]


def test_two_studies_that_fetch_the_same_do_it_one_after_the_other(site, tmp_path):
    both = [threading.Thread(target=fetch, args=(site, tmp_path)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(site.log) == sorted([*NEEDED, "SHA256SUMS.txt"])


def test_a_broken_connection_is_tried_again(site, tmp_path):
    site.cuts = {"100.dat": 1}
    fetch(site, tmp_path)
    assert (tmp_path / "100.dat").read_bytes() == TREE["100.dat"]
    assert site.log.count("100.dat") == 2


def test_dead_and_corrupted_files_are_named_after_all_others_were_fetched(
    site, tmp_path
):
    del site.files["100.hea"]
    site.files["100.dat"] = b"\0" * BIG
    with pytest.raises(StudyError, match="2 of 4 files failed") as caught:
        fetch(site, tmp_path)
    assert "100.dat has a wrong checksum" in str(caught.value)
    assert "100.hea could not be fetched (HTTP status 404)" in str(caught.value)
    assert whole(tmp_path) == {"101.dat", "records/7.dat"}
    site.files.update(TREE)
    fetch(site, tmp_path)
    assert whole(tmp_path) == NEEDED


def test_redirects_are_refused(site, tmp_path):
    site.redirect = "http://127.0.0.1:9/elsewhere"
    with pytest.raises(StudyError, match=r"SUMS\.txt could not .*\(HTTP status 302\)"):
        fetch(site, tmp_path)


def test_after_many_failures_the_rest_is_not_tried(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    many = {f"{number}.dat": b"" for number in range(200, 400)}
    site.files = {"SHA256SUMS.txt": sums_of(many)}
    with pytest.raises(StudyError, match="200 of 200 files failed"):
        fetch(site, tmp_path)
    # Eight connections may have been under way.
    assert module.GIVE_UP_AFTER <= len(site.log) - 1 <= module.GIVE_UP_AFTER + 8


def test_no_server_is_one_error_that_names_the_address(site, tmp_path):
    address = r"http://127\.0\.0\.1:9/SHA256SUMS\.txt could not be fetched"
    with pytest.raises(StudyError, match=f"tiny: {address}"):
        fetch_dataset("tiny", tmp_path, "http://127.0.0.1:9/")


@pytest.mark.parametrize(
    "sums", [b"<html>please log in</html>\n", b"", sums_of({"../../evil.dat": b"x"})]
)
def test_a_list_without_the_files_is_an_error(site, tmp_path, sums):
    site.files["SHA256SUMS.txt"] = sums
    with pytest.raises(StudyError, match=r"SHA256SUMS\.txt.*delete it and run again"):
        fetch(site, tmp_path)


def test_addresses_are_physionet_over_tls_with_a_pinned_version():
    addresses = {name: module.BASE + place for name, (place, _) in SOURCES.items()}
    assert addresses == {
        "mitdb": "https://physionet.org/files/mitdb/1.0.0/",
        "ptbxl": "https://physionet.org/files/ptb-xl/1.0.3/",
    }
