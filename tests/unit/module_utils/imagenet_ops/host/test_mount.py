"""One volume at its path, and proof of it; what else is mounted there, in use, or not blank stays as it is."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.host import devices
from ansible.module_utils.imagenet_ops.host import mount as mount_module
from ansible.module_utils.imagenet_ops.host.devices import LINK_PREFIX, Host
from ansible.module_utils.imagenet_ops.host.mount import MountRequest, MountResult, mount_volume, with_entry
from hypothesis import given
from hypothesis import strategies as st

NEW, OLD, OTHER = "vol-00000000000000002", "vol-00000000000000001", "vol-00000000000000009"
FSTAB = "# made by hand\nUUID=1234 / ext4 defaults 0 1\n"


class FakeHost:
    """A machine with volumes: mount, umount, blkid and lsblk as they would answer, and processes with open files."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.path = root / "data"
        for folder in ("by-id", "proc", "systemd"):
            (root / folder).mkdir()
        self.fstab = root / "fstab"
        self.fstab.write_text(FSTAB)
        self.fstypes: dict[str, str] = {}
        self.uuid = "a9112d48"
        self.signatures = "[]"
        self.mounted: list[tuple[str, str]] = []
        self.held: set[str] = set()
        self.mount_options = "ro"
        self.commands: list[list[str]] = []
        self.failing: dict[str, str] = {}
        self.write_mounts()
        for module in (devices, mount_module):
            monkeypatch.setattr(module, "device_number", self.number)
        monkeypatch.setattr(
            mount_module, "is_held", lambda device: Path(device).name in self.held | self.mounted_names()
        )

    def add(self, volume: str, fstype: str = "ext4") -> None:
        device = self.root / f"nvme{volume[-1]}n1"
        device.write_bytes(b"")
        (self.root / "by-id" / (LINK_PREFIX + volume.replace("-", ""))).symlink_to(device)
        self.fstypes[str(device)] = fstype

    def number(self, device: str) -> str:
        return f"259:{Path(device).name[4:-2]}"

    def mounted_names(self) -> set[str]:
        return {Path(device).name for device, _ in self.mounted}

    def write_mounts(self) -> None:
        lines = ["1 0 8:1 / / rw - ext4 /dev/root rw\n"]
        for device, options in self.mounted:
            lines.append(f"2 1 {self.number(device)} / {self.path} {options},relatime - ext4 {device} ro\n")
        (self.root / "mountinfo").write_text("".join(lines))

    def mount(self, volume: str, options: str = "ro") -> None:
        self.path.mkdir(exist_ok=True)
        self.mounted.append((str(self.root / f"nvme{volume[-1]}n1"), options))
        self.write_mounts()

    def run_command(self, command: list[str]) -> tuple[int, str, str]:
        self.commands.append(command)
        name = command[0]
        if name in self.failing:
            return 32, "", self.failing[name]
        if name == "lsblk":
            return 0, f"vol{'0' * 16}{Path(command[-1]).name[4:-2]}\n", ""
        if name == "blkid":
            return self.probe(command[-1])
        if name == "wipefs":
            return 0, f'{{"signatures": {self.signatures}}}', ""
        if name.startswith("mkfs."):
            self.fstypes[command[-1]] = name[len("mkfs.") :]
        elif name == "umount":
            self.mounted.pop()
        elif name == "mount":
            device = os.path.realpath(command[-2])
            if self.fstypes[device] == "broken":
                return 32, "", "wrong fs type, bad superblock.\n"
            self.mounted.append((device, self.mount_options))
        self.write_mounts()
        return 0, "", ""

    def probe(self, device: str) -> tuple[int, str, str]:
        found = self.fstypes[device]
        if found == "ambivalent":
            return 8, "", ""
        text = "PTTYPE=gpt\n" if found == "gpt" else f"TYPE={found}\nUUID={self.uuid}\n"
        return (0, text, "") if found else (2, "", "")

    def open_file(self, pid: int, name: str, folder: str = "fd/3") -> None:
        """Let a process have something of the mounted filesystem open (all of the test lies on one filesystem)."""
        process = self.root / "proc" / str(pid)
        (process / folder).parent.mkdir(parents=True)
        (process / "fd").mkdir(exist_ok=True)
        (process / folder).symlink_to(self.path)
        (process / "comm").write_text(f"{name}\n")

    def ensure(self, *, check_mode: bool = False, **changes: Any) -> MountResult:
        host = Host(
            self.run_command,
            str(self.root / "by-id"),
            str(self.root / "mountinfo"),
            fstab_path=str(self.fstab),
            proc_directory=str(self.root / "proc"),
            systemd_directory=str(self.root / "systemd"),
        )
        request = MountRequest(**{"volume_id": NEW, "path": str(self.path), "timeout_seconds": 0, **changes})
        return mount_volume(host, request, check_mode=check_mode)

    def names(self) -> list[str]:
        return [command[0] for command in self.commands if command[0] in ("mkfs.ext4", "mount", "umount", "systemctl")]

    def fstab_entries(self) -> list[list[str]]:
        return [line.split() for line in self.fstab.read_text().splitlines() if str(self.path) in line]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    host = FakeHost(tmp_path, monkeypatch)
    host.add(NEW)
    return host


