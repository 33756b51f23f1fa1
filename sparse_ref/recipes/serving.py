"""Patterns that make a dense decoder cheaper to serve."""

from __future__ import annotations

from typing import Any

from sparse_ref._arrays import integer
from sparse_ref.patterns import Causal, Keys, Offsets, Pattern, Rows, Sink, SlidingWindow


def streaming_llm(sinks: int = 4, window: int = 2000) -> Pattern:
    """StreamingLLM: the first tokens and a window, the query included: sinks + window keys.

    Xiao et al. 2023 (arXiv:2309.17453); the same mask is MInference's A-shape and LM-Infinite's.
    Positions here are absolute: StreamingLLM itself counts rotary positions inside its cache.

    >>> from sparse_ref import draw
    >>> print(draw(streaming_llm(sinks=1, window=2), 5))
    # . . . .
    # # . . .
    # # # . .
    # . # # .
    # . . # #
    """
    window = integer("window", window, 1)
    return Causal() & (Sink(sinks) | SlidingWindow(window - 1, 0))


def tri_shape(length: int, sinks: int = 128, window: int = 512, last: int = 100) -> Pattern:
    """Tri-shape: sinks and a window, but the last `last` of `length` queries see all their past.

    Li et al. 2024, SCBench (arXiv:2412.10319); OpenVINO GenAI's TRISHAPE. For prefill: `length` is
    the prompt's.

    >>> from sparse_ref import draw
    >>> print(draw(tri_shape(6, sinks=1, window=2, last=1), 6))
    # . . . . .
    # # . . . .
    # # # . . .
    # . # # . .
    # . . # # .
    # # # # # #
    """
    length, last = integer("length", length), integer("last", last)
    dense = Causal() & Rows(range(max(length - last, 0), length))
    return streaming_llm(sinks, window) | dense


def vertical_slash(columns: Any, offsets: Any) -> Pattern:
    """Vertical-slash: some columns and some diagonals, below the diagonal.

    Jiang et al. 2024, MInference (arXiv:2407.02490), section 3.2: the pattern as the mathematics
    says it. Its kernel attends a superset: a slash covers whole blocks of 64 keys.

    Parameters
    ----------
    columns : ints, range or bool table of keys
    offsets : ints, distances before the query; with 0 no row is empty

    >>> from sparse_ref import draw
    >>> print(draw(vertical_slash([1], [0, 3]), 5))
    # . . . .
    . # . . .
    . # # . .
    # # . # .
    . # . . #
    """
    return Causal() & (Keys(columns) | Offsets(offsets))
