from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.backup.backup import Backup, BackupPlan, make_plan
from ansible.module_utils.imagenet_ops.backup.upload import MIB
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from moto import mock_aws
from moto.backends import get_backend

from tests.fakes import backup_once
from tests.fakes.s3 import FaultyClient, Killed, refused, write_dataset
from tests.fakes.s3_server import Cut, Refusal
from tests.fakes.s3_upload_server import S3UploadServer
from tests.fakes.seeds import kill_seeds

BUCKET = "imagenet-backup"
KILLS = 20
PART_BYTES = MIB
LARGE = random.Random(1).randbytes(3 * PART_BYTES + 1000)
FILES = {
    "archives/ILSVRC2012_img_val.tar": LARGE,
    "archives/ILSVRC2012_devkit_t12.tar.gz": b"devkit",
    "recordio/train.rec": LARGE[1000 : 2 * PART_BYTES],
    "recordio/train.idx": b"0\t0\n",
    "recordio/train.lst": b"",
    "labels.tsv": b"0\tn01440764\ttench\n",
}


@pytest.fixture(scope="module")
def aws() -> Iterator[Any]:
    """One client for all tests, as making one takes longer than any of them."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        yield boto3.client("s3", region_name="us-east-1")


@pytest.fixture
def client(aws: Any, monkeypatch: pytest.MonkeyPatch) -> FaultyClient:
    # S3 takes no parts below 5 MiB; smaller ones make these tests quicker.
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", PART_BYTES)
    monkeypatch.setattr("ansible.module_utils.imagenet_ops.backup.upload.LEAST_PART_BYTES", PART_BYTES)
    get_backend("s3").reset()
    aws.create_bucket(Bucket=BUCKET)
    return FaultyClient(aws)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".state").mkdir()
    write_dataset(tmp_path, FILES)
    return tmp_path


def back_up(client: FaultyClient, root: Path, *, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    client.calls.clear()
    bucket, plan = Bucket(client, BUCKET), make_plan(str(root))
    settings = {"workers": 4, "part_size_bytes": PART_BYTES, **options}
    return Backup(bucket, plan, str(root / ".state"), **settings).run(check_mode=check_mode)


def stored(client: FaultyClient) -> dict[str, bytes]:
    listing = client.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {entry["Key"]: client.client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in listing}


def expected(root: Path, prefix: str = "") -> dict[str, bytes]:
    content = (root / "manifest.json").read_bytes()
    prefix = prefix or f"imagenet/{hashlib.sha256(content).hexdigest()[:12]}"
    return {f"{prefix}/{path}": content for path, content in {**FILES, "manifest.json": content}.items()}


def unfinished(client: FaultyClient) -> int:
    return len(client.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


def test_everything_is_uploaded_and_the_manifest_last(client: FaultyClient, root: Path) -> None:
    result = back_up(client, root)
    assert stored(client) == expected(root)
    total_bytes = sum(len(content) for content in expected(root).values())
    version = hashlib.sha256((root / "manifest.json").read_bytes()).hexdigest()[:12]
    diff = result.pop("diff")
    assert result == {
        "changed": True,
        "uploaded_objects": 7,
        "uploaded_bytes": total_bytes,
        "present_objects": 0,
        "size_bytes": total_bytes,
        "manifest_uri": f"s3://{BUCKET}/imagenet/{version}/manifest.json",
    }
    assert diff["before"].startswith("0 of 7 objects under s3://")
    assert diff["after"].startswith("7 of 7 objects under s3://")
    writes = [request["Key"] for name, request in client.calls if name.startswith(("put_", "complete_"))]
    assert writes[-1].endswith("/manifest.json")
    assert len(writes) == 7
    assert unfinished(client) == 0
    progress = json.loads((root / ".state" / "s3_backup.progress.json").read_text())
    assert (progress["done"], progress["total"], progress["unit"], progress["finished"]) == (
        total_bytes,
        total_bytes,
        "bytes",
        True,
    )


def test_objects_carry_their_sha256(client: FaultyClient, root: Path) -> None:
    back_up(client, root)
    for key, content in expected(root).items():
        head = client.client.head_object(Bucket=BUCKET, Key=key)
        assert head["Metadata"] == {"sha256": hashlib.sha256(content).hexdigest()}


def test_a_second_run_takes_two_requests(client: FaultyClient, root: Path) -> None:
    back_up(client, root)
    again = back_up(client, root)
    assert (again["changed"], again["uploaded_objects"], again["uploaded_bytes"], again["present_objects"]) == (
        False,
        0,
        0,
        7,
    )
    assert client.names() == ["list_objects_v2", "head_object"]


def test_check_mode_predicts_and_writes_nothing(client: FaultyClient, root: Path) -> None:
    predicted = back_up(client, root, check_mode=True)
    assert stored(client) == {}
    assert set(client.names()) == {"list_objects_v2"}
    assert back_up(client, root) == predicted
    assert back_up(client, root, check_mode=True)["changed"] is False


def test_another_prefix(client: FaultyClient, root: Path) -> None:
    result = back_up(client, root, prefix="/team/imagenet/")
    assert stored(client) == expected(root, "team/imagenet")
    assert result["manifest_uri"] == f"s3://{BUCKET}/team/imagenet/manifest.json"


def test_an_object_is_proved_by_its_checksum_and_not_by_its_size(client: FaultyClient, root: Path) -> None:
    back_up(client, root)
    keys = {key.rsplit("/", 1)[-1]: key for key in expected(root)}
    for name, content in (("manifest.json", None), ("labels.tsv", b"x" * len(FILES["labels.tsv"]))):
        client.client.delete_object(Bucket=BUCKET, Key=keys[name])
        if content is not None:
            client.client.put_object(Bucket=BUCKET, Key=keys[name], Body=content)
    predicted = back_up(client, root, check_mode=True)
    result = back_up(client, root)
    assert stored(client) == expected(root)
    assert (result["uploaded_objects"], result["present_objects"]) == (2, 5)
    assert predicted == result


def test_an_object_overwritten_behind_our_back_is_found_though_size_and_manifest_are_right(
    client: FaultyClient, root: Path
) -> None:
    back_up(client, root)
    key = next(key for key in expected(root) if key.endswith("train.rec"))
    client.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(len(FILES["recordio/train.rec"])))
    predicted = back_up(client, root, check_mode=True)
    result = back_up(client, root)
    assert (predicted["uploaded_objects"], result["uploaded_objects"]) == (1, 1)
    assert stored(client) == expected(root)


def test_without_what_was_kept_each_object_is_asked_for_once(client: FaultyClient, root: Path) -> None:
    back_up(client, root)
    (root / ".state" / "s3_backup.etags.json").unlink()
    assert back_up(client, root)["changed"] is False
    assert sorted(client.names()) == ["head_object"] * 7 + ["list_objects_v2"]
    back_up(client, root)
    assert client.names() == ["list_objects_v2", "head_object"]


def test_read_back_finds_what_every_answer_hides(client: FaultyClient, root: Path) -> None:
    """A store that lies: metadata, size and ETag are right, the bytes are not."""
    back_up(client, root)
    key = next(key for key in expected(root) if key.endswith("train.rec"))
    flipped = bytearray(FILES["recordio/train.rec"])
    flipped[-1] ^= 1
    body: list[bytes] = [bytes(flipped)]

    def lie(operation: str, request: dict[str, Any]) -> None:
        if operation == "get_object" and request["Key"] == key and request["Range"].startswith("bytes=0-"):
            store = client.client.head_object(Bucket=BUCKET, Key=key)
            get_backend("s3")["123456789012"]["aws"].buckets[BUCKET].keys[key].value = body[0]
            get_backend("s3")["123456789012"]["aws"].buckets[BUCKET].keys[key]._etag = store["ETag"].strip('"')

    client.fault = lie
    assert back_up(client, root)["changed"] is False
    body.append(FILES["recordio/train.rec"])
    with pytest.raises(OpsError) as caught:
        back_up(client, root, read_back=True)
    found, wanted = (hashlib.sha256(content).hexdigest() for content in (flipped, body[-1]))
    assert caught.value.what == f"s3://{BUCKET}/{key}"
    assert caught.value.why == f"checksum mismatch when read back: expected SHA-256 {wanted} (manifest), got {found}"
    client.fault = lambda *_: None
    back_up(client, root, read_back=True)
    assert stored(client) == expected(root)
    assert back_up(client, root, read_back=True)["changed"] is False


def test_an_object_that_was_lost_or_cut_after_the_manifest_was_written(client: FaultyClient, root: Path) -> None:
    back_up(client, root)
    keys = {key.rsplit("/", 1)[-1]: key for key in expected(root)}
    client.client.delete_object(Bucket=BUCKET, Key=keys["train.idx"])
    client.client.put_object(Bucket=BUCKET, Key=keys["train.rec"], Body=b"cut")
    assert back_up(client, root)["uploaded_objects"] == 2
    assert stored(client) == expected(root)


def test_archives_that_were_removed_from_the_volume_are_no_matter_once_they_are_in_the_bucket(
    client: FaultyClient, root: Path
) -> None:
    back_up(client, root)
    for archive in (root / "archives").iterdir():
        archive.unlink()
    assert back_up(client, root)["changed"] is False


@pytest.mark.parametrize("seed", kill_seeds(20))
def test_killed_at_any_request_and_run_again(client: FaultyClient, root: Path, seed: int) -> None:
    client.kill_at, client.kill_after_effect = seed, seed % 2 == 0
    try:
        back_up(client, root)
        completed = True
    except Killed:
        completed = False
    assert completed or not any(key.endswith("manifest.json") for key in stored(client)) or seed % 2 == 0
    client.kill_at = -1
    parts_before = [request["PartNumber"] for name, request in client.calls if name == "upload_part"]
    back_up(client, root)
    parts_after = [request["PartNumber"] for name, request in client.calls if name == "upload_part"]
    assert stored(client) == expected(root)
    assert unfinished(client) == 0
    # 4 parts of the archive and 2 of the records; the part in hand when the process ended may have to be sent again.
    assert len(parts_before) + len(parts_after) <= 6 + (not completed)
    assert back_up(client, root)["changed"] is False


def test_other_unfinished_uploads_under_the_prefix_are_aborted(client: FaultyClient, root: Path) -> None:
    keys = list(expected(root))
    for key in (keys[0], keys[0], keys[1], f"{keys[0]}.old", "elsewhere"):
        client.client.create_multipart_upload(Bucket=BUCKET, Key=key)
    back_up(client, root)
    assert stored(client) == expected(root)
    left = client.client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert [upload["Key"] for upload in left] == ["elsewhere"]


def test_parts_of_other_bytes_are_not_kept(client: FaultyClient, root: Path) -> None:
    key = next(iter(expected(root)))
    sha256 = hashlib.sha256(LARGE).hexdigest()
    upload = client.client.create_multipart_upload(
        Bucket=BUCKET, Key=key, Metadata={"sha256": sha256}, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
    )
    (root / ".state" / "s3_backup.uploads.json").write_text(json.dumps({upload["UploadId"]: sha256}))
    for number, content in ((1, bytes(PART_BYTES)), (2, LARGE[PART_BYTES : 2 * PART_BYTES]), (3, b"short")):
        request = {"Bucket": BUCKET, "Key": key, "UploadId": upload["UploadId"], "PartNumber": number}
        client.client.upload_part(Body=content, **request)
    result = back_up(client, root)
    assert stored(client) == expected(root)
    assert result["uploaded_bytes"] == sum(map(len, expected(root).values())) - PART_BYTES


@pytest.mark.parametrize("path", ["archives/ILSVRC2012_img_val.tar", "labels.tsv"])
def test_a_file_that_is_not_what_the_manifest_says_is_not_uploaded(client: FaultyClient, root: Path, path: str) -> None:
    content = bytearray(FILES[path])
    content[-1] ^= 1
    (root / path).write_bytes(content)
    with pytest.raises(OpsError) as caught:
        back_up(client, root)
    assert str(caught.value) == (
        f"File {root}/{path}: checksum mismatch: expected SHA-256 {hashlib.sha256(FILES[path]).hexdigest()} "
        f"(manifest), got {hashlib.sha256(content).hexdigest()}; not uploaded. Recreate the file (playbooks/steps: "
        "fetch for an archive, pack for records) and run again"
    )
    assert not [key for key in stored(client) if key.endswith((path, "manifest.json"))]
    uploads = client.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert not [upload for upload in uploads if upload["Key"].endswith(path)]


def test_a_file_of_another_size_or_none_is_found_before_anything_is_sent(client: FaultyClient, root: Path) -> None:
    (root / "labels.tsv").write_bytes(b"short")
    for check_mode in (True, False):
        with pytest.raises(OpsError, match=r"labels\.tsv: size mismatch: expected 18 bytes \(manifest\), got 5"):
            back_up(client, root, check_mode=check_mode)
    (root / "labels.tsv").unlink()
    with pytest.raises(
        OpsError, match=r"it cannot be read \(No such file or directory\), and the bucket does not have it"
    ):
        back_up(client, root)
    assert stored(client) == {}


def test_a_file_that_cannot_be_read_through(client: FaultyClient, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    getsize = os.path.getsize

    def remove_after_a_look(path: str) -> int:
        size_bytes = getsize(path)
        if path.endswith("labels.tsv"):
            os.unlink(path)
        return size_bytes

    monkeypatch.setattr(os.path, "getsize", remove_after_a_look)
    with pytest.raises(OpsError, match=r"labels\.tsv: it cannot be read \(No such file or directory\)\. Recreate the"):
        back_up(client, root)


def test_another_version_is_never_overwritten(client: FaultyClient, root: Path) -> None:
    back_up(client, root, prefix="fixed")
    before = stored(client)
    (root / "labels.tsv").write_bytes(b"other\n")
    write_dataset(root, {**FILES, "labels.tsv": b"other\n"})
    with pytest.raises(OpsError) as caught:
        back_up(client, root, prefix="fixed")
    assert str(caught.value) == (
        f"s3://{BUCKET}/fixed/manifest.json: it is the manifest of another version of the data set, and a backup is "
        "never overwritten by another. Leave the prefix out, so that each version gets its own, or choose an unused one"
    )
    assert stored(client) == before


def test_a_manifest_written_by_another_run_meanwhile(client: FaultyClient, root: Path) -> None:
    key = f"{next(iter(expected(root))).rsplit('/', 2)[0]}/manifest.json"

    def be_faster(content: bytes) -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        client.client.put_object(Bucket=BUCKET, Key=key, Body=content, Metadata={"sha256": sha256})

    def fault(operation: str, request: dict[str, Any]) -> None:
        if operation == "put_object" and request["Key"] == key:
            be_faster(contents.pop())

    client.fault = fault
    contents = [(root / "manifest.json").read_bytes()]
    back_up(client, root)
    assert stored(client) == expected(root)

    client.client.delete_object(Bucket=BUCKET, Key=key)
    contents = [b"another"]
    with pytest.raises(OpsError, match="it is the manifest of another version"):
        back_up(client, root)


@pytest.mark.parametrize("operation", ["upload_part", "put_object", "complete_multipart_upload"])
def test_expired_credentials_end_the_run_and_the_next_one_goes_on(
    client: FaultyClient, root: Path, operation: str
) -> None:
    def expire(name: str, _: dict[str, Any]) -> None:
        if name == operation:
            raise refused(name, "ExpiredToken", "The provided token has expired.")

    client.fault = expire
    with pytest.raises(OpsError) as caught:
        back_up(client, root)
    assert caught.value.what.startswith(f"s3://{BUCKET}/imagenet/")
    assert caught.value.why == "ExpiredToken: The provided token has expired."[:-1]
    assert caught.value.todo.startswith("Renew the credentials")
    assert not any(key.endswith("manifest.json") for key in stored(client))
    client.fault = lambda *_: None
    back_up(client, root)
    assert stored(client) == expected(root)
    assert unfinished(client) == 0


def test_an_object_that_is_not_stored_as_it_was_sent(
    client: FaultyClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_head = client.client.head_object

    def head(**request: Any) -> Any:
        answer = real_head(**request)
        return {**answer, "ContentLength": answer["ContentLength"] - 1} if "train.idx" in request["Key"] else answer

    monkeypatch.setattr(client.client, "head_object", head)
    with pytest.raises(
        OpsError, match=r"upload verification failed: expected .*, S3 reports [0-9]+ bytes with SHA-256 "
    ):
        back_up(client, root)
    assert not any(key.endswith("manifest.json") for key in stored(client))


def test_a_data_set_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match=f"Manifest {tmp_path}/manifest.json: it cannot be read"):
        make_plan(str(tmp_path))


def test_the_plan_begins_with_the_largest_so_that_none_is_left_for_the_end(root: Path) -> None:
    plan = make_plan(str(root))
    assert isinstance(plan, BackupPlan)
    sizes = [file.size_bytes for file in plan.files]
    assert sizes == sorted(sizes, reverse=True)
    assert {file.path for file in plan.files} == set(FILES)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3UploadServer]:
    """An endpoint on a real socket: each run against it must end in equal bytes or an error naming the object."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setattr("ansible.module_utils.imagenet_ops.backup.upload.LEAST_PART_BYTES", PART_BYTES)
    # botocore waits between its attempts; how long is its own business.
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    running = S3UploadServer()
    with running:
        yield running


