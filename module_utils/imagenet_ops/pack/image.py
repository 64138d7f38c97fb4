"""One image: its header, whether and why it is bad, and its transformation for the record.

With the linear filter the result is, byte for byte, that of im2rec.py in mxnet 1.9.1: decoded to three channels with
the EXIF orientation applied, the short side resized (small images are enlarged), encoded as JPEG. tests/conformance
compares. A bad image is a `BadImageError` with a readable reason; im2rec.py packs a truncated one silently.

Some files crash decoders. What the bytes of an image show before it is decoded is judged here: it is bad, or it has
a `Plan`, which says whether its decoding needs a process of its own (`decoder`).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Union

import cv2
import numpy as np

FILTERS = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
MAX_SIDE_PIXELS = 65500  # JPEG_MAX_DIMENSION of libjpeg's jmorecfg.h

DEFAULT_JPEG_SCANS = 500  # NVIDIA DALI's limit; encoders write about ten
LENIENT, STRICT = "lenient", "strict"

_JPEG_BEGIN = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = 0xDA
# ITU-T T.81, table B.1: the frame headers are FFC0 to FFCF without the tables DHT (C4), JPG (C8) and DAC (CC).
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_USUAL_FRAMES = _SEQUENTIAL | {0xC2}  # baseline, extended and progressive, with Huffman codes
_SCAN = frozenset({_START_OF_SCAN})
_FRAME_OR_SCAN = _FRAME_HEADERS | _SCAN
_SEGMENT_BEGIN = struct.Struct(">BBH")  # B.1.1.4: FF and the marker, and the length from here on
_FRAME = struct.Struct(">HHB")  # B.2.2: height, width and number of components, after the length and the precision
_KIND_OF_COMPONENTS = {1: "grey", 4: "cmyk"}
_LONE_MARKERS = frozenset(range(0xD0, 0xD9)) | {0x01}  # table B.1: markers without a length
# A decoder goes through all pixels for each scan; more than this takes seconds.
_USUAL_WORK_PIXELS = 200_000_000
_NO_FILL_BYTE = re.compile(b"[^\xff]")
# Segments of a JPEG and chunks of a PNG are counted here, outside of the process that has limits. Encoders write some
# hundreds, and of a large PNG some ten thousands.
_MOST_PIECES = 100_000
_CHUNK_BEGIN = struct.Struct(">I4s")  # ISO/IEC 15948, 5.3: length of the data, and type; a CRC follows the data
_CRC_BYTES = 4
# PNG, third edition, 11.3.6: the chunks of an animation, and the least bytes in each.
_ANIMATION_CHUNKS = {b"acTL": 8, b"fcTL": 26, b"fdAT": 4}


class BadImageError(Exception):
    """An image that cannot be packed; its text is the reason, which the manifest holds: no letter of it may change."""


class Recipe(NamedTuple):
    """How each image is transformed.

    ``short_side_pixels`` 0 keeps the size, and without ``enlarge`` smaller images keep theirs. ``resize_filter`` is a
    key of `FILTERS`. ``quality`` is JPEG's, 1 to 100. ``channels`` is 3 for colour or 1 for grey. With ``pass_through``
    the bytes are not changed. An image with more than ``max_image_pixels`` pixels, before or after resizing, is bad,
    and so is a JPEG with more than ``max_jpeg_scans`` scans. With ``jpeg_check`` STRICT a JPEG that the decoder calls
    corrupt is bad, with LENIENT one of which it says that a part is missing.
    """

    short_side_pixels: int
    quality: int
    resize_filter: str
    max_image_pixels: int
    enlarge: bool = True
    channels: int = 3
    pass_through: bool = False
    max_jpeg_scans: int = DEFAULT_JPEG_SCANS
    jpeg_check: str = LENIENT

    def settings(self) -> dict[str, int | str | bool]:
        """Return what the bytes of a record depend on, under the names of the manifest.

        OpenCV rotates and mirrors an image by its EXIF orientation and writes a JPEG without EXIF; bytes that are
        passed through keep theirs, for the reader to apply. Settings that manifests of earlier versions lack are there
        only where they are not the default, so that the same data set keeps its identity.
        """
        common: dict[str, int | str | bool] = {
            "pass_through": self.pass_through,
            "max_image_pixels": self.max_image_pixels,
        }
        if self.max_jpeg_scans != DEFAULT_JPEG_SCANS:
            common["max_jpeg_scans"] = self.max_jpeg_scans
        if self.jpeg_check != LENIENT:
            common["jpeg_check"] = self.jpeg_check
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


class Plan(NamedTuple):
    """The header of an image, and its width and height after resizing.

    ``is_usual`` is whether it is of the kind that decoders meet all the time, and takes no more than a second or two;
    another one may bring them to a fault, or keep them busy.
    """

    header: Header
    size: tuple[int, int]
    is_usual: bool


class OutOfMemoryError(BadImageError):
    """There was not enough memory to decode the image."""


Outcome = Union["tuple[bytes | memoryview, str]", BadImageError]


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
    """Return the offset of the length of a JPEG's frame header (ITU-T T.81, B.2.2)."""
    marker, offset = _find_marker(data, 2, _FRAME_OR_SCAN)
    if marker == _START_OF_SCAN:
        raise BadImageError("damaged: it has a scan but no frame header")
    if not marker:
        raise BadImageError("truncated: it ends within the header")
    return offset


