"""Backs up once, as the module does, in a process of its own: `python -m bench.backup_once REQUEST.json`.

The request has ``root``, ``state_dir``, ``endpoint_url``, ``bucket``, ``prefix`` and ``trees``; says its peak memory in
KiB last.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

# Ansible finds module_utils of a checkout only inside a playbook; hence the line above, and the imports after it.
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, s3_client  # noqa: E402
from ansible.module_utils.imagenet_ops.backup.backup import Backup, make_plan  # noqa: E402
from ansible.module_utils.imagenet_ops.backup.upload import READERS  # noqa: E402

WORKERS = 3  # the default of the module


def main() -> None:
    """Back up as the JSON file in the first argument says."""
    request = json.loads(Path(sys.argv[1]).read_text())
    client = s3_client("us-east-1", request["endpoint_url"], WORKERS + READERS, "path")
    bucket = Bucket(client, request["bucket"])
    plan = make_plan(request["root"])
    options = {"prefix": request["prefix"], "trees": request["trees"]}
    result = Backup(bucket, plan, request["state_dir"], workers=WORKERS, **options).run(check_mode=False)
    print(result["uploaded_objects"], result["uploaded_bytes"])
    # The peak of this program alone; what wait4 reports to a parent starts with the parent's own size.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(status["VmHWM"].split()[0])


if __name__ == "__main__":
    main()
