"""What a function body needs beside its inputs, from the block layout alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref import Blocks

BODIES = ("loop", "gather")


class Shape(NamedTuple):
    """How a body works through a layout: see `parts.py`."""

    parts: int  # in all
    step: int  # parts at a time
    longest: int  # blocks of a part
    joined: int  # lists of several parts
    pieces: int  # parts of the longest list


def estimated_peak(
    blocks: Blocks,
    *,
    head_dim: int,
    value_dim: int | None = None,
    kv_heads: int | None = None,
    batch: int = 1,
    dtype: Any = "float32",
    body: str = "loop",
) -> int:
    """Bytes that one run of a body needs at its worst moment, inputs excluded, output included.

    Parameters
    ----------
    blocks : Blocks
        The layout at the lengths in question, for all heads.
    head_dim, value_dim, kv_heads, batch
        Lengths of query, key and value; default: value_dim = head_dim, kv_heads = heads.
    dtype : "float32", "float64", "float16" or "bfloat16"
    body : "loop" or "gather"

    The tensors are counted, not what an allocator adds. ONNX Runtime's adds up to as much again in
    the first run; from the second on it also sets aside one more block for all tensors of a run,
    unless the session has `enable_mem_pattern = False`.

    Examples
    --------
    >>> from sparse_ref import SlidingWindow, to_blocks
    >>> blocks = to_blocks(SlidingWindow(256, 256), 4096, 4096, heads=8)
    >>> [estimated_peak(blocks, head_dim=64, body=body) >> 20 for body in BODIES]
    [16, 163]
    """
    layouts = np.diff(blocks.indptr, axis=1)
    alike = len(layouts) == 1  # one list of blocks for all heads
    shape = working_shape(layouts if alike else layouts[blocks.head_layout], body)
    heads, (bq, bk) = len(blocks.head_layout), blocks.block_size
    bq = min(bq, blocks.q_len)
    value_dim = value_dim or head_dim
    served, read = (batch * heads, batch * (kv_heads or heads)) if alike else (batch, batch)
    width = 8 if dtype == "float64" else 4
    cast = 0 if dtype in ("float32", "float64") else 2  # a half is gathered, then widened

    keys = shape.step * shape.longest * bk
    tokens = 8 * keys * read
    k, v = (keys * read * e * (width + cast) for e in (head_dim, value_dim))
    scores, bias = (keys * bq * of * width for of in (served, batch))
    part = served * bq * value_dim * width
    made = shape.parts * part
    output = batch * heads * blocks.q_len * value_dim * (width + cast)
    joined = shape.joined * part
    return max(
        made + tokens + max(k + scores + bias, 2 * scores + bias, scores + v),
        made * (2 if body == "loop" else 1),  # a Loop's outputs, then the same in one tensor
        made + 2 * joined * shape.pieces,
        made + (made + joined if joined else 0) + output,
    )


def check_peak(max_bytes: int, blocks: Blocks, *, body: str = "loop", **sizes: Any) -> int:
    """`estimated_peak(blocks, body=body, **sizes)`, which must not be above `max_bytes`.

    Raises
    ------
    ValueError
        If it is.

    Examples
    --------
    >>> from sparse_ref import Full, to_blocks
    >>> check_peak(9, to_blocks(Full(), 64, 99), head_dim=512, body="gather")
    Traceback (most recent call last):
    ...
    ValueError: max_bytes must be >= 459776 for the gather body at 64 queries and 99 keys, got 9
    """
    needed = estimated_peak(blocks, body=body, **sizes)
    if needed > max_bytes:
        raise ValueError(
            f"max_bytes must be >= {needed} for the {body} body at {blocks.q_len} queries and "
            f"{blocks.kv_len} keys, got {max_bytes}"
        )
    return needed


def working_shape(counts: NDArray[np.int64], body: str) -> Shape:
    """Parts of the lists [heads, rows] with these numbers of blocks, as the body cuts them."""
    if body not in BODIES:
        raise ValueError(f"body must be one of {', '.join(BODIES)}, got {body!r}")
    lists = counts.reshape(-1)
    most = max(8, -(-2 * int(lists.sum()) // max(1, lists.size)))
    if body == "gather":
        lengths = -(-np.arange(1, 33) * most // 32)
        cost = (_parts(lists, lengths) * (lengths + 1)).sum(axis=0)
        most = int(lengths[cost == cost.min()].max())
    number = _parts(lists, np.array([most]))[:, 0]
    parts, joined, pieces = int(number.sum()), int((number > 1).sum()), int(number.max(initial=1))
    if body == "gather":
        return Shape(parts, parts, most, joined, pieces)
    step = len(counts)
    longest = max(1, min(most, int(lists.max(initial=0))))
    return Shape(-(-parts // step) * step, step, longest, joined, pieces)


def _parts(lists: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    number: NDArray[np.int64] = np.maximum(1, -(-lists[:, None] // lengths))
    return number
