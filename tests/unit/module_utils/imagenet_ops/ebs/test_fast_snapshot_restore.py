from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.ebs.fast_snapshot_restore import FastSnapshotRestore, credits_left
from botocore.exceptions import ClientError

from lab.fast_restore import FastRestores
from lab.rules import ApiError
from tests.fakes.clients import StubEc2

HOUR = 3600.0
SNAPSHOT = "snap-1"


class Ec2(StubEc2):
    """A client whose fast snapshot restore is the lab's; time passes only by `sleep`."""

    def __init__(self, size_gib: int = 128) -> None:
        self.now = 1_700_000_000.0
        self.size_gib = size_gib
        self.restores = FastRestores(10, HOUR, "123456789012", lambda: self.now)
        self.tags: dict[str, str] = {}
        self.volumes: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.die_at = ""
        self.page_results = 1000

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def make_volume(self, zone: str) -> bool:
        restored = self.restores.take_credit(SNAPSHOT, zone)
        made_at = datetime.fromtimestamp(self.now, timezone.utc)
        self.volumes.append({"AvailabilityZone": zone, "FastRestored": restored, "CreateTime": made_at})
        return restored

    def states(self) -> dict[str, str]:
        return {item["AvailabilityZone"]: item["State"] for item in self.restores.items()}

    def describe_snapshots(self, **request: Any) -> dict[str, Any]:
        assert request == {"SnapshotIds": [SNAPSHOT]}
        tags = [{"Key": key, "Value": value} for key, value in self.tags.items()]
        return {"Snapshots": [{"VolumeSize": self.size_gib, "Tags": tags}]}

    def describe_volumes(self, **request: Any) -> dict[str, Any]:
        assert request["Filters"] == [{"Name": "snapshot-id", "Values": [SNAPSHOT]}]
        start = int(request.get("NextToken", 0))
        end = start + self.page_results
        more = {"NextToken": str(end)} if end < len(self.volumes) else {}
        return {"Volumes": self.volumes[start:end], **more}

    def describe_fast_snapshot_restores(self, **request: Any) -> dict[str, Any]:
        wanted = {one["Name"]: one["Values"] for one in request["Filters"]}
        found = [item for item in self.restores.items() if item["SnapshotId"] in wanted["snapshot-id"]]
        return {"FastSnapshotRestores": [item for item in found if item["State"] in wanted["state"]]}

    def enable_fast_snapshot_restores(self, **request: Any) -> dict[str, Any]:
        self._change("enable")
        return self._each(request, lambda zone: self.restores.enable(SNAPSHOT, zone, self.size_gib))

    def disable_fast_snapshot_restores(self, **request: Any) -> dict[str, Any]:
        self._change("disable")
        return self._each(request, lambda zone: self.restores.disable(SNAPSHOT, zone))

    def create_tags(self, **request: Any) -> dict[str, Any]:
        self._change("tag")
        self.tags.update({tag["Key"]: tag["Value"] for tag in request["Tags"]})
        return {}

    def delete_tags(self, **request: Any) -> dict[str, Any]:
        self._change("untag")
        for tag in request["Tags"]:
            del self.tags[tag["Key"]]
        return {}

    def _change(self, name: str) -> None:
        if name == self.die_at:
            raise KeyboardInterrupt
        self.calls.append(name)

    def _each(self, request: dict[str, Any], change: Any) -> dict[str, Any]:
        done, refused = [], []
        for zone in request["AvailabilityZones"]:
            try:
                done.append(change(zone))
            except ApiError as error:  # noqa: PERF203 - each zone is refused alone
                refused.append({"AvailabilityZone": zone, "Error": {"Code": error.code, "Message": error.message}})
        errors = [{"SnapshotId": SNAPSHOT, "FastSnapshotRestoreStateErrors": refused}] if refused else []
        return {"Successful": done, "Unsuccessful": errors}


def restore(ec2: Ec2) -> FastSnapshotRestore:
    return FastSnapshotRestore(ec2, SNAPSHOT, sleep=ec2.sleep, clock=lambda: ec2.now)


def enable(ec2: Ec2, tmp_path: Path, timeout: float = 4 * HOUR, check_mode: bool = False, **needed: int) -> Any:
    progress = Progress(str(tmp_path), "restore")
    return restore(ec2).enabled(needed, timeout, progress, check_mode=check_mode)


