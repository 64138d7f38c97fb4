"""One image: its header, whether and why it is bad, and its transformation for the record.

With the linear filter the result is, byte for byte, that of im2rec.py in mxnet 1.9.1: decoded to three channels with
the EXIF orientation applied, the short side resized (small images are enlarged), encoded as JPEG. tests/conformance
compares. A bad image is a `BadImageError` with a readable reason; im2rec.py packs a truncated one silently.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

FILTERS = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
MAX_SIDE_PIXELS = 65500  # JPEG_MAX_DIMENSION of libjpeg's jmorecfg.h

_JPEG_BEGIN = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = 0xDA
# ITU-T T.81, table B.1: the frame headers are FFC0 to FFCF without the tables DHT (C4), JPG (C8) and DAC (CC).
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEGMENT_BEGIN = struct.Struct(">BBH")  # B.1.1.4: FF and the marker, and the length from here on
_FRAME = struct.Struct(">HHB")  # B.2.2: height, width and number of components, after the length and the precision
_KIND_OF_COMPONENTS = {1: "grey", 4: "cmyk"}
_LONE_MARKERS = frozenset(range(0xD0, 0xD9)) | {0x01}  # table B.1: markers without a length


class BadImageError(Exception):
    """An image that cannot be packed; its text is the reason, which the manifest holds: no letter of it may change."""


class Recipe(NamedTuple):
    """How each image is transformed.

    ``short_side_pixels`` 0 keeps the size, and without ``enlarge`` smaller images keep theirs. ``resize_filter`` is a
    key of `FILTERS`. ``quality`` is JPEG's, 1 to 100. ``channels`` is 3 for colour or 1 for grey. With ``pass_through``
    the bytes are not changed. An image with more than ``max_image_pixels`` pixels, before or after resizing, is bad.
    """

    short_side_pixels: int
    quality: int
    resize_filter: str
    max_image_pixels: int
    enlarge: bool = True
    channels: int = 3
    pass_through: bool = False

    def settings(self) -> dict[str, int | str | bool]:
        """Return what the bytes of a record depend on, under the names of the manifest.

        OpenCV rotates and mirrors an image by its EXIF orientation and writes a JPEG without EXIF; bytes that are
        passed through keep theirs, for the reader to apply.
        """
        common: dict[str, int | str | bool] = {
            "pass_through": self.pass_through,
            "max_image_pixels": self.max_image_pixels,
        }
        if self.pass_through:
            return {**common, "exif_orientation": "kept"}
        return {
            **common,
            "short_side_pixels": self.short_side_pixels,
            "quality": self.quality,
            "resize_filter": self.resize_filter,
            "enlarge": self.enlarge,
            "channels": self.channels,
            "exif_orientation": "applied",
        }


class Header(NamedTuple):
    """The header of an image: size in pixels; ``converted`` is "cmyk", "png", "grey", or "" for other JPEGs."""

    width: int
    height: int
    converted: str


class _ResizePlan(NamedTuple):
    """The header of an image, and its width and height after resizing."""

    header: Header
    size: tuple[int, int]


def inspect(data: bytes) -> Header:
    """Return the header of the JPEG or PNG in ``data``. Raises BadImageError if it is neither or is truncated."""
    if data.startswith(_JPEG_BEGIN):
        return _inspect_jpeg(data)
    if data.startswith(_PNG_BEGIN):
        # ISO/IEC 15948, 11.2.2: signature, chunk length and type, then width and height.
        if len(data) < 24:
            raise BadImageError("truncated: it ends within the header")
        return Header(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), "png")
    if not data:
        raise BadImageError("zero bytes long")
    if not data.strip(b"\0"):
        raise BadImageError("not an image: nothing but zeros")
    raise BadImageError(f"not an image: neither JPEG nor PNG, it begins with {data[:12]!r}")


def _inspect_jpeg(data: bytes) -> Header:
    height, width, components = _FRAME.unpack_from(data, _frame_header(data) + 3)
    return Header(width, height, _KIND_OF_COMPONENTS.get(components, ""))


def _frame_header(data: bytes) -> int:
    """Walk the markers of a JPEG (ITU-T T.81, B.1 and B.2.2) and return the offset of the frame header's length."""
    position = 2
    last = len(data) - _SEGMENT_BEGIN.size - _FRAME.size - 1
    while 0 <= position <= last:
        prefix, marker, length = _SEGMENT_BEGIN.unpack_from(data, position)
        if prefix != 0xFF:
            position = data.find(b"\xff", position)
        elif marker in _FRAME_HEADERS:
            return position + 2
        elif marker == _START_OF_SCAN:
            raise BadImageError("damaged: it has a scan but no frame header")
        elif marker == 0xFF:  # B.1.1.2: any number of them may stand before a marker
            position += 1
        else:
            position += 2 if marker in _LONE_MARKERS else 2 + length
    raise BadImageError("truncated: it ends within the header")


