"""Score and reduce: what selectors rank keys and blocks by, in float64.

Every score is added up along the head size in one order, whatever the key's place, so that equal
keys have equal scores and ties are ties: a matrix product would not promise that.
"""

from __future__ import annotations

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints

from .inputs import Row


def dots(row: Row, cut: slice) -> Floats:
    """The products q . k of some queries of every head, (h, rows, n), unscaled."""
    return products(row.q[:, cut], row.k)


def products(q: Floats, k: Floats) -> Floats:
    """All q . k for q (h, rows, d), k (g, n, d); head i reads i // (h / g): (h, rows, n)."""
    h, (g, n, d) = len(q), k.shape
    grouped = q.reshape(g, h // g, q.shape[1], d)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf in a key that is not visible
        scores: Floats = np.einsum("ghmd,gnd->ghmn", grouped, k)
    return scores.reshape(h, q.shape[1], n)


def probabilities(scores: Floats, seen: Bools) -> Floats:
    """The softmax over the keys that are seen; 0 elsewhere, and in rows that see none."""
    s = np.where(seen, scores, -np.inf)
    peak = s.max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(s - np.where(np.isneginf(peak), 0.0, peak))
        total = weights.sum(axis=-1, keepdims=True)
        return np.asarray(weights / np.where(total == 0, 1.0, total))


def lightning(q: Floats, k: Floats, weights: Floats) -> Floats:
    """Sum over heads of weights (rows, h) times ReLU of q (h, rows, d) . k (1, n, d): (rows, n)."""
    total = np.zeros((q.shape[1], k.shape[1]))
    with np.errstate(invalid="ignore", over="ignore"):
        for head, one in enumerate(q):
            total += weights[:, head, None] * np.maximum(products(one[None], k)[0], 0.0)
    return total


class Blocked:
    """Keys in order of position, cut where a new block of positions begins."""

    def __init__(self, keys: Ints, size: int) -> None:
        block = keys // size
        self.starts = np.flatnonzero(np.append(True, block[1:] != block[:-1])[: len(block)])
        self.numbers = block[self.starts]

    def any(self, seen: Bools) -> Bools:
        """Whether a query sees any key of a block, (rows, blocks)."""
        return np.logical_or.reduceat(seen, self.starts, axis=-1) if len(self.starts) else seen

    def mean(self, scores: Floats, seen: Bools) -> Floats:
        """The mean score of the keys that are seen: the score of their mean key."""
        if not len(self.starts):
            return scores
        with np.errstate(invalid="ignore"):  # inf - inf is a score of NaN
            total = np.add.reduceat(np.where(seen, scores, 0.0), self.starts, axis=-1)
        count = np.add.reduceat(seen, self.starts, axis=-1, dtype=np.int64)
        return np.asarray(total / np.maximum(count, 1))

    def max(self, scores: Floats, seen: Bools) -> Floats:
        """The greatest score of the keys that are seen."""
        if not len(self.starts):
            return scores
        return np.maximum.reduceat(np.where(seen, scores, -np.inf), self.starts, axis=-1)
