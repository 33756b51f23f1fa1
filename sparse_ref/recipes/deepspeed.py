"""DeepSpeed's SparsityConfig family (deepspeed/ops/sparse_attention, releases up to 0.18.9).

Block layouts, every token pair of an allowed block allowed. Causal layouts are lower-triangular by
*block*, as DeepSpeed's: intersect with Causal() for causality by token. Random blocks are drawn by
this library's rule (RandomKeys): DeepSpeed draws from Python's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparse_ref._arrays import integer, integers
from sparse_ref.patterns import (
    Blocked,
    Causal,
    Chunked,
    Document,
    Global,
    Keys,
    Pattern,
    PerHead,
    RandomKeys,
    Rows,
    SlidingWindow,
)


def _blocks(length: int, block_size: int) -> int:
    if integer("length", length, 1) % integer("block_size", block_size, 1):
        raise ValueError(f"length must be a multiple of block_size = {block_size}, got {length}")
    return length // block_size


def _cut(pattern: Pattern, causal: bool) -> Pattern:
    return pattern & Causal() if causal else pattern


def _per_head(several: list[Pattern]) -> Pattern:
    return several[0] if len(several) == 1 else PerHead(several)


def deepspeed_fixed(
    length: int,
    heads: int = 1,
    block_size: int = 16,
    local_blocks: int = 4,
    global_blocks: int = 1,
    causal: bool = False,
    horizontal: bool = False,
    patterns: int = 1,
) -> Pattern:
    """FixedSparsityConfig: windows of blocks, and global columns at the end of every window.

    Head h takes its `global_blocks` columns before the end of each window, `h % patterns` groups
    further back. Causal columns are seen from their group's first row on, so with more than one
    global block a few blocks above the diagonal are set, as in DeepSpeed.

    Parameters
    ----------
    length : int, a multiple of block_size
    heads, block_size, local_blocks, global_blocks : int >= 1; global_blocks divides local_blocks
    causal, horizontal : bool
        Unidirectional; global rows too (not with causal).
    patterns : int in [1, local_blocks / global_blocks]
        DeepSpeed's num_different_global_patterns.

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_fixed(4, block_size=1, local_blocks=2), 4))
    # # . #
    # # . #
    . # # #
    . # # #
    """
    n, local = _blocks(length, block_size), integer("local_blocks", local_blocks, 1)
    width = integer("global_blocks", global_blocks, 1)
    if local % width:
        raise ValueError(f"global_blocks must divide local_blocks = {local}, got {width}")
    patterns = integer("patterns", patterns, 1, local // width)
    if causal and horizontal:
        raise ValueError("horizontal must be False with causal=True, got True")
    own = _cut(Chunked(local), causal)

    def head(h: int) -> Pattern:
        first = local - (1 + h % patterns) * width
        whole = n // local * local
        starts = list(range(first, whole, local))
        if n % local:  # the short last window
            starts.append(min(whole + first, n - width))
        seen: Pattern = own
        for start in starts:
            columns: Pattern = Keys(range(start, min(start + width, n)))
            seen = seen | (columns & Rows(range(start, n)) if causal else columns)
            if horizontal:
                seen = seen | Rows(range(start, min(start + width, n)))
        return Blocked(seen, block_size)

    distinct = [head(h) for h in range(min(integer("heads", heads, 1), patterns))]
    return _per_head(distinct)


def deepspeed_variable(
    length: int,
    heads: int = 1,
    block_size: int = 16,
    random_blocks: int = 0,
    local_windows: Sequence[int] = (4,),
    global_indices: Sequence[int] = (0,),
    global_ends: Sequence[int] | None = None,
    causal: bool = False,
    horizontal: bool = False,
    seed: int = 0,
) -> Pattern:
    """VariableSparsityConfig: windows of given sizes (the last repeats), global and random blocks.

    Parameters
    ----------
    length, heads, block_size, causal, horizontal : as for `deepspeed_fixed`
    random_blocks, seed : int
        Random blocks a row, of all blocks (DeepSpeed may draw future ones in causal use too).
    local_windows : ints >= 1
    global_indices, global_ends : ints
        Global columns: single blocks, or ranges [index, end).

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_variable(5, block_size=1, local_windows=(1, 2)), 5))
    # . . . .
    # # # . .
    # # # . .
    # . . # #
    # . . # #
    """
    n = _blocks(length, block_size)
    sizes = integers("local_windows", local_windows).tolist()
    ids: list[int] = []
    while len(ids) < n:
        window = ids[-1] + 1 if ids else 0
        ids += [window] * integer("local_windows", sizes[min(window, len(sizes) - 1)], 1)
    seen: Pattern = _cut(Document(ids[:n]), causal)
    starts = integers("global_indices", global_indices).tolist()
    ends = [s + 1 for s in starts] if global_ends is None else list(global_ends)
    if len(ends) != len(starts):
        raise ValueError(f"global_ends must be one for each of {len(starts)} starts, got {ends}")
    for start, end in zip(starts, ends, strict=True):
        if start < n:
            columns: Pattern = Keys(range(start, min(end, n)))
            seen = seen | (columns & Rows(range(start, n)) if causal else columns)
            if horizontal:
                seen = seen | Rows(range(start, min(end, n)))
    return _with_random(seen, n, heads, block_size, random_blocks, seed)


def deepspeed_bigbird(
    length: int,
    heads: int = 1,
    block_size: int = 16,
    random_blocks: int = 1,
    window_blocks: int = 3,
    global_blocks: int = 1,
    causal: bool = False,
    seed: int = 0,
) -> Pattern:
    """BigBirdSparsityConfig: the first blocks global, a window, random blocks of all blocks.

    Unlike BigBird itself the last block is not global and random blocks exclude nothing.

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_bigbird(4, block_size=1, random_blocks=0), 4))
    # # # #
    # # # .
    # # # #
    # . # #
    """
    n = _blocks(length, block_size)
    side = integer("window_blocks", window_blocks, 1) // 2
    near = SlidingWindow(side, side) | Global(range(integer("global_blocks", global_blocks)))
    return _with_random(near, n, heads, block_size, random_blocks, seed, causal=causal)


def deepspeed_bslongformer(
    length: int,
    heads: int = 1,
    block_size: int = 16,
    window_blocks: int = 3,
    global_indices: Sequence[int] = (0,),
    global_ends: Sequence[int] | None = None,
    causal: bool = False,
) -> Pattern:
    """BSLongformerSparsityConfig: a window of blocks, and global blocks, rows and columns.

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_bslongformer(4, block_size=1, causal=True), 4))
    # . . .
    # # . .
    # # # .
    # . # #
    """
    _blocks(length, block_size)
    integer("heads", heads, 1)
    side = integer("window_blocks", window_blocks, 1) // 2
    starts = integers("global_indices", global_indices).tolist()
    ends = [s + 1 for s in starts] if global_ends is None else list(global_ends)
    chosen = sorted({b for s, e in zip(starts, ends, strict=True) for b in range(s, e)})
    return Blocked(_cut(SlidingWindow(side, side) | Global(chosen), causal), block_size)


def deepspeed_sliding(
    length: int,
    heads: int = 1,
    block_size: int = 16,
    window_blocks: int = 3,
    causal: bool = True,
) -> Pattern:
    """LocalSlidingWindowSparsityConfig: window_blocks // 2 blocks back, and ahead if not causal.

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_sliding(3, block_size=1), 3))
    # . .
    # # .
    . # #
    """
    _blocks(length, block_size)
    integer("heads", heads, 1)
    side = integer("window_blocks", window_blocks, 1) // 2
    return Blocked(SlidingWindow(side, 0 if causal else side), block_size)


def _with_random(
    near: Pattern,
    blocks: int,
    heads: int,
    block_size: int,
    random_blocks: int,
    seed: int,
    *,
    causal: bool = False,
) -> Pattern:
    """The layout of every head with its own random blocks added, cut if causal."""
    count, heads = integer("random_blocks", random_blocks), integer("heads", heads, 1)
    if not count:
        return Blocked(_cut(near, causal), block_size)
    random = [RandomKeys(count, seed + h, blocks) for h in range(heads)]
    return _per_head([Blocked(_cut(near | one, causal), block_size) for one in random])