def back_up_to(server: S3UploadServer, root: Path) -> None:
    backup_once.back_up(str(root), server.url)


def is_whole(server: S3UploadServer, root: Path) -> bool:
    return server.objects == expected(root) and not server.uploads


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_storms_pass(server: S3UploadServer, root: Path, status: int, code: str) -> None:
    dice = random.Random(status)
    refused: dict[tuple[str, str], int] = {}

    def storm(operation: str, key: str) -> Refusal | None:
        """Refuse four of ten requests, but none more often than a client tries it."""
        refuses = dice.random() < 0.4 and refused.get((operation, key), 0) < 8
        refused[operation, key] = refused.get((operation, key), 0) + 1 if refuses else 0
        return Refusal(status, code) if refuses else None

    server.fault = storm
    back_up_to(server, root)
    assert is_whole(server, root)
    assert len(server.requests) > 20


def test_a_storm_that_does_not_end_names_the_object(server: S3UploadServer, root: Path) -> None:
    server.fault = lambda operation, _: Refusal(503, "SlowDown", "Reduce your rate.") if operation == "part" else None
    with pytest.raises(OpsError) as caught:
        back_up_to(server, root)
    assert caught.value.what.startswith("s3://imagenet-backup/imagenet/")
    assert caught.value.why.startswith("SlowDown: ")
    assert caught.value.todo == "Rerun in a few minutes; completed work is skipped"
    server.fault = lambda *_: None
    back_up_to(server, root)
    assert is_whole(server, root)