def _find_marker(data: bytes, position: int, wanted: frozenset[int]) -> tuple[int, int]:
    """Walk the markers of a JPEG (ITU-T T.81, B.1) from ``position`` to one of ``wanted``; return it with its offset.

    The offset is that of its length. Where there is none of them, with room for a frame header, the marker is 0.
    """
    last = len(data) - _SEGMENT_BEGIN.size - _FRAME.size - 1
    for _ in range(_MOST_PIECES):
        if not 0 <= position <= last:
            return 0, 0
        prefix, marker, length = _SEGMENT_BEGIN.unpack_from(data, position)
        if prefix != 0xFF:
            position = data.find(b"\xff", position)
        elif marker in wanted:
            return marker, position + 2
        elif marker == 0xFF:  # B.1.1.2: any number of them may stand before a marker
            following = _NO_FILL_BYTE.search(data, position)
            position = following.start() - 1 if following else len(data)
        else:
            position += 2 if marker in _LONE_MARKERS else 2 + length
    raise BadImageError(f"damaged: more than {_MOST_PIECES} segments come before its picture")


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


def transform_all(images: Sequence[bytes], recipe: Recipe) -> list[Outcome]:
    """Return the result of `transform` for each of ``images``, or the error that it would raise."""
    return [apply(data, plan, recipe) for data, plan in zip(images, plan_all(images, recipe))]


def plan_all(images: Sequence[bytes], recipe: Recipe) -> list[Plan | BadImageError]:
    """Return what to do with each of ``images``, or why it is bad, by its header.

    All headers are parsed before the first image is decoded. The codec evicts this program from the processor's caches,
    and reloading it for each header would take one percent of the time of packing.
    """
    return [_plan(data, recipe) for data in images]


def _plan(data: bytes, recipe: Recipe) -> Plan | BadImageError:
    try:
        header = inspect(data)
        size = _checked_size(header.width, header.height, recipe)
        return Plan(header, size, _is_usual(data, header, recipe) or recipe.pass_through)
    except BadImageError as error:
        return error


def _is_usual(data: bytes, header: Header, recipe: Recipe) -> bool:
    """Return `Plan.is_usual`. Raises BadImageError for a JPEG with too many scans, or with nothing in its scan."""
    if not data.startswith(_JPEG_BEGIN):
        return _is_sound_png(data)
    frame = _frame_header(data)
    marker, scan = _find_marker(data, frame + int.from_bytes(data[frame : frame + 2], "big"), _SCAN)
    if not marker:
        return False
    begin = scan + int.from_bytes(data[scan : scan + 2], "big")
    if data.startswith(_JPEG_END, begin):
        raise BadImageError("damaged: its scan is empty")
    scans = 1
    # B.2.3: a scan begins with the number of its components. With all of them in one, a sequential JPEG has no other.
    if data[frame - 1] not in _SEQUENTIAL or data[scan + 2] != data[frame + 7]:
        scans += _scans_after(data, begin)
    if scans > recipe.max_jpeg_scans:
        raise BadImageError(f"too many scans: it has {scans}, the limit is {recipe.max_jpeg_scans}")
    return data[frame - 1] in _USUAL_FRAMES and scans * header.width * header.height <= _USUAL_WORK_PIXELS


