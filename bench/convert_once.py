"""Packs a tree of images with another tool, in .venv-judges: `python -m bench.convert_once TOOL TREE FOLDER`.

TOOL is litdata (`litdata.optimize` with two workers) or mds (MDSWriter). The images are passed through, and the files
are synced at the end. Prints the seconds from after the imports to there.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

WORKERS = 2
LIMIT_BYTES = 64 << 20


def read(item: tuple[str, int]) -> dict[str, Any]:
    """Return the sample of a path and a label; LitData's workers import it by its name."""
    path, label = item
    return {"x": Path(path).read_bytes(), "y": label}


def main() -> None:
    """Convert as the arguments say."""
    tool, tree, folder = sys.argv[1:]
    peer: Any = importlib.import_module({"litdata": "litdata", "mds": "streaming"}[tool])
    began = time.monotonic()
    classes = sorted(path for path in Path(tree).iterdir())
    items = [(str(path), label) for label, found in enumerate(classes) for path in sorted(found.iterdir())]
    if tool == "litdata":
        peer.optimize(read, items, output_dir=folder, chunk_bytes=LIMIT_BYTES, num_workers=WORKERS)
    else:
        # Its cheapest encoding of an image: the file's bytes as they are, without a look at them.
        columns = {"x": "bytes", "y": "int"}
        with peer.MDSWriter(out=folder, columns=columns, hashes=["sha256"], size_limit=LIMIT_BYTES) as writer:
            for item in items:
                writer.write(read(item))
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    print(time.monotonic() - began)


if __name__ == "__main__":
    main()
