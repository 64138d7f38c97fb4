"""Brings an archive of any size to this host, once, and proves that it is the right one.

It is downloaded to ``<dest>.part``, with a checkpoint of what has arrived (part_file.py); hashed while it arrives;
renamed when it is complete and right; and recorded as verified (verified.py) with the checksums of its pieces
(pieces.py), so that the next run need not read it. One that is found damaged later becomes a ``.part`` again, of which
only the damaged pieces are missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from ansible.module_utils.imagenet_ops.aws.s3 import s3_client
from ansible.module_utils.imagenet_ops.core.disk import disk_error, require_space
from ansible.module_utils.imagenet_ops.core.errors import OpsError, TransientError
from ansible.module_utils.imagenet_ops.core.files import exclusive
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.retry import Attempts
from ansible.module_utils.imagenet_ops.core.state_file import Kind, Warn
from ansible.module_utils.imagenet_ops.download.digests import Digests, hash_file
from ansible.module_utils.imagenet_ops.download.engine import Policy, Target, transfer, transfer_whole
from ansible.module_utils.imagenet_ops.download.http import HttpSource
from ansible.module_utils.imagenet_ops.download.part_file import DONE, ResumablePartFile, checkpoint_path
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
from ansible.module_utils.imagenet_ops.download.s3 import named_object
from ansible.module_utils.imagenet_ops.download.source import Facts, FileSource, Source, local_path
from ansible.module_utils.imagenet_ops.download.verified import (
    VerifiedArchive,
    find_verified,
    read_record,
    write_verified,
)

_CHECKPOINT = Kind(
    "archive_fetch checkpoint", 1, {**DONE, "sources": {str: str}}, starts_over="the download starts over"
)


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
        if self.size_bytes not in (None, size_bytes):
            return f"size mismatch: expected {self.size_bytes} bytes, got {size_bytes}"
        for name, found, wanted in (("MD5", md5, self.md5), ("SHA-256", sha256, self.sha256)):
            if wanted is not None and found != wanted:
                return f"checksum mismatch: expected {name} {wanted}, got {found}"
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
    session_token: str = field(default="", repr=False)
    bytes_per_second: int = 0
    quiet_hours: str = ""
    deep_check: bool = False

    @property
    def name(self) -> str:
        """The file name of the archive."""
        return os.path.basename(self.dest)


class Difference(TypedDict):
    """What ``--diff`` shows: text before and after."""

    before: str
    after: str


class _Unchanged(TypedDict):
    changed: bool
    dest: str
    size_bytes: int
    md5: str
    sha256: str
    downloaded_bytes: int
    resumed_bytes: int


class FetchResult(_Unchanged, total=False):
    """What archive_fetch returns; ``diff`` only where something changed. Hashes "" where they are not known yet."""

    diff: Difference


def fetch(request: FetchRequest, *, check_mode: bool = False, warn: Warn = warnings.warn) -> FetchResult:
    """Make sure that the archive is at ``request.dest`` and is the right one; return what archive_fetch returns.

    In check mode nothing is written: the server is queried, and the result says how many bytes would be downloaded.
    ``warn`` is called with a sentence where what an earlier run left cannot be used. Raises OpsError.
    """
    return Fetch(request, warn).run(check_mode=check_mode)


@dataclass(frozen=True)
class _Damaged:
    """An archive at ``dest`` that was right once: what it should be, how it differs, and the bytes that do."""

    wanted: Wanted
    difference: str
    ranges: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class _Origin:
    """The sources that can be used together, the best one first, and the size on which they agree."""

    sources: list[tuple[Source, Facts]]
    size_bytes: int

    @property
    def gives_ranges(self) -> bool:
        """Whether the download can be resumed."""
        return self.sources[0][1].ranges

    @property
    def versions(self) -> dict[str, str]:
        """The version of the file that each source has, by its name."""
        return {source.name: facts.validator for source, facts in self.sources}


class Fetch:
    """One archive on its way to this host."""

    def __init__(self, request: FetchRequest, warn: Warn) -> None:
        self._request = request
        self._warn = warn
        # What the archive must be; of one that was verified before and is damaged, what it was then.
        self._wanted = request.wanted
        # The compressions that servers used unasked.
        self._encodings: set[str] = set()

    def run(self, *, check_mode: bool) -> FetchResult:
        """Do what `fetch` says."""
        request = self._request
        self._check_options()
        try:
            if check_mode:
                return self._predict()
            os.makedirs(request.state_dir, exist_ok=True)
            os.makedirs(os.path.dirname(request.dest) or ".", exist_ok=True)
            # One at a time for a whole volume: archives that are written side by side slow one another down on a disk.
            with exclusive(os.path.join(request.state_dir, "archive_fetch.lock")):
                if not os.path.exists(request.dest):
                    return self._download(self._probe())
                archive = self._verified() or self._verify()
                return self._repair(archive) if isinstance(archive, _Damaged) else self._result(archive)
        except OSError as error:
            raise disk_error(request.dest, error) from error

    def _check_options(self) -> None:
        """Raise OpsError for settings that cannot be meant."""
        request = self._request
        for name, text, digits in (("md5", self._wanted.md5, 32), ("sha256", self._wanted.sha256, 64)):
            if text is not None and not re.fullmatch(rf"[0-9a-f]{{{digits}}}", text):
                why = f"{text!r} is not {digits} hexadecimal digits"
                raise OpsError(f"Option {name}", why, "Correct it and run again")
        for name, number in (
            ("connections", request.connections),
            ("timeout_seconds", request.timeout_seconds),
            ("retries", request.retries + 1),
            ("bytes_per_second", request.bytes_per_second + 1),
            ("urls", len(request.urls)),
        ):
            if number <= 0:
                raise OpsError(f"Option {name}", "it is too small", "Raise it and run again")
        self._rate_limit()

    def _rate_limit(self) -> Pace:
        hours = self._request.quiet_hours
        return Pace(self._request.bytes_per_second, QuietHours.parse(hours) if hours else None)

    # The archive that is there

    def _verified(self) -> VerifiedArchive | None:
        """Return the archive at ``dest`` by its record; None where it has to be read.

        One that is not the expected one is the user's file all the same: OpsError, and it is not changed.
        """
        archive = find_verified(self._request.state_dir, self._request.dest)
        if archive is None or self._request.deep_check:
            return None
        difference = self._wanted.difference(archive.size_bytes, archive.md5, archive.sha256)
        if difference is not None:
            raise self._not_the_archive(difference)
        return archive

    def _verify(self) -> VerifiedArchive | _Damaged:
        """Read the archive at ``dest`` and record it as verified; people bring archives that they have had for years.

        One that is not the right one is not changed (OpsError), unless it is a verified one that was damaged since.
        """
        request = self._request
        self._know()
        self._refuse_size()
        progress = Progress(request.state_dir, "archive_fetch")
        progress.start(f"Verifying {request.name}", os.stat(request.dest).st_size, "bytes")
        archive, digests = self._read(progress.update)
        progress.finish()
        damaged = self._judge(archive, digests.pieces)
        if damaged is not None:
            return damaged
        self._record(archive, digests.pieces)
        with contextlib.suppress(FileNotFoundError):
            # Left by a run that was killed between renaming the archive and recording it.
            os.unlink(checkpoint_path(request.dest))
        return archive

    def _know(self) -> None:
        """Take what the archive was when it was last verified for what is wanted, where nothing is known of it."""
        if self._wanted != Wanted():
            return
        record = read_record(self._request.state_dir, self._request.name)
        if record is None:
            raise OpsError(
                f"Archive {self._request.dest}",
                "the file exists but cannot be verified: no md5, sha256 or size_bytes is given",
                "Set one of them and run again, or move the file away to download it",
            )
        self._wanted = Wanted(record.size_bytes, record.md5, record.sha256)

    def _refuse_size(self) -> None:
        """Spare the reading of a file whose size is wrong."""
        size_bytes = os.stat(self._request.dest).st_size
        if self._wanted.size_bytes not in (None, size_bytes):
            raise self._not_the_archive(self._wanted.difference(size_bytes, "", "") or "")

    def _not_the_archive(self, difference: str) -> OpsError:
        return OpsError(
            f"Archive {self._request.dest}",
            f"the existing file is not the expected one ({difference}); it was not changed",
            "Move it away to download it again, or correct the expected values",
        )

    def _read(self, report: Callable[[int], None]) -> tuple[VerifiedArchive, Digests]:
        """Return what the file at ``dest`` is."""
        request = self._request
        before = os.stat(request.dest)
        record = self._known_pieces(self._wanted)
        digests = hash_file(request.dest, report, PIECE_BYTES if record is None else record.pieces.piece_bytes)
        after = os.stat(request.dest)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            why, todo = "something else is writing to it", "Wait until that has ended, then run again"
            raise OpsError(f"Archive {request.dest}", why, todo)
        return VerifiedArchive(request.name, after.st_size, after.st_mtime_ns, digests.md5, digests.sha256), digests

    def _judge(self, archive: VerifiedArchive, pieces: Pieces) -> _Damaged | None:
        """Return how the archive at ``dest`` is damaged, None where it is right; OpsError where it is quite another."""
        difference = self._wanted.difference(archive.size_bytes, archive.md5, archive.sha256)
        if difference is None:
            return None
        record = self._known_pieces(self._wanted)
        ranges = [] if record is None else record.damaged(pieces)
        # Of a damaged archive most is right; of another edition, nothing.
        if not ranges or len(ranges) * 2 > len(pieces.crc32s):
            raise self._not_the_archive(difference)
        return _Damaged(self._wanted, difference, ranges)

    def _known_pieces(self, wanted: Wanted) -> PieceRecord | None:
        """Return the checksums of the pieces of what is wanted, where it was verified before and a hash says so."""
        record = read_pieces(self._request.state_dir, self._request.name) if wanted.has_hash else None
        if record is None or wanted.difference(record.size_bytes, record.md5, record.sha256) is not None:
            return None
        return record

    def _record(self, archive: VerifiedArchive, pieces: Pieces) -> None:
        """Write down that the archive is verified; the pieces first, for nothing would look for them later."""
        record = PieceRecord(archive.name, archive.size_bytes, archive.md5, archive.sha256, pieces)
        write_pieces(self._request.state_dir, record)
        write_verified(self._request.state_dir, archive)

    # Its repair

    def _repair(self, damaged: _Damaged) -> FetchResult:
        """Fetch the damaged pieces of the archive at ``dest``; it is not touched before a source has answered."""
        self._wanted = damaged.wanted
        origin = self._origin_of_repair(damaged)
        done = Ranges([(0, origin.size_bytes)])
        for start, end in damaged.ranges:
            done.remove(start, end)
        self._part(origin).reopen(done)
        return self._download(origin, before=self._damaged_text(damaged))

    def _origin_of_repair(self, damaged: _Damaged) -> _Origin:
        """Return what `_probe` does, where it gives the damaged pieces; else OpsError, which names the damage too."""
        try:
            origin = self._probe()
            if origin.gives_ranges:
                return origin
            reason = f"{origin.sources[0][0].name} does not serve ranges"
            todo = "Add a mirror that does to urls and run again"
        except OpsError as error:
            reason, todo = f"{error.what}: {error.why}", error.todo
        raise OpsError(
            f"Archive {self._request.dest}",
            f"it is damaged: {damaged.difference}, and {ranges_text(damaged.ranges)} have changed since it was"
            f" verified; it was not changed, because they could not be fetched ({reason})",
            todo,
        )

    def _damaged_text(self, damaged: _Damaged) -> str:
        return f"{self._request.name}: damaged, {ranges_text(damaged.ranges)}\n"

    # Check mode

    def _predict(self) -> FetchResult:
        """Return what `run` would, without writing anything, and without reading an archive unless for a deep check."""
        if os.path.exists(self._request.dest):
            return self._predict_present()
        origin = self._probe()
        resumed_bytes = self._resumable(origin).total
        if os.path.isdir(os.path.dirname(self._request.dest)):
            # Else the volume may not be mounted yet, and the space that is seen is another's.
            self._require_space(origin)
        return self._changed_result(self._unread(origin.size_bytes), resumed_bytes)

    def _predict_present(self) -> FetchResult:
        archive = self._verified()
        if archive is not None:
            return self._result(archive)
        self._know()
        self._refuse_size()
        if not self._request.deep_check:
            return self._result(self._unread(os.stat(self._request.dest).st_size))
        archive, digests = self._read(lambda _position: None)
        damaged = self._judge(archive, digests.pieces)
        if damaged is None:
            return self._result(archive)
        size_bytes = self._origin_of_repair(damaged).size_bytes
        resumed_bytes = size_bytes - sum(end - start for start, end in damaged.ranges)
        return self._changed_result(self._unread(size_bytes), resumed_bytes, before=self._damaged_text(damaged))

    def _unread(self, size_bytes: int) -> VerifiedArchive:
        return VerifiedArchive(self._request.name, size_bytes, 0, self._wanted.md5 or "", self._wanted.sha256 or "")

    def _result(self, archive: VerifiedArchive) -> FetchResult:
        return {
            "changed": False,
            "dest": self._request.dest,
            "size_bytes": archive.size_bytes,
            "md5": archive.md5,
            "sha256": archive.sha256,
            "downloaded_bytes": 0,
            "resumed_bytes": 0,
        }

    def _changed_result(self, archive: VerifiedArchive, resumed_bytes: int, before: str | None = None) -> FetchResult:
        after = f"{archive.name}: {archive.size_bytes} bytes, MD5 {archive.md5 or 'not known yet'}\n"
        return {
            **self._result(archive),
            "changed": True,
            "downloaded_bytes": archive.size_bytes - resumed_bytes,
            "resumed_bytes": resumed_bytes,
            "diff": {"before": before or f"{archive.name}: absent\n", "after": after},
        }

    # The sources

    def _source(self, url: str) -> Source:
        request = self._request
        path = local_path(url)
        if path is not None:
            return FileSource(path)
        if url.startswith("s3://"):
            return named_object(url, self._s3_client(), request.timeout_seconds)
        return HttpSource(
            url,
            request.username,
            request.password,
            request.headers,
            request.timeout_seconds,
            bytes_decide=self._wanted.has_hash,
        )

    def _s3_client(self) -> Any:
        request = self._request
        return s3_client(
            request.region,
            request.endpoint_url,
            request.connections,
            request.addressing_style,
            request.ca_bundle,
            (request.access_key, request.secret_key, request.session_token),
        )

    def _probe(self) -> _Origin:
        """Query all sources for what they have; return those that can be used together.

        A source that fails for good is left out while another answers. Raises OpsError where none is left.
        """
        pending = [self._source(url) for url in self._request.urls]
        refusals: list[OpsError] = []
        attempts = Attempts(self._request.retries)
        while True:
            found: list[tuple[Source, Facts]] = []
            interruptions: list[tuple[Source, TransientError]] = []
            for source in pending:
                try:
                    found.append((source, self._facts(source)))
                except TransientError as error:  # noqa: PERF203 (a few mirrors, each queried over the network)
                    interruptions.append((source, error))
                except OpsError as error:
                    refusals.append(error)
            if found:
                return _together(found)
            if not interruptions:
                raise self._no_source(refusals)
            source, interruption = interruptions[0]
            time.sleep(attempts.failed(source.name, interruption, done_bytes=0))
            pending = [source for source, _ in interruptions]

    def _facts(self, source: Source) -> Facts:
        """Return what ``source`` has, with a size in any case; OpsError where it is not what is wanted."""
        expected_bytes = self._wanted.size_bytes
        with contextlib.closing(source.session()) as session:
            facts = session.facts()
        if facts.encoding:
            self._encodings.add(facts.encoding)
        if facts.size_bytes is None:
            if expected_bytes is None:
                raise OpsError(
                    f"Download from {source.name}",
                    "the server does not report the size of the file, so a truncated download could not be detected",
                    "Set size_bytes",
                )
            return Facts(expected_bytes, ranges=False, validator=facts.validator)
        if expected_bytes not in (None, facts.size_bytes):
            raise OpsError(
                f"Download from {source.name}",
                f"the server has a file of {facts.size_bytes} bytes, and {expected_bytes} were expected"
                f"{self._encoded()}",
                "Check the URL and size_bytes",
            )
        return facts

    def _encoded(self) -> str:
        """Return what to add to an error about the bytes where a server encoded them; "" where none did."""
        if not self._encodings:
            return ""
        return f"; the server used the Content-Encoding {', '.join(sorted(self._encodings))}, which was not requested"

    def _no_source(self, refusals: list[OpsError]) -> OpsError:
        if len(refusals) == 1:
            return refusals[0]
        reasons = "; ".join(f"{error.what}: {error.why}" for error in refusals)
        why, todo = f"none of the sources can be used ({reasons})", refusals[0].todo
        return OpsError(f"Download of {self._request.name}", why, todo)

    # The download

    def _part(self, origin: _Origin) -> ResumablePartFile:
        key = {"sources": origin.versions}
        return ResumablePartFile(
            self._request.dest,
            origin.size_bytes,
            _CHECKPOINT,
            key,
            self._warn,
            lambda found: self._continues(found, origin),
        )

    def _continues(self, found: Mapping[str, Any], origin: _Origin) -> bool:
        """Say whether the part that ``found`` describes is of the file that the sources have now.

        A source that was used before must still have the same version. One that was not may be trusted to have the same
        file only where a hash of the whole will tell.
        """
        before = found["sources"]
        known = [before[name] == version for name, version in origin.versions.items() if before.get(name)]
        return all(known) and (bool(known) or self._wanted.has_hash)

    def _resumable(self, origin: _Origin) -> Ranges:
        return self._part(origin).resumable() if origin.gives_ranges else Ranges()

    def _require_space(self, origin: _Origin) -> None:
        require_space(self._request.dest, self._part(origin).missing_bytes)

    def _download(self, origin: _Origin, before: str | None = None) -> FetchResult:
        """Fetch what the part lacks, and give it its name; ``before`` is what the result says of the time before."""
        done = self._resumable(origin)
        resumed_bytes = done.total
        self._require_space(origin)
        part = self._part(origin)
        with part.open(done) as target:
            digests = self._transfer(origin, part, target, done)
            mtime_ns = os.fstat(target.descriptor).st_mtime_ns
        archive = VerifiedArchive(self._request.name, origin.size_bytes, mtime_ns, digests.md5, digests.sha256)
        self._accept(part, archive, digests.pieces)
        return self._changed_result(archive, resumed_bytes, before)

    def _transfer(self, origin: _Origin, part: ResumablePartFile, target: Target, done: Ranges) -> Digests:
        """Fill ``target``, with checkpoints and progress; return its hashes."""
        request = self._request
        limit = self._rate_limit()
        report = _Report(request, target.size_bytes, limit)
        report(done.total, 0)
        policy = Policy(request.connections, request.retries, part.checkpoint, report, pace=limit)
        if origin.gives_ranges:
            part.checkpoint(done.pairs())
            known = self._known_pieces(replace(self._wanted, size_bytes=target.size_bytes))
            digests = transfer(origin.sources, target, done, policy, known)
        else:
            digests = transfer_whole(*origin.sources[0], target, policy)
        report.progress.finish()
        return digests

    def _accept(self, part: ResumablePartFile, archive: VerifiedArchive, pieces: Pieces) -> None:
        """Give the finished download its name and its record; where it is not what was wanted, set it aside."""
        difference = self._wanted.difference(archive.size_bytes, archive.md5, archive.sha256)
        if difference is None:
            part.commit()
            self._record(archive, pieces)
            return
        aside = f"{self._request.dest}.rejected"
        part.reject(aside)
        record = self._known_pieces(replace(self._wanted, size_bytes=archive.size_bytes))
        ranges = [] if record is None else record.damaged(pieces)
        where = f"; {ranges_text(ranges)} have changed since it was verified" if ranges else ""
        raise OpsError(
            f"Archive {self._request.dest}",
            f"the downloaded file is not the expected one ({difference}{where}{self._encoded()}); it was moved to"
            f" {aside}",
            "Check the URL and the expected values, remove the file that was moved aside, and run again",
        )


def _together(found: list[tuple[Source, Facts]]) -> _Origin:
    """Return those of ``found`` that work side by side: the best one, and the others of its kind and size."""
    best, facts = next((pair for pair in found if pair[1].ranges), found[0])
    size_bytes = facts.size_bytes or 0
    if not facts.ranges or not best.parallel:
        return _Origin([(best, facts)], size_bytes)
    fitting = [
        (source, other)
        for source, other in found
        if source.parallel and other.ranges and other.size_bytes == size_bytes
    ]
    return _Origin(fitting, size_bytes)


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
