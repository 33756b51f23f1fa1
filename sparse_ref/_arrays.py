"""The border: what a caller hands in becomes a checked Python int or a NumPy array, or is refused.

Every message is one sentence that names the argument, the requirement and what was got.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

LIMIT = 2**31  # positions, windows and counts are below this, so that int64 arithmetic is exact


def integer(
    name: str, value: object, low: int | None = 0, high: int = LIMIT - 1, *, also: str = ""
) -> int:
    """`value` as a Python int in [low, high]; `also` names what else the argument may be."""
    try:
        got = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        got = None
    if got is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer{also}, got {value!r}")
    low = -high if low is None else low
    if got < low:
        raise ValueError(f"{name} must be >= {low}{also}, got {got}")
    if got > high:
        limit = "below 2**31" if high == LIMIT - 1 else f"<= {high}"
        raise ValueError(f"{name} must be {limit}{also}, got {got}")
    return got


def array(name: str, value: object) -> NDArray[Any]:
    """`value` as a NumPy array: anything NumPy reads, or any framework that speaks DLPack."""
    if not isinstance(value, (np.ndarray, np.generic, Sequence)) and hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError):
            pass  # another device or a type DLPack cannot say: __array__ may still know how
    try:
        got = np.asarray(value)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        kind = type(value).__name__
        raise TypeError(f"{name} must be an array NumPy can read, got {kind}: {reason}") from error
    if got.dtype == object:
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}")
    return got


def integers(name: str, value: object, *, ndim: int | tuple[int, ...] = 1) -> Ints:
    """`value` as an int64 array; whole floats and booleans are refused, not rounded."""
    got = array(name, value)
    if got.size == 0:
        got = got.astype(np.int64)
    if got.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got {got.dtype}")
    dims = (ndim,) if isinstance(ndim, int) else ndim
    if got.ndim not in dims:
        wanted = " or ".join(str(d) for d in dims)
        raise ValueError(f"{name} must have {wanted} dimension(s), got shape {got.shape}")
    if got.size and (int(got.max()) >= LIMIT or int(got.min()) <= -LIMIT):
        worst = max(int(got.max()), -int(got.min()))
        raise ValueError(f"{name} must hold values below 2**31 in size, got {worst}")
    return np.ascontiguousarray(got, dtype=np.int64).reshape(got.shape)


def floats(name: str, value: object) -> NDArray[Any]:
    """`value` as an array of real floating-point numbers (float64, 32, 16, bfloat16, ...)."""
    got = array(name, value)
    if got.dtype.kind != "f" and got.dtype.name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        raise TypeError(f"{name} must hold real floating-point numbers, got {got.dtype}")
    return got
