"""DeepSpeed's SparsityConfig family: layouts of blocks.

As `deepspeed/ops/sparse_attention/sparsity_config.py` of DeepSpeed 0.18.9 (gone in 0.19). What is
called causal here is its attention="unidirectional": of *blocks*, so a query still sees later
tokens of its own block, and token causality takes `& Causal()`. Random blocks are our own
`RandomKeys`: DeepSpeed draws from Python's global generator, which no seed of ours can repeat.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparse_ref._arrays import integer
from sparse_ref.patterns import Causal, Chunked, Document, Pattern

from .deepspeed_blocks import blocked, blocks_of, columns, directions, drawn, groups, repeated


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
    """Windows of blocks, and the last blocks of each window seen by all (`FixedSparsityConfig`).

    After the fixed pattern of arXiv:1904.10509. Of a short last window the global blocks are moved
    to lie within it. With `causal` and more than one global block the code lets the first global
    rows see global blocks that follow them, and so does this.

    Parameters
    ----------
    length : int
        Number of tokens, a multiple of `block_size`.
    heads : int
    block_size, local_blocks, global_blocks : int
        Tokens a block; blocks a window; global blocks a window, a divisor of local_blocks.
    causal : bool
        attention="unidirectional", of blocks.
    horizontal : bool
        Global blocks see all blocks too; not with `causal`.
    patterns : int
        Head h takes its global blocks h % patterns groups before the window's last ones.

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_fixed(6, block_size=1, local_blocks=4), 6))
    # # # # . #
    # # # # . #
    # # # # . #
    # # # # . #
    . . . # # #
    . . . # # #
    """
    blocks = blocks_of(length, block_size)
    size, group = (
        integer("local_blocks", local_blocks, 1),
        integer("global_blocks", global_blocks, 1),
    )
    if size % group:
        raise ValueError(f"global_blocks must divide local_blocks = {size}, got {group}")
    if blocks < group:
        raise ValueError(f"length must hold at least global_blocks = {group} blocks, got {blocks}")
    directions(causal, horizontal)
    several = min(integer("patterns", patterns, 1, size // group), integer("heads", heads, 1))
    local = Chunked(size) & Causal() if causal else Chunked(size)
    end = blocks - blocks % size  # of the whole windows
    cut = end if end < blocks else None
    layouts = []
    for head in range(several):
        first = size - (1 + head) * group
        layout = local | repeated(size, range(first, first + group), cut, causal, horizontal)
        if cut is not None:
            start = min(end + first, blocks - group)
            layout = layout | columns(range(start, start + group), causal, horizontal)
        layouts.append(layout)
    return blocked(layouts, block_size)


def deepspeed_variable(
    length: int,
    heads: int = 1,
    block_size: int = 16,
    random_blocks: int = 0,
    local_blocks: Sequence[int] = (4,),
    global_blocks: Sequence[int] = (0,),
    global_ends: Sequence[int] | None = None,
    causal: bool = False,
    horizontal: bool = False,
    seed: int = 0,
) -> Pattern:
    """Windows of given sizes, given global blocks, random blocks (`VariableSparsityConfig`).

    Random blocks may lie in the future even with `causal`, as in the code.

    Parameters
    ----------
    length : int
        Number of tokens, a multiple of `block_size`.
    heads : int
        With random blocks head h draws from seed + h (different_layout_per_head=True).
    block_size, random_blocks : int
        Tokens a block; random blocks a row, drawn from all blocks.
    local_blocks : ints
        Blocks of the first, second, ... window; the last number repeats.
    global_blocks, global_ends : ints
        Global blocks, or with `global_ends` the first of each range and its (exclusive) end.
    causal, horizontal : bool
        attention="unidirectional", of blocks; whether global blocks see all blocks too.
    seed : int

    >>> from sparse_ref import draw
    >>> print(draw(deepspeed_variable(6, block_size=1, local_blocks=(1, 2)), 6))
    # . . . . .
    # # # . . .
    # # # . . .
    # . . # # .
    # . . # # .
    # . . . . #
    """
    blocks = blocks_of(length, block_size)
    directions(causal, horizontal)
    sizes = [integer(f"local_blocks[{i}]", size, 1) for i, size in enumerate(local_blocks)]
    if not sizes:
        raise ValueError("local_blocks must hold at least one size, got none")
    sizes += [sizes[-1]] * -(-blocks // sizes[-1])
    ids = [i for i, size in enumerate(sizes) for _ in range(size)][:blocks]
    layout: Pattern = Document(ids) & Causal() if causal else Document(ids)
    for group in groups(global_blocks, global_ends, blocks):
        layout = layout | columns(group, causal, horizontal)
    return blocked(drawn(layout, random_blocks, seed, blocks, heads, causal=False), block_size)
