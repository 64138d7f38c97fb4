"""What every fake client of AWS stands on: botocore's own paginators over its operations, and errors for all others."""

from __future__ import annotations

import functools
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.paginate import Paginator


@functools.cache
def _rules(service: str) -> tuple[Any, dict[str, Any]]:
    """The paginators that botocore has for ``service``, and the models of its operations by their names in Python."""
    session = botocore.session.get_session()
    model = session.get_service_model(service)
    operations = {xform_name(name): name for name in model.operation_names}
    return session.get_paginator_model(service), {key: model.operation_model(name) for key, name in operations.items()}


def paginator(client: Any, service: str, operation: str) -> Any:
    """Return botocore's paginator for ``operation``, which gets its pages from the method of ``client``."""
    paginators, models = _rules(service)
    model = models[operation]
    return Paginator(getattr(client, operation), paginators.get_paginator(model.name), model)


class StubEc2:
    """A client of EC2 that expects no call; a fake of one overrides the operations that it serves."""

    def get_paginator(self, operation: str, /) -> Any:
        return paginator(self, "ec2", operation)

    def _unexpected(self, **request: Any) -> dict[str, Any]:
        raise AssertionError(f"nobody expects this call: {request}")

    attach_volume = _unexpected
    copy_snapshot = _unexpected
    create_launch_template = _unexpected
    create_launch_template_version = _unexpected
    create_tags = _unexpected
    create_volume = _unexpected
    delete_launch_template_versions = _unexpected
    delete_snapshot = _unexpected
    delete_tags = _unexpected
    delete_volume = _unexpected
    describe_fast_snapshot_restores = _unexpected
    describe_images = _unexpected
    describe_instance_types = _unexpected
    describe_instances = _unexpected
    describe_launch_template_versions = _unexpected
    describe_launch_templates = _unexpected
    describe_snapshot_attribute = _unexpected
    describe_snapshots = _unexpected
    describe_volume_status = _unexpected
    describe_volumes = _unexpected
    detach_volume = _unexpected
    disable_fast_snapshot_restores = _unexpected
    enable_fast_snapshot_restores = _unexpected
    modify_instance_attribute = _unexpected
    modify_launch_template = _unexpected
    modify_snapshot_attribute = _unexpected
