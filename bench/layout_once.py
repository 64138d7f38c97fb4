"""Lays out once, as the module does, in a process of its own: `python -m bench.layout_once REQUEST.json`.

The file holds the arguments of LayoutRequest; what lay_out returns is printed as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

# Ansible finds module_utils of a checkout only inside a playbook; hence the line above, and the imports after it.
from ansible.module_utils.imagenet_ops.layout.extract import lay_out  # noqa: E402
from ansible.module_utils.imagenet_ops.layout.request import LayoutRequest  # noqa: E402

if __name__ == "__main__":
    print(json.dumps(lay_out(LayoutRequest(**json.loads(Path(sys.argv[1]).read_text())))))
