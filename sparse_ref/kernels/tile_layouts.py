"""Blocks of queries and keys as the tile kernels read them."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Floats, Ints
from sparse_ref.layouts import Blocks

from ._jit import inner


class Layout(NamedTuple):
    """Blocks of slots; a slot holds a query or a key, in their own order or in another."""

    indptr: Ints  # (layouts, rows + 1)
    indices: NDArray[np.int32]
    tile_ids: NDArray[np.int32]
    block: Ints  # bq, bk
    masks: NDArray[np.uint8]  # flat (tiles, panels, bk, width): lanes are queries
    spans: Ints  # (tiles, panels, 2): first and last + 1 key that any lane sees
    counted: NDArray[np.bool_]  # (tiles,): whether a key counts more than once
    heads: Ints  # the query heads that are computed
    layout_of: Ints  # of every one of them
    logs: Floats  # log2 of 0..255
    queries: Ints  # the query in each slot, -1 none; empty: slot i holds query i
    keys: Ints  # alike; no query and no key is in two slots
    turn: Ints  # block rows as they are claimed: those with most keys first


@inner
def query_of(layout, m, slot):
    """The query in a slot, -1 if there is none."""
    if len(layout.queries):
        return layout.queries[slot]
    return slot if slot < m else -1


@inner
def held(layout, m, first):
    """How many queries a block has; its slots from `first` on hold them, one after another."""
    count = layout.block[0]
    while count > 0 and query_of(layout, m, first + count - 1) < 0:
        count -= 1
    return count


def tile_layout(blocks: Blocks, heads: tuple[int, ...], lanes: int) -> Layout:
    """The blocks of one pattern, every query and key in its own slot."""
    none = np.zeros(0, dtype=np.int64)
    return laid(
        blocks.indptr, blocks.indices, blocks.tile_ids, blocks.tile_masks, heads, lanes, none, none
    )


def laid(
    indptr: Ints,
    indices: NDArray[np.int32],
    tile_ids: NDArray[np.int32],
    tiles: NDArray[np.uint8],
    heads: tuple[int, ...],
    lanes: int,
    queries: Ints,
    keys: Ints,
) -> Layout:
    """A layout from its entries and its tiles (count, bq, bk); queries go into the lanes."""
    _, bq, bk = tiles.shape
    masks = tiles.reshape(-1, bq // lanes, lanes, bk).swapaxes(2, 3)
    panels = np.asarray(masks.any(axis=3)).swapaxes(1, 2)
    first = panels.argmax(axis=1)
    last = np.where(panels.any(axis=1), bk - panels[:, ::-1].argmax(axis=1), first)
    return Layout(
        indptr,
        indices,
        tile_ids,
        np.array([bq, bk]),
        np.ascontiguousarray(masks).ravel(),
        np.stack([first, last], axis=2).astype(np.int64),
        np.asarray((masks > 1).any(axis=(1, 2, 3))),
        np.array(heads, dtype=np.int64),
        np.zeros(len(heads), dtype=np.int64),
        np.log2(np.maximum(np.arange(256), 1)),
        queries,
        keys,
        np.argsort(-np.diff(indptr).sum(axis=0), kind="stable"),
    )
