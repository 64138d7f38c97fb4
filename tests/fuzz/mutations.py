"""Seeded mutations of files: what a bad disk, a broken transfer or a careless program makes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence


def mutated(generator: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return ``data`` after one to three mutations; ``others`` are what it may be spliced with."""
    for _ in range(generator.choice((1, 1, 2, 3))):
        data = generator.choice(MUTATIONS)(generator, data, generator.choice(others))
    return data


def _place(generator: random.Random, data: bytes) -> int:
    """Return an offset, in every other case one of the first hundred: headers are there."""
    last = len(data) if generator.random() < 0.5 else min(len(data), 100)
    return generator.randint(0, last)


def flip_bits(generator: random.Random, data: bytes, _other: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8))):
        if found:
            found[min(_place(generator, data), len(found) - 1)] ^= 1 << generator.randrange(8)
    return bytes(found)


def truncate(generator: random.Random, data: bytes, _other: bytes) -> bytes:
    return data[: _place(generator, data)]


def splice(generator: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(generator, data)] + other[_place(generator, other) :]


def insert(generator: random.Random, data: bytes, other: bytes) -> bytes:
    begin = _place(generator, other)
    place = _place(generator, data)
    return data[:place] + other[begin : begin + generator.randrange(200)] + data[place:]


def repeat(generator: random.Random, data: bytes, _other: bytes) -> bytes:
    begin = _place(generator, data)
    end = begin + generator.randrange(400)
    return data[:end] + data[begin:end] + data[end:]


def zero_range(generator: random.Random, data: bytes, _other: bytes) -> bytes:
    begin = _place(generator, data)
    end = min(len(data), begin + generator.choice((4, 64, 512, 4096)))
    return data[:begin] + bytes(end - begin) + data[end:]


def set_number(generator: random.Random, data: bytes, _other: bytes) -> bytes:
    """Put a number there that programs seldom meet: nothing, all ones, the sign alone."""
    width = generator.choice((1, 2, 4, 8))
    number = generator.choice(
        (bytes(width), b"\xff" * width, b"\x80" + bytes(width - 1), b"\x7f" + b"\xff" * (width - 1))
    )
    begin = _place(generator, data)
    return data[:begin] + number + data[begin + width :]


MUTATIONS: tuple[Callable[[random.Random, bytes, bytes], bytes], ...] = (
    flip_bits,
    flip_bits,
    truncate,
    splice,
    insert,
    repeat,
    zero_range,
    set_number,
)
