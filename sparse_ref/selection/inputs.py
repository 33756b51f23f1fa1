"""The border of selectors: their arrays checked once, then seen one batch row at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Bools, Floats, Ints, floats
from sparse_ref.patterns import Frame, Pattern
from sparse_ref.patterns.frames import frames_of
from sparse_ref.patterns.pattern import checked

Table = NDArray[np.int32]
CHUNK = 2**22  # scores looked at together


class Row(NamedTuple):
    """One batch row: what scores, in float64, and where it is; keys in order of position."""

    q: Floats  # (h, m, d)
    k: Floats  # (g, n, d), of the filled slots
    queries: Ints  # (m,) absolute positions
    keys: Ints  # (n,) ascending
    slots: Ints  # (n,) where each key was found
    batch: int
    visible: Pattern

    def seen(self, cut: slice) -> Bools:
        """Which keys some queries may see, (rows, n)."""
        at = self.queries[cut][:, None], self.keys[None, :]
        return np.broadcast_to(self.visible(*at), (len(at[0]), len(self.keys)))

    def cuts(self, each: int) -> Iterator[slice]:
        """Some queries at a time; `each` is the size of what one of them needs."""
        m, step = len(self.queries), max(1, CHUNK // max(each, 1))
        return (slice(start, min(start + step, m)) for start in range(0, m, step))


class Inputs(NamedTuple):
    """Checked arguments of a selector."""

    q: NDArray[Any]  # (b, h, m, d)
    k: NDArray[Any]  # (b, g, n, d)
    frames: list[Frame]
    visible: Pattern

    def rows(self) -> Iterator[Row]:
        """Every batch row."""
        for batch, frame in enumerate(self.frames):
            filled = np.flatnonzero(frame.k >= 0)
            slots = filled[np.argsort(frame.k[filled], kind="stable")]
            keys = frame.k[slots]
            if (np.diff(keys) == 0).any():
                twice = int(keys[1:][np.diff(keys) == 0][0])
                raise ValueError(f"kv_positions must hold a position once, got {twice} twice")
            yield Row(
                np.asarray(self.q[batch], np.float64),
                np.asarray(self.k[batch][:, slots], np.float64),
                frame.q, keys, slots, batch, self.visible.for_batch(batch),
            )  # fmt: skip

    def table(self, rule: Callable[[Row, slice], tuple[Bools, Ints]], each: int) -> Table:
        """The indices (b, s, m, k) that `rule` chooses.

        rule(row, cut) answers which candidates (s, rows, c) some queries choose and the number of
        each candidate (c,), ascending; `each` is how many scores it holds for a query.
        """
        chosen = [
            [_listed(*rule(row, cut)) for cut in row.cuts(each)] or [np.zeros((1, 0, 0), np.int32)]
            for row in self.rows()
        ]
        widest = max((part.shape[-1] for parts in chosen for part in parts), default=0)
        wide = [np.concatenate([_wider(x, widest) for x in parts], axis=1) for parts in chosen]
        return np.stack(wide) if wide else np.zeros((0, 1, self.q.shape[-2], 0), np.int32)


def inputs(
    q: object,
    k: object,
    visible: object,
    q_start: object,
    kv_positions: object,
    *,
    names: tuple[str, str] = ("q", "k"),
    shared: bool = False,
) -> Inputs:
    """Check q (..., h, m, d) and k (..., g, n, d); a `shared` k may be (..., n, d)."""
    queries, keys = floats(names[0], q), floats(names[1], k)
    if queries.ndim < 3:
        raise ValueError(
            f"{names[0]} must have at least 3 axes (heads, length, size), got {queries.shape}"
        )
    if shared and keys.ndim == queries.ndim - 1:
        keys = keys[..., None, :, :]
    lead, (h, m, d) = queries.shape[:-3], queries.shape[-3:]
    if keys.shape[:-3] != lead or keys.ndim != queries.ndim or keys.shape[-1] != d or d < 1:
        raise ValueError(
            f"{names[1]} must have {names[0]}'s leading axes {lead} and size {d}, got {keys.shape}"
        )
    g, n = keys.shape[-3:-1]
    if g < 1 or h % g:
        raise ValueError(f"{names[1]} must have heads that divide {names[0]}'s {h}, got {g}")
    if shared and g != 1:
        raise ValueError(f"{names[1]} must have one head for all of {names[0]}'s, got {g}")
    b = math.prod(lead)
    pattern = checked(visible, "visible")
    if pattern.heads != 1 or pattern.multiset:
        raise ValueError(f"visible must be a set, alike for all heads, got {pattern!r}")
    if pattern.batches not in (None, b):
        raise ValueError(f"visible must be for a batch of {b}, got one for {pattern.batches}")
    frames = frames_of(pattern, (*lead, m, n), q_start, kv_positions=kv_positions)
    return Inputs(queries.reshape(b, h, m, d), keys.reshape(b, g, n, d), frames, pattern)


def _listed(chosen: Bools, numbers: Ints) -> Table:
    """The numbers of the chosen candidates, left-packed, -1 padded: (s, rows, widest)."""
    s, rows, _ = chosen.shape
    counts = chosen.sum(axis=-1)
    listed = np.full((s, rows, int(counts.max(initial=0))), -1, dtype=np.int32)
    listed[np.arange(listed.shape[-1]) < counts[..., None]] = numbers[np.nonzero(chosen)[2]]
    return listed


def _wider(listed: Table, width: int) -> Table:
    missing = width - listed.shape[-1]
    return np.pad(listed, ((0, 0), (0, 0), (0, missing)), constant_values=-1)
