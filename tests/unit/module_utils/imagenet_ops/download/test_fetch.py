"""An archive arrives whole and right, or there is a clear error: against a hostile server, kills, and full disks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core import disk, retry
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.download import engine, ranges
from ansible.module_utils.imagenet_ops.download import fetch as fetch_module
from ansible.module_utils.imagenet_ops.download.digests import Digests
from ansible.module_utils.imagenet_ops.download.fetch import FetchRequest, Wanted, fetch
from ansible.module_utils.imagenet_ops.download.pieces import Pieces, read_pieces
from ansible.module_utils.imagenet_ops.download.rate_limit import Pace
from ansible.module_utils.imagenet_ops.download.verified import read_verified

from lab.origin import Fault, Origin
from tests.fakes.killed import NEVER, Kills
from tests.fakes.seeds import kill_seeds
from tests.fakes.state_files import edit

CONTENT = random.Random(2).randbytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PIECE_BYTES = 100_000
RIGHT = Wanted(len(CONTENT), MD5, SHA256)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
    monkeypatch.setattr(ranges, "_SHORTEST_SPAN_BYTES", 64 * 1024)
    monkeypatch.setattr(engine, "_READ_BYTES", 16 * 1024)
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)
    for module in (engine, fetch_module):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE_BYTES)


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "val.tar").write_bytes(CONTENT)
    with Origin(folder) as running:
        yield running


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "data" / "archives" / "val.tar"


def request(dest: Path, *urls: str, wanted: Wanted = RIGHT, **settings: Any) -> FetchRequest:
    settings = {"retries": 30, "timeout_seconds": 5, **settings}
    return FetchRequest(list(urls), str(dest), str(dest.parent.parent / ".state"), wanted, **settings)


def of(origin: Origin, dest: Path, wanted: Wanted = RIGHT, **settings: Any) -> FetchRequest:
    return request(dest, f"{origin.url}/val.tar", wanted=wanted, **settings)


def failure(wish: FetchRequest, *, check_mode: bool = False) -> str:
    with pytest.raises(OpsError) as caught:
        fetch(wish, check_mode=check_mode)
    return str(caught.value)


def assert_complete(dest: Path) -> None:
    """The archive is there, recorded, and alone."""
    assert dest.read_bytes() == CONTENT
    assert sorted(path.name for path in dest.parent.iterdir()) == ["val.tar"]
    (record,) = read_verified(str(dest.parent.parent / ".state"))
    assert (record.name, record.size_bytes, record.md5, record.sha256) == ("val.tar", len(CONTENT), MD5, SHA256)
    assert record.mtime_ns == dest.stat().st_mtime_ns


# The usual way


def test_a_download_and_its_second_run(origin: Origin, dest: Path) -> None:
    result = fetch(of(origin, dest))
    assert result == {
        "changed": True,
        "dest": str(dest),
        "size_bytes": len(CONTENT),
        "md5": MD5,
        "sha256": SHA256,
        "downloaded_bytes": len(CONTENT),
        "resumed_bytes": 0,
        "diff": {"before": "val.tar: absent\n", "after": f"val.tar: 3000000 bytes, MD5 {MD5}\n"},
    }
    assert_complete(dest)
    asked = len(origin.requests)
    del result["diff"]
    assert fetch(of(origin, dest)) == {**result, "changed": False, "downloaded_bytes": 0}
    assert len(origin.requests) == asked, "a second run has nothing to ask"


def test_progress_for_people(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    progress = json.loads((dest.parent.parent / ".state" / "archive_fetch.progress.json").read_text())
    assert (progress["done"], progress["total"], progress["unit"]) == (len(CONTENT), len(CONTENT), "bytes")
    assert progress["finished"] is True
    assert progress["stage"].endswith("ing val.tar")


def test_progress_says_that_a_download_rests(origin: Origin, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_LONGEST_REST_SECONDS", 0.001)
    path = dest.parent.parent / ".state" / "archive_fetch.progress.json"
    stages: list[str] = []

    def rest_seconds(_pace: Pace) -> float:
        if path.exists():
            stages.append(json.loads(path.read_text())["stage"])
        return 0.0 if any(stage.startswith("Resting") for stage in stages) else 3600.0

    monkeypatch.setattr(Pace, "rest_seconds", rest_seconds)
    fetch(of(origin, dest, quiet_hours="08:00-18:00"))
    assert "Resting in the quiet hours (08:00-18:00), val.tar" in stages
    assert_complete(dest)


def test_nothing_is_expected_of_it(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest, Wanted()))
    assert_complete(dest)
    os.utime(dest, ns=(1, 1))
    # The record of the first run says what it was; so a touched file need not be downloaded again.
    assert fetch(of(origin, dest, Wanted()))["changed"] is False
    assert_complete(dest)


def test_the_connections_asked_for_are_used(origin: Origin, dest: Path) -> None:
    origin.bytes_per_second_per_connection = 2_000_000
    fetch(of(origin, dest, connections=8))
    assert_complete(dest)
    assert len({request.headers["range"] for request in origin.requests}) >= 8


def test_an_empty_file(origin: Origin, dest: Path) -> None:
    (origin.directory / "val.tar").write_bytes(b"")
    assert fetch(of(origin, dest, Wanted()))["size_bytes"] == 0
    assert dest.read_bytes() == b""


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_that_is_on_the_host_already(origin: Origin, dest: Path, scheme: str) -> None:
    result = fetch(request(dest, f"{scheme}{origin.directory}/val.tar"))
    assert (result["changed"], result["downloaded_bytes"]) == (True, len(CONTENT))
    assert_complete(dest)
    assert len(origin.requests) == 0


def test_check_mode_writes_nothing_and_tells_the_bytes(origin: Origin, dest: Path) -> None:
    predicted = fetch(of(origin, dest), check_mode=True)
    assert not dest.parent.parent.exists()
    assert predicted == fetch(of(origin, dest)) | {"sha256": SHA256}
    asked = len(origin.requests)
    assert fetch(of(origin, dest), check_mode=True)["changed"] is False
    assert len(origin.requests) == asked
    (dest.parent.parent / ".state" / "archives" / "val.tar.json").unlink()
    unread = fetch(of(origin, dest), check_mode=True)
    assert (unread["changed"], unread["md5"]) == (False, MD5)


def test_check_mode_finds_what_would_fail(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(status=401)]
    assert "the server wants credentials" in failure(of(origin, dest), check_mode=True)
    dest.parent.mkdir(parents=True)
    dest.write_bytes(b"short")
    assert "size mismatch: expected 3000000 bytes, got 5" in failure(of(origin, dest), check_mode=True)
    assert "no md5, sha256 or size_bytes is given" in failure(of(origin, dest, Wanted()), check_mode=True)


# What is there already


def test_an_archive_that_people_have_is_adopted(origin: Origin, dest: Path) -> None:
    dest.parent.mkdir(parents=True)
    dest.write_bytes(CONTENT)
    for wanted in (Wanted(md5=MD5), Wanted(sha256=SHA256), Wanted(size_bytes=len(CONTENT))):
        result = fetch(of(origin, dest, wanted))
        assert (result["changed"], result["downloaded_bytes"], result["sha256"]) == (False, 0, SHA256)
        assert_complete(dest)
        (dest.parent.parent / ".state" / "archives" / "val.tar.json").unlink()
    assert len(origin.requests) == 0


@pytest.mark.parametrize(
    ("content", "difference"),
    [
        (CONTENT[:-1], "size mismatch: expected 3000000 bytes, got 2999999"),
        (
            b"x" + CONTENT[1:],
            f"checksum mismatch: expected MD5 {MD5}, got {hashlib.md5(b'x' + CONTENT[1:]).hexdigest()}",
        ),
    ],
)
def test_another_file_in_its_place_is_left_alone(origin: Origin, dest: Path, content: bytes, difference: str) -> None:
    dest.parent.mkdir(parents=True)
    dest.write_bytes(content)
    assert failure(of(origin, dest)) == (
        f"Archive {dest}: the existing file is not the expected one ({difference}); it was not changed. Move it away to"
        " download it again, or correct the expected values"
    )
    assert dest.read_bytes() == content
    assert read_verified(str(dest.parent.parent / ".state")) == []


def test_an_archive_by_which_nothing_can_be_told(origin: Origin, dest: Path) -> None:
    dest.parent.mkdir(parents=True)
    dest.write_bytes(CONTENT)
    assert failure(of(origin, dest, Wanted())) == (
        f"Archive {dest}: the file exists but cannot be verified: no md5, sha256 or size_bytes is given. Set one of"
        " them and run again, or move the file away to download it"
    )


def test_a_verified_archive_of_which_something_else_is_expected_now(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    other = "0" * 32
    message = failure(of(origin, dest, Wanted(md5=other)))
    assert f"(checksum mismatch: expected MD5 {other}, got {MD5}); it was not changed" in message
    assert_complete(dest)


def test_an_archive_that_changed_after_it_was_verified(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    dest.write_bytes(b"x" + CONTENT[1:])
    assert fetch(of(origin, dest))["downloaded_bytes"] == PIECE_BYTES
    assert_complete(dest)


def test_an_archive_that_someone_else_is_writing(origin: Origin, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest.parent.mkdir(parents=True)
    dest.write_bytes(CONTENT)

    def hash_and_touch(path: str, report: Callable[[int], None], piece_bytes: int) -> Digests:
        report(1)
        os.utime(path, ns=(1, 1))
        return Digests(MD5, SHA256, Pieces(piece_bytes, ()))

    monkeypatch.setattr(fetch_module, "hash_file", hash_and_touch)
    assert failure(of(origin, dest)) == (
        f"Archive {dest}: something else is writing to it. Wait until that has ended, then run again"
    )


# The wrong bytes


def test_a_wrong_hash_sets_the_file_aside(origin: Origin, dest: Path) -> None:
    wrong = "0" * 32
    assert failure(of(origin, dest, Wanted(md5=wrong))) == (
        f"Archive {dest}: the downloaded file is not the expected one (checksum mismatch: expected MD5 {wrong}, got"
        f" {MD5}); it was moved to {dest}.rejected. Check the URL and the expected values, remove the file that was"
        " moved aside, and run again"
    )
    assert sorted(path.name for path in dest.parent.iterdir()) == ["val.tar.rejected"]
    assert (dest.parent / "val.tar.rejected").read_bytes() == CONTENT
    assert read_verified(str(dest.parent.parent / ".state")) == []
    assert fetch(of(origin, dest))["resumed_bytes"] == 0
    assert dest.read_bytes() == CONTENT


def test_a_corrupted_byte_is_found(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(corrupt_at=1_234_567)]
    for wanted in (Wanted(md5=MD5), Wanted(sha256=SHA256)):
        assert "it was moved to" in failure(of(origin, dest, wanted))
    assert not dest.exists()
    origin.faults = []
    fetch(of(origin, dest))
    assert dest.read_bytes() == CONTENT


def test_a_size_that_is_not_expected_costs_no_byte(origin: Origin, dest: Path) -> None:
    assert failure(of(origin, dest, Wanted(size_bytes=7))) == (
        f"Download from {origin.url}/val.tar: the server has a file of 3000000 bytes, and 7 were expected. Check the"
        " URL and size_bytes"
    )
    assert len(origin.requests) == 1
    assert not dest.exists()


def test_a_page_instead_of_the_archive(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(html="<html>Please log in <input type=password></html>")]
    assert "the server sent a login form instead of the archive: 'Please log in'" in failure(of(origin, dest))
    assert list(dest.parent.iterdir()) == []


def test_a_page_half_way_keeps_what_is_there(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(after=3, html="<html>Session over</html>")]
    assert "an HTML page instead of the archive: 'Session over'" in failure(of(origin, dest, connections=1))
    origin.faults = []
    assert fetch(of(origin, dest))["resumed_bytes"] > 500_000
    assert_complete(dest)


def test_credentials_that_expire_half_way(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(after=3, status=403)]
    wish = of(origin, dest, connections=1, username="me", password="sesame")
    message = failure(wish)
    assert "the server refused the credentials (HTTP 403 Forbidden): they are wrong or have expired" in message
    assert "sesame" not in message
    origin.faults = []
    assert fetch(wish)["resumed_bytes"] > 500_000
    assert_complete(dest)


# Pieces


def damage(path: Path, *offsets: int) -> None:
    """Flip bytes as a bad sector does, and leave the time as it is."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    for offset in offsets:
        content[offset] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_verified_download_records_its_pieces(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    record = read_pieces(str(dest.parent.parent / ".state"), "val.tar")
    assert record is not None
    assert (record.size_bytes, record.md5, record.sha256) == (len(CONTENT), MD5, SHA256)
    blocks = [CONTENT[start : start + PIECE_BYTES] for start in range(0, len(CONTENT), PIECE_BYTES)]
    assert record.pieces == Pieces(PIECE_BYTES, tuple(zlib.crc32(block) for block in blocks))


def test_a_damaged_archive_costs_its_damaged_pieces(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    damage(dest, 250_000, 2_950_000)
    assert fetch(of(origin, dest))["changed"] is False, "nothing shows that it was damaged"
    asked_before = origin_bytes(origin)
    wish = of(origin, dest, deep_check=True)
    predicted = fetch(wish, check_mode=True)
    assert dest.read_bytes() != CONTENT
    result = fetch(wish)
    assert (result["changed"], result["downloaded_bytes"], result["resumed_bytes"]) == (True, 200_000, 2_800_000)
    assert predicted == result
    assert result["diff"]["before"] == "val.tar: damaged, bytes 200000-299999, 2900000-2999999\n"
    assert_complete(dest)
    asked_bytes = origin_bytes(origin) - asked_before
    assert asked_bytes < 300_000, "more than the damaged pieces was asked for"
    assert fetch(wish)["changed"] is False


def test_a_damaged_archive_is_repaired_by_what_was_verified_where_nothing_is_expected(
    origin: Origin, dest: Path
) -> None:
    fetch(of(origin, dest, Wanted()))
    damage(dest, 7)
    assert fetch(of(origin, dest, Wanted(), deep_check=True))["downloaded_bytes"] == PIECE_BYTES
    assert_complete(dest)


def test_a_damaged_archive_stays_where_no_source_has_the_bytes(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    damage(dest, 7, 100_000, 1_000_000)
    damaged = dest.read_bytes()
    told = (
        f"Archive {dest}: it is damaged: checksum mismatch: expected MD5 {MD5}, got {hashlib.md5(damaged).hexdigest()},"
        " and bytes 0-199999, 1000000-1099999 have changed since it was verified; it was not changed, because they"
        " could not be fetched "
    )
    wish = of(origin, dest, deep_check=True)
    origin.faults = [Fault(status=404)]
    url = f"{origin.url}/val.tar"
    assert failure(wish) == (
        f"{told}(Download from {url}: there is no such file (HTTP 404 Not Found)). Check the URL; publishers move their"
        " files now and then"
    )
    origin.faults = [Fault(ignore_range=True)]
    assert failure(wish) == f"{told}({url} does not serve ranges). Add a mirror that does to urls and run again"
    assert dest.read_bytes() == damaged
    assert sorted(path.name for path in dest.parent.iterdir()) == ["val.tar"]


def test_another_edition_is_no_damaged_archive(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    other = random.Random(4).randbytes(len(CONTENT))
    dest.write_bytes(other)
    assert "it was not changed" in failure(of(origin, dest))
    assert dest.read_bytes() == other


def test_a_piece_that_arrives_damaged_is_fetched_again_at_once(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    dest.unlink()
    # It strikes the first requests that bring this byte, whatever else they bring.
    origin.faults = [Fault(after=1, times=4, corrupt_at=1_234_567)]
    assert fetch(of(origin, dest, connections=1))["downloaded_bytes"] == len(CONTENT)
    assert_complete(dest)


def test_a_piece_that_arrives_damaged_comes_from_another_mirror(origin: Origin, dest: Path, tmp_path: Path) -> None:
    fetch(of(origin, dest))
    dest.unlink()
    shutil.copytree(origin.directory, tmp_path / "mirror")
    with Origin(tmp_path / "mirror") as mirror:
        mirror.faults = [Fault(corrupt_at=1_234_567)]
        for urls in ([origin.url, mirror.url], [mirror.url, origin.url]):
            fetch(request(dest, *(f"{url}/val.tar" for url in urls)))
            assert_complete(dest)
            dest.unlink()


def test_a_piece_that_always_arrives_damaged_is_named(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    dest.unlink()
    origin.faults = [Fault(corrupt_at=1_234_567)]
    assert failure(of(origin, dest)) == (
        f"Download from {origin.url}/val.tar: bytes 1200000-1299999 differ from those of the archive that was verified"
        " before, after 3 downloads of them. Name another mirror in urls and run again: all other bytes are kept"
    )
    assert not dest.exists()
    origin.faults = []
    result = fetch(of(origin, dest))
    assert result["downloaded_bytes"] < len(CONTENT)
    assert_complete(dest)


def test_one_stream_that_brings_a_damaged_piece_says_which(origin: Origin, dest: Path) -> None:
    fetch(of(origin, dest))
    dest.unlink()
    origin.faults = [Fault(ignore_range=True, corrupt_at=1_234_567)]
    message = failure(of(origin, dest))
    assert "; bytes 1200000-1299999 have changed since it was verified); it was moved to" in message


@pytest.mark.parametrize("seed", kill_seeds(6))
def test_a_repair_killed_anywhere_and_run_again(origin: Origin, dest: Path, seed: int, kills: Kills) -> None:
    fetch(of(origin, dest))
    damage(dest, 250_000, 2_950_000)
    wish = of(origin, dest, deep_check=True)
    kills.run("fetch", arguments(wish), random.Random(seed).randint(1, 40))
    fetch(wish)
    assert_complete(dest)
    assert origin_bytes(origin) < 2 * len(CONTENT), "the whole archive was fetched a second time"


def origin_bytes(origin: Origin) -> int:
    """Return how many bytes were asked for in all."""
    spans = [request.headers["range"][6:].split("-") for request in origin.requests]
    return sum(int(last) - int(first) + 1 for first, last in spans)


# A hostile server


@pytest.mark.parametrize("seed", range(6))
def test_cuts_at_random_bytes(origin: Origin, dest: Path, seed: int) -> None:
    chance = random.Random(seed)
    cuts = [chance.randint(0, 700_000) for _ in range(40)]
    origin.faults = [Fault(after=number, times=1, cut_after_bytes=cut) for number, cut in enumerate(cuts, start=1)]
    fetch(of(origin, dest, connections=chance.randint(1, 6)))
    assert_complete(dest)


def any_fault(chance: random.Random, elsewhere: str) -> Fault:
    """Return one misbehaviour of those that a server may have for a while."""
    fault = chance.choice(
        [
            Fault(cut_after_bytes=chance.randint(0, 300_000)),
            Fault(drip_seconds=0.05),
            Fault(content_range="bytes 5-9/3000000"),
            Fault(ignore_range=True),
            Fault(status=429, retry_after="0"),
            Fault(status=503),
            Fault(redirect=elsewhere),
            Fault(corrupt_at=chance.randrange(len(CONTENT))),
            Fault(etag='"new"'),
            Fault(html="<html>Come back later</html>"),
            Fault(status=403),
            Fault(no_length=True),
        ]
    )
    fault.after, fault.times = chance.randint(0, 30), chance.randint(1, 4)
    return fault


@pytest.mark.parametrize("seed", range(25))
def test_any_mixture_of_faults_ends_in_the_right_bytes_or_an_error(origin: Origin, dest: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Origin(origin.directory) as mirror:
        origin.faults = [any_fault(chance, f"{mirror.url}/val.tar") for _ in range(chance.randint(1, 6))]
        wish = of(origin, dest, connections=chance.randint(1, 6), timeout_seconds=0.5)
        for _ in range(20):
            with contextlib.suppress(OpsError):
                fetch(wish)
                break
            assert not dest.exists()
        (dest.parent / "val.tar.rejected").unlink(missing_ok=True)
        assert_complete(dest)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(after=1, times=3, content_range="bytes 0-99/3000000"),
        Fault(after=2, times=4, ignore_range=True),
        Fault(times=3, status=500),
        Fault(after=1, times=12, status=429, retry_after="0"),
        Fault(after=1, times=4, status=503),
        Fault(after=1, times=2, cut_after_bytes=0),
    ],
    ids=["wrong Content-Range", "200 instead of 206", "500 at first", "429 storm", "503", "empty bodies"],
)
def test_faults_that_pass(origin: Origin, dest: Path, fault: Fault) -> None:
    origin.faults = [fault]
    fetch(of(origin, dest))
    assert_complete(dest)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault(after=1, content_range="bytes 0-99/3000000"), "the server sent Content-Range 'bytes 0-99/3000000'"),
        (Fault(after=1, ignore_range=True), "it answered a request for a part with HTTP 200 and the whole file"),
        (
            Fault(status=429, retry_after="0"),
            "no data received after 2 retries (last error: HTTP 429 Too Many Requests",
        ),
        (Fault(after=1, cut_after_bytes=0), "bytes too early"),
    ],
    ids=["wrong Content-Range", "200 instead of 206", "429", "empty bodies"],
)
def test_faults_that_stay_are_told(origin: Origin, dest: Path, fault: Fault, why: str) -> None:
    origin.faults = [fault]
    assert why in failure(of(origin, dest, retries=2))
    assert not dest.exists()


def test_a_slow_loris_is_dropped(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(after=1, times=2, drip_seconds=0.01)]
    fetch(of(origin, dest, timeout_seconds=0.3))
    assert_complete(dest)


def test_a_file_that_changes_half_way_is_never_mixed(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(after=3, etag='"new"')]
    message = failure(of(origin, dest, Wanted(), connections=1))
    assert "the file was changed on the server while it was downloaded" in message
    # The next run meets the new file and takes nothing of the old.
    origin.faults = [Fault(etag='"new"')]
    assert fetch(of(origin, dest))["resumed_bytes"] == 0
    assert_complete(dest)


def test_another_etag_of_the_same_date_is_left_to_the_hash(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(after=3, etag='"of another server"')]
    fetch(of(origin, dest, connections=1))
    assert_complete(dest)


def test_a_new_file_of_the_same_size(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(after=3, status=404)]
    failure(of(origin, dest, connections=1))
    origin.faults = []
    new = random.Random(3).randbytes(len(CONTENT))
    (origin.directory / "val.tar").write_bytes(new)
    assert fetch(of(origin, dest, Wanted()))["resumed_bytes"] == 0
    assert dest.read_bytes() == new


def test_a_redirect_to_another_host(origin: Origin, dest: Path) -> None:
    with Origin(origin.directory) as mirror:
        origin.faults = [Fault(redirect=f"{mirror.url}/val.tar")]
        fetch(of(origin, dest, username="me", password="sesame"))
        assert_complete(dest)
        assert all("authorization" not in request.headers for request in mirror.requests)


def test_a_server_without_ranges(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(ignore_range=True), Fault(after=1, times=2, cut_after_bytes=1_000_000)]
    result = fetch(of(origin, dest))
    assert (result["downloaded_bytes"], result["resumed_bytes"]) == (len(CONTENT), 0)
    assert_complete(dest)


def test_a_server_without_ranges_that_does_not_say_how_much(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(ignore_range=True, no_length=True)]
    assert failure(of(origin, dest, Wanted(md5=MD5))) == (
        f"Download from {origin.url}/val.tar: the server does not report the size of the file, so a truncated"
        " download could not be detected. Set size_bytes"
    )
    assert "more than the 2999999 bytes" in failure(of(origin, dest, Wanted(size_bytes=len(CONTENT) - 1)))
    fetch(of(origin, dest))
    assert_complete(dest)


# Mirrors


def test_a_mirror_takes_over(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(path="/gone.tar", status=404)]
    fetch(request(dest, f"{origin.url}/gone.tar", f"{origin.url}/val.tar"))
    assert_complete(dest)


def test_mirrors_work_together_and_one_of_another_size_does_not(origin: Origin, dest: Path, tmp_path: Path) -> None:
    for folder, content in (("b", CONTENT), ("c", b"other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "val.tar").write_bytes(content)
    with Origin(tmp_path / "b") as second, Origin(tmp_path / "c") as third:
        wish = request(dest, *(f"{each.url}/val.tar" for each in (origin, second, third)), wanted=Wanted(md5=MD5))
        fetch(wish)
        assert_complete(dest)
        assert len(origin.requests) > 1
        assert len(second.requests) > 1
        assert len(third.requests) == 1


def test_all_mirrors_fail(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(path="/a.tar", status=404), Fault(path="/b.tar", status=403)]
    assert failure(request(dest, f"{origin.url}/a.tar", f"{origin.url}/b.tar")) == (
        f"Download of val.tar: none of the sources can be used (Download from {origin.url}/a.tar: there is no such file"
        f" (HTTP 404 Not Found); Download from {origin.url}/b.tar: the server wants credentials (HTTP 403 Forbidden)"
        " and none were given). Check the URL; publishers move their files now and then"
    )


def test_another_mirror_goes_on_where_a_hash_will_tell(origin: Origin, dest: Path, tmp_path: Path) -> None:
    origin.faults = [Fault(after=3, status=404)]
    failure(of(origin, dest, connections=1))
    shutil.copytree(origin.directory, tmp_path / "mirror")
    with Origin(tmp_path / "mirror") as mirror:
        saved = shutil.copytree(dest.parent, tmp_path / "saved")
        assert fetch(of(mirror, dest, Wanted(md5=MD5)))["resumed_bytes"] > 500_000
        assert_complete(dest)
        dest.unlink()
        shutil.copytree(saved, dest.parent, dirs_exist_ok=True)
        assert fetch(of(mirror, dest, Wanted(size_bytes=len(CONTENT))))["resumed_bytes"] == 0
        assert_complete(dest)


# The disk


def test_too_little_space_is_said_before_the_first_byte(
    origin: Origin, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _path: 1_000_000)
    assert failure(of(origin, dest)) == (
        f"Writing {dest}: 0.00 GiB are needed and 0.00 GiB are free. Free space or enlarge the volume, then run again"
    )
    assert list(dest.parent.iterdir()) == []
    assert len(origin.requests) == 1


def test_a_disk_that_fills_up_keeps_what_there_is(origin: Origin, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwrite = os.pwrite

    def pwrite(descriptor: int, content: bytes, position: int) -> int:
        if position > 2_000_000:
            raise OSError(28, "No space left on device")
        return real_pwrite(descriptor, content, position)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        assert failure(of(origin, dest)) == (
            f"Writing {dest}: there is no space left (No space left on device). Free space or enlarge the volume, then"
            " run again: what was done so far is kept"
        )
    assert fetch(of(origin, dest))["resumed_bytes"] > 500_000
    assert_complete(dest)


def test_a_filesystem_that_cannot_allocate(origin: Origin, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    fetch(of(origin, dest))
    assert_complete(dest)


def test_a_volume_that_is_too_small_for_the_allocation(
    origin: Origin, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "there is no space left" in failure(of(origin, dest))


def test_a_journal_that_is_not_of_the_part_is_not_believed(origin: Origin, dest: Path) -> None:
    origin.faults = [Fault(after=3, status=404)]
    failure(of(origin, dest, connections=1))
    origin.faults = []
    journal = dest.parent / "val.tar.part.json"
    genuine = json.loads(journal.read_text())
    part = dest.parent / "val.tar.part"
    warnings: list[str] = []
    for spoil in (
        lambda: part.write_bytes(b"short"),
        lambda: edit(journal, size_bytes=1),
        lambda: edit(journal, format=0),
        part.unlink,
    ):
        spoil()
        assert fetch(of(origin, dest), check_mode=True, warn=warnings.append)["resumed_bytes"] == 0
        part.write_bytes(CONTENT)
        journal.write_text(json.dumps(genuine))
    assert fetch(of(origin, dest), check_mode=True)["resumed_bytes"] > 0
    assert warnings == [f"State file {journal}: its format is 0, and this version reads 1; the download starts over"]


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wanted": Wanted(md5="xyz")}, "Option md5: 'xyz' is not 32 hexadecimal digits. Correct it and run again"),
        ({"wanted": Wanted(sha256="0")}, "Option sha256: '0' is not 64 hexadecimal digits. Correct it and run again"),
        ({"connections": 0}, "Option connections: it is too small. Raise it and run again"),
        ({"timeout_seconds": 0}, "Option timeout_seconds: it is too small. Raise it and run again"),
        ({"bytes_per_second": -1}, "Option bytes_per_second: it is too small. Raise it and run again"),
        (
            {"quiet_hours": "8-18"},
            "Option quiet_hours: '8-18' is not a time of day like 08:00-18:30. Correct it and run again",
        ),
        ({"retries": -1}, "Option retries: it is too small. Raise it and run again"),
    ],
)
def test_settings_that_cannot_be_meant(dest: Path, settings: dict[str, Any], message: str) -> None:
    assert failure(request(dest, "http://host/a.tar", **settings)) == message


def test_no_url_at_all(dest: Path) -> None:
    assert failure(request(dest)) == "Option urls: it is too small. Raise it and run again"


# Kills


def arguments(wish: FetchRequest) -> dict[str, Any]:
    return {**vars(wish), "wanted": vars(wish.wanted)}


@pytest.fixture(scope="module")
def kills() -> Iterator[Kills]:
    with Kills() as running:
        yield running


@pytest.fixture(scope="module")
def changes_of_a_whole_run(tmp_path_factory: pytest.TempPathFactory, kills: Kills) -> int:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "val.tar").write_bytes(CONTENT)
    with Origin(folder) as origin:
        count = kills.run("fetch", arguments(of(origin, folder / "data" / "archives" / "val.tar")), NEVER)
    assert count is not None
    assert count > 100
    return count


@pytest.mark.parametrize("seed", kill_seeds(20))
def test_killed_anywhere_and_run_again(
    origin: Origin, dest: Path, seed: int, kills: Kills, changes_of_a_whole_run: int
) -> None:
    chance = random.Random(seed)
    wish = of(origin, dest, connections=chance.randint(1, 4))
    for _ in range(1 + seed % 2):
        kills.run("fetch", arguments(wish), chance.randint(1, changes_of_a_whole_run))
        assert not dest.exists() or dest.read_bytes() == CONTENT
    fetch(wish)
    assert_complete(dest)
    assert fetch(wish)["changed"] is False


def test_what_a_killed_run_had_is_not_fetched_again(
    origin: Origin, dest: Path, kills: Kills, changes_of_a_whole_run: int
) -> None:
    # Slow enough that a journal is written now and then.
    origin.bytes_per_second_per_connection = 2_000_000
    wish = of(origin, dest)
    assert kills.run("fetch", arguments(wish), changes_of_a_whole_run) is None
    result = fetch(wish)
    assert result["resumed_bytes"] > len(CONTENT) // 10
    assert result["downloaded_bytes"] + result["resumed_bytes"] == len(CONTENT)
    assert_complete(dest)
