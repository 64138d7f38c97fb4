"""How far EBS is with loading the blocks of volumes from snapshots: DescribeVolumeStatus, for any number of volumes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Callable, TypedDict

from ansible.module_utils.imagenet_ops.aws.calls import call_list, chunks
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.polling import Delays, Poll
from ansible.module_utils.imagenet_ops.core.progress import Progress

PROVISIONED = "provisioned-rate"
# What AWS shows may be five minutes old (EBS User Guide, "Monitor volume initialization"): no need to ask often, but a
# small volume is done in seconds.
DELAYS = Delays(first=1.0, growth=1.5, longest=30.0)


class Initialization(TypedDict):
    """How far a volume is: ``percent`` that has arrived, ``provisioned`` if at a rate that was paid for.

    ``known`` says whether EC2 reports it at all; if not, ``percent`` is 100. ``eta_seconds`` is EBS's own estimate, 0
    if it has none.
    """

    percent: int
    known: bool
    provisioned: bool
    eta_seconds: int


class InitializationResult(TypedDict):
    """The result of the module ebs_initialization_info."""

    changed: bool
    volumes: dict[str, Initialization]
    initialized: int


def initialization_of(client: Ec2Client, volume_ids: Iterable[str]) -> dict[str, Initialization]:
    """Return by volume how far it is. Raises OpsError if EC2 refuses."""
    found: dict[str, Initialization] = {}
    for ids in chunks(volume_ids):
        operation = "describe_volume_status"
        for status in call_list(client, operation, "VolumeStatuses", f"EC2 {operation}", VolumeIds=ids):
            # Without details there is nothing to load: a blank volume, or one of a Region that does not tell.
            details = status.get("InitializationStatusDetails") or {"Progress": 100}
            found[status["VolumeId"]] = {
                "percent": int(details.get("Progress", 0)),
                "known": "InitializationStatusDetails" in status,
                "provisioned": details.get("InitializationType") == PROVISIONED,
                "eta_seconds": int(details.get("EstimatedTimeToCompleteInSeconds") or 0),
            }
    return found


def open_volumes(volumes: Mapping[str, Initialization]) -> list[str]:
    """Return the volumes worth waiting for: others are loaded as they are read, and may never be whole."""
    return sorted(key for key, volume in volumes.items() if volume["provisioned"] and volume["percent"] < 100)


def wait_for_initialization(
    client: Ec2Client,
    volume_ids: Iterable[str],
    data_bytes: int,
    timeout_seconds: float,
    progress: Progress | None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> InitializationResult:
    """Return the module's result, with ``progress`` after waiting for the volumes with a provisioned rate.

    ``data_bytes`` is what each volume has to load. Raises OpsError after ``timeout_seconds``.
    """
    ids = list(volume_ids)
    volumes = initialization_of(client, ids)
    waiting = open_volumes(volumes)
    if progress is None or not waiting:
        return result(volumes)
    total = data_bytes * len(waiting)
    progress.start(f"initializing {len(waiting)} volumes", total, "bytes", done_bytes(volumes, waiting, data_bytes))
    poll = Poll(DELAYS, clock() + timeout_seconds, sleep, clock)
    while unfinished := open_volumes(volumes):
        if not poll.wait():
            raise OpsError(
                f"Initialization of {len(unfinished)} volumes ({', '.join(unfinished[:3])})",
                f"it is not complete after {timeout_seconds:g} s",
                "It continues in the background: rerun, or raise the timeout",
            )
        volumes.update(initialization_of(client, unfinished))
        progress.update(done_bytes(volumes, waiting, data_bytes))
    progress.finish()
    return result(volumes)


def done_bytes(volumes: Mapping[str, Initialization], ids: Iterable[str], data_bytes: int) -> int:
    """Return how much these volumes have loaded."""
    return sum(int(volumes[volume_id]["percent"]) * data_bytes // 100 for volume_id in ids)


def result(volumes: Mapping[str, Initialization]) -> InitializationResult:
    """Return the module's result."""
    return {
        "changed": False,
        "volumes": dict(volumes),
        "initialized": sum(volume["percent"] == 100 for volume in volumes.values()),
    }
