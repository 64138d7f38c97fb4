"""Brings an archive of any size to this host, once, and proves that it is the right one.

It is downloaded to ``<dest>.part``, with a journal of what has arrived in ``<dest>.part.json``; hashed while it
arrives; renamed when it is complete and right; and recorded as verified (verified.py) with the checksums of its pieces
(pieces.py), so that the next run need not read it. One that is found damaged later becomes a ``.part`` again, of which
only the damaged pieces are missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible.module_utils.imagenet_ops.aws.s3 import s3_client
from ansible.module_utils.imagenet_ops.core.disk import allocate, allocated_bytes, disk_error, require_space
from ansible.module_utils.imagenet_ops.core.errors import OpsError, TransientError
from ansible.module_utils.imagenet_ops.core.files import (
    exclusive,
    fsync_directory,
    read_json,
    remove_durably,
    write_json,
)
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.retry import Attempts
from ansible.module_utils.imagenet_ops.download.digests import Digests, hash_file
from ansible.module_utils.imagenet_ops.download.engine import Policy, Target, transfer, transfer_whole
from ansible.module_utils.imagenet_ops.download.http import HttpSource
from ansible.module_utils.imagenet_ops.download.pieces import (
    PIECE_BYTES,
    PieceRecord,
    Pieces,
    ranges_text,
    read_pieces,
    write_pieces,
)
from ansible.module_utils.imagenet_ops.download.ranges import Ranges
from ansible.module_utils.imagenet_ops.download.rate_limit import Pace, QuietHours
from ansible.module_utils.imagenet_ops.download.s3 import S3Source
from ansible.module_utils.imagenet_ops.download.source import Facts, FileSource, Source, local_path
from ansible.module_utils.imagenet_ops.download.verified import (
    VerifiedArchive,
    find_verified,
    read_record,
    write_verified,
)

_JOURNAL_FORMAT = 1


@dataclass(frozen=True)
class Wanted:
    """What the archive must be; None where that is not known. Hashes in lower-case hex."""

    size_bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None

    @property
    def has_hash(self) -> bool:
        """Whether a hash can tell right bytes from wrong ones."""
        return bool(self.md5 or self.sha256)

    def difference(self, size_bytes: int, md5: str, sha256: str) -> str | None:
        """Return how an archive differs from what is wanted, for people; None where it does not."""
        for name, found, wanted in (
            ("size", size_bytes, self.size_bytes),
            ("MD5", md5, self.md5),
            ("SHA-256", sha256, self.sha256),
        ):
            if wanted is not None and found != wanted:
                return f"its {name} is {found} and not {wanted}"
        return None


@dataclass(frozen=True)
class FetchRequest:
    """What to fetch, from where (mirrors of one file, in order of preference), to where, and how hard to try.

    ``region``, ``endpoint_url``, ``addressing_style``, ``ca_bundle`` and the two keys are for s3 URLs, as `s3_client`
    takes them. ``bytes_per_second`` limits all connections together (0: not at all), ``quiet_hours`` (``08:00-18:30``,
    "" for none) stop them. ``deep_check`` reads a verified archive again.
    """

    urls: Sequence[str]
    dest: str
    state_dir: str
    wanted: Wanted = Wanted()
    username: str | None = None
    password: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    connections: int = 4
    timeout_seconds: float = 60
    retries: int = 8
    region: str = ""
    endpoint_url: str = ""
    addressing_style: str = "auto"
    ca_bundle: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    bytes_per_second: int = 0
    quiet_hours: str = ""
    deep_check: bool = False

    @property
    def name(self) -> str:
        """The file name of the archive."""
        return os.path.basename(self.dest)

    @property
    def part(self) -> str:
        """Where the download lies until it is complete."""
        return f"{self.dest}.part"

    @property
    def journal(self) -> str:
        """Where it is written down what of `part` has arrived."""
        return f"{self.part}.json"


def fetch(request: FetchRequest, *, check_mode: bool = False) -> dict[str, Any]:
    """Make sure that the archive is at ``request.dest`` and is the right one; return what archive_fetch returns.

    In check mode nothing is written: the server is asked, and the result says how many bytes would be downloaded.
    Raises OpsError.
    """
    _check(request)
    try:
        if check_mode:
            return _predict(request)
        os.makedirs(request.state_dir, exist_ok=True)
        os.makedirs(os.path.dirname(request.dest) or ".", exist_ok=True)
        # One at a time for a whole volume: archives that are written side by side slow one another down on a disk.
        with exclusive(os.path.join(request.state_dir, "archive_fetch.lock")):
            if not os.path.exists(request.dest):
                return _download(request)
            archive = _verified(request) or _verify(request)
            return _repair(request, archive) if isinstance(archive, _Damaged) else _result(request, archive)
    except OSError as error:
        raise disk_error(request.dest, error) from error


def _check(request: FetchRequest) -> None:
    """Raise OpsError for settings that cannot be meant."""
    wanted = request.wanted
    for name, text, digits in (("md5", wanted.md5, 32), ("sha256", wanted.sha256, 64)):
        if text is not None and not re.fullmatch(rf"[0-9a-f]{{{digits}}}", text):
            raise OpsError(f"Option {name}", f"{text!r} is not {digits} hexadecimal digits", "Correct it and run again")
    for name, number in (
        ("connections", request.connections),
        ("timeout_seconds", request.timeout_seconds),
        ("retries", request.retries + 1),
        ("bytes_per_second", request.bytes_per_second + 1),
        ("urls", len(request.urls)),
    ):
        if number <= 0:
            raise OpsError(f"Option {name}", "it is too small", "Raise it and run again")
    _pace(request)


def _pace(request: FetchRequest) -> Pace:
    return Pace(request.bytes_per_second, QuietHours.parse(request.quiet_hours) if request.quiet_hours else None)


def _result(request: FetchRequest, archive: VerifiedArchive) -> dict[str, Any]:
    return {
        "changed": False,
        "dest": request.dest,
        "size_bytes": archive.size_bytes,
        "md5": archive.md5,
        "sha256": archive.sha256,
        "downloaded_bytes": 0,
        "resumed_bytes": 0,
    }


@dataclass(frozen=True)
class _Damaged:
    """An archive at ``dest`` that was right once: what it should be, how it differs, and the bytes that do."""

    wanted: Wanted
    difference: str
    ranges: Sequence[tuple[int, int]]


def _verified(request: FetchRequest) -> VerifiedArchive | None:
    """Return the archive at ``dest`` by its record; None where it has to be read.

    One that is not what was asked for is the user's file all the same: OpsError, and it stays as it is.
    """
    archive = find_verified(request.state_dir, request.dest)
    if archive is None or request.deep_check:
        return None
    _refuse_other(request, request.wanted, archive)
    return archive


def _verify(request: FetchRequest) -> VerifiedArchive | _Damaged:
    """Read the archive at ``dest`` and record it as verified; people bring archives that they have had for years.

    One that is not the right one is left as it is (OpsError), unless it is a verified one that was damaged since.
    """
    known = _known(request)
    _refuse_size(request, known)
    progress = Progress(request.state_dir, "archive_fetch")
    progress.start(f"Verifying {request.name}", os.stat(request.dest).st_size, "bytes")
    archive, digests = _read(request, known, progress.update)
    progress.finish()
    damaged = _judge(request, known, archive, digests.pieces)
    if damaged is not None:
        return damaged
    _record(request, archive, digests.pieces)
    with contextlib.suppress(FileNotFoundError):
        # Left by a run that was killed between renaming the archive and recording it.
        os.unlink(request.journal)
    return archive


def _read(request: FetchRequest, known: Wanted, report: Callable[[int], None]) -> tuple[VerifiedArchive, Digests]:
    """Return what the file at ``dest`` is."""
    before = os.stat(request.dest)
    record = _known_pieces(request, known)
    digests = hash_file(request.dest, report, PIECE_BYTES if record is None else record.pieces.piece_bytes)
    after = os.stat(request.dest)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OpsError(f"Archive {request.dest}", "something else is writing to it", "Wait for that, then run again")
    return VerifiedArchive(request.name, after.st_size, after.st_mtime_ns, digests.md5, digests.sha256), digests


def _judge(request: FetchRequest, known: Wanted, archive: VerifiedArchive, pieces: Pieces) -> _Damaged | None:
    """Return how the archive at ``dest`` is damaged, None where it is right; OpsError where it is quite another."""
    difference = known.difference(archive.size_bytes, archive.md5, archive.sha256)
    if difference is None:
        return None
    record = _known_pieces(request, known)
    ranges = [] if record is None else record.damaged(pieces)
    # Of a damaged archive most is right; of another edition, nothing.
    if not ranges or len(ranges) * 2 > len(pieces.crc32s):
        raise _not_the_archive(request, difference)
    return _Damaged(known, difference, ranges)


def _known_pieces(request: FetchRequest, wanted: Wanted) -> PieceRecord | None:
    """Return the checksums of the pieces of what is wanted, where it was verified before and a hash says so."""
    record = read_pieces(request.state_dir, request.name) if wanted.has_hash else None
    if record is None or wanted.difference(record.size_bytes, record.md5, record.sha256) is not None:
        return None
    return record


def _record(request: FetchRequest, archive: VerifiedArchive, pieces: Pieces) -> None:
    """Write down that the archive is verified; the pieces first, for nothing would ask for them later."""
    write_pieces(request.state_dir, PieceRecord(archive.name, archive.size_bytes, archive.md5, archive.sha256, pieces))
    write_verified(request.state_dir, archive)


def _repair(request: FetchRequest, damaged: _Damaged) -> dict[str, Any]:
    """Fetch the damaged pieces of the archive at ``dest`` anew; it is not touched before a source has answered."""
    request = replace(request, wanted=damaged.wanted)
    sources, size_bytes = _sources_of_repair(request, damaged)
    done = Ranges([(0, size_bytes)])
    for start, end in damaged.ranges:
        done.remove(start, end)
    _write_journal(request, size_bytes, _versions(sources), done.pairs())
    os.replace(request.dest, request.part)
    fsync_directory(os.path.dirname(request.dest) or ".")
    return _complete(request, sources, size_bytes, before=_damaged_text(request, damaged))


def _sources_of_repair(request: FetchRequest, damaged: _Damaged) -> tuple[list[tuple[Source, Facts]], int]:
    """Return what `_probe` does, where the damaged pieces can be had; else OpsError, which tells of the damage too."""
    try:
        sources, size_bytes = _probe(request)
        if sources[0][1].ranges:
            return sources, size_bytes
        reason, todo = f"{sources[0][0].name} gives no parts of files", "Name a mirror that does in urls and run again"
    except OpsError as error:
        reason, todo = f"{error.what}: {error.why}", error.todo
    raise OpsError(
        f"Archive {request.dest}",
        f"it is damaged: {damaged.difference}, and {ranges_text(damaged.ranges)} are not what they were when it was"
        f" verified; it was left as it is, for they could not be fetched ({reason})",
        todo,
    )


def _damaged_text(request: FetchRequest, damaged: _Damaged) -> str:
    return f"{request.name}: damaged, {ranges_text(damaged.ranges)}\n"


def _known(request: FetchRequest) -> Wanted:
    """Return what is known of the archive: what was asked for, or else what it was when it was last verified."""
    if request.wanted != Wanted():
        return request.wanted
    record = read_record(request.state_dir, request.name)
    if record is None:
        raise OpsError(
            f"Archive {request.dest}",
            "it is there, but neither its size nor a hash is known to check it by",
            "Set md5, sha256 or size_bytes and run again, or move it away to download it anew",
        )
    return Wanted(record.size_bytes, record.md5, record.sha256)


def _refuse_size(request: FetchRequest, wanted: Wanted) -> None:
    """Spare the reading of a file whose size is wrong."""
    size_bytes = os.stat(request.dest).st_size
    if wanted.size_bytes not in (None, size_bytes):
        raise _not_the_archive(request, f"its size is {size_bytes} and not {wanted.size_bytes}")


def _refuse_other(request: FetchRequest, wanted: Wanted, archive: VerifiedArchive) -> None:
    difference = wanted.difference(archive.size_bytes, archive.md5, archive.sha256)
    if difference is not None:
        raise _not_the_archive(request, difference)


def _not_the_archive(request: FetchRequest, difference: str) -> OpsError:
    return OpsError(
        f"Archive {request.dest}",
        f"it is there, but {difference}; it was left as it is",
        "Move it away to download it anew, or correct what is expected of it",
    )


def _predict(request: FetchRequest) -> dict[str, Any]:
    """Return what `fetch` would, without writing anything, and without reading an archive unless for a deep check."""
    if os.path.exists(request.dest):
        return _predict_present(request)
    sources, size_bytes = _probe(request)
    resumed_bytes = _resumable(request, sources, size_bytes).total
    if os.path.isdir(os.path.dirname(request.dest)):
        # Else the volume may not be mounted yet, and the space that is seen is another's.
        _require_space(request, size_bytes)
    archive = _unread(request, request.wanted, size_bytes)
    return _changed_result(request, archive, resumed_bytes)


def _predict_present(request: FetchRequest) -> dict[str, Any]:
    archive = _verified(request)
    if archive is not None:
        return _result(request, archive)
    known = _known(request)
    _refuse_size(request, known)
    if not request.deep_check:
        return _result(request, _unread(request, known, os.stat(request.dest).st_size))
    archive, digests = _read(request, known, lambda _position: None)
    damaged = _judge(request, known, archive, digests.pieces)
    if damaged is None:
        return _result(request, archive)
    request = replace(request, wanted=damaged.wanted)
    _, size_bytes = _sources_of_repair(request, damaged)
    resumed_bytes = size_bytes - sum(end - start for start, end in damaged.ranges)
    whole = _unread(request, damaged.wanted, size_bytes)
    return _changed_result(request, whole, resumed_bytes, before=_damaged_text(request, damaged))


def _unread(request: FetchRequest, wanted: Wanted, size_bytes: int) -> VerifiedArchive:
    return VerifiedArchive(request.name, size_bytes, 0, wanted.md5 or "", wanted.sha256 or "")


def _changed_result(
    request: FetchRequest, archive: VerifiedArchive, resumed_bytes: int, before: str | None = None
) -> dict[str, Any]:
    after = f"{archive.name}: {archive.size_bytes} bytes, MD5 {archive.md5 or 'not known yet'}\n"
    return {
        **_result(request, archive),
        "changed": True,
        "downloaded_bytes": archive.size_bytes - resumed_bytes,
        "resumed_bytes": resumed_bytes,
        "diff": {"before": before or f"{archive.name}: absent\n", "after": after},
    }


def _source(request: FetchRequest, url: str) -> Source:
    path = local_path(url)
    if path is not None:
        return FileSource(path)
    if url.startswith("s3://"):
        return S3Source(url, _s3_client(request), request.timeout_seconds)
    return HttpSource(url, request.username, request.password, request.headers, request.timeout_seconds)


def _s3_client(request: FetchRequest) -> Any:
    return s3_client(
        request.region,
        request.endpoint_url,
        request.connections,
        request.addressing_style,
        request.ca_bundle,
        (request.access_key, request.secret_key),
    )


def _probe(request: FetchRequest) -> tuple[list[tuple[Source, Facts]], int]:
    """Ask all sources what they have; return those that can be used together, and the size on which they agree.

    A source that fails for good is left out while another answers. Raises OpsError where none is left.
    """
    pending = [_source(request, url) for url in request.urls]
    refusals: list[OpsError] = []
    attempts = Attempts(request.retries)
    while True:
        found: list[tuple[Source, Facts]] = []
        interruptions: list[tuple[Source, TransientError]] = []
        for source in pending:
            try:
                found.append((source, _facts(source, request.wanted)))
            except TransientError as error:  # noqa: PERF203 (a few mirrors, each asked over the network)
                interruptions.append((source, error))
            except OpsError as error:
                refusals.append(error)
        if found:
            return _together(found)
        if not interruptions:
            raise _no_source(request, refusals)
        source, interruption = interruptions[0]
        time.sleep(attempts.failed(source.name, interruption, done_bytes=0))
        pending = [source for source, _ in interruptions]


def _facts(source: Source, wanted: Wanted) -> Facts:
    """Return what ``source`` has, with a size in any case; OpsError where it is not what is wanted."""
    with contextlib.closing(source.session()) as session:
        facts = session.facts()
    if facts.size_bytes is None:
        if wanted.size_bytes is None:
            raise OpsError(
                f"Download from {source.name}",
                "the server does not say how many bytes it will send, so a truncated file could not be told",
                "Set size_bytes",
            )
        return Facts(wanted.size_bytes, ranges=False, validator=facts.validator)
    if wanted.size_bytes not in (None, facts.size_bytes):
        raise OpsError(
            f"Download from {source.name}",
            f"the server has a file of {facts.size_bytes} bytes where {wanted.size_bytes} were expected",
            "Check the URL and size_bytes",
        )
    return facts


def _together(found: list[tuple[Source, Facts]]) -> tuple[list[tuple[Source, Facts]], int]:
    """Return those of ``found`` that work side by side, and their size: the best one says, others of its kind join."""
    best, facts = next((pair for pair in found if pair[1].ranges), found[0])
    size_bytes = facts.size_bytes or 0
    if not facts.ranges or not best.parallel:
        return [(best, facts)], size_bytes
    fitting = [
        (source, other)
        for source, other in found
        if source.parallel and other.ranges and other.size_bytes == size_bytes
    ]
    return fitting, size_bytes


def _no_source(request: FetchRequest, refusals: list[OpsError]) -> OpsError:
    if len(refusals) == 1:
        return refusals[0]
    reasons = "; ".join(f"{error.what}: {error.why}" for error in refusals)
    return OpsError(f"Download of {request.name}", f"none of the sources can be used ({reasons})", refusals[0].todo)


def _resumable(request: FetchRequest, sources: list[tuple[Source, Facts]], size_bytes: int) -> Ranges:
    """Return what of ``part`` can be kept: all that the journal names, if it is of the file that the sources have now.

    A source that was used before must still have the same version. One that was not may be trusted to have the same
    file only where a hash of the whole will tell.
    """
    journal = read_json(request.journal)
    try:
        part_size = os.stat(request.part).st_size
    except FileNotFoundError:
        return Ranges()
    if not sources[0][1].ranges or not isinstance(journal, dict) or journal.get("format") != _JOURNAL_FORMAT:
        return Ranges()
    if part_size != size_bytes or journal["size_bytes"] != size_bytes:
        return Ranges()
    versions: dict[str, str] = journal["sources"]
    known = [versions[source.name] == facts.validator for source, facts in sources if versions.get(source.name)]
    if all(known) and (known or request.wanted.has_hash):
        return Ranges(journal["done"])
    return Ranges()


def _require_space(request: FetchRequest, size_bytes: int) -> None:
    require_space(request.dest, size_bytes - min(allocated_bytes(request.part), size_bytes))


def _download(request: FetchRequest) -> dict[str, Any]:
    sources, size_bytes = _probe(request)
    return _complete(request, sources, size_bytes)


def _complete(
    request: FetchRequest, sources: list[tuple[Source, Facts]], size_bytes: int, before: str | None = None
) -> dict[str, Any]:
    """Fetch what ``part`` lacks, and give it its name; ``before`` is what the result says of the time before."""
    done = _resumable(request, sources, size_bytes)
    resumed_bytes = done.total
    _require_space(request, size_bytes)
    if not resumed_bytes:
        # First of all: a journal must never meet a file that it was not written for.
        remove_durably(request.journal)
    descriptor = os.open(request.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not resumed_bytes:
            allocate(descriptor, size_bytes)
        digests = _transfer(request, sources, Target(request.part, descriptor, size_bytes), done)
        os.fsync(descriptor)
        mtime_ns = os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
    archive = VerifiedArchive(request.name, size_bytes, mtime_ns, digests.md5, digests.sha256)
    _accept(request, archive, digests.pieces)
    return _changed_result(request, archive, resumed_bytes, before)


class _Report:
    """Tells people how far a download is, and which of three things is going on."""

    def __init__(self, request: FetchRequest, size_bytes: int, pace: Pace) -> None:
        self.progress = Progress(request.state_dir, "archive_fetch")
        self._request = request
        self._size_bytes = size_bytes
        self._pace = pace
        self._stage = ""

    def __call__(self, done_bytes: int, hashed_bytes: int) -> None:
        """Tell the numbers of bytes that are there and that are hashed."""
        stage, count = f"Downloading {self._request.name}", done_bytes
        if done_bytes == self._size_bytes:
            stage, count = f"Verifying {self._request.name}", hashed_bytes
        elif self._pace.rest_seconds():
            stage = f"Resting in the quiet hours ({self._request.quiet_hours}), {self._request.name}"
        if stage != self._stage:
            self._stage = stage
            self.progress.start(stage, self._size_bytes, "bytes", count)
        else:
            self.progress.update(count)


def _versions(sources: list[tuple[Source, Facts]]) -> dict[str, str]:
    return {source.name: facts.validator for source, facts in sources}


def _write_journal(
    request: FetchRequest, size_bytes: int, versions: Mapping[str, str], done: Sequence[tuple[int, int]]
) -> None:
    write_json(
        request.journal, {"format": _JOURNAL_FORMAT, "size_bytes": size_bytes, "sources": versions, "done": done}
    )


def _transfer(request: FetchRequest, sources: list[tuple[Source, Facts]], target: Target, done: Ranges) -> Digests:
    """Fill ``target``, with a journal and progress; return its hashes."""
    versions = _versions(sources)

    def checkpoint(ranges: list[tuple[int, int]]) -> None:
        _write_journal(request, target.size_bytes, versions, ranges)

    pace = _pace(request)
    report = _Report(request, target.size_bytes, pace)
    report(done.total, 0)
    policy = Policy(request.connections, request.retries, checkpoint, report, pace=pace)
    source, facts = sources[0]
    if facts.ranges:
        checkpoint(done.pairs())
        known = _known_pieces(request, replace(request.wanted, size_bytes=target.size_bytes))
        digests = transfer(sources, target, done, policy, known)
    else:
        digests = transfer_whole(source, facts, target, policy)
    report.progress.finish()
    return digests


def _accept(request: FetchRequest, archive: VerifiedArchive, pieces: Pieces) -> None:
    """Give the finished download its name and its record; where it is not what was wanted, set it aside."""
    directory = os.path.dirname(request.dest) or "."
    difference = request.wanted.difference(archive.size_bytes, archive.md5, archive.sha256)
    final = request.dest if difference is None else f"{request.dest}.rejected"
    os.replace(request.part, final)
    fsync_directory(directory)
    remove_durably(request.journal)
    if difference is not None:
        record = _known_pieces(request, replace(request.wanted, size_bytes=archive.size_bytes))
        ranges = [] if record is None else record.damaged(pieces)
        where = f" ({ranges_text(ranges)} are not what they were when it was verified before)" if ranges else ""
        raise OpsError(
            f"Archive {request.dest}",
            f"it was downloaded, but {difference}{where}; it was set aside as {final} and is not used",
            "Check the URL and the expected values, remove what was set aside, and run again",
        )
    _record(request, archive, pieces)
