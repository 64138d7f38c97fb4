"""The whole of prepare.yml with S3 on a server that checks digests and credentials, and everything else in the lab."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.config import BRIDGE_ADDRESS
from tests.fakes.swift import ACCESS_KEY, SECRET_KEY, Swift, is_installed
from tests.integration.harness import Lab

BUCKET = "imagenet-ops-strict"
TEARDOWN = ("playbooks/teardown.yml", "-e", "project_removal_confirm=imagenet")
# What OpenStack Swift does not know of a bucket.
UNSUPPORTED = ["encryption", "lifecycle", "ownership", "policy", "public_access", "tags"]


@pytest.fixture
def swift(lab: Lab, tmp_path: Path) -> Iterator[Swift]:
    """Swift on the lab's bridge, where controller and hosts reach it."""
    if not is_installed():
        pytest.skip(".venv-strict-s3 with OpenStack Swift is missing (bin/setup strict-s3 makes it)")
    with Swift(tmp_path / "swift", BRIDGE_ADDRESS) as running:
        yield running
    lab.playbook(*TEARDOWN)


@pytest.fixture
def settings(swift: Swift, tmp_path: Path) -> tuple[str, ...]:
    """The arguments by which a user names that server; the keys lie in a file, as they would in a vault."""
    path = tmp_path / "s3.json"
    variables = {
        "backup_bucket_name": BUCKET,
        "backup_bucket_unsupported": UNSUPPORTED,
        "data_s3_endpoint_url": swift.url,
        "data_s3_addressing_style": "path",
        "data_s3_access_key": ACCESS_KEY,
        "data_s3_secret_key": SECRET_KEY,
        "dataset_backup_endpoint_url": swift.url,  # the lab's inventory names its own for the hosts
    }
    path.write_text(json.dumps(variables))
    return ("-e", f"@{path}")


def contents(swift: Swift) -> dict[str, str]:
    """SHA-256 of every object in the bucket, by key."""
    client = swift.client()
    listed = client.list_objects_v2(Bucket=BUCKET)["Contents"]
    return {
        entry["Key"]: hashlib.sha256(client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()).hexdigest()
        for entry in listed
    }


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Where drills report to."""
    return tmp_path / "reports"


def test_prepare_with_s3_on_the_strict_server(lab: Lab, swift: Swift, settings: tuple[str, ...], reports: Path) -> None:
    """And a restore, a drill, and the teardown that leaves what does not carry our tags."""
    lab.playbook(*TEARDOWN)
    keep = ("-e", "download_host_keep=true")
    wrong = ("-e", "data_s3_secret_key=wrong")
    refused = lab.playbook("playbooks/prepare.yml", *settings, *wrong, expect_success=False, expect_warnings=True)
    assert "SignatureDoesNotMatch" in refused.text
    # amazon.aws warns of each setting of a bucket that the server does not know, also where none is asked for.
    run = lab.playbook("playbooks/prepare.yml", *settings, *keep, expect_warnings=True)
    assert SECRET_KEY not in run.text
    assert f"Bucket {BUCKET} is without {', '.join(UNSUPPORTED)}" in " ".join(run.text.split())
    assert BUCKET not in [bucket["Name"] for bucket in lab.s3().list_buckets()["Buckets"]]
    stored = contents(swift)
    (manifest_key,) = [key for key in stored if key.endswith("/manifest.json")]
    version = stored[manifest_key][:12]
    assert manifest_key == f"imagenet/{version}/manifest.json"
    manifest = json.loads(swift.client().get_object(Bucket=BUCKET, Key=manifest_key)["Body"].read())
    assert {key.removeprefix(f"imagenet/{version}/"): sha256 for key, sha256 in stored.items()} == {
        "manifest.json": stored[manifest_key],
        **named(manifest),
    }
    assert swift.client().get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    assert lab.playbook("playbooks/prepare.yml", *settings, *keep, expect_warnings=True).all_unchanged()
    assert contents(swift) == stored
    records = ("-e", "restore_hosts=gpu", "--limit", "gpu-1", "-e", "dataset_restore_content=records")
    elsewhere = ("-e", "data_mount_path=/srv/strict")
    restored = lab.playbook("playbooks/restore.yml", *settings, *records, *elsewhere)
    assert restored.task_changed("dataset_restore : Restore the data set")
    assert lab.ssh("gpu-1", "sha256sum /srv/strict/imagenet/manifest.json").startswith(version)
    drill = ("-e", "restore_drill_content=records", "-e", f"restore_drill_report_dir={reports}")
    lab.playbook("playbooks/drill.yml", *settings, *drill)
    (report,) = [json.loads(path.read_text()) for path in reports.glob("*-imagenet.json")]
    assert (report["passed"], report["why"], report["dataset_version"]) == (True, "", version)
    torn = " ".join(lab.playbook(*TEARDOWN, *settings, "-e", "project_removal_bucket=true").text.split())
    assert f"{BUCKET} is kept: it was not created for this data set (it lacks one of the tags" in torn
    assert contents(swift) == stored


def named(manifest: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of every file that the manifest names, by path."""
    files = {f"archives/{archive['name']}": archive["sha256"] for archive in manifest["archives"]}
    for split in manifest["splits"].values():
        files |= {f"recordio/{name}": file["sha256"] for name, file in split["files"].items()}
    return {**files, "labels.tsv": manifest["labels"]["sha256"]}
