"""A launch template whose instances come up with the data set: a volume of the snapshot, and user data that mounts it.

What the template says besides (image, subnets, what a person added) is kept: a new version carries over what is not
given here. The same settings again make no new version.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ansible.module_utils.imagenet_ops.aws.calls import call, call_list, tag_list, tags_of
from ansible.module_utils.imagenet_ops.aws.clients import Ec2Client, Operation
from ansible.module_utils.imagenet_ops.core.errors import OpsError

PROJECT_TAG = "Project"
# Limit of user data before it is encoded (EC2 User Guide, "Run commands when you launch an EC2 instance").
USER_DATA_BYTES = 16384
# Versions that one DeleteLaunchTemplateVersions takes (EC2 API reference).
DELETED_AT_ONCE = 200
# A field that EC2 adds to what it describes, and refuses in a request.
STATE_OF_METADATA_OPTIONS = "State"


@dataclass(frozen=True)
class VolumeMapping:
    """The volume of each instance; 0 and "" leave the choice to AWS (for the size: that of the snapshot).

    ``initialization_rate_mib_s`` is the rate at which EBS loads the snapshot, paid by the GiB; 0 loads what is read.
    """

    device_name: str
    snapshot_id: str
    volume_type: str = "gp3"
    iops: int = 0
    throughput_mib_s: int = 0
    size_gib: int = 0
    initialization_rate_mib_s: int = 0
    kms_key_id: str = ""
    delete_on_termination: bool = True

    def to_request(self) -> dict[str, Any]:
        """Return the entry of BlockDeviceMappings."""
        chosen = {
            "Iops": self.iops,
            "Throughput": self.throughput_mib_s,
            "VolumeSize": self.size_gib,
            "VolumeInitializationRate": self.initialization_rate_mib_s,
            "KmsKeyId": self.kms_key_id,
        }
        ebs = {
            "SnapshotId": self.snapshot_id,
            "VolumeType": self.volume_type,
            "Encrypted": True,
            "DeleteOnTermination": self.delete_on_termination,
            **{name: value for name, value in chosen.items() if value},
        }
        return {"DeviceName": self.device_name, "Ebs": ebs}


@dataclass(frozen=True)
class TemplateSettings:
    """What the template is to say; what is empty is left as the template has it, or to whoever launches.

    ``tags`` are the template's own, among them Project; ``volume_tags`` and ``instance_tags`` are given at each launch.
    ``metadata_hops`` is how many network hops the metadata service answers over; containers need 2.
    ``versions_kept`` is how many versions stay, the newest and the default among them; 0 keeps all.
    """

    name: str
    volume: VolumeMapping
    user_data: str
    tags: dict[str, str]
    volume_tags: dict[str, str] = field(default_factory=dict)
    instance_tags: dict[str, str] = field(default_factory=dict)
    image_id: str = ""
    instance_type: str = ""
    key_name: str = ""
    instance_profile: str = ""
    security_group_ids: tuple[str, ...] = ()
    versions_kept: int = 0
    metadata_hops: int = 0


def template_data(settings: TemplateSettings, stored: dict[str, Any]) -> dict[str, Any]:
    """Return what the template is to say: ``stored``, what it says now, with the settings over it."""
    given = {
        "ImageId": settings.image_id,
        "InstanceType": settings.instance_type,
        "KeyName": settings.key_name,
        "SecurityGroupIds": list(settings.security_group_ids),
        "IamInstanceProfile": {"Name": settings.instance_profile} if settings.instance_profile else {},
        "UserData": base64.b64encode(settings.user_data.encode()).decode(),
    }
    mapping = settings.volume.to_request()
    mappings = {entry["DeviceName"]: entry for entry in [*stored.get("BlockDeviceMappings", []), mapping]}
    return {
        **stored,
        **{name: value for name, value in given.items() if value},
        "BlockDeviceMappings": sorted(mappings.values(), key=lambda entry: str(entry["DeviceName"])),
        "MetadataOptions": {
            **stored.get("MetadataOptions", {}),
            "HttpTokens": "required",
            **({"HttpPutResponseHopLimit": settings.metadata_hops} if settings.metadata_hops else {}),
        },
        **_tag_specifications(settings, stored),
    }


def _tag_specifications(settings: TemplateSettings, stored: dict[str, Any]) -> dict[str, Any]:
    specifications = {entry["ResourceType"]: tags_of(entry) for entry in stored.get("TagSpecifications", [])}
    for kind, tags in (("volume", settings.volume_tags), ("instance", settings.instance_tags)):
        specifications[kind] = {**specifications.get(kind, {}), **tags}
    wanted = [{"ResourceType": kind, "Tags": tag_list(tags)} for kind, tags in sorted(specifications.items()) if tags]
    return {"TagSpecifications": wanted} if wanted else {}


def comparable(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the data of a version as EC2 describes it in the form that `template_data` gives it."""
    data = {**stored}
    if "MetadataOptions" in data:
        options = data["MetadataOptions"].items()
        data["MetadataOptions"] = {name: value for name, value in options if name != STATE_OF_METADATA_OPTIONS}
    if "BlockDeviceMappings" in data:
        data["BlockDeviceMappings"] = sorted(data["BlockDeviceMappings"], key=lambda entry: str(entry["DeviceName"]))
    if "TagSpecifications" in data:
        data["TagSpecifications"] = [
            {"ResourceType": entry["ResourceType"], "Tags": tag_list(tags_of(entry))}
            for entry in sorted(data["TagSpecifications"], key=lambda entry: str(entry["ResourceType"]))
        ]
    return data


