"""Where the bytes of an archive come from, told alike for a web server and for a file that is already here."""

from __future__ import annotations

import abc
import os
import re
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from ansible.module_utils.imagenet_ops.core.errors import OpsError, SourceChangedError, TransientError

# Less than this over a whole timeout is a stall even where a byte comes now and then.
_SLOWEST_BYTES_PER_SECOND = 1024


@dataclass(frozen=True)
class Facts:
    """What a source says of its file before the first byte is taken.

    ``size_bytes`` is None where it does not say. ``ranges`` tells whether it gives parts. ``validator`` changes with
    the file's content (an ETag, a modification time); it is empty where there is none. ``encoding`` is a compression
    for the transfer that was not asked for.
    """

    size_bytes: int | None
    ranges: bool
    validator: str
    encoding: str = ""


class Stream(abc.ABC):
    """The bytes of one answer. ``close`` it in any case."""

    @abc.abstractmethod
    def read(self, limit: int) -> bytes:
        """Return 1 to ``limit`` bytes as soon as there are some; none at the end. Raises TransientError."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what the answer holds."""


class StallWatch:
    """Notices a server that sends next to nothing; only the time of waiting for it counts, not what we do between."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._waited_seconds = 0.0
        self._bytes = 0

    def read(self, read: Callable[[], bytes]) -> bytes:
        """Return what ``read`` does; TransientError where too little came for too long."""
        began = time.monotonic()
        block = read()
        self._waited_seconds += time.monotonic() - began
        self._bytes += len(block)
        if self._waited_seconds >= self._timeout_seconds:
            if block and self._bytes < _SLOWEST_BYTES_PER_SECOND * self._waited_seconds:
                raise TransientError(f"only {self._bytes} bytes came in {self._waited_seconds:.0f} s")
            self._waited_seconds, self._bytes = 0.0, 0
        return block


class Session(abc.ABC):
    """One connection to a source, for one thread; `abort` alone may be called from another."""

    @abc.abstractmethod
    def facts(self) -> Facts:
        """Ask what there is. Raises TransientError, or OpsError where asking again is of no use."""

    @abc.abstractmethod
    def open(self, start: int, end: int, facts: Facts) -> Stream:
        """Return the bytes from ``start`` to ``end`` (exclusive) of the file that ``facts`` describes.

        A source without ranges is opened for the whole file only. Raises TransientError, SourceChangedError where the
        file is another by now, or another OpsError.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the connection."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Make a read that another thread is waiting in return at once, with TransientError or no bytes."""


class Source(abc.ABC):
    """One place to take a file from. ``name`` is what may be printed: no password, no token."""

    name: str
    # Whether several sessions at a time are faster than one.
    parallel: bool

    @abc.abstractmethod
    def session(self) -> Session:
        """Return a new connection; nothing is sent before it is used."""


class FileSource(Source):
    """A file on this host, or on a network filesystem that is mounted here."""

    parallel = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = path

    def session(self) -> Session:
        """Return a reader of the file."""
        return _FileSession(self.path)


class _FileSession(Session):
    def __init__(self, path: str) -> None:
        self._path = path

    def facts(self) -> Facts:
        """Return the size of the file, with its time as validator."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise OpsError(
                f"Source {self._path}", f"cannot be read ({error.strerror})", "Name a file that is on this host"
            ) from error
        return Facts(size_bytes=status.st_size, ranges=True, validator=f"{status.st_mtime_ns}")

    def open(self, start: int, end: int, facts: Facts) -> Stream:
        """Return the bytes of the file from ``start`` to ``end``."""
        if self.facts() != facts:
            raise SourceChangedError(
                f"Source {self._path}", "the file was changed while it was copied", "Run again when it is complete"
            )
        return _FileStream(self._path, start, end)

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def abort(self) -> None:
        """Do nothing: a read of a file returns by itself."""


class _FileStream(Stream):
    def __init__(self, path: str, start: int, end: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (close() closes it)
        self._file.seek(start)
        self._left = end - start

    def read(self, limit: int) -> bytes:
        """Return the next bytes."""
        block = self._file.read(min(limit, self._left))
        self._left -= len(block)
        return block

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def split_url(url: str) -> urllib.parse.SplitResult:
    """Return the parts of ``url``. Raises OpsError where it has none; the text holds no credential."""
    try:
        return urllib.parse.urlsplit(url)
    except ValueError as error:
        shown = re.sub(r"//[^/]*@", "//", url.partition("?")[0])
        raise OpsError(f"URL {shown}", f"it is broken ({error})", "Correct it and run again") from None


def local_path(url: str) -> str | None:
    """Return the path that ``url`` is, or that a ``file:`` URL names; None for a URL of another kind."""
    parts = split_url(url)
    if parts.scheme == "file":
        return urllib.parse.unquote(parts.path)
    return url if "://" not in url else None
