"""Drives a lab as a user does: `python -m lab`, `ansible-playbook`, `ssh`; and reads what a user would read."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import boto3
import pytest
import yaml

from lab.config import API_PORT, CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY, LOOPBACK, MARKER, REGION, Paths
from lab.machine import extend_path, missing_kernel_features, missing_programs
from tests.integration import room
from tests.integration.controller import Controller
from tests.integration.runners import Runners

RUN_SECONDS_MAX = 900
# Between two looks at what a run in the background has done.
POLL_SECONDS = 0.02
# What the lab takes for an hour of fast snapshot restore: a small snapshot has its first credit after a tenth of one.
FAST_RESTORE_HOUR_SECONDS = 20
INVENTORY = "inventories/lab"
ANSIBLE_PLAYBOOK = (str(Path(sys.executable).parent / "ansible-playbook"), "-i", INVENTORY)
ENVIRONMENT = {
    **os.environ,
    "ANSIBLE_DEPRECATION_WARNINGS": "true",
    # Connections that stay open are found by the host's address, which every lab has, and /run is the room's own.
    "ANSIBLE_SSH_CONTROL_PATH_DIR": "/run/ansible",
    "COLUMNS": "400",
    "IMAGENET_OPS_COMPILED": str(room.COMPILED),
    "LC_ALL": "C.UTF-8",
    "NO_COLOR": "1",
    "PYTHONPATH": str(Path(__file__).resolve().parent / "site"),
}
# What pinned collections announce for their later releases; everything else that Ansible warns of is a fault of ours.
KNOWN_DEPRECATIONS = (
    "iam_role.assume_role_policy_document_raw will no longer be returned",  # amazon.aws.iam_role, whatever it is asked
    "the 'create_instance_profile' option will be removed",  # the same, though the option is not used
    "the 'delete_instance_profile' option will be removed",
    "Passing `disable_lookups` to `template` is deprecated",  # amazon.aws.aws_ec2, of the option `regions`
    "Passing `warnings` to `exit_json` or `fail_json` is deprecated",  # ansible.posix.mount
    "Deprecation warnings can be disabled by setting",  # Ansible, after the first of them
)
_WARNING = re.compile(r"\[(?:DEPRECATION )?WARNING\]:? ?(.*)")
_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
_TASK = re.compile(r"^TASK \[(.*?)\] \**$")


@dataclass(frozen=True)
class Run:
    """What a run of ansible-playbook printed."""

    text: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Per host: ok, changed, unreachable, failed."""
        names = ("ok", "changed", "unreachable", "failed")
        return {found[0]: dict(zip(names, map(int, found[1:]), strict=True)) for found in _RECAP.findall(self.text)}

    def changed(self, host: str) -> int:
        """How many tasks changed something on ``host``."""
        return self.recap[host]["changed"]

    def all_unchanged(self) -> bool:
        """Whether there is a recap and nothing changed on any host."""
        return bool(self.recap) and all(counts["changed"] == 0 for counts in self.recap.values())

    def failed_hosts(self) -> list[str]:
        """The hosts that failed or could not be reached, by name."""
        return sorted(host for host, counts in self.recap.items() if counts["failed"] or counts["unreachable"])

    def task_changed(self, name: str) -> bool:
        """Whether the task changed something on any host; it must have run."""
        blocks = self._tasks().get(name)
        if blocks is None:
            raise AssertionError(f"no task {name!r} in:\n{self.text}")
        return any(re.search(r"^changed: ", block, re.MULTILINE) for block in blocks)

    def table(self, first: str, last: str) -> list[list[str]]:
        """The rows below the header that begins with ``first`` and ends with ``last``; cells are two blanks apart."""
        lines = [line.strip().removeprefix("- ").strip("'\"") for line in self.text.splitlines()]
        header = next(i for i, line in enumerate(lines) if line.startswith(f"{first} ") and line.endswith(last))
        rows = []
        for line in lines[header + 1 :]:
            cells = re.split(r"\s{2,}", line.strip())
            if len(cells) < 3:
                break
            rows.append(cells)
        return rows

    def _tasks(self) -> dict[str, list[str]]:
        blocks: dict[str, list[str]] = {}
        current: list[str] = []
        for line in self.text.splitlines():
            begin = _TASK.match(line)
            if begin:
                blocks.setdefault(begin.group(1), []).append("")
                current = blocks[begin.group(1)]
            elif current:
                current[-1] += f"{line}\n"
        return blocks


