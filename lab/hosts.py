"""A host: the files that make it differ from the machine below it, its boot, its end, and the devices in its /dev."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lab.config import API_HOST_NAME, BRIDGE_ADDRESS, ORIGIN_HOST_NAME, SSH_USER, Paths
from lab.machine import LabError, Process, run, wait_until
from lab.network import Address, Namespace

INIT_SCRIPT = Path(__file__).resolve().parent / "host_init.sh"
BOOT_SECONDS = 30.0
SHUT_DOWN_SECONDS = 10.0
HOST_KEY = "ssh_host_ed25519_key"
# Folders of the machine that no host may see, or finds empty as on a fresh instance.
EMPTY_FOLDERS = {  # path -> mode
    "/root": 0o700,
    "/home": 0o755,
    "/tmp": 0o1777,  # noqa: S108 - that of a host
    "/var/tmp": 0o1777,  # noqa: S108 - that of a host
    "/mnt": 0o755,
    "/media": 0o755,
    "/srv": 0o755,
    "/etc/sudoers.d": 0o750,
}
# What every Debian has at the top of its tree; whatever else the machine has there is its own affair, /data too.
SYSTEM_FOLDERS = {
    "bin",
    "boot",
    "dev",
    "etc",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "opt",
    "proc",
    "run",
    "sbin",
    "sys",
    "usr",
    "var",
}
SSHD_CONFIG = f"""\
HostKey /etc/ssh/{HOST_KEY}
AllowUsers {SSH_USER}
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
# A fleet's tool opens many sessions at once.
MaxStartups 200
MaxSessions 100
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""


