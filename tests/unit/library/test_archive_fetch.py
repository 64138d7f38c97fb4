from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archive_fetch
import boto3
import pytest
from ansible.module_utils.imagenet_ops.download import engine, fetch
from ansible.module_utils.testing import patch_module_args
from moto import mock_aws

from lab.origin import Fault, Origin
from tests.fakes.s3_server import BUCKET
from tests.fakes.s3_upload_server import S3UploadServer

CONTENT = b"an archive" * 1000


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.tar").write_bytes(CONTENT)
    with Origin(tmp_path / "served", username="me", password="sesame") as running:
        yield running


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        archive_fetch.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def arguments(origin: Origin, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "urls": [f"{origin.url}/a.tar"],
        "dest": str(tmp_path / "archives" / "a.tar"),
        "state_dir": str(tmp_path / ".state"),
        "username": "me",
        "password": "sesame",
        **more,
    }


def test_twice(capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path) -> None:
    md5 = hashlib.md5(CONTENT).hexdigest()
    wish = arguments(origin, tmp_path, size_bytes=len(CONTENT), md5=md5.upper(), connections=2)
    first = run_module(capsys, **wish)
    assert (first["changed"], first["md5"], first["downloaded_bytes"]) == (True, md5, len(CONTENT))
    assert (tmp_path / "archives" / "a.tar").read_bytes() == CONTENT
    second = run_module(capsys, **wish)
    assert (second["changed"], second["downloaded_bytes"]) == (False, 0)


def test_check_mode_changes_nothing(capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path) -> None:
    answer = run_module(capsys, **arguments(origin, tmp_path), _ansible_check_mode=True, _ansible_diff=True)
    assert (answer["changed"], answer["downloaded_bytes"]) == (True, len(CONTENT))
    assert answer["diff"]["after"] == "a.tar: 10000 bytes, MD5 not known yet\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served"]


def test_values_that_are_empty_are_none(capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path) -> None:
    origin.credentials = None
    wish = arguments(origin, tmp_path, username="", password="", size_bytes=0, md5="", sha256="")
    assert run_module(capsys, **wish)["changed"] is True
    assert "authorization" not in origin.requests[0].headers


def test_headers_are_sent_as_given(capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path) -> None:
    origin.credentials = "Bearer 123"
    wish = arguments(origin, tmp_path, headers={"Authorization": "Bearer 123", "X-Number": 7})
    del wish["username"], wish["password"]
    assert run_module(capsys, **wish)["changed"] is True
    assert origin.requests[0].headers["x-number"] == "7"


def test_a_deep_check_repairs_what_was_damaged(
    capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fetch, engine):
        monkeypatch.setattr(module, "PIECE_BYTES", 1000)
    wish = arguments(origin, tmp_path, md5=hashlib.md5(CONTENT).hexdigest())
    run_module(capsys, **wish)
    (tmp_path / "archives" / "a.tar").write_bytes(b"A" + CONTENT[1:])
    answer = run_module(capsys, **wish, deep_check=True, _ansible_diff=True)
    assert (answer["changed"], answer["downloaded_bytes"]) == (True, 1000)
    assert answer["diff"]["before"] == "a.tar: damaged, bytes 0-999\n"
    assert (tmp_path / "archives" / "a.tar").read_bytes() == CONTENT
    assert run_module(capsys, **wish, deep_check=True)["changed"] is False


def test_pace_and_quiet_hours(capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "served" / "a.tar").write_bytes(bytes(2_000_000))
    began = time.monotonic()
    assert run_module(capsys, **arguments(origin, tmp_path, bytes_per_second=4_000_000))["changed"] is True
    assert time.monotonic() - began > 0.3
    answer = run_module(capsys, **arguments(origin, tmp_path, quiet_hours="at night"))
    assert answer["msg"].startswith("Option quiet_hours: 'at night' is not a time of day")


def test_a_bucket_as_the_source(
    capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        client = boto3.client("s3", region_name="eu-west-1")
        client.create_bucket(Bucket="datasets", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        client.put_object(Bucket="datasets", Key="imagenet/a.tar", Body=CONTENT)
        wish = {**arguments(origin, tmp_path), "urls": ["s3://datasets/imagenet/a.tar"], "region": "eu-west-1"}
        assert run_module(capsys, **wish)["downloaded_bytes"] == len(CONTENT)
    assert (tmp_path / "archives" / "a.tar").read_bytes() == CONTENT


def test_a_bucket_of_another_server_as_the_source(
    capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    server = S3UploadServer()
    with server:
        server.objects["imagenet/a.tar"], server.metadata["imagenet/a.tar"] = CONTENT, {}
        answer = run_module(
            capsys,
            **{**arguments(origin, tmp_path), "urls": [f"s3://{BUCKET}/imagenet/a.tar"]},
            region="us-east-1",
            endpoint_url=server.url,
            addressing_style="path",
            access_key="user",
            secret_key="geheim",
        )
    assert answer["downloaded_bytes"] == len(CONTENT)
    assert "geheim" not in json.dumps(answer)
    assert (tmp_path / "archives" / "a.tar").read_bytes() == CONTENT


def test_no_secret_is_ever_printed(capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path) -> None:
    url = origin.url.replace("://", "://you:geheim@") + "/a.tar?token=verborgen"
    for faults in ([], [Fault(status=403)], [Fault(redirect="/a.tar")]):
        origin.faults = faults
        wish = arguments(origin, tmp_path, headers={"Cookie": "mellon"}, retries=0)
        answer = json.dumps(run_module(capsys, **{**wish, "urls": [url, wish["urls"][0]]}))
        for secret in ("sesame", "mellon"):
            assert secret not in answer.replace('"password": "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"', "")
        said = json.loads(answer)
        said.pop("invocation", None)
        assert "geheim" not in json.dumps(said)
        assert "verborgen" not in json.dumps(said)


def test_what_failed_is_the_message(capsys: pytest.CaptureFixture[str], origin: Origin, tmp_path: Path) -> None:
    answer = run_module(capsys, **arguments(origin, tmp_path, password="guess"))
    assert answer["failed"] is True
    assert answer["msg"] == (
        f"Download from {origin.url}/a.tar: the server refused the credentials (HTTP 401 Unauthorized): they are wrong"
        " or have expired, or do not cover this file. Check username and password with the publisher of the data set"
        " and run again; what has arrived is kept"
    )


def test_a_password_needs_a_user(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = run_module(capsys, urls=["/x"], dest="/y", state_dir=str(tmp_path), password="sesame")
    assert answer["msg"] == "missing parameter(s) required by 'password': username"