@dataclass(frozen=True)
class Lab:
    """The lab that is up, the checkout that it belongs to, and what runs the playbooks there, in whose name."""

    checkout: Path
    controller: Controller
    runners: Runners

    def command(self, *arguments: str) -> None:
        """Run ``python -m lab``; it must succeed."""
        subprocess.run([sys.executable, "-B", "-m", "lab", *arguments], cwd=self.checkout, check=True)

    def playbook(
        self, *arguments: str, expect_success: bool = True, expect_warnings: bool = False, expect_denied: bool = False
    ) -> Run:
        """Run ansible-playbook in the lab, under its policy; a warning, another end or a denied call fails the test."""
        # What is wrong with the arguments, the playbook itself is to say.
        self._administer(arguments, is_required=expect_success)
        self._lab("POST", "reset")
        environment = self.runners.environment(arguments)
        status, text = self.controller.run(["-i", INVENTORY, *arguments], environment, RUN_SECONDS_MAX)
        denied = self._permissions()["denied"]
        if (status == 0) != expect_success:
            pytest.fail(f"{' '.join(arguments)} ended {status}:\n{text}", pytrace=False)
        warnings = [
            found for found in _WARNING.findall(text) if not any(known in found for known in KNOWN_DEPRECATIONS)
        ]
        if warnings and not expect_warnings:
            pytest.fail(f"{' '.join(arguments)} warned:\n{warnings}\n{text}", pytrace=False)
        if denied and not expect_denied:
            refused = "\n".join(denied)
            pytest.fail(f"docs/permissions.md denies {' '.join(arguments)}:\n{refused}\n{text}", pytrace=False)
        return Run(text)

    def _administer(self, arguments: Sequence[str], is_required: bool = True) -> None:
        """Do what an administrator does once, where a run needs it: nobody else may change IAM and buckets."""
        if not self.runners.has_administrator or not self.runners.needs_administrator(arguments):
            return
        given = [text for pair in itertools.pairwise(arguments) if pair[0] == "-e" for text in pair]
        step = ["playbooks/steps/iam.yml", *given, "-e", json.dumps({"iam_setup_playbooks": []})]
        self._lab("POST", "reset")
        status, text = self.controller.run(["-i", INVENTORY, *step], self.runners.environment(step), RUN_SECONDS_MAX)
        denied = self._permissions()["denied"]
        if is_required and (status != 0 or denied):
            pytest.fail(f"{' '.join(step)} ended {status}: {denied}\n{text}", pytrace=False)

    @contextlib.contextmanager
    def without_administrator(self) -> Iterator[None]:
        """Run playbooks in an account in which nobody has set up IAM."""
        self.runners.has_administrator = False
        try:
            yield
        finally:
            self.runners.has_administrator = True

    def _permissions(self) -> dict[str, Any]:
        """What was evaluated, denied and used since the run began; it is kept for the check for what is never used."""
        found: dict[str, Any] = json.loads(self._lab("GET", "permissions"))
        self.runners.remember(found)
        return found

    def calls(self) -> dict[str, int]:
        """How often each action of EC2 was called since the last `playbook` began, by name."""
        counts: dict[str, int] = json.loads(self._lab("GET", "calls"))["calls"]
        return {name.removeprefix("ec2:"): count for name, count in counts.items() if name.startswith("ec2:")}

    def changes(self) -> int:
        """How many calls that change something reached EC2 since the last `playbook` began."""
        return sum(count for name, count in self.calls().items() if not name.startswith("Describe"))

    def kill_playbook_at(self, line: str, *arguments: str) -> None:
        """Run ansible-playbook until it prints ``line``, then kill it, as a lost controller ends."""
        self._administer(arguments)
        printed: list[str] = []
        with self._start(*arguments, output=subprocess.PIPE) as process:
            for text in process.stdout or ():
                printed.append(text)
                if line in text:
                    kill_family(process.pid)
                    self._permissions()
                    return
        pytest.fail(f"{' '.join(arguments)} ended without printing {line!r}:\n{''.join(printed)}", pytrace=False)

    def playbook_disturbed(self, changes: int, disturb: Callable[[int], object], *arguments: str) -> Run:
        """Run ansible-playbook to whatever end, and call ``disturb`` with its process id in the middle.

        That is as soon as it made ``changes`` calls that change something in EC2; it must get so far.
        """
        self._administer(arguments)
        self._lab("POST", "reset")
        with tempfile.TemporaryFile("w+") as output, self._start(*arguments, output=output) as process:
            while self.changes() < changes and process.poll() is None:
                time.sleep(POLL_SECONDS)
            is_early = process.poll() is not None
            if not is_early:
                disturb(process.pid)
            process.wait(RUN_SECONDS_MAX)
            denied = self._permissions()["denied"]
            output.seek(0)
            run = Run(output.read())
        if is_early or denied:
            what = f"was denied {denied}" if denied else f"ended before {changes} changes"
            pytest.fail(f"{' '.join(arguments)} {what}:\n{run.text}", pytrace=False)
        return run

    def _start(self, *arguments: str, output: IO[str] | int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*ANSIBLE_PLAYBOOK, *arguments],
            cwd=self.checkout,
            env={**environment(self.checkout), **self.runners.environment(arguments)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _lab(self, method: str, path: str) -> bytes:
        """Ask the lab for its own counts of calls, or to begin them from zero."""
        request = urllib.request.Request(f"http://{LOOPBACK}:{API_PORT}/lab/{path}", method=method)
        with urllib.request.urlopen(request) as answer:
            content: bytes = answer.read()
        return content

    def first_reads(self) -> dict[str, int]:
        """How many blocks of each lazily loaded volume a reader has had to wait for."""
        counts: dict[str, int] = json.loads(self._lab("GET", "first-reads"))
        return counts

    def ssh(self, host: str, command: str) -> str:
        """Run a shell command on a host and return its standard output; it must succeed."""
        done = subprocess.run(
            ["ssh", "-F", ".lab/ssh_config", host, command],
            cwd=self.checkout,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(f"{command!r} on {host} ended {done.returncode}: {done.stderr}", pytrace=False)
        return done.stdout

    def instance(self, name: str) -> dict[str, Any]:
        """The running instance with this Name tag, as DescribeInstances shows it."""
        filters = [{"Name": "tag:Name", "Values": [name]}, {"Name": "instance-state-name", "Values": ["running"]}]
        found: dict[str, Any] = self.ec2().describe_instances(Filters=filters)["Reservations"][0]["Instances"][0]
        return found

    def facts(self) -> dict[str, Any]:
        """What the lab's inventory says of its archives: the dataset_overrides that lab-up wrote."""
        written = yaml.safe_load(Paths(self.checkout).inventory_archives.read_text())
        found: dict[str, Any] = written["dataset_overrides"]
        return found

    def ec2(self, url: str = "") -> Any:
        """A boto3 client of the lab's EC2, or of the one at ``url``."""
        return self._client("ec2", url)

    def kms(self) -> Any:
        """A boto3 client of the lab's KMS."""
        return self._client("kms")

    def s3(self) -> Any:
        """A boto3 client of the lab's S3."""
        return self._client("s3")

    def iam(self) -> Any:
        """A boto3 client of the lab's IAM."""
        return self._client("iam")

    def _client(self, service: str, url: str = "") -> Any:
        return client(service, url)


def client(service: str, url: str = "") -> Any:
    """A boto3 client of the lab's, with the rights of an administrator; ``url`` is that of another one."""
    return boto3.client(
        service,
        endpoint_url=url or f"http://{LOOPBACK}:{API_PORT}",
        region_name=REGION,
        aws_access_key_id=CONTROLLER_ACCESS_KEY,
        aws_secret_access_key=CONTROLLER_SECRET_KEY,
    )


def environment(checkout: Path) -> dict[str, str]:
    """What a run of ansible-playbook finds in its environment."""
    return {**ENVIRONMENT, "ANSIBLE_CONFIG": str(checkout / "ansible.cfg")}


@contextlib.contextmanager
def running_lab(*options: str) -> Iterator[Lab]:
    """Start a lab for some tests in the room of this process, and stop it after them."""
    extend_path()
    missing = missing_programs() or ([] if os.geteuid() == 0 else ["root"]) or missing_kernel_features()
    if missing:
        pytest.skip(f"the lab needs what is missing here: {', '.join(missing)}")
    checkout = room.enter()
    with Controller(checkout, environment(checkout)) as controller:
        lab = Lab(checkout, controller, Runners(client("iam"), client("s3"), checkout.parent / "permissions.jsonl"))
        if MARKER.exists():  # of a test run that was killed
            lab.command("down")
        # Named, for the room's checkout is elsewhere.
        archives = Path(os.environ.get("IMAGENET_ARCHIVES") or Paths().sample_archives).resolve()
        lab.command("up", *(["--archives", str(archives)] if archives.is_dir() else []), *options)
        try:
            yield lab
        finally:
            lab.command("down")


def kill_family(pid: int) -> None:
    """Kill a process and all that it started, as a machine is lost: stopped first, so that none starts another."""
    family = [pid]
    for member in family:  # which grows meanwhile
        with contextlib.suppress(OSError):
            os.kill(member, signal.SIGSTOP)
            for children in Path(f"/proc/{member}/task").glob("*/children"):
                family += map(int, children.read_text().split())
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
