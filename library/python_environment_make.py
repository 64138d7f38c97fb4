#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: python_environment_make
short_description: Create a Python environment with pinned packages, from wheels in one file
description:
  - Creates an environment with the Python that runs the module, and installs the pins in it. All in one task, for a
    task costs a fleet of 64 hosts ten seconds.
  - An environment that has these pins is not changed. The list is kept as C(requirements.txt) in I(path), written last.
  - Each file of the archive is compared with the SHA-256 of its pin before any is run; pip compares what it gets from
    an index.
  - The host needs neither pip nor, with wheels in the archive, a network.
version_added: "1.0.0"
author: The authors of imagenet-ops
options:
  path:
    description: Directory of the environment.
    type: path
    required: true
  requirements:
    description: Pins with their hashes, as pip reads them, with all dependencies and pip.
    type: str
    required: true
  archive:
    description: Tar on the host with the wheels of all pins; with I(from_index), that of pip alone. It is deleted.
    type: path
    required: true
  from_index:
    description: Install all other packages from the index that pip on the host is configured for.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reports whether the environment would be created or replaced.
    support: full
  diff_mode:
    description: Shows no difference.
    support: none
requirements:
  - the module venv of Python (python3-venv on Debian)
"""

EXAMPLES = r"""
- name: Create the environment
  python_environment_make:
    path: /opt/imagenet-ops
    requirements: |
      numpy==2.0.2 --hash=sha256:8c5713284ce4e282544c68d1c3b2c7161d38c256d2eefc93c1d683cf47683e66
      pip==25.3 --hash=sha256:9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd
    archive: /var/tmp/wheels.tar
  become: true
"""

RETURN = r"""
interpreter:
  description: The environment's Python.
  returned: success
  type: str
  sample: /opt/imagenet-ops/bin/python
"""

import os
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.imagenet_ops.core.module import run
from ansible.module_utils.imagenet_ops.host.python_environment import Environment, make_environment


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "from_index": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    wanted = Environment(**module.params)

    def work() -> Mapping[str, Any]:
        # Whatever root's own is: modules run in the environment as any user.
        os.umask(0o022)
        return make_environment(wanted, module.run_command, check_mode=module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