def test_check_mount_again(host: FakeHost) -> None:
    predicted = host.ensure(check_mode=True)
    assert (host.mounted, host.fstab.read_text(), host.path.exists()) == ([], FSTAB, False)
    made = host.ensure()
    assert made == predicted
    assert (made["changed"], made["released"]) == (True, False)
    assert [device for device, _ in host.mounted] == [str(host.root / "nvme2n1")]
    assert host.fstab.read_text().startswith(FSTAB)
    ((device, path, fstype, options, dump, order),) = host.fstab_entries()
    assert device == made["device"] == str(host.root / "by-id" / f"{LINK_PREFIX}vol00000000000000002")
    assert (path, fstype, dump, order) == (str(host.path), "ext4", "0", "0")
    assert {"ro", "nofail", "noatime"} <= set(options.split(","))
    host.commands.clear()
    for check_mode in (True, False):
        assert host.ensure(check_mode=check_mode)["changed"] is False
    assert host.names() == []


def test_the_diff_shows_fstab_and_what_is_mounted(host: FakeHost) -> None:
    diff = host.ensure()["diff"]
    assert diff["before"] == f"{FSTAB}# nothing mounted\n"
    assert diff["after"].startswith(FSTAB)
    assert diff["after"].endswith(f"{LINK_PREFIX}vol00000000000000002 mounted at {host.path}\n")
    again = host.ensure()["diff"]
    assert again["before"] == again["after"]


def test_a_mount_without_its_line_in_fstab_gets_the_line_and_is_not_touched(host: FakeHost) -> None:
    host.mount(NEW)
    assert host.ensure()["changed"] is True
    assert "mount" not in host.names()
    assert len(host.fstab_entries()) == 1


def test_systemd_learns_of_the_new_device_before_it_is_mounted(host: FakeHost) -> None:
    host.ensure()
    assert host.names() == ["systemctl", "mount"]


def test_one_that_is_mounted_for_writing_is_mounted_again(host: FakeHost) -> None:
    host.mount(NEW, "rw")
    assert host.ensure()["changed"] is True
    assert host.names() == ["systemctl", "umount", "mount"]
    assert host.mounted[0][1] == "ro"


def test_copies_of_an_xfs_are_mounted_beside_each_other(host: FakeHost) -> None:
    host.fstypes[str(host.root / "nvme2n1")] = "xfs"
    host.ensure(fstype="xfs")
    assert "nouuid" in host.fstab_entries()[0][3].split(",")
    assert "nouuid" in next(command for command in host.commands if command[0] == "mount")[4].split(",")


# --- a new version takes the place of the old one


def test_the_old_version_is_unmounted_and_can_go(host: FakeHost) -> None:
    host.add(OLD)
    host.ensure(volume_id=OLD)
    assert host.ensure(replace_volume_ids=(OLD,), check_mode=True)["changed"] is True
    made = host.ensure(replace_volume_ids=(OLD,))
    assert (made["changed"], made["released"]) == (True, True)
    assert [Path(device).name for device, _ in host.mounted] == ["nvme2n1"]
    assert [entry[0] for entry in host.fstab_entries()] == [made["device"]]
    again = host.ensure(replace_volume_ids=(OLD,))
    assert (again["changed"], again["released"]) == (False, True)


