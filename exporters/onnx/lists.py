"""Block lists and tiles inside the function bodies: checked, and what is gathered and hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx

from .graph import Graph, Symbol
from .sizes import Sizes

if TYPE_CHECKING:
    from .parts import Parts

IN_RANGE = (
    "block_count must be in [0, KB], the block_indices it counts in [0, ceil(S / k_block_size)) "
    "and their tile_ids in [0, M)"
)


class Gathered(NamedTuple):
    """The keys of p parts, `keys` of them each."""

    tokens: Symbol  # [p, batches, kv_heads, keys] which of all B * G * S
    tiles: Symbol  # [p, blocks] the mask of each block
    seen: Symbol  # [p, batches, keys] whether there is such a key
    p: Symbol
    keys: Symbol


class Lists:
    """The selecting inputs, made ready once: Bp * Hp * Lq lists in a row.

    Parameters
    ----------
    g : Graph
    x : dict of the function's inputs
    n : Sizes
    real : onnx.TensorProto.FLOAT or DOUBLE
    """

    def __init__(self, g: Graph, x: dict[str, Symbol], n: Sizes, real: int):
        self.g, self.n = g, n
        self.counts = x["block_count"].int64.reshape(-1)
        self.total = self.counts.size(0)
        blocks, ids = (x[name].reshape(self.total, n.KB) for name in ("block_indices", "tile_ids"))
        self.KB = g.require(self._valid(blocks, ids, x["tile_masks"]), n.KB, IN_RANGE)
        self.blocks, self.ids = blocks.reshape(-1), ids.reshape(-1)
        times = x["tile_masks"].cut(0, n.bq, axis=1).cast(real)
        self.log_times = (times > 0.0).where(times.op("Max", 1.0).op("Log"), -np.inf)
        self.length = x["key_length"].int64.op("Min", n.S).op("Expand", n.B)
        self.unlisted = n.S + n.bk - 1  # past the keys as a block: its positions are as well

    def _valid(self, blocks: Symbol, ids: Symbol, masks: Symbol) -> Symbol:
        """Whether every index that will be read is in range; a wrong one would read elsewhere."""
        g, n, counts = self.g, self.n, self.counts
        columns = ((n.S + n.bk - 1) / n.bk).cast(onnx.TensorProto.INT32)
        tiles = masks.size(0).cast(onnx.TensorProto.INT32)
        zero = np.int32(0)
        listed = g.range(n.KB) < counts.op("Unsqueeze", [1])
        inside = (blocks >= zero) & (blocks < columns) & (ids >= zero) & (ids < tiles)
        fits = (counts >= 0) & (counts <= n.KB)
        fine: Symbol = (~listed | inside) & fits.op("Unsqueeze", [1])
        return fine.cast(onnx.TensorProto.INT32).op("ReduceMin", keepdims=0) > zero

    def gathered(self, parts: Parts, most: Symbol) -> Gathered:
        """What p parts read, `most` blocks each; what a part does not have is not seen."""
        g, n = self.g, self.n
        p, keys = parts.p, most * n.bk
        slot = g.range(most)
        live = slot < parts.blocks.op("Unsqueeze", [1])
        at = live.where(parts.first.op("Unsqueeze", [1]) + slot, 0)
        blocks = live.where(self.blocks.op("Gather", at).int64, self.unlisted)
        tiles = live.where(self.ids.op("Gather", at).int64, 0)
        positions = (blocks.op("Unsqueeze", [2]) * n.bk + g.range(n.bk)).reshape(p, 1, keys)
        seen = positions < self.length.op("Gather", parts.batch).op("Unsqueeze", [2])
        clipped = positions.op("Min", n.S - 1).op("Unsqueeze", [1])
        return Gathered(parts.keys.op("Unsqueeze", [3]) + clipped, tiles, seen, p, keys)

    def bias(self, of: Gathered) -> Symbol:
        """What is added to scores [p, batches, 1, 1, bq, keys].

        The log of the multiplicity, -inf where a key is not seen.
        """
        p, keys = of.p, of.keys
        tiles = self.log_times.op("Gather", of.tiles).swap(0, 2, 1, 3)
        tiles = tiles.reshape(p, 1, 1, 1, self.n.bq, keys)
        return tiles + of.seen.op("Unsqueeze", [2, 3, 4]).where(0.0, -np.inf)
