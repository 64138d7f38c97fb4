from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import ebs_snapshot_wait
import pytest
from ansible.module_utils.testing import patch_module_args
from moto import mock_aws


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    with mock_aws():
        yield boto3.client("ec2", region_name="us-east-1")


def run_module(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"region": "us-east-1", **arguments}), pytest.raises(SystemExit):
        ebs_snapshot_wait.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_snapshot_that_is_complete(ec2: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=8)
    snapshot = ec2.create_snapshot(VolumeId=volume["VolumeId"])["SnapshotId"]
    answer = run_module(capsys, snapshot_ids=[snapshot], state_dir=str(tmp_path / "state"))
    assert (answer["changed"], answer["waited"], answer["size_gib"]) == (False, False, 8)
    assert (tmp_path / "state" / "ebs_snapshot_wait.progress.json").exists()


@pytest.mark.usefixtures("ec2")
def test_a_snapshot_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_module(capsys, snapshot_ids=["snap-0123456789abcdef0"], state_dir=str(tmp_path))
    assert answer["failed"] is True
    assert answer["msg"].startswith("Snapshot snap-0123456789abcdef0: InvalidSnapshot.NotFound: ")
