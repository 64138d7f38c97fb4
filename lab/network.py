"""The lab's network: one bridge, one namespace per host, and no route on the machine but to the hosts themselves.

The machine may be an EC2 instance in a default VPC, so the lab never claims 172.31.0.0/16: the bridge has a /32, and
each host a /32 route of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
from dataclasses import dataclass

from lab.config import BRIDGE, BRIDGE_ADDRESS, METADATA_ADDRESS, PUBLIC_NETWORK, VPC_PREFIX_BITS
from lab.machine import LabError, run

CLONE_NEWNET = 0x40000000  # linux/sched.h
_OWN_NAMESPACE = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Address:
    """Where a host is reached: its address in the VPC, the public one where it has one, and that of its interface.

    The last one stays the same when the host boots again, else its neighbours would look for the old one for a while.
    """

    private: str
    public: str | None
    hardware: str


class Namespace:
    """A network namespace that has no name and lives as long as this object or a process in it.

    So nothing is left of it when the lab's server dies. Namespaces belong to threads: none of these calls touches
    another thread than the caller's.
    """

    def __init__(self) -> None:
        own = os.open(_OWN_NAMESPACE, os.O_RDONLY)
        try:
            _check(_libc.unshare(CLONE_NEWNET))
            self._descriptor = os.open(_OWN_NAMESPACE, os.O_RDONLY)
            _check(_libc.setns(own, CLONE_NEWNET))
        finally:
            os.close(own)

    @property
    def path(self) -> str:
        """A name that any process of root may open while this object lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Let the namespace go; it ends with the last process in it."""
        os.close(self._descriptor)

    def listen(self, address: str, port: int) -> socket.socket:
        """Return a listening TCP socket that lives in this namespace and nowhere else."""
        own = os.open(_OWN_NAMESPACE, os.O_RDONLY)
        try:
            _check(_libc.setns(self._descriptor, CLONE_NEWNET))
            try:
                return socket.create_server((address, port))
            finally:
                _check(_libc.setns(own, CLONE_NEWNET))
        finally:
            os.close(own)


def interface_name(instance_id: str) -> str:
    """Return the name of the machine's end of a host's cable: Linux gives 15 characters to it."""
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


def connect(namespace: Namespace, instance_id: str, address: Address) -> None:
    """Plug a host's network namespace into the bridge and give it its addresses."""
    interface = interface_name(instance_id)
    _ip(
        f"link add {interface} type veth peer name eth0 address {address.hardware} netns {namespace.path}",
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
        prefix=("nsenter", f"--net={namespace.path}"),
    )


def disconnect(instance_id: str, address: Address) -> None:
    """Take the machine's end of a host's network away, as much of it as is there."""
    interface = interface_name(instance_id)
    link = [f"link del {interface}"] if _exists(interface) else []
    _ip(*link, f"route flush {address.private}/32 dev {BRIDGE}")


def delete_bridge() -> None:
    """Take away the bridge with its routes, and every interface that is plugged into it."""
    if _exists(BRIDGE):
        for port in json.loads(run("ip", "-json", "link", "show", "master", BRIDGE) or "[]"):
            with contextlib.suppress(LabError):  # it goes by itself a moment after its host
                _ip(f"link del {port['ifname']}")
        _ip(f"link del {BRIDGE}")


def _exists(interface: str) -> bool:
    # Not by /sys, which shows the interfaces of the namespace that it was mounted in.
    return interface in {name for _, name in socket.if_nameindex()}


def network_conflict() -> str | None:
    """Return why the lab's addresses cannot be used on this machine, or None."""
    if _exists(BRIDGE):
        return f"an interface {BRIDGE} is there that is not this lab's"
    for network in (PUBLIC_NETWORK, f"{BRIDGE_ADDRESS}/32"):
        route = run("ip", "route", "show", "exact", network).strip()
        if route:
            return f"{network} is routed already ({route})"
    return None


def _check(result: int) -> None:
    if result != 0:
        raise LabError(f"Network namespace: {os.strerror(ctypes.get_errno())}")


def _ip(*lines: str, prefix: tuple[str, ...] = ()) -> None:
    run(*prefix, "ip", "-batch", "-", stdin="\n".join(lines) + "\n")
