"""The block lists of a pattern that carries its length: stored in the file, cut out in a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, numpy_helper

import sparse_ref as sr

from .graph import Graph, Symbol
from .layouts import Layout
from .tensors import block_tensors


class Stored(NamedTuple):
    """Lists of all positions that a pattern covers, and the initializers that hold them."""

    lists: Layout
    initializers: list[Any]


def stored(g: Graph, pattern: sr.Pattern, heads: int, size: int) -> Stored:
    """The lists of as many queries and keys as `pattern` covers, in blocks of `size`."""
    length = pattern.covers
    assert length is not None
    blocks = sr.to_blocks(pattern, length, length, block_size=size, heads=heads)
    of_head = blocks.head_layout
    distinct = np.arange(len(blocks.indptr), dtype=np.int32)
    tensors = block_tensors(replace(blocks, head_layout=distinct))
    tiles = tensors.pop("tile_masks")
    made = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    at = np.flatnonzero(tiles)
    if 5 * len(at) > tiles.size:
        made.append(numpy_helper.from_array(tiles, "tile_masks"))
        masks = g.symbol("tile_masks")
    else:  # few pairs in many tiles: four bytes for where, one for how often
        made.append(numpy_helper.from_array(at.astype(np.int32), "tile_pairs"))
        made.append(numpy_helper.from_array(tiles.ravel()[at], "tile_counts"))
        zero = numpy_helper.from_array(np.zeros(1, dtype=np.uint8))
        flat = g.op("ConstantOfShape", [tiles.size], value=zero)
        pairs, counts = g.symbol("tile_pairs"), g.symbol("tile_counts")
        masks = flat.op("ScatterElements", pairs, counts, axis=0).reshape(*tiles.shape)
    indices, count, ids = (g.symbol(name) for name in tensors)
    if len(distinct) > 1:
        indices, count, ids = (one.op("Gather", of_head, axis=1) for one in (indices, count, ids))
    return Stored(Layout(indices, count, ids, masks), made)


class Cut(NamedTuple):
    """Lists of the positions of one run, whose queries start where a block does."""

    lists: Layout
    query: Symbol
    before: Symbol  # rows of `query` in front of the first query that was asked


def cut(g: Graph, lists: Layout, size: int, q: Symbol, kv_len: Symbol, start: Symbol) -> Cut:
    """What a run of q [.., .., m, d] from position `start` (one element) sees of stored lists.

    Blocks are those of the whole sequence, so the queries are led by as many copies of the first
    as there are positions from the beginning of its block.
    """
    q_len = q.size(2)
    before = start % size * q_len.op("Min", 1)
    rows = (before + q_len + (size - 1)) // size
    first = start // size
    indices, count, ids, masks = lists
    indices, ids = (one.cut(first, first + rows, axis=2) for one in (indices, ids))
    columns = ((kv_len + (size - 1)) // size).cast(TensorProto.INT32)
    listed = (indices >= np.int32(0)) & (indices < columns.op("Max", np.int32(1)))
    count = listed.cast(TensorProto.INT32).op("ReduceSum", [3], keepdims=0)
    query = q.op("Gather", (g.range(before + q_len) - before).op("Max", 0), axis=2)
    return Cut(Layout(indices, count, ids, masks), query, before)
