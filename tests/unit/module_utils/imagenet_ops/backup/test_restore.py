"""What was backed up comes back, or a clear error names the object; whatever the server and the power do."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.backup import restore
from ansible.module_utils.imagenet_ops.backup.request import RestoreRequest
from ansible.module_utils.imagenet_ops.backup.restore import Restore
from ansible.module_utils.imagenet_ops.core import disk, retry
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.download import engine, ranges
from ansible.module_utils.imagenet_ops.download.verified import find_verified
from botocore.config import Config

from tests.fakes.killed import NEVER, Kills
from tests.fakes.s3 import write_dataset
from tests.fakes.s3_server import BUCKET, Cut, Refusal, S3Server
from tests.fakes.seeds import kill_seeds

KIB = 1024
SOURCE = random.Random(1)
ARCHIVE = "archives/ILSVRC2012_img_val.tar"
FILES = {
    ARCHIVE: SOURCE.randbytes(700 * KIB + 1),
    "recordio/train.rec": SOURCE.randbytes(500 * KIB),
    "recordio/train.idx": b"0\t0\n",
    "recordio/train.lst": b"",
    "labels.tsv": b"0\tn01440764\ttench\n",
}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_SHORTEST_SPAN_BYTES", 64 * KIB)
    monkeypatch.setattr(engine, "_READ_BYTES", 16 * KIB)
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(restore, "_SMALL_BYTES", 64 * KIB)
    monkeypatch.setattr(restore, "_RECORD_INTERVAL_SECONDS", 0.0)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a data set with its manifest, by path."""
    return write_dataset(tmp_path_factory.mktemp("packed"), FILES)


@pytest.fixture
def prefix(content: dict[str, bytes]) -> str:
    return "imagenet/" + hashlib.sha256(content["manifest.json"]).hexdigest()[:12]


@pytest.fixture
def server(content: dict[str, bytes], prefix: str) -> Iterator[S3Server]:
    with S3Server({f"{prefix}/{path}": data for path, data in content.items()}) as running:
        yield running


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    client = boto3.client(
        "s3",
        region_name="us-east-1",
        endpoint_url=server.url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=10),
    )
    return Bucket(client, BUCKET, "123456789012")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "imagenet"


