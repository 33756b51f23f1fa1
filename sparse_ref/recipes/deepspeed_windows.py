"""DeepSpeed's layouts of sliding windows of blocks; see `deepspeed` for what they share."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_ref._arrays import integer
from sparse_ref.patterns import Blocked, Causal, Global, Pattern

from .deepspeed_blocks import around, blocked, blocks_of, drawn, flag, groups


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
    """A window, the first blocks as globals, random ones (`BigBirdSparsityConfig`).

    Other than in `bigbird` (arXiv:2007.14062) the last block is not global, and random blocks may
    coincide with the others. An even window is one block wider than its number. With `causal`
    a row has at most as many random blocks as it has blocks before it; the code raises there.

    Parameters
    ----------
    length : int
        Number of tokens, a multiple of `block_size`.
    heads : int
        Head h draws from seed + h (different_layout_per_head=True).
    block_size, random_blocks, window_blocks, global_blocks : int
        Tokens a block; blocks drawn, in the window, and global from the first one on.
    causal : bool
        attention="unidirectional", of blocks.
    seed : int

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_bigbird(5, block_size=1, random_blocks=0), 5))
    # # # # #
    # # # . .
    # # # # .
    # . # # #
    # . . # #
    """
    blocks = blocks_of(length, block_size)
    fixed = around(window_blocks) | Global(range(integer("global_blocks", global_blocks)))
    layouts = drawn(fixed, random_blocks, seed, blocks, heads, causal=flag("causal", causal))
    return blocked([layout & Causal() for layout in layouts] if causal else layouts, block_size)


def deepspeed_bslongformer(
    length: int,
    heads: int = 1,
    block_size: int = 16,
    window_blocks: int = 3,
    global_blocks: Sequence[int] = (0,),
    global_ends: Sequence[int] | None = None,
    causal: bool = False,
) -> Pattern:
    """A window of blocks with global blocks (`BSLongformerSparsityConfig`, after arXiv:2004.05150).

    Parameters
    ----------
    length : int
        Number of tokens, a multiple of `block_size`.
    heads : int
        All have the same layout.
    block_size, window_blocks : int
        Tokens a block; blocks in the window (an even number gives one more).
    global_blocks, global_ends : ints
        Global blocks, or with `global_ends` the first of each range and its (exclusive) end.
    causal : bool
        attention="unidirectional", of blocks.

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_bslongformer(5, block_size=1, global_blocks=[1]), 5))
    # # . . .
    # # # # #
    . # # # .
    . # # # #
    . # . # #
    """
    blocks = blocks_of(length, block_size)
    integer("heads", heads, 1)
    chosen = [b for group in groups(global_blocks, global_ends, blocks) for b in group]
    layout = around(window_blocks) | Global(chosen)
    return Blocked(layout & Causal() if flag("causal", causal) else layout, block_size)


def deepspeed_sliding(
    length: int, heads: int = 1, block_size: int = 16, window_blocks: int = 3, causal: bool = True
) -> Pattern:
    """A window of blocks only (`LocalSlidingWindowSparsityConfig`), causal unless said otherwise.

    `window_blocks` is divided by two even where only the blocks before count: 3 is the own block
    and one before it.

    Parameters
    ----------
    length : int
        Number of tokens, a multiple of `block_size`.
    heads : int
        All have the same layout.
    block_size, window_blocks : int
    causal : bool
        attention="unidirectional", of blocks.

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_sliding(6, block_size=2), 6))
    # # . . . .
    # # . . . .
    # # # # . .
    # # # # . .
    . . # # # #
    . . # # # #
    """
    blocks_of(length, block_size)
    integer("heads", heads, 1)
    layout = around(window_blocks)
    return Blocked(layout & Causal() if flag("causal", causal) else layout, block_size)
