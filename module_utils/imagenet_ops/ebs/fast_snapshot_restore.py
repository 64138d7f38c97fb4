"""Fast snapshot restore for a snapshot in some zones: enabled, waited for with its credits, and disabled again.

It is billed by the hour, so whoever enables it must not forget it: the zones are written into a tag of the snapshot
before, and any later run finds them there and disables it in them. What somebody else enabled is used and kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Callable, TypedDict

from ansible.module_utils.imagenet_ops.aws.calls import call, call_list, tags_of
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client, Operation
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.polling import Delays, Poll
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.core.results import Difference, difference
from ansible.module_utils.imagenet_ops.ebs.warmup_plan import bucket_size, credits_per_hour

ZONES_TAG = "FastRestoreZones"
ACTIVE_STATES = ("enabling", "optimizing", "enabled")
DELAYS = Delays(first=1.0, growth=1.5, longest=15.0)


class RestoreResult(TypedDict):
    """The result of the module ebs_fast_restore: ``zones`` in which it is on now."""

    changed: bool
    zones: list[str]
    diff: Difference


class FastSnapshotRestore:
    """One snapshot. ``hour_seconds`` is the hour in which credits are earned."""

    def __init__(
        self,
        client: Ec2Client,
        snapshot_id: str,
        hour_seconds: float = 3600.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep what every step needs; ``clock`` tells the time as EC2 does, in seconds since the epoch."""
        self.client = client
        self.snapshot_id = snapshot_id
        self.what = f"Fast snapshot restore of {snapshot_id}"
        self.hour_seconds = hour_seconds
        self.sleep = sleep
        self.clock = clock

    def enabled(
        self, needed: Mapping[str, int], timeout_seconds: float, progress: Progress | None, *, check_mode: bool
    ) -> RestoreResult:
        """Return the module's result when every zone in ``needed`` is enabled and has as many credits.

        Raises OpsError where EC2 refuses, and after ``timeout_seconds``.
        """
        snapshot = self._snapshot()
        ours = tagged_zones(snapshot)
        states = self._states()
        missing = sorted(zone for zone in needed if states.get(zone, {}).get("State") not in ACTIVE_STATES)
        if missing and not check_mode:
            self._enable(missing, sorted({*ours, *missing}))
        if not check_mode:
            self._wait(needed, int(snapshot["VolumeSize"]), timeout_seconds, progress)
        return self._result(bool(missing), states, {*states, *missing})

    def disabled(self, *, check_mode: bool) -> RestoreResult:
        """Return the module's result after the zones that the tag names have it disabled."""
        ours = tagged_zones(self._snapshot())
        states = self._states() if ours else {}
        active = sorted(zone for zone in ours if zone in states)
        if active and not check_mode:
            answer = self._call(
                self.client.disable_fast_snapshot_restores,
                AvailabilityZones=active,
                SourceSnapshotIds=[self.snapshot_id],
            )
            self._check(answer, "disabled, and is billed by the hour")
        if ours and not check_mode:
            self._call(self.client.delete_tags, Resources=[self.snapshot_id], Tags=[{"Key": ZONES_TAG}])
        return self._result(bool(ours), states, set(states) - set(ours))

    def _snapshot(self) -> dict[str, Any]:
        answer = self._call(self.client.describe_snapshots, SnapshotIds=[self.snapshot_id])
        snapshot: dict[str, Any] = answer["Snapshots"][0]
        return snapshot

    def _states(self) -> dict[str, dict[str, Any]]:
        """Return the item of each zone in which it is on, or about to be."""
        filters = [
            {"Name": "snapshot-id", "Values": [self.snapshot_id]},
            {"Name": "state", "Values": list(ACTIVE_STATES)},
        ]
        found = call_list(
            self.client, "describe_fast_snapshot_restores", "FastSnapshotRestores", self.what, Filters=filters
        )
        return {item["AvailabilityZone"]: item for item in found}

    def _enable(self, zones: list[str], ours: list[str]) -> None:
        # The tag comes first: a run that is killed in between leaves a note too many, never a bill.
        tags = [{"Key": ZONES_TAG, "Value": " ".join(ours)}]
        self._call(self.client.create_tags, Resources=[self.snapshot_id], Tags=tags)
        answer = self._call(
            self.client.enable_fast_snapshot_restores,
            AvailabilityZones=zones,
            SourceSnapshotIds=[self.snapshot_id],
        )
        self._check(answer, "enabled")

    def _check(self, answer: dict[str, Any], what: str) -> None:
        for refused in answer.get("Unsuccessful", []):
            for state in refused["FastSnapshotRestoreStateErrors"]:
                error = state["Error"]
                raise OpsError(
                    f"{self.what} in {state['AvailabilityZone']}",
                    f"it was not {what}: {error['Code']}: {error['Message'].rstrip('.')}",
                    "Fix the cause above and rerun, or choose another warm-up strategy",
                )

    def _wait(
        self, needed: Mapping[str, int], size_gib: int, timeout_seconds: float, progress: Progress | None
    ) -> None:
        poll = Poll(DELAYS, self.clock() + timeout_seconds, self.sleep, self.clock)
        total = sum(needed.values())
        if progress is not None:
            progress.start("fast snapshot restore", total, "credits")
        earned = self._credits(needed, size_gib)
        while any(earned[zone] < count for zone, count in needed.items()):
            if not poll.wait():
                raise OpsError(
                    self.what,
                    f"after {timeout_seconds:g} s it does not have the credits for {total} volumes",
                    "Rerun, or choose another warm-up strategy",
                )
            earned = self._credits(needed, size_gib)
            if progress is not None:
                progress.update(int(sum(min(earned[zone], count) for zone, count in needed.items())))
        if progress is not None:
            progress.finish()

    def _credits(self, zones: Iterable[str], size_gib: int) -> dict[str, float]:
        """Return the credits of each zone, calculated from when it was enabled and from the volumes made since.

        EC2 itself shows them in CloudWatch alone, minutes late.
        """
        states = self._states()
        made: dict[str, list[float]] = {}
        filters = [{"Name": "snapshot-id", "Values": [self.snapshot_id]}]
        for volume in call_list(self.client, "describe_volumes", "Volumes", self.what, Filters=filters):
            if volume.get("FastRestored"):
                made.setdefault(volume["AvailabilityZone"], []).append(volume["CreateTime"].timestamp())
        return {
            zone: credits_left(
                states[zone]["EnabledTime"].timestamp(), made.get(zone, []), self.clock(), size_gib, self.hour_seconds
            )
            if states.get(zone, {}).get("State") == "enabled" and isinstance(states[zone].get("EnabledTime"), datetime)
            else 0.0
            for zone in zones
        }

    def _call(self, operation: Operation, **request: Any) -> dict[str, Any]:
        return call(operation, self.what, **request)

    def _result(self, changed: bool, before: Iterable[str], after: Iterable[str]) -> RestoreResult:
        return {
            "changed": changed,
            "zones": sorted(after),
            "diff": difference(
                [f"fast snapshot restore in: {' '.join(sorted(before))}"],
                [f"fast snapshot restore in: {' '.join(sorted(after))}"],
            ),
        }


def tagged_zones(snapshot: dict[str, Any]) -> list[str]:
    """Return the zones in which a run of ours enabled it and none has disabled it since."""
    return tags_of(snapshot).get(ZONES_TAG, "").split()


def credits_left(
    enabled_at: float, made_at: Iterable[float], now: float, size_gib: int, hour_seconds: float = 3600.0
) -> float:
    """Return the credits at time ``now`` of a bucket that was empty at ``enabled_at``; each volume took one."""
    rate, most = credits_per_hour(size_gib) / hour_seconds, float(bucket_size(size_gib))
    left, at = 0.0, enabled_at
    for moment in sorted(moment for moment in made_at if moment >= enabled_at):
        left = max(0.0, min(most, left + (moment - at) * rate) - 1)
        at = moment
    return min(most, left + (now - at) * rate)
