from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.host.devices import (
    LINK_PREFIX,
    DeviceInfo,
    Host,
    device_info,
    mount_points,
    mounted_source,
    read_signature,
    serial_of,
)
from hypothesis import given
from hypothesis import strategies as st

VOLUME = "vol-0123456789abcdef0"
SERIAL = "vol0123456789abcdef0"
NO_SIGNATURES = '{\n   "signatures": [\n\n   ]\n}\n'
EXT4 = "DEVNAME=/dev/nvme1n1\nUUID=a9112d48\nLABEL=data=1\nBLOCK_SIZE=4096\nTYPE=ext4\nUSAGE=filesystem\n"


class FakeHost:
    """A machine whose programs answer what a test says; time passes only by sleeping."""

    def __init__(self, root: Path) -> None:
        self.by_id = root / "by-id"
        self.by_id.mkdir()
        self.mountinfo = root / "mountinfo"
        self.mountinfo.write_text("")
        self.device = root / "nvme1n1"
        self.device.write_bytes(bytes(4096))
        self.serial = SERIAL
        self.blkid: tuple[int, str, str] = (2, "", "")
        self.wipefs: tuple[int, str, str] = (0, NO_SIGNATURES, "")
        self.now = 0.0
        self.appears_at = 0.0
        self.commands: list[list[str]] = []

    def link(self, serial: str = SERIAL) -> None:
        (self.by_id / (LINK_PREFIX + serial)).symlink_to(self.device)

    def run_command(self, command: list[str]) -> tuple[int, str, str]:
        self.commands.append(command)
        assert command[-1] == str(self.device)
        return {"lsblk": (0, f"{self.serial}\n", ""), "blkid": self.blkid, "wipefs": self.wipefs}[command[0]]

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if 0 < self.appears_at <= self.now and not list(self.by_id.iterdir()):
            self.link()

    def info(self, timeout_seconds: float = 1) -> DeviceInfo:
        host = Host(self.run_command, str(self.by_id), str(self.mountinfo), self.sleep, lambda: self.now)
        return device_info(host, VOLUME, timeout_seconds)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_a_blank_volume(host: FakeHost) -> None:
    host.link()
    assert host.info() == {
        "device": str(host.by_id / "nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0"),
        "real_device": str(host.device),
        "serial": SERIAL,
        "fstype": "",
        "uuid": "",
        "label": "",
        "blank": True,
        "size_bytes": 4096,
        "mount_points": [],
        "mounted_source": "",
    }


def test_a_filesystem_is_described_and_not_blank(host: FakeHost) -> None:
    host.link()
    host.blkid = (0, EXT4, "")
    info = host.info()
    assert (info["fstype"], info["uuid"], info["label"], info["blank"]) == ("ext4", "a9112d48", "data=1", False)


@pytest.mark.parametrize(
    ("blkid", "wipefs"),
    [
        pytest.param((0, "DEVNAME=x\nPTTYPE=dos\n", ""), (0, NO_SIGNATURES, ""), id="partition table"),
        pytest.param((8, "", ""), (0, NO_SIGNATURES, ""), id="signatures that contradict one another"),
        pytest.param((2, "", ""), (0, '{"signatures": [{"type": "LVM2_member"}]}', ""), id="only wipefs finds it"),
    ],
)
def test_anything_at_all_is_not_blank(
    host: FakeHost, blkid: tuple[int, str, str], wipefs: tuple[int, str, str]
) -> None:
    host.link()
    host.blkid, host.wipefs = blkid, wipefs
    info = host.info()
    assert info["blank"] is False
    assert info["fstype"] == ""


def test_old_wipefs_prints_nothing_for_a_blank_device(host: FakeHost) -> None:
    host.link()
    host.wipefs = (0, "", "")
    assert host.info()["blank"] is True


def test_a_device_that_appears_later_is_waited_for(host: FakeHost) -> None:
    host.appears_at = 40
    assert host.info(timeout_seconds=60)["serial"] == SERIAL
    assert host.now == 40


def test_no_device(host: FakeHost) -> None:
    host.link("vol0aaaaaaaaaaaaaaaa")
    with pytest.raises(OpsError) as caught:
        host.info(timeout_seconds=3)
    assert host.now == 3
    assert str(caught.value) == (
        f"Volume {VOLUME}: no device {host.by_id}/nvme-Amazon_Elastic_Block_Store_{SERIAL} on this host "
        "(it has vol-0aaaaaaaaaaaaaaaa). Check that the volume is attached to this instance. Instances of the Xen "
        "generation, where EBS volumes are not NVMe devices, are not supported"
    )


