"""Keys and values that lie scattered, copied side by side.

A layout whose key blocks are read by several blocks of queries has them copied once, before; else
every worker copies a block when it comes to it, which needs no memory.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import inner, kernel
from .tile_layouts import Layout
from .vectors import claim, width


class Copies(NamedTuple):
    """K and V of every batch row that runs, in the order of a layout's slots; empty: not made."""

    k: NDArray[Any]  # flat (rows, g, slots, d)
    v: NDArray[Any]  # flat (rows, g, slots, e)


def room(layout: Layout) -> int:
    """How many slots the copies of a layout have; 0 where a block is read about once."""
    if len(layout.indices) < 2 * (len(layout.keys) // int(layout.block[1])):
        return 0
    return len(layout.keys)


@kernel
def collect(worker, counters, x, layout, slots, copies):
    """Fill the copies, block by block."""
    g, d, e, bk, size = x.sizes[1], x.sizes[4], x.sizes[5], layout.block[1], len(layout.keys)
    blocks, key = size // bk, np.empty(bk, np.int64)
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * g * blocks:
            break
        at, group, j0 = task // (g * blocks), task // blocks % g, task % blocks * bk
        for j in range(bk):
            key[j] = layout.keys[j0 + j] if layout.keys[j0 + j] < slots.length[at] else -1
        place = (at * g + group) * size + j0
        first, batch = slots.first[at], slots.batch[at]
        gather(x, key, batch, group, first, copies.k, place * d, copies.v, place * e)


@inner
def gather(x, key, batch, group, first, k, k_to, v, v_to):
    """Copy the keys and values of a block; 0 where there is none."""
    d, e, ks, vs = x.sizes[4], x.sizes[5], x.k, x.v
    k_at = batch * x.k_strides[0] + group * x.k_strides[1]
    v_at = batch * x.v_strides[0] + group * x.v_strides[1]
    for j in range(len(key)):
        to_k, to_v = k[k_to + j * d : k_to + (j + 1) * d], v[v_to + j * e : v_to + (j + 1) * e]
        if key[j] < 0:
            to_k[:], to_v[:] = 0, 0
            continue
        from_k = k_at + (first + key[j]) * x.k_strides[2]
        from_v = v_at + (first + key[j]) * x.v_strides[2]
        k_row, v_row = ks[from_k : from_k + d], vs[from_v : from_v + e]
        for c in range(d):
            to_k[c] = k_row[c]
        for c in range(e):
            to_v[c] = v_row[c]


@inner
def who(layout, slots, work, at, j0):
    """Note the key of every slot of a block, -1 for none; 1 + the last slot that has one."""
    last = 0
    for j in range(layout.block[1]):
        key = layout.keys[j0 + j]
        work.key[j] = key if key < slots.length[at] else -1
        if work.key[j] >= 0:
            last = j + 1
    return last


@inner
def hide(work, low, seen):
    """-inf for slots without a key."""
    w = width(work.s)
    for j in range(seen):
        if work.key[low + j] < 0:
            work.s[j * w : (j + 1) * w] = -np.inf
