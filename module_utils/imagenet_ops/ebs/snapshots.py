"""EBS snapshots: found by their tags, and waited for so that people see how far they are, for they take hours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, TypedDict

from ansible.module_utils.imagenet_ops.aws.calls import RESTORABLE, call_list, tags_of
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client
from ansible.module_utils.imagenet_ops.aws.errors import explain, is_transient, sdk_errors
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.polling import Delays, Poll
from ansible.module_utils.imagenet_ops.core.progress import Progress

# DescribeSnapshots gives so many at a time at most (EC2 API reference).
PAGE_RESULTS = 1000
# A first snapshot takes hours: a lost network or a restarted proxy must not end the waiting for it.
UNREACHABLE_SECONDS_MAX = 900.0
# EC2 is eventually consistent: a snapshot that was just started may be missing from what it lists for so long.
LISTED_SECONDS_MAX = 60.0
LISTED_POLL_SECONDS = 3.0


class SnapshotInfo(TypedDict):
    """A snapshot: ``volume_size`` in GiB, ``full_snapshot_size_in_bytes`` 0 if AWS does not report it, times in ISO."""

    snapshot_id: str
    state: str
    progress: str
    volume_size: int
    full_snapshot_size_in_bytes: int
    start_time: str
    tags: dict[str, str]


class SnapshotsResult(TypedDict):
    """The result of the module ebs_snapshot_info."""

    changed: bool
    snapshots: list[SnapshotInfo]
    waited: bool


def find_snapshots(client: Ec2Client, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the snapshots that fit ``filters`` (a value or a list of values by name), as EC2 describes them.

    Raises OpsError if EC2 refuses.
    """
    wanted = [
        {"Name": name, "Values": [str(value) for value in (values if isinstance(values, list) else [values])]}
        for name, values in filters.items()
    ]
    operation = "describe_snapshots"
    request: dict[str, Any] = {"Filters": wanted, "MaxResults": PAGE_RESULTS, **RESTORABLE}
    return list(call_list(client, operation, "Snapshots", f"EC2 {operation}", **request))


def find_started(
    client: Ec2Client,
    filters: Mapping[str, Any],
    roles: Iterable[str],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Return what `find_snapshots` does, once there is a snapshot with each of ``roles`` as its tag Role.

    Raises OpsError where EC2 lists none with one of them for a minute, and where it refuses.
    """
    poll = Poll(Delays(LISTED_POLL_SECONDS), clock() + LISTED_SECONDS_MAX, sleep, clock)
    while True:
        found = find_snapshots(client, filters)
        missing = sorted(set(roles) - {tags_of(snapshot).get("Role", "") for snapshot in found})
        if not missing:
            return found
        if not poll.wait():
            raise OpsError(
                f"Snapshots with Role {' and '.join(missing)}",
                f"EC2 has not listed any of these settings for {LISTED_SECONDS_MAX:g} s",
                "Run playbooks/prepare.yml again: it starts the snapshots that are missing",
            )


def result(snapshots: Iterable[dict[str, Any]], *, waited: bool = False) -> SnapshotsResult:
    """Return the module's result: ``snapshots``, as EC2 described them, the newest last."""
    ordered = sorted(snapshots, key=lambda snapshot: snapshot["StartTime"])
    return {"changed": False, "snapshots": [_info(snapshot) for snapshot in ordered], "waited": waited}


def _info(snapshot: dict[str, Any]) -> SnapshotInfo:
    return {
        "snapshot_id": snapshot["SnapshotId"],
        "state": snapshot["State"],
        "progress": snapshot.get("Progress") or "",
        "volume_size": snapshot["VolumeSize"],
        "full_snapshot_size_in_bytes": snapshot.get("FullSnapshotSizeInBytes") or 0,
        "start_time": snapshot["StartTime"].isoformat(),
        "tags": tags_of(snapshot),
    }


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

    def wait(self, found: list[dict[str, Any]], progress: Progress) -> list[dict[str, Any]]:
        """Return the snapshots ``found`` (as EC2 described them) as they are once all are complete.

        Raises OpsError if a snapshot failed or was deleted, after the timeout, and if EC2 refuses.
        """
        check_states(found)
        complete = [snapshot for snapshot in found if is_complete(snapshot)]
        pending = [snapshot for snapshot in found if not is_complete(snapshot)]
        ids = [snapshot["SnapshotId"] for snapshot in pending]
        total_gib = sum(snapshot["VolumeSize"] for snapshot in pending)
        last_look = self.clock()
        poll = Poll(self.delays, last_look + self.timeout_seconds, self.sleep, self.clock)
        progress.start(f"snapshot {' '.join(ids)}", total_gib, "GiB", done=done_gib(pending))
        while not all(map(is_complete, pending)):
            if not poll.wait():
                raise OpsError(
                    f"Snapshot {' '.join(ids)}",
                    f"it is not complete after {self.timeout_seconds:g} s ({done_gib(pending)} of {total_gib} GiB)",
                    "It continues in the background: rerun, or allow more time",
                )
            pending = self._look(ids, give_up_at=last_look + UNREACHABLE_SECONDS_MAX)
            check_states(pending)
            progress.update(done_gib(pending))
            last_look = self.clock()
        progress.finish()
        return [*complete, *pending]

    def _look(self, snapshot_ids: Sequence[str], give_up_at: float) -> list[dict[str, Any]]:
        """Return the snapshots as they are now; what may pass is tried again until ``give_up_at``."""
        poll = Poll(self.delays, give_up_at, self.sleep, self.clock)
        while True:
            try:
                answer = self.client.describe_snapshots(SnapshotIds=list(snapshot_ids))
            except sdk_errors() as error:
                if is_transient(error) and poll.wait():
                    continue
                raise explain(error, f"Snapshot {' '.join(snapshot_ids)}") from error
            found: list[dict[str, Any]] = answer["Snapshots"]
            return found


def is_complete(snapshot: dict[str, Any]) -> bool:
    """Say whether volumes can be made of ``snapshot``."""
    return bool(snapshot["State"] == "completed")


def done_gib(snapshots: Iterable[dict[str, Any]]) -> int:
    """Return how much of the volumes is in the snapshots, by their ``Progress`` ("37%", empty at the beginning)."""
    return sum(
        snapshot["VolumeSize"] * int((snapshot.get("Progress") or "0").rstrip("%") or 0) // 100
        for snapshot in snapshots
    )


def check_states(snapshots: Iterable[dict[str, Any]]) -> None:
    """Raise OpsError if one of ``snapshots`` will never be complete."""
    for snapshot in snapshots:
        if snapshot["State"] not in ("pending", "completed"):
            raise OpsError(
                f"Snapshot {snapshot['SnapshotId']}",
                f"it is in state {snapshot['State']}: {snapshot.get('StateMessage') or 'AWS gives no reason'}",
                "Delete it and rerun playbooks/steps/snapshot.yml",
            )
