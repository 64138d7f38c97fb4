"""S3 and EC2 by two emulators that know nothing of each other: what both allow, and each point in which one differs.

A difference is a row of docs/emulators.md. The row says in words what AWS does and what each emulator does; the
function of that name here finds out, in the same words. So an emulator that changes fails a test, and the row is
corrected.
"""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
import tomllib
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from ansible.module_utils.imagenet_ops.aws.errors import error_code, sdk_errors
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, StoredPart, crc32_text
from ansible.module_utils.imagenet_ops.backup.backup import Backup, make_plan
from ansible.module_utils.imagenet_ops.backup.request import RestoreRequest
from ansible.module_utils.imagenet_ops.backup.restore import Restore
from ansible.module_utils.imagenet_ops.backup.upload import MIB
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.ebs.fast_snapshot_restore import FastSnapshotRestore
from ansible.module_utils.imagenet_ops.ebs.fleet import Deployment, DeploymentResult, VolumeSettings
from ansible.module_utils.imagenet_ops.ebs.jobs import Ec2Jobs
from ansible.module_utils.imagenet_ops.ebs.launch_template import LaunchTemplateUpdate, TemplateSettings, VolumeMapping
from ansible.module_utils.imagenet_ops.ebs.removal import Removal
from ansible.module_utils.imagenet_ops.ebs.retention import Retirement
from ansible.module_utils.imagenet_ops.ebs.snapshot_copy import CopySettings, SnapshotCopy
from ansible.module_utils.imagenet_ops.ebs.snapshot_share import SnapshotShare
from ansible.module_utils.imagenet_ops.ebs.snapshots import find_snapshots, result

from tests.fakes.emulators import OTHER_REGION, PROGRAMS, REGION, ROOT, Emulator, is_installed
from tests.fakes.s3 import FaultyClient, Killed, write_dataset

TABLE = ROOT / "docs" / "emulators.md"
EMULATORS = tuple(sorted(PROGRAMS))
AS_AWS = "as AWS"
ZONE, OTHER_ZONE = f"{REGION}a", f"{REGION}b"
IMAGE = "ami-0abcdef1234567890"
OLD, NEW = "a" * 12, "b" * 12
SOURCE = random.Random(1)
FILES = {
    "archives/ILSVRC2012_img_val.tar": SOURCE.randbytes(MIB + 1),
    "recordio/train.rec": SOURCE.randbytes(9 * MIB),  # several ranges when it is restored
    "recordio/train.idx": b"0\t0\n",
    "recordio/train.lst": b"",
    "labels.tsv": b"0\tn01440764\ttench\n",
}
Probe = Callable[[Emulator], str]
PROBES: dict[str, Probe] = {}


def point(name: str) -> Callable[[Probe], Probe]:
    """Keep a function as the one that finds out what an emulator does about the row ``name``."""

    def keep(probe: Probe) -> Probe:
        assert name not in PROBES
        PROBES[name] = probe
        return probe

    return keep


@pytest.fixture(scope="module", params=EMULATORS)
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    name = request.param
    if not is_installed(name):
        pytest.skip(f".venv-{name} is missing (bin/setup {name} makes it)")
    with Emulator(name, tmp_path_factory.mktemp(name)) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "packed", FILES)
    (tmp_path / "packed" / ".state").mkdir()
    return tmp_path / "packed"


