"""How many bits an implementation keeps, read from outside.

An error bound is blind to some losses: scores rounded to bfloat16 in a kernel that says float32 can
stay within it on long rows. Each probe here makes one rounding decide the whole output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ref._arrays import Floats
from sparse_ref.patterns import Full

from .calling import Implementation, ask

SIZE = 64  # of a head: its default scale, 1 / 8, is exact


@dataclass(frozen=True)
class Precision:
    """Significant bits (float32 has 24, TF32 and float16 11, bfloat16 8) of every step.

    >>> str(Precision(24, 24, 24, 24, False))
    'scores 24 bits, weights 24, values 24, sums 24; small weights kept'
    """

    scores: int
    weights: int
    values: int
    sums: int
    flushes: bool

    def __str__(self) -> str:
        small = "flushed to 0" if self.flushes else "kept"
        return (
            f"scores {self.scores} bits, weights {self.weights}, "
            f"values {self.values}, sums {self.sums}; small weights {small}"
        )


def read_precision(fn: Implementation) -> Precision:
    """The bits an implementation keeps of scores, weights, values and sums, and flushing.

    Parameters
    ----------
    fn : callable
        `fn(q, k, v, pattern) -> out or (out, lse)`; asked for `Full()` over 1 to 64 keys.
        Arrays are float32: a kernel of another type is asked through a `Candidate`, and keeps no
        more bits of the values than its type has.

    Returns
    -------
    Precision

    >>> import sparse_ref as sr
    >>> print(read_precision(lambda q, k, v, pattern: sr.attention(q, k, v, pattern).out))
    scores 24 bits, weights 24, values 24, sums 24; small weights kept
    """

    def row(scores: Floats, values: Floats) -> float:
        """The output of one query with these scores, over one number a key.

        A score is a power of two and a rest, in two entries, so that half types hold both.
        """
        high = np.copysign(2.0 ** (np.frexp(scores)[1] - 1), scores)
        sizes = (1, len(scores), len(scores))
        q, k, v = (np.zeros((1, 1, n, SIZE), dtype=np.float32) for n in sizes)
        q[..., :2] = 8  # times a scale of 1 / 8
        k[0, 0, :, 0], k[0, 0, :, 1], v[0, 0, :, 0] = high, scores - high, values
        with np.errstate(all="ignore"):
            return float(ask(fn, q, k, v, Full(), {}).out[0, 0, 0, 0])

    return Precision(
        scores=_scores(row), weights=_weights(row), values=_values(row), sums=_sums(row),
        flushes=_flushes(row),
    )  # fmt: skip


def _scores(row: Any) -> int:
    """Scores 2**t and 2**t + 1 are told apart while a score has more than t bits."""
    for t in range(1, 25):
        base = 2.0**t
        if row(np.array([base, base + 1]), np.array([-1.0, 1.0])) < 0.25:
            return t
    return 24


def _weights(row: Any) -> int:
    """The largest relative error of a weight between 1/2 and 1, over many of them.

    Several bits of it may be the exponential's: what is left is named by the nearest format.
    """
    worst = 0.0
    for x in np.arange(1, 200) / 256:
        weight = np.exp(-x) / (1 + np.exp(-x))
        worst = max(worst, abs(row(np.array([0.0, -x]), np.array([0.0, 1.0])) / weight - 1))
    bits = np.array([8, 11, 24])
    return int(bits[np.argmin(np.abs(bits + 0.5 + np.log2(max(worst, 2.0**-24))))])


def _values(row: Any) -> int:
    """A value 1 + 2**-t, seen alone, comes back as it is while t is less than the bits kept."""
    for t in range(1, 24):
        if row(np.zeros(1), np.array([1 + 2.0**-t])) == 1:
            return t
    return 24


def _sums(row: Any) -> int:
    """2**t, sixty-two ones and -2**t add up to 62 while a sum has more than t bits."""
    for t in range(2, 24):
        values = np.array([2.0**t, *np.ones(62), -(2.0**t)])
        if abs(row(np.zeros(64), values) * 64 - 62) > 8:
            return t
    return 24


def _flushes(row: Any) -> bool:
    """Whether a weight of 2**-130, below float32's normal range, is 0."""
    weight: float = row(np.array([0.0, -130 * np.log(2)]), np.array([0.0, 2.0**110]))
    return weight == 0
