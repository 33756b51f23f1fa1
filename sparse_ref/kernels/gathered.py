"""The tile layout of a pattern over queries and keys in another order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sparse_ref._arrays import Bools, Ints
from sparse_ref.layouts.kinds import MOVING
from sparse_ref.layouts.tiling import Store
from sparse_ref.patterns import Pattern

from .costs import Work, copied, seen_by_panels
from .orders import BLOCK, Found, Order, find
from .tile_layouts import Layout, laid

CHUNK = 2**20  # pairs evaluated at a time
SAMPLE = 64  # tiles that stand for all of them in an estimate
DENSEST = 2**26  # entries of distinct tiles a plan may hold


@dataclass(frozen=True, eq=False)
class Gathered:
    """A pattern over two orders: its tiles are found, but not evaluated yet."""

    pattern: Pattern
    queries: Order
    keys: Order
    found: Found

    @cached_property
    def partial(self) -> Ints:
        """The entries that need a mask."""
        return np.flatnonzero(~self.found.full)

    @cached_property
    def kinds(self) -> tuple[Ints, Ints]:
        """One partial entry of each kind, and the kind of all of them."""
        every = int(self.pattern(MOVING, MOVING).every)
        number = _kinds(self.queries, self.keys, self.found, self.partial, every)
        _, first, kind = np.unique(number, return_index=True, return_inverse=True)
        return self.partial[first], kind

    def estimate(self, lanes: int) -> tuple[Work, float]:
        """What there is to do and how many pairs there are, from some of the tiles."""
        found, (entries, kind) = self.found, self.kinds
        times = np.bincount(kind, minlength=len(entries))
        some = np.unique(np.linspace(0, max(len(entries) - 1, 0), SAMPLE).astype(np.int64))
        some = some[: len(entries)]
        tiles, _ = self.tiles(entries[some])
        panels, height = seen_by_panels(tiles, lanes)
        weight = times[some] * (times.sum() / max(times[some].sum(), 1))
        q, k = self.queries.filled[found.row], self.keys.filled[found.column]
        whole = -(-q // lanes)
        full = found.full
        masked = float(weight @ height) * lanes
        pairs = float(weight @ tiles.sum(axis=(1, 2)))
        work = Work(
            pairs=float((whole * k)[full].sum()) * lanes + masked,
            masked=masked,
            panels=float(whole[full].sum() + weight @ panels),
            blocks=float(len(full)),
            gathered=copied(len(full), self.keys.blocks, k),
            queries=float(BLOCK * len(np.unique(found.row))),
        )
        return work, pairs + float((q * k)[full].sum())

    def layout(self, heads: tuple[int, ...], lanes: int) -> tuple[Layout, int]:
        """The tiles, and how many pairs they allow."""
        found, (entries, kind) = self.found, self.kinds
        store = Store((BLOCK, BLOCK))
        ids, pairs = np.zeros_like(entries), np.zeros_like(entries)
        size = CHUNK // BLOCK**2
        for start in range(0, len(entries), size):
            tiles, real = self.tiles(entries[start : start + size])
            pairs[start : start + size] = tiles.sum(axis=(1, 2))
            open_ = np.flatnonzero((real & ~tiles).any(axis=(1, 2)) & tiles.any(axis=(1, 2)))
            ids[start + open_] = store.ids(tiles[open_].view(np.uint8))
        tile_ids = np.zeros_like(found.row)
        allowed = self.queries.filled[found.row] * self.keys.filled[found.column]
        tile_ids[self.partial], allowed[self.partial] = ids[kind], pairs[kind]
        keep = allowed > 0
        listed = np.bincount(found.row[keep], minlength=self.queries.blocks)
        layout = laid(
            np.cumsum(np.append(0, listed))[None].astype(np.int64),
            found.column[keep].astype(np.int32),
            tile_ids[keep].astype(np.int32),
            store.masks(),
            heads,
            lanes,
            self.queries.holds.ravel(),
            self.keys.holds.ravel(),
        )
        return layout, int(allowed.sum())

    def tiles(self, at: Ints) -> tuple[Bools, Bools]:
        """The token masks (count, bq, bk) of some entries, and which slots are not empty."""
        (q, real_q), (k, real_k) = (
            (order.place.reshape(-1, BLOCK)[block], order.holds.reshape(-1, BLOCK)[block] >= 0)
            for order, block in (
                (self.queries, self.found.row[at]),
                (self.keys, self.found.column[at]),
            )
        )
        real = real_q[:, :, None] & real_k[:, None, :]
        return self.pattern(q[:, :, None], k[:, None, :]) & real, real


def gathered(pattern: Pattern, queries: Order, keys: Order, most: float) -> Gathered | None:
    """The tiles of a set of pairs; None if they are more than `most`, or too different."""
    found = find(pattern, queries, keys, most)
    if found is None:
        return None
    mine = Gathered(pattern, queries, keys, found)
    return mine if len(mine.kinds[0]) * BLOCK**2 <= DENSEST else None


def _kinds(queries: Order, keys: Order, found: Found, tiles: Ints, every: int) -> Ints:
    """A number for each tile; tiles with one number are the same tile.

    Progressions of one step and length that lie alike up to a shift by a multiple of `every`.
    """
    sides = [_blocks(queries, found.row[tiles]), _blocks(keys, found.column[tiles])]
    even = sides[0].even & sides[1].even
    if not every or not even.any():
        return np.arange(len(tiles))
    place = np.stack(
        [
            np.where(even, sides[0].first - sides[1].first, np.arange(len(tiles))),
            np.where(even, sides[0].first % every, -1),
            *(np.where(even, x, 0) for side in sides for x in (side.step, side.size)),
        ]
    )
    return np.unique(place, axis=1, return_inverse=True)[1].ravel()


class _Blocks(NamedTuple):
    first: Ints
    step: Ints
    size: Ints
    even: Bools  # whether they are arithmetic progressions


def _blocks(order: Order, at: Ints) -> _Blocks:
    """The first place, step and number of places of some blocks."""
    place, count = order.place.reshape(-1, BLOCK), order.filled
    step = np.where(count > 1, place[:, 1] - place[:, 0], 0)
    line = place[:, :1] + step[:, None] * np.arange(BLOCK)
    inside = np.arange(BLOCK) < count[:, None]
    even = ((line == place) | ~inside).all(axis=1)
    return _Blocks(place[at, 0], step[at], count[at], even[at])
