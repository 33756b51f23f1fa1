"""What a function body needs beside its inputs, from the block layout alone."""

from __future__ import annotations

from collections.abc import Sequence
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


class Sizes(NamedTuple):
    """Of one attention."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: str


def body_peak(
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
    >>> [body_peak(blocks, head_dim=64, body=body) >> 20 for body in BODIES]
    [16, 163]
    """
    heads = len(blocks.head_layout)
    sizes = Sizes(batch, heads, kv_heads or heads, head_dim, value_dim or head_dim, dtype)
    return peak_of_rows([blocks], sizes, body)


def peak_of_rows(rows: Sequence[Blocks], sizes: Sizes, body: str) -> int:
    """`body_peak` of the layouts of all batch rows, or of one that serves all."""
    b, h, g, d, e, dtype = sizes
    first = rows[0]
    alike = all(len(one.indptr) == 1 for one in rows)  # one list of blocks for all heads
    counts = [np.diff(one.indptr, axis=1)[[0] if alike else one.head_layout] for one in rows]
    shape = working_shape(np.concatenate(counts), body)
    batches = b if len(rows) == 1 else 1
    served, read = (batches * h, batches * g) if alike else (batches, batches)
    bq, bk = min(first.block_size[0], first.q_len), first.block_size[1]
    width = 8 if dtype == "float64" else 4
    cast = 0 if dtype in ("float32", "float64") else 2  # a half is gathered, then widened

    keys = shape.step * shape.longest * bk
    tokens = 8 * keys * read
    k, v = (keys * read * size * (width + cast) for size in (d, e))
    scores, bias = (keys * bq * of * width for of in (served, batches))
    part = served * bq * e * width
    made = shape.parts * part
    output = b * h * first.q_len * e * (width + cast)
    joined = shape.joined * part
    return max(
        made + tokens + max(k + scores + bias, 2 * scores + bias, scores + v),
        made * (2 if body == "loop" else 1),  # a Loop's outputs, then the same in one tensor
        made + 2 * joined * shape.pieces,
        made + (made + joined if joined else 0) + output,
    )


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