def table() -> dict[str, dict[str, str]]:
    """Return the rows of docs/emulators.md by their first cell, each by the first words of the head."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").replace("`", "").split(" | ")] for line in lines]
    names = [name.split()[0] for name in head]
    assert all(len(row) == len(names) for row in rows)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


# What the modules do with a bucket. Both emulators allow it.


def new_bucket(emulator: Emulator, *, versioning: bool = False) -> str:
    name = f"imagenet-{uuid.uuid4().hex[:12]}"
    emulator.s3().create_bucket(Bucket=name)
    if versioning:
        emulator.s3().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


def back_up(client: Any, name: str, root: Path, storage_class: str = "", **options: Any) -> dict[str, Any]:
    bucket = Bucket(client, name, storage_class=storage_class)
    return Backup(bucket, make_plan(str(root)), str(root / ".state"), **options).run(check_mode=False)


def restore(client: Any, name: str, root: Path, **options: Any) -> dict[str, Any]:
    (root / ".state").mkdir(parents=True, exist_ok=True)
    request = RestoreRequest(str(root), str(root / ".state"), dataset="imagenet", **options)
    return Restore(Bucket(client, name), request).run(check_mode=False)


def prefix_of(root: Path) -> str:
    return f"imagenet/{hashlib.sha256((root / 'manifest.json').read_bytes()).hexdigest()[:12]}"


def assert_same(root: Path, restored: Path) -> None:
    for path in (*FILES, "manifest.json"):
        assert (restored / path).read_bytes() == (root / path).read_bytes(), path


def test_what_was_backed_up_comes_back(emulator: Emulator, root: Path, tmp_path: Path) -> None:
    client, name = emulator.s3(), new_bucket(emulator)
    assert back_up(client, name, root)["uploaded_objects"] == 6
    assert back_up(client, name, root)["changed"] is False
    assert restore(client, name, tmp_path / "restored")["restored_files"] == 6
    assert_same(root, tmp_path / "restored")
    assert restore(client, name, tmp_path / "restored")["changed"] is False


def test_a_backup_that_was_killed_goes_on(emulator: Emulator, root: Path, tmp_path: Path) -> None:
    client, name = FaultyClient(emulator.s3()), new_bucket(emulator)
    client.kill_at, client.kill_after_effect = 2, True
    with pytest.raises(Killed):
        back_up(client, name, root, workers=1)
    client.kill_at = -1
    there = len(client.client.list_objects_v2(Bucket=name)["Contents"])
    assert 0 < there < 6
    assert back_up(client, name, root)["present_objects"] == there
    restore(client, name, tmp_path / "restored")
    assert_same(root, tmp_path / "restored")


def test_a_restore_that_was_killed_goes_on(emulator: Emulator, root: Path, tmp_path: Path) -> None:
    client, name = FaultyClient(emulator.s3()), new_bucket(emulator)
    back_up(client, name, root)
    ranges: list[str] = []

    def kill(operation: str, request: dict[str, Any]) -> None:
        if operation == "get_object" and request["Key"].endswith("train.rec"):
            ranges.append(request["Range"])
            if len(ranges) == 2:
                raise Killed

    client.fault = kill
    with pytest.raises(Killed):
        restore(client, name, tmp_path / "restored", connections=2)
    assert not (tmp_path / "restored" / "manifest.json").exists()
    client.fault = lambda *_: None
    assert restore(client, name, tmp_path / "restored")["changed"] is True
    assert_same(root, tmp_path / "restored")


def test_an_object_that_was_replaced_is_noticed(emulator: Emulator, root: Path, tmp_path: Path) -> None:
    client, name = emulator.s3(), new_bucket(emulator)
    back_up(client, name, root)
    key = f"{prefix_of(root)}/labels.tsv"
    content = FILES["labels.tsv"]
    metadata = {"sha256": hashlib.sha256(content).hexdigest()}
    client.put_object(Bucket=name, Key=key, Body=content.upper(), Metadata=metadata)
    with pytest.raises(OpsError, match=r"labels\.tsv: checksum mismatch: expected SHA-256"):
        restore(client, name, tmp_path / "restored")
    assert back_up(client, name, root)["changed"] is False  # it carries the right hash, and nothing reads it
    assert back_up(client, name, root, read_back=True)["uploaded_objects"] == 1
    assert back_up(client, name, root, read_back=True)["changed"] is False
    restore(client, name, tmp_path / "restored")
    assert_same(root, tmp_path / "restored")


def test_an_object_that_changes_while_it_is_read_is_noticed(emulator: Emulator) -> None:
    client, name = emulator.s3(), new_bucket(emulator)
    bucket = Bucket(client, name)
    client.put_object(Bucket=name, Key="k", Body=b"before")
    stored = bucket.stored("k")
    assert stored is not None
    assert bucket.read("k", 2, 4, stored.etag) == b"fo"
    client.put_object(Bucket=name, Key="k", Body=b"after!")
    with pytest.raises(OpsError, match="the object was changed while it was read"):
        bucket.read("k", 2, 4, stored.etag)


def test_the_storage_class_is_kept(emulator: Emulator, root: Path, tmp_path: Path) -> None:
    client, name = emulator.s3(), new_bucket(emulator)
    back_up(client, name, root, "STANDARD_IA")
    listed = client.list_objects_v2(Bucket=name)["Contents"]
    assert {entry["StorageClass"] for entry in listed} == {"STANDARD_IA"}
    assert back_up(client, name, root, "STANDARD_IA")["changed"] is False
    restore(client, name, tmp_path / "restored")
    assert_same(root, tmp_path / "restored")


def test_a_tree_comes_back(emulator: Emulator, root: Path, tmp_path: Path) -> None:
    client, name = emulator.s3(), new_bucket(emulator)
    images = {f"n0144076{number % 3}/n_{number}.JPEG": SOURCE.randbytes(70_000) for number in range(9)}
    for path, content in images.items():
        (root / "train" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / path).write_bytes(content)
    options: dict[str, Any] = {"trees": ["train"], "shard_bytes": 250_000}
    assert back_up(client, name, root, **options)["uploaded_objects"] > 8  # tars and their index beside the files
    assert back_up(client, name, root, **options)["changed"] is False
    restored = tmp_path / "restored"
    restore(client, name, restored, trees=["train"])
    found = {str(path.relative_to(restored / "train")): path.read_bytes() for path in restored.glob("train/*/*")}
    assert found == images
    assert restore(client, name, restored, trees=["train"])["changed"] is False


def test_a_manifest_is_never_overwritten(emulator: Emulator, root: Path) -> None:
    client, name = emulator.s3(), new_bucket(emulator)
    sums = (hashlib.sha256(b"one").hexdigest(), crc32_text(zlib.crc32(b"one")))
    assert Bucket(client, name).put_new("mine/manifest.json", b"one", *sums) is True
    assert Bucket(client, name).put_new("mine/manifest.json", b"one", *sums) is False
    with pytest.raises(OpsError, match="it is the manifest of another version of the data set"):
        back_up(client, name, root, prefix="mine")


def test_parts_of_an_upload_are_listed_until_it_is_aborted(emulator: Emulator) -> None:
    bucket = Bucket(emulator.s3(), new_bucket(emulator))
    upload_id = bucket.begin_upload("a/k", "0" * 64)
    part = bucket.put_part("a/k", upload_id, 1, b"part", crc32_text(zlib.crc32(b"part")))
    assert bucket.parts("a/k", upload_id)[1]._replace(crc32=part.crc32) == part
    assert [(upload.key, upload.upload_id) for upload in bucket.uploads("a/")] == [("a/k", upload_id)]
    assert bucket.uploads("b/") == []
    bucket.abort_upload("a/k", upload_id)
    assert bucket.uploads("a/") == []


@pytest.mark.parametrize("versioning", [False, True])
def test_backups_of_old_versions_are_retired(emulator: Emulator, versioning: bool) -> None:
    client, name = emulator.s3(), new_bucket(emulator, versioning=versioning)
    for version in (OLD, NEW):
        for path in ("labels.tsv", "labels.tsv", "manifest.json"):
            client.put_object(Bucket=name, Key=f"imagenet/{version}/{path}", Body=b"x")
    client.delete_object(Bucket=name, Key=f"imagenet/{OLD}/labels.tsv")
    tags = {"Project": new_project(), "Dataset": "imagenet"}

    def retire(*, check_mode: bool = False) -> int:
        retirement = Retirement(emulator.client("ec2"), client, tags, 1, {"backup": 0.02}, name)
        return int(retirement.run(check_mode=check_mode)["removed"])

    assert (retire(check_mode=True), retire(), retire()) == (1, 1, 0)
    left = client.list_object_versions(Bucket=name)
    assert {entry["Key"] for entry in left.get("Versions", []) + left.get("DeleteMarkers", [])} == {
        f"imagenet/{NEW}/labels.tsv",
        f"imagenet/{NEW}/manifest.json",
    }


# What the modules do with EC2. Both emulators allow it.


def new_project() -> str:
    return f"imagenet-{uuid.uuid4().hex[:12]}"


def tags_for(version: str = NEW, role: str = "fleet") -> dict[str, str]:
    return {"Project": new_project(), "Dataset": "imagenet", "DatasetVersion": version, "Role": role}


def tagged(kind: str, tags: dict[str, str]) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}]


def new_volume(client: Any, tags: dict[str, str] | None = None, **settings: Any) -> str:
    request = {"AvailabilityZone": ZONE, "VolumeType": "gp3", **settings}
    if "SnapshotId" not in request:
        request.setdefault("Size", 8)
    return str(client.create_volume(**request, TagSpecifications=tagged("volume", tags or tags_for()))["VolumeId"])


def new_snapshot(client: Any, tags: dict[str, str] | None = None, **settings: Any) -> str:
    specifications = tagged("snapshot", tags or tags_for(role="deploy_snapshot"))
    volume_id = new_volume(client, **settings)
    snapshot_id = client.create_snapshot(VolumeId=volume_id, TagSpecifications=specifications)["SnapshotId"]
    client.delete_volume(VolumeId=volume_id)
    return str(snapshot_id)


def new_instance(client: Any, **settings: Any) -> str:
    request = {"InstanceType": "c6i.large", "Placement": {"AvailabilityZone": ZONE}, **settings}
    answer = client.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1, **request)
    return str(answer["Instances"][0]["InstanceId"])


def describe_volume(client: Any, volume_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]
    return answer


def deploy(client: Any, instance_ids: list[str], tags: dict[str, str], **options: Any) -> DeploymentResult:
    check_mode = options.pop("check_mode", False)
    settings = VolumeSettings(**options)
    return Deployment(Ec2Jobs(client, 30.0), tags, settings).present(instance_ids, check_mode=check_mode)


def test_a_fleet_gets_its_volumes_once_and_loses_them(emulator: Emulator) -> None:
    client = emulator.client("ec2")
    snapshot_id, instances = new_snapshot(client), [new_instance(client), new_instance(client)]
    tags = tags_for()
    settings: dict[str, Any] = {"snapshot_id": snapshot_id, "iops": 4000, "throughput_mib_s": 500, "size_gib": 9}
    planned = deploy(client, instances, tags, **settings, check_mode=True)
    assert (planned["changed"], planned["created"], planned["api_calls"]["mutating"]) == (True, 2, 0)
    made = deploy(client, instances, tags, **settings)
    assert (made["failed_instances"], made["created"], made["attached"]) == ({}, 2, 2)
    for instance_id, volume in made["volumes"].items():
        found = describe_volume(client, volume["volume_id"])
        assert (found["State"], found["SnapshotId"], found["Size"]) == ("in-use", snapshot_id, 9)
        assert (found["VolumeType"], found["Iops"]) == ("gp3", 4000)
        assert [one["InstanceId"] for one in found["Attachments"]] == [instance_id]
        assert outcome(client.delete_volume, VolumeId=volume["volume_id"]) == "refused: VolumeInUse"
    again = deploy(client, instances, tags, **settings)
    assert (again["changed"], again["ready"], again["volumes"]) == (False, 2, made["volumes"])
    gone = Removal(Ec2Jobs(client, 30.0), tags).absent([], check_mode=False)
    assert (gone["detached"], gone["deleted"], gone["failed_instances"]) == (2, 2, {})
    assert Removal(Ec2Jobs(client, 30.0), tags).absent([], check_mode=False)["changed"] is False


def test_snapshots_are_found_by_their_tags(emulator: Emulator) -> None:
    client, tags = emulator.client("ec2"), tags_for(role="deploy_snapshot")
    snapshot_id = new_snapshot(client, tags, Encrypted=True)
    new_snapshot(client, {**tags, "DatasetVersion": OLD})
    (found,) = result(find_snapshots(client, {f"tag:{name}": value for name, value in tags.items()}))["snapshots"]
    assert (found["snapshot_id"], found["volume_size"], found["tags"]) == (snapshot_id, 8, tags)
    assert (found["state"], found["progress"]) == ("completed", "100%")
    assert result(find_snapshots(client, {"tag:Project": new_project()}))["snapshots"] == []


def test_sharing_is_revoked(emulator: Emulator) -> None:
    client = emulator.client("ec2")
    snapshot_id = new_snapshot(client)
    accounts = ["111122223333", "444455556666"]
    request = {"SnapshotId": snapshot_id, "Attribute": "createVolumePermission"}
    client.modify_snapshot_attribute(**request, OperationType="add", UserIds=accounts)

    def share() -> dict[str, Any]:
        wanted = SnapshotShare(client, emulator.client("kms"), snapshot_id, accounts[:1], revoke_unlisted=True)
        return {**wanted.present(check_mode=False)}

    assert share()["revoked"] == accounts[1:]
    assert (share()["changed"], share()["shared_with"]) == (False, accounts[:1])


def test_snapshots_of_old_versions_are_retired(emulator: Emulator) -> None:
    client = emulator.client("ec2")
    tags = tags_for()
    used, old, new = (  # the newest last, or with the greatest name where all are of one second
        new_snapshot(client, {**tags, "DatasetVersion": version, "Role": "deploy_snapshot"})
        for version in ("0" * 12, OLD, NEW)
    )
    free = new_volume(client, {**tags, "DatasetVersion": OLD}, SnapshotId=old)
    new_volume(client, SnapshotId=used)  # of another project

    def retire(*, check_mode: bool = False) -> dict[str, str]:
        prices = {"snapshot": 0.05, "gp3": 0.08}
        wanted = {name: tags[name] for name in ("Project", "Dataset")}
        done = Retirement(client, None, wanted, 1, prices).run(check_mode=check_mode)
        return {item["name"]: item["verdict"] for item in done["items"]}

    planned = retire(check_mode=True)
    assert (planned[old], planned[free]) == ("removed", "removed")
    assert planned[used].startswith("in use by volume vol-")
    assert planned[new] == "version 1 of the 1 newest"
    assert retire() == planned
    assert retire() == {name: verdict for name, verdict in planned.items() if verdict != "removed"}


# What they do not agree on with AWS: the rows of docs/emulators.md.


def outcome(operation: Callable[..., Any], *arguments: Any, **request: Any) -> str:
    """Return "accepted", or "refused" with the code that the emulator gave."""
    try:
        operation(*arguments, **request)
    except sdk_errors() as error:
        return f"refused: {error_code(error)}"
    except OpsError as error:
        cause = error.__cause__
        return f"refused: {error_code(cause) if isinstance(cause, sdk_errors()) else error.why}"
    return "accepted"


def refusal(operation: Callable[..., Any], **request: Any) -> str:
    """Return "accepted" or "refused", where AWS documents no code."""
    return outcome(operation, **request).partition(":")[0]


def shown(value: object) -> str:
    """Return whether an answer has what AWS's has."""
    return "shown" if value else "missing"


