"""Finds code that nothing uses, with vulture, for `make lint`. Code that only tests use is dead too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from vulture import Vulture

from tests.contract.tree import ROOT

FOLDERS = ("bench", "contrib", "lab", "library", "module_utils", "plugins")

# Names that are used although no code here says so, by the reason. * stands for anything.
USED_ELSEWHERE = {
    "Ansible finds these by their names": [
        "DOCUMENTATION",
        "EXAMPLES",
        "RETURN",
        "ActionModule",
        "CALLBACK_*",
        "FilterModule",
        "ModuleDocFragment",
        "async_val",
    ],
    "users copy contrib/ and call these": [
        "ImageStream",
        "RecordIODataset",
        "dali_index",
        "iterate",
        "load_state_dict",
        "set_epoch",
    ],
    "botocore's paginators call these operations of a client by their names": ["describe_*"],
    "http.server and socketserver call or read these": [
        "allow_reuse_address",
        "close_connection",
        "daemon_threads",
        "disable_nagle_algorithm",
        "do_*",
        "handle_error",
        "log_message",
        "protocol_version",
        "request_queue_size",
        "server_version",
        "sys_version",
    ],
    "FUSE passes these by their positions": ["datasync", "fh"],
    "io.BufferedReader calls this": ["readable"],
    "tarfile writes these into a header": ["gname", "mtime", "uname"],
    "moto reads these, or puts them into its answers": [
        "fast_restored",
        "full_snapshot_size_in_bytes",
        "key_manager",
        "lab_deleted",
        "random_public_ip",
        "reboot",
    ],
}


def unused_code(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Return what nothing in ``paths`` (files or folders) uses: its name, and its place and kind."""
    paths = list(paths)
    finder = Vulture()
    finder.scavenge([str(path) for path in paths])
    sources = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    keys = {key for source in sources for key in typed_keys(source.read_text(encoding="utf-8"))}
    return [
        (item.name, f"{item.filename}:{item.first_lineno}: {item.message}")
        for item in finder.get_unused_code()
        if item.typ != "variable" or item.name not in keys
    ]


def folders() -> list[Path]:
    """Return the folders that are checked."""
    return [ROOT / name for name in FOLDERS]


def is_used_elsewhere(name: str) -> bool:
    """Return whether ``name`` is one of `USED_ELSEWHERE`."""
    return any(fnmatch(name, pattern) for patterns in USED_ELSEWHERE.values() for pattern in patterns)


def typed_keys(source: str) -> set[str]:
    """Return the keys of the TypedDicts in a Python file: code uses these as texts, which vulture does not read."""
    return {
        field.target.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "TypedDict" for base in node.bases)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def main() -> int:
    """Print what nothing uses; return 1 if there is anything."""
    dead = [text for name, text in unused_code(folders()) if not is_used_elsewhere(name)]
    sys.stdout.writelines(f"{text}\n" for text in dead)
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
