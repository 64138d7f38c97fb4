"""State files as something else might leave them: edited, and with a checksum that fits."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from ansible.module_utils.imagenet_ops.core.files import canonical_json


def signed(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``value`` with the checksum that a state file has."""
    return {**value, "checksum": f"{zlib.crc32(canonical_json(value)):08x}"}


def edit(path: Path, **changes: Any) -> None:
    """Replace fields of a state file, as a program would that knows its form."""
    value = json.loads(path.read_text())
    del value["checksum"]
    path.write_text(json.dumps(signed({**value, **changes})))
