"""The tiles of a pattern: which blocks it touches, and every distinct token mask once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Bools, Ints
from sparse_ref.patterns import Frame, Pattern
from sparse_ref.patterns.descent import CHUNK, Cover, cover

from .kinds import kinds

Tiles = NDArray[np.uint8]


class Store:
    """Distinct tiles, numbered in order of first use; 0 is full."""

    def __init__(self, block: tuple[int, int]) -> None:
        self.block = block
        self.known: dict[bytes, int] = {np.ones(block, dtype=np.uint8).tobytes(): 0}

    def ids(self, tiles: Tiles) -> Ints:
        """The number of each tile of (count, bq, bk)."""
        keys = (tile.tobytes() for tile in tiles)
        ids = [self.known.setdefault(key, len(self.known)) for key in keys]
        return np.array(ids, dtype=np.int64)

    def masks(self) -> Tiles:
        flat = np.frombuffer(b"".join(self.known), dtype=np.uint8)
        return flat.reshape(len(self.known), *self.block)


def tile(
    pattern: Pattern, frame: Frame, block: tuple[int, int], store: Store
) -> tuple[Ints, Ints, Ints]:
    """Block row, block column and tile id of every entry of one head's layout."""
    blocks = _found(pattern, frame, block)
    ids = np.zeros(len(blocks.row), dtype=np.int64)
    keep = blocks.full.copy()
    partial = np.flatnonzero(~blocks.full)
    representatives, kind = _representatives(pattern, frame, block, blocks, partial)
    found = np.zeros(len(representatives), dtype=np.int64)
    some = np.zeros(len(representatives), dtype=bool)
    size = max(1, CHUNK // (block[0] * block[1]))
    for start in range(0, len(representatives), size):
        cut = slice(start, start + size)
        row, column = blocks.row[representatives[cut]], blocks.column[representatives[cut]]
        tiles = _tiles(pattern, frame, block, row, column)
        inside = _inside(frame, block, row, column)
        in_range = np.where(inside, tiles, 0)
        some[cut] = in_range.reshape(len(row), -1).any(axis=1)
        whole = np.equal(in_range, inside).reshape(len(row), -1).all(axis=1)
        partly = np.flatnonzero(some[cut] & ~whole)
        found[start + partly] = store.ids(tiles[partly])
    ids[partial], keep[partial] = found[kind], some[kind]
    return blocks.row[keep], blocks.column[keep], ids[keep]


def _found(pattern: Pattern, frame: Frame, block: tuple[int, int]) -> Cover:
    """The blocks that may hold a pair: read off an explicit list, else found by descent."""
    if not pattern.explicit and not pattern.multiset:
        return cover(pattern, frame.q, frame.k, block)
    columns = -(-len(frame.k) // block[1])
    code = np.zeros(0, dtype=np.int64)
    for part in pattern.parts:
        if part.explicit:
            start = int(frame.q[0]) if len(frame.q) else 0
            rows = part.rows(start, start + len(frame.q), frame.keys)
            new = rows.row_of // block[0] * columns + rows.indices // block[1]
        else:
            some = cover(part, frame.q, frame.k, block)
            new = some.row * columns + some.column
        code = np.union1d(code, new)
    columns = max(columns, 1)
    return Cover(code // columns, code % columns, np.zeros(len(code), dtype=bool))


def _representatives(
    pattern: Pattern, frame: Frame, block: tuple[int, int], blocks: Cover, partial: Ints
) -> tuple[Ints, Ints]:
    """One entry for every kind of partial tile, in order of first use, and the kind of each.

    A tile that runs over the last query or key is a kind of its own: what it is in range counts.
    """
    row, column = blocks.row[partial], blocks.column[partial]
    ragged = (row + 1) * block[0] > len(frame.q)
    ragged |= (column + 1) * block[1] > len(frame.k)
    start = int(frame.q[0]) if len(frame.q) else 0
    alike = kinds(pattern, start + row * block[0], column * block[1], block)
    alike = np.where(ragged, len(alike) + np.arange(len(alike)), alike)
    _, first, kind = np.unique(alike, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return partial[first[order]], rank[kind]


def _tiles(
    pattern: Pattern, frame: Frame, block: tuple[int, int], row: Ints, column: Ints
) -> Tiles:
    """Multiplicities (count, bq, bk) of some tiles, as if tokens went on past both ends."""
    start = int(frame.q[0])
    q = start + row[:, None, None] * block[0] + np.arange(block[0])[:, None]
    k = column[:, None, None] * block[1] + np.arange(block[1])
    shape = (len(row), *block)
    total = np.zeros(shape, dtype=np.int64)
    for part in pattern.parts:
        total += part(q, k)
    if (worst := int(total.max(initial=0))) > 255:
        raise ValueError(f"pattern must count a key at most 255 times in blocks, got {worst}")
    return total.astype(np.uint8)


def _inside(frame: Frame, block: tuple[int, int], row: Ints, column: Ints) -> Bools:
    """Which pairs (count, bq, bk) of the blocks lie before the last query and key."""
    q = row[:, None, None] * block[0] + np.arange(block[0])[:, None]
    k = column[:, None, None] * block[1] + np.arange(block[1])
    return (q < len(frame.q)) & (k < len(frame.k))
