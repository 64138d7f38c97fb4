"""A tree that was backed up comes back as it was, or a clear error names the object; half of one is never seen."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.backup import shard_stream, tree_restore
from ansible.module_utils.imagenet_ops.backup.backup import Backup, make_plan
from ansible.module_utils.imagenet_ops.backup.request import RestoreRequest
from ansible.module_utils.imagenet_ops.backup.restore import Restore
from ansible.module_utils.imagenet_ops.backup.tree_index import IndexedShard, TreeIndex, parse_index
from ansible.module_utils.imagenet_ops.core import disk, retry
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.layout import extract, tree_writer
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest
from botocore.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.killed import NEVER, Kills
from tests.fakes.s3 import write_dataset
from tests.fakes.s3_server import BUCKET, Cut, Refusal, S3Server
from tests.fakes.s3_upload_server import S3UploadServer
from tests.fakes.seeds import kill_seeds

KIB = 1 << 10
FILES = {"archives/ILSVRC2012_img_val.tar": b"archive", "labels.tsv": b"0\tn0\ttench\n"}
SHARD_BYTES = 220 * KIB
SHARDS = [f"train-{number:05}-of-00006.tar" for number in range(6)]
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(os.fsencode(name)) < 250
)
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map(tuple), st.binary(max_size=3000), min_size=1, max_size=12
).filter(lambda files: not any(path[:depth] in files for path in files for depth in range(1, len(path))))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_stream, "_RANGE_BYTES", 64 * KIB)
    for module in (shard_stream, tree_restore):
        monkeypatch.setattr(module, "_READ_BYTES", 16 * KIB)
    monkeypatch.setattr(tree_restore, "_LARGE_FILE_BYTES", 48 * KIB)
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)
    for module in (tree_restore, tree_writer):  # a real sync would wait for whatever else the machine writes
        monkeypatch.setattr(module, "sync_filesystem", lambda _path: None)


def bucket_at(url: str) -> Bucket:
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    config = Config(retries={"total_max_attempts": 1}, read_timeout=10, s3={"addressing_style": "path"})
    return Bucket(boto3.client("s3", "us-east-1", endpoint_url=url, config=config, **keys), BUCKET)


def back_up(source: Path, shard_bytes: int = SHARD_BYTES) -> dict[str, bytes]:
    """Back up the data set in ``source`` with its tree train; return the objects by key."""
    (source / ".state").mkdir(exist_ok=True)
    with S3UploadServer() as server:
        engine = Backup(
            bucket_at(server.url),
            make_plan(str(source)),
            str(source / ".state"),
            trees=["train"],
            shard_bytes=shard_bytes,
        )
        engine.run(check_mode=False)
        return server.objects


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose tree makes six tars; classes lie in two of them, and one file is written as it comes."""
    root = tmp_path_factory.mktemp("source")
    write_dataset(root, FILES)
    dice = random.Random(1)
    for number in range(40):
        path = root / "train" / f"n{number // 14}" / f"n{number // 14}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(dice.randrange(50 * KIB)))
    (root / "train" / "n1" / "large.JPEG").write_bytes(dice.randbytes(150 * KIB))
    (root / "train" / "n2" / "empty.JPEG").touch()
    return root


@pytest.fixture(scope="module")
def backed_up(source: Path) -> dict[str, bytes]:
    return back_up(source)


@pytest.fixture
def server(backed_up: dict[str, bytes]) -> Iterator[S3Server]:
    with S3Server(dict(backed_up)) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "imagenet"


@pytest.fixture
def folder(backed_up: dict[str, bytes]) -> str:
    """What the keys of trees begin with."""
    return next(key for key in backed_up if key.endswith("train.json")).rpartition("/")[0]


