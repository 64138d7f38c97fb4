from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset import manifest
from ansible.module_utils.imagenet_ops.dataset.manifest import ArchiveEntry, FileEntry, FormatEntry, SplitEntry

ARCHIVES = {
    "val.tar": ArchiveEntry(5, "b" * 32, "c" * 64),
    "train.tar": ArchiveEntry(6, "d" * 32, "e" * 64),
}
SPLITS = {
    "validation": SplitEntry(1, {"n01": 1, "n02": 0}, {"cmyk": 0, "grey": 1, "png": 0}, {}, {}),
    "train": SplitEntry(
        2,
        {"n01": 1, "n02": 1},
        {"cmyk": 1, "grey": 0, "png": 1},
        {"n02/z.JPEG": "zero bytes long", "n01/ä.JPEG": "truncated: it ends within the header"},
        {"train.rec": FileEntry(100, "f" * 64), "train.idx": FileEntry(10, "0" * 64)},
    ),
}


def built(**changes: Any) -> bytes:
    parts: dict[str, Any] = {
        "dataset": "imagenet",
        "settings": {"quality": 95},
        "opencv_version": "4.13.0",
        "archives": ARCHIVES,
        "labels": FileEntry(20, "a" * 64),
        "classes": 2,
        "splits": SPLITS,
        "formats": {},
        "tools": {},
    }
    return manifest.build_manifest(**{**parts, **changes})


def test_labels_have_index_name_and_words() -> None:
    text = "0\tn01440764\ttench, Tinca tinca\n1\tn01443537\t\n"
    assert manifest.labels_tsv(["n01440764", "n01443537"], {"n01440764": "tench, Tinca tinca"}) == text.encode()


def test_the_manifest_says_what_was_made_from_what() -> None:
    value = json.loads(built())
    assert value == {
        "format": 1,
        "dataset": "imagenet",
        "settings": {"quality": 95},
        "tools": {"opencv": "4.13.0", "imagenet_ops": "1"},
        "archives": [
            {"name": "train.tar", "size_bytes": 6, "md5": "d" * 32, "sha256": "e" * 64},
            {"name": "val.tar", "size_bytes": 5, "md5": "b" * 32, "sha256": "c" * 64},
        ],
        "labels": {"size_bytes": 20, "sha256": "a" * 64, "classes": 2},
        "splits": {
            "train": {
                "records": 2,
                "classes": {"n01": 1, "n02": 1},
                "converted": {"cmyk": 1, "grey": 0, "png": 1},
                "bad_images": [
                    {"name": "n01/ä.JPEG", "reason": "truncated: it ends within the header"},
                    {"name": "n02/z.JPEG", "reason": "zero bytes long"},
                ],
                "files": {
                    "train.rec": {"size_bytes": 100, "sha256": "f" * 64},
                    "train.idx": {"size_bytes": 10, "sha256": "0" * 64},
                },
            },
            "validation": {
                "records": 1,
                "classes": {"n01": 1, "n02": 0},
                "converted": {"cmyk": 0, "grey": 1, "png": 0},
                "bad_images": [],
                "files": {},
            },
        },
    }


def test_neither_the_order_of_things_nor_a_time_changes_a_byte() -> None:
    later = dict(reversed(list(ARCHIVES.items())))
    assert built(archives=later, splits=dict(reversed(SPLITS.items()))) == built()


def test_what_is_read_is_what_was_built(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(built())
    read = manifest.read_manifest(str(tmp_path))
    assert (read.dataset, read.settings, read.classes) == ("imagenet", {"quality": 95}, 2)
    assert read.labels == FileEntry(20, "a" * 64)
    assert read.splits == SPLITS
    assert read.sha256 == hashlib.sha256(built()).hexdigest()
    assert read.dataset_version == read.sha256[:12]


def test_a_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OpsError) as caught:
        manifest.read_manifest(str(tmp_path))
    assert str(caught.value) == (
        f"Manifest {tmp_path}/manifest.json: it cannot be read (No such file or directory)."
        " Pack the data set (recordio_pack writes the manifest last), or check that the right volume is mounted"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        (b"[]", "TypeError: list indices must be integers or slices, not str"),
        (b"{}", "KeyError: 'format'"),
        (b'{"format": 2}', "ValueError: its format is 2"),
        (built().replace(b'"records"', b'"images"'), "KeyError: 'records'"),
    ],
)
def test_what_is_no_manifest_is_an_error(content: bytes, why: str) -> None:
    with pytest.raises(OpsError) as caught:
        manifest.parse_manifest(content, "m.json")
    todo = "Restore it from the backup, or pack the data set again"
    assert str(caught.value) == f"Manifest m.json: it is not a manifest of format 1 ({why}). {todo}"


def test_the_files_that_it_names() -> None:
    read = manifest.parse_manifest(built(), "manifest.json")
    assert read.files() == {
        "archives/train.tar": FileEntry(6, "e" * 64),
        "archives/val.tar": FileEntry(5, "c" * 64),
        "recordio/train.rec": FileEntry(100, "f" * 64),
        "recordio/train.idx": FileEntry(10, "0" * 64),
        "labels.tsv": read.labels,
    }
    records, archives = read.files("records"), read.files("archives")
    assert sorted(records) == ["labels.tsv", "recordio/train.idx", "recordio/train.rec"]
    assert sorted(archives) == ["archives/train.tar", "archives/val.tar"]
    assert {**records, **archives} == read.files()
    assert read.archives["val.tar"].md5 == "b" * 32


def test_other_formats_come_back_and_are_absent_otherwise() -> None:
    made = FormatEntry(
        {"train": [("train-000000.tar", 2)], "validation": [("validation-000000.tar", 1)]},
        {"train-000000.tar": FileEntry(10240, "1" * 64), "validation-000000.tar": FileEntry(10240, "2" * 64)},
        {"_info.json": FileEntry(20, "3" * 64)},
    )
    splits = {name: split._replace(content_sha256="4" * 64) for name, split in SPLITS.items()}
    content = built(splits=splits, formats={"webdataset": made}, tools={"pyarrow": "1.2"})
    found = manifest.parse_manifest(content, "manifest.json")
    assert found.formats == {"webdataset": made}
    assert {split.content_sha256 for split in found.splits.values()} == {"4" * 64}
    assert json.loads(content)["tools"]["pyarrow"] == "1.2"
    assert {"webdataset/train-000000.tar", "webdataset/_info.json"} < found.files("records").keys()
    assert not {"webdataset/train-000000.tar"} & found.files("archives").keys()
    assert {"formats", "content_sha256"}.isdisjoint(built().decode().split('"'))
