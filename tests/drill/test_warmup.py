"""A volume from a snapshot is cold; what each way of warming it changes is how fast the first epoch reads.

Each host is warmed in another way. The lab counts every block that a reader had to wait for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from lab.lazy_files import missing_for_lazy_files
from tests.integration.harness import Lab, Run, running_lab

RECORDS = "/data/imagenet/recordio"
# The lab's hour of fast snapshot restore, and its quota of initialization rates.
HOUR_SECONDS = "20"
QUOTA_MIB_S = "250"
HOUR = ("-e", f"fleet_warmup_fsr_hour_seconds={HOUR_SECONDS}")
# By the true hour, the credits are hours away.
NO_CREDITS = ("-e", "fleet_warmup_fsr_hour_seconds=360000")
# Files of the data set leave the page cache, so that the next reader asks the volume.
EPOCH = f"""
for file in {RECORDS}/*.rec; do dd if=$file iflag=nocache count=0 status=none; done
date +%s.%N; cat {RECORDS}/*.rec | wc -c; date +%s.%N
"""


@pytest.fixture(scope="module")
def prepared() -> Iterator[Lab]:
    """A lab of cold volumes, with a snapshot to deploy."""
    if missing := missing_for_lazy_files():
        pytest.skip(f"lazily loaded volumes need what is missing here: {', '.join(missing)}")
    lazy = ("--lazy-mib-s", "5", "--initialization-quota-mib-s", QUOTA_MIB_S)
    with running_lab("--hosts", "10", *lazy, "--fast-restore-hour-seconds", HOUR_SECONDS) as lab:
        lab.playbook("playbooks/prepare.yml")
        yield lab


def command(hosts: str, mode: str, *arguments: str) -> tuple[str, ...]:
    return ("playbooks/deploy.yml", "--limit", hosts, "-e", f"fleet_warmup_mode={mode}", *arguments)


def deploy(lab: Lab, hosts: str, mode: str, *arguments: str, expect_success: bool = True) -> Run:
    return lab.playbook(*command(hosts, mode, *arguments), expect_success=expect_success)


def row(run: Run, host: str) -> dict[str, str]:
    names = ["host", "zone", "volume", "type", "version", "warm", "records", "speed", "result"]
    return next(dict(zip(names, cells, strict=True)) for cells in run.table("host", "result") if cells[0] == host)


def epoch(lab: Lab, host: str) -> tuple[float, int]:
    """Read all records, none of them from the page cache: MiB/s, and the blocks that were waited for."""
    link = lab.ssh(host, "awk '$2 == \"/data\" { print $1 }' /etc/fstab").strip()
    volume = "vol-" + link.rsplit("vol", 1)[1]
    before = lab.first_reads().get(volume, 0)
    began, size_bytes, ended = map(float, lab.ssh(host, EPOCH).split())
    return size_bytes / 2**20 / (ended - began), lab.first_reads().get(volume, 0) - before


def fast_restore(lab: Lab) -> tuple[list[str], list[str]]:
    """In which zones fast snapshot restore is on, and which of them the tags of snapshots tell the next run of."""
    ec2 = lab.ec2()
    items = ec2.describe_fast_snapshot_restores()["FastSnapshotRestores"]
    tags = [tag for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"] for tag in one.get("Tags", [])]
    noted = [zone for tag in tags if tag["Key"] == "FastRestoreZones" for zone in tag["Value"].split()]
    return [item["AvailabilityZone"] for item in items if item["State"] != "disabled"], noted


OFF: tuple[list[str], list[str]] = ([], [])


def test_without_a_warmup_the_first_epoch_waits_for_its_blocks(prepared: Lab) -> None:
    run = deploy(prepared, "gpu-1", "none", "-e", "dataset_verify_decode_samples=1")
    assert "selected: none (as requested)" in run.text
    assert int(row(run, "gpu-1")["warm"]) < 50
    speed, waited = epoch(prepared, "gpu-1")
    assert waited > 0
    speed_then, waited_then = epoch(prepared, "gpu-1")
    assert waited_then == 0
    assert speed < speed_then / 2


def test_after_reading_the_first_epoch_waits_for_nothing(prepared: Lab) -> None:
    run = deploy(prepared, "gpu-2", "read")
    assert re.search(r"gpu-2 \| dataset_warm \| reading: [\d.]+/[\d.]+ MB, \d+ %", run.text)
    seen = row(run, "gpu-2")
    assert (seen["warm"], seen["result"]) == ("100", "ok")
    assert float(seen["speed"]) > 5
    assert epoch(prepared, "gpu-2")[1] == 0
    again = deploy(prepared, "gpu-2", "read")
    assert again.all_unchanged()


def test_the_default_buys_nothing_and_leaves_nothing_cold(prepared: Lab) -> None:
    run = prepared.playbook("playbooks/deploy.yml", "--limit", "gpu-2")
    assert run.all_unchanged()
    assert "every host has its volume already" in run.text


def test_at_a_provisioned_rate_ebs_warms_the_volumes_in_waves_that_the_quota_allows(prepared: Lab) -> None:
    """The rates of two volumes are more than the quota; the lab refuses a volume that goes over it."""
    rate = ("-e", "fleet_warmup_rate_mib_s=200", "-e", f"fleet_warmup_quota_mib_s={QUOTA_MIB_S}")
    run = deploy(prepared, "gpu-3:gpu-4", "rate", *rate)
    assert run.text.count("TASK [Wait for the initialization of this wave") == 1, "one wave before the last"
    assert "dataset_warm | reading" not in run.text
    for host in ("gpu-3", "gpu-4"):
        assert (row(run, host)["warm"], row(run, host)["result"]) == ("100", "ok")
        assert epoch(prepared, host)[1] == 0


def test_at_a_provisioned_rate_a_new_host_is_served_beside_one_that_has_its_volume(prepared: Lab) -> None:
    """The volume of an earlier run is a wave of its own, for its rate may still count."""
    rate = ("-e", "fleet_warmup_rate_mib_s=200", "-e", f"fleet_warmup_quota_mib_s={QUOTA_MIB_S}")
    run = deploy(prepared, "gpu-3:gpu-10", "rate", *rate)
    for host in ("gpu-3", "gpu-10"):
        assert (row(run, host)["warm"], row(run, host)["result"]) == ("100", "ok")


def test_fast_snapshot_restore_is_switched_on_for_the_volumes_and_off_again(prepared: Lab) -> None:
    run = deploy(prepared, "gpu-5", "fsr", *HOUR)
    assert "dataset_warm | reading" not in run.text
    assert (row(run, "gpu-5")["warm"], row(run, "gpu-5")["result"]) == ("100", "ok")
    assert epoch(prepared, "gpu-5")[1] == 0
    assert fast_restore(prepared) == OFF


def test_without_credits_in_time_every_host_says_so_and_fast_snapshot_restore_is_off(prepared: Lab) -> None:
    limits = ("-e", "fleet_warmup_timeout_seconds=1")
    run = deploy(prepared, "gpu-6:gpu-7:gpu-8", "fsr", *NO_CREDITS, *limits, expect_success=False)
    for host in ("gpu-6", "gpu-7", "gpu-8"):
        assert "after 1 s it has not the credits for 3 volumes" in row(run, host)["result"]
    assert fast_restore(prepared) == OFF


def test_hosts_that_cannot_be_reached_leave_no_fast_snapshot_restore_on(prepared: Lab) -> None:
    run = deploy(prepared, "gpu-6:gpu-7", "fsr", *HOUR, "-e", "ansible_port=1", expect_success=False)
    assert [run.recap[host]["unreachable"] for host in ("gpu-6", "gpu-7")] == [1, 1]
    assert fast_restore(prepared) == OFF
    served = deploy(prepared, "gpu-6:gpu-7", "none")
    assert [row(served, host)["warm"] for host in ("gpu-6", "gpu-7")] == ["100", "100"], "their volumes took credits"


def test_a_host_that_fails_leaves_no_fast_snapshot_restore_on(prepared: Lab) -> None:
    prepared.ssh("gpu-8", "sudo mkdir -p /data && sudo mount -t tmpfs mine /data")
    run = deploy(prepared, "gpu-8", "fsr", *HOUR, expect_success=False)
    assert "mine is already mounted there; not unmounted" in row(run, "gpu-8")["result"]
    assert fast_restore(prepared) == OFF
    prepared.ssh("gpu-8", "sudo umount /data")


def test_what_a_killed_run_left_on_is_switched_off_by_the_next_whatever_that_is_for(prepared: Lab) -> None:
    prepared.kill_playbook_at("fast snapshot restore: 0/1 credits", *command("gpu-9", "fsr", *NO_CREDITS))
    assert fast_restore(prepared) == (["us-east-1a"], ["us-east-1a"])
    snapshot_again(prepared)
    run = prepared.playbook("playbooks/deploy.yml", "--limit", "gpu-2")
    assert run.task_changed("fleet_warmup : Disable fast snapshot restore")
    assert fast_restore(prepared) == OFF


def snapshot_again(lab: Lab) -> None:
    """Make a newer snapshot of what is in the fleet's snapshot, as a new version of the data would."""
    ec2 = lab.ec2()
    (old,) = ec2.describe_snapshots(Filters=[{"Name": "tag:Role", "Values": ["deploy_snapshot"]}])["Snapshots"]
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", SnapshotId=old["SnapshotId"])["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig={"Delay": 1})
    tags = [tag for tag in old["Tags"] if tag["Key"] != "FastRestoreZones"]
    ec2.create_snapshot(VolumeId=volume, TagSpecifications=[{"ResourceType": "snapshot", "Tags": tags}])
    ec2.delete_volume(VolumeId=volume)
