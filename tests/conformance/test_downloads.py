"""The same downloads, by this project and by curl: where they differ, downloads.md says who is right, and why."""

from __future__ import annotations

import gzip
import http.server
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.download.fetch import FetchRequest, fetch

TABLE = Path(__file__).with_name("downloads.md")
CONTENT = random.Random(1).randbytes(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each path in its own way."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012 (of all requests)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.rpartition("/")[2]
        type(self).asked.append(path)
        ANSWERS[path](self)

    def answer(self, status: int, body: bytes = b"", /, *, length: int = -1, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def file(self, **header: str) -> None:
        """The file, or the part of it that was requested."""
        requested = self.headers.get("Range", "")
        if not requested:
            self.answer(200, CONTENT, length=-1, **header)
            return
        first, last = requested.removeprefix("bytes=").split("-")
        part = CONTENT[int(first) : int(last) + 1]
        place = f"bytes {first}-{int(first) + len(part) - 1}/{len(CONTENT)}"
        self.answer(206, part, length=-1, Content_Range=place, **header)

    def chunked(self, *, whole: bool) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        half = CONTENT[: len(CONTENT) // 2]
        for part in (half, CONTENT[len(half) :]) if whole else (half,):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def without_length(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def cut_off(self) -> None:
        self.answer(200, CONTENT[:1000], length=len(CONTENT))
        self.close_connection = True

    def once(self, status: int) -> None:
        """Fail for the first time."""
        path = self.path.rpartition("/")[2]
        if self.asked.count(path) == 1:
            self.answer(status)
        else:
            self.file()


ANSWERS: dict[str, Callable[[Handler], None]] = {
    "ranges": lambda h: h.file(ETag='"1"'),
    "no-ranges": lambda h: h.answer(200, CONTENT),
    "redirect": lambda h: h.answer(302, Location="ranges"),
    "redirect-308": lambda h: h.answer(308, Location="/somewhere/ranges"),
    "redirect-to-itself": lambda h: h.answer(302, Location="redirect-to-itself"),
    "redirect-to-nothing": lambda h: h.answer(302, Location="http://[::1/ranges"),
    "not-found": lambda h: h.answer(404, b"gone"),
    "forbidden": lambda h: h.answer(403),
    "once-503": lambda h: h.once(503),
    "once-520": lambda h: h.once(520),
    "always-503": lambda h: h.answer(503),
    "chunked": lambda h: h.chunked(whole=True),
    "chunked-cut-off": lambda h: h.chunked(whole=False),
    "cut-off": Handler.cut_off,
    "no-length": lambda h: h.without_length(CONTENT),
    "no-length-cut-off": lambda h: h.without_length(CONTENT[:1000]),
    "gzip-not-requested": lambda h: h.answer(200, gzip.compress(CONTENT), Content_Encoding="gzip"),
    "identity-encoding": lambda h: h.file(Content_Encoding="identity"),
    "page": lambda h: h.answer(200, b"<html>Please log in</html>", Content_Type="text/html"),
    "empty": lambda h: h.answer(200),
    "status-206-of-all": lambda h: h.answer(206, CONTENT, Content_Range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"),
}


class Server(http.server.ThreadingHTTPServer):
    """A server that says nothing of connections which the other side ended."""

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Handler.asked.clear()
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def ours(url: str, folder: Path) -> str:
    """What `archive_fetch` gives, knowing nothing of the file but what the server says."""
    dest = folder / "a.tar"
    try:
        fetch(FetchRequest([url], str(dest), str(folder / "state"), retries=1, timeout_seconds=10))
    except OpsError:
        assert not dest.exists()
        return "refused"
    return in_words(dest.read_bytes())


def of_curl(url: str, folder: Path) -> str:
    dest = folder / "b.tar"
    options = ["--fail", "--location", "--retry", "1", "--retry-delay", "1", "--silent", "--noproxy", "*"]
    done = subprocess.run(["curl", *options, "-o", str(dest), url], check=False, capture_output=True, timeout=60)
    return "refused" if done.returncode else in_words(dest.read_bytes() if dest.exists() else b"")


def in_words(content: bytes) -> str:
    return "the file" if content == CONTENT else "other bytes" if content else "an empty file"


def table() -> dict[str, list[str]]:
    rows = [line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in rows if name != "server"}


@pytest.mark.parametrize("name", ANSWERS)
def test_our_verdict_is_that_of_the_table(url: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    assert ours(f"{url}/{name}", tmp_path) == table()[name][0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("name", ANSWERS)
def test_the_verdict_of_curl_is_that_of_the_table(url: str, tmp_path: Path, name: str) -> None:
    assert of_curl(f"{url}/{name}", tmp_path) == table()[name][1]


def test_the_table_has_all_servers_and_no_others() -> None:
    assert table().keys() == ANSWERS.keys()