def test_on_with_credits_for_every_volume_and_off_again(tmp_path: Path) -> None:
    ec2 = Ec2()
    predicted = enable(ec2, tmp_path, a=3, b=2, check_mode=True)
    assert ec2.calls == []
    made = enable(ec2, tmp_path, a=3, b=2)
    for answer in (predicted, made):
        assert (answer["changed"], answer["zones"]) == (True, ["a", "b"])
    assert ec2.tags == {"FastRestoreZones": "a b"}
    assert [ec2.make_volume(zone) for zone in "aaabb"] == [True] * 5
    again = enable(ec2, tmp_path, a=0)
    assert again["changed"] is False
    assert restore(ec2).disabled(check_mode=True)["changed"] is True
    assert ec2.states() == {"a": "enabled", "b": "enabled"}
    assert restore(ec2).disabled(check_mode=False)["changed"] is True
    assert (ec2.states(), ec2.tags) == ({"a": "disabling", "b": "disabling"}, {})
    assert restore(ec2).disabled(check_mode=False)["changed"] is False


def test_a_second_wave_waits_for_credits_of_its_own(tmp_path: Path) -> None:
    ec2 = Ec2()  # 8 credits an hour, 8 at most
    enable(ec2, tmp_path, a=8)
    assert all(ec2.make_volume("a") for _ in range(8))
    before = ec2.now
    enable(ec2, tmp_path, a=4)
    assert ec2.now - before >= HOUR / 2 - 15
    assert all(ec2.make_volume("a") for _ in range(4))


def test_volumes_on_later_pages_took_credits_too(tmp_path: Path) -> None:
    ec2 = Ec2()
    ec2.page_results = 1
    enable(ec2, tmp_path, a=8)
    assert all(ec2.make_volume("a") for _ in range(8))
    enable(ec2, tmp_path, a=4)
    assert all(ec2.make_volume("a") for _ in range(4))


@pytest.mark.parametrize("where", ["enable", "tag"])
def test_a_killed_run_leaves_nothing_on_that_a_later_one_does_not_find(where: str, tmp_path: Path) -> None:
    ec2 = Ec2()
    ec2.die_at = where
    with pytest.raises(KeyboardInterrupt):
        enable(ec2, tmp_path, a=1)
    ec2.die_at = ""
    assert ("a" in ec2.states()) <= ("FastRestoreZones" in ec2.tags)
    restore(ec2).disabled(check_mode=False)
    assert ec2.tags == {}
    enable(ec2, tmp_path, a=1)
    ec2.die_at = "disable"
    with pytest.raises(KeyboardInterrupt):
        restore(ec2).disabled(check_mode=False)
    ec2.die_at = ""
    restore(ec2).disabled(check_mode=False)
    assert ec2.states() == {"a": "disabling"}


def test_what_somebody_else_enabled_is_used_and_left_on(tmp_path: Path) -> None:
    ec2 = Ec2()
    ec2.restores.enable(SNAPSHOT, "a", ec2.size_gib)
    assert enable(ec2, tmp_path, a=1)["changed"] is False
    assert restore(ec2).disabled(check_mode=False)["changed"] is False
    assert ec2.states() == {"a": "enabled"}


def test_a_refusal_is_an_error_and_so_is_a_timeout(tmp_path: Path) -> None:
    ec2 = Ec2(size_gib=1024)
    with pytest.raises(OpsError) as error:
        enable(ec2, tmp_path, timeout=600, a=1)
    assert str(error.value) == (
        "Fast snapshot restore of snap-1: after 600 s it does not have the credits for 1 volumes. "
        "Rerun, or choose another warm-up strategy"
    )
    other = Ec2()
    for number in range(5):
        other.restores.enable(f"snap-other-{number}", "a", 8)
    with pytest.raises(OpsError) as error:
        enable(other, tmp_path, a=1)
    assert str(error.value) == (
        "Fast snapshot restore of snap-1 in a: it was not enabled: FastSnapshotRestoreLimitExceeded: At most 5 "
        "snapshots of a Region can be enabled for fast snapshot restore. Fix the cause above and rerun, or "
        "choose another warm-up strategy"
    )


def test_the_waiting_for_credits_ends_with_the_credentials(tmp_path: Path) -> None:
    """The tag says that we enabled it, so that the next run goes on, or disables it."""

    class Expiring(Ec2):
        def describe_fast_snapshot_restores(self, **request: Any) -> dict[str, Any]:
            if self.now > 1_700_000_000 + 60:
                raise ClientError({"Error": {"Code": "ExpiredToken", "Message": "It has expired."}}, "Describe")
            return super().describe_fast_snapshot_restores(**request)

    ec2 = Expiring(size_gib=1024)
    with pytest.raises(OpsError, match=r"ExpiredToken.*Renew the credentials .* and rerun; completed work is kept"):
        enable(ec2, tmp_path, a=1)
    assert ec2.tags


def test_credits_are_calculated_as_the_bucket_fills() -> None:
    assert credits_left(0, [], HOUR / 4, 128) == pytest.approx(2)
    assert credits_left(0, [], 10 * HOUR, 128) == 8
    assert credits_left(0, [10 * HOUR] * 3, 10 * HOUR + HOUR / 8, 128) == pytest.approx(6)
    assert credits_left(HOUR, [10.0], HOUR, 128) == 0
