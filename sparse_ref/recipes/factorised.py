"""Patterns factorised so that few layers connect everything: O(n sqrt n), O(n log n)."""

from __future__ import annotations

from sparse_ref._arrays import integer
from sparse_ref.patterns import (
    Blocked,
    Causal,
    Chunked,
    Global,
    KeyStride,
    Offsets,
    Pattern,
    PerHead,
    SlidingWindow,
    Strided,
    Xor,
)


def sparse_transformer_strided(
    stride: int, *, heads: str | int = "merged", paper: bool = False
) -> Pattern:
    """The strided pattern of Sparse Transformers: a window, and every stride-th key before it.

    Child et al. 2019 (arXiv:1904.10509); github.com/openai/sparse_attention.

    Parameters
    ----------
    stride : int >= 1
        About sqrt(n); for images the width of a row.
    heads : "merged", "local", "strided" or int
        The union in one head; one of the two factors, for layers that alternate; or that many
        heads, the first half local, the rest strided.
    paper : bool
        The paper's window has stride + 1 keys, the released code's (the default) stride.

    >>> from sparse_ref import draw
    >>> print(draw(sparse_transformer_strided(3), 6))
    # . . . . .
    # # . . . .
    # # # . . .
    # # # # . .
    . # # # # .
    . . # # # #
    """
    stride = integer("stride", stride, 1)
    local: Pattern = SlidingWindow(stride if paper else stride - 1, 0)
    return _factorised(local, Causal() & Strided(stride), "strided", heads)


def sparse_transformer_fixed(
    stride: int, summary: int, *, heads: str | int = "merged", paper: bool = False
) -> Pattern:
    """The fixed pattern of Sparse Transformers: the own chunk, and summary columns of all.

    Child et al. 2019 (arXiv:1904.10509). The last `summary` columns of each chunk of `stride` are
    seen by all later queries. Alone, that factor leaves the first queries without any key.

    Parameters
    ----------
    stride : int >= 1
        Chunk length; summary : int in [1, stride], the paper's c (8, 16, 32).
    heads : "merged", "local", "summary" or int
        The union in one head; one of the two factors; or that many heads, the first half local and
        the rest on summary columns, each on a sub-block of its own while there are some (the code
        cycles through them).
    paper : bool
        The paper writes residues {t, ..., l}, t = l - c: taken literally that is c + 1 values of
        which l never occurs. Both readings are the same c columns; kept for symmetry.

    >>> from sparse_ref import draw
    >>> print(draw(sparse_transformer_fixed(3, 1), 6))
    # . . . . .
    # # . . . .
    # # # . . .
    . . # # . .
    . . # # # .
    . . # # # #
    """
    stride = integer("stride", stride, 1)
    summary = integer("summary", summary, 1, stride)
    local = Causal() & Chunked(stride)
    columns = [
        Causal() & KeyStride(stride, range(max(end - summary, 0), end))
        for end in range(stride, 0, -summary)
    ]
    if isinstance(heads, str):
        return _factorised(local, columns[0], "summary", heads)
    half = integer("heads", heads, 1) // 2
    others = [columns[i % len(columns)] for i in range(heads - half)]
    return PerHead([local] * half + others)


def _factorised(local: Pattern, far: Pattern, name: str, heads: str | int) -> Pattern:
    if not isinstance(heads, str):
        half = integer("heads", heads, 1) // 2
        return PerHead([local] * half + [far] * (heads - half))
    choices = {"merged": local | far, "local": local, name: far}
    if heads not in choices:
        raise ValueError(f"heads must be one of {', '.join(choices)} or an int, got {heads!r}")
    return choices[heads]


def logsparse(length: int, local: int = 1) -> Pattern:
    """LogSparse: keys at distances 1, 2, 4, ... before the query, and a window of `local` keys.

    Li et al. 2019 (arXiv:1907.00235): log2(n) + 2 keys a row; every query reaches every earlier
    key in log2(n) layers. Widely copied code (`row_mask` of flow-forecast, Informer forks) counts
    from a sub-length instead and leaves the query itself out of some rows: not this.

    Parameters
    ----------
    length : int >= 1
        The longest sequence; distances are the powers of two below it.
    local : int >= 1
        Keys of the window, the query included.

    >>> from sparse_ref import draw
    >>> print(draw(logsparse(6), 6))
    # . . . . .
    # # . . . .
    # # # . . .
    . # # # . .
    # . # # # .
    . # . # # #
    """
    length, local = integer("length", length, 1), integer("local", local, 1)
    powers = [1 << i for i in range(length.bit_length()) if 1 << i < length]
    return Causal() & (Offsets([0, *powers]) | SlidingWindow(local - 1, 0))


def butterfly(factors: int, block_size: int, global_blocks: int = 0) -> Pattern:
    """Flat block butterfly: blocks whose index differs in one of the lowest `factors` bits.

    Dao et al. 2022, Pixelated Butterfly (arXiv:2112.00029), without its low-rank term;
    HazyResearch/fly. The number of blocks is one power of two for all lengths, so the pattern does
    not change as keys arrive. Intersect with Causal() for a decoder.

    Parameters
    ----------
    factors : int >= 0; block_size : int >= 1
    global_blocks : int >= 0
        The first blocks that see all and are seen by all.

    >>> from sparse_ref import draw
    >>> print(draw(butterfly(2, 1), 4))
    # # # .
    # # . #
    # . # #
    . # # #
    """
    bits = range(integer("factors", factors, 0, 30))
    cells: Pattern = Xor([0, *(1 << bit for bit in bits)])
    if integer("global_blocks", global_blocks):
        cells = cells | Global(range(global_blocks))
    return Blocked(cells, block_size)
