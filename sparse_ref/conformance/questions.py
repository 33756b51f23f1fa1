"""What cases are made of: sizes, patterns, options, and the mistakes each can show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparse_ref.patterns import (
    Blocked,
    BlockPattern,
    Causal,
    Chunked,
    Document,
    Full,
    Global,
    Grid,
    Keys,
    KeyStride,
    Multi,
    Neighborhood,
    Offsets,
    Pattern,
    PerHead,
    PrefixLM,
    RandomKeys,
    RowStride,
    Sink,
    SlidingWindow,
    Strided,
    Xor,
)

from .probes import Sizes

# Extents differ pairwise, and are odd or prime where they can be: squares hide transpositions.
SELF = Sizes(1, 6, 2, 13, 13, 5, 7)
CROSS = Sizes(2, 6, 2, 7, 19, 5, 3)  # fewer queries than keys: they are the last positions
WIDE = Sizes(1, 6, 3, 19, 11, 7, 5)  # more queries than keys: the first ones see nothing
RAGGED = Sizes(1, 4, 2, 67, 131, 9, 11)  # past one block of 64, and past two of them
ONE = Sizes(1, 6, 2, 1, 23, 5, 7)  # a decode step
TINY = Sizes(1, 2, 1, 1, 1, 3, 2)
LONG = Sizes(1, 4, 2, 61, 2053, 16, 17)
LONGER = Sizes(1, 2, 1, 31, 8209, 16, 17)
EMPTY = (Sizes(1, 2, 1, 0, 5, 3, 4), Sizes(1, 2, 1, 5, 0, 3, 4), Sizes(0, 2, 1, 3, 5, 3, 4))

OUTER = ("causal", "alignment", "window", "leak")


def _few(n: int) -> int:
    """Keys along a row of three rows: 3, or as many as there are."""
    return min(3, -(-n // 3))


def _listed(blocks: int) -> Any:
    """Blocks under the diagonal; row 1 has none, and row 2 one above it in place of its first."""
    listed = np.tri(blocks) > 0
    listed[1:2] = False
    listed[2:3, [0, -1]] = [[False, True]]
    return listed


Named = dict[str, tuple[Callable[[int], Pattern], tuple[str, ...]]]
CAUSAL = Causal()
PATTERNS: Named = {  # of n keys, and what their cases are for
    "full": (lambda n: Full(), ("scale", "heads")),
    "causal": (lambda n: CAUSAL, ("causal", "alignment", "leak")),
    "strictly-causal": (lambda n: CAUSAL - Offsets([0]), ("causal", "empty")),
    "window": (lambda n: CAUSAL & SlidingWindow(n // 3, 0), ("window", "causal")),
    "window-0": (lambda n: CAUSAL & SlidingWindow(0, 0), ("window",)),
    "window-1": (lambda n: CAUSAL & SlidingWindow(1, 0), ("window",)),
    "window-n": (lambda n: CAUSAL & SlidingWindow(max(n - 1, 0), 0), ("window",)),
    "band": (lambda n: SlidingWindow(n // 3, 2), ("window",)),
    "lookahead": (lambda n: SlidingWindow(0, 3), ("window", "empty")),
    "dilated": (lambda n: SlidingWindow(2, 2, dilation=3), ("window", "dilation")),
    "chunked": (lambda n: CAUSAL & Chunked(5), ("chunk",)),
    "chunked-back": (lambda n: Chunked(4, back=1), ("chunk",)),
    "strided": (lambda n: CAUSAL & (SlidingWindow(3, 0) | Strided(4)), ("stride",)),
    "fixed": (lambda n: CAUSAL & (Chunked(6) | KeyStride(6, [5])), ("stride", "chunk")),
    "offsets": (lambda n: Offsets([0, 1, 2, 4, 8]), ("stride",)),
    "rows-and-keys": (lambda n: RowStride(3, [1]) & KeyStride(2, [0]), ("stride", "empty")),
    "sinks": (lambda n: CAUSAL & (SlidingWindow(4, 0) | Sink(2)), ("sink-tokens", "window")),
    "prefix": (lambda n: PrefixLM(4), ("prefix",)),
    "longformer": (lambda n: SlidingWindow(3, 3) | Global([0, 6]), ("global",)),
    "global-keys": (lambda n: CAUSAL & (SlidingWindow(2, 0) | Keys([0, 3])), ("global",)),
    "documents": (lambda n: CAUSAL & Document(np.arange(n) // 5), ("documents",)),
    "packed": (  # documents of 1, 3, 5, 7, ... tokens
        lambda n: CAUSAL & SlidingWindow(3, 0) & Document(np.sqrt(np.arange(n)).astype(int)),
        ("documents", "window"),
    ),
    "blocks": (lambda n: Blocked(SlidingWindow(1, 1), 4), ("block",)),
    "bigbird": (
        lambda n: Blocked(SlidingWindow(1, 1) | Global([0]), 4) | RandomKeys(2, 3, n),
        ("block", "global", "random"),
    ),
    "random": (lambda n: RandomKeys(3, 7, n, causal=True), ("random", "empty")),
    "butterfly": (lambda n: Xor([0, 1, 2, 4]), ("block",)),
    "natten": (lambda n: Neighborhood(n, min(5, n)), ("window",)),
    "grid": (lambda n: Grid((3, -(-n // 3)), [Full(), SlidingWindow(1, 1)]), ("window",)),
    "natten-grid": (  # an even number of keys along columns, an odd one along rows
        lambda n: Grid((3, -(-n // 3)), [Neighborhood(3, 2), Neighborhood(-(-n // 3), _few(n))]),
        ("window",),
    ),
    "listed-blocks": (lambda n: CAUSAL & BlockPattern(_listed(-(-n // 4)), 4), ("block", "empty")),
    "per-head": (
        lambda n: PerHead([CAUSAL & SlidingWindow(3, 0), CAUSAL & Strided(3)]),
        ("heads", "stride"),
    ),
    "multiset": (lambda n: Multi([CAUSAL, SlidingWindow(3, 0)]), ("counts",)),
    "nothing": (lambda n: ~Full(), ("empty",)),
}  # fmt: skip


def _sinks(rng: np.random.Generator, s: Sizes) -> Any:
    return rng.integers(-4, 5, s.h) / 2.0


def _slopes(rng: np.random.Generator, s: Sizes) -> Any:
    return 2.0 ** -np.arange(1.0, s.h + 1)


def _bias(rng: np.random.Generator, s: Sizes) -> Any:
    return rng.integers(-64, 65, (s.h, s.m, s.n)) / 32


def _lengths(rng: np.random.Generator, s: Sizes) -> Any:
    return np.array([s.n - 3, *[max(s.n // 2, 1)] * (s.b - 1)][: s.b])


def _dlse(rng: np.random.Generator, s: Sizes) -> Any:
    return rng.integers(-64, 65, (s.b, s.h, s.m)) / 32


def _ends(rng: np.random.Generator, s: Sizes) -> Any:
    return _lengths(rng, s) - s.m  # the queries are the last positions of a cache


def _scale(rng: np.random.Generator, s: Sizes) -> float:
    return 0.75


Option = tuple[dict[str, Any], tuple[str, ...]]
OPTIONS: dict[str, Option] = {
    "scale": ({"scale": _scale}, ("scale",)),
    "softcap": ({"softcap": 1.5}, ("softcap",)),
    "sinks": ({"sink_logits": _sinks}, ("sink-logit",)),
    "alibi": ({"alibi_slopes": _slopes}, ("bias",)),
    "bias": ({"bias": _bias}, ("bias",)),
    "start": ({"q_start": 0}, ("alignment",)),
    "lengths": ({"kv_lengths": _lengths, "q_start": 0}, ("lengths", "padding")),
    # in this order, as ids are made of names
    "cache": ({"q_start": _ends, "kv_lengths": _lengths}, ("lengths", "alignment")),
    "capped-bias": ({"softcap": 1.5, "bias": _bias, "sink_logits": _sinks}, ("softcap", "order")),
}
GRADIENT_OPTIONS = {**OPTIONS, "dlse": ({"dlse": _dlse}, ("lse",))}
