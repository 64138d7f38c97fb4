from __future__ import annotations

import threading
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.core.polling import Delays
from ansible.module_utils.imagenet_ops.ebs import jobs as jobs_module
from ansible.module_utils.imagenet_ops.ebs.jobs import Answer, Ec2Jobs, Job, Volume, describe_error, state_of

from tests.fakes.ec2 import FakeEc2, Killed, refused


@pytest.fixture
def ec2() -> FakeEc2:
    return FakeEc2()


def jobs_of(ec2: FakeEc2, timeout_seconds: float = 60) -> Ec2Jobs:
    return Ec2Jobs(ec2, timeout_seconds, ec2.sleep, ec2.clock)


def creation(instance_id: str) -> dict[str, Any]:
    tags = [{"Key": "InstanceId", "Value": instance_id}]
    return {"AvailabilityZone": "a", "ClientToken": instance_id, "TagSpecifications": [{"Tags": tags}]}


def test_all_pages_are_read_and_counted(ec2: FakeEc2) -> None:
    for number in range(5):
        ec2.create_volume(**creation(f"i-{number}"))
    ec2.page_results = 2
    jobs = jobs_of(ec2)
    assert len(jobs.volumes(list(ec2.volumes))) == 5
    assert jobs.api_calls == {"mutating": 0, "describe": 3}


