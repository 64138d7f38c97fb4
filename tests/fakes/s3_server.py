"""A bucket on a real socket, to read from: lists and gives objects, and fails in the ways that a test asks for."""

from __future__ import annotations

import hashlib
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

BUCKET = "imagenet-backup"


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error of S3."""

    status: int
    code: str
    message: str = "No."


@dataclass(frozen=True)
class Cut:
    """The connection ends after so many bytes of the body."""

    after_bytes: int


Fault = Callable[[str, str], "Refusal | Cut | None"]


class S3Server(ThreadingHTTPServer):
    """A context manager. ``objects`` is the content by key; ``fault(operation, key)`` says what goes wrong.

    ``requests`` has operation ("list", "get") and key of each request, in order; ``sent_bytes`` is what bodies had.
    """

    daemon_threads = True

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = objects
        self.scheme = "http"
        self.fault: Fault = lambda _operation, _key: None
        self.requests: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def encrypt(self, chain: Path) -> None:
        """Speak TLS from now on, with the key and the certificate in the file ``chain``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https"

    def __enter__(self) -> S3Server:  # noqa: PYI034
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: clients are killed while they read."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body would wait for the client to acknowledge the headers, 40 ms each time
    server: S3Server

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        key = urllib.parse.unquote(url.path).removeprefix(f"/{BUCKET}").lstrip("/")
        operation = "get" if key else "list"
        with self.server.lock:
            self.server.requests.append((operation, key))
            fault = self.server.fault(operation, key)
        if isinstance(fault, Refusal):
            self._refuse(fault)
        elif not key:
            self._answer(200, self._listing(query.get("prefix", "")), {})
        else:
            self._object(key, fault)

    def _object(self, key: str, cut: Cut | None) -> None:
        content = self.server.objects.get(key)
        if content is None:
            self._refuse(Refusal(404, "NoSuchKey"))
            return
        if self.headers.get("If-Match") not in (None, _etag(content)):
            self._refuse(Refusal(412, "PreconditionFailed"))
            return
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        body = content[first : last + 1]
        headers = {"ETag": _etag(content), "Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._answer(206, body, headers, cut)

    def _listing(self, prefix: str) -> bytes:
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-{number + 1:02d}T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(_etag(content).strip(chr(34)))}</ETag><Size>{len(content)}</Size></Contents>"
            for number, (key, content) in enumerate(self.server.objects.items())
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()

    def _refuse(self, refusal: Refusal) -> None:
        body = f"<Error><Code>{refusal.code}</Code><Message>{refusal.message}</Message></Error>"
        self._answer(refusal.status, body.encode(), {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: Cut | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if cut is not None:
            body, self.close_connection = body[: cut.after_bytes], True
        with self.server.lock:
            self.server.sent_bytes += len(body)
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'
