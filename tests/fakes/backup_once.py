"""Backs up once in a process of its own, to be killed: `python -m tests.fakes.backup_once ROOT ENDPOINT TREE...`."""

from __future__ import annotations

import sys
from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parent.parent.parent / "module_utils"))

from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, s3_client  # noqa: E402 (needs the path above)
from ansible.module_utils.imagenet_ops.backup import backup, upload  # noqa: E402 (likewise)

from tests.fakes.s3_server import BUCKET  # noqa: E402 (likewise)

PART_BYTES = upload.MIB
SHARD_BYTES = 3 * PART_BYTES // 2


def back_up(root: str, endpoint_url: str, *trees: str) -> dict[str, object]:
    """Back up ``root``, and ``trees`` of it, in parts of 1 MiB and shards of 1.5."""
    bucket = Bucket(s3_client("us-east-1", endpoint_url, 8, "path"), BUCKET)
    engine = backup.Backup(
        bucket,
        backup.make_plan(root),
        f"{root}/.state",
        workers=4,
        part_size_bytes=PART_BYTES,
        trees=trees,
        shard_bytes=SHARD_BYTES,
    )
    return engine.run(check_mode=False)


if __name__ == "__main__":
    vars(upload)["LEAST_PART_BYTES"] = PART_BYTES  # S3 takes no parts below 5 MiB; smaller ones are quicker
    back_up(*sys.argv[1:])
