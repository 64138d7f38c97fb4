from __future__ import annotations

import random
import re
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.ebs.volumes import DEVICE_SUFFIXES, FORGOTTEN_SECONDS, device_name

from tests.fakes.ec2 import FakeEc2, Killed, refused
from tests.fakes.fleet import NEXT_VERSION, TAGS, deploy, only_failure, remove


@pytest.fixture
def ec2() -> FakeEc2:
    return FakeEc2()


# --- a fleet is served


def test_every_instance_gets_a_volume_in_its_own_zone(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(4)
    result = deploy(ec2, ids, name_prefix="imagenet")
    assert result["volumes"] == {
        instance_id: {
            "volume_id": ec2.attached()[instance_id],
            "volume_type": "gp3",
            "zone": ec2.instances[instance_id].zone,
            "device_name": "/dev/sdf",
        }
        for instance_id in ids
    }
    assert (result["changed"], result["created"], result["attached"]) == (True, 4, 4)
    assert result["failed_instances"] == {}
    assert result["diff"] == {
        "before": "0 of 4 instances have the volume attached\n",
        "after": "4 of 4 instances have the volume attached\n",
    }
    for volume in ec2.volumes.values():
        assert volume.request["AvailabilityZone"] == ec2.instances[volume.instance_id].zone
        assert volume.tags == {**TAGS, "InstanceId": volume.instance_id, "Name": f"imagenet-{volume.instance_id}"}
        assert volume.delete_on_termination is False


def test_whether_a_volume_ends_with_its_instance_is_set_where_asked_and_else_left(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    assert deploy(ec2, ids, delete_on_termination=True)["api_calls"]["mutating"] == 6
    assert all(volume.delete_on_termination for volume in ec2.volumes.values())
    assert deploy(ec2, ids)["changed"] is False
    assert all(volume.delete_on_termination for volume in ec2.volumes.values())
    assert deploy(ec2, ids, delete_on_termination=False)["api_calls"]["mutating"] == 2
    assert not any(volume.delete_on_termination for volume in ec2.volumes.values())


def test_volumes_of_instances_that_aws_ends_by_itself_end_with_them(ec2: FakeEc2) -> None:
    """Of Spot instances and Auto Scaling groups, even those attached before; what is asked for all goes first."""
    lasting, spot, scaled = ids = ec2.add_instances(3)
    ec2.instances[spot].lifecycle = "spot"
    ec2.instances[scaled].tags = {"aws:autoscaling:groupName": "trainers"}
    assert deploy(ec2, [spot])["changed"] is True
    assert deploy(ec2, ids, delete_with_ephemeral=True, check_mode=True)["changed"] is True
    assert deploy(ec2, ids, delete_with_ephemeral=True)["api_calls"]["mutating"] == 6
    ends = {volume.instance_id: volume.delete_on_termination for volume in ec2.volumes.values()}
    assert ends == {lasting: False, spot: True, scaled: True}
    assert deploy(ec2, ids, delete_with_ephemeral=True)["changed"] is False
    deploy(ec2, ids, delete_with_ephemeral=True, delete_on_termination=False)
    assert not any(volume.delete_on_termination for volume in ec2.volumes.values())


def test_a_deployment_whose_credentials_expire_says_so_and_is_taken_up(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    expired = [refused("AttachVolume", "RequestExpired", "Request has expired.") for _ in ids]
    for instance_id, error in zip(ids, expired):
        ec2.fail("attach_volume", instance_id, error)
    reasons = deploy(ec2, ids)["failed_instances"].values()
    assert len(reasons) == 2
    assert all("RequestExpired" in reason and "Renew the credentials" in reason for reason in reasons)
    again = deploy(ec2, ids)
    assert (again["created"], again["attached"], again["failed_instances"]) == (0, 2, {})


def test_blank_volumes_are_made_without_a_snapshot(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    assert deploy(ec2, ids, snapshot_id="", size_gib=3)["created"] == 1
    (volume,) = ec2.volumes.values()
    assert "SnapshotId" not in volume.request
    assert volume.request["Size"] == 3
    assert "describe_snapshots" not in ec2.names(mutating=False)
    assert deploy(ec2, ids, snapshot_id="", size_gib=3)["changed"] is False


def test_a_second_run_changes_nothing(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(3)
    first = deploy(ec2, ids)
    second = deploy(ec2, ids)
    assert second["volumes"] == first["volumes"]
    assert (second["changed"], second["created"], second["attached"]) == (False, 0, 0)
    assert second["api_calls"] == {"mutating": 0, "describe": 2}
    assert ec2.names(mutating=True) == []


@pytest.mark.parametrize(("count", "describes"), [(64, 12), (500, 30)])
def test_calls_are_few_for_a_large_fleet(ec2: FakeEc2, count: int, describes: int) -> None:
    result = deploy(ec2, ec2.add_instances(count))
    assert len(ec2.attached()) == count
    assert result["api_calls"]["mutating"] == 2 * count
    assert result["api_calls"]["describe"] == len(ec2.names(mutating=False)) <= describes
    assert len(deploy(ec2, list(ec2.instances))["failed_instances"]) == 0


def test_nothing_is_asked_that_the_calls_tell_by_themselves(ec2: FakeEc2) -> None:
    ec2.create_seconds = ec2.attach_seconds = 1
    deploy(ec2, ec2.add_instances(64))
    looks = ["describe_volumes"] * 2
    assert ec2.names(mutating=False) == ["describe_instances", "describe_volumes", *looks]
    ec2.add_instances(1)
    deploy(ec2, list(ec2.instances), check_mode=True)
    assert ec2.names(mutating=False) == ["describe_instances", "describe_volumes", "describe_snapshots"]


def test_what_is_still_attaching_is_not_ready(ec2: FakeEc2) -> None:
    """A run that was killed asked for it; another one has to wait for it, though it changes nothing."""
    ids = ec2.add_instances(2)
    deploy(ec2, ids)
    ec2.volumes[ec2.attached()[ids[0]]].attached_at = ec2.now + 60
    for check_mode in (True, False):
        result = deploy(ec2, ids, check_mode=check_mode)
        assert (result["changed"], result["ready"], len(result["volumes"])) == (False, 1, 2)
    assert deploy(ec2, ids)["ready"] == 2


def test_what_is_asked_for_reaches_aws(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    deploy(
        ec2,
        ids,
        volume_type="io2",
        iops=4000,
        throughput_mib_s=500,
        size_gib=100,
        kms_key_id="alias/data",
        encrypted=True,
        delete_on_termination=False,
    )
    (volume,) = ec2.volumes.values()
    request = {key: volume.request[key] for key in volume.request if key not in ("TagSpecifications", "ClientToken")}
    assert request == {
        "AvailabilityZone": "a",
        "SnapshotId": "snap-1",
        "VolumeType": "io2",
        "Iops": 4000,
        "Throughput": 500,
        "Size": 100,
        "KmsKeyId": "alias/data",
        "Encrypted": True,
    }
    assert volume.delete_on_termination is False
    assert "modify_instance_attribute" not in ec2.names(mutating=True)


def test_what_is_not_asked_for_is_left_to_aws(ec2: FakeEc2) -> None:
    deploy(ec2, ec2.add_instances(1))
    (volume,) = ec2.volumes.values()
    assert not {"Iops", "Throughput", "Size", "KmsKeyId"} & set(volume.request)


def test_a_new_version_gets_new_volumes_beside_the_old_ones_which_are_named(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(3)
    old = deploy(ec2, ids[:2])
    assert old["superseded"] == {}
    for check_mode in (True, False):
        result = deploy(ec2, ids, tags=NEXT_VERSION, check_mode=check_mode)
        assert result["created"] == 3
        assert result["superseded"] == {key: [volume["volume_id"]] for key, volume in old["volumes"].items()}
    assert [result["volumes"][key]["device_name"] for key in ids] == ["/dev/sdg", "/dev/sdg", "/dev/sdf"]


def test_the_old_version_is_removed_and_the_new_one_kept(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(3)
    deploy(ec2, ids)
    new = deploy(ec2, ids, tags=NEXT_VERSION)["volumes"]
    family = {key: value for key, value in TAGS.items() if key != "DatasetVersion"}
    kept = {"DatasetVersion": NEXT_VERSION["DatasetVersion"]}
    predicted = remove(ec2, ids[:2], tags=family, kept=kept, check_mode=True)
    result = remove(ec2, ids[:2], tags=family, kept=kept)
    assert [(one["detached"], one["deleted"]) for one in (predicted, result)] == [(2, 2), (2, 2)]
    left = deploy(ec2, ids, tags=NEXT_VERSION)
    assert (left["changed"], left["volumes"], list(left["superseded"])) == (False, new, ids[2:])


# --- check mode


def test_check_mode_predicts_and_changes_nothing(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(3)
    made = deploy(ec2, ids[:1])
    volumes = dict(ec2.volumes)
    predicted = deploy(ec2, ids, check_mode=True)
    assert ec2.names(mutating=True) == []
    assert ec2.volumes == volumes
    assert (predicted["changed"], predicted["created"], predicted["attached"]) == (True, 2, 2)
    assert predicted["volumes"][ids[0]] == made["volumes"][ids[0]]
    assert predicted["volumes"][ids[1]] == {"volume_id": "", "volume_type": "gp3", "zone": "b", "device_name": ""}
    real = deploy(ec2, ids)
    assert all(real[key] == predicted[key] for key in ("changed", "created", "attached", "diff"))
    assert deploy(ec2, ids, check_mode=True)["changed"] is False


def test_check_mode_predicts_the_reuse_of_a_volume_and_a_changed_flag(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    deploy(ec2, ids, delete_on_termination=False)
    assert deploy(ec2, ids, delete_on_termination=True, check_mode=True)["changed"] is True
    ec2.detach_volume(VolumeId=ec2.attached()[ids[0]], InstanceId=ids[0])
    ec2.sleep(60)
    predicted = deploy(ec2, ids, check_mode=True)
    assert (predicted["created"], predicted["attached"]) == (0, 1)


# --- what earlier runs left


def test_a_volume_left_available_by_a_killed_run_is_reused(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    ec2.kill_at = 1
    with pytest.raises(Killed):
        deploy(ec2, ids)
    (left,) = ec2.volumes
    ec2.kill_at = -1
    result = deploy(ec2, ids)
    assert result["volumes"][ids[0]]["volume_id"] == left
    assert (result["created"], result["attached"]) == (0, 1)


def test_a_volume_whose_creation_was_not_seen_yet_is_not_made_twice(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    ec2.invisible_seconds = 10
    ec2.kill_at, ec2.kill_after_effect = 0, True
    with pytest.raises(Killed):
        deploy(ec2, ids)
    ec2.kill_at = -1
    deploy(ec2, ids)
    assert len(ec2.volumes) == len(ec2.tokens) == 1
    assert list(ec2.attached()) == ids


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_call_and_run_again(ec2: FakeEc2, seed: int) -> None:
    ids = ec2.add_instances(6)
    ec2.kill_at, ec2.kill_after_effect = seed, seed % 2 == 0
    try:
        deploy(ec2, ids)
    except Killed:
        ec2.sleep(seed + 1)
    ec2.kill_at = -1
    result = deploy(ec2, ids)
    assert result["failed_instances"] == {}
    assert sorted(ec2.attached()) == ids
    assert len(ec2.volumes) == len(ids)


@pytest.mark.parametrize("seed", range(10))
def test_killed_while_things_go_wrong_and_run_again(ec2: FakeEc2, seed: int) -> None:
    """Device names that hang, an instance that ends, a storm of refusals, and the controller killed, each at random."""
    chance = random.Random(seed)
    ids = ec2.add_instances(8)
    ec2.stuck_devices.add("/dev/sdf")
    storm = refused("CreateVolume", "RequestLimitExceeded", "Request limit exceeded.")
    for instance_id in chance.sample(ids, 3):
        ec2.fail("create_volume", instance_id, storm)
    ended = chance.choice(ids)
    ends_at = chance.randrange(16)
    create, attach = ec2.create_volume, ec2.attach_volume

    def may_end(call: Any) -> Any:
        def answer(**request: Any) -> dict[str, Any]:
            if len(ec2.names(mutating=True)) >= ends_at:
                ec2.instances[ended].state = "terminated"
            found: dict[str, Any] = call(**request)
            return found

        return answer

    ec2.create_volume, ec2.attach_volume = may_end(create), may_end(attach)  # type: ignore[method-assign]
    ec2.kill_at, ec2.kill_after_effect = chance.randrange(1, 24), chance.random() < 0.5
    try:
        deploy(ec2, ids)
    except Killed:
        ec2.sleep(1 + chance.random() * 100)
    ec2.kill_at = -1
    ec2.instances[ended].state = "terminated"
    for volume in ec2.volumes.values():  # EC2 takes them off an instance that ends
        if volume.instance_id == ended:
            volume.instance_id = ""
    alive = [instance_id for instance_id in ids if instance_id != ended]
    for _ in range(2):  # those that the storm hit are served by the second run at the latest
        result = deploy(ec2, ids)
    assert list(result["failed_instances"]) == [ended]
    assert sorted(ec2.attached()) == alive
    assert len(ec2.volumes) == len(alive), "no orphan"
    again = deploy(ec2, alive)
    assert (again["changed"], again["api_calls"]["mutating"]) == (False, 0)


def test_the_token_of_a_deleted_volume_is_followed_by_the_next(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    for _ in range(3):
        ec2.sleep(1000)
        assert deploy(ec2, ids)["failed_instances"] == {}
        remove(ec2, ids)
    assert ec2.volumes == {}
    ec2.sleep(1000)
    started = ec2.now
    result = deploy(ec2, ids)
    assert result["failed_instances"] == {}
    assert sorted(ec2.attached()) == ids
    assert result["created"] == 2
    assert ec2.now - started < 30


@pytest.mark.parametrize("controller_ahead_seconds", [-250, 0, 250])
def test_volumes_made_and_removed_again_and_again_within_minutes(ec2: FakeEc2, controller_ahead_seconds: float) -> None:
    ec2.controller_ahead_seconds = controller_ahead_seconds
    ids = ec2.add_instances(1)
    for _ in range(5):
        started = ec2.now
        assert deploy(ec2, ids)["failed_instances"] == {}
        assert ec2.now - started < 12
        remove(ec2, ids)
        ec2.sleep(20)


@pytest.mark.parametrize("answered_state", ["creating", "available", "deleted"])
def test_a_volume_deleted_a_moment_ago_is_made_again_though_its_token_still_answers(
    ec2: FakeEc2, answered_state: str
) -> None:
    ids = ec2.add_instances(1)
    ec2.create_seconds = 0
    deploy(ec2, ids)
    remove(ec2, ids)
    create = ec2.create_volume

    def answer_for_old_tokens(**request: Any) -> dict[str, Any]:
        ec2.answered_state = answered_state if request["ClientToken"] in ec2.tokens else "creating"
        return create(**request)

    ec2.create_volume = answer_for_old_tokens  # type: ignore[method-assign]
    result = deploy(ec2, ids)
    assert list(ec2.attached()) == ids
    assert result["created"] == 1
    assert result["volumes"][ids[0]]["device_name"] == "/dev/sdf"


def test_other_settings_after_a_deletion_are_no_obstacle(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    deploy(ec2, ids)
    remove(ec2, ids)
    deploy(ec2, ids, volume_type="st1")
    (volume,) = ec2.volumes.values()
    assert volume.request["VolumeType"] == "st1"


def test_volumes_of_others_are_left_alone(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    deploy(ec2, ids, tags={**TAGS, "Project": "another"})
    before = ec2.attached()
    deploy(ec2, ids)
    assert len(ec2.volumes) == 4
    ours = {key: volume for key, volume in ec2.volumes.items() if volume.tags["Project"] == "imagenet-ops"}
    remove(ec2, [])
    assert not set(ours) & set(ec2.volumes)
    assert ec2.attached() == before


# --- one fails, the others are served


def test_an_instance_that_is_not_there_or_not_running_fails_alone(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(3)
    ec2.instances[ids[1]].state = "stopped"
    result = deploy(ec2, [*ids, "i-gone"])
    assert sorted(result["volumes"]) == [ids[0], ids[2]]
    assert result["failed_instances"] == {
        ids[1]: f"instance {ids[1]} is stopped. Start it, or exclude it with --limit",
        "i-gone": "instance i-gone does not exist in this Region. Correct the inventory",
    }
    assert len(ec2.volumes) == 2


def test_a_stuck_attachment_fails_alone_and_the_others_do_not_wait_for_it(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(3)
    ec2.stuck.add(ids[0])
    result = deploy(ec2, ids)
    assert sorted(result["volumes"]) == ids[1:]
    stuck = ec2.attached()[ids[0]]
    assert only_failure(result).startswith(f"volume {stuck} is still in-use and attaching after 300 s. Check it")
    ec2.stuck.clear()
    again = deploy(ec2, ids)
    assert again["failed_instances"] == {}
    assert (again["created"], again["attached"]) == (0, 0)


def test_an_attachment_that_hangs_is_given_up_and_made_again_elsewhere(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(3)
    ec2.stuck_devices.add("/dev/sdf")
    started = ec2.now
    result = deploy(ec2, ids, attach_timeout_seconds=30)
    assert result["failed_instances"] == {}
    assert {volume["device_name"] for volume in result["volumes"].values()} == {"/dev/sdg"}
    assert 30 < ec2.now - started < 60
    assert (result["created"], result["attached"], len(ec2.volumes)) == (3, 3, 3)
    assert ec2.names(mutating=True).count("detach_volume") == 3


def test_an_attachment_that_came_about_in_the_last_moment_is_kept(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    ec2.stuck.add(ids[0])
    ec2.fail("detach_volume", ids[0], refused("DetachVolume", "IncorrectState", "The volume is attached."))
    detach = ec2.detach_volume

    def come_about(**request: Any) -> dict[str, Any]:
        ec2.stuck.clear()
        return detach(**request)

    ec2.detach_volume = come_about  # type: ignore[method-assign]
    assert deploy(ec2, ids)["volumes"][ids[0]]["device_name"] == "/dev/sdf"


def test_a_hanging_attachment_that_may_not_be_given_up_fails_alone(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    ec2.stuck.add(ids[0])
    ec2.fail("detach_volume", ids[0], refused("DetachVolume", "UnauthorizedOperation", "You may not."))
    reason = only_failure(deploy(ec2, ids))
    assert re.match(r"volume vol-0+\d is stuck in attaching, not detached: UnauthorizedOperation: You may not", reason)


@pytest.mark.parametrize(
    ("limit", "interfaces", "is_full"),
    [
        ({"MaximumEbsAttachments": 3, "AttachmentLimitType": "dedicated"}, 4, True),
        ({"MaximumEbsAttachments": 4, "AttachmentLimitType": "dedicated"}, 4, False),
        ({"MaximumEbsAttachments": 4, "AttachmentLimitType": "shared"}, 2, True),
        ({"MaximumEbsAttachments": 4, "AttachmentLimitType": "shared"}, 1, False),
        ({}, 1, False),
    ],
)
def test_an_instance_that_takes_no_more_volumes_fails_alone_and_none_is_made_for_it(
    ec2: FakeEc2, limit: dict[str, Any], interfaces: int, *, is_full: bool
) -> None:
    ids = ec2.add_instances(2)
    full = ec2.instances[ids[0]]
    full.instance_type, full.interfaces = "g5.48xlarge", interfaces
    full.devices += ["/dev/sdb", "/dev/sdc"]
    ec2.types["g5.48xlarge"] = limit
    for check_mode in (True, False):
        result = deploy(ec2, ids, check_mode=check_mode)
        assert result["created"] == (1 if is_full else 2)
    assert list(result["volumes"]) == (ids[1:] if is_full else ids)
    if is_full:
        used = 3 + (interfaces - 1) * (limit["AttachmentLimitType"] == "shared")
        assert only_failure(result) == (
            f"instance {ids[0]} has {used} attachments, and g5.48xlarge takes no more. Detach a volume from it, or "
            "use an instance type with more attachments"
        )


def test_a_refusal_is_told_with_its_code_and_what_to_do(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    ec2.fail("create_volume", ids[0], refused("CreateVolume", "VolumeLimitExceeded", "Maximum storage exceeded."))
    result = deploy(ec2, ids)
    assert only_failure(result) == (
        "no volume of snap-1 in a: VolumeLimitExceeded: Maximum storage exceeded. Raise the EBS quota of this volume "
        "type in Service Quotas, or delete unused volumes"
    )
    assert list(result["volumes"]) == ids[1:]


def test_an_instance_that_is_terminated_half_way_leaves_no_volume(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    create = ec2.create_volume

    def terminate_after_creation(**request: Any) -> dict[str, Any]:
        ec2.instances[ids[0]].state = "terminated"
        return create(**request)

    ec2.create_volume = terminate_after_creation  # type: ignore[method-assign]
    result = deploy(ec2, ids)
    reason = only_failure(result)
    assert "was not attached as /dev/sdf: IncorrectState: Instance is not 'running': terminated." in reason
    assert re.search(r"The instance was terminated, so its new volume vol-0+[01] was deleted$", reason)
    assert sorted(ec2.attached()) == ids[1:]
    assert len(ec2.volumes) == 1


def test_an_instance_that_is_terminated_while_its_volume_is_attaching_leaves_no_volume(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(2)
    attach = ec2.attach_volume

    def end_instance(**request: Any) -> dict[str, Any]:
        answer = attach(**request)
        if request["InstanceId"] == ids[0]:
            ec2.instances[ids[0]].state = "terminated"
            ec2.volumes[request["VolumeId"]].instance_id = ""
        return answer

    ec2.attach_volume = end_instance  # type: ignore[method-assign]
    started = ec2.now
    reason = only_failure(deploy(ec2, ids))
    assert re.match(rf"volume vol-0+\d was detached from {ids[0]} while it was being attached\. Check what", reason)
    assert reason.endswith("was deleted")
    assert ec2.now - started < 60
    assert sorted(ec2.attached()) == ids[1:]
    assert len(ec2.volumes) == 1


def test_volumes_of_instances_that_have_gone_are_deleted_by_the_next_run_whatever_their_version(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(4)
    deploy(ec2, ids[:2])
    deploy(ec2, ids, tags=NEXT_VERSION)
    deploy(ec2, ids[:1], tags={**TAGS, "Dataset": "another"})
    ec2.instances[ids[0]].state = "terminated"
    del ec2.instances[ids[1]]
    ec2.instances[ids[2]].state = "stopped"
    for volume in ec2.volumes.values():
        if volume.instance_id in ids[:3]:
            volume.instance_id = ""
    ec2.now += FORGOTTEN_SECONDS
    predicted = deploy(ec2, ids[3:], tags=NEXT_VERSION, check_mode=True)
    result = deploy(ec2, ids[3:], tags=NEXT_VERSION)
    for answer in (predicted, result):
        assert (answer["changed"], answer["deleted"], answer["created"]) == (True, 4, 0)
    left = sorted((volume.tags["Dataset"], volume.tags["InstanceId"]) for volume in ec2.volumes.values())
    assert left == [("another", ids[0]), ("imagenet", ids[2]), ("imagenet", ids[3])]
    assert deploy(ec2, ids[3:], tags=NEXT_VERSION)["changed"] is False


def test_an_instance_that_an_answer_left_out_keeps_its_volume(ec2: FakeEc2) -> None:
    """EC2 is eventually consistent; only an hour after the volume was made a missing instance is a terminated one."""
    ids = ec2.add_instances(2)
    deploy(ec2, ids)
    (lost,) = [volume for volume in ec2.volumes.values() if volume.instance_id == ids[0]]
    lost.instance_id = ""
    del ec2.instances[ids[0]]
    ec2.now += FORGOTTEN_SECONDS - 60
    assert deploy(ec2, ids[1:])["deleted"] == 0
    ec2.now += 60
    assert deploy(ec2, ids[1:])["deleted"] == 1


def test_a_volume_that_vanishes_after_creation_points_at_the_key(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    create = ec2.create_volume

    def vanish(**request: Any) -> dict[str, Any]:
        answer = create(**request)
        del ec2.volumes[answer["VolumeId"]]
        return answer

    ec2.create_volume = vanish  # type: ignore[method-assign]
    assert "The usual cause is a KMS key that EC2 may not use" in only_failure(deploy(ec2, ids))
    assert len(ec2.tokens) == 3


def test_an_attachment_whose_answer_was_lost_is_found(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    attach = ec2.attach_volume

    def attach_twice(**request: Any) -> dict[str, Any]:
        attach(**request)
        return attach(**request)

    ec2.attach_volume = attach_twice  # type: ignore[method-assign]
    result = deploy(ec2, ids)
    assert result["failed_instances"] == {}
    assert (result["attached"], list(ec2.attached())) == (1, ids)


def test_a_volume_that_someone_attached_elsewhere_is_not_taken_away(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(3, zones=("a",))
    deploy(ec2, ids[:1])
    volume = ec2.volumes[ec2.attached()[ids[0]]]
    volume.instance_id = ids[2]
    reason = only_failure(deploy(ec2, ids[:2]))
    assert reason == f"its volume {volume.volume_id} is attached to {ids[2]}. Detach it there, then rerun"
    assert volume.instance_id == ids[2]


def test_a_flag_that_cannot_be_set_is_a_failure_and_the_next_run_sets_it(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    ec2.fail("modify_instance_attribute", ids[0], refused("Modify", "UnauthorizedOperation", "You may not."))
    assert "is attached, but its DeleteOnTermination was not set: UnauthorizedOperation: You may not. Allow" in (
        only_failure(deploy(ec2, ids, delete_on_termination=True))
    )
    again = deploy(ec2, ids, delete_on_termination=True)
    assert (again["changed"], again["created"], again["attached"]) == (True, 0, 0)
    assert next(iter(ec2.volumes.values())).delete_on_termination is True


# --- device names


def test_a_free_device_is_taken(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    ec2.instances[ids[0]].devices += ["/dev/sdf", "xvdg", "/dev/xvdh1"]
    assert deploy(ec2, ids)["volumes"][ids[0]]["device_name"] == "/dev/sdi"


@pytest.mark.parametrize("code", ["InvalidParameterValue", "InvalidDevice.InUse"])
def test_a_device_taken_by_another_meanwhile_is_passed_over(ec2: FakeEc2, code: str) -> None:
    ids = ec2.add_instances(1)
    ec2.device_in_use_code = code
    create = ec2.create_volume

    def take_device(**request: Any) -> dict[str, Any]:
        ec2.instances[ids[0]].devices.append("/dev/sdf")
        return create(**request)

    ec2.create_volume = take_device  # type: ignore[method-assign]
    assert deploy(ec2, ids)["volumes"][ids[0]]["device_name"] == "/dev/sdg"


def test_no_device_is_free(ec2: FakeEc2) -> None:
    ids = ec2.add_instances(1)
    ec2.instances[ids[0]].devices += [device_name(suffix) for suffix in DEVICE_SUFFIXES]
    assert only_failure(deploy(ec2, ids)) == (
        "all device names for volumes are in use. Detach a volume from that instance"
    )


# --- nothing can be done for anyone


def test_an_unknown_snapshot(ec2: FakeEc2) -> None:
    for check_mode in (True, False):
        with pytest.raises(OpsError) as caught:
            deploy(ec2, ec2.add_instances(2), snapshot_id="snap-none", check_mode=check_mode)
        assert str(caught.value) == (
            "Snapshot snap-none: it does not exist in this Region, or is not shared with this account. Correct the id "
            "or the Region; playbooks/prepare.yml creates the snapshot"
        )
    assert ec2.volumes == {}


def test_a_snapshot_that_is_not_finished(ec2: FakeEc2) -> None:
    ec2.snapshots["snap-1"].update(State="pending", Progress="37%")
    with pytest.raises(OpsError) as caught:
        deploy(ec2, ec2.add_instances(1))
    assert str(caught.value) == (
        "Snapshot snap-1: it is pending (37%), and volumes are made of completed snapshots only. "
        "Wait until it is completed; the first snapshot of a large volume takes hours"
    )


def test_volumes_smaller_than_the_snapshot(ec2: FakeEc2) -> None:
    with pytest.raises(OpsError, match="Volumes of 7 GiB: snapshot snap-1 is of a volume of 8 GiB, the minimum for"):
        deploy(ec2, ec2.add_instances(1), size_gib=7)
    deploy(ec2, ec2.add_instances(1), size_gib=8)


def test_tags_that_do_not_tell_whose_volumes_they_are(ec2: FakeEc2) -> None:
    for act in (deploy, remove):
        with pytest.raises(OpsError, match="Project is missing"):
            act(ec2, [], tags={"Dataset": "imagenet"})
