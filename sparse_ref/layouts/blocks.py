"""A pattern as blocks: for each row of blocks the key blocks it touches, and their token masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Bools, Ints, integer
from sparse_ref.patterns import Pattern
from sparse_ref.patterns.dense import frame_of, one_row
from sparse_ref.patterns.explicit import block_pair

from .csr import Lowerable, settled
from .tiling import Store, Tiles, tile


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

    >>> from sparse_ref import Causal
    >>> blocks = to_blocks(Causal(), 6, 6, block_size=4)
    >>> blocks.indices.tolist(), blocks.full.tolist(), blocks.nnz, blocks.fill
    ([0, 0, 1], [False, True, False], 21, 0.75)
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
        return np.equal(self.tile_ids, 0)

    @property
    def nnz(self) -> int:
        """Allowed (query, key) pairs in range, over all heads."""
        return self._per_head(self._entry_counts(self.tile_masks != 0))

    @property
    def density(self) -> float:
        """The share of all pairs that is allowed: nnz / (heads * q_len * kv_len)."""
        area = len(self.head_layout) * self.q_len * self.kv_len
        return self.nnz / area if area else 0.0

    @property
    def fill(self) -> float:
        """The share of the listed blocks' area in range that is allowed."""
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
        return sums[self.tile_ids, height, width]

    def _per_head(self, counts: Ints) -> int:
        totals = np.bincount(self._owners()[0], weights=counts, minlength=len(self.indptr))
        return int(totals[self.head_layout].sum())


def to_blocks(
    pattern: Pattern | Lowerable,
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
    pattern : Pattern or Selection
    q_len, kv_len : int >= 0
    block_size : int or (int, int)
        Queries and keys of a block; any size, lengths need not divide.
    heads : int
        Number of query heads; heads with equal patterns share a layout.
    q_start : int, optional
        Absolute position of the first query; default kv_len - q_len.
    batch : int
        The batch row, for a `PerBatch` or a `Selection`.

    >>> from sparse_ref import Causal, SlidingWindow
    >>> to_blocks(Causal() & SlidingWindow(511, 0), 65_536, 65_536)
    <Blocks 65536 x 65536 in 64 x 64: heads 1, layouts 1, blocks 9180 (7140 full), distinct tiles 2>
    """
    block, heads = block_pair(block_size), integer("heads", heads, 1)
    pattern = settled(pattern, q_len, kv_len, q_start, batch, heads)
    frame = frame_of(pattern, q_len, kv_len, q_start)
    row = one_row(pattern, batch)
    distinct: dict[Pattern, int] = {}
    head_layout = [distinct.setdefault(row.at(h), len(distinct)) for h in range(heads)]
    store = Store(block)
    layouts = [tile(one, frame, block, store) for one in distinct]
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