def _scans_after(data: bytes, begin: int) -> int:
    """Return how many scans of a JPEG begin after ``begin``. No marker stands in the data of a scan (B.1.1.5)."""
    found = np.frombuffer(data, np.uint8, offset=begin)
    markers = found[1:][found[:-1] == 0xFF]
    ends = np.flatnonzero(markers == _JPEG_END[1])
    return int(np.count_nonzero(markers[: ends[0] if ends.size else None] == _START_OF_SCAN))


def apply(data: bytes, plan: Plan | BadImageError, recipe: Recipe) -> Outcome:
    """Return the image in ``data`` transformed as `plan_all` planned, or why it is bad."""
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
        return _opencv_error(error)


def decode_only(data: bytes) -> Outcome:
    """Return nothing as the record of the image in ``data``, or why it does not decode."""
    try:
        pixels = cv2.imdecode(np.frombuffer(_still(data), np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        return _opencv_error(error)
    return BadImageError("damaged: it does not decode") if pixels is None else (b"", "")


def _opencv_error(error: cv2.error) -> BadImageError:
    # One line, as in the manifest and the checkpoints. An exception that is not OpenCV's own has no fields.
    reason = " ".join(getattr(error, "err", str(error)).split())
    is_memory = getattr(error, "code", 0) == cv2.Error.StsNoMem or "bad_alloc" in reason
    return (OutOfMemoryError if is_memory else BadImageError)(f"damaged: OpenCV says {reason}")


def _decode_resize_encode(data: bytes, plan: Plan, recipe: Recipe) -> memoryview:
    header, size, _ = plan
    mode = cv2.IMREAD_GRAYSCALE if recipe.channels == 1 else cv2.IMREAD_COLOR
    pixels = cv2.imdecode(np.frombuffer(_still(data), np.uint8), mode)
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


def _still(data: bytes) -> bytes:
    """Return what of ``data`` is one picture: a PNG without its animation, and without what follows its end.

    OpenCV gives the second picture of an animated PNG, and has crashed on those whose frames are damaged.
    """
    if not data.startswith(_PNG_BEGIN):
        return data
    return _PNG_BEGIN + b"".join(
        data[begin:end] for kind, begin, end in _png_chunks(data) if kind not in _ANIMATION_CHUNKS
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, begin and end of each chunk of a PNG up to its IEND; the last may reach beyond ``data``."""
    position = len(_PNG_BEGIN)
    for _ in range(_MOST_PIECES):
        if position + _CHUNK_BEGIN.size > len(data):
            return
        length, kind = _CHUNK_BEGIN.unpack_from(data, position)
        end = position + _CHUNK_BEGIN.size + length + _CRC_BYTES
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise BadImageError(f"damaged: more than {_MOST_PIECES} chunks come before its end")


def _is_sound_png(data: bytes) -> bool:
    """Return whether a PNG has an end, the right checksum in each chunk, and no animation.

    Raises BadImageError for a damaged animation.
    """
    kind = b""
    is_sound = True
    for kind, begin, end in _png_chunks(data):
        checksum = zlib.crc32(memoryview(data)[begin + 4 : end - _CRC_BYTES])
        is_right = data[end - _CRC_BYTES : end] == checksum.to_bytes(_CRC_BYTES, "big")
        is_sound = is_sound and is_right and kind not in _ANIMATION_CHUNKS
        if kind in _ANIMATION_CHUNKS and not (is_right and end - begin >= 12 + _ANIMATION_CHUNKS[kind]):
            raise BadImageError(f"damaged: its chunk {kind.decode()} is {'too short' if is_right else 'damaged'}")
    return is_sound and kind == b"IEND"


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