def test_connections_cut_inside_a_part(server: S3UploadServer, root: Path) -> None:
    cuts = iter([100_000, 0, 900_000, 1, 500_000])
    server.fault = lambda operation, _: Cut(after) if operation == "part" and (after := next(cuts, None)) else None
    back_up_to(server, root)
    assert next(cuts, None) is None
    assert is_whole(server, root)


def test_a_part_that_is_stored_with_a_flipped_bit(server: S3UploadServer, root: Path) -> None:
    def flip(key: str, content: bytes) -> bytes:
        return bytes([content[0] ^ 1]) + content[1:] if key.endswith("val.tar") else content

    server.store = flip
    with pytest.raises(OpsError) as caught:
        back_up_to(server, root)
    assert caught.value.what.endswith("/archives/ILSVRC2012_img_val.tar")
    assert caught.value.why.startswith("BadDigest: ")
    assert not any(key.endswith(("val.tar", "manifest.json")) for key in server.objects)
    server.store = lambda _key, content: content
    back_up_to(server, root)
    assert is_whole(server, root)


@pytest.mark.parametrize(
    ("status", "code", "todo"),
    [
        (400, "ExpiredToken", "Renew the credentials"),
        (403, "RequestTimeTooSkewed", "Set the clock of this machine"),
        (403, "AccessDenied", "Allow the action"),
    ],
)
def test_a_refusal_under_one_prefix_names_the_object_and_the_next_run_goes_on(
    server: S3UploadServer, root: Path, status: int, code: str, todo: str
) -> None:
    server.fault = lambda operation, key: Refusal(status, code) if operation != "list" and "recordio" in key else None
    with pytest.raises(OpsError) as caught:
        back_up_to(server, root)
    assert "/recordio/train." in caught.value.what
    assert caught.value.why.startswith(f"{code}: ")
    assert caught.value.todo.startswith(todo)
    assert not any(key.endswith("manifest.json") for key in server.objects)
    server.fault = lambda *_: None
    back_up_to(server, root)
    assert is_whole(server, root)


