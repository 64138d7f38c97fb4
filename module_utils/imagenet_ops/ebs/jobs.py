"""Many EBS volumes moved through their states at once, with few calls: the engine under fleet.py.

Describe calls are filtered and ask for all volumes at once. Calls that change something run in threads. Each volume
takes its next step as soon as it can, whatever the others do, and one that is stuck fails alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Callable, Optional

from ansible.module_utils.imagenet_ops.aws.calls import call_pages, chunks
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client, Operation
from ansible.module_utils.imagenet_ops.aws.errors import explain
from ansible.module_utils.imagenet_ops.core.polling import Delays

THREADS = 16
# Adaptive retries measure the rate that the account is allowed and keep to it: with the plain ones, a large fleet fails
# with RequestLimitExceeded (anything from EC2's token buckets to another tool at work in the same account).
CLIENT_CONFIG: dict[str, Any] = {
    "retries": {"mode": "adaptive", "total_max_attempts": 30},
    "max_pool_connections": THREADS,
    "connect_timeout": 10,
    "read_timeout": 60,
}
# A page of DescribeVolumes and DescribeInstances has 1000 results at most (EC2 API reference).
PAGE_RESULTS = 1000
# DescribeInstanceTypes gives fewer at a time.
PAGE_TYPES = 100
# A volume is usually available 1-3 s after CreateVolume and attached a little later, so waiting begins short; but not
# with a whole second, for a look that comes a moment before the end costs a second wait.
DELAYS = Delays(first=1.25, growth=1.25, longest=5.0)
# A volume that has waited so long is looked at even if others, requested later, are too young to be seen with it.
BUSY_POLL_SECONDS = 2 * DELAYS.first


@dataclass
class Job:
    """One volume on its way; touched by the main thread only.

    ``instance_id`` is the instance that it is for, ``reason`` why it failed. ``deleted_with_instance`` holds the
    volumes that end with the instance, and ``is_ephemeral`` says that AWS may end that by itself. ``leaving`` says that
    the volume is to be removed, ``attach_retries`` how often it was detached because it was stuck in attaching.
    ``created``, ``attached``, ``detached`` and ``changed`` say which calls EC2 accepted in this run. Times are seconds
    since the epoch; ``looked_at`` is when a volume that is waited for was last seen, by a look or in the answer to a
    call.
    """

    instance_id: str
    zone: str = ""
    volume_id: str = ""
    volume_type: str = ""
    device_name: str = ""
    used_devices: set[str] = field(default_factory=set)
    deleted_with_instance: set[str] = field(default_factory=set)
    is_ephemeral: bool = False
    leaving: bool = False
    attach_retries: int = 0
    token_number: int = 0
    created_at: float = 0.0
    vanished: int = 0
    created: bool = False
    attached: bool = False
    detached: bool = False
    changed: bool = False
    waiting_since: float | None = None
    looked_at: float = 0.0
    reason: str = ""


Volume = dict[str, Any]
Advance = Callable[[Job, Optional[Volume]], None]
Answer = Future[dict[str, Any]]


class Ec2Jobs:
    """Counts the calls to EC2 and drives jobs until each is done or has failed. Use an object for one run."""

    def __init__(
        self,
        client: Ec2Client,
        timeout_seconds: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep what every step needs; ``timeout_seconds`` is the longest that one volume may stay in one state."""
        self.client = client
        self.timeout_seconds = timeout_seconds
        self.sleep = sleep
        self.clock = clock
        self.api_calls = {"mutating": 0, "describe": 0}
        self._ahead_seconds = 0.0
        self._count_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS)
        self._in_flight: dict[Answer, tuple[Job, Callable[[Job, Answer], None]]] = {}

    def time(self) -> float:
        """Return the time (seconds since the epoch) by the clock of EC2, from the last Describe, else by ours."""
        return self.clock() + self._ahead_seconds

    def mutate(self, operation: Operation, **request: Any) -> dict[str, Any]:
        """Call an operation that changes something, and count it."""
        with self._count_lock:
            self.api_calls["mutating"] += 1
        return operation(**request)

    def describe(
        self, operation: str, key: str, filters: dict[str, list[str]], page_results: int = PAGE_RESULTS, **more: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield every result of a Describe operation, over all its pages; ``more`` are further parameters.

        Raises OpsError if EC2 refuses.
        """
        request: dict[str, Any] = {
            "Filters": [{"Name": name, "Values": values} for name, values in filters.items()],
            "MaxResults": page_results,
            **more,
        }
        for page in call_pages(self.client, operation, f"EC2 {operation}", **request):
            self.api_calls["describe"] += 1
            date = page.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
            if date:
                self._ahead_seconds = parsedate_to_datetime(date).timestamp() - self.clock()
            yield from page[key]

    def instances(self, instance_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return those of the instances that EC2 knows, by id."""
        return {
            instance["InstanceId"]: instance
            for ids in chunks(instance_ids)
            for reservation in self.describe("describe_instances", "Reservations", {"instance-id": ids})
            for instance in reservation["Instances"]
        }

    def instance_types(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return what EC2 knows of these instance types, by name."""
        return {
            found["InstanceType"]: found
            for some in chunks(names)
            for found in self.describe(
                "describe_instance_types", "InstanceTypes", {"instance-type": some}, page_results=PAGE_TYPES
            )
        }

    def volumes(self, volume_ids: Iterable[str]) -> dict[str, Volume]:
        """Return those of the volumes that EC2 knows, by id."""
        return {
            volume["VolumeId"]: volume
            for ids in chunks(volume_ids)
            for volume in self.describe("describe_volumes", "Volumes", {"volume-id": ids})
        }

    def submit(self, job: Job, then: Callable[[Job, Answer], None], operation: Operation, **request: Any) -> None:
        """Start a call for ``job`` in a thread; ``then`` gets its answer in the main thread, within `work`."""
        job.waiting_since = None
        self._in_flight[self._pool.submit(self.mutate, operation, **request)] = (job, then)

    def wait_for(self, job: Job) -> None:
        """Let ``job`` wait until its volume is in another state."""
        if job.waiting_since is None:
            job.waiting_since = job.looked_at = self.clock()

    def waited_seconds(self, job: Job) -> float:
        """Return for how long ``job`` has been waiting for its volume to change."""
        return 0.0 if job.waiting_since is None else self.clock() - job.waiting_since

    def work(self, jobs: list[Job], advance: Advance) -> None:
        """Drive ``jobs``; ``advance`` takes a job's next step, given its volume as just seen (None: not seen).

        A job is over when nothing is in flight for it and it does not wait.
        """
        delays = iter(DELAYS)
        next_poll = self.clock() + next(delays)
        try:
            while self._in_flight or any(job.waiting_since is not None for job in jobs):
                # While calls queue for a thread, a look would only take its place in EC2's buckets: what it finds ready
                # would have to queue as well.
                is_full = len(self._in_flight) > THREADS
                was_busy = bool(self._in_flight)
                self._settle(DELAYS.longest if is_full else max(0.0, next_poll - self.clock()))
                if is_full:
                    continue
                waiting = [job for job in jobs if job.waiting_since is not None]
                if was_busy:
                    # What was requested last is young, and looked at together with the rest where that is soon.
                    delays = iter(DELAYS)
                    first = next(delays)
                    soon = self.clock() + (BUSY_POLL_SECONDS if self._in_flight else first)
                    next_poll = min([soon, *(job.looked_at + BUSY_POLL_SECONDS for job in waiting)])
                if self.clock() >= next_poll:
                    self._poll([job for job in waiting if self.clock() - job.looked_at >= DELAYS.first], advance)
                    next_poll = self.clock() + next(delays)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _settle(self, timeout_seconds: float) -> None:
        if not self._in_flight:
            self.sleep(timeout_seconds)
            return
        done, _ = wait(self._in_flight, timeout=timeout_seconds, return_when=FIRST_COMPLETED)
        for answer in done:
            job, then = self._in_flight.pop(answer)
            then(job, answer)

    def _poll(self, waiting: list[Job], advance: Advance) -> None:
        found = self.volumes(job.volume_id for job in waiting)
        for job in waiting:
            job.looked_at = self.clock()
            volume = found.get(job.volume_id)
            advance(job, volume)
            if job.waiting_since is not None and self.waited_seconds(job) >= self.timeout_seconds:
                fail(
                    job,
                    f"volume {job.volume_id} is still {state_of(volume)} after {self.timeout_seconds:g} s. Check it "
                    "and the instance in the EC2 console (stopping and starting the instance frees a stuck "
                    "attachment), then rerun",
                )


def fail(job: Job, reason: str) -> None:
    """End ``job`` with ``reason``: why, and what to do."""
    job.reason = reason
    job.waiting_since = None


def describe_error(error: Exception) -> str:
    """Return an error of the SDK as the end of a reason: code, message, next step."""
    explained = explain(error, "")
    return f"{explained.why}. {explained.todo}"


def state_of(volume: Volume | None) -> str:
    """Return the state of a volume and of its attachments in words."""
    if volume is None:
        return "missing"
    return " and ".join([volume["State"], *(attachment["State"] for attachment in volume.get("Attachments", []))])
