"""Kept first tokens, and what long prompts are prefilled with."""

from __future__ import annotations

from typing import Any

from sparse_ref._arrays import integer
from sparse_ref.patterns import Causal, Keys, Offsets, Pattern, Rows, Sink, SlidingWindow


def streaming_llm(sinks: int = 4, window: int = 2000) -> Pattern:
    """The first `sinks` keys and the last `window` (StreamingLLM, Xiao et al., arXiv:2309.17453).

    A-shape and Lambda masks are the same. `start_size` and `recent_size` of mit-han-lab's code; the
    window holds the query's own key, as `evict_for_space` leaves it (called after the forward
    pass instead, its cache shows one key more). There rotary positions are those in the cache,
    here a pattern only.

    >>> from sparse_ref import draw
    >>> print(draw(streaming_llm(1, 2), 5))
    # . . . .
    # # . . .
    # # # . .
    # . # # .
    # . . # #
    """
    return Causal() & (
        Sink(integer("sinks", sinks)) | SlidingWindow(integer("window", window, 1) - 1, 0)
    )


def tri_shape(length: int, sinks: int = 128, window: int = 512, last: int = 100) -> Pattern:
    """Sinks and a window, and the last queries see all: a prompt's prefill (arXiv:2407.02490).

    The tri-shape of microsoft/MInference; OpenVINO GenAI rounds the numbers to its cache blocks.

    Parameters
    ----------
    length : int >= 0
        Tokens of the prompt.
    sinks, window, last : int
        First keys seen by all, last keys seen (the own one included), last queries that see all.

    >>> from sparse_ref import draw
    >>> print(draw(tri_shape(6, sinks=1, window=2, last=1), 6))
    # . . . . .
    # # . . . .
    # # # . . .
    # . # # . .
    # . . # # .
    # # # # # #
    """
    n, rows = integer("length", length), integer("last", last)
    local = Sink(integer("sinks", sinks)) | SlidingWindow(integer("window", window, 1) - 1, 0)
    return Causal() & (local | Rows(range(max(0, n - rows), n)))


def vertical_slash(columns: Any, offsets: Any) -> Pattern:
    """Chosen key columns and chosen diagonals (MInference, arXiv:2407.02490).

    The mathematical set. MInference's kernel computes a superset of it: each block of 64 queries
    sees the 64 keys that a slash touches.

    Parameters
    ----------
    columns : ints, a range or a bool table
        Keys seen by every later query.
    offsets : ints
        Distances q - k of the slashes; without 0 a query may see no key.

    >>> from sparse_ref import draw
    >>> print(draw(vertical_slash([1], [0, 3]), 5))
    # . . . .
    . # . . .
    . # # . .
    # # . # .
    . # . . #
    """
    return Causal() & (Keys(columns) | Offsets(offsets))
