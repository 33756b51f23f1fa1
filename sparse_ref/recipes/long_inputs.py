"""Encoders and decoders for long inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparse_ref._arrays import integer, integers
from sparse_ref.patterns import (
    Blocked,
    Causal,
    Chunked,
    Global,
    IntegerSet,
    Keys,
    KeyStride,
    Multi,
    Pattern,
    PerHead,
    RandomKeys,
    Rows,
    RowStride,
    SlidingWindow,
)


def longformer(window: int, global_tokens: Any = (), dilation: int = 1) -> Pattern:
    """Longformer: a symmetric window and global tokens that see all and are seen by all.

    Beltagy et al. 2020 (arXiv:2004.05150). `window` is Hugging Face's `attention_window`: even,
    half of it on each side, so window + 1 keys; allenai/longformer's own is one-sided. Rows of
    global tokens use projections of their own, which a pattern does not say.

    Parameters
    ----------
    window : even int >= 0
    global_tokens : ints, range, bool table or Runtime
    dilation : int >= 1
        Only allenai's TVM kernel has it; window then counts kept keys.

    >>> from sparse_ref import draw
    >>> print(draw(longformer(2, [0]), 5))
    # # # # #
    # # # . .
    # # # # .
    # . # # #
    # . . # #
    """
    window = integer("window", window)
    if window % 2:
        raise ValueError(f"window must be even (half of it on each side), got {window}")
    local: Pattern = SlidingWindow(window // 2, window // 2, dilation)
    tokens = Global(global_tokens)
    empty = isinstance(tokens.tokens, IntegerSet) and not len(tokens.tokens)
    return local if empty else local | tokens


def bigbird(
    length: int,
    block_size: int = 64,
    window: int = 3,
    random: int = 3,
    seed: int = 0,
    heads: int = 1,
) -> Pattern:
    """BigBird (ITC): a window of blocks, the first and last block global, random blocks.

    Zaheer et al. 2020 (arXiv:2007.14062). Random blocks exclude the window and the global ones,
    as in the released code; which are drawn is this library's rule (see RandomKeys): Google's
    plan is drawn from NumPy's global state, per layer, from the first 1,024 tokens only at some
    lengths, and Hugging Face draws in training only (in eval() it takes block 0 every time, which
    counts that block several times).

    Parameters
    ----------
    length : int >= 1
        Number of tokens; the last block may be ragged.
    block_size, window, random : int
        Tokens of a block; blocks of the window (odd); random blocks a row.
    seed, heads : int
        Head h draws with seed + h.

    >>> from sparse_ref import draw
    >>> print(draw(bigbird(6, block_size=1, random=1), 6))
    # # # # # #
    # # # # . #
    # # # # # #
    # # # # # #
    # . # # # #
    # # # # # #
    """
    blocks = -(-integer("length", length, 1) // integer("block_size", block_size, 1))
    window = integer("window", window, 1)
    if window % 2 == 0:
        raise ValueError(f"window must be odd (the own block, as many on each side), got {window}")
    near = SlidingWindow(window // 2, window // 2) | Global({0, blocks - 1})

    def head(h: int) -> Pattern:
        if not random:
            return Blocked(near, block_size)
        return Blocked(near | RandomKeys(random, seed + h, blocks, exclude=near), block_size)

    integer("random", random)
    integer("seed", seed, high=2**63)
    several = [head(h) for h in range(integer("heads", heads, 1))]
    return several[0] if heads == 1 else PerHead(several)


def longt5(radius: int = 127) -> Pattern:
    """LongT5's local attention: keys at most `radius` away, so 2 * radius + 1 of them.

    Guo et al. 2021 (arXiv:2112.07916); Hugging Face `longt5`, whose blocks of radius + 1 give the
    same. T5 adds a relative bias and no scale: `scale=1`, `bias=RelativeBias(...)`.

    >>> from sparse_ref import draw
    >>> print(draw(longt5(1), 4))
    # # . .
    # # # .
    . # # #
    . . # #
    """
    return SlidingWindow(radius, radius)


def longnet(
    segments: Sequence[int], dilations: Sequence[int], heads: int, causal: bool = True
) -> Pattern:
    """LongNet's dilated attention: segments of several sizes, every r-th token of each.

    Ding et al. 2023 (arXiv:2307.02486); microsoft/torchscale, which groups the heads of a branch,
    `offset = h // ceil(heads / r)`, where the paper writes h mod r: the code is followed. Branches
    are merged by lse, so a key counts once for every branch that has it (`Multi`).

    Parameters
    ----------
    segments, dilations : ints >= 1, one of each a branch
        Segment lengths and dilation rates, e.g. (2048, 8192) and (1, 4). At least one dilation of
        1 is needed for every row to see a key.
    heads : int >= 1
    causal : bool

    >>> longnet([2, 4], [1, 2], heads=2).counts(4, 4)[1]
    array([[1, 0, 0, 0],
           [1, 2, 0, 0],
           [0, 0, 1, 0],
           [0, 1, 1, 2]])
    """
    lengths, rates = (integers(n, x).tolist() for n, x in
                      (("segments", segments), ("dilations", dilations)))  # fmt: skip
    if len(lengths) != len(rates) or not lengths:
        raise ValueError(f"dilations must be one for each of {len(lengths)} segments, got {rates}")
    for length, rate in zip(lengths, rates, strict=True):
        integer("segments", length, 1)
        integer("dilations", rate, 1, length)

    def branch(length: int, rate: int, h: int) -> Pattern:
        offset = h // -(-integer("heads", heads, 1) // rate)
        # residues within a segment: the period is the segment, not the rate
        kept = range(offset, length, rate)
        part: Pattern = Chunked(length) & KeyStride(length, kept) & RowStride(length, kept)
        return part & Causal() if causal else part

    pairs = list(zip(lengths, rates, strict=True))
    several = [Multi([branch(w, r, h) for w, r in pairs]) for h in range(heads)]
    return several[0] if heads == 1 else PerHead(several)


def block_diffusion(length: int, block_size: int) -> Pattern:
    """Block-diffusion training: a noised and a clean copy of the sequence, [x_t ; x_0].

    BD3-LM (arXiv:2503.09573), as attention-gym's mask: noised tokens see their own noised block
    and strictly earlier clean blocks; clean tokens see clean blocks up to their own. The sequence
    of the mask is 2 * length long; block_size divides length.

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
    size = integer("block_size", block_size, 1)
    if integer("length", length, 1) % size:
        raise ValueError(f"length must be a multiple of block_size = {size}, got {length}")
    noised, clean = range(length), range(length, 2 * length)
    own = Rows(noised) & Keys(noised) & Chunked(size)
    earlier = Rows(noised) & Keys(clean) & Chunked(size, back=None, ahead=length // size - 1)
    return own | earlier | Rows(clean) & Keys(clean) & Chunked(size, back=None)
