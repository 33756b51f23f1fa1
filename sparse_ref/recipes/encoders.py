"""Bidirectional long-document encoders: Longformer, BigBird, LongT5."""

from __future__ import annotations

from typing import Any

from sparse_ref._arrays import integer
from sparse_ref.patterns import Blocked, Global, Pattern, PerHead, RandomKeys, SlidingWindow


def longformer(window: int, global_tokens: Any = (), dilation: int = 1) -> Pattern:
    """A window with global tokens (Longformer, Beltagy et al. 2020, arXiv:2004.05150).

    As `LongformerSelfAttention` of transformers: `window` is `attention_window`, so each side has
    window / 2 keys and a query sees window + 1. The `attention_window` of allenai/longformer and
    the `window` of ONNX Runtime's LongformerAttention are one-sided: half of it. The projections of
    global queries are a matter of the model, not of the pattern.

    Parameters
    ----------
    window : int, even and >= 2
    global_tokens : ints, a range, a bool table over positions, or a `Runtime`
    dilation : int >= 1
        As in the paper; transformers has none.

    >>> from sparse_ref import draw
    >>> print(draw(longformer(2, global_tokens=[0]), 6))
    # # # # # #
    # # # . . .
    # # # # . .
    # . # # # .
    # . . # # #
    # . . . # #
    """
    w = integer("window", window, 2)
    if w % 2:
        raise ValueError(f"window must be even (window / 2 keys on each side), got {w}")
    local = SlidingWindow(w // 2, w // 2, dilation)
    tokens = Global(global_tokens)
    return local if tokens == Global(()) else local | tokens


def bigbird(
    length: int,
    block_size: int = 64,
    window: int = 3,
    random: int = 3,
    seed: int = 0,
    heads: int = 1,
) -> Pattern:
    """Blocks: a window, the first and last as globals, random ones (BigBird, arXiv:2007.14062).

    The ITC form of Zaheer et al. 2020 as in google-research/bigbird and transformers: random blocks
    are neither global nor in the window. Which ones they are is our own `RandomKeys`: the published
    codes draw from NumPy's global generator, in the order of the heads. They also restrict them:
    for 1024, 3072 and 4096 tokens to the first 1024, for others by a plan. In evaluation the
    transformers code draws nothing and counts block 0 `random` more times (a `Multi`). It
    attends in full up to (5 + 2 * random) * block_size tokens. DeepSpeed's: `deepspeed_bigbird`.

    Parameters
    ----------
    length : int >= 1
        Number of tokens; the last block may be cut.
    block_size : int >= 1
    window : int, odd
        Blocks in the window, the own one included.
    random : int >= 0
        Random blocks of each block row (at most as many as are left).
    seed, heads : int
        Head h draws from seed + h.

    >>> from sparse_ref import draw
    >>> print(draw(bigbird(9, block_size=1, random=1), 9))
    # # # # # # # # #
    # # # # . . . . #
    # # # # # . . . #
    # . # # # . # . #
    # . # # # # . . #
    # # . . # # # . #
    # # . . . # # # #
    # . # . . . # # #
    # # # # # # # # #
    """
    size = integer("block_size", block_size, 1)
    blocks = -(-integer("length", length, 1) // size)
    width = integer("window", window, 1)
    if width % 2 == 0:
        raise ValueError(
            f"window must be odd (the own block and as many on each side), got {width}"
        )
    count, first = integer("random", random), integer("seed", seed, 0, 2**63)
    near = SlidingWindow(width // 2, width // 2) | Global({0, blocks - 1})
    drawn = [
        Blocked(near | RandomKeys(count, first + head, blocks, exclude=near), size)
        for head in range(integer("heads", heads, 1))
    ]
    return drawn[0] if len(drawn) == 1 else PerHead(drawn)


def longt5(radius: int = 127) -> Pattern:
    """LongT5's local encoder attention (Guo et al. 2021, arXiv:2112.07916): a symmetric window.

    `radius` is `local_radius` of the transformers code, whose blocks of radius + 1 keys with a
    strict `<` give exactly `radius` keys on each side. TGlobal's summaries are not in it.

    >>> from sparse_ref import draw
    >>> print(draw(longt5(1), 4))
    # # . .
    # # # .
    . # # #
    . . # #
    """
    r = integer("radius", radius)
    return SlidingWindow(r, r)
