from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.progress import Progress
from ansible.module_utils.imagenet_ops.ebs.volume_initialization import (
    InitializationResult,
    initialization_of,
    wait_for_initialization,
)
from botocore.exceptions import ClientError

from tests.fakes.clients import StubEc2

GIB = 1024**3


class Statuses(StubEc2):
    """EC2 with volumes that load at ``per_second`` percent; time passes only by `sleep`."""

    def __init__(self, kinds: dict[str, str], per_second: float = 10.0) -> None:
        self.kinds = kinds
        self.per_second = per_second
        self.now = 0.0
        self.asked: list[list[str]] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def describe_volume_status(self, **request: Any) -> dict[str, Any]:
        self.asked.append(request["VolumeIds"])
        assert len(request["VolumeIds"]) <= 200
        return {"VolumeStatuses": [self._status(volume_id) for volume_id in request["VolumeIds"]]}

    def _status(self, volume_id: str) -> dict[str, Any]:
        kind = self.kinds[volume_id]
        if kind == "blank":
            return {"VolumeId": volume_id}
        percent = min(100, int(self.now * self.per_second)) if kind == "provisioned-rate" else 7
        return {"VolumeId": volume_id, "InitializationStatusDetails": {"InitializationType": kind, "Progress": percent}}


def wait(client: Statuses, progress: Progress | None, timeout: float = 100) -> InitializationResult:
    return wait_for_initialization(
        client, list(client.kinds), GIB, timeout, progress, sleep=client.sleep, clock=lambda: client.now
    )


def test_volumes_with_a_rate_are_waited_for_and_others_are_not(tmp_path: Path) -> None:
    client = Statuses({"vol-1": "provisioned-rate", "vol-2": "default", "vol-3": "blank"})
    answer = wait(client, Progress(str(tmp_path), "wait", interval_seconds=0))
    percents = {key: volume["percent"] for key, volume in answer["volumes"].items()}
    assert percents == {"vol-1": 100, "vol-2": 7, "vol-3": 100}
    assert [answer["volumes"][key]["known"] for key in ("vol-1", "vol-2", "vol-3")] == [True, True, False]
    assert answer["initialized"] == 2
    assert client.asked[0] == ["vol-1", "vol-2", "vol-3"]
    assert all(asked == ["vol-1"] for asked in client.asked[1:])
    written = json.loads((tmp_path / "wait.progress.json").read_text())
    assert written["stage"] == "initializing 1 volumes"
    assert (written["done"], written["total"], written["finished"]) == (GIB, GIB, True)


def test_the_waiting_ends_with_the_credentials(tmp_path: Path) -> None:
    """After hours, with a session of one hour: what is done is kept, and the next run waits for the rest."""

    class Expiring(Statuses):
        def describe_volume_status(self, **request: Any) -> dict[str, Any]:
            if self.now > 3:
                raise ClientError({"Error": {"Code": "RequestExpired", "Message": "Request has expired."}}, "Describe")
            return super().describe_volume_status(**request)

    client = Expiring({"vol-1": "provisioned-rate"})
    with pytest.raises(OpsError, match=r"RequestExpired.*Renew the credentials .* and rerun; completed work is kept"):
        wait(client, Progress(str(tmp_path), "wait"))


def test_without_waiting_it_asks_once() -> None:
    client = Statuses({"vol-1": "provisioned-rate"})
    seen = {"percent": 0, "known": True, "provisioned": True, "eta_seconds": 0}
    assert wait(client, None)["volumes"]["vol-1"] == seen
    assert len(client.asked) == 1


def test_many_volumes_are_asked_for_200_at_a_time() -> None:
    client = Statuses({f"vol-{number}": "default" for number in range(450)})
    assert len(initialization_of(client, client.kinds)) == 450
    assert [len(asked) for asked in client.asked] == [200, 200, 50]


def test_a_time_out_says_that_it_goes_on(tmp_path: Path) -> None:
    client = Statuses({"vol-1": "provisioned-rate"}, per_second=0.1)
    with pytest.raises(OpsError) as error:
        wait(client, Progress(str(tmp_path), "wait"), timeout=60)
    assert str(error.value) == (
        "Initialization of 1 volumes (vol-1): it is not complete after 60 s. "
        "It continues in the background: rerun, or raise the timeout"
    )


def test_a_refusal_says_what_to_allow() -> None:
    class Refusing(StubEc2):
        def describe_volume_status(self, **_: Any) -> dict[str, Any]:
            raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "No."}}, "DescribeVolumeStatus")

    with pytest.raises(OpsError, match=r"EC2 describe_volume_status: UnauthorizedOperation: No\. Allow the action"):
        initialization_of(Refusing(), ["vol-1"])