def run(server: S3Server, root: Path, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    server.requests.clear()
    given = {"dataset": "imagenet", "state_dir": str(root / ".state"), "trees": ["train"], **options}
    if not check_mode:
        (root / ".state").mkdir(parents=True, exist_ok=True)
    return Restore(bucket_at(server.url), RestoreRequest(root=str(root), **given)).run(check_mode=check_mode)


def files_of(tree: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def fetched(server: S3Server) -> set[str]:
    """Return the names of the tars that were asked for."""
    return {key.rpartition("/")[2] for operation, key in server.requests if operation == "get" and key.endswith(".tar")}


def names(root: Path) -> set[str]:
    return set(os.listdir(root))


def index_of(server: S3Server, folder: str) -> TreeIndex:
    return parse_index(server.objects[f"{folder}/train.json"], "train", "")


def replace_shard(server: S3Server, folder: str, name: str, content: bytes, files: int) -> None:
    """Put another tar there, with an index that says so."""
    index = index_of(server, folder)
    shard = IndexedShard(name, len(content), hashlib.sha256(content).hexdigest(), files)
    shards = [shard if found.name == name else found for found in index.shards]
    server.objects[f"{folder}/{name}"] = content
    server.objects[f"{folder}/train.json"] = dataclasses.replace(index, shards=shards).content()


def test_the_tree_comes_back_and_a_second_run_asks_for_its_index_alone(
    server: S3Server, source: Path, root: Path, folder: str
) -> None:
    predicted = run(server, root, check_mode=True)
    assert not root.exists()
    made = run(server, root)
    assert made == predicted
    assert files_of(root / "train") == files_of(source / "train")
    assert names(root) == {".state", "archives", "labels.tsv", "manifest.json", "train"}
    index = index_of(server, folder)
    assert (made["changed"], made["restored_files"], made["present_files"]) == (True, 42 + 3, 0)
    assert made["restored_bytes"] == sum(map(len, FILES.values())) + index.size_bytes
    assert made["diff"]["before"].startswith(f"0 of 45 files under {root}")
    assert made["diff"]["after"].startswith(f"45 of 45 files under {root}")
    taken = sum(path.stat().st_blocks * 512 for path in (root / "train").rglob("*") if path.is_file())
    assert taken <= made["needed_bytes"] <= index.size_bytes + 42 * disk.block_bytes(str(root)) + len(b"archive") + 99
    progress = json.loads((root / ".state" / "s3_restore.progress.json").read_text())
    assert (progress["done"], progress["total"], progress["finished"]) == (index.size_bytes, index.size_bytes, True)
    for check_mode in (True, False):
        again = run(server, root, check_mode=check_mode)
        assert (again["changed"], again["restored_files"], again["restored_bytes"], again["present_files"]) == (
            False, 0, 0, 44,
        )  # fmt: skip
        assert again["needed_bytes"] == 0
        assert [key.rpartition("/")[2] for _, key in server.requests] == ["", "", "manifest.json", "train.json"]


def test_without_being_asked_for_the_tree_stays_in_the_bucket(server: S3Server, root: Path) -> None:
    assert run(server, root, trees=[])["restored_files"] == 3
    assert not (root / "train").exists()
    assert run(server, root, content="records")["restored_files"] == 42


def test_the_manifest_comes_after_the_tree(server: S3Server, root: Path, folder: str) -> None:
    server.objects[f"{folder}/{SHARDS[5]}"] = bytes(len(server.objects[f"{folder}/{SHARDS[5]}"]))
    with pytest.raises(OpsError):
        run(server, root)
    assert not {"manifest.json", "train"} & names(root)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(files=TREES, shard_bytes=st.integers(1, 20_000), read_bytes=st.integers(1, 5000), large=st.integers(0, 3000))
def test_whatever_the_names_and_sizes(
    tmp_path: Path, files: dict[tuple[str, ...], bytes], shard_bytes: int, read_bytes: int, large: int
) -> None:
    for old in ("source", "imagenet"):
        shutil.rmtree(tmp_path / old, ignore_errors=True)
    write_dataset(tmp_path / "source", FILES)
    for parts, content in files.items():
        path = tmp_path / "source" / "train" / Path(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch, S3Server(back_up(tmp_path / "source", shard_bytes)) as server:
        patch.setattr(tree_restore, "_READ_BYTES", read_bytes)
        patch.setattr(tree_restore, "_LARGE_FILE_BYTES", large)
        assert run(server, tmp_path / "imagenet")["restored_files"] == len(files) + 3
        assert files_of(tmp_path / "imagenet" / "train") == files_of(tmp_path / "source" / "train")
        assert run(server, tmp_path / "imagenet")["changed"] is False


def test_a_restored_tree_counts_as_laid_out(server: S3Server, root: Path) -> None:
    run(server, root)
    request = LayoutRequest(
        name_rules="any",
        layout="class_directories",
        dest=str(root / "train"),
        state_dir=str(root / ".state"),
        archive=str(root / "archives" / "no_more.tar"),
        expected_images=42,
        expected_classes=3,
        deep_check=True,
    )
    found = extract.lay_out(request)
    assert (found["changed"], found["images"], found["classes"]) == (False, 42, 3)
    assert found["bytes"] == sum(map(len, files_of(root / "train").values()))


# What is on the disk already


def test_a_tree_that_is_there_is_read_once_and_kept(
    server: S3Server, source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(source / "train", root / "train")
    assert run(server, root, check_mode=True)["present_files"] == 42
    result = run(server, root)
    assert (result["present_files"], result["restored_files"]) == (42, 3)
    assert fetched(server) == {"ILSVRC2012_img_val.tar"}
    monkeypatch.setattr(tree_restore, "ShardReader", None)  # whoever reads a file fails
    assert run(server, root)["changed"] is False


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("bit", "contents of the files of train-00000-of-00006.tar"),
        ("more", "names or sizes of files: it has 43, the backup 42"),
    ],
)
def test_a_wrong_tree_is_left_alone_unless_it_may_be_replaced(
    server: S3Server, source: Path, root: Path, change: str, why: str
) -> None:
    run(server, root)
    wrong = root / "train" / "n0" / ("n0_0.JPEG" if change == "bit" else "new.JPEG")
    content = wrong.read_bytes() if change == "bit" else b"new"
    wrong.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(OpsError) as caught:
        run(server, root)
    assert str(caught.value) == (
        f"Tree {root}/train: the existing tree differs from the backup ({why}); it was not changed. Move it away or "
        "set replace, and run again"
    )
    assert files_of(root / "train") != files_of(source / "train")
    assert run(server, root, replace=True)["restored_files"] == 42
    assert files_of(root / "train") == files_of(source / "train")
    assert "train.restoring" not in names(root)


def test_a_link_in_the_tree_is_not_followed(server: S3Server, source: Path, root: Path, tmp_path: Path) -> None:
    run(server, root)
    (tmp_path / "kept").write_bytes(b"kept")
    (root / "train" / "n0" / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(
        OpsError, match=r"n0/link: it is neither a regular file nor a folder.* Move it away or set replace"
    ):
        run(server, root)
    run(server, root, replace=True)
    assert files_of(root / "train") == files_of(source / "train")
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_a_folder_that_we_did_not_make(server: S3Server, root: Path) -> None:
    (root / "train.restoring").mkdir(parents=True)
    with pytest.raises(OpsError) as caught:
        run(server, root)
    assert str(caught.value) == (
        f"Folder {root}/train.restoring: the folder exists, but its checkpoint {root}/.state/s3_restore.train.json "
        "does not. Remove it and run again"
    )


def test_what_an_earlier_version_left_is_thrown_away(server: S3Server, source: Path, root: Path, folder: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_restore.TreeRestore, "_join", lambda _self: (_ for _ in ()).throw(OpsError("x", "y", "z")))
        with pytest.raises(OpsError):
            run(server, root)
    assert set(SHARDS) == names(root / "train.restoring")
    newer = dataclasses.replace(index_of(server, folder), shard_bytes=SHARD_BYTES + 1)
    server.objects[f"{folder}/train.json"] = newer.content()
    assert run(server, root)["resumed_bytes"] == 0
    assert files_of(root / "train") == files_of(source / "train")


# A bucket that is not what it should be


@pytest.mark.parametrize("check_mode", [True, False])
def test_no_tree_in_the_backup(server: S3Server, root: Path, folder: str, check_mode: bool) -> None:
    with pytest.raises(OpsError) as caught:
        run(server, root, trees=["validation"], check_mode=check_mode)
    assert str(caught.value).startswith(
        f"s3://{BUCKET}/{folder}/validation.json: there is no such index, so the backup has no complete tree of "
        "validation. Back up the tree from where it still is (dataset_backup_trees)"
    )
    assert names(root) <= {".state"} if root.exists() else check_mode


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "train.json names this object, but it does not exist"),
        (b"cut", "size mismatch: expected "),
    ],
)
def test_a_shard_that_is_missing_or_of_another_size(
    server: S3Server, root: Path, folder: str, content: bytes | None, why: str, check_mode: bool
) -> None:
    del server.objects[f"{folder}/{SHARDS[2]}"]
    if content is not None:
        server.objects[f"{folder}/{SHARDS[2]}"] = content
    with pytest.raises(OpsError) as caught:
        run(server, root, check_mode=check_mode)
    assert str(caught.value).startswith(f"s3://{BUCKET}/{folder}/{SHARDS[2]}: {why}")
    assert fetched(server) == set()