def test_a_version_in_use_is_left_alone_and_named_with_who_uses_it(host: FakeHost) -> None:
    host.add(OLD)
    host.ensure(volume_id=OLD)
    fstab = host.fstab.read_text()
    host.open_file(41, "python3")
    host.open_file(7, "bash", "cwd")
    for check_mode in (True, False):
        with pytest.raises(OpsError) as caught:
            host.ensure(replace_volume_ids=(OLD,), check_mode=check_mode)
        assert str(caught.value) == (
            f"Replacing {host.root}/nvme1n1 at {host.path}: mount point busy: 7 (bash), 41 (python3); not unmounted. "
            "Rerun when these processes exit, or set fleet_host_lazy_unmount=true: they keep their open files"
        )
    assert [Path(device).name for device, _ in host.mounted] == ["nvme1n1"]
    assert host.fstab.read_text() == fstab


def test_a_version_in_use_is_replaced_where_told_and_stays_until_it_is_closed(host: FakeHost) -> None:
    host.add(OLD)
    host.ensure(volume_id=OLD)
    host.open_file(41, "python3")
    host.held.add("nvme1n1")
    made = host.ensure(replace_volume_ids=(OLD,), lazy_unmount=True)
    assert (made["changed"], made["released"]) == (True, False)
    assert ["umount", "--lazy", str(host.path)] in host.commands
    host.held.clear()
    assert host.ensure(replace_volume_ids=(OLD,))["released"] is True


def test_what_belongs_to_others_is_left_alone(host: FakeHost) -> None:
    host.add(OTHER)
    host.mount(OTHER)
    for lazy in (False, True):
        with pytest.raises(OpsError) as caught:
            host.ensure(replace_volume_ids=(OLD,), lazy_unmount=lazy)
        assert str(caught.value) == (
            f"Mounting {NEW} at {host.path}: {host.root}/nvme9n1 is already mounted there; not unmounted. "
            f"Unmount it (umount {host.path}), or choose another data_mount_path"
        )
    assert (host.names(), host.fstab.read_text()) == ([], FSTAB)


def test_where_the_new_version_does_not_mount_the_old_one_comes_back(host: FakeHost) -> None:
    host.add(OLD)
    host.ensure(volume_id=OLD)
    run = host.run_command

    def mount_nothing_new(command: list[str]) -> tuple[int, str, str]:
        return (32, "", "bad superblock.\n") if command[0] == "mount" and command[-2].endswith("2") else run(command)

    host.run_command = mount_nothing_new  # type: ignore[method-assign]
    with pytest.raises(OpsError, match=r"Mounting .*: mount ended with 32: bad superblock\. Check dmesg on the host"):
        host.ensure(replace_volume_ids=(OLD,))
    assert [Path(device).name for device, _ in host.mounted] == ["nvme1n1"]


# --- what goes wrong


@pytest.mark.parametrize(("fstype", "holds"), [("", "it is blank"), ("xfs", "it holds xfs and not ext4")])
def test_another_filesystem_is_not_touched(host: FakeHost, fstype: str, holds: str) -> None:
    host.fstypes[str(host.root / "nvme2n1")] = fstype
    with pytest.raises(OpsError, match=f"Volume {NEW} .*: {holds}: it was not touched. Check what "):
        host.ensure()
    assert host.names() == []


def test_a_volume_that_is_not_there(host: FakeHost) -> None:
    with pytest.raises(OpsError, match=f"Volume {OTHER}: no device .* Check that the volume is attached"):
        host.ensure(volume_id=OTHER)


def test_a_mount_that_is_not_what_was_mounted_is_an_error(host: FakeHost) -> None:
    host.mount_options = "rw"
    with pytest.raises(OpsError) as caught:
        host.ensure()
    assert str(caught.value) == (
        f"Volume {NEW}: after mounting it read-only, {host.root}/nvme2n1 (rw,relatime) is what is mounted at "
        f"{host.path}. Find out what unmounts or mounts there (findmnt {host.path}, systemctl status), then rerun"
    )


def test_an_unmount_that_fails_is_told(host: FakeHost) -> None:
    host.add(OLD)
    host.ensure(volume_id=OLD)
    host.failing["umount"] = f"umount: {host.path}: target is busy."
    with pytest.raises(OpsError, match=r"Unmounting .*: umount ended with 32: .*: target is busy\. Check dmesg"):
        host.ensure(replace_volume_ids=(OLD,))


# --- for writing, and formatted where that is allowed

