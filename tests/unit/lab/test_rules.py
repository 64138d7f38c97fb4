"""EC2's rules, one by one, with the error codes that callers tell them apart by."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.rules import (
    VOLUME_TYPES,
    ApiError,
    Attachment,
    ClientTokens,
    NewVolume,
    check_attachment,
    check_new_snapshot,
    check_new_volume,
    error_xml,
)

ATTACHMENT = Attachment(
    volume_id="vol-1",
    volume_state="available",
    volume_zone="us-east-1a",
    instance_id="i-1",
    instance_state="running",
    instance_zone="us-east-1a",
    device="/dev/sdf",
    devices_in_use=frozenset({"/dev/xvda"}),
)


def refusal(volume: NewVolume) -> str:
    with pytest.raises(ApiError) as error:
        check_new_volume(volume)
    return str(error.value)


@pytest.mark.parametrize("name", sorted(VOLUME_TYPES))
def test_a_volume_may_have_any_size_between_its_type_limits_and_no_other(name: str) -> None:
    limits = VOLUME_TYPES[name]
    assert check_new_volume(NewVolume(name, limits.minimum_gib)) == limits.minimum_gib
    assert check_new_volume(NewVolume(name, limits.maximum_gib)) == limits.maximum_gib
    assert "InvalidParameterValue" in refusal(NewVolume(name, limits.minimum_gib - 1))
    assert "too large" in refusal(NewVolume(name, limits.maximum_gib + 1))


def test_a_cold_volume_below_125_gib_is_refused_in_the_words_of_aws() -> None:
    assert refusal(NewVolume("sc1", 124)) == (
        "InvalidParameterValue: Volume of 124GiB is too small for volume type sc1; minimum is 125GiB."
    )


def test_a_volume_from_a_snapshot_takes_its_size_and_is_never_smaller() -> None:
    from_snapshot = NewVolume("gp3", None, snapshot_id="snap-1", snapshot_gib=150)
    assert check_new_volume(from_snapshot) == 150
    assert check_new_volume(replace(from_snapshot, size_gib=200)) == 200
    assert refusal(replace(from_snapshot, size_gib=149)) == (
        "InvalidParameterValue: Volume of 149GiB is smaller than snapshot 'snap-1', expect size >= 150GiB"
    )


def test_a_volume_needs_a_size_or_a_snapshot_and_a_known_type() -> None:
    assert "MissingParameter" in refusal(NewVolume("gp3", None))
    assert "UnknownVolumeType" in refusal(NewVolume("gp9", 10))


@pytest.mark.parametrize(
    ("volume", "part"),
    [
        (NewVolume("gp3", 100, iops=2999), "iops of 2999 is out of range"),
        (NewVolume("gp3", 100, iops=80001), "iops of 80001 is out of range"),
        (NewVolume("gp3", 100, iops=50001), "maximum is 500 IOPS per GiB"),
        (NewVolume("gp3", 100, throughput=124), "Throughput of 124 is out of range"),
        (NewVolume("gp3", 100, throughput=2001), "Throughput of 2001 is out of range"),
        (NewVolume("gp3", 100, throughput=751), "maximum is 0.25 MiBps per iops"),
        (NewVolume("gp3", 100, initialization_rate=200), "only be used when creating a volume from a snapshot"),
        (NewVolume("gp3", 100, "snap-1", 10, initialization_rate=99), "rate of 99 is out of range"),
    ],
)
def test_performance_that_the_type_does_not_have_is_refused(volume: NewVolume, part: str) -> None:
    assert part in refusal(volume)


def test_performance_within_the_limits_is_granted() -> None:
    assert check_new_volume(NewVolume("gp3", 1, iops=3000)) == 1, "the baseline comes with any size"
    assert check_new_volume(NewVolume("gp3", 100, iops=8000, throughput=2000)) == 100
    assert check_new_volume(NewVolume("gp3", 100, "snap-1", 10, initialization_rate=300)) == 100


def test_an_attachment_that_ec2_would_make_is_made() -> None:
    check_attachment(ATTACHMENT)
    check_attachment(replace(ATTACHMENT, instance_state="stopped", device="xvdba"))


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (replace(ATTACHMENT, volume_zone="us-east-1b"), "InvalidVolume.ZoneMismatch"),
        (replace(ATTACHMENT, volume_state="in-use"), "VolumeInUse"),
        (replace(ATTACHMENT, volume_state="creating"), "IncorrectState"),
        (replace(ATTACHMENT, instance_state="pending"), "IncorrectState"),
        (replace(ATTACHMENT, instance_state="terminated"), "IncorrectState"),
        (replace(ATTACHMENT, device="/dev/xvda"), "InvalidParameterValue"),
        (replace(ATTACHMENT, device="/dev/nvme1n1"), "InvalidParameterValue"),
    ],
)
def test_an_attachment_that_ec2_would_refuse_is_refused_with_its_code(wanted: Attachment, code: str) -> None:
    with pytest.raises(ApiError) as error:
        check_attachment(wanted)
    assert error.value.code == code


@pytest.mark.parametrize(("volume_type", "allowed"), [("sc1", 1), ("st1", 1), ("gp3", 5)])
def test_a_volume_has_only_so_many_snapshots_in_the_making(volume_type: str, allowed: int) -> None:
    check_new_snapshot(volume_type, allowed - 1)
    with pytest.raises(ApiError, match="ConcurrentSnapshotLimitExceeded"):
        check_new_snapshot(volume_type, allowed)


def test_a_client_token_finds_what_it_made_and_refuses_another_request() -> None:
    tokens = ClientTokens()
    assert tokens.find("CreateVolume", "t", {"Size": 1}) is None
    tokens.remember("CreateVolume", "t", {"Size": 1}, "vol-1")
    assert tokens.find("CreateVolume", "t", {"Size": 1}) == "vol-1"
    assert tokens.find("RunInstances", "t", {"Size": 1}) is None
    with pytest.raises(ApiError, match="IdempotentParameterMismatch"):
        tokens.find("CreateVolume", "t", {"Size": 2})


def test_without_a_client_token_nothing_is_remembered() -> None:
    tokens = ClientTokens()
    tokens.remember("CreateVolume", None, {}, "vol-1")
    assert tokens.find("CreateVolume", None, {}) is None


@given(st.sampled_from(["ec2", "s3", "sts"]), st.text(st.characters(exclude_categories=["C"])))
def test_an_error_is_well_formed_xml_whatever_its_message(service: str, message: str) -> None:
    root = ET.fromstring(error_xml(service, ApiError("Code", message)))
    assert (root.findtext(".//Message") or "") == message
    assert root.findtext(".//Code") == "Code"