def resized(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    """Return width and height resized in im2rec.py's way: the short side as configured, the long side rounded down."""
    side = recipe.short_side_pixels
    if not side or recipe.pass_through or (min(width, height) < side and not recipe.enlarge):
        return width, height
    if height > width:
        return side, height * side // width
    return width * side // height, side


def transform(data: bytes, recipe: Recipe) -> tuple[bytes | memoryview, str]:
    """Return the image in ``data`` transformed by ``recipe``, and the `Header.converted` of the original.

    It is empty with ``pass_through``, which converts nothing. Raises BadImageError. Threads may call it concurrently:
    OpenCV releases the GIL.
    """
    (result,) = transform_all([data], recipe)
    if isinstance(result, BadImageError):
        raise result
    return result


def transform_all(images: Sequence[bytes], recipe: Recipe) -> list[tuple[bytes | memoryview, str] | BadImageError]:
    """Return the result of `transform` for each of ``images``, or the error that it would raise.

    All headers are parsed first. The codec evicts this program from the processor's caches, and reloading it for each
    header would take one percent of the time of packing.
    """
    plans = [_plan(data, recipe) for data in images]
    return [_apply(data, plan, recipe) for data, plan in zip(images, plans)]


def _plan(data: bytes, recipe: Recipe) -> _ResizePlan | BadImageError:
    try:
        header = inspect(data)
        return _ResizePlan(header, _checked_size(header.width, header.height, recipe))
    except BadImageError as error:
        return error


def _apply(
    data: bytes, plan: _ResizePlan | BadImageError, recipe: Recipe
) -> tuple[bytes | memoryview, str] | BadImageError:
    if isinstance(plan, BadImageError):
        return plan
    if recipe.pass_through:
        cut = _truncation(data)
        return BadImageError(cut) if cut else (data, "")
    try:
        return _decode_resize_encode(data, plan, recipe), plan.header.converted
    except BadImageError as error:
        return error
    except cv2.error as error:
        reason = " ".join(error.err.split())  # one line, as in the manifest and the checkpoints
        return BadImageError(f"damaged: OpenCV says {reason}")


def _decode_resize_encode(data: bytes, plan: _ResizePlan, recipe: Recipe) -> memoryview:
    header, size = plan
    mode = cv2.IMREAD_GRAYSCALE if recipe.channels == 1 else cv2.IMREAD_COLOR
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    if pixels is None:
        raise BadImageError(_truncation(data) or "damaged: it does not decode")
    height, width = pixels.shape[:2]
    if (width, height) != (header.width, header.height):
        if (height, width) != (header.width, header.height):
            said = f"{header.width} x {header.height}"
            raise BadImageError(f"damaged: its header says {said} pixels, its data has {width} x {height}")
        size = size[1], size[0]  # its EXIF orientation rotated it by 90 degrees
    if size != (width, height):
        pixels = cv2.resize(pixels, size, interpolation=FILTERS[recipe.resize_filter])
    return cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, recipe.quality))[1].data


def _checked_size(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    """Return `resized`, if the image has pixels and not too many of them."""
    if not width or not height:
        raise BadImageError(f"damaged: its header says {width} x {height} pixels")
    result = resized(width, height, recipe)
    limit = recipe.max_image_pixels
    if width * height > limit:
        raise BadImageError(f"too large: its header says {width} x {height} pixels, the limit is {limit}")
    columns, rows = result
    if columns * rows > limit:
        raise BadImageError(f"too large: resized it would have {columns} x {rows} pixels, the limit is {limit}")
    if columns > MAX_SIDE_PIXELS or rows > MAX_SIDE_PIXELS:
        raise BadImageError(f"too long: {columns} x {rows} pixels, a JPEG's side has at most {MAX_SIDE_PIXELS}")
    return result


def _truncation(data: bytes) -> str:
    """Return how the image in ``data`` is truncated, or "" if it is not."""
    # A thumbnail has an end marker of its own, before the frame header of the picture.
    if data.startswith(_JPEG_BEGIN) and data.rfind(_JPEG_END, _frame_header(data)) < 0:
        return "truncated: the end of the JPEG is missing"
    if data.startswith(_PNG_BEGIN) and data.rfind(b"IEND") < 0:
        return "truncated: the end of the PNG is missing"
    return ""
