"""Values that are not finite, kept apart: a weight of 0 does not hide them in a product.

A block of V is asked once whether it is finite. If not, it is multiplied with its non-finite
entries at 0, and they are added in the end, where a key that is seen has one.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import numpy as np

from ._jit import inner
from .vectors import width


@inner
def all_finite(v, at, row, keys, e):
    """1 if a block of V is finite, else 2."""
    most, fine = np.finfo(v.dtype).max, True
    for j in range(keys):
        value = v[at + j * row : at + j * row + e]
        for c in range(e):
            fine &= abs(value[c]) <= most
    return np.uint8(1 if fine else 2)


@inner
def poison(work, v, v_at, v_row, seen, panel, e):
    """The block of V without what is not finite, which is kept for the lanes that see it."""
    w = width(work.s)
    most = np.finfo(v.dtype).max
    for j in range(seen):
        for c in range(e):
            value = v[v_at + j * v_row + c]
            fine = abs(value) <= most
            work.clean[j * e + c] = value if fine else 0
            if not fine:
                for lane in range(w):
                    if work.s[j * w + lane] != -np.inf:
                        work.poison[(panel * e + c) * w + lane] += value
