"""`python -m tests.zoo FOLDER`: packs every file below FOLDER under each policy, and compares the sums.

Each file must be a record, be named with the reason why it is none, or be left out by its name. FOLDER is only read:
the files get names that any list can hold, as links in a scratch folder. Those of one folder are one class.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

from ansible.module_utils.imagenet_ops.archive.images import has_image_suffix, is_desktop_file  # noqa: E402
from ansible.module_utils.imagenet_ops.core.errors import OpsError  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.decoder import DEFAULT_LIMITS  # noqa: E402
from ansible.module_utils.imagenet_ops.pack.image import Recipe  # noqa: E402

from tests.fakes.packing import pack, quarantined  # noqa: E402

_SHOWN = 10  # bad files
# The defaults of recordio_pack.
_RECIPE = Recipe(short_side_pixels=256, quality=95, resize_filter="linear", max_image_pixels=100_000_000)


class Row(NamedTuple):
    """What a policy made of the files; ``is_right`` is whether the sum is that of the files."""

    policy: str
    records: int
    named: int
    left_out: int
    seconds: float
    is_right: bool
    note: str


def main() -> int:
    """Pack and print a table; 1 if a sum is wrong."""
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else Path()
    if len(sys.argv) != 2 or not folder.is_dir():
        print("usage: make zoo FOLDER=/path/to/a/folder/with/files")
        return 2
    with tempfile.TemporaryDirectory(prefix="imagenet-ops-zoo-") as scratch:
        rows, reasons = zoo(folder, Path(scratch))
    print(f"{'policy':<12}{'records':>9}{'named':>8}{'left out':>10}{'seconds':>9}  sum")
    for row in rows:
        verdict = "right" if row.is_right else "WRONG"
        counts = f"{row.records:>9,}{row.named:>8,}{row.left_out:>10,}{row.seconds:>9.1f}"
        print(f"{row.policy:<12}{counts}  {verdict}{row.note and f': {row.note}'}")
    for path, reason in list(reasons.items())[:_SHOWN]:
        print(f"  {path}: {reason}")
    if len(reasons) > _SHOWN:
        print(f"  and {len(reasons) - _SHOWN} more")
    return int(not all(row.is_right for row in rows))


def zoo(folder: Path, scratch: Path) -> tuple[list[Row], dict[str, str]]:
    """Pack the files below ``folder`` by means of ``scratch``; return a row for each policy, and why files are bad."""
    tree, originals = _tree(folder, scratch)
    images = {name: path for name, path in originals.items() if has_image_suffix(name) and not is_desktop_file(name)}
    left_out = len(originals) - len(images)
    rows: list[Row] = []
    reasons: dict[str, str] = {}
    if not images:
        return [Row("any", 0, 0, left_out, 0.0, is_right=True, note="no file is an image by its name")], reasons
    for policy in ("skip", "quarantine"):
        root = scratch / policy
        began = time.monotonic()
        packed = pack(tree, root, policy, os.cpu_count() or 1, _RECIPE, DEFAULT_LIMITS)
        reasons = {images[name]: reason for name, reason in packed.bad.items()}
        is_right = packed.records + len(reasons) == len(images) and all(reasons.values())
        note = ""
        if policy == "quarantine":
            kept = quarantined(root)
            is_right = is_right and kept == set(packed.bad)
            note = f"{len(kept)} in quarantine"
        rows.append(Row(policy, packed.records, len(reasons), left_out, time.monotonic() - began, is_right, note))
    rows.append(_fail(tree, scratch / "fail", originals, reasons, rows[0]))
    return rows, reasons


def _fail(tree: Path, root: Path, originals: dict[str, str], reasons: dict[str, str], skipped: Row) -> Row:
    """Pack as a run that stops at a bad image; it has to name one of those that ``reasons`` has, if there are any."""
    began = time.monotonic()
    try:
        packed = pack(tree, root, "fail", os.cpu_count() or 1, _RECIPE, DEFAULT_LIMITS)
    except OpsError as error:
        text = error.what
        for name, path in originals.items():
            text = text.replace(str(tree / name), path)
        is_right = text.removeprefix("Image ") in reasons
        return Row("fail", 0, 1, skipped.left_out, time.monotonic() - began, is_right, f"{text}: {error.why}")
    return Row("fail", packed.records, 0, skipped.left_out, time.monotonic() - began, not reasons, "")


def _tree(folder: Path, scratch: Path) -> tuple[Path, dict[str, str]]:
    """Link every file below ``folder`` into a tree of classes; return it with the originals by their paths there."""
    tree = scratch / "images"
    originals: dict[str, str] = {}
    classes: Counter[str] = Counter()
    numbers: dict[str, int] = {}
    for parent, _, files in os.walk(folder):
        for file in sorted(files):
            path = os.path.join(parent, file)
            if not os.path.isfile(path):
                continue  # a socket, or a link to nothing
            class_name = f"c{numbers.setdefault(parent, len(numbers)):05d}"
            classes[class_name] += 1
            suffix = os.path.splitext(file)[1] if has_image_suffix(file) else ".other"
            desktop = "._" if is_desktop_file(file) else ""
            name = f"{class_name}/{desktop}{classes[class_name]:06d}{suffix}"
            (tree / class_name).mkdir(parents=True, exist_ok=True)
            (tree / name).symlink_to(os.path.abspath(path))
            originals[name] = os.fsencode(os.path.relpath(path, folder)).decode(errors="backslashreplace")
    return _without_empty(tree, originals), originals


def _without_empty(tree: Path, originals: dict[str, str]) -> Path:
    """Remove the classes that have no image by its name: packing refuses them, and rightly."""
    for class_folder in sorted(tree.glob("*")):
        names = [f"{class_folder.name}/{path.name}" for path in class_folder.iterdir()]
        if not any(has_image_suffix(name) and not is_desktop_file(name) for name in names if name in originals):
            for path in class_folder.iterdir():
                path.unlink()
            class_folder.rmdir()
    return tree


if __name__ == "__main__":
    sys.exit(main())
