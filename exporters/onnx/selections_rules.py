"""What selectors rank keys and blocks by, in a graph, some queries at a time.

The specs are the docstrings in `sparse_ref.selection`; a rule here has the name of its selector.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from onnx import helper

import sparse_ref as sr

from .graph import Graph, Symbol
from .predicates import evaluate


class Ranked(NamedTuple):
    """Scores [B, lists, rows, c]; the others broadcast to them."""

    scores: Symbol
    seen: Symbol
    forced: Symbol | None = None


class Scene:
    """What a rule looks at: the queries and keys that score, and who may see whom.

    Parameters
    ----------
    g : Graph
    q, k : Symbol
        [B, h, m, d] and [B, groups, n, d], of the graph's real type.
    heads, groups : int
        h and groups.
    visible : Pattern
    size : int
        Keys of a block; 1 for single keys.
    weights : Symbol, optional
        [B, m, h], of an indexer.
    """

    def __init__(
        self, g: Graph, q: Symbol, k: Symbol, heads: int, groups: int, visible: sr.Pattern,
        size: int, weights: Symbol | None = None,
    ) -> None:  # fmt: skip
        self.g, self.q, self.k, self.weights = g, q, k, weights
        self.heads, self.groups, self.visible, self.size = heads, groups, visible, size
        self.q_len, self.kv_len, self.depth = q.size(2), k.size(2), q.size(3)
        self.start = self.kv_len - self.q_len
        self.number = (self.kv_len + (size - 1)) / size  # of candidates
        self.columns = g.range(self.number * size)

    @cached_property
    def keys(self) -> Symbol:
        """All keys, their number filled up to whole blocks, [B, groups, d, c * size]."""
        if self.size == 1:
            return self.k.swap(0, 1, 3, 2)
        filled = self.k.op("Gather", self.columns.op("Min", self.kv_len - 1), axis=2)
        return filled.swap(0, 1, 3, 2)

    def some(self, rows: Symbol) -> Some:
        """The queries of these numbers."""
        return Some(self, rows)


class Some:
    """Some queries of a scene; `rows` [r]."""

    def __init__(self, scene: Scene, rows: Symbol):
        self.scene, self.g, self.rows = scene, scene.g, rows
        self.positions = (rows + scene.start).reshape(-1, 1)

    @cached_property
    def seen(self) -> Symbol:
        """Whether each may see each key, [r, keys], none past the last."""
        s = self.scene
        columns = s.columns.reshape(1, -1)
        inside = evaluate(self.g, s.visible, self.positions, columns) & (columns < s.kv_len)
        shape = self.g.vector(self.rows.size(0), columns.size(1))
        return self.g.op("Expand", inside, shape)

    @cached_property
    def block_seen(self) -> Symbol:
        """Whether each may see a key of each block, [r, blocks]."""
        return self.in_blocks(self.seen.int64, 2).op("ReduceMax", [2], keepdims=0) > 0

    def in_blocks(self, x: Symbol, rank: int) -> Symbol:
        """The last axis as [blocks, size]."""
        return x.reshape(*(x.size(axis) for axis in range(rank - 1)), -1, self.scene.size)

    def products(self, keys: Symbol) -> Symbol:
        """All q . k for keys [B, groups, d, c]: [B, h, r, c]; head i reads i // (h / groups)."""
        s, some = self.scene, self.scene.q.op("Gather", self.rows, axis=2)
        batch, r = some.size(0), self.rows.size(0)
        dots = some.reshape(batch, s.groups, -1, s.depth) @ keys
        return dots.reshape(batch, s.heads, r, keys.size(3))

    @cached_property
    def dots(self) -> Symbol:
        """The products with all keys."""
        return self.products(self.scene.keys)

    def mean(self) -> Symbol:
        """Of every block, over the keys that are seen, [B, h, r, blocks]."""
        seen = self.in_blocks(self.seen, 2)
        total = seen.where(self.in_blocks(self.dots, 4), 0.0).op("ReduceSum", [4], keepdims=0)
        count = seen.int64.op("ReduceSum", [2], keepdims=0).op("Max", 1)
        return total / count.op("CastLike", total)

    def max(self) -> Symbol:
        """The same, the greatest."""
        seen = self.in_blocks(self.seen, 2)
        return seen.where(self.in_blocks(self.dots, 4), -np.inf).op("ReduceMax", [4], keepdims=0)

    def nearest(self, local: int) -> Symbol:
        """A query's own block and the `local` - 1 before it, [r, blocks]."""
        own, blocks = self.positions // self.scene.size, self.g.range(self.scene.number)
        return self.g.op("And", blocks > own - local, blocks <= own)


