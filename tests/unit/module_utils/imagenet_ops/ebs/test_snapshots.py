from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.ebs.snapshots import (
    UNREACHABLE_SECONDS_MAX,
    SnapshotWait,
    done_gib,
    find_snapshots,
    result,
)
from botocore.exceptions import EndpointConnectionError

from tests.fakes.clients import StubEc2
from tests.fakes.ec2 import refused

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class FakeSnapshots(StubEc2):
    """Snapshots that grow by a percent in a minute; time passes only by sleeping."""

    def __init__(self, sizes_gib: dict[str, int]) -> None:
        self.sizes_gib = sizes_gib
        self.now = 0.0
        self.state = ""
        self.errors: list[Exception] = []
        self.seen: list[dict[str, Any]] = []
        self.progress_path = Path()

    def describe_snapshots(self, **request: Any) -> dict[str, Any]:
        if self.errors:
            raise self.errors.pop(0)
        percent = min(100, int(self.now / 60))
        state = self.state or ("completed" if percent == 100 else "pending")
        one = {"State": state, "StateMessage": "Given key ID is not accessible"}
        progress = f"{percent}%" if percent else ""
        return {
            "Snapshots": [
                {
                    **one,
                    "SnapshotId": name,
                    "VolumeSize": self.sizes_gib[name],
                    "Progress": progress,
                    "StartTime": START,
                }
                for name in request["SnapshotIds"]
            ]
        }

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.progress_path.exists():
            self.seen.append(json.loads(self.progress_path.read_text()))

    def wait(self, folder: Path, timeout_seconds: float = 86400) -> list[str]:
        """Return the states of the snapshots in the end."""
        progress = Progress(str(folder), "ebs_snapshot_info", interval_seconds=0)
        self.progress_path = Path(progress.path)
        waiting = SnapshotWait(self, 15, timeout_seconds, self.sleep, lambda: self.now)
        found = self.describe_snapshots(SnapshotIds=list(self.sizes_gib))["Snapshots"]
        return [snapshot["State"] for snapshot in waiting.wait(found, progress)]


def test_progress_is_told_until_all_are_complete(tmp_path: Path) -> None:
    snapshots = FakeSnapshots({"snap-1": 1000, "snap-2": 60})
    assert snapshots.wait(tmp_path) == ["completed", "completed"]
    assert 6000 <= snapshots.now <= 6015
    done = [seen["done"] for seen in snapshots.seen]
    assert done == sorted(done)
    assert {0, 10, 530, 1049} <= set(done)
    last = json.loads(snapshots.progress_path.read_text())
    assert (last["done"], last["total"], last["unit"], last["finished"]) == (1060, 1060, "GiB", True)
    assert last["stage"] == "snapshot snap-1 snap-2"


def test_one_that_is_complete_already_is_not_waited_for(tmp_path: Path) -> None:
    snapshots = FakeSnapshots({"snap-1": 8})
    snapshots.state = "completed"
    assert snapshots.wait(tmp_path) == ["completed"]
    assert snapshots.now == 0


def test_one_that_failed_tells_why(tmp_path: Path) -> None:
    snapshots = FakeSnapshots({"snap-1": 8})
    snapshots.state = "error"
    with pytest.raises(OpsError) as caught:
        snapshots.wait(tmp_path)
    assert str(caught.value) == (
        "Snapshot snap-1: it is in state error: Given key ID is not accessible. Delete it and rerun "
        "playbooks/steps/snapshot.yml"
    )


def test_time_that_is_over(tmp_path: Path) -> None:
    snapshots = FakeSnapshots({"snap-1": 200})
    with pytest.raises(OpsError) as caught:
        snapshots.wait(tmp_path, timeout_seconds=600)
    assert str(caught.value) == (
        "Snapshot snap-1: it is not complete after 600 s (20 of 200 GiB). It continues in the background: rerun, or "
        "allow more time"
    )


def test_a_lost_network_is_borne_for_a_while(tmp_path: Path) -> None:
    lost = EndpointConnectionError(endpoint_url="https://ec2.us-east-1.amazonaws.com")
    snapshots = FakeSnapshots({"snap-1": 8})
    sleep = snapshots.sleep

    def lose_network(seconds: float) -> None:
        sleep(seconds)
        if snapshots.now == 1500:
            snapshots.errors = [lost] * 50

    snapshots.sleep = lose_network  # type: ignore[method-assign]
    assert snapshots.wait(tmp_path) == ["completed"]

    snapshots.now, snapshots.errors = 0.0, []

    def lose_it_for_good(seconds: float) -> None:
        sleep(seconds)
        if snapshots.now == 1500:
            snapshots.errors = [lost] * 500

    snapshots.sleep = lose_it_for_good  # type: ignore[method-assign]
    with pytest.raises(
        OpsError, match=r"Snapshot snap-1: EndpointConnectionError: Could not connect .* Check the network"
    ):
        snapshots.wait(tmp_path)
    assert snapshots.now == 1500 - 15 + UNREACHABLE_SECONDS_MAX


