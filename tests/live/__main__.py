"""Runs the whole project once in a real account, with images of its own making, and removes all of it.

    python -m tests.live -i inventories/mine

In the folder of the project. It shows what that costs and asks before anything is created. One small host is the
download host, and then the one that the data set is deployed to. Whatever fails or interrupts it, teardown follows;
what that leaves is named.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import boto3

from tests.fakes.images import write_imagenette

ROOT = Path.cwd()
SOURCE = Path(__file__).with_name("source.yml")
PROGRAMS = Path(sys.executable).parent
DATASET = "imagenet-ops-live"
OBJECT = f"{DATASET}/source/imagenette2.tgz"
INSTANCE_TYPE = "t3.micro"
DATA_VOLUME_GIB = 125  # the smallest of sc1
# After so long no further step begins; teardown has the rest of the hour.
DEADLINE_SECONDS = 45 * 60
TEARDOWN_SECONDS = 15 * 60
MONTH_HOURS = 730
# Where to look for what is left: the operation, where its answer has the resources, and their ids.
LOOKS = (
    ("describe_volumes", "Volumes", "VolumeId"),
    ("describe_snapshots", "Snapshots", "SnapshotId"),
    ("describe_security_groups", "SecurityGroups", "GroupId"),
    ("describe_key_pairs", "KeyPairs", "KeyPairId"),
    ("describe_launch_templates", "LaunchTemplates", "LaunchTemplateId"),
)


class Cost(NamedTuple):
    """Something that is paid for: at most so many of a unit, and the price of one for an hour in USD (us-east-1)."""

    what: str
    amount: float
    usd_hour: float


# aws.amazon.com/ec2/pricing/on-demand, /vpc/pricing, /ebs/pricing and /s3/pricing.
COSTS = (
    Cost(f"host {INSTANCE_TYPE}", 1, 0.0104),
    Cost("public IPv4 address", 1, 0.005),
    Cost("GiB of sc1, the data volume", DATA_VOLUME_GIB, 0.015 / MONTH_HOURS),
    Cost("GiB of gp3: root, the volume that is snapshotted, the one that is deployed", 8 + 1 + 1, 0.08 / MONTH_HOURS),
    Cost("GiB of snapshots and of S3", 1, 0.05 / MONTH_HOURS),
)


class FailedError(Exception):
    """A step failed; what it printed says why."""


class Live:
    """One run: ``inventory`` and ``options`` are those of every playbook, ``bucket`` is created and deleted."""

    def __init__(self, inventory: str, options: Sequence[str], folder: Path, bucket: str) -> None:
        self.inventory = inventory
        self.bucket = bucket
        self.archive = folder / "imagenette2.tgz"
        write_imagenette(self.archive)
        self.variables = folder / "variables.json"
        self.variables.write_text(json.dumps(self._variables()))
        self.deadline = time.monotonic() + DEADLINE_SECONDS
        self._options = options

    def _variables(self) -> dict[str, Any]:
        content = self.archive.read_bytes()
        images = {
            "urls": [f"s3://{self.bucket}/{OBJECT}"],
            "size_bytes": len(content),
            "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        }
        return {
            "backup_bucket_name": self.bucket,
            "data_volume_size_gib": DATA_VOLUME_GIB,
            "dataset_name": "imagenette",
            "dataset_overrides": {
                "name": DATASET,
                "terms": {"accepted": True},
                "archives": {"images": images},
                "classes": 4,
                "splits": {
                    "train": {"images": 16, "class_images_min": 4, "class_images_max": 4},
                    "validation": {"images": 8, "class_images_min": 2, "class_images_max": 2},
                },
            },
            "download_host_instance_type": INSTANCE_TYPE,
            "download_host_keep": True,
            "live_archive": str(self.archive),
            "live_object": OBJECT,
        }

    def run(self) -> None:
        """Prepare and deploy; raises FailedError."""
        self.playbook("playbooks/steps/iam.yml", "-e", json.dumps({"iam_setup_playbooks": []}))
        self.playbook(str(SOURCE), "-e", "live_state=present")
        self.playbook("playbooks/prepare.yml")
        (host,) = self.hosts()
        fleet = self.archive.with_name("fleet.json")
        fleet.write_text(json.dumps({"gpu": {"hosts": {host: {}}}}))
        # The data volume is at /data; hosts of others that the inventory lists are left out.
        self.playbook("playbooks/deploy.yml", "-i", str(fleet), "--limit", host, "-e", "data_mount_path=/srv/live")

    def remove(self) -> list[str]:
        """Remove everything, and return what is left of it; raises FailedError."""
        self.deadline = time.monotonic() + TEARDOWN_SECONDS
        with contextlib.suppress(FailedError):  # there may be no bucket yet, and teardown says so if objects stay
            self.playbook(str(SOURCE), "-e", "live_state=absent")
        # Named, for a limit may leave no other host; with what Ansible gives the one that is not.
        here = self.archive.with_name("here.json")
        local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        here.write_text(json.dumps({"ungrouped": {"hosts": {"localhost": local}}}))
        limit = ("-i", str(here), "--limit", ":".join(["localhost", *self.hosts()]))
        confirmed = ("-e", f"project_removal_confirm={DATASET}", "-e", "project_removal_bucket=true")
        self.playbook("playbooks/teardown.yml", *confirmed, *limit)
        return self.left()

    def left(self) -> list[str]:
        """Return what carries the tag of the data set, by the API itself, and the bucket where it is there."""
        region = self.region()
        ec2, s3 = boto3.client("ec2", region_name=region), boto3.client("s3", region_name=region)
        found = remains(ec2)
        buckets = [one["Name"] for one in s3.list_buckets()["Buckets"] if one["Name"] == self.bucket]
        return found + [f"bucket {name}" for name in buckets]

    def region(self) -> str:
        """Return the Region of the inventory."""
        command = [str(PROGRAMS / "ansible"), "localhost", "-i", self.inventory, *self._options, "-m", "debug"]
        done = subprocess.run(
            [*command, "-a", "var=aws_region", "--one-line"],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return str(json.loads(done.stdout.partition("=>")[2])["aws_region"])

    def hosts(self) -> list[str]:
        """Return the names of the download hosts that the inventory lists."""
        command = [str(PROGRAMS / "ansible-inventory"), "-i", self.inventory, *self._options, "--list"]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
        listed = json.loads(done.stdout)
        variables = listed["_meta"]["hostvars"]
        tagged = {name: variables[name].get("ec2_tags", {}).get("Dataset") for name in variables}
        # ansible-inventory marks what comes from outside, so that nobody takes it for a template.
        ours = (DATASET, {"__ansible_unsafe": DATASET})
        return [name for name in listed.get("download_host", {}).get("hosts", []) if tagged.get(name) in ours]

    def playbook(self, *arguments: str) -> None:
        """Run ansible-playbook, with its output; raises FailedError where it fails or the time is over."""
        print(f"\n==> ansible-playbook {' '.join(arguments)}", flush=True)
        command = [str(PROGRAMS / "ansible-playbook"), "-i", self.inventory, *self._options, "-e", f"@{self.variables}"]
        seconds = self.deadline - time.monotonic()
        try:
            done = subprocess.run(
                [*command, *arguments], cwd=ROOT, env=environment(), timeout=max(1, seconds), check=False
            )
        except subprocess.TimeoutExpired:
            raise FailedError(f"{arguments[0]} took too long") from None
        if done.returncode != 0:
            raise FailedError(f"{arguments[0]} ended {done.returncode}")


def remains(ec2: Any) -> list[str]:
    """Return the ids of what carries the tag of the data set, by the API itself; a terminated instance is free."""
    ours = {"Name": "tag:Dataset", "Values": [DATASET]}
    live = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
    pages = ec2.get_paginator("describe_instances").paginate(Filters=[ours, live])
    entries = [entry for page in pages for entry in page["Reservations"]]
    found = [str(one["InstanceId"]) for entry in entries for one in entry["Instances"]]
    for operation, key, name in LOOKS:
        found += [str(one[name]) for one in getattr(ec2, operation)(Filters=[ours])[key]]
    return found


def environment() -> dict[str, str]:
    """Return what the playbooks find in their environment."""
    return {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8"}


def price_list(costs: Sequence[Cost] = COSTS) -> str:
    """Return what an hour costs, line by line, and in all."""
    lines = [f"  {cost.amount * cost.usd_hour:8.4f} USD  {cost.amount:g} {cost.what}" for cost in costs]
    total = sum(cost.amount * cost.usd_hour for cost in costs)
    return "\n".join(
        [*lines, f"  {total:8.4f} USD  in all, for the hour that it takes at most (us-east-1, without tax)"]
    )


@contextlib.contextmanager
def interruptions_raised() -> Iterator[None]:
    """Make SIGTERM an exception too, so that teardown follows."""
    previous = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main() -> int:
    """Ask, run, remove, look; return 0 where all went well and nothing is left."""
    parser = argparse.ArgumentParser(prog="make live", description="Smoke test in a real AWS account.")
    parser.add_argument("-i", "--inventory", default="inventories/mine", help="your inventory (inventories/mine)")
    parser.add_argument("-e", "--extra-vars", action="append", default=[], help="as of ansible-playbook")
    parser.add_argument("--bucket", help="remove what an earlier run left, with the bucket that it named")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    given = parser.parse_args()
    bucket = given.bucket or f"{DATASET}-{secrets.token_hex(6)}"
    print(f"This creates, in the account and Region of {given.inventory}, and removes again:\n{price_list()}")
    print(f"  bucket {bucket}; all carries the tag Dataset={DATASET}")
    if not given.yes and input("Type yes to begin: ") != "yes":
        print("Nothing was created.")
        return 1
    options = [part for text in given.extra_vars for part in ("-e", text)]
    failure = ""
    with tempfile.TemporaryDirectory() as folder, interruptions_raised():
        live = Live(given.inventory, options, Path(folder), bucket)
        try:
            if not given.bucket:
                live.run()
        except (FailedError, subprocess.CalledProcessError, KeyboardInterrupt, ValueError) as error:
            failure = str(error) or "interrupted"
        try:
            left = live.remove()
        except (FailedError, subprocess.CalledProcessError, KeyboardInterrupt) as error:
            left = [f"unknown, for teardown failed ({error})"]
    if failure:
        print(f"FAILED: {failure}")
    if left:
        rerun = f"make live ARGS='-i {given.inventory} --bucket {bucket}'"
        print(f"LEFT BEHIND: {', '.join(left)}. Run `{rerun}` to remove it.")
    if failure or left:
        return 1
    print("Prepared, deployed and removed; nothing is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
