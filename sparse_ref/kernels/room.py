"""What `max_bytes` leaves for layouts, asked before they are made.

Blocks are counted by the descent that finds them, which need not list what is settled; listed pairs
are counted some rows at a time. Both stop where they pass the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_ref._arrays import integer
from sparse_ref.patterns import Frame, Pattern, RandomKeys

BLOCK_BYTES = 8  # a block's column and tile
PAIR_BYTES = 8  # a listed pair's key, and how often it counts
AT_ONCE = 2**20  # pairs listed at a time


@dataclass
class Room:
    """How much memory a call may take, and how much of it is taken already."""

    limit: int | None = None  # None: as much as there is
    taken: int = 0

    @property
    def bounded(self) -> bool:
        return self.limit is not None

    @property
    def blocks(self) -> float:
        """How many blocks a layout may list."""
        return np.inf if self.limit is None else (self.limit - self.taken) // BLOCK_BYTES

    def need(self, nbytes: int, *, at_least: bool = True) -> None:
        """Refuse what does not fit; `at_least` if even more may be needed."""
        if self.limit is not None and self.taken + nbytes > self.limit:
            what = "more than the" if at_least else "at least the"
            raise ValueError(
                f"max_bytes must be {what} {self.taken + nbytes} needed, got {self.limit}"
            )

    def take(self, nbytes: int) -> None:
        self.need(nbytes)
        self.taken += nbytes

    def need_pairs(self, pattern: Pattern, frame: Frame) -> None:
        """Refuse a head-free pattern with more pairs than may be listed."""
        if self.limit is None or not len(frame.q):
            return
        self.need(PAIR_BYTES * _to_be_drawn(pattern, frame))
        start, stop, keys = int(frame.q[0]), int(frame.q[-1]) + 1, frame.keys
        pairs, rows = 0, 1
        while start < stop:
            end = min(start + rows, stop)
            found = sum(int(part.rows(start, end, keys).indptr[-1]) for part in pattern.parts)
            pairs += found
            self.need(PAIR_BYTES * pairs)
            rows = max(1, min(2 * rows, AT_ONCE * (end - start) // max(found, 1)))
            start = end


def _to_be_drawn(pattern: Pattern, frame: Frame) -> int:
    """How many pairs random keys will be; 0 if that is not known before they are drawn."""
    if not isinstance(pattern, RandomKeys) or pattern.exclude is not None:
        return 0
    if not isinstance(frame.keys, int) or frame.keys < pattern.length:
        return 0
    rows = frame.q[(frame.q >= 0) & (frame.q < pattern.length)]
    candidates = rows + 1 if pattern.causal else pattern.length
    return int(np.minimum(np.broadcast_to(candidates, rows.shape), pattern.count).sum())


def room_of(max_bytes: object) -> Room:
    """The caller's limit."""
    if max_bytes is None:
        return Room()
    return Room(integer("max_bytes", max_bytes, high=2**63 - 1))
