"""The metadata service keeps to version 2: no answer without a token where one is required, and none by a proxy."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus

import pytest

from lab.metadata import Metadata, MetadataServer, Tokens, find

VALUES = {
    "meta-data/instance-id": "i-1",
    "meta-data/placement/region": "us-east-1",
    "meta-data/placement/availability-zone": "us-east-1a",
    "dynamic/instance-identity/document": "{}",
}


class Instance:
    """An instance whose options a test can change while it runs."""

    def __init__(self) -> None:
        self.metadata = Metadata(VALUES, enabled=True, token_required=True)
        self.server = MetadataServer(lambda: self.metadata)


@pytest.fixture
def instance() -> Instance:
    return Instance()


def token_of(server: MetadataServer) -> str:
    status, token = server.issue_token("60", forwarded=False)
    assert status is HTTPStatus.OK
    return token


def test_a_token_opens_what_is_closed_without_one(instance: Instance) -> None:
    path = "/latest/meta-data/instance-id"
    assert instance.server.get(path, None)[0] is HTTPStatus.UNAUTHORIZED
    assert instance.server.get(path, "guessed")[0] is HTTPStatus.UNAUTHORIZED
    assert instance.server.get(path, token_of(instance.server)) == (HTTPStatus.OK, "i-1")


def test_version_1_answers_only_where_tokens_are_optional(instance: Instance) -> None:
    instance.metadata = replace(instance.metadata, token_required=False)
    assert instance.server.get("/latest/meta-data/instance-id", None) == (HTTPStatus.OK, "i-1")
    assert instance.server.get("/latest/meta-data/instance-id", "guessed")[0] is HTTPStatus.UNAUTHORIZED


def test_a_token_of_one_instance_is_nothing_to_another(instance: Instance) -> None:
    other = MetadataServer(lambda: instance.metadata)
    assert other.get("/latest/meta-data/instance-id", token_of(instance.server))[0] is HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("ttl", [None, "", "0", "21601", "-1", "a"])
def test_a_token_wants_a_life_between_a_second_and_six_hours(instance: Instance, ttl: str | None) -> None:
    assert instance.server.issue_token(ttl, forwarded=False)[0] is HTTPStatus.BAD_REQUEST


def test_whoever_comes_through_a_proxy_gets_no_token(instance: Instance) -> None:
    assert instance.server.issue_token("60", forwarded=True)[0] is HTTPStatus.FORBIDDEN


def test_a_service_that_is_switched_off_answers_nothing(instance: Instance) -> None:
    token = token_of(instance.server)
    instance.metadata = replace(instance.metadata, enabled=False)
    assert instance.server.get("/latest/meta-data/instance-id", token)[0] is HTTPStatus.FORBIDDEN
    assert instance.server.issue_token("60", forwarded=False)[0] is HTTPStatus.FORBIDDEN


def test_a_token_dies_at_the_end_of_its_life() -> None:
    now = 100.0
    tokens = Tokens(clock=lambda: now)
    token = tokens.issue(60)
    now = 159.9
    assert tokens.accept(token)
    now = 160.0
    assert not tokens.accept(token)


def test_a_folder_lists_what_is_in_it_and_an_unknown_path_is_not_found() -> None:
    assert find(VALUES, "meta-data/") == "instance-id\nplacement/"
    assert find(VALUES, "meta-data/placement") == "availability-zone\nregion"
    assert find(VALUES, "meta-data/tags/instance") is None


@pytest.fixture
def connection(instance: Instance) -> Iterator[http.client.HTTPConnection]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    instance.server.serve(listener)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    yield connection
    connection.close()
    instance.server.stop()


def test_over_http_a_put_gives_the_token_that_a_get_needs(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/latest/meta-data/instance-id")
    refused = connection.getresponse()
    refused.read()
    assert refused.status == HTTPStatus.UNAUTHORIZED
    connection.request("PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    answer = connection.getresponse()
    token = answer.read().decode()
    assert answer.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
    connection.request("GET", "/2021-07-15/meta-data/instance-id", headers={"X-aws-ec2-metadata-token": token})
    assert connection.getresponse().read() == b"i-1"


def test_over_http_only_the_token_can_be_put(connection: http.client.HTTPConnection) -> None:
    connection.request("PUT", "/latest/meta-data/instance-id")
    assert connection.getresponse().status == HTTPStatus.METHOD_NOT_ALLOWED
