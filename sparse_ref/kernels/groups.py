"""Rows with equal or near-equal key sets, put together, their keys gathered into dense tiles.

Listed pairs know no residues or windows, but rows may still share keys: strided, dilated, permuted
or blocked patterns that were written out, blocks drawn at random. Rows are sorted by their first
and last key, or before these by their least key in a random order (min-wise hashing, Broder 1997:
two rows agree in it with the probability of what they share over what they have); equal rows stand
together. Each bundle of rows has columns of its own for the keys that any of them sees; within it
a key stands by the panels of rows that see it, so that a panel skips what only others see. So a key
may stand in several columns, but a row in one bundle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sparse_ref._arrays import Ints
from sparse_ref.layouts.tiling import Store
from sparse_ref.patterns.explicit import mix

from .costs import Work, copied
from .orders import BLOCK
from .tile_layouts import Layout, laid

SAMPLE = 16  # bundles that stand for all of them in an estimate
CHUNK = 256  # tiles made at a time
COUNTS = 255  # the most often a key may count in a tile

Csr = sparse.csr_array


@dataclass(frozen=True, eq=False)
class Bundles:
    """Rows of listed pairs in bundles of at most BLOCK: all rows that see a key."""

    csr: Csr[Any]
    rows: Ints
    start: Ints  # (bundles + 1,): where each begins in `rows`
    lanes: int

    @cached_property
    def estimate(self) -> tuple[Work, float]:
        """What there is to do and how many tiles read a mask, from some of the bundles."""
        count = len(self.start) - 1
        some = np.unique(np.linspace(0, count - 1, SAMPLE).astype(np.int64))
        if len(some) == count:
            return self.placed.work()
        rows = np.concatenate([self.rows[self.start[i] : self.start[i + 1]] for i in some])
        start = np.append(0, np.cumsum(np.diff(self.start)[some]))
        work, masks = Bundles(self.csr, rows, start, self.lanes).placed.work()
        times = self.csr.nnz / int(np.diff(self.csr.indptr)[rows].sum())
        return Work(*(times * x for x in work)), times * masks

    def layout(self, heads: tuple[int, ...]) -> tuple[Layout, int]:
        """The tiles, and how many pairs they allow."""
        return self.placed.layout(heads)

    @cached_property
    def placed(self) -> Placed:
        """Where each pair stands."""
        length = np.diff(self.csr.indptr)[self.rows].astype(np.int64)
        total = int(length.sum())
        before = np.cumsum(length) - length
        pair = np.arange(total) + np.repeat(self.csr.indptr[self.rows] - before, length)
        key, times = self.csr.indices[pair].astype(np.int64), self.csr.data[pair]
        size = np.diff(self.start)
        bundle_of = np.repeat(np.arange(len(size)), size)
        slot_of = np.arange(len(self.rows)) - self.start[bundle_of]
        bundle, slot = np.repeat(bundle_of, length), np.repeat(slot_of, length)
        # every bundle's keys, by the first and last panel that sees them
        order = np.argsort(bundle * self.csr.shape[1] + key, kind="stable")
        new = np.append(True, (np.diff(bundle[order]) > 0) | (np.diff(key[order]) != 0))
        first = np.flatnonzero(new)
        last = np.append(first[1:], total) - 1
        panel = slot[order] // self.lanes
        mine, seen = bundle[order][first], key[order][first]
        by_panel = np.lexsort((seen, panel[last], panel[first], mine))
        held = np.bincount(mine, minlength=len(size))
        place = np.empty_like(by_panel)
        place[by_panel] = np.arange(len(mine)) - np.repeat(np.cumsum(held) - held, held)
        columns = -(-held // BLOCK)
        base = np.cumsum(columns) - columns
        keys = np.full(int(columns.sum()) * BLOCK, -1)
        keys[base[mine] * BLOCK + place] = seen
        at = np.empty(total, dtype=np.int64)
        at[order] = (base[mine] * BLOCK + place)[np.cumsum(new) - 1]
        queries = np.full((len(size), BLOCK), -1)
        queries[bundle_of, slot_of] = self.rows
        return Placed(queries, keys, columns, slot, at, times, self.lanes)


class Placed(NamedTuple):
    """Pairs in tiles: a bundle of rows has so many columns, one after another, of its own."""

    queries: Ints  # (bundles, BLOCK), -1 none
    keys: Ints  # (tiles * BLOCK,), -1 none
    columns: Ints  # (bundles,)
    slot: Ints  # of every pair's row, within its bundle
    at: Ints  # of every pair's key, in `keys`
    times: NDArray[Any]  # how often the pair counts
    lanes: int

    def work(self) -> tuple[Work, float]:
        """What there is to do and how many tiles read a mask, counted pair by pair."""
        tiles, full = len(self.keys) // BLOCK, self.full
        panels = BLOCK // self.lanes
        place = self.at // BLOCK * panels + self.slot // self.lanes
        order = np.argsort(place, kind="stable")
        seen, start = np.unique(place[order], return_index=True)
        inside = (self.at % BLOCK)[order]
        height = np.maximum.reduceat(inside, start) - np.minimum.reduceat(inside, start) + 1
        filled = (self.keys >= 0).reshape(-1, BLOCK).sum(axis=1)
        masked = float(height[~full[seen // panels]].sum()) * self.lanes
        work = Work(
            pairs=float(height.sum()) * self.lanes,
            masked=masked,
            panels=float(len(seen)),
            blocks=float(tiles),
            gathered=copied(tiles, len(np.unique(self.column)), filled),
            queries=float(self.queries.size),
        )
        return work, float(tiles - full.sum())

    @property
    def full(self) -> NDArray[np.bool_]:
        """Whether every row of a tile sees every key of it, once."""
        rows = np.repeat((self.queries >= 0).sum(axis=1), self.columns)
        keys = (self.keys >= 0).reshape(-1, BLOCK).sum(axis=1)
        pairs = np.bincount(self.at // BLOCK, minlength=len(keys))
        often = np.bincount(self.at // BLOCK, self.times, minlength=len(keys))
        return np.asarray((pairs == rows * keys) & (often == pairs))

    @property
    def column(self) -> Ints:
        """A number for every tile's keys; bundles with the same keys share theirs."""
        return np.unique(self.keys.reshape(-1, BLOCK), axis=0, return_inverse=True)[1].ravel()

    def layout(self, heads: tuple[int, ...]) -> tuple[Layout, int]:
        """The tiles, and how many pairs they allow."""
        column, store = self.column, Store((BLOCK, BLOCK))
        ids = np.zeros(len(column), dtype=np.int64)
        open_ = np.flatnonzero(~self.full)
        rank = np.full(len(column), -1)
        rank[open_] = np.arange(len(open_))
        tile = rank[self.at // BLOCK]
        order = np.argsort(tile, kind="stable")
        bound = np.searchsorted(tile[order], np.arange(0, len(open_) + CHUNK, CHUNK))
        for i in range(len(bound) - 1):
            some = order[bound[i] : bound[i + 1]]
            tiles = np.zeros((min(CHUNK, len(open_) - i * CHUNK), BLOCK, BLOCK), dtype=np.uint8)
            tiles[tile[some] - i * CHUNK, self.slot[some], self.at[some] % BLOCK] = self.times[some]
            ids[open_[i * CHUNK : (i + 1) * CHUNK]] = store.ids(tiles)
        keys = np.empty((int(column.max(initial=-1)) + 1, BLOCK), dtype=np.int64)
        keys[column] = self.keys.reshape(-1, BLOCK)
        layout = laid(
            np.append(0, np.cumsum(self.columns))[None],
            column.astype(np.int32),
            ids.astype(np.int32),
            store.masks(),
            heads,
            self.lanes,
            self.queries.ravel(),
            keys.ravel(),
        )
        return layout, len(self.at)


def bundled(csr: Csr[Any], lanes: int) -> Iterator[Bundles]:
    """Rows that share keys, together, in two ways; none if a pair counts too often for a tile."""
    if not csr.nnz or csr.data.max() > COUNTS:
        return
    some = np.flatnonzero(np.diff(csr.indptr))
    start, stop = csr.indptr[some], csr.indptr[some + 1]
    words = mix(csr.indices.astype(np.uint64))
    whole = np.add.reduceat(mix(words), start)
    ends = whole, csr.indices[stop - 1], csr.indices[start]
    for order in (np.lexsort(ends), np.lexsort((*ends, np.minimum.reduceat(words, start)))):
        apart = whole[order][1:] != whole[order][:-1]
        runs = np.diff(np.flatnonzero(np.concatenate([[True], apart, [True]])))
        yield Bundles(csr, some[order], _starts(runs), lanes)


def listed(layout: Layout, rows: int, columns: int) -> Csr[Any]:
    """The pairs of a layout that has queries and keys in an order of their own."""
    bq, bk = (int(size) for size in layout.block)
    queries, keys = layout.queries.reshape(-1, bq), layout.keys.reshape(-1, bk)
    count, panels = layout.spans.shape[:2]
    tiles = layout.masks.reshape(count, panels, bk, -1).swapaxes(2, 3).reshape(count, bq, bk)
    row_of = np.repeat(np.arange(len(queries)), np.diff(layout.indptr[0]))
    found = []
    for first in range(0, len(row_of), CHUNK):
        some = slice(first, first + CHUNK)
        q, k = queries[row_of[some]], keys[layout.indices[some]]
        seen = tiles[layout.tile_ids[some]] * ((q >= 0)[:, :, None] & (k >= 0)[:, None, :])
        at, slot, place = np.nonzero(seen)
        found.append((seen[at, slot, place], q[at, slot], k[at, place]))
    times, query, key = (np.concatenate(side) for side in zip(*found, strict=True))
    csr = sparse.csr_array((times.astype(np.int32), (query, key)), shape=(rows, columns))
    csr.sort_indices()
    return csr


def has_repeated(layout: Layout) -> bool:
    """Whether a key stands in several columns."""
    used = layout.keys[layout.keys >= 0]
    return len(np.unique(used)) < len(used)


def by_keys(layout: Layout, keys: int) -> Layout:
    """A layout of bundles as a layout of bundles of keys, those that are seen by the same rows."""
    lanes = int(layout.block[0]) // layout.spans.shape[1]
    csr = listed(layout, int(layout.queries.max()) + 1, keys).T.tocsr()
    csr.sort_indices()
    best = min(bundled(csr, lanes), key=lambda bundles: bundles.estimate[0].pairs)
    heads = tuple(int(head) for head in layout.heads)
    mine, _ = best.layout(heads)
    return mine._replace(queries=mine.keys, keys=mine.queries)


def _starts(runs: Ints) -> Ints:
    """Where bundles begin: whole runs of equal rows go together as long as they fit."""
    starts: list[int] = []
    at, room = 0, 0
    for run in runs.tolist():
        if run > room:
            starts += range(at, at + run, BLOCK)
            room = -run % BLOCK
        else:
            room -= run
        at += run
    return np.array([*starts, at], dtype=np.int64)