def test_a_describe_that_is_refused_names_the_operation(ec2: FakeEc2, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> dict[str, Any]:
        raise refused("DescribeVolumes", "RequestLimitExceeded", "Request limit exceeded.")

    monkeypatch.setattr(ec2, "describe_volumes", refuse)
    with pytest.raises(OpsError) as caught:
        jobs_of(ec2).volumes(["vol-1"])
    assert str(caught.value) == (
        "EC2 describe_volumes: RequestLimitExceeded: Request limit exceeded. Rerun in a few minutes; completed work is "
        "skipped"
    )


def test_a_job_waits_until_its_volume_is_as_it_should_be_and_polls_grow_apart(ec2: FakeEc2) -> None:
    seen: list[float] = []

    def advance(job: Job, volume: Volume | None) -> None:
        assert volume is not None
        seen.append(ec2.now - started)
        if volume["State"] == "available":
            job.waiting_since = None

    def created(job: Job, answer: Answer) -> None:
        job.volume_id = answer.result()["VolumeId"]
        jobs.wait_for(job)

    started = ec2.now
    ec2.create_seconds = 20
    jobs, job = jobs_of(ec2), Job("i-1")
    jobs.submit(job, created, ec2.create_volume, **creation("i-1"))
    jobs.work([job], advance)
    between = [later - sooner for sooner, later in zip([0.0, *seen], seen)]
    assert between[:3] == [1.25, 1.25 * 1.25, 1.25**3]
    assert between == sorted(between)
    assert between[-1] == 5
    assert 20 <= seen[-1] < 25
    assert jobs.api_calls == {"mutating": 1, "describe": len(seen)}


def test_once_the_last_call_is_answered_polls_begin_anew(ec2: FakeEc2) -> None:
    """Else what is attached after a long wait for volumes is seen up to 5 seconds late."""
    looks: list[float] = []
    ec2.create_seconds, ec2.attach_seconds = 30, 1

    def advance(job: Job, volume: Volume | None) -> None:
        looks.append(ec2.now)
        assert volume is not None
        if volume["State"] == "available":
            request = {"VolumeId": job.volume_id, "InstanceId": "i-1", "Device": "/dev/sdf"}
            jobs.submit(job, lambda job, _: jobs.wait_for(job), ec2.attach_volume, **request)
        elif volume["State"] == "in-use":
            job.waiting_since = None

    ec2.add_instances(1)
    ec2.instances["i-1"] = ec2.instances.pop(next(iter(ec2.instances)))
    job = Job("i-1", volume_id=ec2.create_volume(**creation("i-1"))["VolumeId"])
    jobs = jobs_of(ec2)
    jobs.wait_for(job)
    jobs.work([job], advance)
    assert looks[-2] - looks[-3] == 5
    assert looks[-1] - looks[-2] == 1.25


def test_an_old_volume_is_looked_at_alone_while_calls_are_on_their_way(
    ec2: FakeEc2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first volumes of a large fleet wait for the last to be asked for."""
    monkeypatch.setattr(jobs_module, "DELAYS", Delays(first=0.01, growth=1.25, longest=5.0))
    monkeypatch.setattr(jobs_module, "BUSY_POLL_SECONDS", 0.02)
    looks: list[list[str]] = []
    looked = threading.Event()
    create, describe = ec2.create_volume, ec2.describe_volumes

    def create_late(**request: Any) -> dict[str, Any]:
        assert looked.wait(60), "nothing was looked at before this call was answered"
        return create(**request)

    def describe_and_note(**request: Any) -> dict[str, Any]:
        looks.append(request["Filters"][0]["Values"])
        return describe(**request)

    def created(job: Job, answer: Answer) -> None:
        job.volume_id = answer.result()["VolumeId"]
        jobs.wait_for(job)

    def advance(job: Job, volume: Volume | None) -> None:
        looked.set()
        assert volume is not None
        if volume["State"] == "available":
            job.waiting_since = None

    old, young, late = (Job(name) for name in ("old", "young", "late"))
    jobs = jobs_of(ec2)
    for job in (old, young):
        job.volume_id = create(**creation(job.instance_id))["VolumeId"]
        jobs.wait_for(job)
        ec2.now += ec2.create_seconds if job is old else 0
    monkeypatch.setattr(ec2, "create_volume", create_late)
    monkeypatch.setattr(ec2, "describe_volumes", describe_and_note)
    jobs.submit(late, created, ec2.create_volume, **creation("late"))
    jobs.work([old, young, late], advance)
    assert looks[0] == [old.volume_id]
    assert looks[-1] == [young.volume_id, late.volume_id]
    assert [job.waiting_since for job in (old, young, late)] == [None] * 3


def test_a_job_that_waits_too_long_fails_alone(ec2: FakeEc2) -> None:
    slow, quick = (ec2.create_volume(**creation(name))["VolumeId"] for name in ("slow", "quick"))
    ec2.volumes[slow].available_at = ec2.now + 1000

    def advance(job: Job, volume: Volume | None) -> None:
        assert volume is not None
        if volume["State"] == "available":
            job.waiting_since = None

    jobs = jobs_of(ec2, timeout_seconds=10)
    both = [Job("i-1", volume_id=slow), Job("i-2", volume_id=quick)]
    for job in both:
        jobs.wait_for(job)
    jobs.work(both, advance)
    assert both[1].reason == ""
    assert both[0].reason == (
        f"volume {slow} is still creating after 10 s. Check it and the instance in the EC2 console (stopping and "
        "starting the instance frees a stuck attachment), then rerun"
    )


def test_calls_not_yet_started_are_dropped_when_the_run_ends_in_an_error(ec2: FakeEc2) -> None:
    def created(_: Job, answer: Answer) -> None:
        answer.result()

    ec2.kill_at = 3
    jobs = jobs_of(ec2)
    many = [Job(f"i-{number}") for number in range(500)]
    for job in many:
        jobs.submit(job, created, ec2.create_volume, **creation(job.instance_id))
    with pytest.raises(Killed):
        jobs.work(many, lambda *_: None)
    assert len(ec2.volumes) == 3


def test_states_in_words() -> None:
    assert state_of(None) == "missing"
    assert state_of({"State": "creating"}) == "creating"
    assert state_of({"State": "in-use", "Attachments": [{"State": "attaching"}]}) == "in-use and attaching"


def test_an_error_told_at_the_end_of_a_reason() -> None:
    assert describe_error(refused("AttachVolume", "AttachmentLimitExceeded", "Too many.")) == (
        "AttachmentLimitExceeded: Too many. Detach a volume from that instance, or use an instance type with more "
        "attachments"
    )
