"""The origin is a correct web server until it is told not to be."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.origin import Fault, Origin, parse_range

ROOT = Path(__file__).resolve().parents[3]
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    with Origin(tmp_path) as running:
        yield running


class Answer:
    """A whole answer: status, headers and body, as far as it came."""

    def __init__(self, connection: http.client.HTTPConnection, path: str, method: str, headers: dict[str, str]) -> None:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.truncated = False
        try:
            self.body = response.read()
        except http.client.IncompleteRead as error:
            self.body, self.truncated = error.partial, True


def ask(origin: Origin, path: str = "/a.tar", method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(origin.url).netloc, timeout=10)
    try:
        return Answer(connection, path, method, {name.replace("_", "-"): value for name, value in headers.items()})
    finally:
        connection.close()


def test_the_whole_file_and_its_head(origin: Origin) -> None:
    whole = ask(origin)
    assert (whole.status, whole.body) == (200, CONTENT)
    assert whole.headers["accept-ranges"] == "bytes"
    head = ask(origin, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert {name: head.headers[name] for name in ("etag", "last-modified", "content-length")} == {
        name: whole.headers[name] for name in ("etag", "last-modified", "content-length")
    }


@pytest.mark.parametrize(
    ("asked", "content_range", "body"),
    [
        ("bytes=0-0", "bytes 0-0/102400", CONTENT[:1]),
        ("bytes=10-19", "bytes 10-19/102400", CONTENT[10:20]),
        ("bytes=102300-", "bytes 102300-102399/102400", CONTENT[-100:]),
        ("bytes=-7", "bytes 102393-102399/102400", CONTENT[-7:]),
        ("bytes=102000-999999", "bytes 102000-102399/102400", CONTENT[-400:]),
    ],
)
def test_parts(origin: Origin, asked: str, content_range: str, body: bytes) -> None:
    answer = ask(origin, Range=asked)
    assert (answer.status, answer.headers["content-range"], answer.body) == (206, content_range, body)


@pytest.mark.parametrize("asked", ["bytes=102400-", "bytes=-0", "bytes=200000-300000"])
def test_no_such_part(origin: Origin, asked: str) -> None:
    answer = ask(origin, Range=asked)
    assert (answer.status, answer.headers["content-range"], answer.body) == (416, "bytes */102400", b"")


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=1-2", "bytes=9-3", "bytes=x-"])
def test_what_is_no_single_range_is_ignored(origin: Origin, asked: str) -> None:
    assert ask(origin, Range=asked).body == CONTENT


@given(st.integers(1, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_is_what_a_slice_is(size: int, first: int, last: int) -> None:
    content = bytes(range(size))
    if first >= size and first <= last:
        with pytest.raises(ValueError, match="no byte"):
            parse_range(f"bytes={first}-{last}", size)
    elif first > last:
        assert parse_range(f"bytes={first}-{last}", size) is None
    else:
        span = parse_range(f"bytes={first}-{last}", size)
        assert span is not None
        assert content[slice(*span)] == content[first : last + 1]


def test_if_range_gives_the_part_only_of_the_same_file(origin: Origin, tmp_path: Path) -> None:
    known = ask(origin, method="HEAD").headers
    for validator in (known["etag"], known["last-modified"]):
        assert ask(origin, Range="bytes=0-1", If_Range=validator).status == 206
    os.utime(tmp_path / "a.tar", (1, 1))
    for validator in (known["etag"], known["last-modified"]):
        answer = ask(origin, Range="bytes=0-1", If_Range=validator)
        assert (answer.status, len(answer.body)) == (200, len(CONTENT))


@pytest.mark.parametrize("path", ["/b.tar", "/", "/../a.tar", "/%2e%2e/a.tar", "/a.tar/x", "/%00"])
def test_nothing_but_files_of_the_directory(origin: Origin, path: str) -> None:
    assert ask(origin, path).status == 404


def test_a_connection_serves_many_requests(origin: Origin) -> None:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(origin.url).netloc, timeout=10)
    connection.connect()
    local_port = connection.sock.getsockname()[1]
    for path, headers in (("/a.tar", {}), ("/none", {}), ("/a.tar", {"Range": "bytes=1-2"}), ("/empty", {})):
        Answer(connection, path, "GET", headers)
        assert connection.sock.getsockname()[1] == local_port
    connection.close()


def test_credentials(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    with Origin(tmp_path, username="user", password="pass:word") as origin:
        right = base64.b64encode(b"user:pass:word").decode()
        assert ask(origin, Authorization=f"Basic {right}").body == CONTENT
        refused = ask(origin, Authorization="Basic wrong")
        assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Basic realm="origin"')
        assert ask(origin).status == 401


def test_each_connection_has_its_own_speed_limit(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    with Origin(tmp_path, bytes_per_second_per_connection=400_000) as origin:
        began = time.monotonic()
        assert ask(origin).body == CONTENT
        assert 0.15 < time.monotonic() - began < 2


def test_several_addresses(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    with Origin(tmp_path, addresses=[("127.0.0.1", 0), ("127.0.0.2", 0)]) as origin:
        for server in origin._servers:
            host, port = server.server_address[:2]
            connection = http.client.HTTPConnection(f"{host!s}:{port}", timeout=10)
            assert Answer(connection, "/a.tar", "GET", {}).body == CONTENT
            connection.close()


def test_faults(origin: Origin) -> None:
    def struck(fault: Fault, **headers: str) -> Answer:
        origin.faults = [fault]
        return ask(origin, **headers)

    page = struck(Fault(html="<html>sorry</html>"))
    assert (page.status, page.headers["content-type"], page.body) == (
        200,
        "text/html; charset=utf-8",
        b"<html>sorry</html>",
    )
    busy = struck(Fault(status=503, retry_after="7"))
    assert (busy.status, busy.headers["retry-after"]) == (503, "7")
    assert struck(Fault(status=403, reason="expired")).body == b"expired"
    moved = struck(Fault(redirect="http://elsewhere/"))
    assert (moved.status, moved.headers["location"]) == (302, "http://elsewhere/")
    assert struck(Fault(ignore_range=True), Range="bytes=0-1").body == CONTENT
    assert struck(Fault(content_range="bytes 5-6/7"), Range="bytes=0-1").headers["content-range"] == "bytes 5-6/7"
    assert struck(Fault(etag='"other"')).headers["etag"] == '"other"'
    assert "content-length" not in struck(Fault(no_length=True)).headers
    cut = struck(Fault(cut_after_bytes=1000))
    assert (cut.truncated, len(cut.body), cut.headers["content-length"]) == (True, 1000, "102400")
    corrupt = struck(Fault(corrupt_at=70_000))
    assert [at for at in range(len(CONTENT)) if corrupt.body[at] != CONTENT[at]] == [70_000]
    began = time.monotonic()
    assert struck(Fault(drip_seconds=0.05), Range="bytes=0-3").body == CONTENT[:4]
    assert time.monotonic() - began >= 0.15


def test_a_fault_strikes_some_requests_of_some_paths(origin: Origin) -> None:
    origin.faults = [Fault(path="/a.tar", after=1, times=2, status=503)]
    assert ask(origin, "/empty").status == 200
    assert [ask(origin).status for _ in range(5)] == [200, 503, 503, 200, 200]


def test_requests_are_remembered(origin: Origin) -> None:
    ask(origin, Range="bytes=0-1")
    assert [(request.method, request.path, request.headers["range"]) for request in origin.requests] == [
        ("GET", "/a.tar", "bytes=0-1")
    ]


def test_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    with Origin(tmp_path) as other:
        port = urllib.parse.urlsplit(other.url).port
    config = tmp_path / "origin.json"
    config.write_text(
        json.dumps(
            {
                "directory": str(tmp_path),
                "addresses": [["127.0.0.1", port]],
                "username": "user",
                "password": "word",
            }
        )
    )
    program = subprocess.Popen([sys.executable, "-m", "lab.origin", "--config", str(config)], cwd=ROOT)
    try:
        connection = connected(port or 0)
        credentials = base64.b64encode(b"user:word").decode()
        assert Answer(connection, "/a.tar", "GET", {"Authorization": f"Basic {credentials}"}).body == CONTENT
        connection.close()
    finally:
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=10) == 0


def connected(port: int) -> http.client.HTTPConnection:
    """Return a connection to the program, which needs a moment to start."""
    deadline = time.monotonic() + 20
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.connect()
            return connection
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the program does not listen"
            time.sleep(0.05)
