"""Caches for what moto computes at each call, so that a deployment to a fleet does not wait for it."""

from __future__ import annotations

import functools
from typing import Any

from moto.ec2.models import EC2Backend
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix
from moto.moto_server.werkzeug_app import DomainDispatcherApplication

from lab.patching import wrap


def install() -> None:
    """Change moto."""
    # The service of a host name: moto lists the directories of its package for that.
    found = functools.cache(DomainDispatcherApplication.get_backend_for_host)
    wrap(DomainDispatcherApplication, "get_backend_for_host")(lambda _, dispatcher, host: found(dispatcher, host))
    # moto matches a pattern with the tags of everything there is.
    wrap(TaggedEC2Resource, "get_tags")(lambda _, resource: _tags(resource))
    # moto tries every volume against every id of a filter, each of which may be a pattern.
    wrap(EC2Backend, "describe_volumes")(_volumes)


def _volumes(
    original: Any, backend: Any, volume_ids: list[str] | None = None, filters: dict[str, list[str]] | None = None
) -> Any:
    named = (filters or {}).get("volume-id")
    if filters is None or not named or volume_ids or any(set(value) & set("*?") for value in named):
        return original(backend, volume_ids, filters)
    others = {name: values for name, values in filters.items() if name != "volume-id"}
    known = [value for value in dict.fromkeys(named) if value in backend.volumes]
    return original(backend, known, others) if known else []


def _tags(resource: Any) -> list[dict[str, str]]:
    if not resource.id:
        return []
    kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(resource.id), "")
    tags = resource.ec2_backend.tags.get(resource.id, {})
    return [
        {"resource_id": resource.id, "key": key, "value": value, "resource_type": kind} for key, value in tags.items()
    ]
