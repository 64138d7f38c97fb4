"""The instance metadata service (IMDS) of one host: version 2 with tokens, version 1 where the instance allows it.

Every host has a server of its own on a socket in its own network namespace, so the caller needs no guessing and the
machine itself never sees 169.254.169.254. What it answers follows the EC2 User Guide, "Instance metadata categories".
"""

from __future__ import annotations

import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN_PATH = "/latest/api/token"  # noqa: S105 - names, not tokens
TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105
TOKEN_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"  # noqa: S105
MAXIMUM_TTL_SECONDS = 21600
_VERSIONED = re.compile(r"^/(?:latest|\d{4}-\d{2}-\d{2})/(.*)$")


@dataclass(frozen=True)
class Metadata:
    """What a host may know of itself. ``values`` maps a path, as ``meta-data/instance-id``, to its text."""

    values: Mapping[str, str]
    enabled: bool
    token_required: bool


def find(values: Mapping[str, str], path: str) -> str | None:
    """Return the text at ``path``, or the list of what lies below it, or None where there is neither."""
    if path in values:
        return values[path]
    folder = f"{path.rstrip('/')}/"
    below = [name.removeprefix(folder) for name in values if name.startswith(folder)]
    names = {rest.split("/")[0] + ("/" if "/" in rest else "") for rest in below}
    return "\n".join(sorted(names)) if names else None


class Tokens:
    """The session tokens that one instance has been given."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: dict[str, float] = {}

    def issue(self, ttl_seconds: int) -> str:
        """Return a new token that lives ``ttl_seconds``."""
        token = secrets.token_urlsafe(40)
        self._ends[token] = self._clock() + ttl_seconds
        return token

    def accept(self, token: str) -> bool:
        """Return whether ``token`` was issued here and still lives."""
        return self._ends.get(token, 0.0) > self._clock()


class MetadataServer:
    """Answers one host. ``read`` returns the instance's metadata as it is at the moment of a request."""

    def __init__(self, read: Callable[[], Metadata]) -> None:
        self._read = read
        self._tokens = Tokens()
        self._server: ThreadingHTTPServer | None = None

    def serve(self, listener: socket.socket) -> None:
        """Answer on ``listener`` from a thread of its own until `stop`."""
        address: tuple[str, int] = listener.getsockname()
        server = ThreadingHTTPServer(address, self._handler(), bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        self._server = server
        threading.Thread(target=server.serve_forever, name="metadata", daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def issue_token(self, ttl: str | None, forwarded: bool) -> tuple[HTTPStatus, str]:
        """Answer the PUT of a token that is to live ``ttl`` seconds."""
        if not self._read().enabled or forwarded:
            return HTTPStatus.FORBIDDEN, ""
        if ttl is None or not ttl.isdecimal() or not 1 <= int(ttl) <= MAXIMUM_TTL_SECONDS:
            return HTTPStatus.BAD_REQUEST, ""
        return HTTPStatus.OK, self._tokens.issue(int(ttl))

    def get(self, path: str, token: str | None) -> tuple[HTTPStatus, str]:
        """Answer the GET of ``path`` with session ``token`` or without."""
        metadata = self._read()
        if not metadata.enabled:
            return HTTPStatus.FORBIDDEN, ""
        if not self._tokens.accept(token) if token is not None else metadata.token_required:
            return HTTPStatus.UNAUTHORIZED, ""
        match = _VERSIONED.match(path)
        text = find(metadata.values, match.group(1)) if match else None
        return (HTTPStatus.NOT_FOUND, "") if text is None else (HTTPStatus.OK, text)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            server_version = "EC2ws"
            sys_version = ""

            def do_PUT(self) -> None:
                if self.path != TOKEN_PATH:
                    self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "")
                    return
                ttl = self.headers.get(TOKEN_TTL_HEADER)
                # Version 2's guard against open proxies: what came through one gets no token.
                status, token = service.issue_token(ttl, "X-Forwarded-For" in self.headers)
                self._answer(status, token, {TOKEN_TTL_HEADER: ttl or ""})

            def do_GET(self) -> None:
                self._answer(*service.get(self.path, self.headers.get(TOKEN_HEADER)))

            def log_message(self, *_: object) -> None:
                """Say nothing: tokens and credentials pass here."""

            def _answer(self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        return Handler