def test_an_index_that_is_none(server: S3Server, root: Path, folder: str) -> None:
    server.objects[f"{folder}/train.json"] = b""
    with pytest.raises(OpsError, match=rf"^s3://{BUCKET}/{folder}/train.json: it is not the index of a tree that this"):
        run(server, root)
    assert not names(root) & {"train", "train.restoring"}


@pytest.mark.parametrize("where", ["content", "header"])
def test_a_flipped_bit_in_a_shard(server: S3Server, source: Path, root: Path, folder: str, where: str) -> None:
    key = f"{folder}/{SHARDS[1]}"
    whole = server.objects[key]
    flipped = bytearray(whole)
    flipped[len(whole) // 2 if where == "content" else 5] ^= 8
    server.objects[key] = bytes(flipped)
    with pytest.raises(OpsError) as caught:
        run(server, root)
    why = {
        "content": f"checksum mismatch: expected SHA-256 {hashlib.sha256(whole).hexdigest()} (train.json), got "
        f"{hashlib.sha256(flipped).hexdigest()}; extracted files discarded",
        "header": "it is not a tar that s3_backup wrote: at byte 0 header checksum mismatch; extracted files discarded",
    }
    assert str(caught.value).startswith(f"s3://{BUCKET}/{key}: {why[where]}")
    assert SHARDS[1] not in names(root / "train.restoring")
    proved = names(root / "train.restoring")
    server.objects[key] = whole
    predicted = run(server, root, check_mode=True)
    result = run(server, root)
    assert result == predicted
    assert not proved & fetched(server)
    assert files_of(root / "train") == files_of(source / "train")


def entry(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", target: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        (entry("../outside"), "it holds a file that would lie outside of the tree, '../outside'"),
        (entry("n0/../../outside"), "it holds a file that would lie outside of the tree, 'n0/../../outside'"),
        (entry("/tmp/outside"), "it holds a file that would lie outside of the tree, '/tmp/outside'"),
        (entry(".."), "it holds a file that would lie outside of the tree, '..'"),
        (entry("."), "it holds a file that would lie outside of the tree, '.'"),
        (entry("n0//x"), "it holds a file that would lie outside of the tree, 'n0//x'"),
        (entry(f"{'n' * 120}\0x"), rf"it holds a file that would lie outside of the tree, '{'n' * 120}\x00x'"),
        (entry("n0/x", tarfile.SYMTYPE, target="/etc"), "it holds a symbolic link, 'n0/x', and a tree has nothing but"),
        (entry("n0/x", tarfile.LNKTYPE, target="/etc"), "it holds a hard link, 'n0/x', and a tree has nothing but"),
        (entry("n0/x", tarfile.CHRTYPE), "it holds a character device, 'n0/x', and a tree has nothing but files"),
        (entry("n0/x", tarfile.BLKTYPE), "it holds a block device, 'n0/x', and a tree has nothing but files"),
        (entry("n0/x", tarfile.FIFOTYPE), "it holds a named pipe, 'n0/x', and a tree has nothing but files"),
        (entry("n0", tarfile.DIRTYPE), "it holds a directory, 'n0/', and a tree has nothing but files"),
        (entry("n0/a") + entry("n0/b"), "it holds 3 files, and train.json says 2"),
        (b"", "it holds 1 files, and train.json says 2"),
        (entry("n0/x", content=bytes(9))[:-512], "at byte 1024 a member of 9 bytes exceeds the end of the archive"),
    ],
)  # fmt: skip
def test_a_hostile_tar_is_refused_although_the_index_names_it(
    server: S3Server, root: Path, folder: str, hostile: bytes, why: str, tmp_path: Path
) -> None:
    end = b"" if "exceeds" in why else bytes(1024)
    replace_shard(server, folder, SHARDS[0], entry("n0/good", content=b"good") + hostile + end, 2)
    with pytest.raises(OpsError) as caught:
        run(server, root)
    assert str(caught.value).startswith(
        f"s3://{BUCKET}/{folder}/{SHARDS[0]}: it is not a tar that s3_backup wrote: {why}"
    )
    assert not names(root) & {"train", "outside"}
    assert not names(tmp_path) & {"outside"}
    assert SHARDS[0] not in names(root / "train.restoring")


