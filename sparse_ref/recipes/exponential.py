"""Distances that double: LogSparse and butterflies."""

from __future__ import annotations

from sparse_ref._arrays import integer
from sparse_ref.patterns import Blocked, Global, Offsets, Pattern, SlidingWindow, Xor


def logsparse(length: int, local: int = 1) -> Pattern:
    """The last keys, then distances that double (LogSparse, Li et al. 2019, arXiv:1907.00235).

    A query sees its `local` last keys and those 1, 2, 4, 8, ... before them; with local = 1 the
    distances are 0, 1, 2, 4, ... of the paper. The code that forecasting repositories copy
    (`row_mask`) counts from the local window's edge as here, but attends in full to short pasts,
    restarts within sub-lengths, and there leaves out the query's own key.

    Parameters
    ----------
    length : int >= 1
        The longest sequence; no distance needs to be `length` or more.
    local : int >= 1
        Last keys seen, the own one included.

    >>> from sparse_ref import draw
    >>> print(draw(logsparse(6), 6))
    # . . . . .
    # # . . . .
    # # # . . .
    . # # # . .
    # . # # # .
    . # . # # #
    """
    n, edge = integer("length", length, 1), integer("local", local, 1) - 1
    far = [edge + (1 << i) for i in range(n.bit_length()) if edge + (1 << i) < n]
    return SlidingWindow(edge, 0) | Offsets(far) if far else SlidingWindow(edge, 0)


def butterfly(factors: int, block_size: int, global_blocks: int = 0) -> Pattern:
    """Blocks whose indices differ in one low bit (Pixelated Butterfly, arXiv:2112.00029).

    The flat block butterfly of Dao et al. 2022 (HazyResearch/fly): `qb ^ kb` is 0 or one of the
    first `factors` powers of two, or one of the two is among the first `global_blocks`. The paper's
    low-rank term is no pattern. Fix `block_size` for the longest length: a growing cache then
    only adds bits at the top.

    >>> from sparse_ref import draw
    >>> print(draw(butterfly(2, 1), 8))
    # # # . . . . .
    # # . # . . . .
    # . # # . . . .
    . # # # . . . .
    . . . . # # # .
    . . . . # # . #
    . . . . # . # #
    . . . . . # # #
    """
    bits = [1 << i for i in range(integer("factors", factors, 0, 30))]
    flat = Xor([0, *bits])
    count = integer("global_blocks", global_blocks)
    return Blocked(flat | Global(range(count)) if count else flat, block_size)
