"""ebs_fleet against the lab's API with everything at once: throttled, its process killed, an instance terminated.

The API answers alone, without hosts, so this needs no root. The times of the kills are seeded.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from lab.config import CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY, GPU_INSTANCE_TYPE, IMAGE_ID, LOOPBACK, REGION

ROOT = Path(__file__).resolve().parents[2]
TAGS = {"Project": "imagenet-ops", "Dataset": "imagenet", "DatasetVersion": "1f2e3d4c5b6a", "Role": "fleet"}
KEYS = {"aws_access_key_id": CONTROLLER_ACCESS_KEY, "aws_secret_access_key": CONTROLLER_SECRET_KEY}
INSTANCES = 24
# The engine in a process of its own, with the client that the module has.
DEPLOY = """
import json, sys
import tests.conftest
import boto3
from ansible.module_utils.imagenet_ops.ebs.jobs import CLIENT_CONFIG, Ec2Jobs
from ansible.module_utils.imagenet_ops.ebs.fleet import Deployment, VolumeSettings
from botocore.config import Config
asked = json.loads(sys.argv[1])
config = Config(proxies={}, **CLIENT_CONFIG)
ec2 = boto3.client("ec2", endpoint_url=asked["url"], region_name="us-east-1", config=config, **asked["keys"])
fleet = Deployment(Ec2Jobs(ec2, 60), asked["tags"], VolumeSettings(asked["snapshot_id"]))
print(json.dumps(fleet.present(asked["ids"], check_mode=False)))
"""


class Fleet:
    """The lab's API with instances and a snapshot."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ec2 = boto3.client(
            "ec2",
            endpoint_url=url,
            region_name=REGION,
            config=Config(proxies={}, retries={"mode": "adaptive", "total_max_attempts": 30}),
            **KEYS,
        )
        self.ids: list[str] = []
        for zone in ("us-east-1a", "us-east-1b"):
            request = {"MinCount": INSTANCES // 2, "MaxCount": INSTANCES // 2, "Placement": {"AvailabilityZone": zone}}
            answer = self.ec2.run_instances(ImageId=IMAGE_ID, InstanceType=GPU_INSTANCE_TYPE, **request)
            self.ids += [instance["InstanceId"] for instance in answer["Instances"]]
        volume = self.ec2.create_volume(AvailabilityZone="us-east-1a", Size=8)["VolumeId"]
        self.ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
        self.snapshot_id = str(self.ec2.create_snapshot(VolumeId=volume)["SnapshotId"])
        self.ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[self.snapshot_id], WaiterConfig={"Delay": 1})

    def start(self, ids: list[str]) -> subprocess.Popen[str]:
        asked = {"url": self.url, "keys": KEYS, "tags": TAGS, "snapshot_id": self.snapshot_id, "ids": ids}
        command = [sys.executable, "-c", DEPLOY, json.dumps(asked)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def deploy(self, ids: list[str]) -> dict[str, Any]:
        with self.start(ids) as process:
            output, _ = process.communicate()
        assert process.returncode == 0
        answer: dict[str, Any] = json.loads(output)
        return answer

    def volumes(self) -> list[dict[str, Any]]:
        filters = [{"Name": f"tag:{name}", "Values": [value]} for name, value in TAGS.items()]
        found: list[dict[str, Any]] = self.ec2.describe_volumes(Filters=filters)["Volumes"]
        return found

    def throttled_calls(self) -> int:
        with urllib.request.urlopen(f"{self.url}/lab/calls") as answer:
            return int(json.load(answer)["calls"].get("ec2:RequestLimitExceeded", 0))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    options = ("--delay", "0.5", "--throttle-rate", "20", "--throttle-burst", "10")
    command = [sys.executable, "-m", "lab", "serve", "--api-only", "--directory", str(tmp_path), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        ready = process.stdout.readline().split()
        yield Fleet(f"http://{LOOPBACK}:{ready[1]}")
    finally:
        process.terminate()
        process.communicate()


def test_killed_at_ten_moments_throttled_and_an_instance_terminated_half_way(fleet: Fleet) -> None:
    chance = random.Random(64)
    ended = fleet.ids[5]
    for number in range(10):
        with fleet.start(fleet.ids) as process:
            time.sleep(chance.uniform(0.5, 3.5))
            process.kill()
        if number == 4:
            fleet.ec2.terminate_instances(InstanceIds=[ended])
    result = fleet.deploy(fleet.ids)
    assert list(result["failed_instances"]) == [ended]
    alive = [instance_id for instance_id in fleet.ids if instance_id != ended]
    assert sorted(result["volumes"]) == sorted(alive)
    attached = Counter(one["Attachments"][0]["InstanceId"] for one in fleet.volumes())
    assert attached == dict.fromkeys(alive, 1), "one volume for each, none without an instance"
    again = fleet.deploy(alive)
    assert (again["changed"], again["api_calls"]["mutating"]) == (False, 0)
    assert fleet.throttled_calls() > 0
