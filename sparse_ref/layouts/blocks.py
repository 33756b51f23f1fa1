"""A pattern as blocks: for each row of blocks the key blocks it touches, and their token masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import Bools, Ints, integer
from ..patterns import Frame, Pattern
from ..patterns.algebra import checked, one_row
from ..patterns.descent import CHUNK, Cover, cover
from ..patterns.drift import Drift
from ..patterns.explicit import block_pair

Tiles = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Block rows in CSR form, one layout for every distinct head, every distinct tile once.

    Canonical: tiles that are all one in range are full (id 0), all-zero ones are absent, columns
    ascend, `tile_masks` are unique in order of first use. A tile is evaluated as if tokens went on
    past both ends; readers clip rows at q_len and keys at kv_len.

    Attributes
    ----------
    indptr : int64 (layouts, rows + 1)
        Row r of layout l lists entries indptr[l, r] .. indptr[l, r + 1] - 1.
    indices, tile_ids : int32 (entries,)
        Key block, and row of `tile_masks`, of every entry.
    tile_masks : uint8 (tiles, block_size[0], block_size[1])
        Multiplicities, 0 = not allowed; row 0 is all ones (full).
    head_layout : int32 (heads,)
        The layout of every query head.
    block_size : (int, int)
    q_len, kv_len, q_start : int
    """

    indptr: Ints
    indices: NDArray[np.int32]
    tile_ids: NDArray[np.int32]
    tile_masks: Tiles
    head_layout: NDArray[np.int32]
    block_size: tuple[int, int]
    q_len: int
    kv_len: int
    q_start: int

    def __repr__(self) -> str:
        bq, bk = self.block_size
        return (
            f"<Blocks {self.q_len} x {self.kv_len} in {bq} x {bk}: heads {len(self.head_layout)}, "
            f"layouts {len(self.indptr)}, blocks {len(self.indices)} "
            f"({int(self.full.sum())} full), distinct tiles {len(self.tile_masks) - 1}>"
        )

    @property
    def full(self) -> Bools:
        """Whether each entry's tile is full."""
        return self.tile_ids == 0

    @property
    def nnz(self) -> int:
        """Allowed (query, key) pairs in range, over all heads."""
        return self._per_head(self._entry_counts(self.tile_masks != 0))

    @property
    def density(self) -> float:
        """nnz / (heads * q_len * kv_len)."""
        area = len(self.head_layout) * self.q_len * self.kv_len
        return self.nnz / area if area else 0.0

    @property
    def fill(self) -> float:
        """nnz / the listed blocks' area in range."""
        area = self._per_head(self._entry_counts(np.ones_like(self.tile_masks, dtype=bool)))
        return self.nnz / area if area else 0.0

    def to_mask(self) -> Bools:
        """The dense mask (heads, q_len, kv_len)."""
        return self.to_counts() > 0

    def to_counts(self) -> NDArray[np.uint8]:
        """The dense multiplicities (heads, q_len, kv_len)."""
        (bq, bk), layouts = self.block_size, len(self.indptr)
        rows, columns = self.indptr.shape[1] - 1, -(-self.kv_len // bk)
        dense = np.zeros((layouts, rows, columns, bq, bk), dtype=np.uint8)
        layout, row = self._owners()
        dense[layout, row, self.indices] = self.tile_masks[self.tile_ids]
        dense = dense.swapaxes(2, 3).reshape(layouts, rows * bq, columns * bk)
        return dense[self.head_layout, : self.q_len, : self.kv_len]

    def _owners(self) -> tuple[Ints, Ints]:
        """Layout and block row of every entry."""
        layouts, rows = self.indptr.shape[0], self.indptr.shape[1] - 1
        owner = np.repeat(np.arange(layouts * rows), np.diff(self.indptr, axis=1).ravel())
        return owner // max(rows, 1), owner % max(rows, 1)

    def _entry_counts(self, ones: Bools) -> Ints:
        """For every entry the number of `ones` of its tile inside the range."""
        _, row = self._owners()
        (bq, bk), column = self.block_size, self.indices.astype(np.int64)
        height = np.minimum(bq, self.q_len - row * bq)
        width = np.minimum(bk, self.kv_len - column * bk)
        sums = np.zeros((len(ones), bq + 1, bk + 1), dtype=np.int64)
        sums[:, 1:, 1:] = ones.cumsum(axis=1).cumsum(axis=2)
        return sums[self.tile_ids, height, width]  # type: ignore[no-any-return]

    def _per_head(self, counts: Ints) -> int:
        totals = np.bincount(self._owners()[0], weights=counts, minlength=len(self.indptr))
        return int(totals[self.head_layout].sum())


def to_blocks(
    pattern: Pattern,
    q_len: int,
    kv_len: int,
    *,
    block_size: Any = (64, 64),
    heads: int = 1,
    q_start: int | None = None,
    batch: int = 0,
) -> Blocks:
    """The block layout of a pattern, without ever building its mask.

    Parameters
    ----------
    pattern : Pattern
    q_len, kv_len : int >= 0
    block_size : int or (int, int)
        Queries and keys of a block; any size, lengths need not divide.
    heads : int
        Number of query heads; heads with equal patterns share a layout.
    q_start : int, optional
        Absolute position of the first query; default kv_len - q_len.
    batch : int
        The batch row, for a `PerBatch`.

    >>> from sparse_ref import Causal, SlidingWindow
    >>> to_blocks(Causal() & SlidingWindow(511, 0), 65_536, 65_536)
    <Blocks 65536 x 65536 in 64 x 64: heads 1, layouts 1, blocks 9180 (7140 full), distinct tiles 2>
    """
    frame = checked(pattern).frame(q_len, kv_len, q_start)
    block, heads = block_pair(block_size), integer("heads", heads, 1)
    row = one_row(pattern, batch)
    distinct: dict[Pattern, int] = {}
    head_layout = [distinct.setdefault(row.at(h), len(distinct)) for h in range(heads)]
    store = _Store(block)
    layouts = [_layout(one, frame, block, store) for one in distinct]
    rows = -(-len(frame.q) // block[0])
    indptr = np.zeros((len(layouts), rows + 1), dtype=np.int64)
    for i, (at, _, _) in enumerate(layouts):
        indptr[i, 1:] = np.cumsum(np.bincount(at, minlength=rows))
    indptr += np.cumsum([0, *(len(at) for at, _, _ in layouts[:-1])])[:, None]
    _, indices, ids = (np.concatenate(side) for side in zip(*layouts, strict=True))
    return Blocks(
        indptr=indptr,
        indices=indices.astype(np.int32),
        tile_ids=ids.astype(np.int32),
        tile_masks=store.masks(),
        head_layout=np.array(head_layout, dtype=np.int32),
        block_size=block,
        q_len=len(frame.q),
        kv_len=len(frame.k),
        q_start=len(frame.k) - len(frame.q) if q_start is None else int(q_start),
    )


class _Store:
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


def _layout(
    pattern: Pattern, frame: Frame, block: tuple[int, int], store: _Store
) -> tuple[Ints, Ints, Ints]:
    """Block row, block column and tile id of every entry of one head's layout."""
    blocks = _found(pattern, frame, block)
    ids = np.zeros(len(blocks.row), dtype=np.int64)
    keep = blocks.full.copy()
    partial = np.flatnonzero(~blocks.full)
    for chosen, kinds in _kinds(pattern, frame, block, blocks, partial):
        tiles = _tiles(pattern, frame, block, blocks.row[chosen], blocks.column[chosen])
        inside = _inside(frame, block, blocks.row[chosen], blocks.column[chosen])
        in_range = np.where(inside, tiles, 0)
        any_, all_ = in_range.any(axis=(1, 2)), (in_range == inside).all(axis=(1, 2))
        found = np.zeros(len(chosen), dtype=np.int64)
        found[any_ & ~all_] = store.ids(tiles[any_ & ~all_])
        for at, kind in kinds:
            ids[at], keep[at] = found[kind], any_[kind]
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


def _kinds(
    pattern: Pattern, frame: Frame, block: tuple[int, int], blocks: Cover, partial: Ints
) -> Iterator[tuple[Ints, list[tuple[Ints, Ints]]]]:
    """Chunks of representative tiles, each with (entries, index of their representative).

    Tiles on one diagonal, a period apart, are alike; ragged ones are alike only to themselves.
    """
    row, column = blocks.row[partial], blocks.column[partial]
    every = int(pattern(Drift(), Drift()).every)
    kind = np.arange(len(partial))
    if every and len(partial):
        at_q, at_k = frame.q[row * block[0]], frame.k[column * block[1]]
        ragged = (row + 1) * block[0] > len(frame.q)
        ragged |= (column + 1) * block[1] > len(frame.k)
        key = np.stack([at_q - at_k, at_q % every, np.where(ragged, kind, -1)])
        _, first, kind = np.unique(key, axis=1, return_index=True, return_inverse=True)
        order = np.argsort(first)  # in order of first use
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        representatives, kind = partial[first[order]], rank[kind.ravel()]
    else:
        representatives = partial
    by_kind = np.argsort(kind, kind="stable")
    bounds = np.searchsorted(kind[by_kind], np.arange(len(representatives) + 1))
    size = max(1, CHUNK // (block[0] * block[1]))
    for start in range(0, len(representatives), size):
        chosen = representatives[start : start + size]
        members = by_kind[bounds[start] : bounds[start + len(chosen)]]
        yield chosen, [(partial[members], kind[members] - start)]


def _tiles(
    pattern: Pattern, frame: Frame, block: tuple[int, int], row: Ints, column: Ints
) -> Tiles:
    """Multiplicities (count, bq, bk) of some tiles, as if tokens went on past both ends."""
    start = int(frame.q[0])
    q = start + row[:, None, None] * block[0] + np.arange(block[0])[:, None]
    k = column[:, None, None] * block[1] + np.arange(block[1])
    shape = (len(row), *block)
    parts = [np.broadcast_to(part(q, k), shape) for part in pattern.parts]
    if len(parts) == 1:
        return parts[0].astype(np.uint8)
    total = np.sum(parts, axis=0, dtype=np.int64)
    if (worst := int(total.max(initial=0))) > 255:
        raise ValueError(f"pattern must count a key at most 255 times in blocks, got {worst}")
    return total.astype(np.uint8)


def _inside(frame: Frame, block: tuple[int, int], row: Ints, column: Ints) -> Bools:
    """Which pairs (count, bq, bk) of the blocks lie before the last query and key."""
    q = row[:, None, None] * block[0] + np.arange(block[0])[:, None]
    k = column[:, None, None] * block[1] + np.arange(block[1])
    return (q < len(frame.q)) & (k < len(frame.k))
