"""Many files, written by several threads, are all there and whole when it is said that they are."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.layout import tree_writer
from ansible.module_utils.imagenet_ops.layout.tree_writer import TreeWriter


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_files_of_all_sizes(tmp_path: Path) -> None:
    chance = random.Random(1)
    expected = {f"n{number % 7}/{number}": chance.randbytes(chance.randint(0, 200_000)) for number in range(300)}
    with TreeWriter(str(tmp_path)) as writer:
        for path, content in expected.items():
            directory, name = path.split("/")
            writer.make_directory(directory)
            writer.write(directory, name, content)
        writer.flush()
        assert contents(tmp_path) == expected
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*") if path.is_file()} == {"0o644"}


def test_memory_is_bounded_however_slow_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_writer, "_BATCH_BYTES", 1_000)
    monkeypatch.setattr(tree_writer, "_WAITING_BYTES", 5_000)
    release = threading.Event()
    begun = threading.Semaphore(0)
    real_write_all = tree_writer._write_all
    handed_over: list[int] = []

    def slow(batch: list[tree_writer._File]) -> None:
        begun.release()
        assert release.wait(20)
        real_write_all(batch)

    monkeypatch.setattr(tree_writer, "_write_all", slow)

    def give() -> None:
        for number in range(20):
            writer.write("", str(number), bytes(1_000))
            handed_over.append(number)
        writer.flush()

    with TreeWriter(str(tmp_path)) as writer:
        giver = threading.Thread(target=give)
        giver.start()
        for _ in range(tree_writer._THREADS):
            assert begun.acquire(timeout=20)
        giver.join(0.2)
        assert len(handed_over) <= 5
        release.set()
        giver.join(20)
        assert not giver.is_alive()
    assert len(contents(tmp_path)) == 20


def test_a_file_of_an_interrupted_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "half").write_bytes(b"longer than what comes")
    with TreeWriter(str(tmp_path)) as writer:
        writer.write("", "half", b"whole")
        writer.flush()
    assert contents(tmp_path) == {"half": b"whole"}


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").symlink_to(tmp_path / "precious")
    with TreeWriter(str(tmp_path / "tree")) as writer:
        writer.write("", "a", b"x")
        with pytest.raises(OSError, match="symbolic links"):
            writer.flush()
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_an_error_comes_out_at_the_next_occasion(tmp_path: Path) -> None:
    with TreeWriter(str(tmp_path)) as writer:
        writer.write("no such directory", "a", b"x")
        with pytest.raises(FileNotFoundError):
            writer.sync()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real_write(descriptor, content[:7]))
    with TreeWriter(str(tmp_path)) as writer:
        writer.write("", "a", bytes(range(100)))
        writer.flush()
    assert contents(tmp_path) == {"a": bytes(range(100))}


def test_a_file_has_its_space_before_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    real_write = os.write

    def noted(descriptor: int, content: bytes) -> int:
        sizes.append((os.fstat(descriptor).st_size, os.fstat(descriptor).st_blocks * 512))
        return real_write(descriptor, content)

    monkeypatch.setattr(os, "write", noted)
    with TreeWriter(str(tmp_path)) as writer:
        writer.write("", "a", bytes(100_000))
        writer.write("", "empty", b"")
        writer.flush()
    ((size, allocated),) = sizes
    assert size == 100_000
    assert allocated >= size
    assert (tmp_path / "empty").read_bytes() == b""


@pytest.mark.parametrize(
    ("number", "text"), [(errno.EOPNOTSUPP, None), (errno.EINVAL, None), (errno.ENOSPC, "No space left on device")]
)
def test_a_filesystem_that_cannot_preallocate_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str | None
) -> None:
    def refused(*_arguments: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    with TreeWriter(str(tmp_path)) as writer:
        writer.write("", "a", b"whole")
        if text is None:
            writer.flush()
            assert contents(tmp_path) == {"a": b"whole"}
        else:
            with pytest.raises(OSError, match=text):
                writer.flush()


def test_sync_syncs_after_everything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, bytes]] = []
    monkeypatch.setattr(tree_writer, "sync_filesystem", lambda root: seen.append(contents(Path(root))))
    with TreeWriter(str(tmp_path)) as writer:
        for number in range(200):
            writer.write("", str(number), b"x")
        writer.sync()
    assert [len(files) for files in seen] == [200]
