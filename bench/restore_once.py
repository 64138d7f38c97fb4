"""Restores once, as the module does, in a process of its own: `python -m bench.restore_once REQUEST.json`.

The request has ``root``, ``state_dir``, ``endpoint_url``, ``bucket`` and ``prefix``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

# Ansible finds module_utils of a checkout only inside a playbook; hence the line above, and the imports after it.
from ansible.module_utils.imagenet_ops.aws.s3 import Bucket, s3_client  # noqa: E402
from ansible.module_utils.imagenet_ops.backup.request import RestoreRequest  # noqa: E402
from ansible.module_utils.imagenet_ops.backup.restore import Restore  # noqa: E402


def main() -> None:
    """Restore as the JSON file in the first argument says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    request = RestoreRequest(job["root"], job["state_dir"], prefix=job["prefix"])
    client = s3_client("us-east-1", job["endpoint_url"], request.connections, "path")
    result = Restore(Bucket(client, job["bucket"]), request).run(check_mode=False)
    print(result["restored_files"], result["restored_bytes"])


if __name__ == "__main__":
    main()
