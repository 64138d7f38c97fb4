from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, s3_client
from ansible.module_utils.imagenet_ops.backup import tar_shards
from ansible.module_utils.imagenet_ops.backup.backup import Backup, make_plan
from ansible.module_utils.imagenet_ops.core.errors import OpsError

from tests.fakes import backup_once
from tests.fakes.s3 import write_dataset
from tests.fakes.s3_server import BUCKET, Cut, Refusal
from tests.fakes.s3_upload_server import S3UploadServer
from tests.fakes.state_files import edit

KIB = 1 << 10
PART_BYTES = backup_once.PART_BYTES
SHARD_BYTES = backup_once.SHARD_BYTES
FILES = {"archives/ILSVRC2012_img_val.tar": b"archive", "labels.tsv": b"0\tn01440764\ttench\n"}
SHARDS = [f"train-{number:05}-of-00004.tar" for number in range(4)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set whose tree makes four shards, of which only the last fits into one part."""
    make_root(tmp_path)
    return tmp_path


def make_root(root: Path) -> None:
    dice = random.Random(1)
    (root / ".state").mkdir(parents=True)
    write_dataset(root, FILES)
    for number in range(10):
        path = root / "train" / f"n{number // 4}" / f"n{number // 4}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(450_000))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3UploadServer]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setattr("ansible.module_utils.imagenet_ops.backup.upload.LEAST_PART_BYTES", PART_BYTES)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    running = S3UploadServer()
    with running:
        yield running


def back_up(server: S3UploadServer, root: Path, *, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    server.requests.clear()
    bucket = Bucket(s3_client("us-east-1", server.url, 8, "path"), BUCKET)
    settings = {"trees": ["train"], "part_size_bytes": PART_BYTES, "shard_bytes": SHARD_BYTES, "workers": 4, **options}
    return Backup(bucket, make_plan(str(root)), str(root / ".state"), **settings).run(check_mode=check_mode)


def prefix(root: Path) -> str:
    return f"imagenet/{hashlib.sha256((root / 'manifest.json').read_bytes()).hexdigest()[:12]}"


def trees(server: S3UploadServer, root: Path) -> dict[str, bytes]:
    """Return what is in the bucket of trees, by name."""
    begin = f"{prefix(root)}/trees/"
    return {key[len(begin) :]: content for key, content in server.objects.items() if key.startswith(begin)}


def written(server: S3UploadServer) -> list[str]:
    """Return the names of the objects that were made, in their order."""
    return [key.rpartition("/")[2] for operation, key in server.requests if operation in ("put", "complete")]


def counts(result: dict[str, Any]) -> tuple[int, int, int]:
    return result["uploaded_objects"], result["uploaded_bytes"], result["present_objects"]


def is_whole(server: S3UploadServer, root: Path, unpacked: Path) -> bool:
    """Say whether the shards that the index names, unpacked by tar, are the tree, and nothing else is there."""
    found = trees(server, root)
    index = json.loads(found.pop("train.json"))
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    for shard in index["shards"]:
        content = found.pop(shard["name"])
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        assert len(content) == shard["size_bytes"]
        subprocess.run(["tar", "-x", "-C", unpacked], input=content, check=True)
    same = subprocess.run(["diff", "-r", root / "train", unpacked], check=False).returncode == 0
    return same and not found and not server.uploads and f"{prefix(root)}/manifest.json" in server.objects


def test_the_shards_then_their_index_then_the_manifest(server: S3UploadServer, root: Path, tmp_path: Path) -> None:
    predicted = back_up(server, root, check_mode=True)
    assert not server.objects
    made = back_up(server, root)
    assert is_whole(server, root, tmp_path / "unpacked")
    assert set(trees(server, root)) == {*SHARDS, "train.json"}
    assert counts(made) == (8, sum(map(len, server.objects.values())), 0)
    assert counts(predicted) == counts(made)
    assert predicted["size_bytes"] == made["size_bytes"] == made["uploaded_bytes"]
    assert predicted["diff"] == made["diff"]
    assert set(written(server)[-6:-2]) == set(SHARDS)
    assert written(server)[-2:] == ["train.json", "manifest.json"]
    index = json.loads(trees(server, root)["train.json"])
    assert (index["split"], index["files"], index["shard_bytes"]) == ("train", 10, SHARD_BYTES)
    assert [shard["files"] for shard in index["shards"]] == [3, 3, 3, 1]
    progress = json.loads((root / ".state" / "s3_backup.progress.json").read_text())
    assert (progress["done"], progress["finished"]) == (made["uploaded_bytes"], True)


def test_nothing_is_done_twice_and_nothing_read(
    server: S3UploadServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(server, root)
    monkeypatch.setattr(tar_shards, "_member", None)  # whoever reads a file fails
    for check_mode in (True, False):
        again = back_up(server, root, check_mode=check_mode, shard_bytes=5 * SHARD_BYTES)
        assert (again["changed"], *counts(again)) == (False, 0, 0, 8)
        assert again["size_bytes"] == sum(map(len, server.objects.values()))
        # The listing, the index, and the manifest.
        assert [operation for operation, _ in server.requests] == ["list", "head", "get"]


def test_a_shard_that_is_gone_is_made_again(server: S3UploadServer, root: Path, tmp_path: Path) -> None:
    back_up(server, root)
    del server.objects[f"{prefix(root)}/trees/{SHARDS[1]}"]
    predicted = back_up(server, root, check_mode=True)
    made = back_up(server, root)
    assert counts(predicted) == counts(made) == (1, len(trees(server, root)[SHARDS[1]]), 7)
    assert written(server) == [SHARDS[1]]
    assert is_whole(server, root, tmp_path / "unpacked")


def test_without_a_journal_the_tree_is_read_and_nothing_sent(server: S3UploadServer, root: Path) -> None:
    back_up(server, root)
    shutil.rmtree(root / ".state")
    (root / ".state").mkdir()
    predicted = back_up(server, root, check_mode=True)
    made = back_up(server, root)
    assert counts(predicted) == counts(made) == (0, 0, 8)
    assert written(server) == []
    back_up(server, root)
    assert [operation for operation, _ in server.requests] == ["list", "head", "get"]


def test_an_object_of_the_same_size_that_is_not_the_shard(server: S3UploadServer, root: Path, tmp_path: Path) -> None:
    back_up(server, root)
    key = f"{prefix(root)}/trees/{SHARDS[2]}"
    server.objects[key] = bytes(len(server.objects[key]))
    made = back_up(server, root)
    assert written(server) == [SHARDS[2]]
    assert counts(made)[0] == 1
    assert is_whole(server, root, tmp_path / "unpacked")


def test_damage_that_the_server_does_not_tell_is_found_by_reading_back(
    server: S3UploadServer, root: Path, tmp_path: Path
) -> None:
    back_up(server, root)
    key = f"{prefix(root)}/trees/{SHARDS[0]}"
    good = server.objects[key]
    uri, path = f"s3://{BUCKET}/{key}", root / ".state" / "s3_backup.trees.json"
    server.objects[key] = bytes(len(good))
    shards = json.loads(path.read_text())["shards"]
    shards[uri]["etag"] = hashlib.md5(server.objects[key]).hexdigest()
    edit(path, shards=shards)
    assert counts(back_up(server, root))[0] == 0
    assert counts(back_up(server, root, read_back=True))[0] == 1
    assert server.objects[key] == good
    assert is_whole(server, root, tmp_path / "unpacked")


@pytest.mark.parametrize("content", [b"another", bytes(450_000)])
def test_a_tree_that_is_not_the_one_in_the_bucket(server: S3UploadServer, root: Path, content: bytes) -> None:
    back_up(server, root)
    before = dict(server.objects)
    (root / "train" / "n0" / "n0_1.JPEG").write_bytes(content)
    with pytest.raises(OpsError) as caught:
        back_up(server, root)
    assert str(caught.value).startswith(
        f"Tree {root}/train: it is not the one of s3://{BUCKET}/{prefix(root)}/trees/train.json, and a backup is never "
        "overwritten by another: "
    )
    assert server.objects == before
    assert not server.uploads


def test_an_index_that_is_none(server: S3UploadServer, root: Path) -> None:
    key = f"{prefix(root)}/trees/train.json"
    server.objects[key], server.metadata[key] = b'{"format": 7}', {}
    with pytest.raises(OpsError, match=r"train\.json: it is not the index of a tree that this version"):
        back_up(server, root)


def test_a_file_that_changes_during_the_backup_is_named_and_no_manifest_goes_up(
    server: S3UploadServer, root: Path
) -> None:
    changed = root / "train" / "n1" / "n1_5.JPEG"
    server.after = lambda operation, _: os.utime(changed, (1, 1)) if operation == "put" else None
    with pytest.raises(OpsError) as caught:
        back_up(server, root)
    assert str(caught.value).startswith(f"File {changed}: its name, size or time is another than when the backup began")
    assert not {"train.json", "manifest.json"} & {key.rpartition("/")[2] for key in server.objects}
    server.after = lambda _operation, _key: None
    proved = set(trees(server, root)) & set(SHARDS)
    back_up(server, root)
    assert not proved & set(written(server))
    assert "manifest.json" in written(server)
    assert not server.uploads


def test_a_refused_shard_leaves_no_index(server: S3UploadServer, root: Path) -> None:
    server.fault = lambda _, key: Refusal(403, "AccessDenied") if key.endswith(SHARDS[1]) else None
    with pytest.raises(OpsError, match=f"{SHARDS[1]}: AccessDenied"):
        back_up(server, root)
    assert "train.json" not in trees(server, root)


def test_a_bit_that_is_stored_wrong_is_noticed(server: S3UploadServer, root: Path) -> None:
    server.store = lambda key, content: bytes([content[0] ^ 1]) + content[1:] if key.endswith(SHARDS[3]) else content
    with pytest.raises(
        OpsError, match=f"{SHARDS[3]}: upload verification failed: expected [0-9]+ bytes with CRC32 .*, S3 reports"
    ):
        back_up(server, root)
    assert "train.json" not in trees(server, root)


@pytest.mark.slow_kill
def test_killed_at_seeded_points_and_run_again(
    server: S3UploadServer, backups: backup_once.Backups, tmp_path: Path
) -> None:
    for seed in range(10):
        root = tmp_path / str(seed)
        make_root(root)
        proved = _kill_at(backups, server, root, random.Random(seed).randrange(18))
        back_up(server, root)
        assert is_whole(server, root, tmp_path / "unpacked"), seed
        assert not proved & set(written(server)), seed
        server.objects.clear()


def _kill_at(backups: backup_once.Backups, server: S3UploadServer, root: Path, number: int) -> set[str]:
    """Back up in a process that is killed at its change ``number`` from 0; return which shards are in its journal."""
    count = 0

    def before(operation: str, _key: str) -> Cut | None:
        nonlocal count
        count += operation in ("put", "begin", "part", "complete")
        if count > number:
            backups.kill()
            return Cut(0)
        return None

    server.fault = before
    backups.run(root, server.url, "train")
    server.fault = lambda _operation, _key: None
    journal = root / ".state" / "s3_backup.trees.json"
    return {uri.rpartition("/")[2] for uri in json.loads(journal.read_text())["shards"]} if journal.exists() else set()