@dataclass
class Host:
    """One running host: the process that started it, whose end is the host's, and the host's own first process.

    ``devices`` maps NVMe numbers in use to volume ids; 0 is the root's, which has no device.
    """

    starter: subprocess.Popen[bytes]
    init: Process
    devices: dict[int, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The host's own view of the file tree, through its first process."""
        return Path(f"/proc/{self.init.pid}/root")

    def free_device_number(self) -> int:
        """Return the lowest NVMe number that no attached volume has."""
        return next(number for number in range(1, 1000) if number not in self.devices)


def write_files(
    folder: Path, paths: Paths, name: str, address: Address, public_key: str, user_data: bytes | None
) -> str:
    """Make the folder of a host that was not booted before; return the public half of its SSH host key.

    ``folder/upper`` becomes the writable layer: all that is written there covers the machine's own files.
    """
    upper = folder / "upper"
    for part in (upper, folder / "work", folder / "root"):
        part.mkdir(parents=True)
    upper.chmod(0o755)
    _hide_private_files(upper, paths)
    user_id, group_id = _write_accounts(upper)
    _write(upper, "etc/hostname", f"{name}\n")
    _write(upper, "etc/hosts", hosts_file(name, address))
    _write(upper, "etc/resolv.conf", "")
    _write(upper, "etc/fstab", "")
    _write(upper, "etc/ssh/sshd_config", SSHD_CONFIG)
    _write(upper, f"etc/sudoers.d/90-{SSH_USER}", f"{SSH_USER} ALL=(ALL) NOPASSWD:ALL\n", mode=0o440)
    _write_home(upper / "home" / SSH_USER, user_id, group_id, public_key)
    if user_data is not None:
        script = _write(upper, "var/lib/cloud/instance/user-data.txt", "", mode=0o700)
        script.write_bytes(user_data)
    host_key = upper / "etc/ssh" / HOST_KEY
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{name}", "-f", host_key)
    return " ".join(host_key.with_suffix(".pub").read_text().split()[:2])


def hosts_file(name: str, address: Address) -> str:
    """Return the /etc/hosts of a host: itself and the two servers of the lab."""
    return f"127.0.0.1 localhost\n{address.private} {name}\n{BRIDGE_ADDRESS} {API_HOST_NAME} {ORIGIN_HOST_NAME}\n"


def boot(folder: Path, namespace: Namespace, name: str, run_user_data: bool) -> Host:
    """Start the host whose files are in ``folder`` and whose network is there; return when its sshd listens."""
    command = [
        *("nsenter", f"--net={namespace.path}"),
        *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
        *("/bin/sh", str(INIT_SCRIPT), name, "1" if run_user_data else "0"),
    ]
    with open(folder / "boot.log", "wb") as log:
        starter = subprocess.Popen(
            command, cwd=folder, env={}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def has_ended() -> bool:
        return starter.poll() is not None

    if not wait_until(lambda: has_ended() or _listens_on_ssh(starter.pid), BOOT_SECONDS) or has_ended():
        starter.kill()
        starter.wait()
        raise LabError(f"Host {name} failed to boot: {(folder / 'boot.log').read_text().strip()}")
    (init,) = _children(starter.pid)
    return Host(starter, init)


def shut_down(host: Host) -> None:
    """Kill every process of ``host``; its mounts and namespaces end with them."""
    host.starter.kill()
    host.starter.wait()
    wait_until(lambda: not host.init.is_alive(), SHUT_DOWN_SECONDS)


def kill_all(paths: Paths) -> None:
    """Kill the hosts of a checkout's lab, booting or running, whose server is no more.

    When this returns they have closed their connections, so that no SSH client waits for a host that has stopped.
    """
    script = os.fsencode(paths.checkout / "lab" / INIT_SCRIPT.name)
    first_processes = []
    for process in Path("/proc").iterdir():
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
            # Not whoever has the script open in an editor.
            if arguments[:1] in ([b"nsenter"], [b"unshare"]) and script in arguments:
                first_processes += _children(int(process.name))
                os.kill(int(process.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    wait_until(lambda: not any(process.is_alive() for process in first_processes), SHUT_DOWN_SECONDS)


def _hide_private_files(upper: Path, paths: Paths) -> None:
    """Cover the machine's homes, keys, this checkout and all that a fresh instance would not have."""
    for folder, mode in EMPTY_FOLDERS.items():
        _empty_folder(upper, folder, mode)
    top_folder = paths.checkout.parts[1]
    if top_folder in SYSTEM_FOLDERS:
        _empty_folder(upper, str(paths.checkout), 0o755)
    emptied = {folder.strip("/") for folder in EMPTY_FOLDERS}
    others = [path for path in Path("/").iterdir() if path.name not in SYSTEM_FOLDERS | emptied]
    for path in [*others, *(key for key in Path("/etc/ssh").glob("ssh_host_*") if key.stem != HOST_KEY)]:
        _parents(upper, path)
        os.mknod(f"{upper}{path}", stat.S_IFCHR, os.makedev(0, 0))  # an overlay's mark for "deleted"


def _empty_folder(upper: Path, folder: str, mode: int) -> None:
    _parents(upper, Path(folder))
    covering = Path(f"{upper}{folder}")
    covering.mkdir(exist_ok=True)
    covering.chmod(mode)
    os.setxattr(covering, "trusted.overlay.opaque", b"y")  # an overlay's mark for "nothing from below"


def _parents(upper: Path, path: Path) -> None:
    """Make the parents of ``path`` in the upper layer with the owner and mode that they have on the machine.

    Of a folder that is in both layers, the upper one's owner and mode are what counts.
    """
    for parent in reversed(path.parents):
        covering = Path(f"{upper}{parent}")
        if not covering.exists():
            covering.mkdir()
            if parent.exists():
                shutil.copystat(parent, covering)
                status = parent.stat()
                os.chown(covering, status.st_uid, status.st_gid)


def _write(upper: Path, name: str, text: str, mode: int = 0o644) -> Path:
    _parents(upper, Path("/") / name)
    file = upper / name
    file.write_text(text)
    file.chmod(mode)
    return file


def _write_accounts(upper: Path) -> tuple[int, int]:
    """Add the SSH user to the machine's accounts, without the machine's password hashes; return its two numbers."""
    passwd = _others(Path("/etc/passwd"))
    user_id = free_number(line.split(":")[2] for line in passwd)
    group = _others(Path("/etc/group"))
    group_id = free_number(line.split(":")[2] for line in group)
    entry = f"{SSH_USER}:x:{user_id}:{group_id}:EC2 user:/home/{SSH_USER}:/bin/bash"
    _write(upper, "etc/passwd", "\n".join([*passwd, entry]) + "\n")
    _write(upper, "etc/group", "\n".join([*group, f"{SSH_USER}:x:{group_id}:"]) + "\n")
    # "*" is no password and, other than "!", no lock: the key opens the account.
    shadow = [f"{line.split(':')[0]}:*:20000:0:99999:7:::" for line in [*passwd, entry]]
    _write(upper, "etc/shadow", "\n".join(shadow) + "\n", mode=0o600)
    return user_id, group_id


def _others(file: Path) -> list[str]:
    lines = file.read_text().splitlines()
    return [line for line in lines if line.count(":") >= 3 and not line.startswith(f"{SSH_USER}:")]


def free_number(taken: Iterable[str]) -> int:
    """Return the first number from 1000 that is not among ``taken``, as adduser would choose."""
    numbers = {int(number) for number in taken}
    return next(number for number in range(1000, 60000) if number not in numbers)


def _write_home(home: Path, user_id: int, group_id: int, public_key: str) -> None:
    ssh = home / ".ssh"
    ssh.mkdir(parents=True)
    (ssh / "authorized_keys").write_text(public_key.strip() + "\n")
    (ssh / "authorized_keys").chmod(0o600)
    ssh.chmod(0o700)
    for skeleton in Path("/etc/skel").glob(".*"):
        if skeleton.is_file():
            shutil.copy(skeleton, home)
    for path in (home, *home.rglob("*")):
        os.chown(path, user_id, group_id)


def _children(pid: int) -> list[Process]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Process.of(int(child)) for child in children]


def _listens_on_ssh(starter_pid: int) -> bool:
    """Whether something listens on port 22 in the network namespace of process ``starter_pid``."""
    try:
        table = Path(f"/proc/{starter_pid}/net/tcp").read_text()
    except OSError:
        return False
    rows = [line.split() for line in table.splitlines()[1:]]
    return any(row[1].endswith(":0016") and row[3] == "0A" for row in rows)
