"""The Sparse Transformer: two patterns whose product reaches everything (Child et al. 2019)."""

from __future__ import annotations

from sparse_ref._arrays import integer
from sparse_ref.patterns import Causal, Chunked, KeyStride, Pattern, PerHead, SlidingWindow, Strided


def sparse_transformer_strided(
    stride: int, *, heads: str | int = "merged", paper: bool = False
) -> Pattern:
    """The strided pattern of the Sparse Transformer: the last keys, and every stride-th before.

    Child et al. 2019, arXiv:1904.10509; code: openai/sparse_attention, `attention.py`.

    Parameters
    ----------
    stride : int >= 1
        The l of the paper, near sqrt(n); for an image its width.
    heads : "merged", "local", "strided" or an even int
        One head that sees both parts, one part alone (layers that alternate), or that many heads,
        the first half local and the second strided.
    paper : bool
        The code's window holds `stride` keys. The paper's {max(0, i - l), ..., i} holds one more,
        which the strided part sees anyway: merged heads do not differ.

    >>> from sparse_ref import draw
    >>> print(draw(sparse_transformer_strided(3), 8))
    # . . . . . . .
    # # . . . . . .
    # # # . . . . .
    # # # # . . . .
    . # # # # . . .
    . . # # # # . .
    # . . # # # # .
    . # . . # # # #
    """
    l = integer("stride", stride, 1)  # noqa: E741 - the paper's letter
    local = SlidingWindow(l if paper else l - 1, 0)
    return _heads(local, "strided", Causal() & Strided(l), heads)


def sparse_transformer_fixed(
    stride: int, summary: int, *, heads: str | int = "merged", paper: bool = False
) -> Pattern:
    """The fixed pattern of the Sparse Transformer: the own chunk, and the last keys of each chunk.

    Child et al. 2019, arXiv:1904.10509; code: openai/sparse_attention, `attention.py`.

    Parameters
    ----------
    stride : int >= 1
        Length l of a chunk.
    summary : int
        How many keys c at the end of every chunk all later queries see, 1 <= c <= l.
    heads : "merged", "local", "summary" or an even int
        One head that sees both parts, one part alone, or that many heads: the first half local,
        the others summary heads with a sub-block of c keys each, the last one of a chunk first
        (the paper prefers distinct sub-blocks). Alone, a summary leaves early queries without keys.
    paper : bool
        No difference: the paper's `j mod l in {l - c, ..., l}` lists c + 1 numbers, but no
        remainder is l, so paper and code have the same c keys.

    >>> from sparse_ref import draw
    >>> print(draw(sparse_transformer_fixed(4, 1), 9))
    # . . . . . . . .
    # # . . . . . . .
    # # # . . . . . .
    # # # # . . . . .
    . . . # # . . . .
    . . . # # # . . .
    . . . # # # # . .
    . . . # # # # # .
    . . . # . . . # #
    """
    l = integer("stride", stride, 1)  # noqa: E741 - the paper's letter
    c = integer("summary", summary, 1, l)
    local = Causal() & Chunked(l)
    blocks = [range(l - (i + 1) * c, l - i * c) for i in range(l // c)]
    summaries = [Causal() & KeyStride(l, block) for block in blocks]
    return _heads(local, "summary", summaries[0], heads, summaries)


def _heads(
    local: Pattern,
    name: str,
    far: Pattern,
    heads: str | int,
    several: list[Pattern] | None = None,
) -> Pattern:
    """Both parts merged, one of them, or as many heads of each."""
    if isinstance(heads, str):
        choices = {"merged": local | far, "local": local, name: far}
        if heads not in choices:
            raise ValueError(f"heads must be one of {[*choices]} or an even integer, got {heads!r}")
        return choices[heads]
    count = integer("heads", heads, 2, also=f" or 'merged', 'local', {name!r}")
    if count % 2:
        raise ValueError(f"heads must be even (half local, half {name}), got {count}")
    half, several = count // 2, several or [far]
    return PerHead([local] * half + [several[i % len(several)] for i in range(half)])