@point("wrong CRC32 of a body")
def _(emulator: Emulator) -> str:
    bucket = Bucket(emulator.s3(), new_bucket(emulator))
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    assert outcome(bucket.put, "right", b"bytes", sha256, crc32_text(zlib.crc32(b"bytes"))) == "accepted"
    return outcome(bucket.put, "wrong", b"bytes", sha256, crc32_text(zlib.crc32(b"other")))


@point("wrong CRC32 of a part")
def _(emulator: Emulator) -> str:
    bucket = Bucket(emulator.s3(), new_bucket(emulator))
    return outcome(bucket.put_part, "k", bucket.begin_upload("k"), 1, b"bytes", crc32_text(zlib.crc32(b"other")))


@point("CRC32 of a part in ListParts")
def _(emulator: Emulator) -> str:
    bucket = Bucket(emulator.s3(), new_bucket(emulator))
    upload_id = bucket.begin_upload("k")
    bucket.put_part("k", upload_id, 1, b"part", crc32_text(zlib.crc32(b"part")))
    return shown(bucket.parts("k", upload_id)[1].crc32)


@point("multipart backup that was killed")
def _(emulator: Emulator) -> str:
    client, name = FaultyClient(emulator.s3()), new_bucket(emulator)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root, {**FILES, "recordio/train.rec": SOURCE.randbytes(11 * MIB)})
        (root / ".state").mkdir()
        options: dict[str, Any] = {"workers": 1, "part_size_bytes": 5 * MIB}
        # Before the second part of the largest file, which is the first to go up.
        client.kill_at = 2
        with pytest.raises(Killed):
            back_up(client, name, root, **options)
        client.kill_at = -1
        done = outcome(lambda: back_up(client, name, root, **options))
        if done != "accepted":
            return done
        numbers = [request["PartNumber"] for operation, request in client.calls if operation == "upload_part"]
        assert back_up(client, name, root, **options)["changed"] is False
    return "each part sent once" if sorted(numbers) == [1, 2, 3] else f"parts sent: {numbers}"


