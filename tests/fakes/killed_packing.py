"""Packs with the real engine, each time in a process of its own that kills itself at a given write, sync or rename.

Reads lines of JSON, [split (the arguments of SplitRequest), root, workers, settings (quality, and others of
PackRequest), number of the operation to be killed at or 0], and answers each with the status that the process ended
with. Checkpoints after each batch of 3 images, and shuffles a spool in buckets of some images, so that there is much to
interrupt.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ansible.module_utils

ROOT = Path(__file__).resolve().parent.parent.parent
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.imagenet_ops.archive.images import ArchiveRules  # noqa: E402
from ansible.module_utils.imagenet_ops.core import checkpoint  # noqa: E402
from ansible.module_utils.imagenet_ops.pack import spool, spool_source, tree_source  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.image import Recipe  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.pack import PackRequest, SplitRequest, pack_dataset  # noqa: E402

RULES = ArchiveRules("any", "class_archives")
OPERATIONS = ("writev", "fsync", "fdatasync", "ftruncate", "replace", "unlink")


def kill_at(number: int) -> None:
    """Let the ``number``-th operation be the last: half done if it is a write, else not done."""
    counter = itertools.count(1)

    def guarded(name: str) -> Any:
        operation = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            count = next(counter)
            if count == number:
                if name == "writev":
                    content = b"".join(arguments[1])
                    os.write(arguments[0], content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **keywords)

        return call

    for name in OPERATIONS:
        setattr(os, name, guarded(name))


def pack(split: dict[str, str], root: str, workers: int, settings: dict[str, Any]) -> None:
    recipe = Recipe(short_side_pixels=32, quality=95, resize_filter="linear", max_image_pixels=10_000_000)
    request = PackRequest(
        dataset="test",
        root=root,
        state_dir=f"{root}/.state",
        splits=[SplitRequest("train", split.get("source"), split.get("archive"), RULES)],
        recipe=recipe._replace(quality=settings.pop("quality", 95)),
        shards=3,
        on_bad_image="skip",
        workers=workers,
        bucket_bytes=8_000,
        **settings,
    )
    pack_dataset(request, check=False, warn=exit_if_unexpected)


def exit_if_unexpected(warning: str) -> None:
    """Exit with an error if the engine does not trust what a killed run left; other settings may be warned of."""
    if "other settings" not in warning:
        sys.exit(warning)


def main() -> None:
    checkpoint.JOURNAL_INTERVAL_SECONDS = 0.0
    tree_source._BATCH_IMAGES = spool._BATCH_IMAGES = 3
    # A kill leaves the page cache alone, and a real sync would wait for whatever else the machine writes.
    unwritten = os.open(__file__, os.O_RDONLY)
    vars(spool_source).update(
        JOURNAL_INTERVAL_SECONDS=0.0, _DEALT_AT_ONCE_BYTES=8_000, sync_filesystem=lambda _path: os.fsync(unwritten)
    )
    for line in sys.stdin:
        split, root, workers, settings, number = json.loads(line)
        child = os.fork()
        if child == 0:
            if workers == 1:
                # Not beside the writing, so that the n-th operation is the same one each time.
                checkpoint.SyncJournal.offer = checkpoint.SyncJournal.close  # type: ignore[method-assign]
            kill_at(number)
            pack(split, root, workers, settings)
            os._exit(0)
        sys.stdout.write(f"{os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
