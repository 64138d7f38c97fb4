"""Requests to lay out the lab's archives, and what the trees must be by the standard library's reader."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.layout.extract import lay_out
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest

from lab.archives import DEVKIT, TRAIN, VALIDATION


def tar(entries: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def train(data: Path, archive: Path | None, **settings: Any) -> LayoutRequest:
    defaults: dict[str, Any] = {"name_rules": "train", "layout": "class_archives", "dest": str(data / "train")}
    if archive is not None:
        defaults["archive"] = str(archive)
    return LayoutRequest(state_dir=str(data / ".state"), **{**defaults, **settings})


def validation(data: Path, archives: Path, **settings: Any) -> LayoutRequest:
    settings = {"archive": str(archives / VALIDATION), "name_rules": "validation", **settings}
    return LayoutRequest(
        layout="labelled_files",
        dest=settings.pop("dest", str(data / "validation")),
        state_dir=str(data / ".state"),
        devkit=settings.pop("devkit", str(archives / DEVKIT)),
        **settings,
    )


def in_place(data: Path, archives: Path, flat: Path, **settings: Any) -> LayoutRequest:
    return validation(data, archives, archive=None, directory=str(flat), **settings)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def unpacked_train(archives: Path) -> dict[str, bytes]:
    """What the training tree must be, by the standard library's reader."""
    expected = {}
    with tarfile.open(archives / TRAIN) as classes:
        for class_archive in classes:
            with tarfile.open(fileobj=classes.extractfile(class_archive)) as images:
                for image in images:
                    content = images.extractfile(image)
                    assert content is not None
                    expected[f"{class_archive.name.removesuffix('.tar')}/{image.name}"] = content.read()
    return expected


def flat_images(archives: Path) -> dict[str, bytes]:
    with tarfile.open(archives / VALIDATION) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def unpacked_validation(archives: Path) -> dict[str, bytes]:
    """What the validation tree must be, by the truth that the lab wrote down."""
    truth = dict(line.split() for line in (archives / "validation_synsets.txt").read_text().splitlines())
    return {f"{truth[name]}/{name}": content for name, content in flat_images(archives).items()}


def failure(request: LayoutRequest, *, check_mode: bool = False) -> str:
    with pytest.raises(OpsError) as caught:
        lay_out(request, check_mode=check_mode)
    return str(caught.value)
