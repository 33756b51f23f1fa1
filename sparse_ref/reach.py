"""How many layers of a pattern connect every query with every key it may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy import sparse

from ._arrays import integer
from .layouts import to_csr
from .patterns import Pattern
from .patterns.pattern import checked


def reach(patterns: Pattern | Sequence[Pattern], n: int) -> int | None:
    """The number of layers after which every query sees every key it may, or None if never.

    Child et al. 2019 (arXiv:1904.10509, section 4.2) ask this of a factorised pattern. A layer
    passes on what its heads see together, and a token keeps its own state (the residual
    connection). What a query may see is every key up to itself if no pattern looks ahead, else
    every key.

    Parameters
    ----------
    patterns : Pattern or sequence of them
        One for every layer, repeated from the start when the layers are more.
    n : int >= 0
        Number of tokens.

    >>> from sparse_ref import Causal, SlidingWindow, Strided
    >>> reach([Causal() & SlidingWindow(7, 0), Causal() & Strided(8)], 64)
    2
    >>> reach(Causal() & SlidingWindow(7, 0), 64)
    9
    """
    given = [patterns] if isinstance(patterns, Pattern) else list(patterns)
    if not given:
        raise ValueError("patterns must hold at least one pattern, got none")
    steps = [_step(checked(p, f"patterns[{i}]"), integer("n", n)) for i, p in enumerate(given)]
    ahead = any(sparse.triu(step, k=1).nnz for step in steps)
    wanted = n * n if ahead else n * (n + 1) // 2
    seen: Any = sparse.eye_array(n, dtype=bool, format="csr")
    layers, idle = 0, 0
    while seen.nnz < wanted and idle < len(steps):
        before = seen.nnz
        seen = sparse.csr_array(steps[layers % len(steps)] @ seen)
        idle = idle + 1 if seen.nnz == before else 0
        layers += 1
    return layers if seen.nnz == wanted else None


def _step(pattern: Pattern, n: int) -> Any:
    """What one layer connects: the union of its heads, and every token with itself."""
    step: Any = sparse.eye_array(n, dtype=bool, format="csr")
    for head in range(pattern.heads):
        step = step + to_csr(pattern, n, n, head=head).astype(bool)
    return step