def test_no_device_on_a_host_without_any(host: FakeHost) -> None:
    with pytest.raises(OpsError, match="it has no EBS volume at all"):
        host.info(0)
    host.by_id.rmdir()
    with pytest.raises(OpsError, match=f"there is no {host.by_id}"):
        host.info(0)


def test_a_stale_link_is_not_believed(host: FakeHost) -> None:
    host.link()
    host.serial = "vol0fffffffffffffff0"
    with pytest.raises(OpsError) as caught:
        host.info()
    assert str(caught.value) == (
        f"Volume {VOLUME}: {host.by_id}/{LINK_PREFIX}{SERIAL} leads to {host.device}, which is not that volume (serial "
        "'vol0fffffffffffffff0'). The link is stale: wait for udev (udevadm settle), then rerun"
    )
    assert not [command for command in host.commands if command[0] != "lsblk"]


def test_a_device_without_a_serial_is_not_believed(host: FakeHost) -> None:
    host.link()
    host.serial = ""
    with pytest.raises(OpsError, match="not that volume"):
        host.info()


def test_a_device_that_cannot_be_read(host: FakeHost) -> None:
    host.link()
    host.blkid = (1, "", "blkid: error: permission denied\n")
    with pytest.raises(OpsError) as caught:
        host.info()
    assert str(caught.value) == (
        f"Device {host.device}: blkid ended with 1: blkid: error: permission denied. "
        "Run the task as root (become: true) and check dmesg on the host"
    )
    host.blkid, host.wipefs = (2, "", ""), (1, "", "wipefs: error: probing initialization failed\n")
    with pytest.raises(OpsError, match="wipefs ended with 1: wipefs: error: probing initialization failed"):
        host.info()


@pytest.mark.parametrize("volume_id", ["", "vol0123456789abcdef0", "vol-XYZ", "../vol-01234567", "i-0123456789abcdef0"])
def test_what_is_not_a_volume_id(volume_id: str) -> None:
    with pytest.raises(OpsError, match="it is not one of EBS"):
        serial_of(volume_id)


@given(points=st.lists(st.text("ab \t\n\\ü#/", min_size=1, max_size=8), max_size=4, unique=True))
def test_mount_points_with_any_name(points: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    def escaped(text: str) -> str:
        return "".join(f"\\{ord(letter):03o}" if letter in " \t\n\\" else letter for letter in text)

    path = tmp_path_factory.mktemp("mountinfo") / "mountinfo"
    lines = [f"36 35 259:1 / /{escaped(point)} ro,noatime - ext4 /dev/nvme1n1 ro\n" for point in points]
    path.write_text("23 27 0:22 / /sys rw - sysfs sysfs rw\n" + "".join(lines), encoding="utf-8")
    host = Host(run_here, mountinfo_path=str(path))
    assert mount_points(host, "259:1") == sorted("/" + point for point in points)
    assert mount_points(host, "259:2") == []
    assert mounted_source(host, "/sys") == "sysfs"
    assert [mounted_source(host, f"/{point}") for point in points] == ["/dev/nvme1n1"] * len(points)
    assert mounted_source(host, "/nothing here") == ""


def test_what_is_mounted_on_top_counts(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_text(
        "36 35 259:1 / /data ro shared:7 - ext4 /dev/nvme1n1 ro\n"
        "40 36 259:2 / /data ro master:7 shared:9 - xfs /dev/nvme2n1 ro\n"
    )
    assert mounted_source(Host(run_here, mountinfo_path=str(path)), "/data") == "/dev/nvme2n1"


def run_here(command: list[str]) -> tuple[int, str, str]:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    return result.returncode, result.stdout, result.stderr


def test_the_real_programs_on_a_real_device(loop_device: str, tmp_path: Path) -> None:
    assert read_signature(Host(run_here), loop_device).blank is True
    subprocess.check_call(["mkfs.ext4", "-q", "-L", "data", loop_device])
    signature = read_signature(Host(run_here), loop_device)
    assert (signature.fstype, signature.label, signature.blank) == ("ext4", "data", False)
    assert len(signature.uuid) == 36

    by_id = tmp_path / "by-id"
    by_id.mkdir()
    (by_id / (LINK_PREFIX + SERIAL)).symlink_to(loop_device)

    def with_serial(command: list[str]) -> tuple[int, str, str]:
        return (0, SERIAL, "") if command[0] == "lsblk" else run_here(command)

    mounted = tmp_path / "mounted here"
    mounted.mkdir()
    subprocess.check_call(["mount", "-o", "ro", loop_device, str(mounted)])
    try:
        info = device_info(Host(with_serial, str(by_id)), VOLUME, 0)
    finally:
        subprocess.check_call(["umount", str(mounted)])
    assert info["mount_points"] == [str(mounted)]
    assert info["size_bytes"] == 16 << 20
