"""Deploying to a fleet: seconds and calls with 64 hosts in the lab, 500 instances of the API alone, and throttled ones.

The peer is the usual way: a playbook with ec2_vol and mount for each host, on the same lab, the same hosts,
the same snapshot. The lab and all hosts share the machine's processors: seconds are for comparison and no promise.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from ansible.module_utils.imagenet_ops.ebs.fleet import Deployment, DeploymentResult, VolumeSettings
from ansible.module_utils.imagenet_ops.ebs.jobs import CLIENT_CONFIG, Ec2Jobs
from ansible.module_utils.imagenet_ops.ebs.removal import Removal
from botocore.config import Config

from bench.measure import Cost, interleaved, median, run
from bench.report import Bench, Target
from lab.config import (
    API_PORT,
    CONTROLLER_ACCESS_KEY,
    CONTROLLER_SECRET_KEY,
    GPU_INSTANCE_TYPE,
    IMAGE_ID,
    LOOPBACK,
    REGION,
    ZONES,
)

TARGETS = (
    Target("fleet.mutating_calls_per_host_64", "<=", 2, "", "CreateVolume and AttachVolume"),
    Target("fleet.describe_calls_64", "<=", 12, "", "all of deploy.yml, its inventory too"),
    Target("fleet.control_plane_500_seconds", "<=", 15, "s", "the API alone, a state takes 1 s"),
    Target("fleet.throttled_200_floor_ratio", "<=", 1.1, "", "(calls that change something - burst) / rate"),
    Target("fleet.ec2_vol_wall_ratio_16", "<=", 0.4, "", "ec2_vol, wait_for and mount for each host"),
)

ROOT = Path(__file__).resolve().parent.parent
LAB_URL = f"http://{LOOPBACK}:{API_PORT}"
# What a change of state takes: a second for each of creating and attaching, as EC2 on a good day.
DELAY_SECONDS = 1.0
THROTTLE_RATE = 5.0
THROTTLE_BURST = 50
ROUNDS = 3
# Hosts beside the fleet, for the figure of a small one.
FEW = 4
TAGS = {"Project": "imagenet-ops", "Dataset": "imagenet", "DatasetVersion": "000000000000", "Role": "fleet"}
ENVIRONMENT = {
    **os.environ,
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    # Where the time goes, in the logs that are kept of a figure that was missed.
    "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
    "ANSIBLE_FORKS": "16",
    "LC_ALL": "C.UTF-8",
    "NO_COLOR": "1",
}
ANSIBLE_PLAYBOOK = str(Path(sys.executable).parent / "ansible-playbook")
INVENTORY = str(ROOT / "inventories" / "lab")
VOLUMES_AND_MOUNT = {"ours": "fleet_ours.yml", "ec2_vol": "fleet_peer.yml"}


def measure(bench: Bench) -> None:
    """Measure all of it; the lab is started and stopped here."""
    _control_plane(bench, int(500 * bench.scale))
    _throttled(bench, int(200 * bench.scale), max(2, int(THROTTLE_BURST * bench.scale)))
    with _lab(FEW + max(FEW, int(64 * bench.scale))) as hosts:
        _playbook(bench, "prepare", str(ROOT / "playbooks/prepare.yml"))
        few, fleet = hosts[:FEW], hosts[FEW:]
        deploy = str(ROOT / "playbooks/deploy.yml")
        bench.record("fleet.seconds_4", _playbook(bench, "deploy-4", deploy, few).wall_seconds, "first run, 4 hosts")
        # Before any volume is removed: that one was there costs a new one for the same host another CreateVolume.
        _whole_fleet(bench, deploy, fleet)
        _beside_ec2_vol(bench, hosts, fleet[: max(FEW, len(fleet) // 4)])


# --- the API alone


def _control_plane(bench: Bench, count: int) -> None:
    with _api(bench, "--delay", str(DELAY_SECONDS)) as url:
        seconds, result = _deploy_to(url, count)
    calls = result["api_calls"]
    bench.record(
        "fleet.control_plane_500_seconds", seconds, f"{calls['mutating']} changes, {calls['describe']} Describes"
    )


def _throttled(bench: Bench, count: int, burst: int) -> None:
    throttle = ("--throttle-rate", str(THROTTLE_RATE), "--throttle-burst", str(burst))
    with _api(bench, "--delay", str(DELAY_SECONDS), *throttle) as url:
        seconds, _ = _deploy_to(url, count, pause_seconds=burst / THROTTLE_RATE)
        refused = _calls(url).get("ec2:RequestLimitExceeded", 0)
    floor_seconds = (2 * count - burst) / THROTTLE_RATE
    text = f"{seconds:.1f} s, the bucket's minimum {floor_seconds:.1f} s, {refused} calls refused"
    bench.record("fleet.throttled_200_floor_ratio", seconds / floor_seconds, text)


@contextlib.contextmanager
def _api(bench: Bench, *options: str) -> Iterator[str]:
    """Run the lab's API without hosts, and yield its address."""
    command = [sys.executable, "-m", "lab", "serve", "--api-only", "--directory", str(bench.directory), *options]
    with (
        (bench.directory / "api.log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            ready = process.stdout.readline().split() if process.stdout else []
            if ready[:1] != ["ready"]:
                raise RuntimeError(f"the lab's API did not start: {(bench.directory / 'api.log').read_text()[-2000:]}")
            yield f"http://{LOOPBACK}:{ready[1]}"
        finally:
            process.terminate()


def _deploy_to(url: str, count: int, pause_seconds: float = 0) -> tuple[float, DeploymentResult]:
    """Launch ``count`` instances, deploy to them, and return the seconds of that and the result; all must be served.

    The calls before it come out of the same bucket: ``pause_seconds`` is what that takes to be full again.
    """
    ec2 = _client(url)
    ids = []
    for number, zone in enumerate(ZONES):
        share = count // len(ZONES) + (number < count % len(ZONES))
        request = {"ImageId": IMAGE_ID, "InstanceType": GPU_INSTANCE_TYPE, "MinCount": share, "MaxCount": share}
        answer = ec2.run_instances(**request, Placement={"AvailabilityZone": zone})
        ids += [instance["InstanceId"] for instance in answer["Instances"]]
    volume_id = ec2.create_volume(AvailabilityZone=ZONES[0], Size=8, VolumeType="gp3")["VolumeId"]
    time.sleep(3 * DELAY_SECONDS)
    snapshot_id = ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    time.sleep(3 * DELAY_SECONDS + pause_seconds)
    began = time.monotonic()
    fleet = Deployment(Ec2Jobs(_client(url), 300), TAGS, VolumeSettings(snapshot_id))
    result = fleet.present(ids, check_mode=False)
    seconds = time.monotonic() - began
    if len(result["volumes"]) != count:
        raise RuntimeError(f"of {count} instances {len(result['volumes'])} were served: {result['failed_instances']}")
    return seconds, result


def _client(url: str) -> Any:
    return boto3.client(
        "ec2",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=CONTROLLER_ACCESS_KEY,
        aws_secret_access_key=CONTROLLER_SECRET_KEY,
        config=Config(proxies={}, **CLIENT_CONFIG),
    )


# --- the lab with its hosts


@contextlib.contextmanager
def _lab(count: int) -> Iterator[list[str]]:
    """Run the lab with ``count`` GPU hosts and yield their names."""
    lab = [sys.executable, "-m", "lab"]
    if subprocess.run([*lab, "status"], cwd=ROOT, capture_output=True, check=False).returncode == 0:
        raise RuntimeError("a lab is up already, which a bench must not disturb: make lab-down")
    subprocess.run([*lab, "up", "--hosts", str(count), "--delay", str(DELAY_SECONDS)], cwd=ROOT, check=True)
    try:
        yield [f"gpu-{number}" for number in range(1, count + 1)]
    finally:
        subprocess.run([*lab, "down"], cwd=ROOT, check=True)


def _whole_fleet(bench: Bench, deploy: str, hosts: list[str]) -> None:
    _calls(LAB_URL, reset=True)
    cost = _playbook(bench, "deploy-64", deploy, hosts)
    bench.record("fleet.seconds_64", cost.wall_seconds, f"first run, {len(hosts)} hosts")
    calls = _calls(LAB_URL)
    (bench.directory / "deploy-64-calls.log").write_text(json.dumps(calls, indent=1))
    changes, describes = _count(calls)
    bench.record("fleet.mutating_calls_per_host_64", changes / len(hosts), f"{changes} for {len(hosts)} hosts")
    bench.record("fleet.describe_calls_64", describes)
    _calls(LAB_URL, reset=True)
    cost = _playbook(bench, "deploy-64-again", deploy, hosts)
    changes, describes = _count(_calls(LAB_URL))
    changed = re.findall(r"changed=([1-9]\d*)", (bench.directory / "deploy-64-again.log").read_text())
    if changes or changed:
        raise RuntimeError(f"a second run made {changes} calls that change something, and changed {len(changed)} hosts")
    bench.record(
        "fleet.second_run_seconds_64", cost.wall_seconds, f"changed=0, no change in AWS, {describes} Describes"
    )


def _beside_ec2_vol(bench: Bench, hosts: list[str], some: list[str]) -> None:
    """Compare what both do: a volume for each host, attached and mounted. Verifying is not part of it."""

    def one(name: str) -> Cost:
        _remove_volumes(bench, hosts)
        return _playbook(bench, name, str(Path(__file__).parent / VOLUMES_AND_MOUNT[name]), some)

    rounds = interleaved({name: functools.partial(one, name) for name in VOLUMES_AND_MOUNT}, ROUNDS)
    ours = median(rounds, lambda costs: costs["ours"].wall_seconds)
    theirs = median(rounds, lambda costs: costs["ec2_vol"].wall_seconds)
    ratio = median(rounds, lambda costs: costs["ours"].wall_seconds / costs["ec2_vol"].wall_seconds)
    bench.record("fleet.ec2_vol_wall_ratio_16", ratio, f"{ours:.1f} s, ec2_vol {theirs:.1f} s, {len(some)} hosts")
    _remove_volumes(bench, hosts)


def _remove_volumes(bench: Bench, hosts: list[str]) -> None:
    """Unmount the data set on ``hosts`` and remove every volume of the fleet, whoever made it."""
    _playbook(bench, "unmount", str(Path(__file__).parent / "fleet_unmount.yml"), hosts)
    family = {name: value for name, value in TAGS.items() if name != "DatasetVersion"}
    left = Removal(Ec2Jobs(_client(LAB_URL), 300), family).absent([], check_mode=False)["failed_instances"]
    if left:
        raise RuntimeError(f"volumes are left: {left}")


def _playbook(bench: Bench, name: str, path: str, hosts: list[str] | None = None) -> Cost:
    """Run a playbook in the lab, for ``hosts`` alone where they are named, and return its cost; it must succeed."""
    limit = ["--limit", ",".join(hosts)] if hosts else []
    os.environ.update(ENVIRONMENT)
    return run([ANSIBLE_PLAYBOOK, "-i", INVENTORY, path, *limit], bench.directory / f"{name}.log")


def _calls(url: str, *, reset: bool = False) -> dict[str, int]:
    """Return how often each action was called, as the lab counts; with ``reset`` it begins again from zero."""
    with urllib.request.urlopen(f"{url}/lab/calls") as answer:  # noqa: S310 - the lab's own address
        calls: dict[str, int] = json.load(answer)["calls"]
    if reset:
        request = urllib.request.Request(f"{url}/lab/reset", method="POST")  # noqa: S310 - the lab's own address
        urllib.request.urlopen(request).close()  # noqa: S310 - the lab's own address
    return calls


def _count(calls: dict[str, int]) -> tuple[int, int]:
    """Return how many calls to EC2 changed something and how many were Describes."""
    ec2 = {name.removeprefix("ec2:"): number for name, number in calls.items() if name.startswith("ec2:")}
    describes = sum(number for name, number in ec2.items() if name.startswith("Describe"))
    return sum(ec2.values()) - describes, describes
