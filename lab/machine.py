"""What the lab needs of the machine: commands, processes that are surely ours, and a check that all is there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class LabError(Exception):
    """An error that is one line for the person who runs the lab."""


def run(*command: str | Path, stdin: str | None = None) -> str:
    """Run ``command`` and return what it printed; raise LabError with its error text where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise LabError(f"{' '.join(words)}: {reason}")
    return done.stdout


@dataclass(frozen=True)
class Process:
    """A process by its number and its start time, so that a number which was given to another is never mistaken for it.

    ``start_ticks`` is field 22 of /proc/PID/stat (proc(5)): clock ticks since boot.
    """

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has number ``pid`` now."""
        return cls(pid, start_ticks(pid) or 0)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Process:
        """Return the process that `to_json` described."""
        return cls(int(value["pid"]), int(value["start_ticks"]))

    def to_json(self) -> dict[str, int]:
        """Return what identifies the process, to be kept in a file."""
        return {"pid": self.pid, "start_ticks": self.start_ticks}

    def is_alive(self) -> bool:
        """Return whether this very process still runs."""
        return self.start_ticks != 0 and start_ticks(self.pid) == self.start_ticks

    def stop(self, patience_seconds: float) -> None:
        """Terminate the process, and kill it after ``patience_seconds``; return when it has exited."""
        for number, seconds in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, 10.0)):
            if not self.is_alive():
                return
            os.kill(self.pid, number)
            wait_until(lambda: not self.is_alive(), seconds)


def start_ticks(pid: int) -> int | None:
    """Return the start time of process ``pid`` in clock ticks since boot, or None if it has exited or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses; the fields after it are plain, the first is the state.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def wait_until(condition: Any, seconds: float, interval_seconds: float = 0.02) -> bool:
    """Poll ``condition`` for at most ``seconds``; return whether it came true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(interval_seconds)
    return True


def give_to_user(*paths: Path) -> None:
    """Let files belong to who called sudo; without sudo they stay root's."""
    user, group = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if user and group:
        for path in paths:
            os.chown(path, int(user), int(group))


def write_for_user(file: Path, text: str, mode: int = 0o644) -> None:
    """Replace ``file`` at once, for a reader may come at any moment, and let it belong to who called sudo."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text)
    temporary.chmod(mode)
    give_to_user(temporary)
    temporary.replace(file)


# program -> Debian package that holds it
PROGRAMS = {
    "blkid": "util-linux",
    "ip": "iproute2",
    "losetup": "mount",
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "sudo": "sudo",
    "unshare": "util-linux",
}
# kernel feature -> how /proc/filesystems or /dev shows it
KERNEL_FILESYSTEMS = ("overlay",)


def extend_path() -> None:
    """Find the programs of system administration, which sudo and cron leave out of PATH."""
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


def missing_programs() -> list[str]:
    """Return what the lab needs and the machine lacks, each as ``program (Debian package name)``."""
    return [
        f"{program} (Debian package {package})" for program, package in PROGRAMS.items() if not shutil.which(program)
    ]


def missing_kernel_features() -> list[str]:
    """Return the kernel features that the lab needs and that neither are there nor can be loaded as modules."""
    missing = [f"the {name} filesystem (kernel)" for name in KERNEL_FILESYSTEMS if not has_filesystem(name)]
    if not _succeeds("losetup", "--find"):
        missing.append("loop devices (kernel module loop, /dev/loop-control)")
    # A pair that was made in a namespace of its own is removed with it, whatever happens.
    if not _succeeds("unshare", "--net", "ip", "link", "add", "labprobe", "type", "veth", "peer", "name", "labprobe1"):
        missing.append("network namespaces with veth (kernel module veth)")
    if not _succeeds("unshare", "--net", "ip", "link", "add", "labprobe", "type", "bridge"):
        missing.append("network bridges (kernel module bridge)")
    return missing


def has_filesystem(name: str) -> bool:
    """Return whether the kernel mounts filesystems of type ``name``, now or after loading its module."""
    if _kernel_lists(name):
        return True
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "--quiet", name], check=False, capture_output=True)
    return _kernel_lists(name)


def _kernel_lists(name: str) -> bool:
    return name in Path("/proc/filesystems").read_text().split()


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
