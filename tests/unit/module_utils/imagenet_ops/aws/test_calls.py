from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.aws.calls import (
    call,
    call_list,
    call_pages,
    chunks,
    tag_filters,
    tag_list,
    tags_of,
)
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.clients import StubEc2
from tests.fakes.ec2 import refused


class Pages(StubEc2):
    """Volumes, a page for each; the page numbered ``refuse_at`` is refused."""

    def __init__(self, count: int, refuse_at: int = -1) -> None:
        self.count = count
        self.refuse_at = refuse_at
        self.requests: list[dict[str, Any]] = []

    def describe_volumes(self, **request: Any) -> dict[str, Any]:
        if len(self.requests) == self.refuse_at:
            raise refused("DescribeVolumes", "UnauthorizedOperation", "You may not.")
        self.requests.append(request)
        number = int(request.get("NextToken", 0))
        more = {"NextToken": str(number + 1)} if number + 1 < self.count else {}
        return {"Volumes": [{"VolumeId": f"vol-{number}"}], **more}


def test_every_page_is_read_with_the_same_request() -> None:
    ec2 = Pages(3)
    found = list(call_list(ec2, "describe_volumes", "Volumes", "The volumes", MaxResults=5))
    assert found == [{"VolumeId": f"vol-{number}"} for number in range(3)]
    assert ec2.requests == [{"MaxResults": 5}, *({"MaxResults": 5, "NextToken": token} for token in "12")]
    assert [len(page["Volumes"]) for page in call_pages(Pages(2), "describe_volumes", "The volumes")] == [1, 1]


def test_a_page_is_fetched_when_it_is_reached() -> None:
    ec2 = Pages(3)
    assert next(call_list(ec2, "describe_volumes", "Volumes", "The volumes"))["VolumeId"] == "vol-0"
    assert len(ec2.requests) == 1


@pytest.mark.parametrize("page", [0, 2])
def test_a_page_that_is_refused_names_what_was_wanted(page: int) -> None:
    with pytest.raises(OpsError, match=r"The volumes: UnauthorizedOperation: You may not\. Allow the action"):
        list(call_list(Pages(3, refuse_at=page), "describe_volumes", "Volumes", "The volumes"))


def test_a_token_that_comes_twice_is_an_error_and_no_endless_loop() -> None:
    class Looping(StubEc2):
        def describe_volumes(self, **_: Any) -> dict[str, Any]:
            return {"Volumes": [], "NextToken": "again"}

    with pytest.raises(OpsError, match=r"The volumes: PaginationError: .*The same next token was received twice"):
        list(call_pages(Looping(), "describe_volumes", "The volumes"))


def test_one_call() -> None:
    ec2 = Pages(1)
    assert call(ec2.describe_volumes, "The volumes", MaxResults=5) == {"Volumes": [{"VolumeId": "vol-0"}]}
    with pytest.raises(OpsError, match=r"The volumes: UnauthorizedOperation: You may not\. Allow the action"):
        call(Pages(1, refuse_at=0).describe_volumes, "The volumes")


def test_tags_in_the_forms_of_ec2() -> None:
    tags = {"b": "2", "a": "1"}
    assert tag_list(tags) == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    assert tags_of({"Tags": tag_list(tags)}) == tags
    assert tags_of({}) == {}
    assert tag_filters({"a": "1"}) == [{"Name": "tag:a", "Values": ["1"]}]


@given(st.lists(st.text(max_size=3), max_size=700))
def test_chunks_hold_everything_once_and_fit_a_filter(values: list[str]) -> None:
    parts = list(chunks(values))
    assert [value for part in parts for value in part] == values
    assert all(1 <= len(part) <= 200 for part in parts)
