"""A fleet of FakeEc2 served, and its volumes removed, as module ebs_fleet does both."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.imagenet_ops.ebs.fleet import Deployment, DeploymentResult, VolumeSettings
from ansible.module_utils.imagenet_ops.ebs.jobs import Ec2Jobs
from ansible.module_utils.imagenet_ops.ebs.removal import FleetResult, Removal

from tests.fakes.ec2 import FakeEc2

TAGS = {"Project": "imagenet-ops", "Dataset": "imagenet", "DatasetVersion": "1f2e3d4c5b6a", "Role": "fleet"}
NEXT_VERSION = {**TAGS, "DatasetVersion": "0a1b2c3d4e5f"}


def deploy(
    ec2: FakeEc2, ids: list[str], *, check_mode: bool = False, tags: dict[str, str] = TAGS, **settings: Any
) -> DeploymentResult:
    ec2.calls.clear()
    jobs = Ec2Jobs(ec2, 300, ec2.sleep, ec2.clock)
    return Deployment(jobs, tags, VolumeSettings(**{"snapshot_id": "snap-1", **settings})).present(
        ids, check_mode=check_mode
    )


def remove(
    ec2: FakeEc2,
    ids: list[str],
    *,
    check_mode: bool = False,
    tags: dict[str, str] = TAGS,
    kept: dict[str, str] | None = None,
) -> FleetResult:
    ec2.calls.clear()
    return Removal(Ec2Jobs(ec2, 300, ec2.sleep, ec2.clock), tags, kept).absent(ids, check_mode=check_mode)


def only_failure(result: FleetResult) -> str:
    assert len(result["failed_instances"]) == 1
    return str(next(iter(result["failed_instances"].values())))
