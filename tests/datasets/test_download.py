import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from ecgstudy.datasets import download as module
from ecgstudy.datasets.download import SOURCES, Source, fetch_dataset
from ecgstudy.errors import StudyError

NEEDED = r"\d{3}\.(hea|dat|atr)|records/\d+\.dat"
BIG = 400_000
TREE = {
    "100.hea": b"100 2 360",
    "100.dat": np.random.default_rng(0).bytes(BIG),
    "101.dat": b"second file",
    "records/7.dat": b"in a folder",
    "notes.txt": b"listed, but not needed",
}


def sums_of(files):
    return "".join(
        f"{hashlib.sha256(content).hexdigest()} {name}\n"
        for name, content in files.items()
    ).encode()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.site.files`; may cut answers short, refuse ranges, redirect."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site, name = self.server.site, self.path.removeprefix("/")
        site.log.append((name, self.headers.get("Range")))
        if site.redirect:
            return self.reply(302, b"", {"Location": site.redirect})
        if name not in site.files:
            return self.reply(404, b"no such file")
        content, start = site.files[name], 0
        if site.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.reply(416, b"")
        span = (
            {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            if start
            else {}
        )
        kept = None
        if site.cuts.get(name, 0) > 0:
            site.cuts[name] -= 1
            kept = (len(content) - start) // 2
        self.reply(206 if start else 200, content[start:], span, kept)

    def reply(self, status, body, headers=None, kept=None):
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:kept])
        self.close_connection = kept is not None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE_S", 0)
    monkeypatch.setattr(module, "ADDRESSES", ("http://127.0.0.1:",))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    files = {**TREE, "SHA256SUMS.txt": sums_of(TREE)}
    server.site = SimpleNamespace(
        files=files, cuts={}, ranges=True, redirect=None, log=[]
    )
    server.site.source = Source(f"http://127.0.0.1:{server.server_port}/", NEEDED)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}
    )
    thread.start()
    yield server.site
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(site, folder, workers=2):
    return fetch_dataset("tiny", folder, site.source, workers)


def whole(folder):
    return {
        name: (folder / name).read_bytes() for name in TREE if (folder / name).exists()
    }


def test_only_the_files_needed_are_fetched_and_they_are_whole(site, tmp_path):
    assert fetch(site, tmp_path / "new") == tmp_path / "new"
    assert whole(tmp_path / "new") == {
        name: content for name, content in TREE.items() if name != "notes.txt"
    }
    assert not list(tmp_path.rglob("*.part"))


def test_whole_files_are_not_fetched_again_even_offline(site, tmp_path):
    fetch(site, tmp_path)
    site.log.clear()
    fetch(site, tmp_path)
    assert site.log == []


def test_an_altered_file_is_fetched_again(site, tmp_path):
    fetch(site, tmp_path)
    (tmp_path / "101.dat").write_bytes(b"second  ile")
    site.log.clear()
    fetch(site, tmp_path)
    assert site.log == [("101.dat", None)]
    assert (tmp_path / "101.dat").read_bytes() == TREE["101.dat"]


def test_two_studies_that_fetch_the_same_do_it_one_after_the_other(site, tmp_path):
    both = [threading.Thread(target=fetch, args=(site, tmp_path)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(name for name, _ in site.log) == [
        "100.dat",
        "100.hea",
        "101.dat",
        "SHA256SUMS.txt",
        "records/7.dat",
    ]
    assert len(whole(tmp_path)) == 4


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_resumed(site, tmp_path, ranges):
    site.ranges, site.cuts = ranges, {"100.dat": 1}
    fetch(site, tmp_path)
    assert (tmp_path / "100.dat").read_bytes() == TREE["100.dat"]
    asked = [span for name, span in site.log if name == "100.dat"]
    assert len(asked) == 2
    assert asked[0] is None
    assert 0 < int(asked[1].removeprefix("bytes=").removesuffix("-")) <= BIG // 2


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_resumed_by_the_next_one(
    site, tmp_path, monkeypatch, ranges
):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    site.ranges, site.cuts = ranges, {"100.dat": 1}
    with pytest.raises(
        StudyError, match=r"tiny: 1 of 4 files failed: 100\.dat could not be fetched"
    ):
        fetch(site, tmp_path)
    part = tmp_path / "100.dat.part"
    size = part.stat().st_size
    assert 0 < size <= BIG // 2
    assert part.read_bytes() == TREE["100.dat"][:size]
    assert set(whole(tmp_path)) == {"100.hea", "101.dat", "records/7.dat"}
    site.log.clear()
    fetch(site, tmp_path)
    assert site.log == [("100.dat", f"bytes={size}-")]
    assert (tmp_path / "100.dat").read_bytes() == TREE["100.dat"]
    assert not part.exists()


@pytest.mark.parametrize(
    "part", [b"not the beginning", TREE["101.dat"], b"much longer than the second file"]
)
def test_a_useless_part_is_thrown_away(site, tmp_path, part):
    (tmp_path / "101.dat.part").write_bytes(part)
    fetch(site, tmp_path)
    assert (tmp_path / "101.dat").read_bytes() == TREE["101.dat"]


def test_dead_and_corrupted_files_are_named_after_all_others_were_fetched(
    site, tmp_path
):
    del site.files["100.hea"]
    site.files["100.dat"] = b"\0" * BIG
    with pytest.raises(StudyError) as caught:
        fetch(site, tmp_path)
    assert "2 of 4 files failed" in str(caught.value)
    assert "100.dat has a wrong checksum" in str(caught.value)
    assert "100.hea could not be fetched (HTTP status 404)" in str(caught.value)
    assert set(whole(tmp_path)) == {"101.dat", "records/7.dat"}
    site.files.update(TREE)
    fetch(site, tmp_path)
    assert len(whole(tmp_path)) == 4


def test_a_server_that_sends_too_much_is_stopped(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100_000)
    with pytest.raises(
        StudyError, match=r"100\.dat could not be fetched \(over 100000 bytes\)"
    ):
        fetch(site, tmp_path)
    assert (tmp_path / "101.dat").exists()


def test_a_list_of_too_much_is_not_fetched_to_its_end(site, tmp_path):
    bounded = Source(site.source.base, NEEDED, most=100_000)
    with pytest.raises(
        StudyError,
        match=r"of 4 files failed: .* was not tried \(over 100000 bytes in all\)",
    ):
        fetch_dataset("tiny", tmp_path, bounded, workers=1)
    assert set(whole(tmp_path)) == {"100.hea", "100.dat"}


@pytest.mark.parametrize(
    "address",
    [
        "http://physionet.org/files/",
        "https://physionet.org.example.net/files/",
        "https://example.net/physionet.org/",
        "https://me@example.net/",
        "ftp://physionet.org/",
        "file:///etc/",
    ],
)
def test_other_addresses_are_refused_before_anything_is_asked_of_them(
    address, tmp_path
):
    with pytest.raises(StudyError) as caught:
        fetch_dataset("tiny", tmp_path / "new", Source(address, NEEDED))
    assert (
        str(caught.value)
        == f"tiny: {address} is refused; data come from https://physionet.org/"
    )
    assert not (tmp_path / "new").exists()


def test_redirects_are_refused(site, tmp_path):
    site.redirect = "http://127.0.0.1:9/elsewhere"
    with pytest.raises(
        StudyError, match=r"SHA256SUMS\.txt could not be fetched \(HTTP status 302\)"
    ):
        fetch(site, tmp_path)


def test_after_many_failures_the_rest_is_not_tried(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    site.files = {
        "SHA256SUMS.txt": sums_of({f"{number}.dat": b"" for number in range(200, 400)})
    }
    with pytest.raises(StudyError, match="200 of 200 files failed"):
        fetch(site, tmp_path)
    assert (
        module.GIVE_UP_AFTER <= len(site.log) - 1 <= module.GIVE_UP_AFTER + 2
    )  # two connections


def test_no_server_is_one_error_that_names_the_address(site, tmp_path):
    nobody = Source("http://127.0.0.1:9/", NEEDED)
    with pytest.raises(
        StudyError,
        match=r"tiny: http://127\.0\.0\.1:9/SHA256SUMS\.txt could not be fetched",
    ):
        fetch_dataset("tiny", tmp_path, nobody)


@pytest.mark.parametrize(
    "sums", [b"<html>please log in</html>\n", b"", sums_of({"../../evil.dat": b"x"})]
)
def test_a_list_without_the_files_is_an_error(site, tmp_path, sums):
    site.files["SHA256SUMS.txt"] = sums
    with pytest.raises(StudyError, match=r"SHA256SUMS\.txt.*delete it and run again"):
        fetch(site, tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error(site, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        StudyError, match=r"file/new cannot be written \(Not a directory\)"
    ):
        fetch(site, tmp_path / "file" / "new")


def test_addresses_are_physionet_over_tls_with_a_pinned_version():
    assert all(source.base.startswith(module.ADDRESSES) for source in SOURCES.values())
    bases = {name: source.base for name, source in SOURCES.items()}
    assert bases == {
        "mitdb": "https://physionet.org/files/mitdb/1.0.0/",
        "ptbxl": "https://physionet.org/files/ptb-xl/1.0.3/",
    }
