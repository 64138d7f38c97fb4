from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.ec2 import FakeEc2, FakeVolume, Killed, refused
from tests.fakes.fleet import deploy, only_failure, remove


@pytest.fixture
def ec2() -> FakeEc2:
    return FakeEc2()


def test_volumes_are_detached_and_deleted(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(4)
    deploy(ec2, ids)
    predicted = remove(ec2, ids[:3], check_mode=True)
    assert ec2.names(mutating=True) == []
    result = remove(ec2, ids[:3])
    for answer in (predicted, result):
        assert (answer["changed"], answer["detached"], answer["deleted"]) == (True, 3, 3)
        assert answer["diff"] == {"before": "3 volumes\n", "after": "0 volumes\n"}
    assert list(ec2.attached()) == ids[3:]
    again = remove(ec2, ids[:3])
    assert (again["changed"], again["deleted"], again["api_calls"]["mutating"]) == (False, 0, 0)


def test_volumes_of_instances_that_are_gone_are_removed_too(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    ec2.kill_at = 2
    with pytest.raises(Killed):
        deploy(ec2, ids)
    ec2.kill_at = -1
    ec2.instances.clear()
    assert remove(ec2, [])["deleted"] == 2
    assert ec2.volumes == {}


def test_a_volume_that_is_on_its_way_out_already(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    deploy(ec2, ids)
    first, second = ids
    ec2.detach_volume(VolumeId=ec2.attached()[first], InstanceId=first)
    ec2.volumes[ec2.attached()[second]].state = "deleting"
    assert remove(ec2, ids)["deleted"] == 1
    assert [ec2.state(volume) for volume in ec2.volumes.values()] == ["deleting"]


def test_a_removal_that_is_refused_fails_alone(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    deploy(ec2, ids)
    kept = ec2.attached()[ids[0]]
    ec2.fail("detach_volume", ids[0], refused("DetachVolume", "UnauthorizedOperation", "You may not."))
    result = remove(ec2, ids)
    assert only_failure(result).startswith(f"volume {kept} was not detached: UnauthorizedOperation: You may not. Allow")
    assert result["deleted"] == 1
    ec2.fail("delete_volume", ids[0], refused("DeleteVolume", "UnauthorizedOperation", "You may not."))
    assert only_failure(remove(ec2, ids)).startswith(f"volume {kept} was not deleted: UnauthorizedOperation")
    assert remove(ec2, ids)["failed_instances"] == {}
    assert ec2.volumes == {}


def test_a_volume_whose_instance_was_just_terminated_is_no_failure(ec2: FakeEc2) -> None:
    """EC2 still lists it as in use and knows no attachment any more; a root volume then vanishes by itself."""
    ids = ec2.add_instances(2)
    deploy(ec2, ids)
    detach = ec2.detach_volume

    def refuse(**request: Any) -> dict[str, Any]:
        if request["InstanceId"] == ids[0]:
            del ec2.volumes[request["VolumeId"]]
        return detach(**request)

    ec2.fail("detach_volume", ids[0], refused("DetachVolume", "InvalidAttachment.NotFound", "No such attachment."))
    ec2.detach_volume = refuse  # type: ignore[method-assign]
    result = remove(ec2, ids)
    assert (result["failed_instances"], result["deleted"]) == ({}, 2)
    assert ec2.volumes == {}


def test_every_volume_that_is_left_on_an_instance_is_named(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    deploy(ec2, ids)
    (first,) = ec2.volumes
    twin = FakeVolume("vol-twin", ec2.volumes[first].request, ec2.now, ec2.now, instance_id=ids[0], device="/dev/sdg")
    ec2.volumes["vol-twin"] = twin
    denial = refused("DetachVolume", "UnauthorizedOperation", "You may not.")
    ec2.fail("detach_volume", ids[0], denial, denial)
    reason = only_failure(remove(ec2, ids))
    assert f"volume {first} was not detached" in reason
    assert "volume vol-twin was not detached" in reason