@point("multipart upload with a CRC32 of the whole")
def _(emulator: Emulator) -> str:
    return complete(emulator)


@point("wrong CRC32 of the whole")
def _(emulator: Emulator) -> str:
    return complete(emulator, whole=b"other")


@point("wrong size of the whole")
def _(emulator: Emulator) -> str:
    return complete(emulator, size_bytes=1)


def complete(emulator: Emulator, whole: bytes = b"", size_bytes: int = 0) -> str:
    """Upload two parts, with the CRC32 of ``whole`` and ``size_bytes``, or of what they really are."""
    bucket = Bucket(emulator.s3(), new_bucket(emulator))
    contents = [SOURCE.randbytes(5 * MIB), b"end"]
    upload_id = bucket.begin_upload("k")
    parts = {}
    for number, content in enumerate(contents, 1):
        sent = bucket.put_part("k", upload_id, number, content, crc32_text(zlib.crc32(content)))
        parts[number] = StoredPart(sent.etag, size_bytes or len(content), sent.crc32)
    return outcome(bucket.complete_upload, "k", upload_id, parts, crc32_text(zlib.crc32(whole or b"".join(contents))))


@point("bucket of another account than the expected one")
def _(emulator: Emulator) -> str:
    return outcome(Bucket(emulator.s3(), new_bucket(emulator), owner="999999999999").objects, "")


