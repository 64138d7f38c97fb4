"""Backup and restore beside a server that checks what moto lets pass: OpenStack Swift with its S3 layer."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket
from ansible.module_utils.imagenet_ops.backup.backup import Backup, make_plan
from ansible.module_utils.imagenet_ops.backup.request import RestoreRequest
from ansible.module_utils.imagenet_ops.backup.restore import Restore
from ansible.module_utils.imagenet_ops.backup.upload import MIB
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.ebs.retention import Retirement
from botocore.exceptions import ClientError

from tests.fakes.clients import StubEc2
from tests.fakes.s3 import write_dataset
from tests.fakes.swift import ACCESS_KEY, Swift, is_installed

BUCKET = "imagenet-backup"
SOURCE = random.Random(1)
FILES = {
    "archives/ILSVRC2012_img_val.tar": SOURCE.randbytes(12 * MIB + 1),  # three parts
    "recordio/train.rec": SOURCE.randbytes(9 * MIB),
    "recordio/train.idx": b"0\t0\n",
    "recordio/train.lst": b"",
    "labels.tsv": b"0\tn01440764\ttench\n",
}


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    if not is_installed():
        pytest.skip(".venv-strict-s3 with OpenStack Swift is missing (bin/setup strict-s3 makes it)")
    with Swift(tmp_path_factory.mktemp("swift")) as running:
        running.client().create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "packed", FILES)
    return tmp_path / "packed"


def back_up(client: Any, root: Path, prefix: str) -> dict[str, Any]:
    (root / ".state").mkdir(exist_ok=True)
    plan, state_dir = make_plan(str(root)), str(root / ".state")
    backup = Backup(Bucket(client, BUCKET), plan, state_dir, prefix=prefix, workers=4, part_size_bytes=5 * MIB)
    return backup.run(check_mode=False)


def restore(client: Any, root: Path, prefix: str) -> dict[str, Any]:
    (root / ".state").mkdir(parents=True, exist_ok=True)
    request = RestoreRequest(str(root), str(root / ".state"), prefix=prefix)
    return Restore(Bucket(client, BUCKET), request).run(check_mode=False)


def test_what_was_backed_up_comes_back(swift: Swift, root: Path, tmp_path: Path) -> None:
    client = swift.client()
    assert back_up(client, root, "whole")["uploaded_objects"] == 6
    assert back_up(client, root, "whole")["changed"] is False
    assert restore(client, tmp_path / "restored", "whole")["restored_files"] == 6
    for path in (*FILES, "manifest.json"):
        assert (tmp_path / "restored" / path).read_bytes() == (root / path).read_bytes()
    assert restore(client, tmp_path / "restored", "whole")["changed"] is False


def test_an_object_that_was_replaced_is_noticed(swift: Swift, root: Path, tmp_path: Path) -> None:
    client = swift.client()
    back_up(client, root, "replaced")
    flipped = bytearray(FILES["recordio/train.rec"])
    flipped[MIB] ^= 1
    client.put_object(Bucket=BUCKET, Key="replaced/recordio/train.rec", Body=bytes(flipped))
    with pytest.raises(
        OpsError, match=rf"s3://{BUCKET}/replaced/recordio/train.rec: checksum mismatch: expected SHA-256"
    ):
        restore(client, tmp_path / "restored", "replaced")


def test_bytes_that_were_damaged_on_the_way_are_refused(swift: Swift) -> None:
    client = swift.client()

    def flip(request: Any, **_: Any) -> None:
        request.body = b"X" + request.body.read()[1:]

    client.meta.events.register("before-send.s3.PutObject", flip)
    with pytest.raises(OpsError, match=rf"s3://{BUCKET}/damaged: (BadDigest|XAmzContentSHA256Mismatch)"):
        Bucket(client, BUCKET).put("damaged", b"bytes", hashlib.sha256(b"bytes").hexdigest(), "hY1RZg==")
    with pytest.raises(ClientError, match="404"):
        client.head_object(Bucket=BUCKET, Key="damaged")


@pytest.mark.parametrize(
    ("access_key", "secret_key", "code"),
    [(ACCESS_KEY, "wrong", "SignatureDoesNotMatch"), ("nobody:here", "wrong", "(AccessDenied|InvalidAccessKeyId|Sig)")],
)
def test_wrong_credentials_are_refused(
    swift: Swift, root: Path, tmp_path: Path, access_key: str, secret_key: str, code: str
) -> None:
    client = swift.client(access_key, secret_key)
    with pytest.raises(OpsError, match=rf"Bucket {BUCKET}: {code}"):
        back_up(client, root, "x")
    with pytest.raises(OpsError, match=rf"Bucket {BUCKET}: {code}"):
        restore(client, tmp_path / "restored", "x")
    assert not any((tmp_path / "restored").glob("*/*"))


class NoEc2(StubEc2):
    """EC2 with nothing of the data set in it."""

    def describe_snapshots(self, **_request: Any) -> dict[str, Any]:
        return {"Snapshots": []}

    def describe_volumes(self, **_request: Any) -> dict[str, Any]:
        return {"Volumes": []}


@pytest.mark.parametrize("versioning", [False, True])
def test_backups_of_old_versions_are_retired(swift: Swift, versioning: bool) -> None:
    client, name = swift.client(), f"retired-{int(versioning)}"
    client.create_bucket(Bucket=name)
    if versioning:
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    old, new = "a" * 12, "b" * 12
    for version in (old, new):
        for path in ("labels.tsv", "labels.tsv", "manifest.json"):
            client.put_object(Bucket=name, Key=f"imagenet/{version}/{path}", Body=b"x")
    tags = {"Project": "imagenet-ops", "Dataset": "imagenet"}

    def retire(*, check_mode: bool = False) -> int:
        done = Retirement(NoEc2(), client, tags, 1, {"backup": 0.02}, name).run(check_mode=check_mode)
        return int(done["removed"])

    assert retire(check_mode=True) == 1
    assert len(client.list_objects_v2(Bucket=name)["Contents"]) == 4
    assert (retire(), retire()) == (1, 0)
    left = client.list_object_versions(Bucket=name)
    assert {entry["Key"] for entry in left.get("Versions", []) + left.get("DeleteMarkers", [])} == {
        f"imagenet/{new}/labels.tsv",
        f"imagenet/{new}/manifest.json",
    }
