"""The lab's archives and where they are laid out; a workplace whose archive readings are counted, and small steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.archive.images import BEGIN, ImageArchive, ResumePoint
from ansible.module_utils.imagenet_ops.core import checkpoint
from ansible.module_utils.imagenet_ops.pack import spool, spool_source, tree_source

from lab.archives import prepare
from tests.fakes.archive_packing import Workplace
from tests.fakes.layouts import flat_images


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> list[ResumePoint]:
    """Collect where each pass over an archive begins."""
    begins: list[ResumePoint] = []
    original = ImageArchive.images

    def images(self: ImageArchive, start: ResumePoint = BEGIN, finished: Any = ()) -> Iterator[Any]:
        begins.append(start)
        return original(self, start, finished)

    monkeypatch.setattr(ImageArchive, "images", images)
    return begins


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tree_source, spool):
        for name in ("_CHUNK_IMAGES", "_BATCH_IMAGES"):
            if name in vars(module):
                monkeypatch.setattr(module, name, 3)
    for module in (checkpoint, spool_source):
        monkeypatch.setattr(module, "JOURNAL_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(spool_source, "_DEALT_AT_ONCE_BYTES", 5_000)


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    prepare(folder, None)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "imagenet").mkdir()
    return tmp_path / "imagenet"


@pytest.fixture
def flat(data: Path, archives: Path) -> Path:
    folder = data / "flat"
    folder.mkdir()
    for name, content in flat_images(archives).items():
        (folder / name).write_bytes(content)
    return folder
