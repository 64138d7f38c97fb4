from __future__ import annotations

import pytest
from ansible.module_utils.imagenet_ops.archive.images import BEGIN, ArchiveImage, ImageArchive, ResumePoint
from ansible.module_utils.imagenet_ops.core import disk

from tests.fakes.archive_packing import Workplace
from tests.fakes.images import jpeg

BAD = "n00000002/n00000002_1.JPEG"


def test_the_space_is_checked_before_the_archive_is_read(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    error = workplace.error("archive")
    assert error.startswith(f"Writing {workplace.folder}/archive/.scratch/train: 0.00 GiB are needed and 0.00 GiB are")


@pytest.mark.usefixtures("small_steps")
def test_a_bad_image_stops_the_reading_and_is_no_loss(workplace: Workplace, reading: list[ResumePoint]) -> None:
    workplace.damage(BAD, b"<html>")
    error = workplace.error("archive")
    assert error == (
        f"Image {BAD} of {workplace.archive}: not an image: neither JPEG nor PNG, it begins with b'<html>'."
        " Set on_bad_image to skip or quarantine and rerun (reading resumes here), or check that the archive is the"
        " published one"
    )
    result = workplace.pack("archive", on_bad_image="skip")
    assert result["samples"] == [f"train/{BAD}: not an image: neither JPEG nor PNG, it begins with b'<html>'"]
    assert reading[-1] != BEGIN
    assert workplace.pack("tree", on_bad_image="skip") == result
    assert workplace.files("archive") == workplace.files("tree")
    assert BAD in workplace.error("archive")


def test_an_image_that_is_there_twice_is_named(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    # One pass over the archive sees it itself; over two passes only the names of both together tell.
    image = ArchiveImage("a", "1.jpg", jpeg(), 0, BEGIN)
    monkeypatch.setattr(ImageArchive, "images", lambda *_: iter([image, image]))
    assert workplace.error("archive") == (
        f"Archive {workplace.archive}: the image a/1.jpg is a duplicate."
        " This is not the published archive; fetch it again (archive_fetch compares its MD5)"
    )
