"""A score bias that depends on the distance of key and query only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import Floats, Ints, floats, integer


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """A bias that depends on the distance of key and query only (T5, LongT5, Swin's 1-D form).

    Parameters
    ----------
    table : float (width,) or (h, width)
        `table[..., left + t]` is added to the score of a key `t` positions after its query;
        distances past either end take the value at that end, as T5's last bucket does.
    left : int >= 0
        How many of the entries are for keys before the query.

    Source: Raffel et al. 2020 (arXiv:1910.10683).

    >>> RelativeBias(np.array([-1.0, 0.0]), left=1).at(np.array([-3, -1, 0, 5]), head=0)
    array([-1., -1.,  0.,  0.])
    """

    table: Any
    left: int

    def __post_init__(self) -> None:
        table = floats("table", self.table)
        if table.ndim not in (1, 2) or not table.shape[-1]:
            raise ValueError(f"table must have shape (width,) or (h, width), got {table.shape}")
        left = integer("left", self.left, 0, table.shape[-1] - 1)
        object.__setattr__(self, "table", table.astype(np.float64))
        object.__setattr__(self, "left", left)

    def index(self, distance: Ints, head: int) -> Ints:
        """Flat index into the table of the entry for each distance `k - p`."""
        width = self.table.shape[-1]
        column = np.clip(self.left + distance, 0, width - 1)
        return column + (head * width if self.table.ndim == 2 else 0)

    def at(self, distance: Ints, head: int) -> Floats:
        """The bias for each distance `k - p`."""
        return self.table.ravel()[self.index(distance, head)]  # type: ignore[no-any-return]
