"""A volume from a snapshot is cold; what each way of warming it changes is how fast the first epoch reads.

Each host is warmed in another way. The lab counts every block that a reader had to wait for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from lab.lazy_files import missing_for_lazy_files
from tests.integration.harness import Lab, Run, running_lab

RECORDS = "/data/imagenet/recordio"
# The lab's hour of fast snapshot restore.
HOUR = ("-e", "fleet_warmup_fsr_hour_seconds=20")


@pytest.fixture(scope="module")
def prepared() -> Iterator[Lab]:
    """A lab of cold volumes, with a snapshot to deploy. The rates of two volumes are more than its quota."""
    if missing := missing_for_lazy_files():
        pytest.skip(f"lazily loaded volumes need what is missing here: {', '.join(missing)}")
    lazy = ("--lazy-mib-s", "5", "--initialization-quota-mib-s", "250", "--fast-restore-hour-seconds", "20")
    with running_lab("--hosts", "4", "--delay", "0", *lazy) as lab:
        lab.playbook("playbooks/prepare.yml")
        yield lab


def deploy(lab: Lab, host: str, mode: str, *arguments: str) -> Run:
    return lab.playbook("playbooks/deploy.yml", "--limit", host, "-e", f"fleet_warmup_mode={mode}", *arguments)


def row(run: Run, host: str) -> dict[str, str]:
    names = ["host", "zone", "volume", "type", "version", "warm", "records", "speed", "result"]
    return next(dict(zip(names, cells, strict=True)) for cells in run.table("host", "result") if cells[0] == host)


def first_epoch(lab: Lab, host: str) -> tuple[float, int]:
    """Read all records as a training does for the first time: MiB/s, and the blocks that were waited for."""
    volume = row_volume(lab, host)
    before = lab.first_reads().get(volume, 0)
    started = time.monotonic()
    size = lab.ssh(host, f"cat {RECORDS}/*.rec | wc -c")
    seconds = time.monotonic() - started
    return int(size) / 2**20 / seconds, lab.first_reads().get(volume, 0) - before


def row_volume(lab: Lab, host: str) -> str:
    link = lab.ssh(host, "awk '$2 == \"/data\" { print $1 }' /etc/fstab").strip()
    return "vol-" + link.rsplit("vol", 1)[1]


def test_without_a_warmup_the_first_epoch_waits_for_its_blocks(prepared: Lab) -> None:
    run = deploy(prepared, "gpu-1", "none", "-e", "dataset_verify_decode_samples=1")
    assert "taken: none, for it was asked for" in run.text
    assert int(row(run, "gpu-1")["warm"]) < 50
    speed, waited = first_epoch(prepared, "gpu-1")
    assert waited > 0
    assert speed < 25


def test_after_reading_the_first_epoch_waits_for_nothing(prepared: Lab) -> None:
    run = deploy(prepared, "gpu-2", "read")
    assert re.search(r"gpu-2 \| dataset_warm \| reading: [\d.]+/[\d.]+ MB, \d+ %", run.text)
    seen = row(run, "gpu-2")
    assert (seen["warm"], seen["result"]) == ("100", "ok")
    assert float(seen["speed"]) > 5
    assert first_epoch(prepared, "gpu-2")[1] == 0
    again = deploy(prepared, "gpu-2", "read")
    assert again.all_unchanged()


def test_the_default_buys_nothing_and_leaves_nothing_cold(prepared: Lab) -> None:
    run = prepared.playbook("playbooks/deploy.yml", "--limit", "gpu-2")
    assert run.all_unchanged()
    assert "every host has its volume already" in run.text


def test_at_a_provisioned_rate_ebs_warms_the_volumes_and_it_is_waited_for(prepared: Lab) -> None:
    run = deploy(prepared, "gpu-3", "rate", "-e", "fleet_warmup_rate_mib_s=100")
    assert row(run, "gpu-3")["warm"] == "100"
    assert "dataset_warm | reading" not in run.text
    assert first_epoch(prepared, "gpu-3")[1] == 0


def test_fast_snapshot_restore_is_switched_on_for_the_volumes_and_off_again(prepared: Lab) -> None:
    run = deploy(prepared, "gpu-4", "fsr", *HOUR)
    assert row(run, "gpu-4")["warm"] == "100"
    assert first_epoch(prepared, "gpu-4")[1] == 0
    states = prepared.ec2().describe_fast_snapshot_restores()["FastSnapshotRestores"]
    assert [item["State"] for item in states] == ["disabled"]
