"""What kernels take: named tuples of flat arrays and numbers, one type for every memory layout."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Floats, Ints
from sparse_ref.heads import Problem
from sparse_ref.relative_bias import RelativeBias

from ._jit import inner
from .halves import is_half, widened

LOG2E = 1.4426950408889634


class Tensors(NamedTuple):
    """Flat q, k, v with their strides in elements (batch, head, length); where results go."""

    q: NDArray[Any]
    k: NDArray[Any]
    v: NDArray[Any]
    q_strides: Ints
    k_strides: Ints
    v_strides: Ints
    out: NDArray[Any]  # (b, h, m, e)
    lse: NDArray[Any]  # (b, h, m)
    sizes: Ints  # query heads, key/value heads, m, n, d, e


class Scores(NamedTuple):
    """How a score is made of a dot product; an empty array is an option that is off."""

    factor: float  # of q: the scale, in units of log 2 (with a softcap, of softcap / 2)
    softcap: float  # in units of log 2; 0 is off
    slopes: Floats
    sinks: Floats  # (h,), in units of log 2; -inf is none
    bias: Floats
    bias_strides: Ints  # of batch, head, query, slot; for a table (0, head, 0, 1)
    bias_left: int  # where distance 0 stands in a table; -1: the bias is no table
    bias_width: int


class Slots(NamedTuple):
    """Batch rows that share a layout, and where in their cache its keys are.

    Key j of a layout is in slot first[i] + j of batch row batch[i], at position position[j]; it
    exists if j < length[i].
    """

    batch: Ints
    first: Ints
    length: Ints
    position: Ints
    q_start: int


def tensors(given: Problem, out: NDArray[Any], lse: NDArray[Any]) -> Tensors:
    """The arrays of a problem, converted only where the kernels cannot read them."""
    (_, h, m, d), (_, g, n, e) = given.q.shape, given.v.shape
    (q, q_strides), (k, k_strides), (v, v_strides) = (
        flat(x, out.dtype) for x in (given.q, given.k, given.v)
    )
    sizes = np.array([h, g, m, n, d, e])
    return Tensors(q, k, v, q_strides, k_strides, v_strides, out, lse, sizes)


def scores(given: Problem) -> Scores:
    """The options of a problem."""
    h, none = given.q.shape[1], np.zeros(0)
    factor, cap = given.scale * LOG2E, 0.0
    if given.softcap is not None:
        factor, cap = 2 * factor / given.softcap, given.softcap * LOG2E
    bias, strides, left, table_width = none, np.zeros(4, dtype=np.int64), -1, 1
    if isinstance(given.bias, RelativeBias):
        bias, left, table_width = given.bias.table, given.bias.left, given.bias.table.shape[-1]
        strides = np.array([0, table_width if bias.ndim == 2 else 0, 0, 1])
        bias = bias.ravel()
    elif given.bias is not None:
        lead = given.leading_shape
        shape = (1,) * (len(lead) + 3 - given.bias.ndim) + given.bias.shape
        bias = given.bias.reshape(shape)
        if any(size > 1 for size in shape[:-3]):
            bias = np.broadcast_to(bias, (*lead, *shape[-3:]))
        bias = bias.reshape(math.prod(bias.shape[:-3]), *shape[-3:])
        bias = np.require(bias, requirements=["C", "W"])
        step = [s // bias.itemsize for s in bias.strides]
        strides = np.where(np.array(bias.shape) > 1, step, 0)
        bias = bias.ravel()
    sinks = np.full(h, -np.inf) if given.sink_logits is None else given.sink_logits * LOG2E
    slopes = none if given.alibi_slopes is None else given.alibi_slopes
    return Scores(factor, cap, slopes, sinks, bias, strides, left, table_width)


@inner
def added(how, batch, head, i, slot, distance):
    """What bias and ALiBi add to the score of query i and the key in `slot`."""
    total, step = 0.0, how.bias_strides
    if how.bias_left >= 0:
        place = min(max(how.bias_left + distance, 0), how.bias_width - 1)
        total += how.bias[head * step[1] + place]
    elif len(how.bias):
        total += how.bias[batch * step[0] + head * step[1] + i * step[2] + slot * step[3]]
    if len(how.slopes):
        total -= how.slopes[head] * abs(distance)
    return total


def flat(x: NDArray[Any], dtype: Any) -> tuple[NDArray[Any], Ints]:
    """The memory of a (b, heads, length, size) array as one read-only row, and its strides."""
    x = converted(x, np.dtype(dtype))
    usual = all(s >= 0 and s % x.itemsize == 0 for s in x.strides) and x.flags.aligned
    if not usual or (x.shape[-1] > 1 and x.strides[-1] != x.itemsize):
        x = np.ascontiguousarray(x)
    strides = np.where(np.array(x.shape) > 1, x.strides, 0) // x.itemsize
    extent = 1 + int(sum((size - 1) * s for size, s in zip(x.shape, strides, strict=True)))
    extent = extent if x.size else 0
    flat = np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,), writeable=False)
    return flat, strides[:3].astype(np.int64)


def converted(x: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in `dtype`, itself where it has that type."""
    return widened(x) if is_half(x.dtype) and dtype == np.float32 else x.astype(dtype, copy=False)
