"""EBS snapshots: found by their tags, and waited for so that people see how far they are, for they take hours."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.module_utils.imagenet_ops.aws.calls import call_list, tags_of
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client
from ansible.module_utils.imagenet_ops.aws.errors import explain, sdk_errors
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.polling import Delays, Poll
from ansible.module_utils.imagenet_ops.core.progress import Progress

# DescribeSnapshots gives so many at a time at most (EC2 API reference).
PAGE_RESULTS = 1000
# A first snapshot takes hours: a lost network or a restarted proxy must not end the waiting for it.
UNREACHABLE_SECONDS_MAX = 900.0


def find_snapshots(client: Ec2Client, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the snapshots that fit ``filters`` (a value or a list of values by name), the newest last.

    Each has ``snapshot_id``, ``state``, ``progress``, ``volume_size`` (GiB),
    ``full_snapshot_size_in_bytes`` (of the data, 0 where AWS does not say), ``start_time`` (ISO 8601) and ``tags``.
    Raises OpsError where EC2 refuses.
    """
    wanted = [
        {"Name": name, "Values": [str(value) for value in (values if isinstance(values, list) else [values])]}
        for name, values in filters.items()
    ]
    operation = "describe_snapshots"
    request: dict[str, Any] = {"Filters": wanted, "MaxResults": PAGE_RESULTS}
    found = call_list(client, operation, "Snapshots", f"EC2 {operation}", **request)
    return [
        {
            "snapshot_id": snapshot["SnapshotId"],
            "state": snapshot["State"],
            "progress": snapshot.get("Progress") or "",
            "volume_size": snapshot["VolumeSize"],
            "full_snapshot_size_in_bytes": snapshot.get("FullSnapshotSizeInBytes") or 0,
            "start_time": snapshot["StartTime"].isoformat(),
            "tags": tags_of(snapshot),
        }
        for snapshot in sorted(found, key=lambda snapshot: snapshot["StartTime"])
    ]


class SnapshotWait:
    """Looks at snapshots every ``poll_seconds`` until all are complete, for ``timeout_seconds`` at most."""

    def __init__(
        self,
        client: Ec2Client,
        poll_seconds: float,
        timeout_seconds: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep what the looks need."""
        self.client = client
        self.delays = Delays(poll_seconds)
        self.timeout_seconds = timeout_seconds
        self.sleep = sleep
        self.clock = clock

    def wait(self, snapshot_ids: Sequence[str], progress: Progress) -> dict[str, Any]:
        """Return the result of the module ebs_snapshot_wait, once all are complete.

        Raises OpsError where a snapshot failed or does not exist, where time is over, or where EC2 refuses to say.
        """
        poll = Poll(self.delays, self.clock() + self.timeout_seconds, self.sleep, self.clock)
        found = self._look(snapshot_ids, give_up_at=self.clock())
        last_look = self.clock()
        total_gib = sum(snapshot["VolumeSize"] for snapshot in found)
        progress.start(f"snapshot {' '.join(snapshot_ids)}", total_gib, "GiB", done=done_gib(found))
        waited = not all_complete(found)
        while not all_complete(found):
            if not poll.wait():
                raise OpsError(
                    f"Snapshot {' '.join(snapshot_ids)}",
                    f"it is not complete after {self.timeout_seconds:g} s ({done_gib(found)} of {total_gib} GiB)",
                    "It goes on by itself: run again, or allow more time",
                )
            found = self._look(snapshot_ids, give_up_at=last_look + UNREACHABLE_SECONDS_MAX)
            progress.update(done_gib(found))
            last_look = self.clock()
        progress.finish()
        return {"changed": False, "waited": waited, "size_gib": total_gib}

    def _look(self, snapshot_ids: Sequence[str], give_up_at: float) -> list[dict[str, Any]]:
        """Return the snapshots as they are now, and keep trying until ``give_up_at`` where EC2 does not answer."""
        poll = Poll(self.delays, give_up_at, self.sleep, self.clock)
        while True:
            try:
                found: list[dict[str, Any]] = self.client.describe_snapshots(SnapshotIds=list(snapshot_ids))[
                    "Snapshots"
                ]
            except sdk_errors() as error:
                if poll.wait():
                    continue
                raise explain(error, f"Snapshot {' '.join(snapshot_ids)}") from error
            for snapshot in found:
                check_state(snapshot)
            return found


def all_complete(snapshots: Sequence[dict[str, Any]]) -> bool:
    """Say whether each of ``snapshots`` is complete."""
    return all(snapshot["State"] == "completed" for snapshot in snapshots)


def done_gib(snapshots: Sequence[dict[str, Any]]) -> int:
    """Return how much of the volumes is in the snapshots, by their ``Progress`` ("37%", empty at the beginning)."""
    return sum(
        snapshot["VolumeSize"] * int((snapshot.get("Progress") or "0").rstrip("%") or 0) // 100
        for snapshot in snapshots
    )


def check_state(snapshot: dict[str, Any]) -> None:
    """Raise OpsError where ``snapshot`` will never be complete."""
    if snapshot["State"] not in ("pending", "completed"):
        raise OpsError(
            f"Snapshot {snapshot['SnapshotId']}",
            f"it is in state {snapshot['State']}: {snapshot.get('StateMessage') or 'AWS gives no reason'}",
            "Delete it and run playbooks/steps/snapshot.yml again",
        )
