"""A table of chosen blocks as a pattern: the way a selection becomes masks, CSR and blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ref._arrays import Ints
from sparse_ref.patterns import Pattern
from sparse_ref.patterns.explicit import spread
from sparse_ref.patterns.relation import KeyRows, Relation


@dataclass(frozen=True)
class Chosen(Pattern):
    """Row r of `blocks` holds the key blocks of queries start + r * query_block and following.

    Key block b is positions b * key_block .. (b + 1) * key_block - 1.
    """

    blocks: Relation
    query_block: int
    key_block: int
    start: int  # absolute position of the first query

    def __call__(self, q: Any, k: Any) -> Any:
        return self.blocks[(q - self.start) // self.query_block, k // self.key_block]

    @property
    def explicit(self) -> bool:
        return True

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        row = (np.arange(start, stop) - self.start) // self.query_block
        first, end = (int(row[0]), int(row[-1]) + 1) if len(row) else (0, 0)
        found = self.blocks.slice(first, end)
        if self.query_block > 1 or self.key_block > 1:
            found = spread(found, self.key_block, row - first)
        return found.over(max(stop, 0) if keys is None else keys)
