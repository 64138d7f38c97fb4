"""An archive on a web server: HTTP/1.1 by the standard library alone, as hosts may have nothing else.

Of RFC 9110 it uses ranges (14), If-Range (13.1.5), Retry-After (10.2.3) and redirects (15.4); of RFC 7617 basic
authentication. Proxies are taken from the environment as the rest of Python takes them. Credentials go to the host
that they were given for, never to one that it redirects to, and never into a text.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import datetime as dt
import email.utils
import html
import http.client
import netrc
import os
import re
import socket
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ansible.module_utils.imagenet_ops.core.errors import OpsError, SourceChangedError, TransientError
from ansible.module_utils.imagenet_ops.download.source import Facts, Session, Source, StallWatch, Stream, split_url

USER_AGENT = "imagenet-ops archive_fetch"
# What is asked for first: enough to tell an archive from a page.
_SNIFFED_BYTES = 512
# As much of a page is read to find out what it says.
_PAGE_BYTES = 64 * 1024
_QUOTED_CHARACTERS = 160
# A text that repeats so much of a credential is not shown.
_SHORTEST_SECRET = 4
_MAXIMUM_REDIRECTS = 10
# A number in a header: no more digits than a file of any size needs.
_LENGTH = "[0-9]{1,18}"
# A server may ask for a pause; one of more than an hour is an outage, and trying earlier does no harm.
_LONGEST_PAUSE_SECONDS = 3600.0
_REDIRECTS = {301, 302, 303, 307, 308}
# Answers that may be another in a minute.
_PASSING = {
    408,
    425,
    429,
    500,
    502,
    503,
    504,
    *range(520, 525),
}  # from 520 on those of Cloudflare for the server behind
# What a redirect's target answers when its own permission has run out.
_STALE = {400, 401, 403, 404, 410}
# Encodings that are part of a file rather than of its transfer where its name ends so: servers confuse the two.
_SUFFIXES = {"gzip": (".gz", ".tgz"), "x-gzip": (".gz", ".tgz"), "bzip2": (".bz2", ".tbz"), "xz": (".xz", ".txz")}


@dataclass(frozen=True)
class _Origin:
    """Scheme, host and port: what credentials are bound to."""

    scheme: str
    host: str
    port: int

    @staticmethod
    def of(url: str) -> _Origin:
        parts = split_url(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OpsError(f"Source {printable(url)}", "is no http, https, s3 or file URL", "Correct it and run again")
        try:
            port = parts.port
        except ValueError:
            raise OpsError(f"Source {printable(url)}", "its port is no number", "Correct it and run again") from None
        return _Origin(parts.scheme, parts.hostname, port or {"http": 80, "https": 443}[parts.scheme])

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def printable(url: str) -> str:
    """Return ``url`` without what may be secret: user, password, and the query, where signed URLs hold their token."""
    parts = split_url(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + ("?..." if parts.query else "")


class HttpSource(Source):
    """The file at ``url``.

    ``username`` and ``password`` (or those in the URL, or those that ~/.netrc has for the host) and ``headers`` are
    sent to the host of ``url`` alone. ``timeout_seconds`` is how long the server may say nothing. ``bytes_decide`` is
    whether a hash will tell right bytes from wrong ones, so that no header needs to.
    """

    parallel = True

    def __init__(
        self,
        url: str,
        username: str | None,
        password: str | None,
        headers: Mapping[str, str],
        timeout_seconds: float,
        *,
        bytes_decide: bool = False,
    ) -> None:
        parts = split_url(url)
        self.name = printable(url)
        self.origin = _Origin.of(url)
        self.url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
        self.timeout_seconds = timeout_seconds
        self.bytes_decide = bytes_decide
        # Whether the server takes If-Range for what it is, and the date of the file, as far as is known.
        self.heeds_if_range = True
        self.modified = ""
        self.private_headers = dict(headers)
        _check_headers(self.private_headers)
        self._login: tuple[str, ...] = ()
        if not any(name.lower() == "authorization" for name in headers):
            login = _login(parts, username, password, self.origin.host)
            if login is not None:
                self.private_headers["Authorization"] = basic_authorization(*login)
                self._login = login
        self.has_credentials = bool(self.private_headers)
        self.is_signed = bool(parts.query)
        self.tls = ssl.create_default_context() if self.origin.scheme == "https" else None

    def is_secret_in(self, text: str) -> bool:
        """Return whether ``text`` of the server repeats something that was given to prove who asks."""
        query = urllib.parse.parse_qsl(split_url(self.url).query)
        secrets = [*self.private_headers.values(), *(value for _, value in query), *self._login]
        words = {word for secret in secrets for word in (secret, *secret.split())}
        return any(len(word) >= _SHORTEST_SECRET and word in text for word in words)

    def session(self) -> Session:
        """Return a connection of its own to the server."""
        return _HttpSession(self)


def basic_authorization(username: str, password: str) -> str:
    """Return the value of the Authorization header (RFC 7617, with UTF-8)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode("utf-8", "surrogateescape")).decode("ascii")


