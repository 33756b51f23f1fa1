"""float16 to float32 and back, on the bits: NumPy's way takes as long as attention does.

Exponent and fraction move to their places in one shift; what differs is the offset of the exponent,
and where it is all ones or all zeros. Back is to the nearest, ties to even, subnormals kept; a NaN
stays a NaN. (bfloat16 needs no such care: `ml_dtypes` is quick.)
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import inner, kernel, settings
from .threads import run
from .vectors import claim

PIECE = 2**16  # numbers of a task
WORK = 8  # multiply-adds in the time of one number

ONE = 1 << 23  # of the exponent of a float32, among its bits
SHIFT = 112 * ONE  # between the exponents of the same number
TOP = 31 * ONE  # float16's highest exponent, shifted: infinite, or no number
TINY, LEAST = 113 * ONE, np.float32(2**-14)  # float16's least normal number
HUGE = 143 * ONE  # 2^16, the first power of two past float16
INFINITE = 255 * ONE
HALF = np.float32(0.5)


def widened(x: NDArray[Any]) -> NDArray[Any]:
    """A float16 array in float32, its axes in the same order of memory."""
    order = np.argsort([-abs(s) for s in x.strides], kind="stable")
    dense = np.ascontiguousarray(x.transpose(order))
    wide = np.empty(dense.shape, dtype=np.float32)
    run(
        widen, dense.view(np.uint16).reshape(-1), wide.view(np.uint32).reshape(-1),
        work=WORK * x.size,
    )  # fmt: skip
    return wide.transpose(np.argsort(order))


def rounded(x: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """The numbers of x in `dtype`, each the nearest; x itself if it has that type."""
    if x.dtype != np.float32 or not is_half(dtype):
        return x.astype(dtype, copy=False)
    bits, half = np.ascontiguousarray(x).view(np.uint32), np.empty(x.shape, dtype=np.float16)
    run(narrow, bits.reshape(-1), half.view(np.uint16).reshape(-1), work=WORK * x.size)
    return half


def is_half(dtype: Any) -> bool:
    """Whether a type is float16 as this machine stores it, and kernels are compiled."""
    return np.dtype(dtype) == np.float16 and not settings.DISABLE_JIT


@kernel
def widen(worker, counters, source, target):
    """Bits of float16 to those of float32."""
    while True:
        first = claim(counters, worker) * PIECE
        if first >= len(source):
            break
        x, y = source[first : first + PIECE], target[first : first + PIECE]
        for i in range(len(x)):
            y[i] = from_float16(x[i])


@kernel
def narrow(worker, counters, source, target):
    """Bits of float32 to those of float16."""
    while True:
        first = claim(counters, worker) * PIECE
        if first >= len(source):
            break
        x, y = source[first : first + PIECE], target[first : first + PIECE]
        for i in range(len(x)):
            y[i] = to_float16(x[i])


@inner
def from_float16(x):
    """One number's bits; to Numba a sum of 32 bits has 64, so each is cut."""
    size = np.uint32((x & 0x7FFF) << 13)
    bits = np.uint32(size + SHIFT)
    if size < ONE:  # a multiple of 2^-24: 2^-14 more has the place for it
        bits = np.float32(np.uint32(size + TINY).view(np.float32) - LEAST).view(np.uint32)
    if size >= TOP:
        bits = np.uint32(bits + SHIFT)
    return bits | np.uint32((x & 0x8000) << 16)


@inner
def to_float16(x):
    """One number's bits."""
    size = np.uint32(x & 0x7FFFFFFF)
    odd = np.uint32(size >> 13 & 1)
    bits = np.uint32(np.uint32(size - np.uint32(SHIFT - 0xFFF) + odd) >> 13)
    if size < TINY:  # the last bit of 0.5 + x is worth 2^-24, and rounded as it has to be
        bits = np.float32(size.view(np.float32) + HALF).view(np.uint32) & np.uint32(0x7FF)
    if size >= HUGE:
        bits = np.uint32(0x7E00 if size > INFINITE else 0x7C00)
    return np.uint16(bits | np.uint32(x >> 16 & 0x8000))
