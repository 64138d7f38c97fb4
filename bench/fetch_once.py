"""Fetches once, as the module does, in a process of its own: `python -m bench.fetch_once REQUEST.json`.

The request holds arguments of FetchRequest; what is printed is the peak of the memory in KiB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

# Ansible finds module_utils of a checkout only inside a playbook; hence the line above, and the imports after it.
from ansible.module_utils.imagenet_ops.download.fetch import FetchRequest, fetch  # noqa: E402


def main() -> None:
    """Fetch as the JSON file in the first argument says."""
    fetch(FetchRequest(**json.loads(Path(sys.argv[1]).read_text())))
    # The peak of this program alone; what wait4 reports to a parent starts with the parent's own size.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(status["VmHWM"].split()[0])


if __name__ == "__main__":
    main()