def run(bucket: Bucket, root: Path, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    given = {"dataset": "imagenet", "state_dir": str(root / ".state"), "connections": 4, **options}
    if not check_mode:
        (root / ".state").mkdir(parents=True, exist_ok=True)
    return Restore(bucket, RestoreRequest(root=str(root), **given)).run(check_mode=check_mode)


def found(root: Path) -> dict[str, bytes]:
    """Every file below ``root`` by its path, but for the state."""
    paths = [path for path in root.rglob("*") if path.is_file() and ".state" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def names(server: S3Server) -> list[str]:
    return [key.rsplit("/", 1)[-1] for operation, key in server.requests if operation == "get"]


def test_everything_comes_back_and_a_second_run_reads_nothing(
    bucket: Bucket, server: S3Server, root: Path, content: dict[str, bytes], prefix: str
) -> None:
    result = run(bucket, root)
    assert found(root) == content
    total_bytes = sum(map(len, FILES.values()))
    assert result == {
        "needed_bytes": total_bytes,
        "changed": True,
        "restored_files": 6,
        "restored_bytes": total_bytes,
        "resumed_bytes": 0,
        "present_files": 0,
        "dataset_version": prefix.rsplit("/", 1)[-1],
        "manifest_uri": f"s3://{BUCKET}/{prefix}/manifest.json",
        "diff": {
            "before": f"0 of 6 files under {root}, version {prefix[-12:]}\n",
            "after": f"6 of 6 files under {root}, version {prefix[-12:]}\n",
        },
    }
    progress = json.loads((root / ".state" / "s3_restore.progress.json").read_text())
    assert (progress["done"], progress["total"], progress["finished"]) == (total_bytes, total_bytes, True)
    server.requests.clear()
    again = run(bucket, root)
    assert (again["changed"], again["restored_files"], again["restored_bytes"], again["present_files"]) == (
        False, 0, 0, 5,
    )  # fmt: skip
    assert len(server.requests) == 3
    assert names(server) == ["manifest.json"]


def test_the_manifest_comes_last(bucket: Bucket, server: S3Server, root: Path, prefix: str) -> None:
    del server.objects[f"{prefix}/recordio/train.idx"]
    server.objects[f"{prefix}/recordio/train.idx"] = b"1\t0\n"
    with pytest.raises(OpsError):
        run(bucket, root)
    assert "manifest.json" not in found(root)
    assert "recordio/train.idx" not in found(root)


def test_check_mode_predicts_and_writes_nothing(bucket: Bucket, server: S3Server, root: Path) -> None:
    predicted = run(bucket, root, check_mode=True)
    assert not root.exists()
    assert names(server) == ["manifest.json"]
    assert run(bucket, root) == predicted
    assert run(bucket, root, check_mode=True)["changed"] is False


def test_records_alone(bucket: Bucket, root: Path, content: dict[str, bytes]) -> None:
    result = run(bucket, root, content="records")
    assert found(root) == {path: data for path, data in content.items() if path != ARCHIVE}
    assert result["restored_files"] == 5
    assert run(bucket, root, content="records")["changed"] is False
    assert run(bucket, root)["restored_files"] == 1
    assert found(root) == content


def test_archives_alone_count_as_verified_and_leave_the_manifest_alone(bucket: Bucket, root: Path) -> None:
    (root / ".state").mkdir(parents=True)
    (root / "manifest.json").write_bytes(b"of other settings")
    run(bucket, root, content="archives")
    assert found(root) == {ARCHIVE: FILES[ARCHIVE], "manifest.json": b"of other settings"}
    verified = find_verified(str(root / ".state"), str(root / ARCHIVE))
    assert verified is not None
    assert (verified.md5, verified.sha256) == (
        hashlib.md5(FILES[ARCHIVE]).hexdigest(),
        hashlib.sha256(FILES[ARCHIVE]).hexdigest(),
    )
    assert run(bucket, root, content="archives")["changed"] is False


def test_the_newest_version_is_taken_or_the_one_that_is_asked_for(
    bucket: Bucket, server: S3Server, root: Path, tmp_path: Path, prefix: str
) -> None:
    newer = write_dataset(tmp_path / "newer", {**FILES, "labels.tsv": b"newer\n"})
    version = hashlib.sha256(newer["manifest.json"]).hexdigest()[:12]
    server.objects.update({f"imagenet/{version}/{path}": data for path, data in newer.items()})
    server.objects["imagenet/old/manifest.json"] = b"of another naming"
    run(bucket, root)
    assert found(root) == newer
    with pytest.raises(OpsError) as caught:
        run(bucket, root, dataset_version=prefix[-12:])
    assert str(caught.value) == (
        f"Manifest {root}/manifest.json: it is of version {version}, and version {prefix[-12:]} is to be restored; "
        "nothing was changed. Restore into another folder, or set replace"
    )
    assert found(root) == newer
    run(bucket, root, dataset_version=prefix[-12:], replace=True)
    assert found(root)["labels.tsv"] == FILES["labels.tsv"]
    assert run(bucket, tmp_path / "other", prefix=f"/{prefix}/", dataset="")["dataset_version"] == prefix[-12:]


def test_files_that_are_there_are_hashed_once_and_kept(bucket: Bucket, server: S3Server, root: Path) -> None:
    (root / "archives").mkdir(parents=True)
    (root / ARCHIVE).write_bytes(FILES[ARCHIVE])
    assert run(bucket, root, check_mode=True)["present_files"] == 1
    result = run(bucket, root)
    assert (result["present_files"], result["restored_files"]) == (1, 5)
    assert Path(ARCHIVE).name not in names(server)


@pytest.mark.parametrize(("change", "why"), [(1, "SHA-256"), (-1, "size")])
def test_a_wrong_file_is_left_alone_unless_it_may_be_replaced(
    bucket: Bucket, root: Path, content: dict[str, bytes], change: int, why: str
) -> None:
    run(bucket, root)
    wrong = FILES[ARCHIVE][:-1] + (bytes([FILES[ARCHIVE][-1] ^ 1]) if change > 0 else b"")
    (root / ARCHIVE).write_bytes(wrong)
    with pytest.raises(OpsError) as caught:
        run(bucket, root)
    assert str(caught.value) == (
        f"File {root}/{ARCHIVE}: the existing file differs from the manifest ({why}); it was not changed. Move it away "
        "or set replace, and run again"
    )
    assert (root / ARCHIVE).read_bytes() == wrong
    assert run(bucket, root, replace=True)["restored_files"] == 1
    assert found(root) == content


# A bucket that is not what it should be


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_manifest_without_objects(
    bucket: Bucket, server: S3Server, root: Path, prefix: str, check_mode: bool
) -> None:
    for path in FILES:
        del server.objects[f"{prefix}/{path}"]
    with pytest.raises(OpsError) as caught:
        run(bucket, root, check_mode=check_mode)
    assert str(caught.value).startswith(
        f"s3://{BUCKET}/{prefix}/{ARCHIVE}: the manifest names this object, but it does not exist. Complete"
    )


def test_an_object_of_another_size(bucket: Bucket, server: S3Server, root: Path, prefix: str) -> None:
    server.objects[f"{prefix}/labels.tsv"] = b"cut"
    with pytest.raises(OpsError, match=r"labels\.tsv: size mismatch: expected 18 bytes \(manifest\), got 3\. Complete"):
        run(bucket, root)
    assert names(server) == ["manifest.json"]


@pytest.mark.parametrize("path", [ARCHIVE, "labels.tsv"])
def test_a_flipped_bit(bucket: Bucket, server: S3Server, root: Path, prefix: str, path: str) -> None:
    flipped = bytearray(FILES[path])
    flipped[len(flipped) // 2] ^= 8
    server.objects[f"{prefix}/{path}"] = bytes(flipped)
    with pytest.raises(OpsError) as caught:
        run(bucket, root)
    assert str(caught.value).startswith(
        f"s3://{BUCKET}/{prefix}/{path}: checksum mismatch: expected SHA-256 {hashlib.sha256(FILES[path]).hexdigest()} "
        f"(manifest), got {hashlib.sha256(flipped).hexdigest()}; download discarded. Run again"
    )
    assert [name for name in found(root) if name.startswith(path) or name == "manifest.json"] == []
    server.objects[f"{prefix}/{path}"] = FILES[path]
    run(bucket, root)
    assert found(root)[path] == FILES[path]


def test_no_backup_at_all(bucket: Bucket, server: S3Server, root: Path, prefix: str) -> None:
    with pytest.raises(OpsError, match=f"s3://{BUCKET}/imagenet/000000000000/manifest.json: there is no manifest"):
        run(bucket, root, dataset_version="0" * 12)
    del server.objects[f"{prefix}/manifest.json"]
    with pytest.raises(OpsError, match=f"s3://{BUCKET}/imagenet/: there is no complete backup"):
        run(bucket, root)


def test_a_manifest_of_another_version_than_its_name(
    bucket: Bucket, server: S3Server, root: Path, content: dict[str, bytes], prefix: str
) -> None:
    server.objects[f"{prefix}/manifest.json"] = content["manifest.json"].replace(b'"settings"', b'"settings" ')
    with pytest.raises(OpsError, match=f"it is not the manifest of version {prefix[-12:]}, but of [0-9a-f]{{12}}"):
        run(bucket, root)
    assert found(root) == {}


def test_a_manifest_that_names_files_elsewhere(bucket: Bucket, server: S3Server, root: Path, prefix: str) -> None:
    manifest = json.loads(server.objects[f"{prefix}/manifest.json"])
    manifest["archives"][0]["name"] = "../../outside"
    server.objects["x/manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(OpsError, match=r"it names a file outside of the data set: 'archives/\.\./\.\./outside'"):
        run(bucket, root, prefix="x")


# A server and a network that fail


def test_storms_of_errors_pass(bucket: Bucket, server: S3Server, root: Path, content: dict[str, bytes]) -> None:
    storm = iter(
        random.Random(2).choices([None, None, Refusal(503, "SlowDown"), Refusal(500, "InternalError")], k=10_000)
    )
    server.fault = lambda operation, _key: next(storm) if operation == "get" else None
    run(bucket, root)
    assert found(root) == content


def test_connections_that_are_cut_inside_a_part_go_on(
    bucket: Bucket, server: S3Server, root: Path, content: dict[str, bytes]
) -> None:
    cuts = iter(random.Random(3).choices([None, Cut(0), Cut(1), Cut(20 * KIB), Cut(70 * KIB)], k=10_000))
    server.fault = lambda operation, _key: next(cuts) if operation == "get" else None
    run(bucket, root)
    assert found(root) == content


def test_a_storm_that_does_not_end(
    bucket: Bucket, server: S3Server, root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "_RETRIES", 2)
    server.fault = lambda _operation, key: Refusal(503, "SlowDown", "Less.") if key.endswith("tar") else None
    with pytest.raises(OpsError) as caught:
        run(bucket, root)
    assert str(caught.value) == (
        f"Download from s3://{BUCKET}/{prefix}/{ARCHIVE}: no data received after 2 retries (last error: SlowDown: "
        "Less). Check the network and the server, then rerun: received data is kept"
    )


def test_an_object_that_changes_behind_our_back(
    bucket: Bucket, server: S3Server, root: Path, content: dict[str, bytes], prefix: str
) -> None:
    key, asked = f"{prefix}/{ARCHIVE}", threading.Event()

    def change(_operation: str, requested: str) -> None:
        if requested == key:
            if asked.is_set():
                server.objects[key] = bytes(len(FILES[ARCHIVE]))
            asked.set()

    server.fault = change
    with pytest.raises(OpsError, match=rf"{key}: the object was changed while it was read: its ETag was .* Find out"):
        run(bucket, root)
    assert ARCHIVE not in found(root)
    server.fault = lambda *_: None
    server.objects[key] = FILES[ARCHIVE]
    run(bucket, root)
    assert found(root) == content


def test_an_object_that_goes_behind_our_back(bucket: Bucket, server: S3Server, root: Path, prefix: str) -> None:
    server.fault = lambda _operation, key: Refusal(404, "NoSuchKey") if key.endswith("labels.tsv") else None
    with pytest.raises(OpsError, match=rf"{prefix}/labels.tsv: the object was changed .* and is now none"):
        run(bucket, root)


@pytest.mark.parametrize(
    ("refusal", "why", "todo"),
    [
        (Refusal(400, "ExpiredToken"), "ExpiredToken: No", "Renew the credentials"),
        (Refusal(403, "RequestTimeTooSkewed"), "RequestTimeTooSkewed: No", "Set the clock of this machine"),
        (
            Refusal(403, "AccessDenied"),
            "AccessDenied: No: the bucket does not belong to account 123456789012, or the action is not allowed",
            "Check whose bucket",
        ),
        (Refusal(403, "InvalidObjectState"), "InvalidObjectState: No", "The object is archived: restore it first"),
    ],
)
def test_refusals_name_the_object_and_the_next_run_goes_on(
    bucket: Bucket, server: S3Server, root: Path, content: dict[str, bytes], refusal: Refusal, why: str, todo: str
) -> None:
    given = iter(range(100))
    server.fault = lambda _operation, key: refusal if key.endswith("tar") and next(given) > 1 else None
    with pytest.raises(OpsError) as caught:
        run(bucket, root)
    assert (caught.value.what.rsplit("/", 1)[-1], caught.value.why) == (Path(ARCHIVE).name, why)
    assert caught.value.todo.startswith(todo)
    server.fault = lambda *_: None
    assert run(bucket, root)["resumed_bytes"] > 0
    assert found(root) == content


def test_access_denied_to_the_prefix(bucket: Bucket, server: S3Server, root: Path) -> None:
    server.fault = lambda operation, _key: Refusal(403, "AccessDenied") if operation == "list" else None
    with pytest.raises(OpsError, match=f"Bucket {BUCKET}: AccessDenied"):
        run(bucket, root)


# The disk


def test_space_is_looked_at_before_the_first_byte(
    bucket: Bucket, server: S3Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _path: 1_000_000)
    for check_mode in (True, False):
        with pytest.raises(OpsError, match=r"GiB are needed and 0\.00 GiB are free"):
            run(bucket, root, check_mode=check_mode)
    assert names(server) == ["manifest.json", "manifest.json"]


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    bucket: Bucket, root: Path, content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.pwrite, iter(range(10_000))

    def fill(descriptor: int, data: Any, position: int) -> int:
        if next(written) > 20:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fill)
        with pytest.raises(OpsError, match="there is no space left"):
            run(bucket, root)
    assert run(bucket, root)["resumed_bytes"] > 0
    assert found(root) == content


@pytest.mark.parametrize("is_known", [True, False])
def test_a_journal_that_outlived_its_file_goes(
    bucket: Bucket, root: Path, content: dict[str, bytes], is_known: bool
) -> None:
    """As where the kill came right after the file got its name."""
    run(bucket, root)
    (root / f"{ARCHIVE}.part.json").write_text("{}")
    if not is_known:
        (root / ".state" / "s3_restore.json").unlink()
    assert run(bucket, root)["changed"] is False
    assert found(root) == content


@pytest.fixture(scope="module")
def kills() -> Iterator[Kills]:
    with Kills() as running:
        yield running


@pytest.mark.parametrize("seed", kill_seeds(20))
def test_killed_at_any_change_of_the_disk_and_run_again(
    kills: Kills, server: S3Server, root: Path, content: dict[str, bytes], seed: int
) -> None:
    arguments = {
        "endpoint_url": server.url,
        "bucket": BUCKET,
        "request": {"root": str(root), "state_dir": str(root / ".state"), "dataset": "imagenet", "connections": 4},
    }
    (root / ".state").mkdir(parents=True)
    kill_at = random.Random(seed).randint(1, 140)
    kills.run("restore", arguments, kill_at)
    whole = {path for path, data in found(root).items() if content.get(path) == data}
    assert "manifest.json" not in whole or whole == content.keys()
    server.requests.clear()
    assert kills.run("restore", arguments, NEVER) is not None
    assert found(root) == content
    fetched = {key.split("/", 2)[-1] for operation, key in server.requests if operation == "get"}
    assert fetched & whole <= {"manifest.json"}
    assert kills.run("restore", arguments, NEVER) == 0
