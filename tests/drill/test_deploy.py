"""deploy.yml in the lab while things end: ansible-playbook killed at ten seeded points, instances terminated under it.

A kill takes everything that the controller runs, modules on the controller too; what runs on a host goes on there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.ebs.jobs import Ec2Jobs
from ansible.module_utils.imagenet_ops.ebs.removal import Removal

from tests.integration.harness import Lab, kill_family, running_lab

DEPLOY = "playbooks/deploy.yml"
HOSTS = [f"gpu-{number}" for number in range(1, 11)]
# Five kills among the calls to EC2, each with two hosts that have nothing yet: two volumes made and two attached.
PAIRS = [f"gpu-{number}:gpu-{number + 1}" for number in range(1, 11, 2)]
CHANGES = 4
# What a run for all hosts prints after that, in this order: five of these are a kill.
LINES = (
    "TASK [Find hosts without a volume]",
    "TASK [Choose the warm-up strategy]",
    "TASK [fleet_host : Mount the volume read-only]",
    "TASK [python_environment : Install | Read the host's platform and Python version]",
    "TASK [python_environment : Install | Copy the wheels to the host]",
    "TASK [python_environment : Install | Create the environment]",
    "TASK [dataset_verify : Verify the data set against its manifest]",
    "TASK [fleet_report : Show the result of every host]",
)
FLEET = [{"Name": "tag:Project", "Values": ["imagenet-ops"]}, {"Name": "tag:Role", "Values": ["fleet"]}]


@pytest.fixture(scope="module")
def prepared() -> Iterator[Lab]:
    """A lab in which a state takes half a second, with a snapshot to deploy."""
    with running_lab("--hosts", str(len(HOSTS)), "--delay", "0.5") as lab:
        lab.playbook("playbooks/prepare.yml")
        yield lab


def fleet_volumes(lab: Lab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.ec2().describe_volumes(Filters=FLEET)["Volumes"]
    return found


def attached(lab: Lab) -> Counter[str]:
    """How many volumes of the fleet are attached to each instance, and to none ("")."""
    attachments = [volume["Attachments"] or [{"InstanceId": ""}] for volume in fleet_volumes(lab)]
    return Counter(one["InstanceId"] for volume in attachments for one in volume)


def test_killed_at_ten_points_and_run_again(prepared: Lab) -> None:
    chance = random.Random(10)
    for pair in PAIRS:
        changes = chance.randint(1, CHANGES)
        prepared.playbook_disturbed(changes, kill_family, DEPLOY, "--limit", pair)
    assert fleet_volumes(prepared), "the kills came in the middle"
    for number in sorted(chance.sample(range(len(LINES)), 5)):
        prepared.kill_playbook_at(LINES[number], DEPLOY)
    run = prepared.playbook(DEPLOY)
    assert [row[-1] for row in run.table("host", "result")] == ["ok"] * len(HOSTS)
    ids = [prepared.instance(host)["InstanceId"] for host in HOSTS]
    assert attached(prepared) == dict.fromkeys(ids, 1), "one volume for each, none without an instance"
    for host in HOSTS:
        assert prepared.ssh(host, "grep -c ' /data ' /proc/mounts").strip() == "1"
        assert prepared.ssh(host, "ls /var/tmp/imagenet-ops-* 2>/dev/null || true") == ""
    assert prepared.playbook(DEPLOY).all_unchanged()
    assert prepared.changes() == 0


def take_away(lab: Lab) -> list[str]:
    """Take the data set from every host that runs, as if it had never been deployed; return their names."""
    found = lab.ec2().describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["running"]}])
    tags = [instance["Tags"] for entry in found["Reservations"] for instance in entry["Instances"]]
    names = sorted(tag["Value"] for instance in tags for tag in instance if tag["Key"] == "Name")
    for name in names:
        lab.ssh(name, "sudo umount /data")
    left = Removal(Ec2Jobs(lab.ec2(), 60), {"Project": "imagenet-ops", "Role": "fleet"}).absent([], check_mode=False)
    assert left["failed_instances"] == {}
    return names


@pytest.mark.parametrize(("host", "changes"), [("gpu-9", 3), ("gpu-10", 18)])
def test_an_instance_that_is_terminated_half_way_fails_alone(prepared: Lab, host: str, changes: int) -> None:
    """While volumes are made, and when the last is being attached."""
    names = take_away(prepared)
    others = [name for name in names if name != host]
    ended = prepared.instance(host)["InstanceId"]
    run = prepared.playbook_disturbed(
        changes, lambda _: prepared.ec2().terminate_instances(InstanceIds=[ended]), DEPLOY
    )
    rows = {row[0]: row[-1] for row in run.table("host", "result")}
    assert run.failed_hosts() == [host]
    assert ended in rows[host] or rows[host] == "unreachable"
    assert {name: rows[name] for name in others} == dict.fromkeys(others, "ok")
    again = prepared.playbook(DEPLOY)
    assert sorted(again.recap) == sorted(others)
    ids = [prepared.instance(name)["InstanceId"] for name in others]
    assert attached(prepared) == dict.fromkeys(ids, 1), "no volume is left of the instance that has gone"
