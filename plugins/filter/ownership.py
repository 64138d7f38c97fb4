"""Filters that select the project's own AWS resources by their tags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Resource = Mapping[str, Any]


def carrying_tags(resources: Iterable[Resource], tags: Mapping[str, str], attribute: str = "tags") -> list[Resource]:
    """Return the resources that carry all of ``tags``; ``attribute`` is the key of each resource's tags, a mapping."""
    return [resource for resource in resources if _carries(resource, tags, attribute)]


def lacking_tags(resources: Iterable[Resource], tags: Mapping[str, str], attribute: str = "tags") -> list[Resource]:
    """Return the other resources: those that lack one of ``tags`` or carry it with another value."""
    return [resource for resource in resources if not _carries(resource, tags, attribute)]


def _carries(resource: Resource, tags: Mapping[str, str], attribute: str) -> bool:
    own = resource.get(attribute) or {}
    return all(own.get(name) == value for name, value in tags.items())


class FilterModule:
    """The interface of a filter plugin file."""

    def filters(self) -> dict[str, Callable[..., list[Resource]]]:
        """Return the filters by name."""
        return {"carrying_tags": carrying_tags, "lacking_tags": lacking_tags}