def describe_data(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of a version as a person reads it in a diff: user data as lines."""
    if not data.get("UserData"):
        return data
    script = base64.b64decode(data["UserData"]).decode(errors="replace")
    return {**data, "UserData": script.splitlines()}


class TemplateState(TypedDict):
    """A launch template as ``--diff`` shows it."""

    default_version: int
    tags: dict[str, str]
    data: dict[str, Any]


class TemplateDifference(TypedDict):
    """What ``--diff`` shows."""

    before: TemplateState
    after: TemplateState


class TemplateResult(TypedDict):
    """The result of the module launch_template_update; the id is "" in check mode if there is no template yet."""

    changed: bool
    template_id: str
    version: int
    deleted_versions: int
    diff: TemplateDifference


class LaunchTemplateUpdate:
    """Brings one launch template to its settings, with the boto3 client ``ec2``."""

    def __init__(self, ec2: Ec2Client, settings: TemplateSettings) -> None:
        """Keep what every step needs. Raises OpsError where the settings cannot be a template."""
        self.ec2 = ec2
        self.settings = settings
        self.what = f"Launch template {settings.name}"
        if not settings.tags.get(PROJECT_TAG):
            raise OpsError(self.what, f"its tags do not hold {PROJECT_TAG}", f"Give {PROJECT_TAG} among the tags")
        size_bytes = len(settings.user_data.encode())
        if size_bytes > USER_DATA_BYTES:
            why = f"its user data has {size_bytes} bytes, and EC2 accepts {USER_DATA_BYTES}"
            raise OpsError(self.what, why, "Make it shorter, or let it download what it runs")

    def present(self, *, check_mode: bool) -> TemplateResult:
        """Return the module's result, after the template says what it is to; in check mode before, and nothing is done.

        Raises OpsError where a template of that name carries no tag of the project, or EC2 refuses.
        """
        template = self._find()
        stored = comparable(self._latest_data(template))
        wanted = template_data(self.settings, stored)
        news = {name: value for name, value in wanted.items() if value != stored.get(name)}
        latest = template.get("LatestVersionNumber", 0)
        version = latest + 1 if news else latest
        old_tags = tags_of(template)
        new_tags = {name: value for name, value in self.settings.tags.items() if old_tags.get(name) != value}
        default = template.get("DefaultVersionNumber", 0)
        if not check_mode:
            template, version = self._write(template, wanted, news)
        surplus = self._surplus(template, version)
        if not check_mode:
            if default not in (0, version):
                self._call(self.ec2.modify_launch_template, template, DefaultVersion=str(version))
            if default and new_tags:
                resources = [template["LaunchTemplateId"]]
                call(self.ec2.create_tags, self.what, Resources=resources, Tags=tag_list(new_tags))
            for start in range(0, len(surplus), DELETED_AT_ONCE):
                numbers = [str(number) for number in surplus[start : start + DELETED_AT_ONCE]]
                self._call(self.ec2.delete_launch_template_versions, template, Versions=numbers)
        return {
            "changed": bool(news or new_tags or default != version or surplus),
            "template_id": template.get("LaunchTemplateId", ""),
            "version": version,
            "deleted_versions": len(surplus),
            "diff": {
                "before": {"default_version": default, "tags": old_tags, "data": describe_data(stored)},
                "after": {"default_version": version, "tags": {**old_tags, **new_tags}, "data": describe_data(wanted)},
            },
        }

    def _find(self) -> dict[str, Any]:
        """Return the template as EC2 describes it, or {} where there is none."""
        filters = [{"Name": "launch-template-name", "Values": [self.settings.name]}]
        answer = call(self.ec2.describe_launch_templates, self.what, Filters=filters)
        template: dict[str, Any] = next(iter(answer["LaunchTemplates"]), {})
        project = self.settings.tags[PROJECT_TAG]
        if template and tags_of(template).get(PROJECT_TAG) != project:
            raise OpsError(
                self.what,
                f"it exists and does not have the tag {PROJECT_TAG}={project}, so it was not changed",
                "Choose another launch_template_name, or put the script of launch_template_script_file into your own",
            )
        return template

    def _latest_data(self, template: dict[str, Any]) -> dict[str, Any]:
        if not template:
            return {}
        answer = self._call(self.ec2.describe_launch_template_versions, template, Versions=["$Latest"])
        data: dict[str, Any] = answer["LaunchTemplateVersions"][0]["LaunchTemplateData"]
        return data

    def _surplus(self, template: dict[str, Any], version: int) -> list[int]:
        """Return the numbers of the versions that are too many when ``version`` is the latest and the default."""
        kept = self.settings.versions_kept
        if not template or kept <= 0:
            return []
        request = {"LaunchTemplateId": template["LaunchTemplateId"]}
        key = "LaunchTemplateVersions"
        found = call_list(self.ec2, "describe_launch_template_versions", key, self.what, **request)
        older = sorted({entry["VersionNumber"] for entry in found} - {version})
        return older[: max(0, len(older) - (kept - 1))]

    def _write(
        self, template: dict[str, Any], wanted: dict[str, Any], news: dict[str, Any]
    ) -> tuple[dict[str, Any], int]:
        """Make the template, or a version of it, to say what is ``wanted``; ``news`` is what the latest does not say.

        Return the template and the number of the version that says what it is to, as EC2 numbered it: another one may
        have been made meanwhile.
        """
        if not template:
            tags = [{"ResourceType": "launch-template", "Tags": tag_list(self.settings.tags)}]
            request = {"LaunchTemplateName": self.settings.name, "LaunchTemplateData": news, "TagSpecifications": tags}
            made: dict[str, Any] = call(self.ec2.create_launch_template, self.what, **request)["LaunchTemplate"]
            return made, made["LatestVersionNumber"]
        latest: int = template["LatestVersionNumber"]
        if not news:
            return template, latest
        # What is not said is inherited, but for the snapshots (EC2 API reference, CreateLaunchTemplateVersion).
        data = {"BlockDeviceMappings": wanted["BlockDeviceMappings"], **news}
        request = {"SourceVersion": str(latest), "LaunchTemplateData": data}
        answer = self._call(self.ec2.create_launch_template_version, template, **request)
        return template, answer["LaunchTemplateVersion"]["VersionNumber"]

    def _call(self, operation: Operation, template: dict[str, Any], **request: Any) -> dict[str, Any]:
        return call(operation, self.what, LaunchTemplateId=template["LaunchTemplateId"], **request)
