"""Bundles modules as Ansible does for a host and prints, as JSON, which files of ours each of them takes along.

A program of its own, because Ansible reads its settings once, when it is imported: run
`python -m tests.contract.payload MODULE...` with ANSIBLE_CONFIG set to that of this checkout. An __init__.py is not
counted: it is a line of docstring.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import zipfile
from pathlib import Path

from ansible.executor.module_common import modify_module
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

LIBRARY = Path(__file__).resolve().parent.parent.parent / "library"
_OURS = "ansible/module_utils/imagenet_ops/"


def bundled(module: str) -> list[str]:
    """Return the files of module_utils/imagenet_ops that go to a host with ``module``, without .py."""
    built = modify_module(
        module_name=module,
        module_path=str(LIBRARY / f"{module}.py"),
        module_args={},
        templar=Templar(loader=DataLoader()),
        task_vars={"ansible_python_interpreter": "/usr/bin/python3"},
        module_compression="ZIP_DEFLATED",
        environment={},
    )
    # The program that is sent holds the modules as a zip archive in base64, the longest thing in it by far.
    text = max(re.findall(rb"[A-Za-z0-9+/=]+", built.b_module_data), key=len)
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(text))) as archive:
        names = [name for name in archive.namelist() if name.startswith(_OURS) and not name.endswith("__init__.py")]
    return sorted(name[len(_OURS) : -len(".py")] for name in names)


if __name__ == "__main__":
    init_plugin_loader()
    json.dump({module: bundled(module) for module in sys.argv[1:]}, sys.stdout)
