"""moto's S3 with the failures that the real one has, and a small data set to put there."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.imagenet_ops.core.files import canonical_json
from botocore.exceptions import ClientError

CHANGING = (
    "put_object",
    "create_multipart_upload",
    "upload_part",
    "complete_multipart_upload",
    "abort_multipart_upload",
)


class Killed(BaseException):
    """The process ended here."""


def refused(operation: str, code: str, message: str = "No.") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


class FaultyClient:
    """Passes every call on to ``client``, counts it, and lets ``fault`` raise before or after it took effect."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fault: Callable[[str, dict[str, Any]], None] = lambda *_: None
        self.kill_at = -1
        self.kill_after_effect = False
        self.lock = threading.Lock()

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        if operation == "get_paginator":
            return self._get_paginator
        return lambda **request: self._call(operation, request)

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def _get_paginator(self, operation: str) -> Any:
        self.calls.append((operation, {}))
        return self.client.get_paginator(operation)

    def _call(self, operation: str, request: dict[str, Any]) -> Any:
        with self.lock:
            number = sum(name in CHANGING for name in self.names())
            dead = operation in CHANGING and 0 <= self.kill_at <= number
            if dead and not (self.kill_after_effect and number == self.kill_at):
                raise Killed
            self.calls.append((operation, request))
            self.fault(operation, request)
            if "Body" in request:
                request = {**request, "Body": bytes(request["Body"])}  # moto in the process takes nothing else
            answer = getattr(self.client, operation)(**request)
            if dead:
                raise Killed
            return answer


def write_dataset(root: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """Write ``files`` and the manifest that names them into ``root``; return all, by path below it."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    def entry(path: str) -> dict[str, Any]:
        return {"size_bytes": len(files[path]), "sha256": hashlib.sha256(files[path]).hexdigest()}

    archives = [path for path in sorted(files) if path.startswith("archives/")]
    manifest = {
        "format": 1,
        "dataset": "imagenet",
        "settings": {},
        "tools": {},
        "archives": [
            {"name": Path(path).name, "md5": hashlib.md5(files[path]).hexdigest(), **entry(path)} for path in archives
        ],
        "labels": {"classes": 1, **entry("labels.tsv")},
        "splits": {
            "train": {
                "records": 1,
                "classes": {},
                "converted": {},
                "bad_images": [],
                "files": {Path(path).name: entry(path) for path in files if path.startswith("recordio/")},
            }
        },
    }
    content = canonical_json(manifest)
    (root / "manifest.json").write_bytes(content)
    return {**files, "manifest.json": content}
