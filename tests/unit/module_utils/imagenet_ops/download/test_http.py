"""A web server is believed only where it does what was asked, and gets credentials only where they belong."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import email.utils
import http.server
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError, SourceChangedError, TransientError
from ansible.module_utils.imagenet_ops.download import http as http_module
from ansible.module_utils.imagenet_ops.download.http import HttpSource, printable, quote_page, retry_after_seconds
from ansible.module_utils.imagenet_ops.download.source import Facts, Session, Stream
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from lab.origin import Fault, Origin

CONTENT = bytes(range(256)) * 800
OPEN: list[Session] = []


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tar").write_bytes(CONTENT)
    (folder / "empty").write_bytes(b"")
    with Origin(folder) as running:
        yield running


@pytest.fixture(autouse=True)
def close_all_sessions() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def source(
    url: str,
    timeout_seconds: float = 10,
    username: str | None = None,
    password: str | None = None,
    cookie: str | None = None,
) -> HttpSource:
    headers = {} if cookie is None else {"Cookie": cookie}
    return HttpSource(url, username, password, headers, timeout_seconds)


def session_to(url: str, timeout_seconds: float = 10, **credentials: str) -> Session:
    OPEN.append(source(url, timeout_seconds, **credentials).session())
    return OPEN[-1]


def session_of(origin: Origin, timeout_seconds: float = 10, **credentials: str) -> Session:
    return session_to(f"{origin.url}/a.tar", timeout_seconds, **credentials)


def read_all(stream: Stream) -> bytes:
    with contextlib.closing(stream):
        return b"".join(iter(lambda: stream.read(1000), b""))


def failure(session: Session) -> str:
    with pytest.raises(OpsError) as caught:
        session.facts()
    return str(caught.value)


# Usual answers


def test_size_ranges_and_version(origin: Origin) -> None:
    etag = f'"{len(CONTENT):x}-{(origin.directory / "a.tar").stat().st_mtime_ns:x}"'
    assert session_of(origin).facts() == Facts(len(CONTENT), ranges=True, validator=etag)
    assert session_to(f"{origin.url}/empty").facts().size_bytes == 0


def test_a_small_file_is_told_from_a_large_one(origin: Origin) -> None:
    (origin.directory / "a.tar").write_bytes(b"tiny")
    assert session_of(origin).facts().size_bytes == 4


def test_a_server_without_ranges(origin: Origin) -> None:
    origin.faults = [Fault(ignore_range=True)]
    session = session_of(origin)
    facts = session.facts()
    assert (facts.size_bytes, facts.ranges) == (len(CONTENT), False)
    assert read_all(session.open(0, len(CONTENT), facts)) == CONTENT


def test_a_server_that_does_not_say_how_much_it_sends(origin: Origin) -> None:
    origin.faults = [Fault(ignore_range=True, no_length=True)]
    facts = session_of(origin).facts()
    assert (facts.size_bytes, facts.ranges) == (None, False)
    session = session_of(origin)
    stream = session.open(0, 10, Facts(10, ranges=False, validator=facts.validator))
    assert stream.read(100) == CONTENT[:10]
    assert stream.read(100) == CONTENT[10:11], "what is beyond the expected size must show"
    stream.close()


def test_parts_come_over_one_connection_under_if_range(origin: Origin) -> None:
    session = session_of(origin)
    facts = session.facts()
    stream = session.open(10, 20, facts)
    kept = session._connection  # type: ignore[attr-defined]
    assert read_all(stream) == CONTENT[10:20]
    assert read_all(session.open(5, 6, facts)) == CONTENT[5:6]
    assert session._connection is kept  # type: ignore[attr-defined]
    assert [(r.headers["range"], r.headers.get("if-range")) for r in origin.requests] == [
        ("bytes=0-511", None),
        ("bytes=10-19", facts.validator),
        ("bytes=5-5", facts.validator),
    ]


def test_a_stream_that_is_not_read_to_its_end_costs_the_connection_and_no_more(origin: Origin) -> None:
    session = session_of(origin)
    facts = session.facts()
    stream = session.open(0, 100_000, facts)
    assert stream.read(10) == CONTENT[:10]
    stream.close()
    assert read_all(session.open(7, 9, facts)) == CONTENT[7:9]


def test_a_connection_that_the_server_closed_meanwhile_is_no_failure(origin: Origin) -> None:
    session = session_of(origin)
    facts = session.facts()
    assert read_all(session.open(0, 5, facts)) == CONTENT[:5]
    session.abort()
    assert read_all(session.open(0, 5, facts)) == CONTENT[:5]


# Answers that are not what was asked for


def test_a_part_that_is_another_than_asked_for(origin: Origin) -> None:
    session = session_of(origin)
    facts = session.facts()
    origin.faults = [Fault(content_range=f"bytes 1-10/{len(CONTENT)}")]
    with pytest.raises(
        TransientError, match=r"^requested bytes 0-9, the server sent Content-Range 'bytes 1-10/204800'$"
    ):
        session.open(0, 10, facts)
    origin.faults = [Fault(content_range=f"bytes 0-5/{len(CONTENT)}")]
    with pytest.raises(TransientError, match="Content-Range 'bytes 0-5/204800'"):
        session.open(0, 10, facts)


def test_a_first_part_that_is_another_than_asked_for(origin: Origin) -> None:
    origin.faults = [Fault(content_range="bytes 5-9/10")]
    with pytest.raises(TransientError, match=r"^requested bytes 0-511, the server sent Content-Range 'bytes 5-9/10'$"):
        session_of(origin).facts()


def test_the_whole_where_a_part_was_asked_for(origin: Origin) -> None:
    session = session_of(origin)
    facts = session.facts()
    origin.faults = [Fault(ignore_range=True)]
    with pytest.raises(TransientError, match="a part with HTTP 200 and the whole file"):
        session.open(10, 20, facts)


@pytest.mark.parametrize("ignore_range", [False, True])
def test_another_version_of_the_file(origin: Origin, *, ignore_range: bool) -> None:
    session = session_of(origin)
    facts = session.facts()
    # With ignore_range the server heeds If-Range; without, it sends a part of the new file all the same.
    fault = Fault(etag='"new"', ignore_range=ignore_range)
    if not ignore_range:
        facts = Facts(facts.size_bytes, ranges=True, validator=f"W/{facts.validator}")
    origin.faults = [fault]
    with pytest.raises(SourceChangedError) as caught:
        session.open(10, 20, facts)
    assert str(caught.value) == (
        f"Download from {origin.url}/a.tar: the file was changed on the server while it was downloaded: its ETag or"
        f' date was {facts.validator} and is "new". Run again: the download starts over, as parts of two files must not'
        " be mixed"
    )


def test_a_file_that_has_another_size_by_now(origin: Origin) -> None:
    session = session_of(origin)
    facts = session.facts()
    unversioned = Facts(facts.size_bytes, ranges=True, validator="")
    (origin.directory / "a.tar").write_bytes(CONTENT * 2)
    with pytest.raises(SourceChangedError, match="its size was 204800 bytes and is 409600"):
        session.open(10, 20, unversioned)
    (origin.directory / "a.tar").write_bytes(b"x")
    with pytest.raises(SourceChangedError, match="it is shorter now"):
        session.open(10, 20, unversioned)


def test_a_body_that_ends_too_early(origin: Origin) -> None:
    session = session_of(origin)
    facts = session.facts()
    origin.faults = [Fault(cut_after_bytes=60)]
    stream = session.open(0, 100, facts)
    assert b"".join([stream.read(60)]) == CONTENT[:60]
    with pytest.raises(TransientError, match=r"^the connection ended 40 bytes too early$"):
        stream.read(60)
    stream.close()


def test_pages_instead_of_archives(origin: Origin) -> None:
    origin.faults = [Fault(html="<!DOCTYPE html><title>Maintenance</title><p>We are &auml;way.</p>")]
    assert failure(session_of(origin)) == (
        f"Download from {origin.url}/a.tar: the server sent an HTML page instead of the archive: 'Maintenance We are"
        " äway.'. Check the URL, and that the credentials are valid and the terms of the data set accepted with them"
    )
    form = "<html><body>" + " " * 5000 + "<form>Log in <input name=p type='password'></form></body></html>"
    origin.faults = [Fault(html=form)]
    assert "the server sent a login form instead of the archive: 'Log in'" in failure(session_of(origin))


def test_a_login_form_half_way(origin: Origin) -> None:
    session = session_of(origin)
    facts = session.facts()
    origin.faults = [Fault(html='<html>Your session is over. <input type="password"></html>')]
    with pytest.raises(OpsError, match=r"a login form instead of the archive: 'Your session is over\.'"):
        session.open(0, 10, facts)


def test_an_archive_that_is_called_a_page_is_one_all_the_same() -> None:
    assert quote_page("text/html", b"n01440764.tar\0\0\0\0") is None
    assert quote_page("application/x-tar", b" \r\n<!doctype HTML><p>no</p>") == "no"
    assert quote_page("text/html", b"Access denied") == "Access denied"
    assert quote_page("application/octet-stream", b"plain text") is None
    assert quote_page("text/html", b"<html><script>var a = 'b';</script><style>p{}</style>x<!-- y --><br") == "x"
    assert quote_page("text/html", b"<html>" + b"word " * 100) == "word " * 32 + "..."


@given(st.binary(max_size=600))
def test_any_bytes_can_be_looked_at(head: bytes) -> None:
    quote = quote_page("text/html", head)
    assert quote is None or len(quote) <= 163


# Refusals


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials(origin: Origin, status: int) -> None:
    origin.faults = [Fault(status=status)]
    reason = {401: "Unauthorized", 403: "Forbidden"}[status]
    assert failure(session_of(origin, username="me", password="sesame")) == (
        f"Download from {origin.url}/a.tar: the server refused the credentials (HTTP {status} {reason}): they are wrong"
        " or have expired, or do not cover this file. Check username and password with the publisher of the data set"
        " and run again; what has arrived is kept"
    )
    assert failure(session_of(origin)) == (
        f"Download from {origin.url}/a.tar: the server wants credentials (HTTP {status} {reason}) and none were given."
        " Set username and password, or headers, and run again; what has arrived is kept"
    )


EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@pytest.mark.parametrize(("status", "reason"), [(403, "Forbidden"), (400, "Bad Request")])
def test_a_signed_url_that_has_expired(origin: Origin, status: int, reason: str) -> None:
    origin.faults = [Fault(status=status, reason=EXPIRED)]
    assert failure(session_to(f"{origin.url}/a.tar?X-Amz-Signature=0123456789")) == (
        f"Download from {origin.url}/a.tar?...: the server refused the URL (HTTP {status} {reason}, 'Request has"
        " expired'): a signed URL is valid for a time, and this one may have expired. Get a new URL of the same file"
        " and run again; what has arrived is kept"
    )


@pytest.mark.parametrize("secret", ["sesame", "0123456789", base64.b64encode(b"me:sesame").decode()])
def test_a_reason_that_repeats_a_secret_is_not_shown(origin: Origin, secret: str) -> None:
    origin.faults = [Fault(status=403, reason=f'{{"message": "{secret} is wrong"}}')]
    url = f"{origin.url}/a.tar?token=0123456789"
    assert "(HTTP 403 Forbidden):" in failure(session_to(url, username="me", password="sesame"))
    assert "(HTTP 403 Forbidden, 'sister is wrong'):" in with_reason(origin, '{"error": "sister is wrong"}')


def with_reason(origin: Origin, reason: str) -> str:
    origin.faults = [Fault(status=403, reason=reason)]
    return failure(session_of(origin, username="me", password="sesame"))


def test_reasons() -> None:
    assert (
        http_module.refusal_reason('Bearer error="invalid_token", error_description="It expired"', b"") == "It expired"
    )
    assert http_module.refusal_reason("", EXPIRED.encode()) == "Request has expired"
    assert http_module.refusal_reason("Basic", b"<html>Forbidden</html>") == ""
    assert http_module.refusal_reason("", b'{"message": "' + b"a " * 500 + b'"}') == ("a " * 80)
    assert http_module.refusal_reason("", b"\xff\xfe") == ""


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (404, "there is no such file (HTTP 404 Not Found)"),
        (410, "there is no such file (HTTP 410 Gone)"),
        (400, "the server answered HTTP 400 Bad Request"),
        (407, "the proxy wants credentials (HTTP 407 Proxy Authentication Required)"),
    ],
)
def test_other_refusals(origin: Origin, status: int, why: str) -> None:
    origin.faults = [Fault(status=status)]
    assert f"a.tar: {why}. " in failure(session_of(origin))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520, 522, 524])
def test_what_may_pass(origin: Origin, status: int) -> None:
    origin.faults = [Fault(status=status, retry_after="17")]
    with pytest.raises(TransientError, match=f"HTTP {status}") as caught:
        session_of(origin).facts()
    assert caught.value.wait_seconds == 17


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 0), ("0", 0), ("120", 120), ("999999", 3600), ("-5", 0), ("soon", 0), ("", 0)]
)
def test_retry_after(text: str | None, seconds: float) -> None:
    assert retry_after_seconds(text) == seconds


def test_retry_after_a_date() -> None:
    now = dt.datetime.now(dt.timezone.utc)
    later = email.utils.format_datetime(now + dt.timedelta(seconds=100), usegmt=True)
    assert 97 < retry_after_seconds(later) <= 100
    assert retry_after_seconds(email.utils.format_datetime(now - dt.timedelta(hours=1), usegmt=True)) == 0
    # RFC 9110 dates are in GMT, said or not.
    assert 97 < retry_after_seconds(later.replace("GMT", "-0000")) <= 100


# Silence


def test_a_server_that_never_answers(origin: Origin) -> None:
    origin.faults = [Fault(hang_before_headers=True)]
    with pytest.raises(TransientError):
        session_of(origin, timeout_seconds=0.3).facts()


def test_a_trickle_is_a_stall(origin: Origin) -> None:
    session = session_of(origin, timeout_seconds=0.4)
    facts = session.facts()
    origin.faults = [Fault(drip_seconds=0.02)]
    stream = session.open(0, 100_000, facts)
    began = time.monotonic()
    with pytest.raises(TransientError, match=r"^only \d+ bytes came in 0 s$"):
        read_all(stream)
    assert time.monotonic() - began < 5


def test_silence_in_the_middle_is_a_stall(origin: Origin) -> None:
    session = session_of(origin, timeout_seconds=0.3)
    facts = session.facts()
    origin.faults = [Fault(drip_seconds=60)]
    stream = session.open(0, 100_000, facts)
    with pytest.raises(TransientError, match=r"^nothing came for 0\.3 s$"):
        read_all(stream)


def test_abort_wakes_the_reader(origin: Origin) -> None:
    session = session_of(origin)
    facts = session.facts()
    origin.faults = [Fault(drip_seconds=60)]
    stream = session.open(0, 100_000, facts)
    threading.Timer(0.2, session.abort).start()
    began = time.monotonic()
    with pytest.raises(TransientError):
        read_all(stream)
    assert time.monotonic() - began < 5


def test_nobody_there(origin: Origin) -> None:
    origin.stop()
    with pytest.raises(TransientError, match="Connection refused"):
        session_of(origin).facts()


# Credentials and redirects


def credentials(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def test_where_credentials_come_from(origin: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session_of(origin, username="me", password="a:b").facts()
    with_login = origin.url.replace("://", "://me:p%40ss@")
    session_to(f"{with_login}/a.tar").facts()
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login you password word\n")
    monkeypatch.setenv("NETRC", str(netrc))
    session_of(origin).facts()
    session_of(origin, username="me", password="a:b").facts()
    assert [request.headers["authorization"] for request in origin.requests] == [
        credentials("me", "a:b"),
        credentials("me", "p@ss"),
        credentials("you", "word"),
        credentials("me", "a:b"),
    ]


def test_a_netrc_that_is_not_understood_is_named_and_not_quoted(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login you\npasswort geheim\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(OpsError) as caught:
        session_of(origin)
    assert str(caught.value) == (f"Credentials file {netrc}: line 2 is not understood. Correct it and run again")


def test_a_netrc_in_another_encoding(origin: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_bytes("machine host login me password gr\u00fcn\n".encode("latin-1"))
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(OpsError) as caught:
        session_of(origin)
    assert str(caught.value) == (
        f"Credentials file {netrc}: it is not UTF-8 text (byte 33). Save it as UTF-8 and run again"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "it cannot be read (Is a directory). Make it a file that this user can read"),
        (
            b"\xef\xbb\xbfmachine 127.0.0.1 login you password word\n",
            (
                "it begins with a byte order mark, which programs take for a part of the first word."
                " Correct it and run again"
            ),
        ),
    ],
)
def test_a_netrc_that_no_program_reads(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, why: str
) -> None:
    netrc = tmp_path / "netrc"
    netrc.mkdir() if content is None else netrc.write_bytes(content)
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(OpsError) as caught:
        session_of(origin)
    assert str(caught.value) == f"Credentials file {netrc}: {why}"


def test_credentials_do_not_follow_a_redirect_to_another_host(origin: Origin) -> None:
    with Origin(origin.directory) as other:
        origin.faults = [Fault(redirect=f"{other.url}/a.tar?token=1")]
        session = session_of(origin, username="me", password="sesame", cookie="secret")
        facts = session.facts()
        assert read_all(session.open(0, 3, facts)) == CONTENT[:3]
        assert [("authorization" in r.headers, "cookie" in r.headers) for r in origin.requests] == [(True, True)]
        assert [("authorization" in r.headers, "cookie" in r.headers) for r in other.requests] == [(False, False)] * 2


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_were_kept_back_are_not_called_wrong(origin: Origin, status: int) -> None:
    with Origin(origin.directory) as other:
        origin.faults = [Fault(redirect=f"{other.url}/a.tar?token=1")]
        other.faults = [Fault(status=status)]
        reason = {401: "Unauthorized", 403: "Forbidden"}[status]
        assert failure(session_of(origin, username="me", password="sesame")) == (
            f"Download from {origin.url}/a.tar: the server redirects to {other.url}/a.tar?..., which refused it"
            f" (HTTP {status} {reason}); the credentials are for {origin.url} and were not sent to {other.url}. If you"
            " trust that server with them, or have others for it, set its URL and run again; what has arrived is kept"
        )


def test_credentials_follow_a_redirect_on_their_own_host(origin: Origin) -> None:
    (origin.directory / "b.tar").write_bytes(CONTENT)
    origin.faults = [Fault(path="/a.tar", redirect="/b.tar")]
    session_of(origin, username="me", password="sesame").facts()
    assert [(r.path, "authorization" in r.headers) for r in origin.requests] == [("/a.tar", True), ("/b.tar", True)]


@pytest.mark.parametrize("status", [400, 403])
def test_a_redirect_that_has_expired_is_asked_for_again(origin: Origin, status: int) -> None:
    (origin.directory / "b.tar").write_bytes(CONTENT)
    etag = '"the same"'
    origin.faults = [Fault(path="/a.tar", redirect="/b.tar"), Fault(path="/b.tar", etag=etag)]
    session = session_of(origin)
    facts = session.facts()
    origin.faults.append(Fault(path="/b.tar", times=1, status=status))
    assert read_all(session.open(0, 3, facts)) == CONTENT[:3]
    assert [r.path for r in origin.requests] == ["/a.tar", "/b.tar", "/b.tar", "/a.tar", "/b.tar"]


def test_redirects_without_end(origin: Origin) -> None:
    origin.faults = [Fault(redirect="/a.tar?secret=1")]
    assert failure(session_of(origin)) == (
        f"Download from {origin.url}/a.tar: the server redirects more than 10 times, at last to {origin.url}/a.tar?...."
        " Open the URL in a browser to see where the file went"
    )


def test_a_redirect_to_a_login_page(origin: Origin) -> None:
    origin.faults = [
        Fault(path="/a.tar", redirect="/login"),
        Fault(path="/login", html="<html>Please <input type=password></html>"),
    ]
    assert "the server sent a login form instead of the archive: 'Please'" in failure(session_of(origin))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host:81/a/b.tar?signature=x#y", "https://host:81/a/b.tar?..."),
        ("http://host/a.tar", "http://host/a.tar"),
    ],
)
def test_what_is_printed_of_a_url(url: str, shown: str) -> None:
    assert printable(url) == shown
    assert source(url).name == shown


@pytest.mark.parametrize(
    "url", ["ftp://host/a.tar", "https:///a.tar", "http://host:port/a.tar", "http://[::1/a.tar", "http://a]/b"]
)
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(OpsError, match="Correct it and run again"):
        source(url)


def test_a_broken_url_is_shown_without_its_secrets() -> None:
    with pytest.raises(OpsError) as caught:
        source("http://me:sesame@[::1/a.tar?token=0123456789")
    assert str(caught.value) == "URL http://[::1/a.tar: it is broken (Invalid IPv6 URL). Correct it and run again"


def test_a_redirect_to_a_broken_url(origin: Origin) -> None:
    origin.faults = [Fault(redirect="http://[::1/a.tar")]
    assert "the server redirects to a URL that is broken. Open the URL in a browser" in failure(session_of(origin))


def test_a_host_that_cannot_be_a_name() -> None:
    assert "its host cannot be a name. Correct the URL" in failure(session_to("http://a..b/a.tar"))


def test_a_header_that_cannot_be_sent() -> None:
    with pytest.raises(OpsError, match="the header 'Cookie' has a character that no header can have"):
        source("http://host/a.tar", cookie="\u201csecret\u201d")


def test_a_header_is_one_line() -> None:
    with pytest.raises(OpsError, match=r"^Option headers: the header 'Cookie' is not one line\."):
        source("http://host/a.tar", cookie="a\r\nHost: other")


# Proxies and TLS


def test_a_proxy_of_the_environment(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    # The origin answers a request in the form for proxies with its own file, so that it serves as its own proxy here.
    monkeypatch.setenv("http_proxy", origin.url.replace("://", "://user:word@"))
    session = session_to("http://not.a.host.invalid/a.tar", username="me", password="sesame")
    facts = session.facts()
    assert read_all(session.open(1, 3, facts)) == CONTENT[1:3]
    assert origin.requests[0].headers["proxy-authorization"] == credentials("user", "word")
    assert origin.requests[0].headers["host"] == "not.a.host.invalid"
    monkeypatch.setenv("no_proxy", "not.a.host.invalid")
    with pytest.raises(TransientError, match="the name of the server cannot be resolved"):
        session_to("http://not.a.host.invalid/a.tar").facts()


@pytest.mark.parametrize("proxy", ["http://[::1", "http://proxy:port"])
def test_a_proxy_that_is_no_url(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    assert failure(session_to("http://host/a.tar")) == "Proxy for http: it is no URL. Correct http_proxy"


def test_a_proxy_without_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://")
    with pytest.raises(OpsError, match=r"^Proxy for http: it names no host\. Correct http_proxy$"):
        session_to("http://host/a.tar").facts()


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that signs itself; return its file and that of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "origin")])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def test_https_and_whom_it_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    (tmp_path / "a.tar").write_bytes(CONTENT)
    origin = Origin(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    origin._servers[0].socket = context.wrap_socket(origin._servers[0].socket, server_side=True)
    with origin:
        url = origin.url.replace("http:", "https:") + "/a.tar"
        assert failure(session_to(url)) == (
            f"Download from {url}: the certificate of the server is not trusted (self-signed certificate). Check the"
            " URL and the clock of the host; a private authority belongs into the host's store of certificates"
        )
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        session = session_to(url)
        facts = session.facts()
        assert read_all(session.open(0, len(CONTENT), facts)) == CONTENT
        stream = session.open(0, len(CONTENT), facts)
        session.abort()
        with contextlib.suppress(TransientError):
            read_all(stream)


def test_the_request_target_is_encoded(origin: Origin) -> None:
    (origin.directory / "ein name ä.tar").write_bytes(b"x")
    assert session_to(f"{origin.url}/ein name ä.tar").facts().size_bytes == 1
    assert http_module._quoted("/a%20b?c=d&e=%2F") == "/a%20b?c=d&e=%2F"


# Servers as they are


class Odd:
    """A server that gives parts of CONTENT, and in which a test sets what is odd about it."""

    def __init__(self) -> None:
        self.headers = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        self.etags: list[str] = []  # one after another, for each answer
        self.heeds_if_range = True
        self.if_ranges: list[str | None] = []

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        begin, end = map(int, handler.headers["Range"][len("bytes=") :].split("-"))
        self.if_ranges.append(handler.headers["If-Range"])
        whole = handler.headers["If-Range"] is not None and not self.heeds_if_range
        body = CONTENT if whole else CONTENT[begin : end + 1]
        handler.send_response(200 if whole else 206)
        headers = {**self.headers, "Content-Length": str(len(body))}
        if not whole:
            headers["Content-Range"] = f"bytes {begin}-{begin + len(body) - 1}/{len(CONTENT)}"
        if self.etags:
            headers["ETag"] = self.etags.pop(0)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body)


@pytest.fixture
def odd() -> Iterator[tuple[Odd, str]]:
    server = Odd()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield server, f"http://127.0.0.1:{running.server_port}/a.tar"
    running.shutdown()
    thread.join()
    running.server_close()


def session_with_hash(url: str) -> Session:
    OPEN.append(HttpSource(url, None, None, {}, 10, bytes_decide=True).session())
    return OPEN[-1]


def test_a_server_that_refuses_its_own_etag(odd: tuple[Odd, str]) -> None:
    server, url = odd
    server.heeds_if_range = False
    session = session_to(url)
    facts = session.facts()
    for _ in range(2):
        assert read_all(session.open(10, 20, facts)) == CONTENT[10:20]
    assert server.if_ranges == [None, '"1"', None, None], "it is asked so once"


@pytest.mark.parametrize("heeds_if_range", [False, True])
def test_servers_with_an_etag_each(odd: tuple[Odd, str], *, heeds_if_range: bool) -> None:
    server, url = odd
    server.heeds_if_range = heeds_if_range
    server.etags = [f'"{number}"' for number in range(9)]
    session = session_with_hash(url)
    facts = session.facts()
    assert read_all(session.open(10, 20, facts)) == CONTENT[10:20]
    without = session_to(url)
    facts = without.facts()
    with pytest.raises(SourceChangedError, match="its ETag or date was"):
        without.open(10, 20, facts)


def test_another_date_is_another_file_whatever_is_known(odd: tuple[Odd, str]) -> None:
    server, url = odd
    session = session_with_hash(url)
    facts = session.facts()
    server.headers = {"ETag": '"2"', "Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}
    with pytest.raises(SourceChangedError, match="its ETag or date was"):
        session.open(10, 20, facts)


def test_an_encoding_that_was_not_asked_for(odd: tuple[Odd, str]) -> None:
    server, url = odd
    server.headers["Content-Encoding"] = "gzip"
    assert failure(session_to(url)) == (
        f"Download from {url}: the server sends the file in the Content-Encoding 'gzip', which was not requested: what"
        " arrives is not the file. Use another URL; or set md5 or sha256, if they are those of what arrives"
    )
    assert session_with_hash(url).facts().encoding == "gzip"
    # What a server calls so is the file's own compression.
    assert session_to(url.replace("a.tar", "a.tgz")).facts() == Facts(len(CONTENT), ranges=True, validator='"1"')
