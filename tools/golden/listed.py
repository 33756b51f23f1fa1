"""The patterns of chosen tokens and of lists, for `patterns.py`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import sparse_ref as sr
from sparse_ref import (
    Blocked,
    Causal,
    Chunked,
    Document,
    Full,
    Global,
    Grid,
    Keys,
    Neighborhood,
    Pattern,
    Permuted,
    PrefixLM,
    RandomKeys,
    Rows,
    Sink,
    SlidingWindow,
    WithinDocument,
    Xor,
)

Add = Callable[..., None]
CAUSAL = Causal()


def _order(n: int) -> list[int]:
    """A permutation without structure: ranks by a multiplicative order modulo a prime."""
    order: list[int] = np.argsort([(i + 1) * 7919 % 10007 for i in range(n)]).tolist()
    return order


def _documents(n: int) -> list[int]:
    """Documents of 4, 1, 6, 4, 1, 6, ... tokens."""
    sizes = [4, 1, 6] * (n // 11 + 1)
    return [i for i, size in enumerate(sizes) for _ in range(size)][:n]


def _holes(n: int) -> list[int]:
    """Two interleaved documents, and every fifth token in none."""
    return [-1 if i % 5 == 4 else i % 2 for i in range(n)]


def _blocks(n: int, size: int) -> Pattern:
    side = -(-n // size)
    mask = (np.add.outer(np.arange(side) * 2, np.arange(side)) % 3) == 0
    return sr.from_mask(mask, size)


def _listed(n: int) -> Pattern:
    q, k = np.mgrid[:n, :n]
    return sr.from_mask((q * q + 3 * k) % 7 < 2)


def tokens(add: Add) -> None:
    a = "tokens"
    near = SlidingWindow(2, 0)
    add(a, "prefix-4", PrefixLM(4), "causal, and the first 4 keys are seen by all", "Prefix")
    add(a, "prefix-0", PrefixLM(0), "causal, with an empty prefix", "Prefix")
    add(
        a, "prefix-window", PrefixLM(3) & SlidingWindow(5, None),
        "causal or one of the first 3, and at most 5 before the query", "Prefix",
    )  # fmt: skip
    add(
        a, "sinks-2", CAUSAL & (SlidingWindow(3, 0) | Sink(2)),
        "causal: the last 4 keys, and the first 2", "SinkTokens",
    )  # fmt: skip
    add(
        a, "sinks-1-window-1", CAUSAL & (SlidingWindow(1, 0) | Sink(1)),
        "causal: the last 2 keys, and the first", "SinkTokens",
    )  # fmt: skip
    add(a, "sinks-only", Sink(3), "the first 3 keys, whoever asks", "SinkTokens")
    add(
        a, "global-0-6", SlidingWindow(2, 2) | Global([0, 6]),
        "at most 2 keys away; tokens 0 and 6 see all and are seen by all", "GlobalTokens",
    )  # fmt: skip
    add(
        a, "global-last", SlidingWindow(1, 1) | Global([10]),
        "at most 1 key away; token 10 sees all and is seen by all", "GlobalTokens",
    )  # fmt: skip
    add(
        a, "global-keys", CAUSAL & (near | Keys([0, 3])),
        "causal: the last 3 keys, and the keys 0 and 3", "GlobalTokens",
    )  # fmt: skip
    add(
        a, "global-rows", near | Rows([4, 5]),
        "its own key and the 2 before; queries 4 and 5 see all", "GlobalTokens",
    )  # fmt: skip
    add(
        a, "global-range", CAUSAL & (near | Keys(range(1, 40, 4))),
        "causal: the last 3 keys, and the keys 1, 5, 9, ... below 40", "GlobalTokens",
    )  # fmt: skip
    add(
        a, "documents", lambda n: CAUSAL & Document(_documents(n)),
        "causal within packed documents of 4, 1, 6, 4, 1, 6, ... tokens", "Documents",
    )  # fmt: skip
    add(
        a, "documents-holes", lambda n: Document(_holes(n)),
        "two interleaved documents; tokens at 4 modulo 5 are in none: they see nothing and are "
        "seen by nobody", "Documents",
    )  # fmt: skip
    add(
        a, "documents-cross", lambda n: Document([i // 3 for i in range(n)], _documents(n)),
        "queries in documents of 3 tokens, keys in documents of 4, 1, 6, ...: equal numbers meet",
        "Documents",
    )  # fmt: skip
    add(
        a, "within-documents", lambda n: WithinDocument(CAUSAL & SlidingWindow(1, 0), _holes(n)),
        "its own key and the one before within its own document, counted without the holes",
        "Documents",
    )  # fmt: skip


def lists(add: Add) -> None:
    a = "lists"
    add(
        a, "blocked-band", Blocked(SlidingWindow(1, 1), 4),
        "blocks of 4: its own, the one before and the one after, whole", "Blocks",
    )  # fmt: skip
    add(
        a, "blocked-causal", CAUSAL & Blocked(SlidingWindow(1, 0), 3),
        "causal: its own block of 3 and the one before", "Blocks",
    )  # fmt: skip
    add(
        a, "block-mask", lambda n: _blocks(n, 3),
        "a list of 3 x 3 blocks: block row r sees the block columns c with (2 r + c) % 3 == 0",
        "Blocks",
    )  # fmt: skip
    add(
        a, "bigbird",
        lambda n: Blocked(SlidingWindow(1, 1) | Global([0]), 4) | RandomKeys(2, 3, n),
        "blocks of 4: neighbours and a global first block; and 2 random keys a row (seed 3)",
        "Blocks", "RandomKeys", "GlobalTokens",
    )  # fmt: skip
    add(a, "random-2", lambda n: RandomKeys(2, 0, n), "2 random keys a row, seed 0", "RandomKeys")
    add(
        a, "random-causal", lambda n: RandomKeys(3, 7, n, causal=True),
        "3 random keys a row among those up to its own position, seed 7; the first rows have fewer",
        "RandomKeys", "Causal",
    )  # fmt: skip
    add(
        a, "random-most", lambda n: RandomKeys(n - 1, 2**63 + 11, n),
        "all keys but one a row, seed 2^63 + 11: many draws repeat", "RandomKeys",
    )  # fmt: skip
    add(
        a, "random-exclude", lambda n: RandomKeys(2, 5, n, exclude=SlidingWindow(2, 2)),
        "2 random keys a row further than 2 away, seed 5", "RandomKeys",
    )  # fmt: skip
    add(
        a, "listed", _listed,
        "a stored list of pairs: (q q + 3 k) % 7 < 2", "Lists",
    )  # fmt: skip
    add(
        a, "permuted", lambda n: Permuted(SlidingWindow(2, 1), _order(n)),
        "in a stored order of the tokens: at most 2 before and 1 after", "Lists",
    )  # fmt: skip
    add(a, "natten-5", lambda n: Neighborhood(n, 5), "a window of 5 keys that shifts at the ends",
        "Neighborhood")  # fmt: skip
    add(
        a, "natten-even", lambda n: Neighborhood(n, 4),
        "a window of 4 keys that shifts at the ends, one further to the left", "Neighborhood",
    )  # fmt: skip
    add(
        a, "natten-dilated", lambda n: Neighborhood(n, 3, dilation=2),
        "of the keys at an even distance, a window of 3 that shifts at the ends", "Neighborhood",
        "Dilation",
    )  # fmt: skip
    add(
        a, "natten-stride", lambda n: Neighborhood(n, 5, stride=2),
        "pairs of queries share a window of 5 keys that shifts at the ends", "Neighborhood",
    )  # fmt: skip
    add(
        a, "natten-causal", lambda n: Neighborhood(n, 4, causal=True),
        "its own key and the 3 before it, cut at the start", "Neighborhood", "Causal",
    )  # fmt: skip
    add(
        a, "grid-column", lambda n: Grid((3, -(-n // 3)), [Full(), SlidingWindow(0, 0)]),
        "a grid of 3 rows, written row by row: its own column", "Grid",
    )  # fmt: skip
    add(
        a, "grid-window", lambda n: Grid((-(-n // 4), 4), [SlidingWindow(1, 1), Chunked(2)]),
        "a grid 4 wide, written row by row: at most 1 row away, and the same pair of columns",
        "Grid",
    )  # fmt: skip
    add(a, "butterfly", Xor([0, 1, 2, 4]), "keys whose position differs in at most one of 3 bits",
        "Butterfly")  # fmt: skip
    add(a, "butterfly-far", Xor([3, 8]), "keys at the query's position xor 3, or xor 8",
        "Butterfly")  # fmt: skip
