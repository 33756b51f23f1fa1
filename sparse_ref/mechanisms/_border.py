"""What mechanisms share: the check of their arrays, and keys that no pattern describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from sparse_ref._arrays import Floats, Ints, array, floats, integers
from sparse_ref.patterns import Frame


class Extents(dict[str, int]):
    """The extent of every axis by its letter: the first array that has an axis sets it.

    >>> sizes = Extents()
    >>> sizes.floats("q", np.zeros((2, 5)), "n d").shape
    (2, 5)
    >>> sizes.floats("k", np.zeros((3, 5)), "n d")
    Traceback (most recent call last):
    ...
    ValueError: k must have shape (n, d) with n = 2, d = 5, got (3, 5)
    """

    def floats(self, name: str, value: object, axes: str) -> Floats:
        """Real numbers with these axes, in float64."""
        got = floats(name, value)
        self.fit(name, got.shape, axes)
        return got.astype(np.float64)

    def integers(self, name: str, value: object, axes: str) -> Ints:
        """Integers with these axes."""
        got = integers(name, value, ndim=tuple(range(array(name, value).ndim + 1)))
        self.fit(name, got.shape, axes)
        return got

    def fit(self, name: str, shape: tuple[int, ...], axes: str) -> None:
        """Learn new extents, refuse others than known."""
        letters = axes.split()
        known = {a: self[a] for a in letters if a in self}
        if len(shape) == len(letters):
            for letter, extent in zip(letters, shape, strict=True):
                self.setdefault(letter, extent)
            if shape == tuple(self[a] for a in letters):
                return
        where = " with " + ", ".join(f"{a} = {size}" for a, size in known.items()) if known else ""
        raise ValueError(f"{name} must have shape ({', '.join(letters)}){where}, got {shape}")


def lengths_of(value: object, b: int, n: int) -> Ints:
    """Tokens that are no padding, for every batch row: right padding only."""
    if value is None:
        return np.full(b, n)
    got = integers("lengths", value, ndim=(0, 1))
    if got.shape not in ((), (b,)):
        raise ValueError(f"lengths must be one integer or {b} of them, got shape {got.shape}")
    if got.size and not (got.min() >= 0 and got.max() <= n):
        raise ValueError(f"lengths must be in [0, {n}], got {got.min()}..{got.max()}")
    return np.broadcast_to(got, b)


@dataclass(frozen=True, eq=False)
class Counted:
    """How often each query counts each key, in place of a pattern: (b, s, m, n), s heads or 1."""

    counts: Any

    def row_csr(self, frame: Frame, batch: int, head: int) -> sparse.csr_array[Any]:
        """The keys of one head of one batch row."""
        heads = self.counts.shape[1]
        return sparse.csr_array(self.counts[batch, head % heads].astype(np.int32))
