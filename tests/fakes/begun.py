"""Work that an earlier version began and did not end (tests/fixtures/README.md), and what finishes it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import boto3
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.backup import restore, upload
from ansible.module_utils.imagenet_ops.backup.backup import Backup, make_plan
from ansible.module_utils.imagenet_ops.backup.request import RestoreRequest
from ansible.module_utils.imagenet_ops.backup.restore import Restore
from ansible.module_utils.imagenet_ops.dataset.copy import copy_dataset
from ansible.module_utils.imagenet_ops.dataset.warm import warm_dataset
from ansible.module_utils.imagenet_ops.download.fetch import FetchRequest, Wanted, fetch
from ansible.module_utils.imagenet_ops.layout.extract import lay_out
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import write_class_archives, write_tree
from tests.fakes.s3 import write_dataset
from tests.fakes.s3_server import BUCKET, S3Server
from tests.fakes.s3_upload_server import S3UploadServer, Upload

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "begun"
KEPT = {path.relative_to(FOLDER / "bucket").as_posix(): path.read_bytes() for path in (FOLDER / "bucket").rglob("*.*")}
PREFIX = next(iter(KEPT)).rsplit("/", 2)[0].removesuffix("/trees")
IMAGES = {
    path.relative_to(FOLDER / "images").as_posix(): path.read_bytes() for path in (FOLDER / "images").rglob("*.JPEG")
}
ARCHIVE = random.Random(7).randbytes(6_000)
FILES = {
    "archives/val.tar": ARCHIVE,
    "recordio/train.rec": random.Random(8).randbytes(5_000),
    "recordio/train.idx": b"0\t0\n",
    "recordio/train.lst": b"",
    "labels.tsv": b"0\tn01440764\ttench\n",
}
PART_BYTES = 2048
# When the archive of the images had been written, by which the journals know it.
ARCHIVE_MTIME_NS: int = json.loads((FOLDER / "layout/.state/imagenet_layout.train.json").read_text())["source"][
    "mtime_ns"
]
_ANY_CREDENTIALS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}


@dataclass
class Outcome:
    """What the finished work left: files by path, and how much was done by this run (bytes, or images)."""

    files: dict[str, bytes]
    done: int = 0


class Place:
    """A folder with the input of all kinds of work; ``warnings`` are those of the present code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.warnings: list[str] = []
        write_tree(folder / "images", IMAGES)
        self.archive = write_class_archives(folder / "train.tar", IMAGES)
        os.utime(self.archive, ns=(ARCHIVE_MTIME_NS, ARCHIVE_MTIME_NS))
        (folder / "dataset").mkdir()
        self.dataset = write_dataset(folder / "dataset", FILES)

    def begin(self, name: str) -> None:
        """Put back what the earlier version left of ``name``; nothing else is in the root then."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        if name:
            shutil.copytree(FOLDER / name, self.root, dirs_exist_ok=True)

    def files(self) -> dict[str, bytes]:
        paths = [path for path in self.root.rglob("*") if path.is_file() and ".state" not in path.parts]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in paths}

    def fetch(self) -> Outcome:
        (self.folder / "served.tar").write_bytes(ARCHIVE)
        wanted = Wanted(len(ARCHIVE), hashlib.md5(ARCHIVE).hexdigest())
        dest = str(self.root / "archives" / "val.tar")
        request = FetchRequest([str(self.folder / "served.tar")], dest, str(self.root / ".state"), wanted)
        result = fetch(request, warn=self.warnings.append)
        return Outcome(self.files(), result["downloaded_bytes"])

    def layout(self) -> Outcome:
        archive, dest, state_dir = (str(path) for path in (self.archive, self.root / "train", self.root / ".state"))
        request = LayoutRequest("any", "class_archives", dest, state_dir, archive, expected_images=len(IMAGES))
        result = lay_out(request)
        return Outcome(self.files(), result["images"])

    def pack_tree(self) -> Outcome:
        return self._pack(SplitRequest("train", source=str(self.folder / "images")))

    def pack_archive(self) -> Outcome:
        rules = ArchiveRules("any", "class_archives")
        return self._pack(SplitRequest("train", archive=str(self.archive), rules=rules))

    def _pack(self, split: SplitRequest) -> Outcome:
        request = PackRequest(
            dataset="imagenet",
            root=str(self.root),
            state_dir=str(self.root / ".state"),
            splits=[split],
            recipe=Recipe(short_side_pixels=16, quality=95, resize_filter="linear", max_image_pixels=10_000_000),
            shards=2,
            on_bad_image="skip",
            workers=1,
            bucket_bytes=2_000,
        )
        pack_dataset(request, check=False, warn=self.warnings.append)
        return Outcome(self.files())

    def back_up(self) -> Outcome:
        (self.root / ".state").mkdir(exist_ok=True)
        for path, content in {**self.dataset, **{f"train/{name}": image for name, image in IMAGES.items()}}.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(content)
        server = S3UploadServer()
        with server:
            self._fill(server)
            engine = Backup(
                bucket_at(server),
                make_plan(str(self.root)),
                str(self.root / ".state"),
                workers=1,
                part_size_bytes=PART_BYTES,
                trees=["train"],
                shard_bytes=6_000,
                warn=self.warnings.append,
            )
            result = engine.run(check_mode=False)
            assert not server.uploads, "no upload is left, and none is paid for"
            return Outcome(dict(server.objects), result["uploaded_bytes"])

    def _fill(self, server: S3UploadServer) -> None:
        """Let the bucket have what it had when the backup was killed."""
        path = self.root / "server.json"
        held = json.loads(path.read_text()) if path.exists() else {"objects": {}, "uploads": {}}
        server.objects.update({key: KEPT[key] for key in held["objects"]})
        server.metadata.update(held["objects"])
        for upload_id, begun in held["uploads"].items():
            content = KEPT[begun["key"]]
            parts = {int(number): content[(int(number) - 1) * PART_BYTES :][:PART_BYTES] for number in begun["parts"]}
            server.uploads[upload_id] = Upload(begun["key"], begun["metadata"], parts)
        server.begun = len(server.uploads)  # an id is never given twice

    def restore(self) -> Outcome:
        return self._restore([])

    def restore_tree(self) -> Outcome:
        return self._restore(["train"])

    def _restore(self, trees: list[str]) -> Outcome:
        with S3Server(dict(KEPT)) as server:
            state_dir = self.root / ".state"
            state_dir.mkdir(exist_ok=True)
            request = RestoreRequest(str(self.root), str(state_dir), dataset="imagenet", trees=trees)
            result = Restore(bucket_at(server), request, self.warnings.append).run(check_mode=False)
            return Outcome(self.files(), result["restored_bytes"])

    def copy(self) -> Outcome:
        before = sum(len(content) for content in self.files().values())
        copy_dataset(str(self.folder / "dataset"), str(self.root), str(self.root / ".state"), check_mode=False)
        return Outcome(self.files(), sum(len(content) for content in self.files().values()) - before)

    def warm(self) -> Outcome:
        dataset, state_dir = str(self.folder / "dataset"), str(self.root / ".state")
        result = warm_dataset(dataset, "vol-1", state_dir, 1, check_mode=False, warn=self.warnings.append)
        return Outcome({}, result["read_bytes"])


def bucket_at(server: S3Server) -> Bucket:
    return Bucket(boto3.client("s3", "us-east-1", endpoint_url=server.url, **_ANY_CREDENTIALS), BUCKET)


@contextlib.contextmanager
def small_files_are_large() -> Iterator[None]:
    """Have small files go in parts and over several connections, as they did for the fixtures."""
    modules: list[tuple[Any, dict[str, int]]] = [
        (restore, {"_SMALL_BYTES": PART_BYTES}),
        (upload, {"LEAST_PART_BYTES": PART_BYTES, "MIB": 1024}),
    ]
    before = [(vars(module), {name: vars(module)[name] for name in values}) for module, values in modules]
    for module, values in modules:
        vars(module).update(values)
    try:
        yield
    finally:
        for names, values in before:
            names.update(values)


# What finishes the work that each folder of the fixtures has the beginning of.
FINISH: dict[str, Callable[[Place], Outcome]] = {
    "fetch": Place.fetch,
    "layout": Place.layout,
    "pack_tree": Place.pack_tree,
    "pack_renaming": Place.pack_tree,
    "pack_archive": Place.pack_archive,
    "pack_dealing": Place.pack_archive,
    "backup": Place.back_up,
    "backup_trees": Place.back_up,
    "restore": Place.restore,
    "restore_tree": Place.restore_tree,
    "copy": Place.copy,
    "warm": Place.warm,
}
