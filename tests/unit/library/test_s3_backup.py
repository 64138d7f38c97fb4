from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3_backup
from ansible.module_utils.imagenet_ops.aws.s3 import s3_client
from ansible.module_utils.testing import patch_module_args
from moto import mock_aws

from tests.fakes.s3 import FaultyClient, write_dataset

FILES = {
    "archives/ILSVRC2012_img_val.tar": bytes(6 << 20),
    "recordio/train.rec": b"records",
    "labels.tsv": b"0\tn01440764\ttench\n",
}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr(s3_backup, "s3_client", lambda *arguments: FaultyClient(s3_client(*arguments)))
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="imagenet-backup")
        yield client


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataset(tmp_path, FILES)
    return tmp_path


def run_module(capsys: pytest.CaptureFixture[str], root: Path, **arguments: Any) -> dict[str, Any]:
    given = {
        "root": str(root),
        "state_dir": str(root / ".state"),
        "bucket": "imagenet-backup",
        "region": "us-east-1",
        "part_size_mib": 5,
        **arguments,
    }
    with patch_module_args(given), pytest.raises(SystemExit):
        s3_backup.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def keys(s3: Any) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket="imagenet-backup").get("Contents", [])]


def test_check_upload_and_again(s3: Any, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted = run_module(capsys, root, _ansible_check_mode=True)
    assert keys(s3) == []
    assert not (root / ".state").exists()
    made = run_module(capsys, root)
    assert len(keys(s3)) == 4
    for answer in (predicted, made):
        assert (answer["changed"], answer["uploaded_objects"], answer["present_objects"]) == (True, 4, 0)
    assert made["manifest_uri"] in [f"s3://imagenet-backup/{key}" for key in keys(s3)]
    again = run_module(capsys, root)
    assert (again["changed"], again["uploaded_objects"], again["uploaded_bytes"], again["present_objects"]) == (
        False,
        0,
        0,
        4,
    )


def test_it_waits_for_another_run_on_this_host(s3: Any, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / ".state").mkdir()
    released: list[int] = []

    def let_go() -> None:
        time.sleep(0.5)
        released.append(len(keys(s3)))
        os.close(lock)

    lock = os.open(root / ".state" / "s3_backup.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    thread = threading.Thread(target=let_go)
    thread.start()
    assert run_module(capsys, root)["changed"] is True
    thread.join()
    assert released == [0]


def test_the_storage_class_and_the_endpoint_are_those_that_were_asked_for(
    s3: Any, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = []

    def client(*arguments: Any) -> FaultyClient:
        endpoints.append(arguments)
        return FaultyClient(s3)

    monkeypatch.setattr(s3_backup, "s3_client", client)
    options = {"endpoint_url": "https://s3.example", "addressing_style": "path", "ca_bundle": "/etc/ca.pem"}
    options |= {"access_key": "AKEXAMPLE", "secret_key": "not-shown", "session_token": "not-shown-either"}
    answer = run_module(capsys, root, storage_class="STANDARD_IA", workers=2, verify="full", **options)
    assert "not-shown" not in json.dumps(answer)
    assert endpoints == [
        ("us-east-1", "https://s3.example", 6, "path", "/etc/ca.pem", ("AKEXAMPLE", "not-shown", "not-shown-either"))
    ]
    classes = {s3.head_object(Bucket="imagenet-backup", Key=key)["StorageClass"] for key in keys(s3)}
    assert classes == {"STANDARD_IA"}


def test_trees_go_up_as_shards_and_are_not_read_again(s3: Any, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train" / "n01440764").mkdir(parents=True)
    for number in range(3):
        (root / "train" / "n01440764" / f"n01440764_{number}.JPEG").write_bytes(bytes(600_000))
    predicted = run_module(capsys, root, trees=["train"], shard_size_mib=1, _ansible_check_mode=True)
    made = run_module(capsys, root, trees=["train"], shard_size_mib=1)
    assert predicted["uploaded_objects"] == made["uploaded_objects"] == 8
    assert predicted["uploaded_bytes"] == made["uploaded_bytes"]
    shards = [f"train-0000{number}-of-00003.tar" for number in range(3)]
    assert [key.rpartition("/")[2] for key in keys(s3) if "/trees/" in key] == [*shards, "train.json"]
    assert run_module(capsys, root, trees=["train"])["changed"] is False


@pytest.mark.parametrize("name", ["", "..", "train/n01440764"])
def test_what_is_not_the_name_of_a_split(root: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    answer = run_module(capsys, root, trees=[name])
    assert answer["msg"] == f"Option trees: {name!r} is not the name of a split. Name folders of the data set"


def test_no_such_bucket(s3: Any, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del s3
    answer = run_module(capsys, root, bucket="imagenet-none")
    assert answer["failed"] is True
    assert answer["msg"] == (
        "Bucket imagenet-none: NoSuchBucket: The specified bucket does not exist. "
        "Create the bucket (playbooks/prepare.yml does) or correct its name and Region"
    )


def test_no_credentials(
    s3: Any, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del s3
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    answer = run_module(capsys, root)
    assert answer["msg"].startswith("Bucket imagenet-backup: NoCredentialsError: Unable to locate credentials. Give")


def test_a_data_set_that_is_not_packed(s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module(capsys, tmp_path)["msg"].startswith(f"Manifest {tmp_path}/manifest.json: it cannot be read")
    assert keys(s3) == []