def _check_headers(headers: Mapping[str, str]) -> None:
    """Refuse what would end a header early and begin another."""
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", value):
            raise OpsError("Option headers", f"the header {name!r} is not one line", "Correct it and run again")
        if not all(ord(character) < 256 for character in value):
            why = f"the header {name!r} has a character that no header can have"
            raise OpsError("Option headers", why, "Correct it and run again")


def _login(
    parts: urllib.parse.SplitResult, username: str | None, password: str | None, host: str
) -> tuple[str, str] | None:
    """Return user and password: as given, else from the URL, else from the netrc file, else None."""
    if username is not None:
        return username, password or ""
    if parts.username is not None:
        return urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).authenticators(host)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = f"it cannot be read ({error.strerror})"
        raise OpsError(f"Credentials file {path}", why, "Make it a file that this user can read") from None
    except UnicodeDecodeError as error:
        raise OpsError(
            f"Credentials file {path}", f"it is not UTF-8 text (byte {error.start})", "Save it as UTF-8 and run again"
        ) from None
    except netrc.NetrcParseError as error:
        # Only where and what, for the line itself holds a password.
        why = f"line {error.lineno} is not understood"
        with open(path, "rb") as file:
            if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                why = "it begins with a byte order mark, which programs take for a part of the first word"
        raise OpsError(f"Credentials file {path}", why, "Correct it and run again") from None
    return None if found is None else (found[0], found[2] or "")


