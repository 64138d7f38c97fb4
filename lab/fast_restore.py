"""Fast snapshot restore: the states of a snapshot in a zone, and the credits that volumes take.

Sizes, rates and times are those of the EBS User Guide, "Amazon EBS fast snapshot restore". No moto here.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.rules import ApiError

SNAPSHOTS_MAXIMUM = 5
GIB_PER_TIB = 1024
CREDITS_MAXIMUM = 10


def credits_per_hour(size_gib: int) -> float:
    """Return how many credits an hour brings to a snapshot of a volume of this size."""
    return min(float(CREDITS_MAXIMUM), GIB_PER_TIB / size_gib)


def bucket_size(size_gib: int) -> int:
    """Return how many credits are kept at most."""
    return max(1, int(credits_per_hour(size_gib)))


@dataclass
class _Restore:
    """One snapshot in one zone; ``credits`` is how many there were at time ``at``."""

    size_gib: int
    enabling_at: float
    disabled_at: float | None = None
    credits: float = 0.0
    at: float = 0.0


class FastRestores:
    """All of a Region. A change of state takes ``delay_seconds``, what EBS counts in hours ``hour_seconds`` an hour."""

    def __init__(
        self, delay_seconds: float, hour_seconds: float, owner_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._delay_seconds = delay_seconds
        self._hour_seconds = hour_seconds
        self._owner_id = owner_id
        self._clock = clock
        self._restores: dict[tuple[str, str], _Restore] = {}

    def enable(self, snapshot_id: str, zone: str, size_gib: int) -> dict[str, Any]:
        """Begin to enable a snapshot in a zone; return the item that the answer shows. ApiError over the quota."""
        restore = self._restores.get((snapshot_id, zone))
        if restore is None or self._state(restore) in ("disabling", "disabled"):
            active = {
                key[0] for key, one in self._restores.items() if self._state(one) not in ("disabling", "disabled")
            }
            if len(active | {snapshot_id}) > SNAPSHOTS_MAXIMUM:
                # AWS documents the quota and no code for it.
                raise ApiError(
                    "FastSnapshotRestoreLimitExceeded",
                    f"At most {SNAPSHOTS_MAXIMUM} snapshots of a Region can be enabled for fast snapshot restore.",
                )
            self._restores[snapshot_id, zone] = _Restore(size_gib, self._clock())
        return self._item(snapshot_id, zone)

    def disable(self, snapshot_id: str, zone: str) -> dict[str, Any]:
        """Begin to disable it; return the item that the answer shows. ApiError where it is not enabled."""
        restore = self._restores.get((snapshot_id, zone))
        if restore is None or self._state(restore) in ("disabling", "disabled"):
            raise ApiError("InvalidParameter", f"Fast snapshot restore of {snapshot_id} is not enabled in {zone}.")
        restore.disabled_at = self._clock()
        return self._item(snapshot_id, zone)

    def forget(self, snapshot_id: str) -> None:
        """Drop all of a snapshot that was deleted."""
        self._restores = {key: restore for key, restore in self._restores.items() if key[0] != snapshot_id}

    def items(self) -> list[dict[str, Any]]:
        """Return all that is or was enabled, as DescribeFastSnapshotRestores shows it."""
        return [self._item(*key) for key in sorted(self._restores)]

    def take_credit(self, snapshot_id: str, zone: str) -> bool:
        """Take the credit of one new volume; False where the volume will be lazy: not enabled, or no credit left."""
        restore = self._restores.get((snapshot_id, zone))
        if restore is None or self._state(restore) != "enabled":
            return False
        now = self._clock()
        since = max(restore.at, self._enabled_at(restore))
        earned = (now - since) / self._hour_seconds * credits_per_hour(restore.size_gib)
        restore.credits = min(float(bucket_size(restore.size_gib)), restore.credits + earned)
        restore.at = now
        if restore.credits < 1:
            return False
        restore.credits -= 1
        return True

    def _enabled_at(self, restore: _Restore) -> float:
        optimizing_seconds = restore.size_gib / GIB_PER_TIB * self._hour_seconds
        return restore.enabling_at + self._delay_seconds + optimizing_seconds

    def _state(self, restore: _Restore) -> str:
        now = self._clock()
        if restore.disabled_at is not None:
            return "disabled" if now - restore.disabled_at >= self._delay_seconds else "disabling"
        if now < restore.enabling_at + self._delay_seconds:
            return "enabling"
        return "optimizing" if now < self._enabled_at(restore) else "enabled"

    def _item(self, snapshot_id: str, zone: str) -> dict[str, Any]:
        restore = self._restores[snapshot_id, zone]
        state = self._state(restore)
        times = {
            "EnablingTime": restore.enabling_at,
            "OptimizingTime": restore.enabling_at + self._delay_seconds,
            "EnabledTime": self._enabled_at(restore),
            "DisablingTime": restore.disabled_at,
        }
        now = self._clock()
        reached = {
            name: dt.datetime.fromtimestamp(at, dt.timezone.utc)
            for name, at in times.items()
            if at is not None and at <= now
        }
        reason = "Client.UserInitiated" + (
            " - Lifecycle state transition" if state in ("optimizing", "enabled") else ""
        )
        return {
            "SnapshotId": snapshot_id,
            "AvailabilityZone": zone,
            "State": state,
            "StateTransitionReason": reason,
            "OwnerId": self._owner_id,
            **reached,
        }
