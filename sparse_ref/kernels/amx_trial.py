"""A trial of the AMX tiles, for a process of its own: products of whole numbers, which are exact.

In any order of summation they are what NumPy says, to the bit. Two threads multiply at once, many
times: tiles have to survive a switch of threads.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import amx
from ._jit import kernel
from .amx_tiles import DEPTH, ROWS, BFloat16, Float16, multiply, pairs
from .vectors import width

KINDS: dict[str, type[BFloat16 | Float16]] = {"bfloat16": BFloat16, "float16": Float16}
SIZES = [(1, 1), (2, 1), (1, 2), (3, 3), (4, 2), (5, 4)]  # in tiles
TIMES = 100


@kernel
def product(packed, c, a, row, b, pair, high, wide, times):
    """C = A B; B is a panel of float32, `pair` has room for its pairs."""
    for _ in range(times):
        c[:] = np.nan
        pairs(packed, b, 0, wide * DEPTH, pair, 0)  # type: ignore[call-arg]
        multiply(packed, c, 0, a, 0, row, pair, 0, high, wide)


@kernel
def lanes(array):
    """The width of a panel."""
    return width(array)


def main(name: str) -> None:
    """Say "passed", or end with `amx.WRONG`."""
    if amx.permission() or not right(KINDS[name]):
        sys.exit(amx.WRONG)
    sys.stdout.write(amx.PASSED)


def right(kind: type[BFloat16 | Float16]) -> bool:
    """Whether products are what NumPy says."""
    with ThreadPoolExecutor(2) as pool:
        return all(pool.map(lambda seed: _right(kind, seed), (1, 2)))


def _right(kind: type[BFloat16 | Float16], seed: int) -> bool:
    rng, w = np.random.default_rng(seed), lanes(np.zeros(1, dtype=np.float32))
    empty = np.zeros(0, dtype=np.uint16)
    packed = kind(empty, empty, np.zeros(0, np.uint8), np.zeros(1, np.int64), 1.0, 0, 0)
    for high, wide in SIZES:
        rows, depth, row = high * ROWS, wide * DEPTH, wide * DEPTH + 32 * int(rng.integers(2))
        a = rng.integers(-9, 10, (rows, row)).astype(np.float32)
        b = rng.integers(-9, 10, (depth, w)).astype(np.float32)
        a[3, 7], b[5, 2] = np.nan, np.inf
        if issubclass(kind, Float16):
            a[4], b[:, 3] = np.ldexp(a[4], -24), np.ldexp(b[:, 3], 3)  # subnormal numbers count
        c, pair = np.zeros(rows * w, np.float32), np.zeros(depth // 2 * w, np.uint32)
        product(packed, c, _halves(kind, a), row, b.ravel(), pair, high, wide, TIMES)
        with np.errstate(invalid="ignore"):
            want = a[:, :depth].astype(np.float64) @ b.astype(np.float64)
        if not np.array_equal(c.reshape(rows, w), want.astype(np.float32), equal_nan=True):
            return False
    return True


def _halves(kind: type[BFloat16 | Float16], a: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of numbers that half precision holds."""
    if issubclass(kind, Float16):
        return a.astype(np.float16).view(np.uint16).ravel()
    return (a.view(np.uint32) >> np.uint32(16)).astype(np.uint16).ravel()