WRITABLE: dict[str, Any] = {"read_only": False, "mount_by": "uuid", "mkfs_options": ("-m", "0")}


@pytest.fixture
def blank(host: FakeHost) -> FakeHost:
    host.mount_options = "rw"
    host.fstypes[str(host.root / "nvme2n1")] = ""
    return host


def test_check_format_mount_again(blank: FakeHost) -> None:
    predicted = blank.ensure(check_mode=True, format_allowed=True, **WRITABLE)
    assert (blank.names(), blank.fstab.read_text(), blank.path.exists()) == ([], FSTAB, False)
    made = blank.ensure(format_allowed=True, **WRITABLE)
    for answer in (predicted, made):
        assert (answer["changed"], answer["formatted"], answer["released"]) == (True, True, False)
    assert ["mkfs.ext4", "-m", "0", str(blank.root / "nvme2n1")] in blank.commands
    assert blank.names() == ["mkfs.ext4", "systemctl", "mount"]
    assert [device for device, _ in blank.mounted] == [str(blank.root / "nvme2n1")]
    options = "defaults,nofail,noatime,x-systemd.device-timeout=30"
    assert blank.fstab_entries() == [["UUID=a9112d48", str(blank.path), "ext4", options, "0", "0"]]
    blank.commands.clear()
    for check_mode in (True, False):
        again = blank.ensure(check_mode=check_mode, format_allowed=True, **WRITABLE)
        assert (again["changed"], again["formatted"]) == (False, False)
    assert blank.names() == []


def test_the_volume_is_mounted_by_its_device_even_where_fstab_has_the_uuid(blank: FakeHost) -> None:
    blank.ensure(format_allowed=True, **WRITABLE)
    mount = next(command for command in blank.commands if command[0] == "mount")
    assert mount[-2] == str(blank.root / "by-id" / f"{LINK_PREFIX}vol00000000000000002")


def test_a_line_that_an_earlier_release_wrote_is_no_change(host: FakeHost) -> None:
    host.mount(NEW, "rw")
    entry = f"UUID=a9112d48 {host.path} ext4 defaults,nofail,noatime,x-systemd.device-timeout=30 0 0"
    host.fstab.write_text(f"{FSTAB}{entry}\n")
    assert host.ensure(**WRITABLE)["changed"] is False


def test_a_blank_volume_is_not_formatted_unless_that_is_allowed(blank: FakeHost) -> None:
    for check_mode in (True, False):
        with pytest.raises(OpsError) as caught:
            blank.ensure(check_mode=check_mode, **WRITABLE)
        link = blank.root / "by-id" / f"{LINK_PREFIX}vol00000000000000002"
        assert str(caught.value) == (
            f"Volume {NEW} ({link}): it is blank and formatting is not allowed here: it was not touched. "
            "Set volume_mount_format_allowed: true for this host if it is yours to format"
        )
    assert (blank.names(), blank.fstab.read_text()) == ([], FSTAB)


@pytest.mark.parametrize(
    ("fstype", "holds"),
    [("xfs", "xfs"), ("LVM2_member", "LVM2_member"), ("gpt", "something"), ("ambivalent", "something")],
)
def test_what_holds_anything_is_never_formatted(blank: FakeHost, fstype: str, holds: str) -> None:
    blank.fstypes[str(blank.root / "nvme2n1")] = fstype
    for check_mode in (True, False):
        with pytest.raises(OpsError) as caught:
            blank.ensure(check_mode=check_mode, format_allowed=True, **WRITABLE)
        assert f"it holds {holds} and not ext4: it was not touched. Check what is on it; " in str(caught.value)
        assert caught.value.todo.endswith("or set volume_mount_fstype to what it holds")
    assert (blank.names(), blank.fstab.read_text()) == ([], FSTAB)


def test_what_wipefs_alone_finds_is_not_formatted(blank: FakeHost) -> None:
    blank.signatures = '[{"type": "zfs_member"}]'
    with pytest.raises(OpsError, match="it holds something and not ext4: it was not touched"):
        blank.ensure(format_allowed=True, **WRITABLE)
    assert blank.names() == []


@pytest.mark.parametrize("program", ["blkid", "wipefs"])
def test_a_device_that_cannot_be_read_is_not_taken_for_blank(blank: FakeHost, program: str) -> None:
    blank.failing[program] = "Input/output error"
    with pytest.raises(OpsError, match=f"{program} ended with 32: Input/output error"):
        blank.ensure(format_allowed=True, **WRITABLE)
    assert (blank.names(), blank.fstab.read_text()) == ([], FSTAB)


