"""One image: what its first bytes say, whether it is bad and why, and what becomes of it in a record.

With the linear filter the result is, byte for byte, that of im2rec.py in mxnet 1.9.1: decoded to three channels with
the EXIF orientation applied, the short side resized (small images are enlarged), encoded as JPEG. tests/conformance
compares. A bad image is a `BadImageError` with a reason for people; im2rec.py packs a truncated one silently.
"""

from __future__ import annotations

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
_LONE_MARKERS = frozenset(range(0xD0, 0xD9)) | {0x01}  # table B.1: markers without a length


class BadImageError(Exception):
    """An image that cannot be packed; its text is the reason."""


class Recipe(NamedTuple):
    """What is done to each image.

    ``short_side_pixels`` 0 keeps the size, and without ``enlarge`` smaller images keep theirs. ``resize_filter`` is a
    key of `FILTERS`. ``quality`` is JPEG's, 1 to 100. ``channels`` is 3 for colour or 1 for grey. With ``pass_through``
    nothing is done to the bytes. An image that says, or would get, more than ``max_image_pixels`` pixels is bad.
    """

    short_side_pixels: int
    quality: int
    resize_filter: str
    max_image_pixels: int
    enlarge: bool = True
    channels: int = 3
    pass_through: bool = False

    def settings(self) -> dict[str, int | str | bool]:
        """Return what the bytes of a record depend on, as the manifest names it.

        OpenCV turns and mirrors an image as its EXIF orientation says, and the JPEG that it writes has no EXIF any
        more; bytes that are passed through keep theirs, for the reader to apply.
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
    """What an image says of itself: size in pixels; ``converted`` is "cmyk", "png", "grey", or "" for other JPEGs."""

    width: int
    height: int
    converted: str


def inspect(data: bytes) -> Header:
    """Return the header of the JPEG or PNG in ``data``; raises BadImageError where it is neither or ends too soon."""
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
    position = _frame_header(data)
    height = data[position + 3] << 8 | data[position + 4]
    width = data[position + 5] << 8 | data[position + 6]
    return Header(width, height, {1: "grey", 4: "cmyk"}.get(data[position + 7], ""))


def _frame_header(data: bytes) -> int:
    """Walk the markers of a JPEG (ITU-T T.81, B.1 and B.2.2) and return where the frame header's length stands."""
    position = 2
    while True:
        position = data.find(b"\xff", position)
        while data[position : position + 1] == b"\xff":
            position += 1
        if position < 1 or position + 9 > len(data):
            raise BadImageError("truncated: it ends within the header")
        marker = data[position]
        position += 1
        if marker in _FRAME_HEADERS:
            return position
        if marker == _START_OF_SCAN:
            raise BadImageError("damaged: it has a scan but no frame header")
        if marker not in _LONE_MARKERS:
            position += data[position] << 8 | data[position + 1]


def resized(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    """Return width and height resized in im2rec.py's way: the short side as asked, the long side rounded down."""
    side = recipe.short_side_pixels
    if not side or recipe.pass_through or (min(width, height) < side and not recipe.enlarge):
        return width, height
    if height > width:
        return side, height * side // width
    return width * side // height, side


def transform(data: bytes, recipe: Recipe) -> tuple[bytes, str]:
    """Return what ``recipe`` makes of the image in ``data``, and the `Header.converted` of the original.

    Nothing is converted by passing through, so that is empty then. Raises BadImageError. Threads may call it side by
    side: OpenCV works without Python's lock.
    """
    header = inspect(data)
    _check_size(header.width, header.height, recipe)
    if recipe.pass_through:
        if cut := _cut_short(data):
            raise BadImageError(cut)
        return data, ""
    try:
        return _decode_resize_encode(data, header, recipe), header.converted
    except cv2.error as error:
        reason = " ".join(error.err.split())  # on one line, as the manifest and the journals want it
        raise BadImageError(f"damaged: OpenCV says {reason}") from error


def _decode_resize_encode(data: bytes, header: Header, recipe: Recipe) -> bytes:
    mode = cv2.IMREAD_GRAYSCALE if recipe.channels == 1 else cv2.IMREAD_COLOR
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    if pixels is None:
        raise BadImageError(_cut_short(data) or "damaged: it does not decode")
    height, width = pixels.shape[:2]
    # Turned by its EXIF orientation it may lie on its side.
    if (width, height) not in ((header.width, header.height), (header.height, header.width)):
        said = f"{header.width} x {header.height}"
        raise BadImageError(f"damaged: its header says {said} pixels, its data has {width} x {height}")
    size = resized(width, height, recipe)
    if size != (width, height):
        pixels = cv2.resize(pixels, size, interpolation=FILTERS[recipe.resize_filter])
    return cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, recipe.quality))[1].tobytes()


def _check_size(width: int, height: int, recipe: Recipe) -> None:
    if not width or not height:
        raise BadImageError(f"damaged: its header says {width} x {height} pixels")
    result = resized(width, height, recipe)
    for (columns, rows), when in (((width, height), "its header says"), (result, "resized it would have")):
        if columns * rows > recipe.max_image_pixels:
            raise BadImageError(f"too large: {when} {columns} x {rows} pixels, the limit is {recipe.max_image_pixels}")
    if max(result) > MAX_SIDE_PIXELS:
        raise BadImageError(f"too long: {result[0]} x {result[1]} pixels, a JPEG's side has at most {MAX_SIDE_PIXELS}")


def _cut_short(data: bytes) -> str:
    """Return how the image in ``data`` ends too soon, or "" where its end is there."""
    # A thumbnail has an end of its own, before the picture's frame header.
    if data.startswith(_JPEG_BEGIN) and data.rfind(_JPEG_END, _frame_header(data)) < 0:
        return "truncated: the end of the JPEG is missing"
    if data.startswith(_PNG_BEGIN) and data.rfind(b"IEND") < 0:
        return "truncated: the end of the PNG is missing"
    return ""