def topk_keys(x: Some, count: int) -> Ranked:
    """Keys by q . k."""
    return Ranked(x.dots, x.seen)


def lightning_indexer(x: Some, count: int) -> Ranked:
    """Keys by the weighted sum over index heads of ReLU(q . k)."""
    assert x.scene.weights is not None
    weights = x.scene.weights.op("Gather", x.rows, axis=1).swap(0, 2, 1).op("Unsqueeze", [3])
    return Ranked((x.dots.op("Relu") * weights).op("ReduceSum", [1]), x.seen)


def topk_blocks(x: Some, count: int, block_size: int, pool: str) -> Ranked:
    """Blocks by the mean or the greatest q . k of their keys."""
    if pool not in ("mean", "max"):
        raise ValueError(f"pool must be one of mean, max, got {pool!r}")
    return Ranked(x.mean() if pool == "mean" else x.max(), x.block_seen)


def moba(x: Some, count: int, block_size: int) -> Ranked:
    """Blocks by their mean, the query's own first."""
    return Ranked(x.mean(), x.block_seen, x.nearest(1))


def msa(x: Some, count: int, block_size: int, local: int) -> Ranked:
    """Blocks by their greatest, the last `local` first."""
    return Ranked(x.max(), x.block_seen, x.nearest(local) if local else None)


def nsa_blocks(
    x: Some, count: int, block_size: int, window: int, stride: int, initial: int, local: int,
    scale: float | None,
) -> Ranked:  # fmt: skip
    """Blocks by their share of the softmax over compressed keys, summed over a group of heads."""
    g, s = x.g, x.scene
    whole = ((s.kv_len - window) / stride + 1).op("Max", 0) * (s.kv_len >= window).int64
    number = whole.op("Max", 1)
    first = g.range(number).reshape(-1, 1) * stride
    tokens = (first + g.range(window)).op("Min", s.kv_len - 1)  # [c, window]
    mean = s.k.op("Gather", tokens, axis=2).op("ReduceMean", [3], keepdims=0)
    factor = scale if scale is not None else s.depth.cast(_kind(g)).op("Pow", -0.5)
    scores = x.products(mean.swap(0, 1, 3, 2)) * factor
    seen = x.seen.int64.op("Gather", tokens, axis=1).op("ReduceMin", [2], keepdims=0) > 0
    seen = seen & (g.range(number) < whole)
    scores = seen.where(scores, -np.inf)
    peak = scores.op("ReduceMax", [3])
    weights = (scores - (peak > -np.inf).where(peak, 0.0)).op("Exp")
    total = weights.op("ReduceSum", [3])
    p = weights / (total > 0.0).where(total, 1.0)
    # how many stride-long pieces a window and a block share
    per_block, per_window = block_size // stride, window // stride
    shift = g.range(number).reshape(-1, 1) - g.range(s.number) * per_block
    shared = (shift + per_window).op("Min", (-shift) + per_block).op("Min", per_block)
    shared = shared.op("Min", per_window).op("Max", 0).cast(_kind(g))
    importance = (p @ shared).reshape(
        p.size(0), s.groups, s.heads // s.groups, x.rows.size(0), s.number
    )
    forced = g.range(s.number).reshape(1, -1) < initial
    forced = forced | x.nearest(local) if local else forced
    return Ranked(importance.op("ReduceSum", [2], keepdims=0), x.block_seen, forced)


def _kind(g: Graph) -> int:
    return int(helper.np_dtype_to_tensor_dtype(g.real))


RULES: dict[str, Callable[..., Ranked]] = {
    one.__name__: one for one in (topk_keys, topk_blocks, lightning_indexer, moba, msa, nsa_blocks)
}