def test_where_the_path_is_taken_nothing_is_formatted(blank: FakeHost) -> None:
    blank.add(OTHER)
    blank.mount(OTHER)
    with pytest.raises(OpsError, match="is already mounted there; not unmounted"):
        blank.ensure(format_allowed=True, **WRITABLE)
    assert blank.names() == []


def test_a_format_that_fails_changes_nothing_else(blank: FakeHost) -> None:
    blank.failing["mkfs.ext4"] = "/dev/nvme2n1 is apparently in use by the system; will not make a filesystem here!"
    with pytest.raises(OpsError) as caught:
        blank.ensure(format_allowed=True, **WRITABLE)
    assert str(caught.value) == (
        f"Formatting volume {NEW}: mkfs.ext4 ended with 32: /dev/nvme2n1 is apparently in use by the system; will not "
        "make a filesystem here!. Check dmesg on the host, then rerun"
    )
    assert (blank.mounted, blank.fstab.read_text()) == ([], FSTAB)


def test_a_filesystem_without_a_uuid_cannot_be_mounted_by_it(host: FakeHost) -> None:
    host.uuid = ""
    with pytest.raises(OpsError, match=r"its filesystem has no UUID to mount it by\. Give it one, or mount it by its"):
        host.ensure(**WRITABLE)


def test_what_is_mounted_read_only_is_mounted_again_for_writing(host: FakeHost) -> None:
    host.mount(NEW, "ro")
    host.mount_options = "rw"
    assert host.ensure(**WRITABLE)["changed"] is True
    assert host.names() == ["systemctl", "umount", "mount"]


def test_whatever_is_mounted_there_is_replaced_where_that_is_allowed_and_not_while_it_is_in_use(host: FakeHost) -> None:
    host.add(OTHER)
    host.mount(OTHER, "rw")
    host.mount_options = "rw"
    host.open_file(41, "rsync")
    with pytest.raises(OpsError) as caught:
        host.ensure(replace_any=True, **WRITABLE)
    assert str(caught.value) == (
        f"Replacing {host.root}/nvme9n1 at {host.path}: mount point busy: 41 (rsync); not unmounted. "
        "Rerun when these processes exit"
    )
    (host.root / "proc" / "41" / "fd" / "3").unlink()
    assert host.ensure(replace_any=True, **WRITABLE)["changed"] is True
    assert [Path(device).name for device, _ in host.mounted] == ["nvme2n1"]


def test_what_was_replaced_comes_back_as_it_was_mounted(host: FakeHost) -> None:
    host.add(OTHER)
    host.mount(OTHER, "rw")
    host.fstypes[str(host.root / "nvme2n1")] = "broken"
    with pytest.raises(OpsError, match="wrong fs type"):
        host.ensure(replace_any=True, fstype="broken", **WRITABLE)
    assert ["mount", "-o", "rw,relatime", str(host.root / "nvme9n1"), str(host.path)] in host.commands


def test_the_root_of_the_filesystem_gets_its_owner(host: FakeHost) -> None:
    host.mount_options = "rw"
    me = pwd.getpwuid(os.getuid()).pw_name
    owned = {**WRITABLE, "owner": me, "group": str(os.getgid())}
    host.ensure(**owned)
    assert host.ensure(**owned)["changed"] is False
    host.path.chmod(0o700)
    assert host.ensure(check_mode=True, **owned)["changed"] is True
    assert host.path.stat().st_mode & 0o777 == 0o700
    assert host.ensure(**owned)["changed"] is True
    assert host.path.stat().st_mode & 0o777 == 0o755
    assert (host.path.stat().st_uid, host.path.stat().st_gid) == (os.getuid(), os.getgid())


@pytest.mark.parametrize("owner", ["nobody-of-this-name", "²"])
def test_an_owner_that_the_host_does_not_have(blank: FakeHost, owner: str) -> None:
    with pytest.raises(OpsError) as caught:
        blank.ensure(format_allowed=True, owner=owner, **WRITABLE)
    assert str(caught.value).startswith(f"Owner of {blank.path}: this host has no user {owner} or no group ")
    assert blank.names() == []


