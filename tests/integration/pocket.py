"""A data set of a few kilobytes with its snapshot, for tests of what comes after `prepare.yml`; made in two seconds."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shlex
import time
from typing import Any

from tests.integration.harness import Lab

HOST = "gpu-1"
DEVICE = "/dev/sdz"
MAKE = """
set -e
sudo mkfs.ext4 -q -m 0 {device} && sudo mkdir -p /mnt/pocket && sudo mount {device} /mnt/pocket
sudo mkdir -p /mnt/pocket/{name}/recordio && cd /mnt/pocket/{name}
printf '0\\tn01440764\\ttench\\n' | sudo tee labels.tsv >/dev/null
for suffix in rec idx lst; do sudo truncate --size 4096 recordio/train.$suffix; done
printf %s {manifest} | sudo tee manifest.json >/dev/null
cd / && sudo umount /mnt/pocket
"""


def arguments(name: str) -> tuple[str, ...]:
    """Arguments that make a playbook take the data set ``name``."""
    return ("-e", json.dumps({"dataset_overrides": {"name": name}}))


def manifest(name: str, edition: int, size_bytes: int = 4096) -> str:
    """The manifest of edition ``edition``; its files have 4096 bytes, whatever it says of them."""
    file = {"size_bytes": size_bytes, "sha256": hashlib.sha256(bytes(4096)).hexdigest()}
    files = {f"train.{suffix}": file for suffix in ("rec", "idx", "lst")}
    labels = {"size_bytes": 18, "sha256": "", "classes": 1}
    splits = {"train": {"records": 3, "files": files}}
    return json.dumps({"format": 1, "dataset": name, "edition": edition, "labels": labels, "splits": splits})


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def make_snapshot(lab: Lab, name: str, edition: int, size_bytes: int = 4096, **options: Any) -> tuple[str, str]:
    """Make a volume on a host, fill it, snapshot it, delete it; return the snapshot's id and the DatasetVersion."""
    ec2, instance = lab.ec2(), lab.instance(HOST)
    text = manifest(name, edition, size_bytes)
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    zone = instance["Placement"]["AvailabilityZone"]
    volume = ec2.create_volume(AvailabilityZone=zone, Size=1, VolumeType="gp3", Encrypted=True, **options)["VolumeId"]
    ec2.attach_volume(VolumeId=volume, InstanceId=instance["InstanceId"], Device=DEVICE)
    device = f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{volume.replace('-', '')}"
    lab.ssh(HOST, MAKE.format(device=device, name=name, manifest=shlex.quote(text)))
    tags = {"Project": "imagenet-ops", "Dataset": name, "Role": "deploy_snapshot", "DatasetVersion": version}
    specification = [{"ResourceType": "snapshot", "Tags": tag_list(tags)}]
    snapshot = ec2.create_snapshot(VolumeId=volume, TagSpecifications=specification)["SnapshotId"]
    ec2.detach_volume(VolumeId=volume)
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
    ec2.delete_volume(VolumeId=volume)
    # moto tells times to the second, and the next snapshot must be newer than this one.
    began = ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["StartTime"]
    while dt.datetime.now(dt.UTC) - began < dt.timedelta(seconds=1):
        time.sleep(0.05)
    return snapshot, version
