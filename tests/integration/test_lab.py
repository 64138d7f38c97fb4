"""The lab against the machine: hosts, devices and metadata are real, and nothing stays behind, not even after a crash.

These tests start and kill a lab of their own, from a copy of it, in network and mount namespaces of their own, so that
they and the lab of the other tests do not meet.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.config import ACCOUNT_ID, API_PORT, CONTROLLER_ACCESS_KEY, CONTROLLER_SECRET_KEY, IMAGE_ID, Paths
from lab.machine import extend_path, missing_kernel_features, missing_programs

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"aws_access_key_id": CONTROLLER_ACCESS_KEY, "aws_secret_access_key": CONTROLLER_SECRET_KEY}
# Calls AWS from inside the box: one request a line in, one answer a line out.
AGENT = f"""
import json, sys, boto3
from botocore.exceptions import ClientError
for line in sys.stdin:
    service, operation, arguments, keys = json.loads(line)
    url = "http://127.0.0.1:{API_PORT}"
    client = boto3.client(service, endpoint_url=url, region_name="us-east-1", **keys)
    try:
        answer = getattr(client, operation)(**arguments)
    except ClientError as error:
        answer = {{"Code": error.response["Error"]["Code"], "Message": error.response["Error"]["Message"]}}
    print(json.dumps(answer, default=str), flush=True)
