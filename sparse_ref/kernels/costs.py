"""The cost model: predicted time of a layout, from counts of what its kernel does.

The constants are fitted by tools/fit.py, off line and on one thread, so that a plan never depends
on a clock; they rank kernels and orders, nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparse_ref._arrays import Bools, Ints

from .orders import BLOCK
from .tile_layouts import Layout

# Nanoseconds in float32 on a 2-core AMD EPYC (AVX2), n 1,024 and 4,096, head sizes 32 to 128.
CONSTANTS = {
    "product": 0.021,  # a multiply-add of a tile
    "weight": 0.515,  # a pair of a tile: softmax
    "mask": 0.629,  # a pair of a tile that reads its mask
    "panel": 29.1,  # a panel of queries against a block of keys
    "block": 202.0,  # a block of queries against a block of keys
    "gather": 0.606,  # an entry of a key or value that is copied to its block
    "query": 0.796,  # an entry of a query or result that is turned into lanes or back
    "listed product": 0.0644,  # a multiply-add of a listed pair
    "listed": 7.98,  # a listed pair
    "row": 229.0,  # a row of listed pairs
}
WIDE = {"product", "weight", "mask", "listed product"}  # take twice as long in float64

Counts = dict[str, float]


class Work(NamedTuple):
    """What the tile kernel does for one head, whatever the head size."""

    pairs: float  # computed, allowed or not
    masked: float  # of them in tiles that read their mask
    panels: float  # of queries, each against a block of keys
    blocks: float  # of queries, each against a block of keys
    gathered: float  # keys copied
    queries: float  # turned into lanes

    def counts(self, head_dim: int) -> Counts:
        """By the names of the constants."""
        sizes = 2.0 * head_dim
        return {
            "product": self.pairs * sizes,
            "weight": self.pairs,
            "mask": self.masked,
            "panel": self.panels,
            "block": self.blocks,
            "gather": self.gathered * sizes,
            "query": self.queries * sizes,
        }


def work_of(layout: Layout) -> Work:
    """Counted in a layout."""
    bq, tiles = int(layout.block[0]), layout.tile_ids.astype(np.int64)
    lanes = bq // layout.spans.shape[1]
    seen = layout.spans[:, :, 1] - layout.spans[:, :, 0]
    panels, height = (seen > 0).sum(axis=1)[tiles], seen.sum(axis=1)[tiles]
    listed, gathers = np.diff(layout.indptr[0]), 0
    if len(layout.queries):
        sides = layout.queries, layout.keys
        filled = [
            (x >= 0).reshape(-1, size).sum(axis=1)
            for x, size in zip(sides, layout.block, strict=True)
        ]
        most = -(-np.repeat(filled[0], listed) // lanes)
        keys = filled[1][layout.indices]
        panels, height = np.minimum(panels, most), np.where(tiles == 0, most * keys, height)
        gathers = copied(len(tiles), len(layout.keys) // int(layout.block[1]), keys)
    pairs, masked = float(height.sum()) * lanes, float(height[tiles > 0].sum()) * lanes
    queries = float(np.count_nonzero(listed)) * bq
    return Work(pairs, masked, float(panels.sum()), float(len(tiles)), gathers, queries)


def copied(blocks: int, key_blocks: int, keys: Ints) -> int:
    """How many keys are copied: of every block read, or once of all that there are."""
    return int(keys.sum()) if blocks < 2 * key_blocks else BLOCK * key_blocks


def seen_by_panels(tiles: Bools, lanes: int) -> tuple[Ints, Ints]:
    """Of token masks (count, bq, bk): panels that see a key, and the keys all panels go through."""
    count, bq, bk = tiles.shape
    panels: Bools = np.asarray(tiles.reshape(count, bq // lanes, lanes, bk).any(axis=2))
    some = np.asarray(panels.any(axis=2))
    height = bk - panels[:, :, ::-1].argmax(axis=2) - panels.argmax(axis=2)
    return some.sum(axis=1), np.where(some, height, 0).sum(axis=1)


def row_counts(pairs: float, rows: int, head_dim: int) -> Counts:
    """What the row kernel does for one head."""
    return {"listed product": pairs * 2.0 * head_dim, "listed": float(pairs), "row": float(rows)}


def seconds(counts: Counts, itemsize: int) -> float:
    """The predicted time of one head on one thread."""
    wide = itemsize / 4
    return 1e-9 * sum(
        CONSTANTS[name] * count * (wide if name in WIDE else 1) for name, count in counts.items()
    )
