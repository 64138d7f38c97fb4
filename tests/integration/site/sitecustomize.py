"""Python runs this when it starts where PYTHONPATH names this folder: ansible-playbook, and its modules on localhost.

Ansible sends a module as a zip of sources, and Python compiles each of them again in each run: half of the work of a
module that does little. Here what was compiled is kept, by the hash of its source.
"""

from __future__ import annotations

import _imp
import marshal
import os
import sys
import zipimport
from types import CodeType

FOLDER = os.environ["IMAGENET_OPS_COMPILED"]
_compile_source = vars(zipimport)["_compile_source"]


def compiled(pathname: str, source: bytes) -> CodeType:
    """Return what zipimport would compile; a traceback may name the file by where it was compiled first."""
    path = f"{FOLDER}/{_imp.source_hash(0, source).hex()}-{len(source)}.{sys.implementation.cache_tag}"
    try:
        with open(path, "rb") as file:
            kept: CodeType = marshal.loads(file.read())
            return kept
    except FileNotFoundError:
        pass
    code: CodeType = _compile_source(pathname, source)
    with open(f"{path}.{os.getpid()}", "wb") as file:
        file.write(marshal.dumps(code))
    os.replace(f"{path}.{os.getpid()}", path)
    return code


vars(zipimport)["_compile_source"] = compiled
