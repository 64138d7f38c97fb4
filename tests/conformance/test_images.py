"""The same images, judged by this project and by others: where they differ, images.md says who is right, and why."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.pack.decoder import Limits, Transformer
from ansible.module_utils.imagenet_ops.pack.image import LENIENT, STRICT, BadImageError, Recipe
from PIL import Image

from tests.fakes.images import animated_png, png, png_of

TABLE = Path(__file__).with_name("images.md")
RECIPE = Recipe(64, 95, "linear", 100_000_000)
WIDTH, HEIGHT = 16, 12


def png_with(data: bytes, *others: tuple[bytes, bytes]) -> bytes:
    """A PNG of grey pixels whose compressed data is ``data``, with ``others`` of its chunks before it."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 0)
    return png_of((b"IHDR", header), *others, (b"IDAT", data), (b"IEND", b""))


def written(image_format: str, **options: object) -> bytes:
    """What Pillow makes of a picture in this format."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(buffer, image_format, **options)
    return buffer.getvalue()


def images() -> dict[str, bytes]:
    """Return the images by their names in the table."""
    whole, progressive = written("JPEG"), written("JPEG", progressive=True)
    half = len(whole) // 2
    scan = whole.find(b"\xff\xda") + 14
    rows = b"".join(b"\0" + bytes(range(WIDTH)) for _ in range(HEIGHT))
    packed = zlib.compress(rows)
    wrong_sum = bytearray(packed)
    wrong_sum[-1] ^= 1
    return {
        "a JPEG": whole,
        "a progressive JPEG": progressive,
        "a JPEG with restart markers": written("JPEG", restart_marker_blocks=4),
        "a PNG": png(),
        "an animated PNG": animated_png(),
        "a JPEG, cut off": whole[:half],
        "a JPEG, half of the scan and an end": whole[:half] + b"\xff\xd9",
        "a JPEG, a byte of the scan and an end": whole[: scan + 1] + b"\xff\xd9",
        "a JPEG, nothing in the scan": whole[:scan] + b"\xff\xd9",
        "a JPEG, half of the scan is zeros": whole[:half] + bytes(len(whole) - half - 2) + b"\xff\xd9",
        "a JPEG, 100 bytes too many": whole[:-2] + bytes(100) + b"\xff\xd9",
        "a JPEG, text after the end": whole + b"text" * 100,
        "a JPEG, a restart marker is lost": written("JPEG", restart_marker_blocks=4).replace(b"\xff\xd3", b"\0\0", 1),
        "a progressive JPEG, the first scan and an end": progressive[: second_scan(progressive)] + b"\xff\xd9",
        "a JPEG without Huffman tables": without_tables(whole),
        "a PNG, cut off": png()[: len(png()) // 2],
        "a PNG, half of its pixels": png_with(zlib.compress(rows[: len(rows) // 2])),
        "a PNG, nothing in its data": png_with(b""),
        "a PNG, wrong sum of the pixels": png_with(bytes(wrong_sum)),
        "a PNG, too many pixels": png_with(zlib.compress(rows * 2)),
        "a PNG, wrong checksum of the data": png_with(packed).replace(b"IDAT" + packed, b"IDAT" + bytes(wrong_sum)),
        "a PNG without an end": png_with(packed)[:-12],
        "a GIF": written("GIF"),
        "a BMP": written("BMP"),
        "a TIFF": written("TIFF"),
        "a WebP": written("WEBP"),
        "nothing": b"",
        "zeros": bytes(5000),
    }


def second_scan(content: bytes) -> int:
    return content.find(b"\xff\xc4", content.find(b"\xff\xda"))


def without_tables(content: bytes) -> bytes:
    """As the frames of a motion JPEG are stored."""
    while (begin := content.find(b"\xff\xc4")) >= 0:
        content = content[:begin] + content[begin + 2 + int.from_bytes(content[begin + 2 : begin + 4], "big") :]
    return content


def ours(content: bytes, check: str) -> str:
    with Transformer(RECIPE._replace(jpeg_check=check), Limits()) as transformer:
        (outcome,) = transformer.transform_all(["x"], [content])
    return "bad" if isinstance(outcome, BadImageError) else "packed"


def of_pillow(content: bytes) -> str:
    """Whether Pillow opens it as a JPEG or PNG and reads all of its pixels."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            warnings.simplefilter("error")
            image.load()
    except (OSError, SyntaxError, ValueError, UserWarning):
        return "bad"
    return "packed"


def of_libjpeg(content: bytes) -> str:
    """What libjpeg-turbo's own program says: its exit status is 2 where it warns of damage; "" for what is no JPEG."""
    if not content.startswith(b"\xff\xd8"):
        return ""
    done = subprocess.run(["djpeg"], input=content, capture_output=True, check=False, timeout=60)
    return {0: "packed", 2: "warns"}.get(done.returncode, "bad")


def table() -> dict[str, list[str]]:
    rows = [line.strip("|\n").split("|") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows if name.strip() != "image"}


def test_every_verdict_is_that_of_the_table() -> None:
    found = {
        name: [ours(content, LENIENT), ours(content, STRICT), of_pillow(content)] for name, content in images().items()
    }
    assert found == {name: cells[:3] for name, cells in table().items()}


@pytest.mark.skipif(shutil.which("djpeg") is None, reason="djpeg (libjpeg-turbo) is not installed")
def test_every_verdict_of_libjpeg_is_that_of_the_table() -> None:
    found = {name: of_libjpeg(content) for name, content in images().items()}
    assert found == {name: cells[3] for name, cells in table().items()}
