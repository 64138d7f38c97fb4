"""EC2 launch templates: versions as AWS keeps them, and what RunInstances takes from one.

moto mixes the tags of a template into its data, forgets ``SourceVersion`` and cannot delete a version; at a launch it
takes half of what a template says.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models.launch_templates import LaunchTemplate
from moto.ec2.responses.launch_templates import LaunchTemplates as LaunchTemplateResponse

from lab.patching import replace_property, wrap
from lab.rules import ApiError

PAGE_RESULTS = 200
# Lists of which a request may replace single entries, and what identifies their entries.
KEYS_OF_LISTS = {"BlockDeviceMappings": "DeviceName", "TagSpecifications": "ResourceType"}


class LaunchTemplates:
    """The patches of launch templates. ``lock`` makes the changes of the whole API one at a time."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock

    def install(self) -> None:
        """Change moto."""
        wrap(LaunchTemplateResponse, "create_launch_template")(self._create)
        wrap(LaunchTemplateResponse, "create_launch_template_version")(self._create_version)
        wrap(LaunchTemplateResponse, "describe_launch_template_versions")(self._describe_versions)

        def delete_launch_template_versions(response: Any) -> ActionResult:
            return self._delete_versions(response)

        # moto has no such action; its dispatcher looks for a method of this name.
        LaunchTemplateResponse.delete_launch_template_versions = delete_launch_template_versions  # type: ignore[attr-defined]
        wrap(LaunchTemplate, "get_version")(_version)
        # moto shows the tags that a template was made with.
        replace_property(LaunchTemplate, "tags", lambda template: template.get_tags())

    def _create(self, original: Any, response: Any) -> ActionResult:
        with self._lock:
            data = copy.deepcopy(response.params.get("LaunchTemplateData", {}))
            answer: Any = original(response)
            template = response.ec2_backend.get_launch_template(answer.result["LaunchTemplate"]["LaunchTemplateId"])
            template.versions[0].data = data
            return ActionResult(answer.result)

    def _create_version(self, original: Any, response: Any) -> ActionResult:
        with self._lock:
            source = response.params.get("SourceVersion")
            if source:
                inherited = _inherited(_template(response).get_version(source).data)
                response.params["LaunchTemplateData"] = {**inherited, **response.params["LaunchTemplateData"]}
            answer: ActionResult = original(response)
            return answer

    def _describe_versions(self, original: Any, response: Any) -> ActionResult:
        """Answer with every version in one page, as AWS does up to 200, newest first."""
        response.params.setdefault("MaxResults", PAGE_RESULTS)
        found = original(response).result["LaunchTemplateVersions"]
        templates = response.ec2_backend.launch_templates
        left = [
            version
            for version in found
            if not _is_deleted(templates[version["LaunchTemplateId"]].versions[version["VersionNumber"] - 1])
        ]
        return ActionResult({"LaunchTemplateVersions": sorted(left, key=lambda version: -version["VersionNumber"])})

    def _delete_versions(self, response: Any) -> ActionResult:
        with self._lock:
            template = _template(response)
            numbers = {int(number) for number in response.params["Versions"]}
            if template.default_version_number in numbers:
                raise ApiError("InvalidLaunchTemplateId.VersionNotFound", "The default version cannot be deleted")
            gone = [version for version in template.versions if version.number in numbers]
            # The places stay, for moto counts versions by them.
            for version in gone:
                version.lab_deleted = True
            return ActionResult(
                {
                    "SuccessfullyDeletedLaunchTemplateVersions": [
                        {
                            "LaunchTemplateId": template.id,
                            "LaunchTemplateName": template.name,
                            "VersionNumber": version.number,
                        }
                        for version in gone
                    ],
                    "UnsuccessfullyDeletedLaunchTemplateVersions": [],
                }
            )


def resolve(backend: Any, parameters: Any) -> None:
    """Write what the launch template of a RunInstances request says into the request, which has the last word."""
    wanted = parameters.get("LaunchTemplate")
    if not wanted:
        return
    data = backend._get_template_from_args(wanted).data  # noqa: SLF001 - moto has no other way to it
    for name, value in data.items():
        if name in KEYS_OF_LISTS:
            parameters[name] = _joined(value, parameters.get(name, []), KEYS_OF_LISTS[name])
        else:
            parameters.setdefault(name, copy.deepcopy(value))


def _inherited(data: dict[str, Any]) -> dict[str, Any]:
    """Return what a version takes over from another: all but the snapshots (CreateLaunchTemplateVersion)."""
    data = copy.deepcopy(data)
    for mapping in data.get("BlockDeviceMappings", []):
        mapping.get("Ebs", {}).pop("SnapshotId", None)
    return data


def _joined(templates: list[dict[str, Any]], requests: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the entries of both lists; of two with the same ``key`` the request's."""
    return list({entry[key]: copy.deepcopy(entry) for entry in [*templates, *requests]}.values())


def _template(response: Any) -> Any:
    name, template_id = response.params.get("LaunchTemplateName"), response.params.get("LaunchTemplateId")
    backend = response.ec2_backend
    return backend.get_launch_template_by_name(name) if name else backend.get_launch_template(template_id)


def _version(original: Any, template: Any, number: Any) -> Any:
    version = original(template, number)
    if _is_deleted(version):
        raise ApiError("InvalidLaunchTemplateId.VersionNotFound", f"Version {number} of {template.id} does not exist")
    return version


def _is_deleted(version: Any) -> bool:
    return "lab_deleted" in version.__dict__
