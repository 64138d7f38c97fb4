from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, ListedObject
from ansible.module_utils.imagenet_ops.backup.request import RestoreRequest, find_prefix
from ansible.module_utils.imagenet_ops.core.errors import OpsError


class Listed(Bucket):
    """A bucket of which only the listing is asked for: when each object was stored, by key."""

    def __init__(self, modified_seconds: dict[str, float]) -> None:
        super().__init__(None, "backup")
        self.modified_seconds = modified_seconds

    def objects(self, prefix: str) -> dict[str, ListedObject]:
        stored = self.modified_seconds.items()
        return {key: ListedObject(1, "etag", seconds) for key, seconds in stored if key.startswith(prefix)}


def request(**options: Any) -> RestoreRequest:
    return RestoreRequest("/data", "/data/.state", dataset="imagenet", **options)


def test_the_newest_complete_backup_is_found() -> None:
    keys = {
        "imagenet/0123456789ab/manifest.json": 10.0,
        "imagenet/ba9876543210/manifest.json": 20.0,
        "imagenet/ffffffffffff/labels.tsv": 30.0,
        "imagenet/old/manifest.json": 40.0,
        "imagenette/cccccccccccc/manifest.json": 50.0,
    }
    assert find_prefix(Listed(keys), request()) == "imagenet/ba9876543210"


def test_a_prefix_or_a_version_is_taken_as_it_is() -> None:
    assert find_prefix(Listed({}), request(prefix="/copies/imagenet/")) == "copies/imagenet"
    assert find_prefix(Listed({}), request(dataset_version="0123456789ab")) == "imagenet/0123456789ab"


def test_no_backup() -> None:
    with pytest.raises(OpsError, match="s3://backup/imagenet/: there is no complete backup"):
        find_prefix(Listed({"imagenet/0123456789ab/labels.tsv": 1.0}), request())
