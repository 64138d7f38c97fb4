from __future__ import annotations

from typing import Any

from plugins.filter.ownership import FilterModule, carrying_tags, lacking_tags

OURS = {"Project": "imagenet-ops", "Dataset": "imagenet"}
RESOURCES: list[dict[str, Any]] = [
    {"id": "ours", "tags": {**OURS, "Name": "imagenet-data"}},
    {"id": "of another data set", "tags": {**OURS, "Dataset": "imagenette"}},
    {"id": "theirs", "tags": {"Name": "imagenet-data", "Owner": "alice"}},
    {"id": "untagged", "tags": {}},
    {"id": "tagless"},
    {"id": "null", "tags": None},
]


def test_only_what_carries_every_tag_is_ours() -> None:
    assert [one["id"] for one in carrying_tags(RESOURCES, OURS)] == ["ours"]
    assert [one["id"] for one in lacking_tags(RESOURCES, OURS)] == [one["id"] for one in RESOURCES[1:]]


def test_tags_may_lie_elsewhere() -> None:
    bucket = {"name": "b", "bucket_tagging": OURS}
    assert carrying_tags([bucket], OURS, "bucket_tagging") == [bucket]
    assert lacking_tags([bucket], OURS) == [bucket]


def test_ansible_finds_both_filters() -> None:
    assert FilterModule().filters() == {"carrying_tags": carrying_tags, "lacking_tags": lacking_tags}