"""
# What a program on a host does to learn something of itself.
METADATA = """
import sys, urllib.request
base, path = "http://169.254.169.254/latest/", sys.argv[1]
ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
token = urllib.request.urlopen(urllib.request.Request(base + "api/token", method="PUT", headers=ttl)).read().decode()
headers = {"X-aws-ec2-metadata-token": token}
print(urllib.request.urlopen(urllib.request.Request(base + path, headers=headers)).read().decode())
"""


class Box:
    """A machine of its own as far as the lab can tell: network, mounts and /run; the checkout in it is a copy."""

    def __init__(self, checkout: Path) -> None:
        self.paths = Paths(checkout)
        for part in ("lab", "module_utils", "inventories"):
            ignored = shutil.ignore_patterns("archives.yml", "__pycache__")
            shutil.copytree(ROOT / part, checkout / part, ignore=ignored)
        room = "ip link set lo up && mount -t tmpfs run /run && exec sleep infinity"
        self._holder = subprocess.Popen(["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", room])
        self._enter = ["nsenter", f"--target={self._holder.pid}", "--net", "--mount", f"--wd={checkout}"]
        self._agent: subprocess.Popen[str] | None = None
        # The namespaces are there once the last mount is.
        if not eventually(lambda: self.run("findmnt", "--types", "tmpfs", "/run", check=False).returncode == 0):
            raise RuntimeError("no namespaces for the tests of the lab")

    def close(self) -> None:
        self.end_agent()
        self._holder.kill()
        self._holder.wait()

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the box; its two outputs come back, and with ``check`` it must succeed."""
        done = subprocess.run([*self._enter, *command], capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def lab(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        self.end_agent()
        return self.run(sys.executable, "-B", "-m", "lab", *arguments, check=check)

    def up(self, *arguments: str) -> None:
        self.lab("up", "--hosts", "2", *arguments)

    def end_agent(self) -> None:
        if self._agent is not None:
            self._agent.kill()
            self._agent.communicate()
            self._agent = None

    def aws(self, service: str, operation: str, keys: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
        """Call AWS; an error comes back as its Code and Message."""
        if self._agent is None:
            command = [*self._enter, sys.executable, "-c", AGENT]
            self._agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._agent.stdin is not None
        assert self._agent.stdout is not None
        self._agent.stdin.write(json.dumps([service, operation, arguments, keys or KEYS]) + "\n")
        self._agent.stdin.flush()
        answer: dict[str, Any] = json.loads(self._agent.stdout.readline())
        return answer

    def ssh(self, host: str, command: str, check: bool = True) -> str:
        return self.run("ssh", "-F", str(self.paths.ssh_config), host, command, check=check).stdout.strip()

    def metadata(self, host: str, path: str) -> str:
        return self.run(
            "ssh", "-F", str(self.paths.ssh_config), host, f"python3 - {path} <<'END'\n{METADATA}\nEND"
        ).stdout.strip()

    def instance(self, name: str) -> dict[str, Any]:
        filters = [{"Name": "tag:Name", "Values": [name]}, {"Name": "instance-state-name", "Values": ["running"]}]
        found: dict[str, Any] = self.aws("ec2", "describe_instances", Filters=filters)["Reservations"][0]["Instances"][
            0
        ]
        return found

    def volume(self, zone: str, **options: Any) -> str:
        request = {"AvailabilityZone": zone, "Size": 10, "VolumeType": "gp3", **options}
        return str(self.aws("ec2", "create_volume", **request)["VolumeId"])

    def attach(self, volume: str, host: str, device: str = "/dev/sdf") -> dict[str, Any]:
        instance = self.instance(host)["InstanceId"]
        return self.aws("ec2", "attach_volume", VolumeId=volume, InstanceId=instance, Device=device)

    def volume_state(self, volume: str) -> str:
        return str(self.aws("ec2", "describe_volumes", VolumeIds=[volume])["Volumes"][0]["State"])

    def server_process(self) -> int:
        return int(json.loads(self.paths.state.read_text())["server"]["pid"])

    def traces(self) -> dict[str, str]:
        """Whatever of the machine a lab could leave changed."""
        loops = json.loads(self.run("losetup", "--list", "--json").stdout or '{"loopdevices": []}')["loopdevices"]
        checkout = str(self.paths.checkout)
        return {
            "interfaces": self.run("ip", "-brief", "link").stdout,
            "addresses": self.run("ip", "-brief", "address").stdout,
            "routes": self.run("ip", "route", "show", "table", "all").stdout,
            "mounts": self.run("cat", "/proc/self/mounts").stdout,
            "loops": "\n".join(loop["back-file"] for loop in loops if checkout in loop["back-file"]),
            "processes": "\n".join(line for line in _command_lines() if f"{checkout}/lab" in line),
            "run": self.run("ls", "/run").stdout.replace("mount\n", ""),  # util-linux's own folder
            "accounts": Path("/etc/passwd").read_text(),
        }


def _command_lines() -> list[str]:
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # ended meanwhile
    return lines


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def by_id(volume: str) -> str:
    return f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{volume.replace('-', '')}"


@pytest.fixture(scope="module")
def empty_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    extend_path()
    missing = missing_programs() or ([] if os.geteuid() == 0 else ["root"]) or missing_kernel_features()
    if missing:
        pytest.skip(f"the lab needs what is missing here: {', '.join(missing)}")
    box = Box(tmp_path_factory.mktemp("box") / "checkout")
    yield box
    box.lab("down", check=False)
    box.close()


@pytest.fixture(scope="module")
def before(empty_box: Box) -> dict[str, str]:
    """The traces before the first lab."""
    return empty_box.traces()


@pytest.fixture(scope="module")
def box(empty_box: Box, before: dict[str, str]) -> Box:
    """A box with a lab of two GPU hosts; gpu-1 is in us-east-1a, gpu-2 in us-east-1b."""
    assert before
    empty_box.up()
    return empty_box


def test_every_gpu_host_is_reached_by_name_and_is_a_machine_of_its_own(box: Box) -> None:
    for name, zone in (("gpu-1", "us-east-1a"), ("gpu-2", "us-east-1b")):
        instance = box.instance(name)
        assert instance["Placement"]["AvailabilityZone"] == zone
        assert box.ssh(name, "hostname") == instance["PrivateDnsName"].split(".")[0]
        assert box.ssh(name, "id -un; sudo id -un").split() == ["ec2-user", "root"]
        assert box.ssh(instance["InstanceId"], "hostname") == box.ssh(name, "hostname")


def test_what_a_host_changes_is_changed_for_it_alone(box: Box) -> None:
    box.ssh("gpu-1", "echo mine | sudo tee /etc/lab-was-here /usr/lab-was-here; sudo mount -t tmpfs none /mnt")
    assert not Path("/etc/lab-was-here").exists()
    assert not Path("/usr/lab-was-here").exists()
    assert box.ssh("gpu-2", "ls /etc/lab-was-here /mnt 2>/dev/null", check=False) == "/mnt:"
    assert box.run("findmnt", "/mnt", check=False).stdout == ""
    sysctl = "sudo sysctl -q vm.swappiness=1 2>&1; sudo date -s 2000-01-01 2>&1; true"
    before = Path("/proc/sys/vm/swappiness").read_text(), time.time()
    box.ssh("gpu-1", sysctl)
    assert Path("/proc/sys/vm/swappiness").read_text() == before[0]
    assert time.time() >= before[1]


def test_a_host_sees_nothing_that_is_the_machine_s_own(box: Box) -> None:
    assert (
        box.ssh("gpu-1", "sudo ls -A /root; ls /home; cat /etc/fstab; ls -d /data 2>/dev/null", check=False)
        == "ec2-user"
    )
    assert box.ssh("gpu-1", f"sudo ls -A {box.paths.checkout} 2>/dev/null; true") == ""
    hashes = box.ssh("gpu-1", "sudo cut -d: -f2 /etc/shadow | sort -u")
    assert hashes == "*"
    assert box.ssh("gpu-1", "ls /dev | grep -c -e loop -e ^[vs]da", check=False) == "0"


def test_a_volume_is_a_device_with_its_serial_on_its_own_host_alone(box: Box) -> None:
    volume = box.volume("us-east-1a")
    box.attach(volume, "gpu-1")
    device = box.ssh("gpu-1", f"readlink -f {by_id(volume)}")
    assert device.startswith("/dev/nvme")
    assert box.ssh("gpu-1", f"lsblk -dno SERIAL {device}; sudo blockdev --getsize64 {device}").split() == [
        volume.replace("-", ""),
        str(10 * 1024**3),
    ]
    assert box.ssh("gpu-2", "ls /dev/nvme* /dev/disk/by-id", check=False) == "/dev/disk/by-id:"
    box.aws("ec2", "detach_volume", VolumeId=volume)
    assert box.ssh("gpu-1", f"ls {device} {by_id(volume)}", check=False) == ""
    assert box.volume_state(volume) == "available"


def test_a_new_filesystem_is_known_at_once_as_udev_would_make_it(box: Box) -> None:
    volume = box.volume("us-east-1a")
    box.attach(volume, "gpu-1")
    assert box.ssh("gpu-1", f"lsblk -no FSTYPE {by_id(volume)}") == ""
    box.ssh("gpu-1", f"sudo mkfs.ext4 -q -L records {by_id(volume)}")
    shown = f"lsblk -no FSTYPE,UUID {by_id(volume)}"
    assert eventually(lambda: box.ssh("gpu-1", shown).startswith("ext4 "))
    uuid = box.ssh("gpu-1", shown).split()[1]
    assert box.ssh("gpu-1", f"readlink -f /dev/disk/by-uuid/{uuid}") == box.ssh("gpu-1", f"readlink -f {by_id(volume)}")


def test_what_ec2_refuses_is_refused(box: Box) -> None:
    volume = box.volume("us-east-1a")
    assert box.attach(volume, "gpu-2")["Code"] == "InvalidVolume.ZoneMismatch"
    box.attach(volume, "gpu-1", "/dev/sdk")
    assert box.attach(volume, "gpu-1", "/dev/sdl")["Code"] == "VolumeInUse"
    assert box.aws("ec2", "delete_volume", VolumeId=volume)["Code"] == "VolumeInUse"
    small = box.aws("ec2", "create_volume", AvailabilityZone="us-east-1a", Size=124, VolumeType="sc1")
    assert (small["Code"], "minimum is 125GiB" in small["Message"]) == ("InvalidParameterValue", True)


def test_a_snapshot_holds_what_had_reached_the_volume_and_nothing_later(box: Box) -> None:
    volume = box.volume("us-east-1a", VolumeType="sc1", Size=125)
    box.attach(volume, "gpu-1", "/dev/sdm")
    box.ssh(
        "gpu-1", f"sudo mkfs.ext4 -q {by_id(volume)}; sudo mkdir -p /mnt/volume; sudo mount {by_id(volume)} /mnt/volume"
    )
    box.ssh(
        "gpu-1",
        "echo synced | sudo tee /mnt/volume/synced; sync -f /mnt/volume; echo cached | sudo tee /mnt/volume/cached",
    )
    snapshot = box.aws("ec2", "create_snapshot", VolumeId=volume)
    assert snapshot["State"] == "completed"
    box.ssh("gpu-1", "echo later | sudo tee /mnt/volume/later; sync -f /mnt/volume")
    copy = box.volume("us-east-1b", SnapshotId=snapshot["SnapshotId"], Size=125)
    box.attach(copy, "gpu-2", "/dev/sdm")
    box.ssh("gpu-2", f"sudo mkdir -p /mnt/volume; sudo mount -o ro {by_id(copy)} /mnt/volume")
    assert box.ssh("gpu-2", "ls /mnt/volume; cat /mnt/volume/synced").split() == ["lost+found", "synced", "synced"]


def test_a_mounted_volume_is_not_detached_before_it_is_unmounted(box: Box) -> None:
    volume = box.volume("us-east-1a")
    box.attach(volume, "gpu-1", "/dev/sdn")
    box.ssh("gpu-1", f"sudo mkfs.ext4 -q {by_id(volume)}; sudo mkdir /busy; sudo mount {by_id(volume)} /busy")
    box.aws("ec2", "detach_volume", VolumeId=volume)
    found = box.aws("ec2", "describe_volumes", VolumeIds=[volume])["Volumes"][0]
    assert (found["State"], found["Attachments"][0]["State"]) == ("in-use", "busy")
    assert box.ssh("gpu-1", "sudo touch /busy/still-works && echo yes") == "yes"
    box.ssh("gpu-1", "sudo umount /busy")
    assert eventually(lambda: box.volume_state(volume) == "available")


def test_a_volume_grows_under_its_host(box: Box) -> None:
    volume = box.volume("us-east-1a")
    box.attach(volume, "gpu-1", "/dev/sdo")
    box.aws("ec2", "modify_volume", VolumeId=volume, Size=20)
    assert box.ssh("gpu-1", f"sudo blockdev --getsize64 {by_id(volume)}") == str(20 * 1024**3)


@pytest.fixture(scope="module")
def writer(box: Box) -> str:
    """An instance launched through the API with a role that may write to bucket lab-data, and with user data."""
    policy = {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::lab-data/*"}
    box.aws("iam", "create_role", RoleName="writer", AssumeRolePolicyDocument="{}")
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    box.aws("iam", "put_role_policy", RoleName="writer", PolicyName="write", PolicyDocument=document)
    box.aws("iam", "create_instance_profile", InstanceProfileName="writer")
    box.aws("iam", "add_role_to_instance_profile", InstanceProfileName="writer", RoleName="writer")
    box.aws("s3", "create_bucket", Bucket="lab-data")
    launched = box.aws(
        "ec2",
        "run_instances",
        ImageId=IMAGE_ID,
        InstanceType="c6i.xlarge",
        KeyName="lab",
        MinCount=1,
        MaxCount=1,
        IamInstanceProfile={"Name": "writer"},
        MetadataOptions={"HttpTokens": "required"},
        UserData='#!/bin/sh\necho "user data ran as $(id -un)"\ntouch /root/once-$$\n',
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "writer"}]}],
    )
    return str(launched["Instances"][0]["InstanceId"])


def test_a_host_learns_of_itself_from_the_metadata_service_with_a_token_only(box: Box, writer: str) -> None:
    assert box.metadata("writer", "meta-data/instance-id") == writer
    assert box.metadata("writer", "meta-data/placement/availability-zone") == "us-east-1a"
    assert box.metadata("gpu-2", "meta-data/instance-id") == box.instance("gpu-2")["InstanceId"]
    url = "http://169.254.169.254/latest/meta-data/instance-id"
    without = f"python3 -c \"import urllib.request; urllib.request.urlopen('{url}')\" 2>&1 | tail -1"
    assert "HTTP Error 401" in box.ssh("writer", without)


def test_the_metadata_address_is_not_the_machine_s(box: Box) -> None:
    assert "169.254" not in box.run("ip", "address").stdout + box.run("ip", "route", "show", "table", "all").stdout


def test_the_credentials_of_an_instance_profile_open_what_its_role_may(box: Box, writer: str) -> None:
    assert box.metadata("writer", "meta-data/iam/security-credentials/") == "writer"
    given = json.loads(box.metadata("writer", "meta-data/iam/security-credentials/writer"))
    assert given["Code"] == "Success"
    keys = {
        "aws_access_key_id": given["AccessKeyId"],
        "aws_secret_access_key": given["SecretAccessKey"],
        "aws_session_token": given["Token"],
    }
    assert box.aws("sts", "get_caller_identity", keys)["Arn"] == (
        f"arn:aws:sts::{ACCOUNT_ID}:assumed-role/writer/{writer}"
    )
    assert "ETag" in box.aws("s3", "put_object", keys, Bucket="lab-data", Key="a", Body="x")
    assert box.aws("ec2", "describe_volumes", keys)["Code"] == "UnauthorizedOperation"
    assert box.ssh("writer", "python3 -c \"import socket; socket.create_connection(('aws.lab', 14566))\"") == ""


def test_user_data_runs_once_as_root(box: Box, writer: str) -> None:
    assert eventually(lambda: box.ssh("writer", "cat /var/log/cloud-init-output.log") == "user data ran as root")
    box.aws("ec2", "reboot_instances", InstanceIds=[writer])
    assert box.ssh("writer", "sudo sh -c 'ls /root/once-*' | wc -l") == "1"


def test_a_host_that_was_stopped_comes_back_with_its_files_and_volumes(box: Box, writer: str) -> None:
    volume = box.volume("us-east-1a")
    box.attach(volume, "writer")
    box.ssh("writer", "echo kept > kept")
    box.aws("ec2", "stop_instances", InstanceIds=[writer])
    assert "writer" not in box.paths.ssh_config.read_text()
    box.aws("ec2", "start_instances", InstanceIds=[writer])
    assert box.ssh("writer", f"cat kept; lsblk -dno SERIAL {by_id(volume)}").split() == [
        "kept",
        volume.replace("-", ""),
    ]


def test_termination_takes_the_host_away_and_keeps_the_volume(box: Box) -> None:
    launched = box.aws(
        "ec2", "run_instances", ImageId=IMAGE_ID, InstanceType="t3.micro", KeyName="lab", MinCount=1, MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "short-lived"}]}],
    )["Instances"][0]  # fmt: skip
    volume = box.volume("us-east-1a")
    box.attach(volume, "short-lived")
    address = box.instance("short-lived")["PrivateIpAddress"]
    assert address in box.run("ip", "route").stdout
    box.aws("ec2", "terminate_instances", InstanceIds=[launched["InstanceId"]])
    assert box.volume_state(volume) == "available"
    assert address not in box.run("ip", "route").stdout
    assert "short-lived" not in box.paths.ssh_config.read_text()
    assert eventually(lambda: volume not in box.run("losetup", "--list").stdout)


def test_a_second_start_says_that_the_lab_is_up_and_leaves_it(box: Box) -> None:
    server = box.server_process()
    assert "already up" in box.lab("up", "--hosts", "2").stdout
    assert box.server_process() == server
    assert "gpu-1" in box.lab("status").stdout


def test_after_lab_down_nothing_is_left(box: Box, before: dict[str, str]) -> None:
    for name in ("gpu-1", "gpu-2"):
        # As Ansible keeps one for its next run; on a host of the next lab it would hang.
        control = f"ControlPath={box.paths.checkout}/lab-{name}"
        box.run("ssh", "-F", str(box.paths.ssh_config), "-o", control, "-o", "ControlMaster=yes", "-Nf", name)
    box.lab("down")
    assert eventually(lambda: box.traces()["processes"] == before["processes"])
    assert box.traces() == before
    assert sorted(file.name for file in box.paths.directory.iterdir()) == [
        "id_ed25519",
        "id_ed25519.pub",
        "lab.log",
        "origin.log",
    ]
    assert box.lab("down").returncode == 0, "what is down can be taken down"


def test_after_a_crash_lab_down_leaves_nothing_and_lab_up_starts_anew(box: Box, before: dict[str, str]) -> None:
    box.up()
    volume = box.volume("us-east-1a")
    box.attach(volume, "gpu-1")
    box.ssh("gpu-1", f"sudo mkfs.ext4 -q {by_id(volume)}; sudo mkdir /data; sudo mount {by_id(volume)} /data")
    os.kill(box.server_process(), 9)
    assert "down" in box.lab("status", check=False).stdout
    box.up()
    assert box.ssh("gpu-1", "ls -d /data", check=False) == "", "these are new hosts"
    os.kill(box.server_process(), 9)
    box.lab("down")
    assert box.traces() == before


def test_a_port_that_is_taken_is_said_in_one_line(box: Box, before: dict[str, str]) -> None:
    listen = f"import socket; s = socket.create_server(('127.0.0.1', {API_PORT})); print('ready', flush=True); input()"
    command = [*box._enter, sys.executable, "-c", listen]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        refused = box.lab("up", check=False)
        other.communicate("\n")
    assert refused.returncode == 1
    assert refused.stderr == f"lab: The lab needs port {API_PORT} on 127.0.0.1, which another program uses\n"
    assert box.traces() == before


def test_a_failed_start_leaves_nothing(box: Box, before: dict[str, str]) -> None:
    refused = box.lab("up", "--archives", "/no/such/folder", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("lab: The lab has no archives to serve: /no/such/folder lacks ")
    assert box.traces() == before