def test_tars_that_together_are_another_tree(server: S3Server, root: Path, folder: str) -> None:
    twice = entry("n0/x", content=b"x") + entry("n0/x", content=b"y") + bytes(1024)
    replace_shard(server, folder, SHARDS[0], twice, 2)
    with pytest.raises(
        OpsError, match=r"train\.json: file mismatch: the index lists \d+ files, and \d+, or others, were extracted"
    ):
        run(server, root)
    assert not names(root) & {"train", "train.restoring"}


# A server and a network that fail


def test_storms_and_cuts_pass(server: S3Server, source: Path, root: Path) -> None:
    faults = [None, None, Refusal(503, "SlowDown"), Refusal(500, "InternalError"), Cut(0), Cut(1), Cut(20 * KIB)]
    storms: dict[str, Iterator[Any]] = {}

    def fault(operation: str, key: str) -> Any:
        """One storm for each object, so that the order of the threads does not matter."""
        if operation != "get" or not key.endswith(".tar"):
            return None
        return next(storms.setdefault(key, iter(random.Random(Path(key).name).choices(faults, k=10_000))))

    server.fault = fault
    run(server, root)
    assert files_of(root / "train") == files_of(source / "train")


def test_a_storm_that_does_not_end(server: S3Server, root: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_stream, "_RETRIES", 2)
    server.fault = lambda _operation, key: Refusal(503, "SlowDown", "Less.") if key.endswith(SHARDS[3]) else None
    with pytest.raises(OpsError) as caught:
        run(server, root)
    assert str(caught.value).startswith(
        f"Download from s3://{BUCKET}/{folder}/{SHARDS[3]}: no data received after 2 retries (last error: "
        "SlowDown: Less)."
    )
    server.fault = lambda *_: None
    assert run(server, root)["changed"] is True


