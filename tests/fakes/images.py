"""Images made on the spot: JPEGs of any size, grey, CMYK, rotated by EXIF, PNGs, and whole trees of them."""

from __future__ import annotations

import base64
import gzip
import io
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

# 12 x 9 pixels, cyan-black left, magenta-yellow right. OpenCV cannot write CMYK, so this one was made with Pillow.
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwANCQoLCggNCwoLDg4NDxMgFRMSEhMnHB4XIC4pMTAuKS0sMzpKPjM2RjcsLUBXQUZMTlJTUjI+WmFaUGBKUVJP"
    "/8AAFAgACQAMBEMRAE0RAFkRAEsRAP/EABgAAQEBAQEAAAAAAAAAAAAAAAcGBAIF/8QAIRAAAQEHBQAAAAAAAAAAAAAAAAQBAgMGNoOzBTM1grL/2gAO"
    "BEMATQBZAEsAAD8Ar55pFdbyOnegcyn7eWnkSBWaC5jeEWNtNCMsxlMwuTzSK63kdIzQOZT9vLQakCs0FzG8aY200IyzGUzH/9k="
)


def pixels(width: int, height: int, seed: int) -> Picture:
    """Return a picture with soft gradients and some noise, always the same for the same arguments."""
    generator = np.random.default_rng(seed)
    corners = generator.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    smooth = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.int16)
    noise = generator.integers(-12, 13, (height, width, 1), dtype=np.int16)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def encode(suffix: str, picture: npt.NDArray[Any], *options: int) -> bytes:
    encoded: bytes = cv2.imencode(suffix, picture, options)[1].tobytes()
    return encoded


def jpeg(width: int = 48, height: int = 36, seed: int = 0) -> bytes:
    return encode(".jpg", pixels(width, height, seed), cv2.IMWRITE_JPEG_QUALITY, 90)


def grey_jpeg(width: int = 48, height: int = 36, seed: int = 0) -> bytes:
    return encode(".jpg", pixels(width, height, seed)[:, :, 0])


def png(width: int = 48, height: int = 36, seed: int = 0) -> bytes:
    return encode(".png", pixels(width, height, seed))


def rotated_jpeg(orientation: int, width: int = 48, height: int = 36, seed: int = 0) -> bytes:
    """Return a JPEG whose EXIF orientation (1 to 8) says that it must be turned or mirrored to be looked at."""
    directory = struct.pack("<HHHII", 1, 0x0112, 3, 1, orientation) + bytes(4)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory
    plain = jpeg(width, height, seed)
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]


def huge_png(width: int, height: int) -> bytes:
    """Return a PNG of some hundred bytes that says that it has ``width`` x ``height`` pixels: a decompression bomb."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of ``chunks``, type and data of each, with their lengths and checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def animated_png(width: int = 16, height: int = 12, frame: bytes | None = None, note: bytes = b"") -> bytes:
    """Return a PNG with two frames, the default image grey on the left and the second one white.

    ``frame`` is the data of its second frame, if not that of a sound one; ``note`` is a text in the file.
    """
    grey = zlib.compress((b"\0" + bytes(range(3 * width))) * height)
    white = zlib.compress((b"\0" + b"\xff" * 3 * width) * height)
    control = struct.pack(">IIIIHHBB", width, height, 0, 0, 1, 10, 0, 0)
    return png_of(
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"tEXt", b"Comment\0" + note),
        (b"acTL", struct.pack(">II", 2, 0)),
        (b"fcTL", struct.pack(">I", 0) + control),
        (b"IDAT", grey),
        (b"fcTL", struct.pack(">I", 1) + control),
        (b"fdAT", struct.pack(">I", 2) + white if frame is None else frame),
        (b"IEND", b""),
    )


def with_comment(data: bytes, text: bytes) -> bytes:
    """Return the JPEG ``data`` with a comment."""
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + data[2:]


def write_tree(root: Path, images: Mapping[str, bytes]) -> Path:
    """Write ``images`` (contents by path) below ``root`` and return it."""
    for name, content in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def mixed_images(classes: int = 5, images_per_class: int = 8) -> dict[str, bytes]:
    """Return a small set with all that ImageNet has: sizes above and below 256, grey, CMYK, PNG named .JPEG, EXIF."""
    images = {}
    for class_number in range(classes):
        for number in range(images_per_class):
            seed = 100 * class_number + number
            name = f"n{class_number:08d}/n{class_number:08d}_{7 * number + 1}.JPEG"
            images[name] = jpeg(40 + 37 * (seed % 11), 40 + 41 * (seed % 7), seed)
    names = list(images)
    images[names[1]] = png(60, 50, 1)
    images[names[3]] = CMYK_JPEG
    images[names[4]] = grey_jpeg(300, 270, 4)
    for orientation in range(1, 9):
        images[names[4 + 2 * orientation]] = rotated_jpeg(orientation, 61, 47, orientation)
    return images


def write_class_archives(path: Path, images: Mapping[str, bytes], seed: int = 0) -> Path:
    """Write ``images`` as an archive with an archive for each class, classes and images in no particular order."""
    generator = random.Random(seed)
    classes: dict[str, list[tuple[str, bytes]]] = {}
    for name, content in generator.sample(sorted(images.items()), len(images)):
        class_name, file_name = name.split("/")
        classes.setdefault(class_name, []).append((file_name, content))
    path.write_bytes(tar([(f"{name}.tar", tar(members)) for name, members in classes.items()]))
    return path


def tar(entries: Iterable[tuple[str, bytes]], folders: bool = False) -> bytes:
    """Return a tar archive with ``entries``, contents by name, and if wanted their ``folders``, as tar writes those."""
    buffer = io.BytesIO()
    written: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in entries:
            parents = {str(parent) for parent in list(PurePosixPath(name).parents)[:-1]} if folders else set()
            for parent in sorted(parents - written):
                directory = tarfile.TarInfo(parent)
                directory.type = tarfile.DIRTYPE
                archive.addfile(directory)
            written |= parents
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_imagenette(path: Path) -> dict[str, dict[str, bytes]]:
    """Write a small archive in the shape of Imagenette's: both splits in one .tgz, as a Mac packs it.

    Return what the trees of "train" and "val" must be.
    """
    images = list(mixed_images(classes=4, images_per_class=6).items())
    splits = {
        "train": {name: content for number, (name, content) in enumerate(images) if number % 3},
        # As in the real one, the images of ImageNet's validation lie among those of its training.
        "val": {
            f"{name.split('/')[0]}/ILSVRC2012_val_{number:08d}.JPEG": content
            for number, (name, content) in enumerate(images)
            if number % 3 == 0
        },
    }
    entries = [("imagenette2/.DS_Store", b"\0"), ("imagenette2/noisy_imagenette.csv", b"path,label\n")]
    for split, tree in splits.items():
        entries += [(f"imagenette2/{split}/.DS_Store", b"\0")]
        entries += [(f"imagenette2/{split}/{name}", content) for name, content in tree.items()]
    path.write_bytes(gzip.compress(tar(entries, folders=True), mtime=0))
    return splits


def zip_of_tar(path: Path) -> Path:
    """Write the tar at ``path`` once more, as a zip beside it; return its path."""
    target = path.with_suffix(".zip")
    with tarfile.open(path) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
        for member in archive:
            content = archive.extractfile(member)
            name = f"{member.name}/" if content is None else member.name
            zipped.writestr(name, b"" if content is None else content.read())
    return target
