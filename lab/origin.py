"""The web server that the archives come from: HTTP/1.1 with ranges, validators, credentials, a speed limit, and faults.

``python -m lab.origin --config FILE.json`` serves a directory in the foreground until it is ended. FILE.json holds
``directory``, ``addresses`` (list of ``[host, port]``), and optionally ``username`` with ``password`` (HTTP basic
authentication) and ``bytes_per_second_per_connection`` (0: unlimited), as a data set's server that gives each
connection little and many connections more.

Tests use class `Origin` and hang `Fault`s on it: each misbehaviour of a real server that a download must survive.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import email.utils
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

# Bytes that are sent between two checks of the clock and the faults.
BLOCK_BYTES = 64 * 1024
# Requests remembered for tests; the lab's server runs for weeks and must not grow.
REMEMBERED_REQUESTS = 10_000


@dataclass
class Fault:
    """One misbehaviour. It strikes ``times`` requests (None: all) of ``path`` (None: any), after ``after`` others.

    Requests are GETs in the order in which they arrive. The rest says what happens to a struck request; what is left
    at its default stays as it should be.
    """

    path: str | None = None
    after: int = 0
    times: int | None = None
    html: str | None = None  # this page, with status 200, instead of the file
    status: int | None = None  # this status instead of the file
    reason: str = ""  # with this body
    retry_after: str | None = None  # with this Retry-After header
    redirect: str | None = None  # a 302 to this URL
    ignore_range: bool = False  # the whole file with 200, whatever range was requested
    content_range: str | None = None  # this text as Content-Range
    etag: str | None = None  # this ETag, and If-Range is compared with it
    no_length: bool = False  # no Content-Length; the end of the connection ends the body
    cut_after_bytes: int | None = None  # the connection ends after so many bytes of a body that was announced whole
    corrupt_at: int | None = None  # the byte at this offset of the file is flipped
    drip_seconds: float | None = None  # slow loris: this pause after every byte of the body
    hang_before_headers: bool = False  # the request is read and never answered
    _seen: int = field(default=0, repr=False)

    def strikes(self, path: str) -> bool:
        """Count a GET of ``path`` and say whether it is struck."""
        if self.path is not None and self.path != path:
            return False
        self._seen += 1
        number = self._seen - self.after
        return number > 0 and (self.times is None or number <= self.times)


@dataclass(frozen=True)
class Request:
    """A request as it came in: ``headers`` with lower-case names."""

    method: str
    path: str
    headers: dict[str, str]


class Origin:
    """An HTTP origin for the files in ``directory`` (and below), on each of ``addresses``; port 0 takes a free one."""

    def __init__(
        self,
        directory: Path,
        addresses: list[tuple[str, int]] | None = None,
        username: str | None = None,
        password: str | None = None,
        bytes_per_second_per_connection: int = 0,
    ) -> None:
        self.directory = directory
        self.credentials = None if username is None else _basic(username, password or "")
        self.bytes_per_second_per_connection = bytes_per_second_per_connection
        self.faults: list[Fault] = []
        self.requests: collections.deque[Request] = collections.deque(maxlen=REMEMBERED_REQUESTS)
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._servers = [_Server(address, self) for address in addresses or [("127.0.0.1", 0)]]
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        """The URL of the first address, without a slash at the end."""
        host, port = self._servers[0].server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        """Serve in threads of this process and return at once."""
        for server in self._servers:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the servers and every connection."""
        self.stopping.set()
        for server in self._servers:
            if self._threads:
                server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Origin:  # noqa: PYI034  tests run it under Python 3.9, which has no typing.Self
        """Start."""
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self.stop()

    def note(self, request: Request) -> list[Fault]:
        """Remember ``request`` and return the faults that strike it."""
        with self._lock:
            self.requests.append(request)
            return [fault for fault in self.faults if request.method == "GET" and fault.strikes(request.path)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    # 16 connections of several downloads may arrive at once; Python's default of 5 would make some wait a second.
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], origin: Origin) -> None:
        self.origin = origin
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients that disconnect are expected."""

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "lab-origin"
    sys_version = ""
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing: a request may carry credentials."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        origin = self.server.origin
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = _merge(origin.note(Request(self.command, path, headers)))
        if fault.hang_before_headers:
            origin.stopping.wait()
            self.close_connection = True
        elif fault.status is not None:
            fields = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            self._say(fault.status, fields, fault.reason.encode())
        elif fault.redirect is not None:
            self._say(HTTPStatus.FOUND, {"Location": fault.redirect})
        elif fault.html is not None:
            self._say(HTTPStatus.OK, {"Content-Type": "text/html; charset=utf-8"}, fault.html.encode())
        elif origin.credentials is not None and headers.get("authorization") != origin.credentials:
            self._say(HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": 'Basic realm="origin"'})
        else:
            self._serve(path, headers, fault)

    def _say(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Send a whole short answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _serve(self, path: str, headers: dict[str, str], fault: Fault) -> None:
        """Send the file at ``path``, or the range of it that was requested."""
        parts = [part for part in path.split("/") if part]
        try:
            if not parts or any(part in (".", "..") for part in parts):
                raise FileNotFoundError(path)
            file = self.server.origin.directory.joinpath(*parts).open("rb")
        except (OSError, ValueError):
            self._say(HTTPStatus.NOT_FOUND, {})
            return
        with file:
            status = _status_of(file)
            etag = fault.etag or status.etag
            fields = {"ETag": etag, "Last-Modified": status.modified, "Accept-Ranges": "bytes"}
            span = (0, status.size)
            if not fault.ignore_range and headers.get("if-range") in (None, etag, status.modified):
                try:
                    asked = parse_range(headers.get("range"), status.size)
                except ValueError:
                    unsatisfied = {"Content-Range": f"bytes */{status.size}"}
                    self._say(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, unsatisfied)
                    return
                if asked is not None:
                    span = asked
                    fields["Content-Range"] = fault.content_range or f"bytes {span[0]}-{span[1] - 1}/{status.size}"
            self.send_response(HTTPStatus.PARTIAL_CONTENT if "Content-Range" in fields else HTTPStatus.OK)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/octet-stream")
            if fault.no_length:
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(span[1] - span[0]))
            self.end_headers()
            if self.command == "GET":
                self._send_body(file, span, fault)

    def _send_body(self, file: BinaryIO, span: tuple[int, int], fault: Fault) -> None:
        """Send the bytes ``span`` of ``file`` at the origin's speed, as far as ``fault`` lets them come."""
        start, end = span
        if fault.cut_after_bytes is not None and start + fault.cut_after_bytes < end:
            end = start + fault.cut_after_bytes
            self.close_connection = True
        limit = self.server.origin.bytes_per_second_per_connection
        if not limit and fault.corrupt_at is None and fault.drip_seconds is None:
            self.wfile.flush()
            self.connection.sendfile(file, start, end - start)
            return
        file.seek(start)
        began = time.monotonic()
        for offset, block in _blocks(file, start, end, 1 if fault.drip_seconds else BLOCK_BYTES):
            if fault.corrupt_at is not None and offset <= fault.corrupt_at < offset + len(block):
                self.wfile.write(_flip(block, fault.corrupt_at - offset))
            else:
                self.wfile.write(block)
            sent = offset + len(block) - start
            ahead_seconds = fault.drip_seconds or (began + sent / limit - time.monotonic() if limit else 0)
            if ahead_seconds > 0 and self.server.origin.stopping.wait(ahead_seconds):
                return