def test_a_shard_that_changes_behind_our_back(server: S3Server, root: Path, folder: str) -> None:
    key = f"{folder}/{SHARDS[4]}"

    def change(_operation: str, requested: str) -> None:
        if requested == key and sum(asked == key for _, asked in server.requests) == 2:
            server.objects[key] = bytes(len(server.objects[key]))

    server.fault = change
    with pytest.raises(OpsError, match=rf"{key}: the object was changed while it was read: its ETag was "):
        run(server, root)
    assert "train" not in names(root)


def test_a_refusal_names_the_shard(server: S3Server, root: Path, folder: str) -> None:
    server.fault = lambda _operation, key: Refusal(403, "AccessDenied") if key.endswith(SHARDS[5]) else None
    with pytest.raises(OpsError, match=f"{folder}/{SHARDS[5]}: AccessDenied: No"):
        run(server, root)


# The disk


def test_space_is_looked_at_before_the_first_byte(
    server: S3Server, root: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        disk, "free_bytes", lambda _path: index_of(server, folder).size_bytes
    )  # without the blocks' ends
    for check_mode in (True, False):
        with pytest.raises(OpsError, match=r"GiB are needed and 0\.00 GiB are free"):
            run(server, root, check_mode=check_mode)
        assert fetched(server) == set()


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    server: S3Server, source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = tree_writer._preallocate, iter(range(10_000))

    def fill(descriptor: int, size_bytes: int) -> None:
        if next(written) > 30:
            raise OSError(28, "No space left on device")
        real(descriptor, size_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(tree_writer, "_preallocate", fill)
        with pytest.raises(OpsError, match=rf"Writing {root}: there is no space left .* what was done so far is kept"):
            run(server, root, connections=1)
    assert run(server, root)["resumed_bytes"] > 0
    assert files_of(root / "train") == files_of(source / "train")


def test_what_a_killed_run_left_of_a_shard_is_space_that_is_there(server: S3Server, root: Path) -> None:
    fresh = run(server, root, check_mode=True)["needed_bytes"]
    left_over = root / "train.restoring" / SHARDS[0] / "n0" / "n0_0.JPEG"
    left_over.parent.mkdir(parents=True)
    left_over.write_bytes(bytes(8 * KIB))
    assert fresh - run(server, root, check_mode=True)["needed_bytes"] == left_over.stat().st_blocks * 512


@pytest.fixture(scope="module")
def kills() -> Iterator[Kills]:
    with Kills() as running:
        yield running


@pytest.mark.parametrize("seed", kill_seeds(20))
def test_killed_at_any_change_of_the_disk_and_run_again(
    kills: Kills, server: S3Server, source: Path, root: Path, seed: int
) -> None:
    options = {"root": str(root), "state_dir": str(root / ".state"), "dataset": "imagenet", "trees": ["train"]}
    arguments = {"endpoint_url": server.url, "bucket": BUCKET, "request": options}
    (root / ".state").mkdir(parents=True)
    kills.run("restore", arguments, random.Random(seed).randint(1, 180))
    if "train" in names(root):
        assert files_of(root / "train") == files_of(source / "train")
    journal = root / ".state" / "s3_restore.train.json"
    proved = set(json.loads(journal.read_text())["proved"]) if journal.exists() else set()
    predicted = run(server, root, check_mode=True)
    server.requests.clear()
    assert kills.run("restore", arguments, NEVER) is not None
    assert not proved & fetched(server)
    assert files_of(root / "train") == files_of(source / "train")
    assert names(root) == {".state", "archives", "labels.tsv", "manifest.json", "train"}
    assert predicted["resumed_bytes"] + predicted["restored_bytes"] >= sum(
        len(server.objects[key]) for key in server.objects if key.rpartition("/")[2] in fetched(server)
    )
    assert kills.run("restore", arguments, NEVER) == 0


def test_killed_once_all_was_in_its_place(server: S3Server, source: Path, root: Path) -> None:
    run(server, root)
    (root / "train.restoring" / "replaced" / "n0").mkdir(parents=True)
    assert run(server, root)["changed"] is False
    assert "train.restoring" not in names(root)
    assert files_of(root / "train") == files_of(source / "train")