@point("S3: wrong secret key")
def _(emulator: Emulator) -> str:
    return outcome(Bucket(emulator.s3(secret_key="wrong"), new_bucket(emulator)).objects, "")


@point("S3: unknown access key")
def _(emulator: Emulator) -> str:
    return outcome(Bucket(emulator.s3("AKIANOBODY", "wrong"), new_bucket(emulator)).objects, "")


@point("EC2: wrong secret key")
def _(emulator: Emulator) -> str:
    return outcome(emulator.client("ec2", secret_key="wrong").describe_volumes)


@point("EC2: unknown access key")
def _(emulator: Emulator) -> str:
    return outcome(emulator.client("ec2", access_key="AKIANOBODY", secret_key="wrong").describe_volumes)


@point("CreateVolume again with its token")
def _(emulator: Emulator) -> str:
    client, token = emulator.client("ec2"), uuid.uuid4().hex
    tags = tags_for()
    made = {new_volume(client, tags, ClientToken=token) for _ in range(2)}
    return "one volume" if len(made) == 1 else "two volumes"


@point("CreateVolume with the token of another request")
def _(emulator: Emulator) -> str:
    client, token = emulator.client("ec2"), uuid.uuid4().hex
    new_volume(client, ClientToken=token)
    return outcome(new_volume, client, Size=9, ClientToken=token)


