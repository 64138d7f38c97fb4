"""Packs once, as the module does, in a process of its own: `python -m bench.pack_once REQUEST.json`.

The request has ``root``, ``workers``, ``source`` or ``archive``, and changes of the settings. Prints the seconds
from after the imports, and the peak of memory in KiB.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

# Ansible finds module_utils of a checkout only inside a playbook; hence the line above, and the imports after it.
from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules  # noqa: E402
from ansible.module_utils.imagenet_ops.core.state_file import Warn  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.image import Recipe  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.supervision import supervised  # noqa: E402


def main() -> None:
    """Pack as the JSON file in the first argument says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    recipe = Recipe(256, 95, "linear", 100_000_000, pass_through=job.get("pass_through", False))
    rules = ArchiveRules("any", "class_archives")
    split = SplitRequest("train", job.get("source"), job.get("archive"), rules)
    root = job["root"]
    chosen = {name: job[name] for name in ("formats", "shard_bytes") if name in job}
    request = PackRequest("bench", root, f"{root}/.state", [split], recipe, workers=job["workers"], **chosen)

    def pack(warn: Warn) -> dict[str, str]:
        pack_dataset(request, check=False, warn=warn)
        # The peak of this program alone; what wait4 reports to a parent starts with the parent's own size.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {"peak_kib": status["VmHWM"].split()[0]}

    began = time.monotonic()
    peak_kib = supervised(pack, request.state_dir, 300.0, sys.exit)["peak_kib"]
    print(time.monotonic() - began, peak_kib)


if __name__ == "__main__":
    main()
