"""Block diffusion: text is denoised block by block."""

from __future__ import annotations

from sparse_ref._arrays import integer
from sparse_ref.patterns import Chunked, Keys, Pattern, Rows


def block_diffusion(length: int, block_size: int) -> Pattern:
    """The training mask of BD3-LM: noisy text, then clean text (Arriola et al., arXiv:2503.09573).

    The sequence is `[x_t ; x_0]`, 2 * length tokens. A noisy token sees its own noisy block and
    the clean blocks before it; a clean token sees the clean blocks up to its own. The released
    `block_diff_mask`. For sampling, `Chunked(block_size, back=None)` is all there is.

    Parameters
    ----------
    length : int
        Tokens of the text, a multiple of `block_size`.
    block_size : int >= 1

    >>> from sparse_ref import draw
    >>> print(draw(block_diffusion(4, 2), 8))
    # # . . . . . .
    # # . . . . . .
    . . # # # # . .
    . . # # # # . .
    . . . . # # . .
    . . . . # # . .
    . . . . # # # #
    . . . . # # # #
    """
    size, n = integer("block_size", block_size, 1), integer("length", length, 1)
    if n % size:
        raise ValueError(f"length must be a multiple of block_size = {size}, got {n}")
    noisy, clean, blocks = Rows(range(n)), range(n, 2 * n), n // size
    earlier = noisy & Keys(clean) & Chunked(size, back=None, ahead=blocks - 1)
    causal = Rows(clean) & Keys(clean) & Chunked(size, back=None, ahead=0)
    return (noisy & Keys(range(n)) & Chunked(size)) | earlier | causal
