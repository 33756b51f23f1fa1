"""Inputs on which a mistake cannot hide: numbers exact in float16 and bfloat16.

On random inputs one key among W is worth 1 / W of the output. Each probe makes one kind of mistake
worth as much as the output itself, or makes every other error vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sparse_ref._arrays import Floats

Rng = np.random.Generator


class Sizes(NamedTuple):
    """Batch, query heads, key/value heads, queries, keys, head size, value size."""

    b: int
    h: int
    g: int
    m: int
    n: int
    d: int
    e: int

    def __str__(self) -> str:
        b, h, g, m, n, d, e = self
        return f"b{b}h{h}g{g}-{m}x{n}-d{d}e{e}"


Arrays = tuple[Floats, Floats, Floats]


def random(rng: Rng, s: Sizes) -> Arrays:
    """Multiples of 1/64 between -2 and 2: everything at once, nothing loud."""

    def draw(*shape: int) -> Floats:
        return rng.integers(-128, 129, shape) / 64

    return draw(s.b, s.h, s.m, s.d), draw(s.b, s.g, s.n, s.d), draw(s.b, s.g, s.n, s.e)


def even(rng: Rng, s: Sizes) -> Arrays:
    """Q = 0: all seen keys weigh the same, and their values are 1 or -1. One key too many shows."""
    _, k, v = random(rng, s)
    return np.zeros((s.b, s.h, s.m, s.d)), k, np.where(v < 0, -1.0, 1.0)


def ramp(rng: Rng, s: Sizes) -> Arrays:
    """Scores from -4 to 4: a wrong scale, base or rescaling shows."""
    return _with_scores(rng, s, rng.integers(-16, 17, (s.b, s.g, s.n)) / 4)


def fingerprint(rng: Rng, s: Sizes) -> Arrays:
    """Every head and column has a value of its own: what is read from elsewhere shows."""
    q, k, v = even(rng, s)
    head, column = np.arange(s.g)[:, None, None] % 8, np.arange(s.e) % 64
    return q, k, np.broadcast_to(2.0**head * (1 + column / 64), v.shape).copy()


def low(rng: Rng, s: Sizes) -> Arrays:
    """All scores are -8: a key of zeros, which has score 0, drowns the real ones."""
    return _with_scores(rng, s, np.full((s.b, s.g, s.n), -8.0))


def lower(rng: Rng, s: Sizes) -> Arrays:
    """All scores are -20: a mask of -10 instead of -inf is higher than what it should hide."""
    return _with_scores(rng, s, np.full((s.b, s.g, s.n), -20.0))


def steps(rng: Rng, s: Sizes) -> Arrays:
    """Blocks of keys with scores 0 and 12 in turn: parts joined wrongly show."""
    block = np.arange(s.n) // max(4, s.n // 16)
    return _with_scores(rng, s, np.broadcast_to(12.0 * (block % 2), (s.b, s.g, s.n)))


def _with_scores(rng: Rng, s: Sizes, scores: Floats) -> Arrays:
    """Q . k d ** -0.5 is about `scores`, the same for every query; values are 1 or -1."""
    _, k, v = even(rng, s)
    q = np.zeros((s.b, s.h, s.m, s.d))
    q[..., 0], k = _half(np.sqrt(s.d)), np.zeros_like(k)
    k[..., 0] = scores
    return q, k, v


def _half(x: float) -> float:
    """Rounded to the 8 bits of bfloat16."""
    return float(np.ldexp(np.rint(np.frexp(x)[0] * 256), int(np.frexp(x)[1]) - 8))


PROBES: dict[str, Callable[[Rng, Sizes], Arrays]] = {
    one.__name__: one for one in (random, even, ramp, fingerprint, low, lower, steps)
}