@point("sc1 volume of 10 GiB")
def _(emulator: Emulator) -> str:
    request = {"AvailabilityZone": ZONE, "VolumeType": "sc1", "Size": 10}
    return refusal(emulator.client("ec2").create_volume, **request)


@point("gp3 volume of 5000 MiB/s")
def _(emulator: Emulator) -> str:
    request = {"AvailabilityZone": ZONE, "VolumeType": "gp3", "Size": 100, "Iops": 16000, "Throughput": 5000}
    return refusal(emulator.client("ec2").create_volume, **request)


@point("volume without size and snapshot")
def _(emulator: Emulator) -> str:
    return refusal(emulator.client("ec2").create_volume, AvailabilityZone=ZONE, VolumeType="gp3")


@point("volume smaller than its snapshot")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    request = {"AvailabilityZone": ZONE, "VolumeType": "gp3", "Size": 7, "SnapshotId": new_snapshot(client)}
    return refusal(client.create_volume, **request)


@point("volume of an encrypted snapshot")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    volume_id = new_volume(client, SnapshotId=new_snapshot(client, Encrypted=True))
    return "encrypted" if describe_volume(client, volume_id)["Encrypted"] else "not encrypted"


@point("throughput of a volume")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    return shown(describe_volume(client, new_volume(client, Throughput=500)).get("Throughput"))


@point("attaching an attached volume")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    volume_id = new_volume(client)
    client.attach_volume(VolumeId=volume_id, InstanceId=new_instance(client), Device="/dev/sdf")
    return outcome(client.attach_volume, VolumeId=volume_id, InstanceId=new_instance(client), Device="/dev/sdf")


@point("attaching a volume of another zone")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    request = {"VolumeId": new_volume(client, AvailabilityZone=OTHER_ZONE), "InstanceId": new_instance(client)}
    return refusal(client.attach_volume, **request, Device="/dev/sdf")


@point("attaching at a device name in use")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    request = {"InstanceId": new_instance(client), "Device": "/dev/sdf"}
    client.attach_volume(VolumeId=new_volume(client), **request)
    return refusal(client.attach_volume, VolumeId=new_volume(client), **request)


@point("attached volume in DescribeInstances")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    volume_id, instance_id = new_volume(client), new_instance(client)
    client.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    mappings = Ec2Jobs(client, 30.0).instances([instance_id])[instance_id]["BlockDeviceMappings"]
    return shown(volume_id in [mapping["Ebs"]["VolumeId"] for mapping in mappings])


@point("fleet volumes that are deleted with their instances")
def _(emulator: Emulator) -> str:
    client, tags = emulator.client("ec2"), tags_for()
    instances = [new_instance(client)]
    settings: dict[str, Any] = {"size_gib": 8, "delete_on_termination": True}
    failed = deploy(client, instances, tags, **settings)["failed_instances"]
    if failed:
        (reason,) = failed.values()
        found = re.search(r"DeleteOnTermination was not set: (\w+)", reason)
        assert found, reason
        return f"refused: {found[1]}"
    return "changed each time" if deploy(client, instances, tags, **settings)["changed"] else "set once"


@point("volume of a terminated instance")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    volume_id, instance_id = new_volume(client), new_instance(client)
    client.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    client.terminate_instances(InstanceIds=[instance_id])
    found = client.describe_volumes(Filters=[{"Name": "volume-id", "Values": [volume_id]}])["Volumes"]
    return str(found[0]["State"]) if found else "deleted"


@point("attachment limit of an instance type")
def _(emulator: Emulator) -> str:
    found = Ec2Jobs(emulator.client("ec2"), 30.0).instance_types(["m5.large"])
    return shown(found["m5.large"]["EbsInfo"].get("MaximumEbsAttachments"))


@point("instance types by name")
def _(emulator: Emulator) -> str:
    found = Ec2Jobs(emulator.client("ec2"), 30.0).instance_types(["m5.large"])
    return "that one" if set(found) == {"m5.large"} else "all types"


