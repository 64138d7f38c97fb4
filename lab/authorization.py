"""Which permissions a request needs: actions, resources with their tags, and condition keys, as AWS has them.

Source: the Service Authorization Reference, "Actions, resources, and condition keys" for Amazon EC2, IAM and S3. What a
change acts on and is not known here is asked for on ``*``, which no policy of the project grants.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel
from moto.ec2.models import ec2_backends
from moto.iam.models import iam_backends
from moto.kms.models import kms_backends

from lab.config import ACCOUNT_ID, REGION
from lab.policies import Request

PARTITION = "aws"
# What the beginning of an id says of its resource.
_TYPES = {
    "ami": "image",
    "eni": "network-interface",
    "i": "instance",
    "key": "key-pair",
    "lt": "launch-template",
    "sg": "security-group",
    "snap": "snapshot",
    "subnet": "subnet",
    "vol": "volume",
    "vpc": "vpc",
}
_ID = re.compile(rf"({'|'.join(_TYPES)})-[0-9a-f]+")
# Resources whose ARN has no account.
_PUBLIC = {"image", "snapshot"}
# What an action makes, each asked for with the tags that the request gives it.
_CREATED = {
    "CopySnapshot": ("snapshot",),
    "CreateLaunchTemplate": ("launch-template",),
    "CreateSecurityGroup": ("security-group",),
    "CreateSnapshot": ("snapshot",),
    "CreateVolume": ("volume",),
    "ImportKeyPair": ("key-pair",),
    "RunInstances": ("instance", "network-interface", "volume"),
}
# What RunInstances takes from the default VPC where the request names none.
_DEFAULTS = {"RunInstances": ("security-group", "subnet"), "CreateSecurityGroup": ("vpc",)}
# Parameters of ids that are not the resources that AWS asks for.
_NOT_ASKED_FOR = re.compile(r"^(Filter|ClientToken|IpPermissions|LaunchTemplateData|UserIdGroupPair|TagSpecification)")
Parameters = Mapping[str, list[str]]


def requests_of_ec2(action: str, parameters: Parameters, region: str = REGION) -> list[Request]:
    """Return all that a call of EC2 must be allowed, given its query parameters."""
    name = f"ec2:{action}"
    # The few that look at one resource ask for it, as changes do.
    if action.startswith(("Describe", "Get")) and action not in (
        "DescribeInstanceAttribute",
        "DescribeSnapshotAttribute",
    ):
        return [Request(name)]
    direct = _pairs(parameters, "Tag.", "Key", "Value")
    asked = {"aws:TagKeys": list(direct), **_request_tags(direct)} if direct else {}
    # What is copied lies in another Region than the one that is called.
    where = parameters["SourceRegion"][0] if action == "CopySnapshot" else region
    named = _named(ec2_backends[ACCOUNT_ID][where], parameters, where)
    found = [Request(name, arn, {**asked, **tags}) for arn, tags in named]
    given = _tag_specifications(parameters)
    found += [
        Request(name, _arn(kind, "*", region), _tag_keys(given.get(kind, {}))) for kind in _CREATED.get(action, ())
    ]
    for kind in _DEFAULTS.get(action, ()):
        if not any(f":{kind}/" in request.resource for request in found):
            found.append(Request(name, _arn(kind, "*", region)))
    for kind, tags in given.items():
        context = {**_tag_keys(tags), "ec2:CreateAction": action}
        found.append(Request("ec2:CreateTags", _arn(kind, "*", region), context))
    return [*(found or [Request(name)]), *_passed_role(parameters)]


def requests_of_iam(action: str, parameters: Parameters) -> list[Request]:
    """Return all that a call of IAM must be allowed, given its query parameters."""
    tags = _pairs(parameters, "Tags.member.", "Key", "Value")
    context: dict[str, Any] = _tag_keys(tags)
    if "PermissionsBoundary" in parameters:
        context["iam:PermissionsBoundary"] = parameters["PermissionsBoundary"][0]
    found = [
        Request(f"iam:{action}", arn, {**context, **_own_boundary(action, kind, name)})
        for kind, parameter in _IAM_RESOURCES.items()
        for name in parameters.get(parameter, [])
        for arn in [f"arn:{PARTITION}:iam::{ACCOUNT_ID}:{kind}/{name}"]
        # A profile is what is changed where a role is put into it.
        if not (kind == "role" and "InstanceProfileName" in parameters)
    ]
    if not found:
        named = [f"arn:{PARTITION}:iam::{ACCOUNT_ID}:policy/{name}" for name in parameters.get("PolicyName", [])]
        found = [Request(f"iam:{action}", arn, context) for arn in parameters.get("PolicyArn", named) or ["*"]]
    if tags and action.startswith("Create"):
        # IAM User Guide, "Tagging IAM resources": what is created with tags needs the permission to tag it too.
        found += [Request(f"iam:Tag{action.removeprefix('Create')}", one.resource, one.context) for one in found]
    if action == "AddRoleToInstanceProfile":
        found.append(_pass_role(parameters["RoleName"][0]))
    return found


def requests_of_kms(action: str, parameters: Mapping[str, Any]) -> list[Request]:
    """Return what a call of KMS must be allowed, given its parameters: on the key, though an alias may name it."""
    key = str(parameters.get("KeyId", ""))
    backend = kms_backends[ACCOUNT_ID][REGION]
    if key.startswith("alias/"):
        key = backend.get_key_id_from_alias(key) or key
    arn = key if key.startswith("arn:") else f"arn:{PARTITION}:kms:{REGION}:{ACCOUNT_ID}:key/{key}"
    return [Request(f"kms:{action}", arn if key else "*")]


_IAM_RESOURCES = {"role": "RoleName", "instance-profile": "InstanceProfileName", "user": "UserName"}


def _own_boundary(action: str, kind: str, name: str) -> dict[str, str]:
    """Return the boundary that a role has already: that is the condition key of all but its creation."""
    roles = iam_backends[ACCOUNT_ID][PARTITION].roles.values()
    boundary = next((role.permissions_boundary_arn for role in roles if kind == "role" and role.name == name), None)
    return {"iam:PermissionsBoundary": boundary} if boundary and action != "CreateRole" else {}


# Where the permission that an operation of S3 needs has another name.
_S3_PERMISSIONS = {
    "CompleteMultipartUpload": "PutObject",
    "CopyObject": "PutObject",
    "CreateMultipartUpload": "PutObject",
    "DeleteBucketEncryption": "PutEncryptionConfiguration",
    "DeleteBucketLifecycle": "PutLifecycleConfiguration",
    "DeleteBucketOwnershipControls": "PutBucketOwnershipControls",
    "DeleteBucketTagging": "PutBucketTagging",
    "DeleteObjects": "DeleteObject",
    "DeletePublicAccessBlock": "PutBucketPublicAccessBlock",
    "GetBucketAccelerateConfiguration": "GetAccelerateConfiguration",
    "GetBucketEncryption": "GetEncryptionConfiguration",
    "GetBucketLifecycle": "GetLifecycleConfiguration",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
    "HeadBucket": "ListBucket",
    "HeadObject": "GetObject",
    "ListBucketInventoryConfigurations": "GetInventoryConfiguration",
    "ListBuckets": "ListAllMyBuckets",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListObjectVersions": "ListBucketVersions",
    "ListObjects": "ListBucket",
    "ListObjectsV2": "ListBucket",
    "ListParts": "ListMultipartUploadParts",
    "PutBucketEncryption": "PutEncryptionConfiguration",
    "PutBucketLifecycle": "PutLifecycleConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
    "UploadPart": "PutObject",
    "UploadPartCopy": "PutObject",
}
# Operations on an object that are told apart by a parameter and not by a name in the address.
_S3_BY_PARAMETER = {
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("GET", "uploadId"): "ListParts",
    ("PUT", "uploadId"): "UploadPart",
    ("POST", "uploadId"): "CompleteMultipartUpload",
}
# Of several operations with one address, the one that is meant where no parameter says otherwise.
_S3_PLAIN = {
    ("DELETE", True): "DeleteObject",
    ("GET", True): "GetObject",
    ("PUT", True): "PutObject",
    ("GET", False): "ListObjects",
}
# An old version of an object has permissions of its own.
_S3_VERSION_PERMISSIONS = {"DeleteObject": "DeleteObjectVersion", "GetObject": "GetObjectVersion"}


def s3_operation(method: str, bucket: str, key: str, query: Collection[str]) -> str:
    """Return the name of the operation that a request is, by the names of its query parameters and botocore's model."""
    if not bucket:
        return "ListBuckets"
    for (wanted, parameter), operation in _S3_BY_PARAMETER.items():
        if key and method == wanted and parameter in query:
            return operation
    for subresource, operation in _s3_operations()[method, bool(key)].items():
        if subresource and subresource in query:
            return operation
    return _S3_PLAIN.get((method, bool(key))) or _s3_operations()[method, bool(key)][""]


