"""Whether a causal pattern is one of blocks, shown by how it is written and so for every length."""

from __future__ import annotations

import math

import numpy as np

import sparse_ref as sr
from sparse_ref.patterns.drift import Drift
from sparse_ref.patterns.tables import IntegerSet, Table

SIZES = (128, 64, 32, 16)  # that ONNX Runtime has kernels for on CUDA; the CPU takes any
LONGEST = 2**16  # the longest period that is tried out


def block_size(pattern: sr.Pattern) -> int | None:
    """The largest block in whose terms the pattern can be said, beside being causal; None if none.

    >>> block_size(sr.recipes.phi3_small(heads=4, block_size=32))
    32
    >>> block_size(sr.Causal() & sr.SlidingWindow(64, 0)) is None
    True
    """
    heads = [pattern.at(head) for head in range(pattern.heads)]
    grains = [_of_causal(one) for one in heads]
    if None in grains:
        return None
    grain = math.gcd(*(one or 0 for one in grains))
    return next((size for size in SIZES if grain % size == 0), None)


def _of_causal(pattern: sr.Pattern) -> int | None:
    """The grain of all that is ANDed with causality; None if that is not among it."""
    members = pattern.patterns if isinstance(pattern, sr.And) else (pattern,)
    causal = [one for one in members if one in (sr.Causal(), sr.SlidingWindow(None, 0))]
    others = [one for one in members if one not in causal]
    return math.gcd(*map(_grain, others)) if causal else None


def _grain(pattern: sr.Pattern) -> int:
    """A size in whose blocks the pattern is constant, 0 where any will do, 1 where none is known.

    Multiples of it are not, its divisors are.
    """
    match pattern:
        case sr.Full():
            return 0
        case sr.Blocked():
            return pattern.block_size
        case sr.BlockPattern():
            return math.gcd(*np.atleast_1d(pattern.block_size).tolist())
        case sr.Chunked(size, _, _, origin):
            return math.gcd(size, origin)
        case sr.Sink(count):
            return int(count)
        case sr.Keys(tokens) | sr.Rows(tokens) | sr.Global(tokens):
            return _of_set(tokens)
        case sr.KeyStride(period, residues) | sr.RowStride(period, residues):
            return math.gcd(period, _of_set(residues))
        case sr.And(several) | sr.Or(several):
            return math.gcd(*map(_grain, several))
        case sr.Not(inner):
            return _grain(inner)
    return 1


def _of_set(members: object) -> int:
    """The grain of the ends of all runs of consecutive integers; 1 for what is not known now."""
    if not isinstance(members, IntegerSet) or isinstance(members.values, Table):
        return 1
    values = np.array([*members], dtype=np.int64)
    if not len(values):
        return 0
    jump = np.diff(values) > 1
    return math.gcd(
        int(values[0]), int(values[-1]) + 1, *values[1:][jump].tolist(),
        *(values[:-1][jump] + 1).tolist(),
    )  # fmt: skip


def sees_itself(pattern: sr.Pattern) -> bool:
    """Whether every query certainly sees the key at its own position.

    >>> sees_itself(sr.SlidingWindow(3, 0) | sr.Sink(2)), sees_itself(sr.Strided(4, 1))
    (True, False)
    """
    if isinstance(pattern, sr.Or) and any(map(sees_itself, pattern.patterns)):
        return True
    if isinstance(pattern, sr.And):
        return all(map(sees_itself, pattern.patterns))
    if isinstance(pattern, sr.Blocked):
        return sees_itself(pattern.pattern)
    if pattern.covers is not None:
        return False
    every = pattern(Drift(), Drift()).every
    if not 0 < every <= LONGEST:
        return False
    q = np.arange(every)
    return bool(np.all(pattern(q, q)))
