"""Backs up once in a process of its own, for a test to kill: `python -m tests.fakes.backup_once ROOT ENDPOINT`."""

from __future__ import annotations

import sys
from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parent.parent.parent / "module_utils"))

from ansible.module_utils.imagenet_ops import backup  # noqa: E402 (needs the path above)
from ansible.module_utils.imagenet_ops.s3 import Bucket, s3_client  # noqa: E402 (likewise)

from tests.fakes.s3_server import BUCKET  # noqa: E402 (likewise)

PART_BYTES = backup.MIB


def back_up(root: str, endpoint_url: str) -> dict[str, object]:
    """Back up ``root`` in parts of 1 MiB."""
    bucket = Bucket(s3_client("us-east-1", endpoint_url, 8, "path"), BUCKET)
    plan = backup.make_plan(root)
    return backup.Backup(bucket, plan, f"{root}/.state", workers=4, part_size_bytes=PART_BYTES).run(check_mode=False)


if __name__ == "__main__":
    vars(backup)["LEAST_PART_BYTES"] = PART_BYTES  # S3 takes no parts below 5 MiB; smaller ones are quicker
    back_up(sys.argv[1], sys.argv[2])
