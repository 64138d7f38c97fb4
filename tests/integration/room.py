"""A machine of its own for the lab of a test process, as far as a lab can tell: network, mounts, /run and a checkout.

So as many labs run side by side as there are test processes, each with the ports, names and addresses of every lab, and
one that a person has running is left alone. What belongs to a room lies in .cache/test-labs, by the process's name.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a controller needs of the checkout, to be copied, for playbooks and lab write beside it.
PARTS = ("datasets", "inventories", "lab", "library", "module_utils", "playbooks", "plugins", "roles")
# What the playbooks fetched for hosts, by platform.
WHEELS = Path(".cache/wheels")
# What Python compiled of Ansible's modules (site/sitecustomize.py).
COMPILED = ROOT / ".cache" / "compiled"
WHEELS_ROLE = ROOT / "roles" / "python_environment"
WHEELS_PLAYBOOK = ROOT / "tests" / "integration" / "wheels.yml"
# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def enter() -> Path:
    """Take this process into a room of its own, where it stays, and return the checkout there.

    The threads that it has already stay where they are. What a test run that was killed has left of its lab is for
    ``python -m lab down`` in this checkout.
    """
    folder = ROOT / ".cache" / "test-labs" / os.environ.get("PYTEST_XDIST_WORKER", "main")
    run = folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    COMPILED.mkdir(exist_ok=True)
    try:
        # Until the process ends, which closes the descriptor.
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pytest.fail(f"another test run has a lab in {folder}: wait for its end", pytrace=False)
    _fetch_wheels()
    checkout = folder / "checkout"
    _copy(checkout)
    if _libc.unshare(CLONE_NEWNET | CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for command in (
        ("mount", "--make-rprivate", "/"),
        # With the marker of a lab that was killed, which is not lost with the namespace.
        ("mount", "--bind", str(run), "/run"),
        ("ip", "link", "set", "lo", "up"),
    ):
        subprocess.run(command, check=True)
    return checkout


def _fetch_wheels() -> None:
    """Fetch what playbooks would fetch, for a room has no way out of the machine; other processes wait meanwhile."""
    sources = [WHEELS_PLAYBOOK, *sorted(path for path in WHEELS_ROLE.rglob("*") if path.is_file())]
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    with (ROOT / ".cache" / "test-labs" / "wheels.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if lock.read() == wanted and (ROOT / WHEELS).is_dir():
            return
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", str(WHEELS_PLAYBOOK)]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.fail(f"the wheels for the lab's hosts were not fetched:\n{done.stdout}{done.stderr}", pytrace=False)
        lock.truncate(0)
        lock.write(wanted)


def _copy(checkout: Path) -> None:
    """Copy what a controller needs; of an earlier room's checkout its lab's folder stays, and nothing else."""
    checkout.mkdir(exist_ok=True)
    for found in checkout.iterdir():
        if found.is_symlink() or found.is_file():
            found.unlink()
        elif found.name != ".lab":
            shutil.rmtree(found)
    ignored = shutil.ignore_patterns("archives.yml", "__pycache__")
    for part in PARTS:
        shutil.copytree(ROOT / part, checkout / part, ignore=ignored)
    shutil.copy(ROOT / "ansible.cfg", checkout)
    (checkout / ".cache").mkdir()
    for packed in (ROOT / WHEELS).glob("*/packed"):
        _copy_links(packed.parent, checkout / WHEELS / packed.parent.name)


def _copy_links(source: Path, destination: Path) -> None:
    """Copy a folder of files that nobody changes as further names of them."""
    shutil.copytree(source, destination, copy_function=os.link)
