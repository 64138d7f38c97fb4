"""What of a part is safe is kept, what may be of another file is not, and a checkpoint never outlives its part."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.state_file import Kind
from ansible.module_utils.imagenet_ops.download.part_file import DONE, PartFile, ResumablePartFile
from ansible.module_utils.imagenet_ops.download.ranges import Ranges

from tests.fakes.state_files import edit

KIND = Kind("checkpoint of tests", 1, {**DONE, "etag": str}, starts_over="the file starts over")


class Workplace:
    """A file of 100 bytes of which the first 60 have come."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "file"
        self.part = folder / "file.part"
        self.checkpoint = folder / "file.part.json"
        self.warnings: list[str] = []
        file = self.file()
        with file.open(Ranges()) as target:
            os.pwrite(target.descriptor, b"x" * 60, 0)
        file.checkpoint([(0, 60)])

    def file(self, etag: str = "one", size_bytes: int = 100) -> ResumablePartFile:
        return ResumablePartFile(str(self.path), size_bytes, KIND, {"etag": etag}, self.warnings.append)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path.parent))


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


def pairs(file: ResumablePartFile) -> Sequence[tuple[int, int]]:
    return file.resumable().pairs()


def test_what_is_safe_is_kept(place: Workplace) -> None:
    assert pairs(place.file()) == [(0, 60)]
    with place.file().open(Ranges([(0, 60)])) as target:
        assert target.size_bytes == 100
        assert os.pread(target.descriptor, 100, 0) == b"x" * 60 + bytes(40)
    assert place.names() == ["file.part", "file.part.json"]


def test_what_is_of_another_file_is_not_kept(place: Workplace) -> None:
    assert pairs(place.file(etag="two")) == []
    assert pairs(place.file(size_bytes=99)) == []
    assert place.warnings == [], "another version of a file is no damage"


def test_who_knows_better_decides_what_continues(place: Workplace) -> None:
    def continues(found: Any) -> bool:
        return bool(found["etag"] == "one")

    file = ResumablePartFile(str(place.path), 100, KIND, {"etag": "two"}, place.warnings.append, continues)
    assert pairs(file) == [(0, 60)]


def test_a_part_of_another_length_or_none_is_not_kept(place: Workplace) -> None:
    os.truncate(place.part, 60)
    assert pairs(place.file()) == []
    place.part.unlink()
    assert pairs(place.file()) == []
    assert place.warnings == []


@pytest.mark.parametrize("done", [[(0, 101)], [(5, 5)], [(9, 5)]])
def test_bytes_that_there_are_not_are_damage(place: Workplace, done: list[tuple[int, int]]) -> None:
    edit(place.checkpoint, done=done)
    assert pairs(place.file()) == []
    assert place.warnings == [
        f"State file {place.checkpoint}: it is damaged: there are no such bytes as it names; the file starts over"
    ]


def test_a_checkpoint_of_another_kind_is_not_kept(place: Workplace) -> None:
    edit(place.checkpoint, kind="checkpoint of others")
    assert pairs(place.file()) == []
    assert len(place.warnings) == 1


def test_what_a_version_without_kinds_wrote_is_kept(place: Workplace) -> None:
    place.checkpoint.write_text(json.dumps({"format": 1, "size_bytes": 100, "etag": "one", "done": [[0, 60]]}))
    assert pairs(place.file()) == [(0, 60)]


def test_a_new_part_meets_no_checkpoint_and_no_old_bytes(place: Workplace) -> None:
    with place.file().open(Ranges()) as target:
        assert place.names() == ["file.part"]
        assert os.pread(target.descriptor, 200, 0) == bytes(100)


def test_how_much_disk_the_rest_takes(place: Workplace) -> None:
    assert place.file().missing_bytes == 0, "the whole of it is allocated at its begin"
    place.part.unlink()
    assert place.file().missing_bytes == 100


def test_commit_gives_the_name_and_ends_the_checkpoint(place: Workplace) -> None:
    place.file().commit()
    assert place.names() == ["file"]
    assert place.path.read_bytes() == b"x" * 60 + bytes(40)


@pytest.mark.parametrize(("aside", "names"), [("", []), ("file.rejected", ["file.rejected"])])
def test_reject_sets_aside_or_removes(place: Workplace, aside: str, names: list[str]) -> None:
    place.file().reject(str(place.path.parent / aside) if aside else "")
    assert place.names() == names


def test_a_finished_file_becomes_a_part_again(place: Workplace) -> None:
    place.file().commit()
    done = Ranges([(0, 100)])
    done.remove(10, 20)
    place.file().reopen(done)
    assert place.names() == ["file.part", "file.part.json"]
    assert pairs(place.file()) == [(0, 10), (20, 100)]


def test_a_checkpoint_that_outlived_its_part_goes(place: Workplace) -> None:
    place.file().remove_stray_checkpoint()
    assert place.names() == ["file.part", "file.part.json"]
    os.replace(place.part, place.path)
    place.file().remove_stray_checkpoint()
    assert place.names() == ["file"]


def test_a_part_without_a_checkpoint(tmp_path: Path) -> None:
    file = PartFile(str(tmp_path / "file"))
    for end in (file.reject, file.commit):
        Path(file.part).write_bytes(b"content")
        end()
    assert os.listdir(tmp_path) == ["file"]
