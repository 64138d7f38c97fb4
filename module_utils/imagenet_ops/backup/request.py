"""What is to be restored, and which backup in the bucket has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, ListedObject
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.dataset.manifest import (
    MANIFEST_NAME,
    VERSION_DIGITS,
)


@dataclass(frozen=True)
class RestoreRequest:
    """What to restore, to where; the fields are the options of the module s3_restore.

    The backup is the one under ``prefix``, or else version ``dataset_version`` ("": the newest) of ``dataset``.
    ``content`` is one of the manifest's `CONTENTS`. ``trees`` are the splits whose trees come back too. ``replace``
    allows to replace what is there and wrong.
    """

    root: str
    state_dir: str
    dataset: str = ""
    dataset_version: str = ""
    prefix: str = ""
    content: str = "all"
    trees: Sequence[str] = ()
    replace: bool = False
    connections: int = 8


@dataclass(frozen=True)
class RestoreFile:
    """A file to restore: ``path`` below the root, what it must be, and ``object`` in the bucket (None: not there)."""

    path: str
    size_bytes: int
    sha256: str
    object: ListedObject | None


def find_prefix(bucket: Bucket, request: RestoreRequest) -> str:
    """Return what the keys of the backup begin with; raises OpsError where there is none."""
    if request.prefix.strip("/"):
        return request.prefix.strip("/")
    if request.dataset_version:
        return f"{request.dataset}/{request.dataset_version}"
    manifests = {
        key: entry
        for key, entry in bucket.objects(f"{request.dataset}/").items()
        if re.fullmatch(rf"[^/]+/[0-9a-f]{{{VERSION_DIGITS}}}/{re.escape(MANIFEST_NAME)}", key)
    }
    if not manifests:
        raise OpsError(
            bucket.uri(f"{request.dataset}/"),
            "there is no complete backup (a manifest goes up last, and there is none)",
            "Check the bucket and the data set's name, or name the prefix; playbooks/steps/backup.yml makes a backup",
        )
    return max(manifests, key=lambda key: (manifests[key].modified_seconds, key)).rpartition("/")[0]