@pytest.mark.parametrize(
    ("code", "todo"), [("ExpiredToken", "Renew the credentials"), ("UnauthorizedOperation", "Allow the action")]
)
def test_what_does_not_pass_by_itself_is_not_tried_again(tmp_path: Path, code: str, todo: str) -> None:
    snapshots = FakeSnapshots({"snap-1": 8})
    sleep = snapshots.sleep

    def refuse_later(seconds: float) -> None:
        sleep(seconds)
        if snapshots.now == 1500:
            snapshots.errors = [refused("DescribeSnapshots", code, "No.")] * 500

    snapshots.sleep = refuse_later  # type: ignore[method-assign]
    with pytest.raises(OpsError, match=rf"Snapshot snap-1: {code}: No\. {todo}"):
        snapshots.wait(tmp_path)
    assert snapshots.now == 1500


def test_one_that_is_complete_is_neither_waited_for_nor_left_out(tmp_path: Path) -> None:
    snapshots = FakeSnapshots({"snap-1": 8})
    progress = Progress(str(tmp_path), "ebs_snapshot_info", interval_seconds=0)
    snapshots.progress_path = Path(progress.path)
    complete = {"SnapshotId": "snap-0", "State": "completed", "VolumeSize": 500}
    (pending,) = snapshots.describe_snapshots(SnapshotIds=["snap-1"])["Snapshots"]
    waiting = SnapshotWait(snapshots, 15, 86400, snapshots.sleep, lambda: snapshots.now)
    found = waiting.wait([pending, complete], progress)
    assert [snapshot["SnapshotId"] for snapshot in found] == ["snap-0", "snap-1"]
    assert json.loads(Path(progress.path).read_text())["total"] == 8


class Pages(StubEc2):
    """Three snapshots in two pages, not in the order of their age."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def describe_snapshots(self, **request: Any) -> dict[str, Any]:
        self.requests.append(request)
        made = {"snap-1": 3, "snap-2": 1, "snap-3": 2}
        shown = ["snap-3"] if "NextToken" in request else ["snap-1", "snap-2"]
        return {
            "Snapshots": [
                {
                    "SnapshotId": name,
                    "State": "pending",
                    "VolumeSize": 8,
                    "StartTime": datetime(2026, 1, made[name], tzinfo=timezone.utc),
                    "Tags": [{"Key": "Role", "Value": "snapshot"}],
                }
                for name in shown
            ],
            "NextToken": "" if "NextToken" in request else "more",
        }


def test_snapshots_are_found_by_filters_the_newest_last() -> None:
    pages = Pages()
    found = result(find_snapshots(pages, {"tag:Role": ["snapshot", "deploy_snapshot"], "status": "pending"}))[
        "snapshots"
    ]
    assert [one["snapshot_id"] for one in found] == ["snap-2", "snap-3", "snap-1"]
    assert found[0] == {
        "snapshot_id": "snap-2",
        "state": "pending",
        "progress": "",
        "volume_size": 8,
        "full_snapshot_size_in_bytes": 0,
        "start_time": "2026-01-01T00:00:00+00:00",
        "tags": {"Role": "snapshot"},
    }
    assert all(request["RestorableByUserIds"] == ["self"] for request in pages.requests)
    assert pages.requests[0]["Filters"] == [
        {"Name": "tag:Role", "Values": ["snapshot", "deploy_snapshot"]},
        {"Name": "status", "Values": ["pending"]},
    ]


def test_a_search_that_is_refused() -> None:
    snapshots = FakeSnapshots({})
    snapshots.errors = [refused("DescribeSnapshots", "UnauthorizedOperation", "You may not.")]
    with pytest.raises(
        OpsError, match=r"EC2 describe_snapshots: UnauthorizedOperation: You may not\. Allow the action"
    ):
        find_snapshots(snapshots, {})


def test_progress_in_the_forms_that_aws_gives() -> None:
    assert done_gib([{"VolumeSize": 200, "Progress": text} for text in ("", "0%", "50%", "99%", "100%")]) == 498
    assert done_gib([{"VolumeSize": 200}]) == 0
