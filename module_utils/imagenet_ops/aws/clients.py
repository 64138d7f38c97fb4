"""The clients of boto3 as this code uses them: the one interface to EC2, and that to KMS. Tests put fakes in its place.

Every operation takes its parameters, and returns its answer, as the API reference of the service names them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class Operation(Protocol):
    """An operation of a client."""

    def __call__(self, **request: Any) -> dict[str, Any]:
        """Send ``request`` and return the answer; raises one of `aws.errors.sdk_errors`."""


class Paginator(Protocol):
    """Follows the tokens from page to page of one operation."""

    def paginate(self, **request: Any) -> Iterable[dict[str, Any]]:
        """Return every page of the answer to ``request``, each fetched when it is reached."""


class PagingClient(Protocol):
    """A client of any service."""

    def get_paginator(self, operation: str, /) -> Paginator:
        """Return the paginator of ``operation`` (``describe_volumes``)."""


class Ec2Client(PagingClient, Protocol):
    """boto3's client of EC2."""

    def attach_volume(self, **request: Any) -> dict[str, Any]:
        """Attach a volume to an instance."""

    def copy_snapshot(self, **request: Any) -> dict[str, Any]:
        """Start to copy a snapshot."""

    def create_launch_template(self, **request: Any) -> dict[str, Any]:
        """Create a launch template with its first version."""

    def create_launch_template_version(self, **request: Any) -> dict[str, Any]:
        """Add a version to a launch template."""

    def create_tags(self, **request: Any) -> dict[str, Any]:
        """Set tags of resources."""

    def create_volume(self, **request: Any) -> dict[str, Any]:
        """Create a volume."""

    def delete_launch_template_versions(self, **request: Any) -> dict[str, Any]:
        """Delete versions of a launch template."""

    def delete_snapshot(self, **request: Any) -> dict[str, Any]:
        """Delete a snapshot."""

    def delete_tags(self, **request: Any) -> dict[str, Any]:
        """Remove tags of resources."""

    def delete_volume(self, **request: Any) -> dict[str, Any]:
        """Delete a volume."""

    def describe_fast_snapshot_restores(self, **request: Any) -> dict[str, Any]:
        """Return the states of fast snapshot restore, by snapshot and zone."""

    def describe_images(self, **request: Any) -> dict[str, Any]:
        """Return AMIs."""

    def describe_instance_types(self, **request: Any) -> dict[str, Any]:
        """Return what instance types offer."""

    def describe_instances(self, **request: Any) -> dict[str, Any]:
        """Return instances."""

    def describe_launch_template_versions(self, **request: Any) -> dict[str, Any]:
        """Return versions of a launch template."""

    def describe_launch_templates(self, **request: Any) -> dict[str, Any]:
        """Return launch templates."""

    def describe_snapshot_attribute(self, **request: Any) -> dict[str, Any]:
        """Return who may use a snapshot."""

    def describe_snapshots(self, **request: Any) -> dict[str, Any]:
        """Return snapshots."""

    def describe_volume_status(self, **request: Any) -> dict[str, Any]:
        """Return the status of volumes, with that of their initialization."""

    def describe_volumes(self, **request: Any) -> dict[str, Any]:
        """Return volumes."""

    def detach_volume(self, **request: Any) -> dict[str, Any]:
        """Detach a volume."""

    def disable_fast_snapshot_restores(self, **request: Any) -> dict[str, Any]:
        """Disable fast snapshot restore."""

    def enable_fast_snapshot_restores(self, **request: Any) -> dict[str, Any]:
        """Enable fast snapshot restore."""

    def modify_instance_attribute(self, **request: Any) -> dict[str, Any]:
        """Change a setting of an instance."""

    def modify_launch_template(self, **request: Any) -> dict[str, Any]:
        """Choose the default version of a launch template."""

    def modify_snapshot_attribute(self, **request: Any) -> dict[str, Any]:
        """Change who may use a snapshot."""


class KmsClient(Protocol):
    """boto3's client of KMS."""

    def describe_key(self, **request: Any) -> dict[str, Any]:
        """Return what is known of a key."""
