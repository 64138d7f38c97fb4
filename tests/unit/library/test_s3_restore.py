from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_restore
from ansible.module_utils.testing import patch_module_args

from tests.fakes.certificates import make_authority
from tests.fakes.s3 import write_dataset
from tests.fakes.s3_server import BUCKET, S3Server

FILES = {
    "archives/ILSVRC2012_img_val.tar": bytes(9 << 20),
    "recordio/train.rec": b"records",
    "labels.tsv": b"0\tn01440764\ttench\n",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    content = write_dataset(tmp_path / "packed", FILES)
    version = hashlib.sha256(content["manifest.json"]).hexdigest()[:12]
    with S3Server({f"imagenet/{version}/{path}": data for path, data in content.items()}) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "imagenet"


def run_module(capsys: pytest.CaptureFixture[str], server: S3Server, root: Path, **arguments: Any) -> dict[str, Any]:
    given = {
        "root": str(root),
        "state_dir": str(root / ".state"),
        "bucket": BUCKET,
        "dataset": "imagenet",
        "region": "us-east-1",
        "endpoint_url": server.url,
        **arguments,
    }
    with patch_module_args(given), pytest.raises(SystemExit):
        s3_restore.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_check_restore_and_again(server: S3Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted = run_module(capsys, server, root, _ansible_check_mode=True)
    assert not root.exists()
    made = run_module(capsys, server, root)
    for answer in (predicted, made):
        assert (answer["changed"], answer["restored_files"], answer["present_files"]) == (True, 4, 0)
        assert answer["restored_bytes"] == sum(map(len, FILES.values()))
    for path, content in FILES.items():
        assert (root / path).read_bytes() == content
    assert hashlib.sha256((root / "manifest.json").read_bytes()).hexdigest()[:12] == made["dataset_version"]
    again = run_module(capsys, server, root, _ansible_check_mode=True)
    assert (again["changed"], again["restored_files"], again["restored_bytes"]) == (False, 0, 0)
    assert run_module(capsys, server, root)["changed"] is False


def test_records_alone_from_a_server_with_an_authority_of_its_own(
    server: S3Server, root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # between the attempts of botocore
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    ours, chain = make_authority(tmp_path, "ours")
    others, _ = make_authority(tmp_path, "others")
    server.encrypt(chain)
    options = {"content": "records", "addressing_style": "path"}
    for given in ({}, {"ca_bundle": str(others)}):
        answer = run_module(capsys, server, root, **options, **given)
        assert answer["failed"] is True
        assert answer["msg"].startswith("Bucket imagenet-backup: SSLError: SSL validation failed for https://127.0.0.1")
        assert answer["msg"].endswith(
            "Check the certificate of the endpoint. If its authority is your own, set the file with the "
            "authority's certificate (data_s3_ca_bundle for S3, else AWS_CA_BUNDLE)"
        )
    answer = run_module(capsys, server, root, **options, ca_bundle=str(ours))
    assert answer["restored_files"] == 3
    assert not (root / "archives").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file or directory"), ("no certificate", "[X509: NO_CERTIFICATE_OR_CRL_FOUND] no certificate")],
)
def test_a_file_without_certificates_is_named(
    server: S3Server, root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, why: str
) -> None:
    if content is not None:
        (tmp_path / "x.pem").write_text(content)
    answer = run_module(capsys, server, root, ca_bundle=str(tmp_path / "x.pem"))
    assert answer["msg"].startswith(f"Certificates in {tmp_path}/x.pem: they cannot be read ({why}")
    assert server.requests == []


def test_it_waits_for_another_run_on_this_host(
    server: S3Server, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / ".state").mkdir(parents=True)
    released: list[int] = []

    def let_go() -> None:
        time.sleep(0.5)
        released.append(len(server.requests))
        os.close(lock)

    lock = os.open(root / ".state" / "s3_restore.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    thread = threading.Thread(target=let_go)
    thread.start()
    assert run_module(capsys, server, root)["changed"] is True
    thread.join()
    assert released == [0]


def test_it_must_be_said_what_to_restore(server: S3Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, server, root, dataset="")
    assert answer["failed"] is True
    assert answer["msg"] == "Option dataset: neither it nor prefix says what to restore. Name the data set"


def test_an_error_names_the_object(server: S3Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = next(key for key in server.objects if key.endswith("labels.tsv"))
    del server.objects[key]
    answer = run_module(capsys, server, root)
    assert answer["failed"] is True
    assert answer["msg"].startswith(
        f"s3://{BUCKET}/{key}: the manifest names this object, but it does not exist. Complete"
    )


@pytest.mark.parametrize("split", ["", "..", "a/b"])
def test_a_tree_must_be_named_by_its_split(
    server: S3Server, root: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    answer = run_module(capsys, server, root, trees=[split])
    assert answer["failed"] is True
    assert answer["msg"] == f"Option trees: {split!r} is not the name of a split. Name splits of the data set"


def test_a_tree_that_the_backup_has_not(server: S3Server, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, server, root, trees=["train"])
    assert answer["failed"] is True
    assert (
        "/trees/train.json: there is no such index, so the backup has no complete tree of train. Back" in answer["msg"]
    )