class _HttpSession(Session):
    """One connection, kept alive from request to request, to the source or to where it redirects."""

    def __init__(self, source: HttpSource) -> None:
        self._source = source
        # Where the last request ended up; the next one saves the way there.
        self._location = source.url
        self._connection: http.client.HTTPConnection | None = None
        self._connected_to: _Origin | None = None
        self._response: http.client.HTTPResponse | None = None
        self._socket: socket.socket | None = None

    def facts(self) -> Facts:
        """Request the first bytes: this tells size and ranges even where HEAD is refused (as by signed URLs).

        Raises OpsError where the server refuses it or sends a page, TransientError where a retry may help.
        """
        response = self._get({"Range": f"bytes=0-{_SNIFFED_BYTES - 1}"})
        if response.status == 416 and response.getheader("Content-Range") == "bytes */0":
            self.close()
            return Facts(size_bytes=0, ranges=True, validator=_validator(response))
        self._check_status(response, {200, 206})
        length = response.length  # of all that comes now; reading changes it
        self._check_no_page(response, self._read_head(response))
        encoding = self._encoding(response)
        self._source.modified = response.getheader("Last-Modified") or ""
        if response.status == 200:
            return Facts(size_bytes=length, ranges=False, validator=_validator(response), encoding=encoding)
        text = response.getheader("Content-Range") or ""
        match = re.fullmatch(rf"bytes 0-({_LENGTH})/({_LENGTH})", text)
        if match is None or int(match.group(1)) != min(_SNIFFED_BYTES, int(match.group(2))) - 1:
            raise TransientError(f"requested bytes 0-{_SNIFFED_BYTES - 1}, the server sent Content-Range {text!r}")
        return Facts(int(match.group(2)), ranges=True, validator=_validator(response), encoding=encoding)

    def _encoding(self, response: http.client.HTTPResponse) -> str:
        """Return the encoding that the server uses unasked. Raises OpsError where no hash will tell what it did."""
        encoding = (response.getheader("Content-Encoding") or "").strip().lower()
        if encoding in ("", "identity") or split_url(self._source.url).path.lower().endswith(
            _SUFFIXES.get(encoding, ())
        ):
            return ""
        if not self._source.bytes_decide:
            raise OpsError(
                f"Download from {self._source.name}",
                f"the server sends the file in the Content-Encoding {encoding!r}, which was not requested: what arrives"
                " is not the file",
                "Use another URL; or set md5 or sha256, if they are those of what arrives",
            )
        return encoding

    def open(self, start: int, end: int, facts: Facts) -> Stream:
        """Ask for the bytes from ``start`` to ``end``, of that very file, and check that the answer holds just them."""
        headers = {}
        if facts.ranges:
            headers["Range"] = f"bytes={start}-{end - 1}"
            if facts.validator and not facts.validator.startswith("W/") and self._source.heeds_if_range:
                headers["If-Range"] = facts.validator
        response = self._get(headers)
        if "If-Range" in headers and self._is_same_whole(response, facts):
            # It takes its own validator for another one. What it sends without is compared all the same.
            self._source.heeds_if_range = False
            self.close()
            del headers["If-Range"]
            response = self._get(headers)
        if response.status == 416:
            raise self._changed("it is shorter now")
        self._check_status(response, {200, 206})
        if response.status == 206 and facts.ranges:
            self._check_part(response, start, end, facts)
        else:
            self._check_whole(response, facts)
        return _HttpStream(self, response, end - start, self._source.timeout_seconds)

    def abort(self) -> None:
        """End the connection under the reader's hands."""
        if self._socket is not None:
            # The plain socket's shutdown: that of a TLS socket would take its state away while it is read.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; a later request would open another."""
        if self._response is not None:
            self._response.close()
        if self._connection is not None:
            self._connection.close()
        self._response = self._connection = self._socket = None

    def _check_part(self, response: http.client.HTTPResponse, start: int, end: int, facts: Facts) -> None:
        """Insist that a 206 holds exactly the bytes asked for, of the file that ``facts`` describes."""
        text = response.getheader("Content-Range") or ""
        match = re.fullmatch(rf"bytes ({_LENGTH})-({_LENGTH})/({_LENGTH})", text)
        if match and int(match.group(3)) != facts.size_bytes:
            raise self._changed(f"its size was {facts.size_bytes} bytes and is {match.group(3)}")
        self._check_version(response, facts)
        if text != f"bytes {start}-{end - 1}/{facts.size_bytes}" or response.length not in (None, end - start):
            raise self._odd(f"requested bytes {start}-{end - 1}, the server sent Content-Range {text!r}")

    def _check_whole(self, response: http.client.HTTPResponse, facts: Facts) -> None:
        """Judge an answer that holds the whole file: fine where no part was asked for, else changed or odd."""
        self._check_version(response, facts)
        if (response.getheader("Content-Type") or "").startswith("text/html"):
            self._check_no_page(response, self._read_head(response))
        if response.status == 200 and response.length not in (None, facts.size_bytes):
            raise self._changed(f"its size was {facts.size_bytes} bytes and is {response.length}")
        if facts.ranges or response.status != 200:
            raise self._odd(f"it answered a request for a part with HTTP {response.status} and the whole file")

    def _is_same_whole(self, response: http.client.HTTPResponse, facts: Facts) -> bool:
        """Return whether an answer holds the whole of the file that ``facts`` describes, by its size and version."""
        is_whole = response.status == 200 and response.length == facts.size_bytes
        return is_whole and _validator(response) != "" and not self._is_another(response, facts)

    def _is_another(self, response: http.client.HTTPResponse, facts: Facts) -> bool:
        """Return whether an answer is of another version of the file.

        The servers behind one name may have different ETags for it. With a hash known, the date is enough.
        """
        if _validator(response) in ("", facts.validator):
            return False
        modified = response.getheader("Last-Modified") or ""
        return not (self._source.bytes_decide and modified != "" and modified == self._source.modified)

    def _check_version(self, response: http.client.HTTPResponse, facts: Facts) -> None:
        if self._is_another(response, facts):
            raise self._changed(f"its ETag or date was {facts.validator} and is {_validator(response)}")

    def _changed(self, how: str) -> SourceChangedError:
        self.close()
        return SourceChangedError(
            f"Download from {self._source.name}",
            f"the file was changed on the server while it was downloaded: {how}",
            "Run again: the download starts over, as parts of two files must not be mixed",
        )

    def _odd(self, what: str) -> TransientError:
        self.close()
        return TransientError(what)

    def _get(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Return the answer to a GET, after redirects; ``headers`` go to every host, credentials to their own."""
        if self._location != self._source.url:
            response = self._follow(self._location, headers)
            if response.status not in _STALE:
                return response
            self.close()
        return self._follow(self._source.url, headers)

    def _follow(self, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        for _ in range(_MAXIMUM_REDIRECTS):
            response = self._send(url, headers)
            target = response.getheader("Location")
            if response.status not in _REDIRECTS or target is None:
                self._location = url
                return response
            self.close()
            try:
                url = urllib.parse.urljoin(url, target)
            except ValueError:
                why = "the server redirects to a URL that is broken"
                todo = "Open the URL in a browser to see where the file went"
                raise OpsError(f"Download from {self._source.name}", why, todo) from None
        raise OpsError(
            f"Download from {self._source.name}",
            f"the server redirects more than {_MAXIMUM_REDIRECTS} times, at last to {printable(url)}",
            "Open the URL in a browser to see where the file went",
        )

    def _send(self, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send one GET to where ``url`` points, over the open connection where there is one."""
        origin = _Origin.of(url)
        if origin != self._connected_to:
            self.close()
        if self._connection is not None:
            with contextlib.suppress(http.client.HTTPException, OSError):
                # A server may have closed a connection that was idle; this shows only now, and is no failure.
                return self._exchange(origin, url, headers)
            self.close()
        try:
            return self._exchange(origin, url, headers)
        except ssl.SSLCertVerificationError as error:
            raise OpsError(
                f"Download from {printable(url)}",
                f"the certificate of the server is not trusted ({error.verify_message})",
                "Check the URL and the clock of the host; a private authority belongs into the host's store of"
                " certificates",
            ) from error
        except UnicodeError:
            # Raised where the name is prepared for the DNS.
            raise OpsError(f"Download from {printable(url)}", "its host cannot be a name", "Correct the URL") from None
        except (http.client.HTTPException, OSError) as error:
            self.close()
            raise TransientError(_describe(error, self._source.timeout_seconds)) from error

    def _exchange(self, origin: _Origin, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        if origin == self._source.origin:
            sent.update(self._source.private_headers)
        proxy = _proxy_for(origin)
        parts = split_url(url)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        if proxy is not None and origin.scheme == "http":
            target = urllib.parse.urlunsplit(("http", _name_in_target(parts), parts.path, parts.query, ""))
            sent.update(proxy.headers)
        connection = self._connection or self._connect(origin, proxy)
        with _deadline(self._source.timeout_seconds, self):
            connection.request("GET", _quoted(target), headers=sent)
            self._response = connection.getresponse()
            return self._response

    def _connect(self, origin: _Origin, proxy: _Proxy | None) -> http.client.HTTPConnection:
        host, port = (origin.host, origin.port) if proxy is None else (proxy.host, proxy.port)
        timeout = self._source.timeout_seconds
        connection: http.client.HTTPConnection
        if origin.scheme == "https":
            context = self._source.tls or ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
            if proxy is not None:
                connection.set_tunnel(origin.host, origin.port, headers=proxy.headers)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        connection.connect()
        self._connection, self._connected_to, self._socket = connection, origin, connection.sock
        return connection

    def _check_status(self, response: http.client.HTTPResponse, wanted: set[int]) -> None:
        """Raise what a status that is not wanted means."""
        if response.status in wanted:
            return
        said = f"HTTP {response.status} {response.reason}".rstrip()
        if response.status in _PASSING:
            self.close()
            raise TransientError(said, retry_after_seconds(response.getheader("Retry-After")))
        reason = refusal_reason(response.getheader("WWW-Authenticate") or "", self._read_refusal(response))
        if reason and not self._source.is_secret_in(reason):
            said += f", {reason!r}"
        origin = _Origin.of(self._location)
        if response.status in (400, 401, 403) and self._source.has_credentials and origin != self._source.origin:
            raise OpsError(
                f"Download from {self._source.name}",
                f"the server redirects to {printable(self._location)}, which refused it ({said}); the credentials are"
                f" for {self._source.origin} and were not sent to {origin}",
                "If you trust that server with them, or have others for it, set its URL and run again; what has arrived"
                " is kept",
            )
        why, todo = _refusal(response.status, said, self._source)
        raise OpsError(f"Download from {self._source.name}", why, todo)

    def _read_refusal(self, response: http.client.HTTPResponse) -> bytes:
        """Return what comes with a refusal, as far as it comes: the refusal counts, with or without its reason."""
        try:
            return self._read_head(response)
        except TransientError:
            return b""

    def _read_head(self, response: http.client.HTTPResponse) -> bytes:
        """Return the first bytes of an answer, more of them where it is a page, and drop the rest."""
        is_page = (response.getheader("Content-Type") or "").startswith("text/html")
        head = b""
        try:
            with _deadline(self._source.timeout_seconds, self):
                while len(head) < (_PAGE_BYTES if is_page else _SNIFFED_BYTES):
                    block = response.read1(_PAGE_BYTES)
                    if not block:
                        break
                    head += block
        except (http.client.HTTPException, OSError) as error:
            raise TransientError(_describe(error, self._source.timeout_seconds)) from error
        finally:
            self.close()
        return head

    def _check_no_page(self, response: http.client.HTTPResponse, head: bytes) -> None:
        """Raise OpsError where the server sent a page for people, with what the page says."""
        page = quote_page(response.getheader("Content-Type") or "", head)
        if page is None:
            return
        self.close()
        login = re.search(rb"<input[^>]+type\s*=\s*[\"']?password", head, re.IGNORECASE)
        raise OpsError(
            f"Download from {self._source.name}",
            f"the server sent {'a login form' if login else 'an HTML page'} instead of the archive: {page!r}",
            "Check the URL, and that the credentials are valid and the terms of the data set accepted with them",
        )


class _HttpStream(Stream):
    """The body of an answer, watched: less than a trickle over a whole timeout is a stall."""

    def __init__(
        self, session: _HttpSession, response: http.client.HTTPResponse, length: int, timeout_seconds: float
    ) -> None:
        self._session = session
        self._response = response
        self._left = length
        self._length_known = response.length is not None
        self._timeout_seconds = timeout_seconds
        self._watch = StallWatch(timeout_seconds)

    def read(self, limit: int) -> bytes:
        """Return the next bytes; after the last one asked for, those that the server sends beyond it."""
        if self._left == 0 and self._length_known:
            return b""
        wanted = min(limit, self._left) or 1
        try:
            block = self._watch.read(lambda: self._response.read1(wanted))
        except (http.client.HTTPException, OSError) as error:
            raise TransientError(_describe(error, self._timeout_seconds)) from error
        if not block and self._left:
            raise TransientError(f"the connection ended {self._left} bytes too early")
        self._left -= min(self._left, len(block))
        return block

    def close(self) -> None:
        """Keep the connection for the next request where the answer was read to its end."""
        if self._left == 0 and self._length_known and not self._response.will_close:
            self._response.close()
        else:
            self._session.close()


@dataclass(frozen=True)
class _Proxy:
    host: str
    port: int
    headers: dict[str, str]


def _proxy_for(origin: _Origin) -> _Proxy | None:
    """Return the proxy that the environment (http_proxy, https_proxy, no_proxy) names for ``origin``."""
    url = urllib.request.getproxies().get(origin.scheme)
    if not url or urllib.request.proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    try:
        parts = split_url(url if "://" in url else f"http://{url}")
        port = parts.port or 3128
    except (ValueError, OpsError):
        raise OpsError(f"Proxy for {origin.scheme}", "it is no URL", f"Correct {origin.scheme}_proxy") from None
    if not parts.hostname:
        raise OpsError(f"Proxy for {origin.scheme}", "it names no host", f"Correct {origin.scheme}_proxy")
    headers = {}
    if parts.username is not None:
        password = urllib.parse.unquote(parts.password or "")
        headers["Proxy-Authorization"] = basic_authorization(urllib.parse.unquote(parts.username), password)
    return _Proxy(parts.hostname, port, headers)


@contextlib.contextmanager
def _deadline(seconds: float, session: _HttpSession) -> Iterator[None]:
    """Abort ``session`` when the block takes longer: a socket's own timeout starts anew with every byte."""
    timer = threading.Timer(seconds, session.abort)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _describe(error: Exception, timeout_seconds: float) -> str:
    """Return what an exception of the network means, for people."""
    if isinstance(error, socket.timeout):
        return f"nothing came for {timeout_seconds:g} s"
    if isinstance(error, socket.gaierror):
        return f"the name of the server cannot be resolved ({error.strerror})"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection ended before an answer came"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


def _validator(response: http.client.HTTPResponse) -> str:
    """Return what tells this version of the file from another: the ETag, else the modification date, else nothing."""
    return response.getheader("ETag") or response.getheader("Last-Modified") or ""


def retry_after_seconds(text: str | None) -> float:
    """Return the pause that a Retry-After header asks for, at most an hour; 0 where there is none that makes sense."""
    if text is None:
        return 0.0
    if re.fullmatch(_LENGTH, text.strip()):
        seconds = float(text)
    else:
        try:
            when = email.utils.parsedate_to_datetime(text)
        except (TypeError, ValueError, OverflowError):
            return 0.0
        if when.tzinfo is None:
            when = when.replace(tzinfo=dt.timezone.utc)
        seconds = (when - dt.datetime.now(dt.timezone.utc)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_PAUSE_SECONDS)


def refusal_reason(challenge: str, body: bytes) -> str:
    """Return in a few words why a server refused, "" where it does not say so in a form that is known.

    Known are the challenge of bearer tokens (RFC 6750, 3), the Message of S3 and its like, and the message of JSON.
    """
    text = body.decode("utf-8", errors="replace")
    for pattern, place in (
        (r'error_description="([^"]+)"', challenge),
        (r"<Message>([^<]+)</Message>", text),
        (r'"(?:message|error)"\s*:\s*"([^"\\]+)"', text),
    ):
        match = re.search(pattern, place)
        if match:
            return " ".join(html.unescape(match.group(1)).split())[:_QUOTED_CHARACTERS]
    return ""


def _refusal(status: int, said: str, source: HttpSource) -> tuple[str, str]:
    """Return why the server refused, and what to do."""
    kept = "what has arrived is kept"
    if status in (400, 401, 403) and source.is_signed and not source.has_credentials:
        return (
            f"the server refused the URL ({said}): a signed URL is valid for a time, and this one may have expired",
            f"Get a new URL of the same file and run again; {kept}",
        )
    if status in (401, 403) and source.has_credentials:
        return (
            f"the server refused the credentials ({said}): they are wrong or have expired, or do not cover this file",
            f"Check username and password with the publisher of the data set and run again; {kept}",
        )
    if status in (401, 403):
        return (
            f"the server wants credentials ({said}) and none were given",
            f"Set username and password, or headers, and run again; {kept}",
        )
    if status == 407:
        return (f"the proxy wants credentials ({said})", "Put them into the URL in http_proxy or https_proxy")
    if status in (404, 410):
        return (f"there is no such file ({said})", "Check the URL; publishers move their files now and then")
    return (f"the server answered {said}", f"Check the URL with a browser and run again; {kept}")


def quote_page(content_type: str, head: bytes) -> str | None:
    """Return what a person would read on the page that begins with ``head``; None where it is no HTML page.

    A page is told by its first tag, or by its type where the bytes are text: a server that calls an archive text/html
    is wrong, yet its archive is one.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    tagged = start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<!--"))
    if not tagged and not (content_type.startswith(("text/html", "application/xhtml")) and b"\0" not in head):
        return None
    text = head.decode("utf-8", errors="replace")
    text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<!--.*?(-->|$)", " ", text)
    text = " ".join(html.unescape(re.sub(r"(?s)<[^>]*(>|$)", " ", text)).split())
    return text[:_QUOTED_CHARACTERS] + ("..." if len(text) > _QUOTED_CHARACTERS else "")


def _name_in_target(parts: urllib.parse.SplitResult) -> str:
    """Return host and port as in a request to a proxy. Raises UnicodeError for a host that cannot be a name."""
    name = parts.netloc.rpartition("@")[2].encode("idna").decode("ascii")
    if not name.startswith("[") and not re.fullmatch(r"[^%]*", _quoted(name)):
        raise UnicodeError("a host has a character that no name can have")
    return name


def _quoted(target: str) -> str:
    """Return the request target with what HTTP does not allow there (spaces, letters beyond ASCII) percent-encoded."""
    return urllib.parse.quote(target, safe="%/:=&?~#+!$,;'@()*[]")