@dataclass(frozen=True)
class _FileStatus:
    size: int
    etag: str
    modified: str


def _status_of(file: BinaryIO) -> _FileStatus:
    """Return size and validators of ``file``; the ETag is made of size and time, as common servers make it."""
    status = os.fstat(file.fileno())
    return _FileStatus(
        size=status.st_size,
        etag=f'"{status.st_size:x}-{status.st_mtime_ns:x}"',
        modified=email.utils.formatdate(status.st_mtime, usegmt=True),
    )


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the ``(start, end)`` (end exclusive) that a Range header requests of a file of ``size`` bytes.

    None where there is no header, or one that a server may ignore (another unit, several ranges; RFC 9110, 14.2).
    Raises ValueError where no byte of the file satisfies it.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), size if last == "" else min(int(last) + 1, size)
        if last != "" and int(last) < start:
            return None
    if start >= end:
        raise ValueError(f"no byte of {size} lies in {header}")
    return start, end


def _blocks(file: BinaryIO, start: int, end: int, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of each block of ``file`` from ``start`` to ``end``."""
    while start < end:
        block = file.read(min(block_bytes, end - start))
        if not block:
            return
        yield start, block
        start += len(block)


def _flip(block: bytes, position: int) -> bytes:
    """Return ``block`` with every bit of the byte at ``position`` turned."""
    return block[:position] + bytes([block[position] ^ 0xFF]) + block[position + 1 :]


def _merge(faults: list[Fault]) -> Fault:
    """Return one fault that does what all of ``faults`` do; of two that differ in one thing the later wins."""
    merged = Fault()
    for fault in faults:
        for name, value in vars(fault).items():
            if value != getattr(Fault(), name):
                setattr(merged, name, value)
    return merged


def _basic(username: str, password: str) -> str:
    """Return the Authorization header of RFC 7617."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def main() -> None:
    """Serve what the configuration says until the process is ended."""
    parser = argparse.ArgumentParser(description="The lab's web server for archives.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file; see the head of lab/origin.py")
    config = json.loads(parser.parse_args().config.read_text(encoding="utf-8"))
    origin = Origin(
        directory=Path(config["directory"]),
        addresses=[(host, port) for host, port in config["addresses"]],
        username=config.get("username"),
        password=config.get("password"),
        bytes_per_second_per_connection=config.get("bytes_per_second_per_connection", 0),
    )
    # Said outright, for a program that a shell starts in the background finds SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), origin:
        origin.stopping.wait()


if __name__ == "__main__":
    main()