@pytest.mark.slow_kill
def test_killed_at_seeded_points_and_run_again(
    server: S3UploadServer, backups: backup_once.Backups, tmp_path: Path
) -> None:
    """SIGKILL at a request of each run: before it, inside its body, or when it took effect and was not answered."""
    for seed in range(KILLS):
        dice = random.Random(seed)
        root = tmp_path / str(seed)
        (root / ".state").mkdir(parents=True)
        write_dataset(root, FILES)
        _kill_at(backups, server, root, dice.randrange(12), dice.choice(["before", "after"]))
        proved = set(server.objects)
        server.requests.clear()
        server.fault, server.after = (lambda *_: None), (lambda *_: None)
        back_up_to(server, root)
        assert is_whole(server, root), seed
        sent = {key for operation, key in server.requests if operation in ("put", "part", "complete")}
        assert not {key for key in sent & proved if not key.endswith("manifest.json")}, seed
        server.objects.clear()


def _kill_at(backups: backup_once.Backups, server: S3UploadServer, root: Path, number: int, when: str) -> None:
    """Back up in a process that is killed at its change ``number`` from 0."""
    changes = ("put", "begin", "part", "complete")
    count = 0

    def kill(operation: str, _: str) -> None:
        nonlocal count
        count += operation in changes
        if operation in changes and count > number:
            backups.kill()

    def before(operation: str, key: str) -> Cut | None:
        kill(operation, key)
        return None if backups.runs() else Cut(0)

    if when == "before":
        server.fault = before
    else:
        server.after = kill
    backups.run(root, server.url)
