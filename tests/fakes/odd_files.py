"""Files with the names of images, as programs seldom meet them: sound ones of many formats, and mutations of them."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
from PIL import Image, features

from tests.fakes.images import CMYK_JPEG, animated_png, encode, pixels, png_of, rotated_jpeg, tar
from tests.fuzz.mutations import mutated

CLASSES = 10
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPEG", ".PNG")


def sound_images() -> dict[str, bytes]:
    """Return an image, or a few, of each format that OpenCV reads, by a name for people."""
    colour, large = pixels(40, 30, 1), pixels(420, 300, 2)
    found = {
        "jpeg": encode(".jpg", colour),
        "jpeg large": encode(".jpg", large),
        "jpeg progressive": encode(".jpg", large, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "jpeg restart": encode(".jpg", large, cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
        "jpeg grey": encode(".jpg", colour[:, :, 0]),
        "jpeg cmyk": CMYK_JPEG,
        "jpeg rotated": rotated_jpeg(6),
        "png": encode(".png", colour),
        "png large": encode(".png", large),
        "png grey": encode(".png", colour[:, :, 0]),
        "png 16 bit": encode(".png", colour.astype("uint16") * 257),
        "png palette": _pillow("PNG", colours="P"),
        "png transparent": _pillow("PNG", colours="RGBA"),
        "png animated": animated_png(),
        "webp": encode(".webp", colour),
        "tiff": encode(".tiff", colour),
        "bmp": encode(".bmp", colour),
        "ppm": encode(".ppm", colour),
        "pgm": encode(".pgm", colour[:, :, 0]),
        "hdr": encode(".hdr", colour.astype("float32")),
        "sun raster": encode(".ras", colour),
        "gif": encode(".gif", colour),
        "jpeg cmyk progressive": _pillow("JPEG", colours="CMYK", progressive=True),
        "gif animated": _pillow("GIF", frames=3),
    }
    for feature, name, form in (("jpg_2000", "jpeg 2000", "JPEG2000"), ("avif", "avif", "AVIF")):
        if features.check(feature):
            found[name] = _pillow(form)
    if features.check("webp"):
        found["webp animated"] = _pillow("WEBP", frames=3)
    return found


def _pillow(form: str, colours: str = "RGB", frames: int = 1, **options: Any) -> bytes:
    pictures = [Image.fromarray(pixels(40, 30, seed)).convert(colours) for seed in range(frames)]
    if frames > 1:
        options = {**options, "save_all": True, "append_images": pictures[1:]}
    buffer = io.BytesIO()
    pictures[0].save(buffer, form, **options)
    return buffer.getvalue()


def _inserted_chunk(generator: random.Random, data: bytes, _others: list[bytes]) -> bytes:
    """Return a JPEG or PNG with one more segment or chunk, whose length and checksum are right."""
    content = generator.randbytes(generator.choice((0, 1, 7, 26, 300)))
    if data.startswith(b"\xff\xd8"):
        marker = generator.choice((0xC0, 0xC2, 0xC4, 0xC9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE))
        return data[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + data[2:]
    if data.startswith(b"\x89PNG"):
        kinds = (b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"juNk")
        place = generator.choice((33, len(data) - 12))  # after the header, or before the end
        return data[:place] + png_of((generator.choice(kinds), content))[8:] + data[place:]
    return data + content


def odd_files(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield ``count`` files with their paths, ``<class>/<name>``: a tenth of them sound, the others mutated."""
    generator = random.Random(seed)
    sound = sound_images()
    names, contents = list(sound), list(sound.values())
    for number in range(count):
        name = names[number % len(names)]
        data = sound[name]
        if number >= len(names) and generator.random() < 0.9:
            change = _inserted_chunk if generator.random() < 0.2 else mutated
            data = change(generator, data, contents)
        stem = f"{number:05d}-{name.replace(' ', '-')}"
        yield f"c{number % CLASSES}/{stem}{generator.choice(_SUFFIXES)}", data


def write_odd_files(folder: Path, count: int, seed: int = 0) -> tuple[Path, Path]:
    """Write a tree of `odd_files` and a tar of the same; return both."""
    files = sorted(odd_files(count, seed))
    for path, content in files:
        (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / path).write_bytes(content)
    (folder / "files.tar").write_bytes(tar(files))
    return folder / "tree", folder / "files.tar"
