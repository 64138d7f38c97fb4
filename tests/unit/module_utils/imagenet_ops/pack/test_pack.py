from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.files import exclusive
from ansible.module_utils.imagenet_ops.core.hashing import hash_file
from ansible.module_utils.imagenet_ops.download.verified import VerifiedArchive, write_verified
from ansible.module_utils.imagenet_ops.pack import pack, writer
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset

from tests.fakes.images import jpeg, mixed_images, write_tree

RECIPE = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=10_000_000)
FILES = [
    *("labels.tsv", "manifest.json"),
    *(f"recordio/{split}.{suffix}" for split in ("train", "validation") for suffix in ("idx", "lst", "rec")),
]


class DataSet:
    """A data set with two splits; validation has images of two classes only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        images = mixed_images()
        self.train = write_tree(root / "train", images)
        names = sorted(images)
        self.validation = write_tree(root / "validation", {name: images[name] for name in (names[8], names[32])})
        self.request = PackRequest(
            dataset="test",
            root=str(root),
            state_dir=str(root / ".state"),
            splits=[SplitRequest("train", str(self.train)), SplitRequest("validation", str(self.validation))],
            recipe=RECIPE,
        )
        self.warnings: list[str] = []

    def pack(self, *, check: bool = False, **changes: Any) -> dict[str, Any]:
        return pack_dataset(replace(self.request, **changes), check, self.warnings.append)

    def error(self, *, check: bool = False, **changes: Any) -> str:
        with pytest.raises(OpsError) as caught:
            self.pack(check=check, **changes)
        return str(caught.value)

    def manifest(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.root / "manifest.json").read_text())
        return value

    def files(self) -> dict[str, bytes]:
        """Return all that was made, without state."""
        made = [path for path in self.root.rglob("*") if path.is_file()]
        names = [path.relative_to(self.root).as_posix() for path in made]
        kept = [name for name in names if not name.startswith((".state/", "train/", "validation/"))]
        return {name: (self.root / name).read_bytes() for name in sorted(kept)}


@pytest.fixture
def data_set(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path)


# --- what is made ----------------------------------------------------------------------------------------------------


def test_a_data_set_has_records_labels_and_a_manifest(data_set: DataSet) -> None:
    result = data_set.pack()
    files = data_set.files()
    assert list(files) == FILES
    assert files["labels.tsv"] == b"".join(b"%d\tn%08d\t\n" % (number, number) for number in range(5))
    manifest = data_set.manifest()
    assert manifest["settings"] == {
        "short_side_pixels": 32,
        "quality": 95,
        "resize_filter": "linear",
        "max_image_pixels": 10_000_000,
        "enlarge": True,
        "channels": 3,
        "pass_through": False,
        "exif_orientation": "applied",
        "shuffle": True,
        "shuffle_seed": 100,
        "shards": 1,
        "label_order": "sorted",
        "on_bad_image": "fail",
    }
    assert manifest["tools"] == {"opencv": cv2.__version__, "imagenet_ops": "1"}
    classes = manifest["splits"]["validation"]["classes"]
    assert classes == {"n00000000": 0, "n00000001": 1, "n00000002": 0, "n00000003": 0, "n00000004": 1}
    assert manifest["splits"]["train"]["converted"] == {"cmyk": 1, "grey": 1, "png": 1}
    del result["diff"]
    assert result == {
        "changed": True,
        "dataset_version": result["manifest_sha256"][:12],
        "manifest_sha256": hash_file(str(data_set.root / "manifest.json")),
        "records": {"train": 40, "validation": 2},
        "classes": 5,
        "bytes": sum(len(content) for name, content in files.items() if name.startswith("recordio/")),
        "bad_images": 0,
        "samples": [],
    }
    assert data_set.warnings == []


def test_labels_of_a_split_that_lacks_classes_are_those_of_the_first(data_set: DataSet) -> None:
    data_set.pack()
    lines = (data_set.root / "recordio" / "validation.lst").read_text().splitlines()
    assert sorted(line.split("\t")[1:] for line in lines) == [
        ["1.000000", "n00000001/n00000001_1.JPEG"],
        ["4.000000", "n00000004/n00000004_1.JPEG"],
    ]


def test_a_second_run_changes_and_reads_nothing(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data_set.pack()
    before = data_set.files()
    times = {path: path.stat().st_mtime_ns for path in data_set.root.rglob("*") if path.is_file()}
    monkeypatch.setattr(writer, "hash_file", lambda _: pytest.fail("a file is read again"))
    second = data_set.pack()
    assert second["diff"]["before"] == second["diff"]["after"] == first["diff"]["after"]
    assert {**second, "diff": None} == {**first, "changed": False, "diff": None}
    assert data_set.files() == before
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"recordio_pack.lock", "recordio_pack.progress.json"}


def test_two_runs_elsewhere_agree_byte_for_byte(tmp_path: Path) -> None:
    here, there = DataSet(tmp_path / "here"), DataSet(tmp_path / "there")
    assert here.pack(workers=1)["dataset_version"] == there.pack(workers=3)["dataset_version"]
    assert here.files() == there.files()


def test_words_and_classes_come_from_the_devkit(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {f"n{number:08d}": f"word {number}" for number in range(-1, 6)}
    monkeypatch.setattr(pack, "read_words", lambda path: words if path == "devkit.tar.gz" else {})
    result = data_set.pack(devkit="devkit.tar.gz", expected_classes=7)
    assert result["classes"] == 7
    assert data_set.files()["labels.tsv"].startswith(b"0\tn-0000001\tword -1\n1\tn00000000\tword 0\n")
    assert data_set.manifest()["splits"]["train"]["classes"]["n00000005"] == 0


def test_the_manifest_names_the_verified_archives(data_set: DataSet) -> None:
    before = data_set.pack()["dataset_version"]
    (data_set.root / ".state").mkdir(exist_ok=True)
    write_verified(str(data_set.root / ".state"), VerifiedArchive("train.tar", 5, 1, "a" * 32, "b" * 64))
    result = data_set.pack()
    assert result["changed"]
    assert result["dataset_version"] != before
    assert data_set.manifest()["archives"] == [
        {"name": "train.tar", "size_bytes": 5, "md5": "a" * 32, "sha256": "b" * 64}
    ]


def test_progress_ends_as_finished(data_set: DataSet) -> None:
    data_set.pack()
    assert json.loads((data_set.root / ".state" / "recordio_pack.progress.json").read_text())["finished"] is True


def test_a_second_packer_waits_for_the_first(data_set: DataSet) -> None:
    (data_set.root / ".state").mkdir()
    done: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: done.append(data_set.pack()))
    with exclusive(str(data_set.root / ".state" / "recordio_pack.lock")):
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        assert not (data_set.root / "recordio").exists()
    thread.join(timeout=60)
    assert done[0]["changed"]


# --- check mode ------------------------------------------------------------------------------------------------------


def test_check_mode_predicts_and_writes_nothing(data_set: DataSet) -> None:
    predicted = data_set.pack(check=True)
    assert data_set.files() == {}
    assert not (data_set.root / ".state").exists()
    assert predicted["changed"]
    assert predicted["records"] == {"train": 40, "validation": 2}
    assert predicted["dataset_version"] == ""
    assert predicted["diff"]["before"] == {}
    assert predicted["diff"]["after"]["settings"]["quality"] == 95


def test_check_mode_knows_what_is_finished(data_set: DataSet) -> None:
    first = data_set.pack()
    before = data_set.files()
    predicted = data_set.pack(check=True)
    assert {**predicted, "diff": None} == {**first, "changed": False, "diff": None}
    (data_set.root / "labels.tsv").unlink()
    assert data_set.pack(check=True)["changed"]
    (data_set.root / "labels.tsv").write_bytes(before["labels.tsv"])
    os.truncate(data_set.root / "recordio" / "train.idx", 5)
    assert data_set.pack(check=True)["changed"]
    assert data_set.warnings == []


def test_the_diff_shows_version_and_settings(data_set: DataSet) -> None:
    first = data_set.pack()
    recipe = RECIPE._replace(quality=90)
    predicted = data_set.pack(check=True, recipe=recipe)["diff"]
    assert predicted["before"]["dataset_version"] == first["dataset_version"]
    assert (predicted["before"]["settings"]["quality"], predicted["after"]["settings"]["quality"]) == (95, 90)
    second = data_set.pack(recipe=recipe)
    assert second["diff"]["before"] == predicted["before"]
    assert second["diff"]["after"]["dataset_version"] == second["dataset_version"] != first["dataset_version"]


# --- changes ---------------------------------------------------------------------------------------------------------


def test_other_settings_pack_again_with_a_warning(data_set: DataSet) -> None:
    data_set.pack()
    before = data_set.files()
    assert data_set.pack(recipe=RECIPE._replace(quality=90))["changed"]
    expected = "it was packed with other settings or another source (quality 95 is now 90); it is packed again"
    assert data_set.warnings == [f"Split train: {expected}", f"Split validation: {expected}"]
    after = data_set.files()
    assert after["recordio/train.rec"] != before["recordio/train.rec"]
    assert data_set.pack()["changed"]
    assert data_set.files() == before


@pytest.mark.parametrize("change", [{"shuffle_seed": None}, {"shuffle_seed": 7}])
def test_another_order_packs_again(data_set: DataSet, change: dict[str, Any]) -> None:
    data_set.pack()
    assert data_set.pack(**change)["changed"]
    assert data_set.manifest()["settings"]["shuffle"] is (change["shuffle_seed"] is not None)
    assert data_set.manifest()["settings"]["shuffle_seed"] == change["shuffle_seed"]


def test_another_opencv_packs_again(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set.pack()
    version = cv2.__version__
    monkeypatch.setattr(cv2, "__version__", "9.9.9")
    assert data_set.pack()["changed"]
    assert f"opencv {version} is now 9.9.9" in data_set.warnings[0]


def test_only_the_split_that_changed_is_packed_again(data_set: DataSet) -> None:
    data_set.pack()
    time = (data_set.root / "recordio" / "train.rec").stat().st_mtime_ns
    write_tree(data_set.validation, {"n00000003/new.JPEG": jpeg()})
    assert data_set.pack()["records"] == {"train": 40, "validation": 3}
    assert (data_set.root / "recordio" / "train.rec").stat().st_mtime_ns == time
    (warning,) = data_set.warnings
    assert warning.startswith("Split validation: it was packed with other settings or another source (names ")


@pytest.mark.parametrize("name", ["train.rec", "train.idx", "validation.lst"])
def test_a_damaged_file_is_made_again(data_set: DataSet, name: str) -> None:
    data_set.pack()
    before = data_set.files()
    path = data_set.root / "recordio" / name
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert data_set.pack()["changed"]
    assert data_set.files() == before
    split = name.split(".", maxsplit=1)[0]
    what = f"{name} was changed from {size} to {size - 1} bytes since it was packed"
    assert data_set.warnings == [f"Split {split}: {what}; it is packed again"]


@pytest.mark.parametrize("name", ["labels.tsv", "manifest.json"])
def test_a_lost_or_changed_small_file_is_written_again(data_set: DataSet, name: str) -> None:
    data_set.pack()
    before = data_set.files()
    (data_set.root / name).unlink()
    assert data_set.pack()["changed"]
    (data_set.root / name).write_text("{}")
    assert data_set.pack()["changed"]
    assert data_set.files() == before
    assert not data_set.pack()["changed"]


def test_files_that_were_copied_are_looked_at_once_and_kept(data_set: DataSet) -> None:
    data_set.pack()
    os.utime(data_set.root / "recordio" / "train.rec", ns=(1, 1))
    assert not data_set.pack()["changed"]
    assert data_set.warnings == []
    value = json.loads((data_set.root / ".state" / "recordio_pack.train.json").read_text())
    assert value["files"]["train.rec"][2] == 1


# --- bad images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_path(data_set: DataSet) -> Path:
    path = data_set.train / "n00000002" / "n00000002_1.JPEG"
    path.write_bytes(path.read_bytes()[:-2])
    return path


REASON = "truncated: the end of the JPEG is missing"


def test_fail_names_the_image(data_set: DataSet, bad_path: Path) -> None:
    assert data_set.error() == (
        f"Image {bad_path}: {REASON}. Replace it and rerun (packing resumes here),"
        " or set on_bad_image to skip or quarantine"
    )
    assert not (data_set.root / "manifest.json").exists()
    assert not list((data_set.root / "recordio").glob("[!.]*"))


def test_skip_names_the_image_in_the_manifest(data_set: DataSet, bad_path: Path) -> None:
    result = data_set.pack(on_bad_image="skip")
    assert (result["bad_images"], result["records"]["train"]) == (1, 39)
    assert result["samples"] == [f"train/n00000002/n00000002_1.JPEG: {REASON}"]
    split = data_set.manifest()["splits"]["train"]
    assert split["bad_images"] == [{"name": "n00000002/n00000002_1.JPEG", "reason": REASON}]
    assert (split["records"], split["classes"]["n00000002"]) == (39, 7)
    assert bad_path.name not in (data_set.root / "recordio" / "train.lst").read_text()
    assert not data_set.pack(on_bad_image="skip")["changed"]


def test_quarantine_shows_the_image_to_people_and_leaves_the_tree(data_set: DataSet, bad_path: Path) -> None:
    result = data_set.pack(on_bad_image="quarantine")
    assert result["bad_images"] == 1
    copy = data_set.root / "quarantine" / "train" / "n00000002" / "n00000002_1.JPEG"
    assert copy.read_bytes() == bad_path.read_bytes()
    assert not data_set.pack(on_bad_image="quarantine")["changed"]
    copy.unlink()
    assert data_set.pack(check=True, on_bad_image="quarantine")["changed"]
    assert not copy.exists()
    assert data_set.pack(on_bad_image="quarantine")["changed"]
    assert copy.exists()


def test_quarantine_replaces_what_an_earlier_set_left(data_set: DataSet, bad_path: Path) -> None:
    copy = data_set.root / "quarantine" / "train" / "n00000002" / "n00000002_1.JPEG"
    (copy.parent).mkdir(parents=True)
    copy.write_bytes(b"of an earlier set")
    copy.with_name(f"{copy.name}.tmp").write_bytes(b"left by a kill")
    data_set.pack(on_bad_image="quarantine")
    assert copy.read_bytes() == bad_path.read_bytes()
    assert os.listdir(copy.parent) == [copy.name]


def test_the_policy_may_change_without_packing_again(data_set: DataSet, bad_path: Path) -> None:
    data_set.error()
    skipped = data_set.pack(on_bad_image="skip")
    quarantined = data_set.pack(on_bad_image="quarantine")
    assert skipped["records"] == quarantined["records"]
    assert skipped["dataset_version"] != quarantined["dataset_version"]
    assert data_set.warnings == []
    assert bad_path.name in data_set.error()
    assert bad_path.name in data_set.error(check=True)


# --- what is wrong from the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"splits": []}, "splits is empty"),
        ({"splits": [SplitRequest("a", "x"), SplitRequest("a", "y")]}, "two splits have the same name"),
        ({"splits": [SplitRequest("../a", "x")]}, "a split name may only have A-Z a-z 0-9 _ -"),
        ({"recipe": RECIPE._replace(quality=0)}, "quality is 0, it must be 1 to 100"),
        ({"recipe": RECIPE._replace(quality=101)}, "quality is 101, it must be 1 to 100"),
        ({"recipe": RECIPE._replace(short_side_pixels=-1)}, "short_side_pixels is -1, it must be 0 to 65500"),
        ({"recipe": RECIPE._replace(max_image_pixels=0)}, "max_image_pixels is 0, it must be at least 1"),
        ({"workers": -1}, "workers is -1, it must be 0 (all) or more"),
        ({"shards": 0}, "shards is 0, it must be 1 to 99999"),
        ({"shards": 100_000}, "shards is 100000, it must be 1 to 99999"),
        ({"recipe": RECIPE._replace(channels=2)}, "channels is 2, it must be 3 (colour) or 1 (grey)"),
        ({"bucket_bytes": 0}, "shuffle_memory_mib must be at least 1"),
        ({"splits": [SplitRequest("a")]}, "split a needs either source or archive"),
        ({"splits": [SplitRequest("a", "x", "y")]}, "split a needs either source or archive"),
    ],
)
def test_options_are_checked(data_set: DataSet, changes: dict[str, Any], text: str) -> None:
    assert data_set.error(**changes) == f"Options of recordio_pack: {text}. Correct it and rerun"


def expect(data_set: DataSet, name: str, **expected: Any) -> list[SplitRequest]:
    return [replace(split, **expected) if split.name == name else split for split in data_set.request.splits]


def lose_a_class(data_set: DataSet) -> None:
    shutil.rmtree(data_set.train / "n00000002")
    (data_set.validation / "n00000002").mkdir()


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("prepare", "changes", "text"),
    [
        (None, {"expected_classes": 6}, "Data set test: there are 5 classes, expected 6."),
        (
            None,
            {"train": {"expected_images": 41}},
            "Split train in ROOT/train: it has 40 images, expected 41.",
        ),
        (
            None,
            {"validation": {"class_images_min": 1, "class_images_max": 1}},
            "Split validation in ROOT/validation: 3 classes do not have 1 images: n00000000 (0), n00000002 (0),",
        ),
        (lose_a_class, {}, "Images of ROOT/validation: 1 of their classes are unknown: n00000002."),
    ],
)
def test_counts_and_classes_are_checked_before_anything_is_packed(
    data_set: DataSet, prepare: Callable[[DataSet], None] | None, changes: dict[str, Any], text: str, *, check: bool
) -> None:
    if prepare:
        prepare(data_set)
    for name in ("train", "validation"):
        if name in changes:
            changes = {"splits": expect(data_set, name, **changes[name])}
    assert data_set.error(check=check, **changes).startswith(text.replace("ROOT", str(data_set.root)))
    assert data_set.files() == {}


def test_counts_that_no_longer_fit_leave_the_finished_files_alone(data_set: DataSet) -> None:
    data_set.pack()
    before = data_set.files()
    lose_a_class(data_set)
    (data_set.validation / "n00000002").rmdir()
    assert "it has 32 images, expected 40" in data_set.error(splits=expect(data_set, "train", expected_images=40))
    assert data_set.files() == before


def test_an_empty_split_is_an_error(data_set: DataSet) -> None:
    (data_set.root / "empty").mkdir()
    splits = [data_set.request.splits[0], SplitRequest("empty", str(data_set.root / "empty"))]
    expected = f"Split empty: there is no image in {data_set.root}/empty. Lay out the archive first"
    assert data_set.error(splits=splits) == expected


def test_files_that_are_no_images_are_warned_of(data_set: DataSet) -> None:
    write_tree(data_set.train, {"n00000001/readme.txt": b"", "n00000001/x.JPEG.part": b""})
    data_set.pack()
    (warning,) = data_set.warnings
    assert warning.startswith(f"Split train: 2 files in {data_set.train} are not images by their names (n00000001/")


def test_a_place_that_cannot_be_written_is_an_error(data_set: DataSet) -> None:
    (data_set.root / "in the way").write_text("")
    error = data_set.error(state_dir=str(data_set.root / "in the way" / ".state"))
    assert error == (
        f"Data set test in {data_set.root}: {data_set.root}/in the way/.state cannot be written (Not a directory)."
        " Check free space and permissions there and rerun: completed work is kept"
    )
