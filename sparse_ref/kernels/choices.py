"""The cheapest way to compute a pattern, by the cost model alone: nothing is timed.

Every set of pairs may be computed by tiles in the order of the sequence, by tiles over queries and
keys that were gathered or dealt by a period of the pattern, by tiles over listed rows that share
keys, or row by row; and a pattern whole or as a disjoint sum. A way that has many times the tiles
of another is given up on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from scipy import sparse

from sparse_ref.layouts import to_blocks
from sparse_ref.layouts.csr import frame_csr
from sparse_ref.patterns import Pattern, Permuted
from sparse_ref.patterns.dense import frame_of

from .costs import Work, row_counts, seconds, work_of
from .gathered import DENSEST, gathered
from .groups import bundled
from .orders import BLOCK, Order, count, deal, scattered, used
from .progressions import periods
from .room import BLOCK_BYTES, Room
from .rows import Layout as RowLayout
from .rows import row_layout
from .splits import disjoint
from .tile_layouts import Layout, tile_layout
from .ways import Attempt, Shape, Way

MOST = 2**22  # blocks of queries against blocks of keys that a layout may list
MORE = 4  # times as many as another way lists, then one is given up
PERIODS = 4  # that are tried
ASKED = 2**20  # remainders taken at once
LISTED = 2**25  # pairs among which alike rows are looked for
SHARED = 4  # rows that a key which is gathered for alike rows serves, at least, on average


def choose(pattern: Pattern, shape: Shape, room: Room) -> list[Way]:
    """The cheapest ways whose pairs sum up to a head-free pattern."""
    if not shape.q_len or not shape.kv_len:
        return [Choice(pattern, shape).in_order()]
    if pattern.multiset:
        apart = [way for part in pattern.parts for way in choose(part, shape, room)]
    else:
        sets = disjoint(pattern, shape.queries, shape.keys)
        apart = [Choice(one, shape, room).best() for one in sets] if len(sets) > 1 else []
    apart = [way for i, way in enumerate(apart) if way.pairs or not i]
    if not apart:
        return [Choice(pattern, shape, room).best()]
    total = sum(way.seconds for way in apart)
    blocks, pairs = sum(way.blocks for way in apart), sum(way.pairs for way in apart)
    whole = Choice(pattern, shape, room).best(blocks, pairs)
    if whole.seconds <= total:
        return [whole]
    first, *others = apart
    undivided = "undivided", whole.seconds / total if total else np.inf
    return [first._replace(others=(*first.others, undivided)), *others]


@dataclass(frozen=True, eq=False)
class Choice:
    """The ways to compute one set of pairs."""

    pattern: Pattern
    shape: Shape
    room: Room = field(default_factory=Room)

    def best(self, blocks: float = np.inf, pairs: float | None = None) -> Way:
        """The cheapest way, of those that list not many more blocks than each other and `blocks`.

        `pairs` is how many there are, if that is known.
        """
        ways: list[Way] = []
        given_up: list[tuple[str, float]] = []
        for name, attempt in self.attempts(rivals=blocks < np.inf):
            most = MORE * min([blocks, *(way.blocks for way in ways)]) + MORE
            way = attempt(min(most, MOST))
            ways += [way] if way else []
            given_up += [] if way else [(name, np.inf)]
        if pairs is None:
            pairs = ways[0].pairs if ways else self.csr.nnz
        ways.append(self.by_rows(pairs))
        best, *others = sorted(ways, key=lambda way: way.doubted)
        times = ((way.order, way.seconds / best.seconds) for way in others if best.seconds)
        return best._replace(others=(*times, *given_up))

    def attempts(self, rivals: bool) -> Iterator[tuple[str, Attempt]]:
        """Ways by tiles, each given the most blocks it may list; None gives up."""
        pattern, shape = self.pattern, self.shape
        if isinstance(pattern, Permuted) and not (pattern.multiset or pattern.pattern.explicit):
            yield "permuted", self.permuted
            return
        if pattern.explicit:
            yield "in order", self.listed_in_order
            yield "alike rows", self.alike
            return
        q, k = used(pattern, shape.queries, shape.keys)
        if not q.any() or not k.any():
            yield "in order", self.in_order
            return
        queries, keys = (np.flatnonzero(x if scattered(x) else np.ones_like(x)) for x in (q, k))
        gathers = len(queries) < len(q) or len(keys) < len(k)
        known = [] if pattern.multiset else self.periods(max(len(queries), len(keys)))
        for period in [1] * (gathers and not pattern.multiset) + known:
            sides = deal(queries, shape.q_start + queries, period), deal(keys, keys, period)
            name = f"dealt by {period}" if period > 1 else "gathered"
            yield name, partial(self.gathered, pattern, *sides, name)
        yield "in order", self.in_order_if_few if rivals or gathers or known else self.in_order

    def periods(self, length: int) -> list[int]:
        """The longest periods that may pay, and can be asked for all pairs of residues."""
        found = periods(self.pattern)
        asked = sum(found.values())
        longest = min(length // 4, math.isqrt(ASKED // max(asked, 1)))
        return sorted(p for p in found if p <= longest)[-PERIODS:]

    def in_order(self, most: float = np.inf) -> Way:
        """By tiles in the order of the sequence."""
        if self.room.bounded:
            sides, most = self.sides(), min(max(self.room.blocks, 0), MOST)
            listed = sum(count(part, *sides, most) for part in self.pattern.parts)
            self.room.need(BLOCK_BYTES * int(listed))
        layout, pairs = self.blocks()
        return self.by_tiles("in order", work_of(layout), pairs, lambda: (layout, pairs))

    def blocks(self) -> tuple[Layout, int]:
        """The tiles in the order of the sequence, and their pairs."""
        m, n = self.shape.q_len, self.shape.kv_len
        blocks = to_blocks(self.pattern, m, n, block_size=BLOCK, q_start=self.shape.q_start)
        return tile_layout(blocks, self.shape.heads, self.shape.lanes), blocks.nnz

    def in_order_if_few(self, most: float) -> Way | None:
        """The same, estimated first, as there are rivals."""
        way = self.gathered(self.pattern, *self.sides(), "in order", most)
        return way and way._replace(make=self.blocks)

    def sides(self) -> tuple[Order, Order]:
        """Queries and keys as they are."""
        q, k = self.shape.queries, self.shape.keys
        return deal(np.arange(len(q)), q), deal(k, k)

    def listed_in_order(self, most: float) -> Way | None:
        """The same for listed pairs, which may touch many blocks, each with a tile of its own."""
        csr, lanes = self.csr, self.shape.lanes
        key = csr.indices.astype(np.int64)
        panel = np.repeat(np.arange(self.shape.q_len) // lanes, np.diff(csr.indptr))
        code = panel * (-(-self.shape.kv_len // BLOCK)) + key // BLOCK
        order = np.argsort(code, kind="stable")
        at, start = np.unique(code[order], return_index=True)
        if not len(at):
            return self.in_order()
        first, last = np.minimum.reduceat(key[order], start), np.maximum.reduceat(key[order], start)
        height = (last - first + 1) * lanes
        columns = -(-self.shape.kv_len // BLOCK)
        of_block = at // columns * lanes // BLOCK * columns + at % columns
        _, block = np.unique(of_block, return_inverse=True)
        full = np.bincount(block, np.diff(np.append(start, len(key)))) == BLOCK**2
        blocks, masked = len(full), float(height[~full[block]].sum())
        if blocks > most or blocks * BLOCK**2 > DENSEST:
            return None
        pairs, panels = float(height.sum()), float(len(at))
        work = Work(pairs, masked, panels, float(blocks), 0, float(self.shape.q_len))
        return self.by_tiles("in order", work, csr.nnz, self.blocks)

    def alike(self, most: float) -> Way | None:
        """By tiles over bundles of rows that share keys."""
        if not 0 < self.csr.nnz <= LISTED:
            return None
        ways = []
        for bundles in bundled(self.csr, self.shape.lanes):
            work, masks = bundles.estimate
            shared = SHARED * work.gathered <= self.csr.nnz
            if shared and work.blocks <= most and masks * BLOCK**2 <= DENSEST:
                make = partial(bundles.layout, self.shape.heads)
                ways.append(self.by_tiles("alike rows", work, self.csr.nnz, make))
        return min(ways, key=lambda way: way.seconds, default=None)

    def permuted(self, most: float) -> Way | None:
        """By tiles over queries and keys in the pattern's own order."""
        shape, order = self.shape, self.pattern.order  # type: ignore[attr-defined]
        (queries, at_q), (keys, at_k) = (
            (np.flatnonzero(order[x] >= 0), order[x][order[x] >= 0])
            for x in (shape.queries, shape.keys)
        )
        if not len(queries) or not len(keys):
            return self.in_order()
        sides = deal(queries, at_q), deal(keys, at_k)
        return self.gathered(self.pattern.pattern, *sides, "permuted", most)  # type: ignore[attr-defined]

    def gathered(
        self, pattern: Pattern, queries: Order, keys: Order, name: str, most: float
    ) -> Way | None:
        """By tiles over queries and keys in another order."""
        found = gathered(pattern, queries, keys, most)
        if found is None:
            return None
        make = partial(found.layout, self.shape.heads, self.shape.lanes)
        return self.by_tiles(name, *found.estimate(self.shape.lanes), make)

    def by_tiles(
        self, order: str, work: Work, pairs: float, make: Callable[[], tuple[Layout, int]]
    ) -> Way:
        """A way by the tile kernel."""
        predicted = seconds(work.counts(self.shape.head_dim), self.shape.itemsize)
        return Way("tiles", order, predicted, pairs, work.blocks, make)

    def by_rows(self, pairs: float) -> Way:
        """The way by the row kernel."""
        counts = row_counts(pairs, self.shape.q_len, self.shape.head_dim)
        predicted = seconds(counts, self.shape.itemsize)
        return Way("rows", "rows", predicted, pairs, np.inf, self.listed)

    @cached_property
    def csr(self) -> sparse.csr_array[Any]:
        """The pairs, row by row."""
        shape = self.shape
        frame = frame_of(self.pattern, shape.q_len, shape.kv_len, shape.q_start)
        self.room.need_pairs(self.pattern, frame)
        return frame_csr(self.pattern, frame)

    def listed(self) -> tuple[RowLayout, int]:
        """The pairs as the row kernel reads them, and their number."""
        heads = self.shape.heads
        return row_layout([self.csr], heads, [0] * len(heads)), self.csr.nnz
