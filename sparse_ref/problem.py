"""The border of attention: every argument checked once, with one sentence where it is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arrays import Floats, array, floats
from .heads import Problem
from .patterns import Pattern
from .patterns.frames import frames_of
from .patterns.pattern import checked
from .relative_bias import RelativeBias
from .selection import Selection


def problem(
    q: object,
    k: object,
    v: object,
    pattern: object,
    *,
    scale: object = None,
    softcap: object = None,
    bias: object = None,
    alibi_slopes: object = None,
    sink_logits: object = None,
    kv_lengths: object = None,
    kv_positions: object = None,
    q_start: object = None,
) -> Problem:
    """Check every argument of attention once; what comes out is consistent."""
    arrays = [floats(name, x) for name, x in (("q", q), ("k", k), ("v", v))]
    shapes = [x.shape for x in arrays]
    for name, shape in zip("qkv", shapes, strict=True):
        if len(shape) < 3:
            raise ValueError(f"{name} must have at least 3 axes (heads, length, size), got {shape}")
        if shape[:-3] != shapes[0][:-3]:
            raise ValueError(
                f"{name} must have q's leading axes {shapes[0][:-3]}, got {shape[:-3]}"
            )
    (h, m, d), (g, n, _), lead = shapes[0][-3:], shapes[1][-3:], shapes[0][:-3]
    if shapes[1][-1] != d or d < 1:
        raise ValueError(f"q and k must have one head size >= 1, got {d} and {shapes[1][-1]}")
    if shapes[2][-3:-1] != (g, n):
        raise ValueError(f"v must have k's heads and length {(g, n)}, got {shapes[2][-3:-1]}")
    if g < 1 or h % g:
        raise ValueError(f"k must have a number of heads that divides q's {h}, got {g}")
    b = math.prod(lead)
    if isinstance(pattern, Pattern) and pattern.batches not in (None, b):
        raise ValueError(f"pattern must be for a batch of {b}, got one for {pattern.batches}")
    if isinstance(pattern, Selection):
        pattern = pattern.fit(b, h, g, m)
    elif not hasattr(pattern, "row_csr"):
        checked(pattern)
    flat = [x.reshape(b, *x.shape[-3:]) for x in arrays]
    return Problem(
        q=flat[0],
        k=flat[1],
        v=flat[2],
        pattern=pattern,  # type: ignore[arg-type]
        leading_shape=lead,
        scale=d**-0.5 if scale is None else _number("scale", scale),
        softcap=None if softcap is None else _number("softcap", softcap, positive=True),
        bias=_bias(bias, (*lead, h, m, n)),
        alibi_slopes=_per_head("alibi_slopes", alibi_slopes, h),
        sink_logits=_per_head("sink_logits", sink_logits, h),
        frames=frames_of(
            pattern.visible if isinstance(pattern, Selection) else pattern,
            (*lead, m, n),
            q_start,
            kv_positions=kv_positions,
            kv_lengths=kv_lengths,
        ),
    )


def cotangent(name: str, value: object, given: Problem, shape: tuple[int, ...]) -> NDArray[Any]:
    """A gradient that comes from above, (b, *shape), in the caller's type."""
    got, wanted = floats(name, value), (*given.leading_shape, *shape)
    if got.shape != wanted:
        raise ValueError(f"{name} must have shape {wanted}, got {got.shape}")
    return got.reshape(given.q.shape[0], *shape)


def _number(name: str, value: object, *, positive: bool = False) -> float:
    got = array(name, value)
    if got.ndim or got.dtype.kind not in "fiu" or not np.isfinite(got):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if positive and got <= 0:
        raise ValueError(f"{name} must be > 0 or None, got {value!r}")
    return float(got)


def _per_head(name: str, value: object, h: int) -> Floats | None:
    if value is None:
        return None
    got = floats(name, value)
    if got.shape != (h,):
        raise ValueError(f"{name} must have one entry for each of {h} heads, got {got.shape}")
    return got.astype(np.float64)


def _bias(value: object, shape: tuple[int, ...]) -> Floats | RelativeBias | None:
    if value is None:
        return None
    if isinstance(value, RelativeBias):
        if value.table.ndim == 2 and value.table.shape[0] != shape[-3]:
            raise ValueError(f"bias must have {shape[-3]} heads, got {value.table.shape[0]}")
        return value
    got = floats("bias", value)
    fits = got.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(got.shape[::-1], shape[::-1], strict=False)
    )
    if not fits or not got.ndim:
        raise ValueError(f"bias must broadcast to {shape}, got {got.shape}")
    return got.astype(np.float64)
