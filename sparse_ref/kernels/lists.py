"""The keys of few queries as lists of runs of slots: how they are kept, and how kernels read them.

There is a list for every query of every distinct head, and one for every distinct group of heads
that share a key/value head: the slots that any of their queries sees.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Ints
from sparse_ref.patterns import Frame, Pattern

from ._jit import inner
from .runs import Runs, joined, of_csr, runs_of

CHUNK = 4096  # slots: part of what a result's bits depend on


class Layout(NamedTuple):
    """Lists of runs of slots: list i is runs[indptr[i] : indptr[i + 1]]."""

    indptr: Ints
    runs: Ints  # (number, 3): start, stop, and how often its keys count
    list_of: Ints  # (batch rows or 1, heads): of the first query; those of the others follow
    read_of: Ints  # (batch rows or 1, key/value heads): the slots that any of its queries sees
    position: Ints  # (batch rows or 1, n): of the slots
    q_start: Ints  # (batch rows or 1,)


def layout(
    rows: Sequence[Sequence[Any]], frames: Sequence[Frame], kv_heads: int, *, far: bool = True
) -> Layout:
    """The layout of batch rows, given as a pattern or a CSR array for every head.

    `far` says whether distances are asked for, and the positions of every row's slots are needed.
    """
    heads, group = len(rows[0]), len(rows[0]) // kv_heads
    lists: list[Runs] = []
    known: dict[Any, int] = {}
    list_of, read_of = [], []
    for batch, (row, frame) in enumerate(zip(rows, frames, strict=True)):
        if batch and not _same(frame, frames[batch - 1]):
            known.clear()
        mine = []
        for one in row:
            listed = not isinstance(one, Pattern)
            key = id(one) if listed else one
            if key not in known:
                known[key] = len(lists)
                lists.append(of_csr(one) if listed else runs_of(one, frame))
            mine.append(known[key])
        for g in range(kv_heads):
            together = frozenset(mine[g * group : (g + 1) * group])
            if len(together) == 1 and len(frame.q) == 1:  # one list is its own union
                known[together] = min(together)
            if together not in known:
                known[together] = len(lists)
                lists.append(_union([lists[i] for i in together], len(frame.k)))
            read_of.append(known[together])
        list_of += mine
    starts = np.cumsum([0, *(len(x.indptr) - 1 for x in lists)])
    entries = np.cumsum([0, *(len(x.start) for x in lists)])
    indptr = [x.indptr[:-1] + before for x, before in zip(lists, entries, strict=False)]
    runs = [np.stack(x[1:], axis=1) for x in lists]
    one = not far or all(np.array_equal(frame.k, frames[0].k) for frame in frames[1:])
    return Layout(
        np.append(np.concatenate(indptr), entries[-1]),
        np.concatenate(runs),
        starts[list_of].reshape(-1, heads),
        starts[read_of].reshape(-1, kv_heads),
        np.stack([frame.k for frame in (frames[:1] if one else frames)]),
        np.array([int(frame.q[0]) for frame in frames]),
    )


def pairs(of: Layout, m: int) -> int:
    """How many pairs of a query and a key it sees there are, all heads and batch rows."""
    seen = np.append(0, np.cumsum(of.runs[:, 1] - of.runs[:, 0]))
    one = np.diff(seen[of.indptr])
    return int(one[of.list_of[:, :, None] + np.arange(m)].sum())


def _same(frame: Frame, other: Frame) -> bool:
    return frame is other or bool(frame.q[0] == other.q[0] and np.array_equal(frame.k, other.k))


def _union(lists: list[Runs], n: int) -> Runs:
    """The slots in any of some lists, as one list."""
    start, stop = (np.concatenate([x[i] for x in lists]) for i in (1, 2))
    return joined(1, n, np.zeros(len(start), dtype=np.int64), start, stop)


@inner
def load_keys(layout, slots, keys, at, group, chunk):
    """The slots of a chunk that any query sees; how many."""
    which, seen = layout.read_of[at % len(layout.read_of), group], 0
    low = max(chunk * CHUNK - slots.first[at], 0)
    high = min((chunk + 1) * CHUNK - slots.first[at], slots.length[at])
    for entry in range(first_run(layout, which, low), layout.indptr[which + 1]):
        start, stop = max(layout.runs[entry, 0], low), min(layout.runs[entry, 1], high)
        if start >= stop:
            break
        for j in range(stop - start):
            keys[seen + j] = start + j
        seen += stop - start
    return seen


@inner
def first_run(layout, which, low):
    """The first run of a list that ends past `low`."""
    begin, end = layout.indptr[which], layout.indptr[which + 1]
    while begin < end:
        middle = (begin + end) // 2
        if layout.runs[middle, 1] > low:
            end = middle
        else:
            begin = middle + 1
    return begin


@inner
def choose(s, layout, which, keys):
    """-inf where a list does not hold the key, log c more where it counts c times."""
    seen, done = len(s), 0
    for entry in range(first_run(layout, which, keys[0]), layout.indptr[which + 1]):
        start, stop = max(layout.runs[entry, 0], keys[0]), layout.runs[entry, 1]
        stop = min(stop, keys[seen - 1] + 1)
        if start >= stop:
            break
        begin = place_of(start, keys, done, seen)
        hide(s, done, begin)
        done = min(begin + stop - start, seen)  # what is read holds every list
        if layout.runs[entry, 2] > 1:
            more = s.dtype.type(np.log2(layout.runs[entry, 2]))
            for j in range(begin, done):
                s[j] += more
    hide(s, done, seen)


@inner
def place_of(key, keys, begin, end):
    """Where a key stands among ascending keys."""
    while begin < end:
        middle = (begin + end) // 2
        if keys[middle] < key:
            begin = middle + 1
        else:
            end = middle
    return begin


@inner
def hide(s, begin, end):
    """Scores of keys that are not seen."""
    for j in range(begin, end):
        s[j] = -np.inf
