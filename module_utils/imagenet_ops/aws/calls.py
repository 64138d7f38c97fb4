"""Calls of operations of AWS, page by page where there are pages, and the forms of filters and tags that EC2 takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ansible.module_utils.imagenet_ops.aws.clients import Operation, PagingClient
from ansible.module_utils.imagenet_ops.aws.errors import explain, sdk_errors

# Values that one filter takes (EC2 API reference).
FILTER_VALUES = 200
# Snapshots that this account owns or that are shared with it. Without it EC2 searches all public ones as well, which
# takes minutes.
RESTORABLE: dict[str, Any] = {"RestorableByUserIds": ["self"]}


def call(operation: Operation, what: str, **request: Any) -> dict[str, Any]:
    """Return the answer of an operation of a boto3 client; raises OpsError about ``what`` if the SDK does."""
    try:
        return operation(**request)
    except sdk_errors() as error:
        raise explain(error, what) from error


def call_pages(client: PagingClient, operation: str, what: str, **request: Any) -> Iterator[dict[str, Any]]:
    """Yield every page of the answer of ``operation``; raises OpsError as `call` does."""
    try:
        yield from client.get_paginator(operation).paginate(**request)
    except sdk_errors() as error:
        raise explain(error, what) from error


def call_list(client: PagingClient, operation: str, key: str, what: str, **request: Any) -> Iterator[dict[str, Any]]:
    """Yield the entries below ``key`` of every page of the answer of ``operation``; raises OpsError as `call` does."""
    for page in call_pages(client, operation, what, **request):
        yield from page[key]


def tag_filters(tags: dict[str, str]) -> list[dict[str, Any]]:
    """Return the filters of EC2 for what carries all of ``tags``."""
    return [{"Name": f"tag:{name}", "Values": [value]} for name, value in tags.items()]


def tags_of(resource: dict[str, Any]) -> dict[str, str]:
    """Return the tags of something that EC2 described, by name."""
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags", [])}


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Return tags as EC2 wants them, in the order of their names."""
    return [{"Key": name, "Value": value} for name, value in sorted(tags.items())]


def chunks(values: Iterable[str]) -> Iterator[list[str]]:
    """Yield ``values`` in lists that fit a filter of EC2."""
    everything = list(values)
    for start in range(0, len(everything), FILTER_VALUES):
        yield everything[start : start + FILTER_VALUES]
