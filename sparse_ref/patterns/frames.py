"""Where queries and key slots are: the arguments that say so, checked, for every batch row."""

from __future__ import annotations

import math

import numpy as np

from sparse_ref._arrays import Ints, integers

from .dense import Frame, frame_of
from .pattern import Pattern


def frames_of(
    pattern: object,
    shape: tuple[int, ...],
    q_start: object,
    *,
    kv_positions: object,
    kv_lengths: object = None,
) -> list[Frame]:
    """Positions for every batch row of `shape`: its leading axes, m queries and n key slots."""
    *axes, m, n = shape
    lead = tuple(axes)
    if kv_lengths is not None and m < n and q_start is None:
        raise ValueError(
            "q_start is needed with kv_lengths when m < n: kv_lengths - m for a cache, "
            "n - m for right padding"
        )
    starts = _rows("q_start", n - m if q_start is None else q_start, lead)
    slots = np.broadcast_to(_positions(kv_positions, lead, n), (*lead, n))
    slots = slots.reshape(math.prod(lead), n)
    if kv_lengths is not None:
        lengths = _rows("kv_lengths", kv_lengths, lead)
        if lengths.size and (lengths.min() < 0 or lengths.max() > n):
            wrong = lengths[(lengths < 0) | (lengths > n)][0]
            raise ValueError(f"kv_lengths must be in [0, {n}], got {wrong}")
        slots = np.where(np.arange(n) < lengths[:, None], slots, -1)

    def frame(start: int, row: Ints) -> Frame:
        if isinstance(pattern, Pattern):
            return frame_of(pattern, m, n, start, row)
        return Frame(np.arange(start, start + m), row)

    return [frame(int(s), row) for s, row in zip(starts, slots, strict=True)]


def _positions(kv_positions: object, lead: tuple[int, ...], n: int) -> Ints:
    if kv_positions is None:
        return np.arange(n)
    got = integers("kv_positions", kv_positions, ndim=tuple(range(1, len(lead) + 2)))
    return _broadcast("kv_positions", got, (*lead, n))


def _rows(name: str, value: object, lead: tuple[int, ...]) -> Ints:
    """One integer for every batch row."""
    got = integers(name, value, ndim=tuple(range(len(lead) + 1)))
    return _broadcast(name, got, lead).reshape(-1)


def _broadcast(name: str, got: Ints, shape: tuple[int, ...]) -> Ints:
    try:
        return np.broadcast_to(got, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to {shape}, got {got.shape}") from None
