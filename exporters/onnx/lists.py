"""Block lists and tiles inside the function body: what one row of blocks gathers and hides."""

from __future__ import annotations

import numpy as np
import onnx

from .graph import Graph, Symbol
from .sizes import Sizes


class Lists:
    """The selecting inputs, made ready once for all rows.

    Parameters
    ----------
    g : Graph
    x : dict of the function's inputs
    n : Sizes
    real : onnx.TensorProto.FLOAT or DOUBLE
    """

    def __init__(self, g: Graph, x: dict[str, Symbol], n: Sizes, real: int):
        def count(stop: Symbol) -> Symbol:
            return g.op("Range", 0, stop.op("Squeeze"), 1)

        self.g, self.n, self.count = g, n, count
        self.indices, self.counts, self.ids, length = (
            x[name].cast(onnx.TensorProto.INT64)
            for name in ("block_indices", "block_count", "tile_ids", "key_length")
        )
        times = x["tile_masks"].cast(real)
        self.log_times = (times > 0.0).where(times.op("Max", 1.0).op("Log"), -np.inf)
        self.length = length.op("Min", n.S).reshape(-1, 1, 1, 1, 1)
        self.within = count(n.bk)
        # where the blocks of batch row b and listing head j begin among all blocks of all heads
        head = count(n.listing) * n.G // n.listing
        self.first = (count(n.B).reshape(-1, 1, 1) * n.G + head.reshape(1, -1, 1)) * n.columns

    def row(self, i: Symbol) -> tuple[Symbol, Symbol]:
        """Key blocks [B, listing, c] and what is added to scores [B or 1, Hp, 1, bq, c * bk].

        The latter is the log of the multiplicity, -inf where a key is not seen. c is the longest
        count among the lists of this row, at least 1.
        """
        n = self.n
        counts = self.counts.op("Gather", i, axis=2)
        longest = counts.op("ReduceMax", keepdims=0).op("Max", 1).reshape(1)
        live = self.count(longest) < counts.op("Unsqueeze", [-1])
        blocks, ids = (
            live.where(x.op("Gather", i, axis=2).cut(0, longest, axis=2), 0)
            for x in (self.indices, self.ids)
        )
        positions = blocks.op("Unsqueeze", [2, 4]) * n.bk + self.within
        in_range = (positions < self.length) & live.op("Unsqueeze", [2, 4])
        tiles = self.log_times.op("Gather", ids).swap(0, 1, 3, 2, 4)
        bias = tiles + in_range.where(0.0, -np.inf)
        bias = bias.reshape(bias.size(0), bias.size(1), 1, n.bq, longest * n.bk)
        return self.first + blocks, bias
