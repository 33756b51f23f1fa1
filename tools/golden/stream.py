"""Integers that any language can draw again: a counter, an id and splitmix64 (golden/SPEC.md)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparse_ref.patterns.explicit import mix


class Stream:
    """Word i of an id is `mix(mix(fnv1a(id)) + i)`; an integer is `low + word % (high - low)`.

    It stands in for the generator that the probes draw from.

    >>> Stream("an id").integers(0, 10, (5,)).tolist()
    [0, 9, 5, 9, 2]
    """

    def __init__(self, id: str) -> None:
        self.base = mix(np.array([fnv1a(id.encode())], np.uint64))
        self.used = 0

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Any:
        """The next integers of the stream, in row-major order."""
        count = math.prod(shape)
        words = mix(self.base + np.arange(self.used, self.used + count).astype(np.uint64))
        self.used += count
        return low + (words % np.uint64(high - low)).astype(np.int64).reshape(shape)


def fnv1a(text: bytes) -> int:
    """FNV-1a of 64 bits (Fowler, Noll, Vo).

    >>> hex(fnv1a(b"a"))
    '0xaf63dc4c8601ec8c'
    """
    word = 0xCBF29CE484222325
    for byte in text:
        word = (word ^ byte) * 0x100000001B3 % 2**64
    return word
