"""The CRC32 of a whole from those of its parts, so that no byte is summed twice."""

from __future__ import annotations

import functools

# The polynomial of CRC-32 (ISO/IEC 3309) as zlib has it: reflected, the highest power in the lowest bit.
_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def combine_crc32(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC32 of bytes with CRC32 ``first`` and then ``second_bytes`` more with CRC32 ``second``."""
    return _multiply(_shift(second_bytes), first) ^ second


@functools.lru_cache(maxsize=8)
def _shift(size_bytes: int) -> int:
    """Return what multiplies a CRC32 when so many bytes come behind it: x to the power of their bits."""
    power, square = _ONE, _ONE >> 8  # x^0, and x^8 for one byte
    while size_bytes:
        if size_bytes & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        size_bytes >>= 1
    return power


def _multiply(one: int, other: int) -> int:
    """Return the product of two polynomials over GF(2), modulo that of the CRC."""
    product = 0
    while one:
        if one & _ONE:
            product ^= other
        one = (one << 1) & 0xFFFFFFFF
        other = (other >> 1) ^ (_POLYNOMIAL if other & 1 else 0)
    return product
