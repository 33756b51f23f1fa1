"""Rows of a tensor, brought to where the products of a gradient read them.

A block has slots; `index` names the row that stands in each, -1 where none does. Rows that are
listed are copied as they lie, one after another; rows that are owned are turned into lanes.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import numpy as np

from ._jit import inner
from .vectors import width


@inner
def place(index, slots, first, count):
    """Which rows stand in the slots from `first` on; 1 + the last in use, and whether any is empty.

    Rows are numbered from 0 to count - 1. `slots` says who is where; empty: everybody in turn.
    """
    used, holes = 0, False
    for r in range(len(index)):
        row = first + r
        if len(slots):
            row = slots[row]
        index[r] = row if row < count else -1
        if index[r] >= 0:
            holes |= used < r
            used = r + 1
    return used, holes


@inner
def fetch(block, x, at, row, index, used, size):
    """Copy the rows of a block, 0 where there is none; whether all of them are finite."""
    most, fine = np.finfo(x.dtype).max, True
    for r in range(used):
        target = block[r * size : (r + 1) * size]
        if index[r] < 0:
            target[:] = 0
            continue
        source = x[at + index[r] * row : at + index[r] * row + size]
        for c in range(size):
            target[c] = source[c]
            fine &= abs(source[c]) <= most
    return fine


@inner
def clean(block, raw, size):
    """A copy with 0 for what is not finite."""
    most = np.finfo(raw.dtype).max
    for i in range(size):
        block[i] = raw[i] if abs(raw[i]) <= most else 0


@inner
def turn(panels, x, at, row, index, size, factor):
    """Rows as lanes, panel by panel, times a factor; 0 where there is none."""
    w = width(panels)
    panels[:] = 0
    for r in range(len(index)):
        if index[r] < 0:
            continue
        start = at + index[r] * row
        source, lane = x[start : start + size], r // w * size * w + r % w
        target = panels[lane : lane + (size - 1) * w + 1 : w]
        for c in range(size):
            target[c] = source[c] * factor


@inner
def restore(target, panels, index, size, factor):
    """Add lanes, times a factor, to the rows they were."""
    w = width(panels)
    for r in range(len(index)):
        if index[r] < 0:
            continue
        lane = r // w * size * w + r % w
        source = panels[lane : lane + (size - 1) * w + 1 : w]
        to = target[index[r]]
        for c in range(size):
            to[c] += source[c] * factor


@inner
def poison(acc, to, raw, low, used, size, weights, seen, least):
    """What the entries that are not finite add to the lanes that see them.

    A weight that is too small for its type counts as `least`.
    """
    w, most = width(acc), np.finfo(raw.dtype).max
    for r in range(used):
        for c in range(size):
            value = raw[(low + r) * size + c]
            if abs(value) <= most:
                continue
            for lane in range(w):
                if seen[r * w + lane]:
                    weight = weights[r * w + lane]
                    acc[to + c * w + lane] += value * (least if weight == 0 else weight)