@point("how far a volume is loaded")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    volume_id = new_volume(client, SnapshotId=new_snapshot(client))
    try:
        (status,) = client.describe_volume_status(VolumeIds=[volume_id])["VolumeStatuses"]
    except sdk_errors() as error:
        return f"refused: {error_code(error)}"
    return shown("InitializationStatusDetails" in status)


@point("key of an encrypted volume")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    volume_id = new_volume(client, Encrypted=True, KmsKeyId=new_key(emulator))
    return shown(describe_volume(client, volume_id).get("KmsKeyId"))


@point("key of an encrypted snapshot")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    snapshot_id = new_snapshot(client, Encrypted=True, KmsKeyId=new_key(emulator))
    (found,) = client.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    return shown(found.get("KmsKeyId"))


def new_key(emulator: Emulator, region: str = REGION) -> str:
    return str(emulator.client("kms", region).create_key()["KeyMetadata"]["Arn"])


def copy(emulator: Emulator, source_id: str, region: str, key: str = "") -> dict[str, Any]:
    settings = CopySettings(source_id, REGION, region, key)
    clients = (emulator.client("ec2"), emulator.client("ec2", region), emulator.client("kms", region))
    return {**SnapshotCopy(*clients, settings).present(check_mode=False)}


@point("snapshot copied to another Region twice")
def _(emulator: Emulator) -> str:
    source_id = new_snapshot(emulator.client("ec2"), Encrypted=True)
    made = {copy(emulator, source_id, OTHER_REGION)["snapshot_id"] for _ in range(2)}
    return "one copy" if len(made) == 1 else "two copies"


@point("snapshot copied under a key twice")
def _(emulator: Emulator) -> str:
    source_id, key = new_snapshot(emulator.client("ec2"), Encrypted=True), new_key(emulator)
    made = {copy(emulator, source_id, REGION, key)["snapshot_id"] for _ in range(2)}
    return "one copy" if len(made) == 1 else "two copies"


@point("tags of a copied snapshot")
def _(emulator: Emulator) -> str:
    tags = tags_for(role="deploy_snapshot")
    source_id = new_snapshot(emulator.client("ec2"), tags)
    copied = copy(emulator, source_id, OTHER_REGION)["snapshot_id"]
    (found,) = emulator.client("ec2", OTHER_REGION).describe_snapshots(SnapshotIds=[copied])["Snapshots"]
    wanted = {**tags, "CopiedFrom": f"{REGION}/{source_id}"}
    return "as requested" if {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])} == wanted else "missing"


@point("copy of a snapshot that is not encrypted")
def _(emulator: Emulator) -> str:
    copied = copy(emulator, new_snapshot(emulator.client("ec2")), OTHER_REGION)["snapshot_id"]
    (found,) = emulator.client("ec2", OTHER_REGION).describe_snapshots(SnapshotIds=[copied])["Snapshots"]
    return "encrypted" if found["Encrypted"] else "not encrypted"


@point("sharing a copy under a key of one's own")
def _(emulator: Emulator) -> str:
    client, key = emulator.client("ec2"), new_key(emulator)
    copied = copy(emulator, new_snapshot(client, Encrypted=True), REGION, key)["snapshot_id"]

    def share() -> dict[str, Any]:
        wanted = SnapshotShare(client, emulator.client("kms"), copied, ["111122223333"], revoke_unlisted=False)
        return {**wanted.present(check_mode=False)}

    first = outcome(share)
    if first != "accepted":
        return first
    done = share()
    return "shared once" if (done["changed"], done["kms_key_id"]) == (False, key) else "changed each time"


@point("sharing a snapshot under the default key")
def _(emulator: Emulator) -> str:
    return sharing(emulator, UserIds=["111122223333"])


@point("sharing an encrypted snapshot with everybody")
def _(emulator: Emulator) -> str:
    return sharing(emulator, GroupNames=["all"])


def sharing(emulator: Emulator, **who: Any) -> str:
    client = emulator.client("ec2")
    request = {"SnapshotId": new_snapshot(client, Encrypted=True), "Attribute": "createVolumePermission"}
    return refusal(client.modify_snapshot_attribute, **request, OperationType="add", **who)


@point("fast snapshot restore")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    restored = FastSnapshotRestore(client, new_snapshot(client))
    return outcome(restored.enabled, {ZONE: 1}, 30.0, None, check_mode=True)


def update_template(client: Any, name: str, user_data: str, **options: Any) -> dict[str, Any]:
    volume = VolumeMapping("/dev/sdf", "snap-0123456789abcdef0", **options.pop("volume", {}))
    settings = TemplateSettings(
        name, volume, user_data, {"Project": "imagenet-ops"}, volume_tags={"Role": "fleet"}, image_id=IMAGE, **options
    )
    return {**LaunchTemplateUpdate(client, settings).present(check_mode=False)}


