"""What lies below the API: the words of volumes, snapshots and instances, and a world in which they change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab.network import Address
from lab.warmth import BLOCK_BYTES, Warmth

GIB = 1024**3


@dataclass(frozen=True)
class Launch:
    """What an instance starts with, as RunInstances said it; ``user_data`` is a script or None."""

    instance_id: str
    name: str
    address: Address
    public_key: str
    user_data: bytes | None


class DataPlane:
    """What the API needs from the layer below, by the ids of the API. Here it does nothing: the API needs no root."""

    def create_volume(self, volume_id: str, size_gib: int, snapshot_id: str | None) -> None:
        """Make a volume, blank or from a snapshot."""

    def resize_volume(self, volume_id: str, size_gib: int) -> None:
        """Make a volume larger, attached or not."""

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume that is not attached."""

    def create_snapshot(self, snapshot_id: str, volume_id: str) -> None:
        """Keep what is on a volume at this moment."""

    def copy_snapshot(self, snapshot_id: str, source_id: str) -> None:
        """Make a snapshot that holds what another one holds."""

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot; volumes made from it stay."""

    def snapshot_blocks(self, snapshot_id: str, size_gib: int) -> Sequence[int]:  # noqa: ARG002 - all full in this world
        """Return the sorted numbers of the blocks (`warmth.BLOCK_BYTES`) that hold data in a snapshot."""
        return range(size_gib * GIB // BLOCK_BYTES)

    def attach(self, volume_id: str, instance_id: str, warmth: Warmth | None) -> None:
        """Show a volume as a device in an instance, at once or when it boots, reads of it no faster than ``warmth``."""

    def detach(self, volume_id: str) -> None:
        """Take a volume out of its instance; nothing to do where it is not attached."""

    def is_mounted(self, volume_id: str) -> bool:  # noqa: ARG002 - of no volume in this world
        """Return whether the instance of an attached volume has it mounted."""
        return False

    def launch(self, launch: Launch) -> None:
        """Boot a new instance; return when SSH answers."""

    def stop(self, instance_id: str) -> None:
        """Shut an instance down, its files kept."""

    def start(self, instance_id: str, address: Address) -> None:
        """Boot a stopped instance, under another public address."""

    def terminate(self, instance_id: str) -> None:
        """Shut an instance down, running or not, and delete its files."""
