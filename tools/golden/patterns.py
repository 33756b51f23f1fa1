"""The patterns of the golden files: by name, in words, and the flags of their cases.

Released cases name these, so an entry is never changed: a wrong one is withdrawn, a new one added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sparse_ref import (
    Causal,
    Chunked,
    Full,
    Keys,
    KeyStride,
    Multi,
    Offsets,
    Pattern,
    PerBatch,
    PerHead,
    PrefixLM,
    RandomKeys,
    Rows,
    RowStride,
    Sink,
    SlidingWindow,
    Strided,
)

from .listed import lists, tokens

CAUSAL = Causal()


class Named(NamedTuple):
    """A pattern for n keys."""

    family: str
    make: Callable[[int], Pattern]
    words: str
    flags: tuple[str, ...]


def _table() -> dict[str, Named]:
    found: dict[str, Named] = {}

    def add(
        family: str, name: str, make: Callable[[int], Pattern] | Pattern, words: str, *flags: str
    ) -> None:
        found[name] = Named(
            family, (lambda n: make) if isinstance(make, Pattern) else make, words, flags
        )

    _windows(add)
    _chunks(add)
    tokens(add)
    lists(add)
    _combined(add)
    return found


Add = Callable[..., None]


def _windows(add: Add) -> None:
    a = "windows"
    w = SlidingWindow
    add(a, "full", Full(), "every key")
    add(a, "causal", CAUSAL, "keys up to and including the query's own position", "Causal")
    add(a, "strictly-causal", CAUSAL - Offsets([0]), "keys before the query, not its own", "Causal")
    add(a, "anti-causal", w(0, None), "keys from the query's own position on", "Causal")
    for left in (0, 1, 2, 5, 12):
        words = f"the query's own key and the {left} before it: {left + 1} keys"
        add(a, f"window-{left}", CAUSAL & w(left, 0), words, "WindowLeft", "Causal")
    add(a, "band-3-2", w(3, 2), "at most 3 keys before and 2 after, and its own", "WindowBothSides")
    add(a, "band-2-2", w(2, 2), "at most 2 keys before and 2 after, and its own", "WindowBothSides")
    add(a, "right-4", w(None, 4), "any key before, and at most 4 after", "WindowBothSides")
    add(a, "left-4-all", w(4, None), "at most 4 keys before, and any after", "WindowBothSides")
    add(a, "ahead-3", w(0, 3), "its own key and the 3 after it", "WindowBothSides")
    add(
        a, "dilated-2-1-3", w(2, 1, 3),
        "keys whose distance is a multiple of 3, at most 2 such before and 1 after", "Dilation",
    )  # fmt: skip
    add(
        a, "dilated-causal", CAUSAL & w(3, 0, 2),
        "its own key and every second before it, 3 of these", "Dilation",
    )  # fmt: skip
    add(a, "not-window", CAUSAL - w(2, 0), "causal without the last 3 keys", "WindowLeft")


def _chunks(add: Add) -> None:
    a = "chunks"
    add(a, "chunked-5", CAUSAL & Chunked(5), "causal within chunks of 5 keys", "Chunks")
    add(a, "chunked-full", Chunked(4), "all of its own chunk of 4 keys", "Chunks")
    add(a, "chunked-back", Chunked(4, back=1), "its own chunk of 4 and the one before", "Chunks")
    add(
        a, "chunked-causal", Chunked(3, back=None),
        "its own chunk of 3 and every earlier one: causal by blocks", "Chunks",
    )  # fmt: skip
    add(
        a, "chunked-earlier", Chunked(4, back=None, ahead=-1),
        "earlier chunks of 4 only, not its own", "Chunks",
    )  # fmt: skip
    add(
        a, "chunked-origin", Chunked(5, back=1, ahead=1, origin=2),
        "chunks of 5 that start at 2 modulo 5: its own, the one before and the one after", "Chunks",
    )  # fmt: skip
    add(a, "strided-4", CAUSAL & Strided(4), "causal, distance a multiple of 4", "Strides")
    add(a, "strided-phase", Strided(5, 2), "position of query minus key is 2 modulo 5", "Strides")
    add(
        a, "strided-window", CAUSAL & (SlidingWindow(3, 0) | Strided(4)),
        "causal: the last 4 keys, and those at a distance that is a multiple of 4", "Strides",
    )  # fmt: skip
    add(
        a, "fixed", CAUSAL & (Chunked(6) | KeyStride(6, [5])),
        "causal: its own chunk of 6, and the last key of every chunk", "Strides", "Chunks",
    )  # fmt: skip
    add(
        a, "key-stride", KeyStride(3, [0, 2]),
        "keys whose position is 0 or 2 modulo 3", "Strides",
    )  # fmt: skip
    add(
        a, "row-stride", RowStride(3, [1]),
        "queries whose position is 1 modulo 3 see every key, the others none", "Strides",
    )  # fmt: skip
    add(
        a, "rows-and-keys", RowStride(2, [1]) & KeyStride(3, [0]),
        "odd queries see the keys at multiples of 3, even queries none", "Strides",
    )  # fmt: skip
    add(a, "offsets", Offsets([0, 1, 2, 4, 8]), "keys 0, 1, 2, 4 and 8 before the query", "Strides")
    add(
        a, "offsets-signed", Offsets([-3, 0, 7]),
        "its own key, the one 3 after and the one 7 before", "Strides",
    )  # fmt: skip


def _combined(add: Add) -> None:
    a = "combined"
    window, strided = CAUSAL & SlidingWindow(3, 0), CAUSAL & Strided(3)
    add(a, "nothing", ~Full(), "no key at all")
    add(
        a, "or", SlidingWindow(1, 0) | KeyStride(5, [1]),
        "its own key and the one before, or a key at 1 modulo 5", "Algebra",
    )  # fmt: skip
    add(
        a, "and-not", CAUSAL & ~KeyStride(3, [1]) & ~Rows([2]),
        "causal, but no key at 1 modulo 3, and nothing for query 2", "Algebra",
    )  # fmt: skip
    add(
        a, "not-or", ~(SlidingWindow(2, 2) | Keys([0])),
        "neither within 2 of the query nor key 0", "Algebra",
    )  # fmt: skip
    add(
        a, "per-head-2", PerHead([window, strided]),
        "even heads: the last 4 keys; odd heads: causal, distance a multiple of 3", "PerHead",
    )  # fmt: skip
    add(
        a, "per-head-3", CAUSAL & PerHead([SlidingWindow(0, 0), SlidingWindow(2, 0), Full()]),
        "causal; head h modulo 3: its own key, the last 3 keys, all keys", "PerHead",
    )  # fmt: skip
    add(
        a, "per-head-random", lambda n: PerHead([RandomKeys(2, seed, n) for seed in (1, 2)]),
        "2 random keys a row; even heads seed 1, odd heads seed 2", "PerHead", "RandomKeys",
    )  # fmt: skip
    add(
        a, "multi-2", Multi([CAUSAL, SlidingWindow(2, 0)]),
        "causal, and the last 3 keys once more: they count twice", "Multiplicity",
    )  # fmt: skip
    add(
        a, "multi-3", Multi([Chunked(4), Keys([1]), Keys([1, 2])]),
        "its own chunk of 4, key 1 up to twice more and key 2 once more", "Multiplicity",
    )  # fmt: skip
    add(
        a, "multi-cut", Multi([Full(), Strided(2), Sink(1)]) & CAUSAL,
        "causal; an even distance counts once more, key 0 once more", "Multiplicity",
    )  # fmt: skip


NAMED = _table()
PER_BATCH = Named(
    "combined",
    lambda n: PerBatch([PrefixLM(2), CAUSAL & SlidingWindow(1, 0)]),
    "batch row 0: causal and the first 2 keys; batch row 1: its own key and the one before",
    ("PerBatch",),
)