@pytest.mark.parametrize("option", [{"format_allowed": True}, {"owner": "root"}, {"group": "root"}])
def test_what_is_mounted_read_only_is_not_written_to(blank: FakeHost, option: dict[str, Any]) -> None:
    with pytest.raises(OpsError, match=r"it is to be mounted read-only\. Set read_only: false, or leave them out"):
        blank.ensure(**option)
    assert blank.names() == []


# --- the real programs

# A table of one partition, as a master boot record has it.
PARTITION = """
import struct, sys
with open(sys.argv[1], "r+b") as device:
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 2048, 8192)
    device.write(bytes(446) + entry + bytes(48) + bytes([0x55, 0xAA]))
"""


class RealDevice:
    """A loop device as the device of a volume of EBS; fstab and the links are the test's own."""

    def __init__(self, device: str, root: Path) -> None:
        self.device = device
        self.root = root
        self.path = root / "data"
        (root / "by-id").mkdir()
        (root / "by-id" / (LINK_PREFIX + NEW.replace("-", ""))).symlink_to(device)
        (root / "fstab").write_text(FSTAB)

    def run_command(self, command: list[str]) -> tuple[int, str, str]:
        if command[0] == "lsblk":
            return 0, NEW.replace("-", ""), ""
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        return result.returncode, result.stdout, result.stderr

    def ensure(self, **changes: Any) -> MountResult:
        host = Host(
            self.run_command,
            str(self.root / "by-id"),
            fstab_path=str(self.root / "fstab"),
            systemd_directory=str(self.root / "none"),
        )
        request = MountRequest(
            **{"volume_id": NEW, "path": str(self.path), "timeout_seconds": 0, **WRITABLE, **changes}
        )
        return mount_volume(host, request, check_mode=False)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)


def test_a_real_device_is_formatted_once_and_mounted(loop_device: str, tmp_path: Path) -> None:
    device = RealDevice(loop_device, tmp_path)
    try:
        made = device.ensure(format_allowed=True, mkfs_options=("-q", "-m", "0"))
        assert (made["changed"], made["formatted"], os.path.ismount(device.path)) == (True, True, True)
        (device.path / "precious").write_text("kept")
        again = device.ensure(format_allowed=True)
        assert (again["changed"], again["formatted"]) == (False, False)
    finally:
        device.unmount()
    made = device.ensure(format_allowed=True)
    try:
        assert (made["changed"], made["formatted"], (device.path / "precious").read_text()) == (True, False, "kept")
    finally:
        device.unmount()


@pytest.mark.parametrize(
    ("command", "holds"),
    [
        (["mkswap"], "swap"),
        (["mkfs.ext2", "-q"], "ext2"),
        ([sys.executable, "-c", PARTITION], "something"),
    ],
)
def test_a_real_device_that_holds_something_is_refused(
    loop_device: str, tmp_path: Path, command: list[str], holds: str
) -> None:
    device = RealDevice(loop_device, tmp_path)
    subprocess.run([*command, loop_device], check=True, capture_output=True)
    before = Path(loop_device).read_bytes()
    with pytest.raises(OpsError, match=f"it holds {holds} and not ext4: it was not touched"):
        device.ensure(format_allowed=True)
    assert Path(loop_device).read_bytes() == before


# --- fstab

_LINES = st.lists(
    st.one_of(
        st.text(st.characters(codec="ascii", exclude_characters="\n\r\v\f\x1c\x1d\x1e"), max_size=20).map(
            lambda t: f"#{t}"
        ),
        st.just(""),
        st.sampled_from(
            ["UUID=1 / ext4 defaults 0 1", "/dev/sdf\t/data\text4\tro 0 0", "x /data/more nfs", "y /data xfs"]
        ),
    )
)


@given(lines=_LINES, ends=st.booleans())
def test_fstab_gets_one_line_for_the_path_and_keeps_all_others(*, lines: list[str], ends: bool) -> None:
    entry = "/dev/disk/by-id/x /data ext4 ro 0 0"
    fstab = "\n".join(lines) + ("\n" if ends and lines else "")
    after = with_entry(fstab, entry)
    others = [line for line in fstab.splitlines() if line.startswith("#") or line.split()[1:2] != ["/data"]]
    assert [line for line in after.splitlines() if line != entry] == others
    assert after.splitlines().count(entry) == 1
    assert with_entry(after, entry) == after
