"""The SSH settings of the lab's hosts: one block each, found by name, by instance id and by address."""

from __future__ import annotations

from dataclasses import dataclass

from lab.config import SSH_USER, Paths


@dataclass(frozen=True)
class Entry:
    """A running host; ``host_key`` is its public SSH key, type and key, ``name`` its Name tag or nothing."""

    name: str
    instance_id: str
    private_address: str
    public_address: str | None
    host_key: str

    @property
    def address(self) -> str:
        """Where SSH connects to."""
        return self.public_address or self.private_address


def render_ssh_config(entries: list[Entry], paths: Paths) -> str:
    """Return the text of an ssh_config(5) file. Two running hosts of one name are reached by id or address only."""
    names = [entry.name for entry in entries]
    blocks = ["# Written by the lab for its running hosts. Use: ssh -F THIS_FILE gpu-1\n"]
    for entry in entries:
        is_unique = bool(entry.name) and names.count(entry.name) == 1 and not set(entry.name) & set(' \t"*?!,')
        patterns = [
            *([entry.name] if is_unique else []),
            entry.instance_id,
            *([entry.public_address] if entry.public_address else []),
            entry.private_address,
        ]
        blocks.append(
            f"Host {' '.join(patterns)}\n"
            f"    HostName {entry.address}\n"
            f"    User {SSH_USER}\n"
            f'    IdentityFile "{paths.private_key}"\n'
            "    IdentitiesOnly yes\n"
            f'    UserKnownHostsFile "{paths.known_hosts}"\n'
            "    GlobalKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking yes\n"
            "    UpdateHostKeys no\n"
            "    LogLevel ERROR\n"
        )
    return "\n".join(blocks)


def render_known_hosts(entries: list[Entry]) -> str:
    """Return the text of a known_hosts file with the true key of every host."""
    return "".join(f"{entry.address} {entry.host_key}\n" for entry in entries)
