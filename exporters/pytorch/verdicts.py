"""What a BlockMask says of each block of a pattern: nothing in it is seen, something, or all.

Intervals settle most blocks (`cover`). Of those they leave open, the ones that depend on a list of
pairs alone are settled by counting it; of the others one of each kind is looked at: its first row
and first column settle it if they show a pair that is seen and one that is not; what is open then
is evaluated, pair by pair. A pattern of blocks is asked for its blocks.
"""

from __future__ import annotations

import operator
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr
from sparse_ref._arrays import Bools, Ints
from sparse_ref.layouts.kinds import kinds, residues
from sparse_ref.patterns import And, Frame, Not, Or
from sparse_ref.patterns.descent import Cover, cover, evaluate
from sparse_ref.patterns.spans import Tri

NONE, SOME, ALL = 0, 1, 2
LOOKS = 1 << 26  # pairs that may be looked at: then blocks that are open count as SOME
CHUNK = 1 << 21  # pairs looked at in one go
MANY = 1 << 20  # blocks: with more of them lists of pairs narrow down where to look
UNKNOWN = Tri(np.False_, np.True_)


def verdicts(pattern: sr.Pattern, frame: Frame, size: tuple[int, int]) -> NDArray[np.int8]:
    """NONE, SOME or ALL for the blocks (rows, columns) of a head-free pattern.

    As in `create_block_mask`, ALL is said of whole blocks only, not of one cut off by an end.
    """
    found = np.zeros((-(-len(frame.q) // size[0]), -(-len(frame.k) // size[1])), dtype=np.int8)
    if pattern.explicit and found.size:
        return _counted(pattern, frame, size, found)
    end = _whole(frame, size)
    if isinstance(pattern, sr.Blocked) and found.size:
        side, start = pattern.block_size, int(frame.q[0])
        if not (start % side or size[0] % side or size[1] % side):
            q = np.arange(start // side, -(-(start + len(frame.q)) // side))
            coarse = Frame(q, np.arange(-(-len(frame.k) // side)))
            found = verdicts(pattern.pattern, coarse, (size[0] // side, size[1] // side))
            found[end[0] :][found[end[0] :] == ALL] = SOME
            found[:, end[1] :][found[:, end[1] :] == ALL] = SOME
            return found
    lists = _has_list(pattern)
    asked = partial(_loosely, pattern) if lists and found.size <= MANY else pattern
    blocks = cover(asked, frame.q, frame.k, size)
    whole = (blocks.row < end[0]) & (blocks.column < end[1])
    found[blocks.row, blocks.column] = np.where(blocks.full & whole, ALL, SOME)
    open_, whole = _part(blocks, ~blocks.full), whole[~blocks.full]
    if lists:
        left = _listed(pattern, frame, size, open_, found)
        open_, whole = _part(open_, left), whole[left]
    first, kind = _alike(pattern, frame, size, open_, whole)
    one, complete = _part(open_, first), whole[first]
    if len(first) * sum(size) > LOOKS:
        return found
    some, every = _edges(pattern, frame, size, one)
    for part in pattern.patterns if isinstance(pattern, Or) else ():
        if part.explicit:
            some |= verdicts(part, frame, size)[one.row, one.column] != NONE
    state = np.full(len(first), SOME, dtype=np.int8)
    rest = np.flatnonzero(~some | (every & complete))
    if len(rest) * size[0] * size[1] <= LOOKS:
        tiles = evaluate(pattern, frame.q, frame.k, size, _part(one, rest))
        pairs = [np.zeros(0, np.int64), *(tile.sum((1, 2)) for _, tile in tiles)]
        number = np.concatenate(pairs)
        state[rest] = np.where(number == size[0] * size[1], ALL, number > 0)
    found[open_.row, open_.column] = state[kind]
    return found


def _whole(frame: Frame, size: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of blocks are not cut off by an end."""
    return len(frame.q) // size[0], len(frame.k) // size[1]


def _has_list(pattern: sr.Pattern) -> bool:
    return pattern.explicit or any(map(_has_list, pattern.children))


def _loosely(pattern: sr.Pattern, q: Any, k: Any) -> Any:
    """The pattern on intervals, with lists of pairs left open: counting in them costs more."""
    if isinstance(pattern, (And, Or)):
        joined = operator.and_ if isinstance(pattern, And) else operator.or_
        return reduce(joined, (_loosely(one, q, k) for one in pattern.patterns))
    if isinstance(pattern, Not):
        return ~_loosely(pattern.pattern, q, k)
    return UNKNOWN if pattern.explicit else pattern(q, k)


def _listed(
    pattern: sr.Pattern, frame: Frame, size: tuple[int, int], blocks: Cover, found: Any
) -> Ints:
    """Settle the blocks on which only a list of pairs is open; those that are left."""
    start, known = int(frame.q[0]) if len(frame.q) else 0, {}
    left = [np.zeros(0, np.int64)]
    at_q, at_k = start + blocks.row * size[0], blocks.column * size[1]
    for at, (rest,) in residues(pattern, at_q, at_k, size):
        if not rest.explicit:
            left.append(at)
            continue
        if rest not in known:
            known[rest] = verdicts(rest, frame, size)
        row, column = blocks.row[at], blocks.column[at]
        found[row, column] = known[rest][row, column]
    return np.concatenate(left)


def _alike(
    pattern: sr.Pattern, frame: Frame, size: tuple[int, int], blocks: Cover, whole: Bools
) -> tuple[Ints, Ints]:
    """One block of each kind, and the kind of every block; a block that is cut off is its own."""
    start = int(frame.q[0]) if len(frame.q) else 0
    number = kinds(pattern, start + blocks.row * size[0], blocks.column * size[1], size)
    number = np.where(whole, number, len(number) + np.arange(len(number)))
    _, first, kind = np.unique(number, return_index=True, return_inverse=True)
    return first, kind


def _counted(
    pattern: sr.Pattern, frame: Frame, size: tuple[int, int], found: NDArray[np.int8]
) -> NDArray[np.int8]:
    """From a list of pairs: how many are in each block."""
    start, columns = int(frame.q[0]), found.shape[1]
    step = max(1, min(len(found), 2**16 // size[0]))
    for first in range(0, len(found), step):
        stop = min((first + step) * size[0], len(frame.q))
        rows = pattern.rows(start + first * size[0], start + stop, len(frame.k))
        code = rows.row_of // size[0] * columns + rows.indices // size[1]
        pairs = np.bincount(code, minlength=step * columns).reshape(-1, columns)
        part = found[first : first + step]
        part[:] = np.where(pairs == size[0] * size[1], ALL, pairs > 0)[: len(part)]
    return found


def _part(blocks: Cover, which: Bools | Ints) -> Cover:
    return Cover(blocks.row[which], blocks.column[which], blocks.full[which])


def _edges(
    pattern: sr.Pattern, frame: Frame, size: tuple[int, int], blocks: Cover
) -> tuple[Bools, Bools]:
    """Whether some, and every, pair of a block's first row and first column is seen."""
    some, every = (np.empty(len(blocks.row), dtype=bool) for _ in range(2))
    step = max(1, CHUNK // sum(size))
    for start in range(0, len(some), step):
        cut = slice(start, start + step)
        q, k = blocks.row[cut, None] * size[0], blocks.column[cut, None] * size[1]
        row = _asked(pattern, frame, q, k + np.arange(size[1]))
        column = _asked(pattern, frame, q + np.arange(size[0]), k)
        some[cut] = (row == 1).any(1) | (column == 1).any(1)
        every[cut] = (row != 0).all(1) & (column != 0).all(1)
    return some, every


def _asked(pattern: sr.Pattern, frame: Frame, q: Ints, k: Ints) -> NDArray[np.int8]:
    """1 where a pair is seen, 0 where not, -1 past an end."""
    inside = (q < len(frame.q)) & (k < len(frame.k))
    seen = pattern(frame.q[q.clip(max=len(frame.q) - 1)], frame.k[k.clip(max=len(frame.k) - 1)])
    return np.where(inside, seen, np.int8(-1))
