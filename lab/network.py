"""The lab's network: one bridge, one namespace per host, and no route on the machine but to the hosts themselves.

The machine may be an EC2 instance in a default VPC, so the lab never claims 172.31.0.0/16: the bridge has a /32, and
each host a /32 route of its own.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.config import BRIDGE, BRIDGE_ADDRESS, METADATA_ADDRESS, PUBLIC_NETWORK, VPC_PREFIX_BITS
from lab.machine import LabError, run

CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Address:
    """Where a host is reached: its address in the VPC, and its public one where it has one."""

    private: str
    public: str | None


def interface_name(instance_id: str) -> str:
    """The machine's end of the cable of ``instance_id``: 15 characters are all that Linux gives to a name."""
    return "lab" + instance_id.removeprefix("i-")[-12:]


def create_bridge() -> None:
    """Make the bridge and the route to the hosts' public addresses."""
    _ip(
        # An address of its own, else the bridge takes that of its lowest port and changes it with the hosts.
        f"link add {BRIDGE} address 02:1a:b0:00:00:01 type bridge",
        f"link set {BRIDGE} addrgenmode none",
        f"addr add {BRIDGE_ADDRESS}/32 dev {BRIDGE}",
        f"link set {BRIDGE} up",
        f"route add {PUBLIC_NETWORK} dev {BRIDGE} src {BRIDGE_ADDRESS}",
    )


def connect(namespace: Path, instance_id: str, address: Address) -> None:
    """Make the network namespace of a host, mounted on file ``namespace``, and plug it into the bridge."""
    interface = interface_name(instance_id)
    namespace.touch()
    run("unshare", f"--net={namespace}", "true")
    _ip(
        f"link add {interface} type veth peer name eth0 netns {namespace}",
        f"link set {interface} addrgenmode none",
        f"link set {interface} master {BRIDGE} up",
        f"route add {address.private}/32 dev {BRIDGE} src {BRIDGE_ADDRESS}",
    )
    # On AWS the public address is the gateway's and not the instance's; on lo it stays out of sight in the same way.
    public = [f"addr add {address.public}/32 dev lo"] if address.public else []
    _ip(
        "link set lo up",
        f"addr add {METADATA_ADDRESS}/32 dev lo",
        *public,
        f"addr add {address.private}/{VPC_PREFIX_BITS} dev eth0",
        "link set eth0 up",
        prefix=("nsenter", f"--net={namespace}"),
    )


def disconnect(instance_id: str, address: Address) -> None:
    """Take the machine's end of a host's network away, as much of it as is there."""
    interface = interface_name(instance_id)
    link = [f"link del {interface}"] if Path(f"/sys/class/net/{interface}").exists() else []
    _ip(*link, f"route flush {address.private}/32 dev {BRIDGE}")


def delete_namespace(namespace: Path) -> None:
    """Unmount the network namespace from file ``namespace``; it ends with the last process in it."""
    run("umount", namespace)
    namespace.unlink()


def delete_bridge() -> None:
    """Take away the bridge with its routes, and every interface that is plugged into it."""
    ports = Path(f"/sys/class/net/{BRIDGE}/brif")
    if ports.is_dir():
        _ip(*(f"link del {port.name}" for port in ports.iterdir()), f"link del {BRIDGE}")


def network_conflict() -> str | None:
    """Why the lab's addresses cannot be used on this machine, or None."""
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        return f"an interface {BRIDGE} is there that is not this lab's"
    for network in (PUBLIC_NETWORK, f"{BRIDGE_ADDRESS}/32"):
        route = run("ip", "route", "show", "exact", network).strip()
        if route:
            return f"{network} is routed already ({route})"
    return None


@contextmanager
def entered(namespace: Path) -> Iterator[None]:
    """Put the calling thread, and no other, into the network namespace on file ``namespace`` for the block."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _set_namespace(os.open(namespace, os.O_RDONLY))
        try:
            yield
        finally:
            _set_namespace(os.dup(own))
    finally:
        os.close(own)


def listen(namespace: Path, address: str, port: int) -> socket.socket:
    """A listening TCP socket that lives in the network namespace on file ``namespace`` and nowhere else."""
    with entered(namespace):
        return socket.create_server((address, port))


def _set_namespace(descriptor: int) -> None:
    try:
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise LabError(f"setns: {os.strerror(number)}")
    finally:
        os.close(descriptor)


def _ip(*lines: str, prefix: tuple[str, ...] = ()) -> None:
    run(*prefix, "ip", "-batch", "-", stdin="\n".join(lines) + "\n")