def request_of_s3(operation: str, bucket: str, key: str, query: Collection[str] = ()) -> Request:
    """Return what an operation of S3 must be allowed."""
    permission = _S3_PERMISSIONS.get(operation, operation)
    if "versionId" in query:
        permission = _S3_VERSION_PERMISSIONS.get(permission, permission)
    resource = f"arn:{PARTITION}:s3:::{bucket}{f'/{key}' if key else ''}" if bucket else "*"
    # The lab's address stands for that of HTTPS.
    return Request(f"s3:{permission}", resource, {"aws:SecureTransport": "true"})


@functools.cache
def _s3_operations() -> dict[tuple[str, bool], dict[str, str]]:
    """Return the operations by method and whether they are on an object, and then by the name in the address."""
    model = ServiceModel(Loader().load_service_model("s3", "service-2"))
    found: dict[tuple[str, bool], dict[str, str]] = defaultdict(dict)
    for name in model.operation_names:
        http = model.operation_model(name).http
        path, _, address = http["requestUri"].partition("?")
        subresource = address.partition("&")[0].partition("=")[0]
        # Lists of configurations come last by name; they are what a request without an id asks for.
        found[http["method"], "{Key+}" in path][subresource] = name
    return found


def _named(backend: Any, parameters: Parameters, region: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the ARN and the tags of every resource that the parameters name."""
    seen = set()
    for name, values in parameters.items():
        for value in values:
            if name == "KeyName":
                key_id = getattr(backend.key_pairs.get(value), "id", "")
                found = ("key-pair", value, key_id)
            elif name == "LaunchTemplateName":
                template = next((one for one in backend.launch_templates.values() if one.name == value), None)
                found = ("launch-template", getattr(template, "id", "*"), getattr(template, "id", ""))
            elif _ID.fullmatch(value) and not _NOT_ASKED_FOR.match(name):
                found = (_TYPES[value.partition("-")[0]], value, value)
            else:
                continue
            kind, identity, tagged = found
            # A key pair or template that is made has no tags yet, and is asked for as what is created.
            if (kind, identity) not in seen and not (kind in ("key-pair", "launch-template") and not tagged):
                seen.add((kind, identity))
                tags = {key: str(text) for key, text in (backend.tags.get(tagged) or {}).items()}
                context = {f"aws:ResourceTag/{key}": text for key, text in tags.items()}
                if kind == "snapshot" and identity in backend.snapshots:
                    context["ec2:Owner"] = backend.snapshots[identity].owner_id
                yield _arn(kind, identity, region), context


def _passed_role(parameters: Parameters) -> list[Request]:
    """Return the permission to give an instance the role of its instance profile."""
    profiles = iam_backends[ACCOUNT_ID][PARTITION].instance_profiles.values()
    names = {*parameters.get("IamInstanceProfile.Name", []), *parameters.get("IamInstanceProfile.Arn", [])}
    return [
        _pass_role(role.name) for profile in profiles if names & {profile.name, profile.arn} for role in profile.roles
    ]


def _pass_role(name: str) -> Request:
    arn = f"arn:{PARTITION}:iam::{ACCOUNT_ID}:role/{name}"
    return Request("iam:PassRole", arn, {"iam:PassedToService": "ec2.amazonaws.com"})


def _arn(kind: str, identity: str, region: str) -> str:
    account = "" if kind in _PUBLIC else ACCOUNT_ID
    return f"arn:{PARTITION}:ec2:{region}:{account}:{kind}/{identity}"


def _tag_specifications(parameters: Parameters) -> dict[str, dict[str, str]]:
    """Return the tags of a request by the type of what gets them."""
    found = {}
    for name, values in parameters.items():
        match = re.fullmatch(r"(TagSpecification\.\d+\.)ResourceType", name)
        if match:
            found[values[0]] = _pairs(parameters, f"{match[1]}Tag.", "Key", "Value")
    return found


def _pairs(parameters: Parameters, prefix: str, key: str, value: str) -> dict[str, str]:
    names = (name.removesuffix(key) for name in parameters if name.startswith(prefix) and name.endswith(f".{key}"))
    return {parameters[f"{name}{key}"][0]: parameters.get(f"{name}{value}", [""])[0] for name in names}


def _tag_keys(tags: Mapping[str, str]) -> dict[str, Any]:
    return {"aws:TagKeys": list(tags), **_request_tags(tags)} if tags else {}


def _request_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {f"aws:RequestTag/{name}": value for name, value in tags.items()}
