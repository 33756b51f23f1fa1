"""How the heads of several layers share factorised patterns (Child et al., section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Literal

import sparse_ref as sr

Sharing = Literal["interleaved", "merged", "heads"]


def factorised(patterns: Sequence[sr.Pattern], sharing: Sharing, blocks: int) -> list[sr.Pattern]:
    """The pattern of each of so many blocks.

    Parameters
    ----------
    patterns : sequence of Pattern
        The p parts, A^(1) to A^(p).
    sharing : "interleaved", "merged" or "heads"
        Block r has part r mod p, equation (6); every block the union, (7); or head h of every block
        part h mod p, as in (8).
    blocks : int

    Examples
    --------
    >>> parts = [sr.SlidingWindow(2, 0), sr.Strided(3)]
    >>> factorised(parts, "interleaved", 3) == [parts[0], parts[1], parts[0]]
    True
    >>> factorised(parts, "merged", 1) == [parts[0] | parts[1]]
    True
    """
    if isinstance(patterns, sr.Pattern):
        raise TypeError(f"patterns must be a sequence of patterns, got {patterns!r}")
    if not patterns:
        raise ValueError("patterns must not be empty")
    if sharing == "interleaved":
        return [patterns[r % len(patterns)] for r in range(blocks)]
    if sharing == "merged":
        return [reduce(or_, patterns)] * blocks
    if sharing == "heads":
        return [sr.PerHead(list(patterns))] * blocks
    raise ValueError(f"sharing must be 'interleaved', 'merged' or 'heads', got {sharing!r}")