def versions_of(client: Any, template_id: str) -> dict[int, dict[str, Any]]:
    found = client.describe_launch_template_versions(LaunchTemplateId=template_id)["LaunchTemplateVersions"]
    return {version["VersionNumber"]: version["LaunchTemplateData"] for version in found}


@point("launch template that is updated twice")
def _(emulator: Emulator) -> str:
    return updates(emulator)


@point("launch template with an initialization rate that is updated twice")
def _(emulator: Emulator) -> str:
    return updates(emulator, volume={"initialization_rate_mib_s": 200})


def updates(emulator: Emulator, **options: Any) -> str:
    """Make a template, change it, and run each twice."""
    client, name = emulator.client("ec2"), new_project()
    scripts = ["#!/bin/sh", "#!/bin/sh", "#!/bin/bash", "#!/bin/bash"]
    done = [update_template(client, name, script, **options) for script in scripts]
    return "versions " + " ".join(str(entry["version"]) for entry in done)


@point("version of a launch template made of another")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    template_id = update_template(client, new_project(), "#!/bin/sh")["template_id"]
    request = {"LaunchTemplateId": template_id, "SourceVersion": "1"}
    client.create_launch_template_version(**request, LaunchTemplateData={"InstanceType": "c6i.large"})
    return "inherits" if versions_of(client, template_id)[2].get("ImageId") == IMAGE else "inherits nothing"


@point("snapshot in such a version")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    template_id = update_template(client, new_project(), "#!/bin/sh")["template_id"]
    request = {"LaunchTemplateId": template_id, "SourceVersion": "1"}
    client.create_launch_template_version(**request, LaunchTemplateData={"InstanceType": "c6i.large"})
    mappings = versions_of(client, template_id)[2].get("BlockDeviceMappings", [])
    return "inherited" if any("SnapshotId" in mapping["Ebs"] for mapping in mappings) else "left out"


@point("tags of a launch template in its data")
def _(emulator: Emulator) -> str:
    client = emulator.client("ec2")
    template_id = update_template(client, new_project(), "#!/bin/sh")["template_id"]
    kinds = {entry["ResourceType"] for entry in versions_of(client, template_id)[1]["TagSpecifications"]}
    return "mixed in" if "launch-template" in kinds else "left out"


@point("old versions of a launch template")
def _(emulator: Emulator) -> str:
    client, name = emulator.client("ec2"), new_project()
    update_template(client, name, "#!/bin/sh")
    return outcome(update_template, client, name, "#!/bin/bash", versions_kept=1)


@pytest.mark.parametrize("name", PROBES)
def test_a_known_difference_is_as_the_table_says(emulator: Emulator, name: str) -> None:
    row = table()[name]
    expected = row["AWS"] if row[emulator.name] == AS_AWS else row[emulator.name]
    assert PROBES[name](emulator) == expected


def test_every_row_is_tested_and_is_a_difference() -> None:
    rows = table()
    assert list(rows) == list(PROBES)
    for name, row in rows.items():
        right = [emulator for emulator in EMULATORS if row[emulator] == AS_AWS]
        assert right != list(EMULATORS), name
        assert row["AWS"] not in [row[emulator] for emulator in EMULATORS], name
        assert row["Right"] == (" and ".join(right) or "neither"), name


def test_the_table_names_the_releases_that_are_tested() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    pins = [pin for group in ("ministack", "lab") for pin in groups[group]]
    pinned = {re.split(r"\W", pin)[0]: pin.split("==")[1] for pin in pins}
    head = next(line for line in TABLE.read_text().splitlines() if line.startswith("|"))
    for name in EMULATORS:
        assert f" {name} {pinned[name]} " in head


@pytest.mark.parametrize("name", PROBES)
def test_the_source_of_a_row_exists(name: str) -> None:
    """It is a page of an API reference, with a parameter or a field, both as botocore's model has them."""
    service, operation, *members = table()[name]["Source"].split()
    model = botocore.session.get_session().get_service_model(service.lower())
    shapes = [model.operation_model(operation).input_shape, model.operation_model(operation).output_shape]
    for member in members:
        assert any(shape and member in members_of(shape, set()) for shape in shapes), member


def members_of(shape: Any, seen: set[str]) -> set[str]:
    """Return the names of all members in ``shape`` and in what it holds."""
    if shape.name in seen:
        return set()
    seen.add(shape.name)
    if shape.type_name == "list":
        return members_of(shape.member, seen)
    if shape.type_name != "structure":
        return set()
    return set(shape.members).union(*(members_of(member, seen) for member in shape.members.values()))
