"""Selectors by probability: keys above a threshold, and the fewest that hold a given mass."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints, array
from sparse_ref.patterns import Causal, Pattern

from .inputs import Inputs, Row, Table, inputs
from .picks import most
from .scores import dots, probabilities
from .selection import Selection


def threshold(
    q: Any,
    k: Any,
    *,
    probability: float,
    scale: float | None = None,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """The visible keys whose softmax probability is greater than `probability`.

    Steps, for every query of every head:

    1. P = softmax(scale * q . k) over the visible keys.
    2. Keep the keys with P > `probability`. There may be none: that row of attention is empty.

    O(m n d) time a head. In published code the gate of SeerAttention (arXiv:2410.13276) is compared
    alike, strictly, though on blocks and learned; others compare with >=, or with a share of the
    row's maximum. Attention renormalises over what is kept.

    Parameters
    ----------
    q : (..., h, m, d) floats
    k : (..., g, n, d) floats; g divides h
    probability : float in [0, 1)
    scale : float, default d ** -0.5
    visible, q_start, kv_positions : as `topk_keys` takes them

    Returns
    -------
    Selection of keys, one list a query head.

    Source: as named above; the released gates are learned. No runnable witness, two derivations:
    the tests count it out by another formula.

    >>> q, k = np.ones((1, 3, 1)), np.array([[[0.0], [2.0], [0.0]]])
    >>> threshold(q, k, probability=0.2).mask(3, 3)[0].astype(int)
    array([[1, 0, 0],
           [0, 1, 0],
           [0, 1, 0]])
    """
    given, factor = inputs(q, k, visible, q_start, kv_positions), scale_of(scale, q)
    least = fraction("probability", probability)
    if least == 1:
        raise ValueError("probability must be < 1, got 1.0")

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        seen = row.seen(cut)
        p = _probabilities(row, cut, seen, factor)
        return (np.isnan(p) | (p > least)) & seen, row.keys

    return _selection(given, given.table(rule, each=_each(given)))


def top_p(
    q: Any,
    k: Any,
    *,
    mass: float,
    scale: float | None = None,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """The fewest visible keys whose softmax probabilities together reach `mass`.

    Steps, for every query of every head:

    1. P = softmax(scale * q . k) over the visible keys.
    2. Go through the keys by descending P, of equal ones the smaller position first, and keep a key
       as long as the sum of those *before* it is below `mass`. So the kept mass is >= `mass`, and
       at least one key is kept. With `mass` = 1 all visible keys are.

    O(m n (d + log n)) time a head. Published code disagrees by one key: XAttention
    (arXiv:2503.16428) and FlexPrefill's vertical-slash path (arXiv:2502.20766) keep a mass
    >= `mass`, as here and in Twilight (arXiv:2502.02770); SpargeAttn (arXiv:2502.18137) and
    FlexPrefill's block path keep one <= it. Defaults there: 0.9 (XAttention's estimate), 0.9 to
    0.95 (FlexPrefill); there is none here.

    Parameters
    ----------
    q, k, scale, visible, q_start, kv_positions : as `threshold` takes them
    mass : float in [0, 1]; 0 keeps no key

    Returns
    -------
    Selection of keys, one list a query head.

    Source: as named above. No runnable witness, two derivations: the tests count it out by another
    formula.

    >>> q, k = np.ones((1, 3, 1)), np.array([[[0.0], [2.0], [0.0]]])
    >>> top_p(q, k, mass=0.8).mask(3, 3)[0].astype(int)
    array([[1, 0, 0],
           [0, 1, 0],
           [1, 1, 0]])
    """
    given, factor = inputs(q, k, visible, q_start, kv_positions), scale_of(scale, q)
    share = fraction("mass", mass)

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        seen = row.seen(cut)
        if share == 1:  # sums of rounded numbers reach 1 too early
            every = np.broadcast_to(seen, (row.q.shape[0], *seen.shape))
            return every, row.keys
        return most(_probabilities(row, cut, seen, factor), seen, share), row.keys

    return _selection(given, given.table(rule, each=_each(given)))


def _probabilities(row: Row, cut: slice, seen: Bools, factor: float) -> Floats:
    return probabilities(factor * dots(row, cut), seen)


def _selection(given: Inputs, indices: Table) -> Selection:
    h, g = given.q.shape[1], given.k.shape[1]
    return Selection(indices, heads=h, kv_heads=g, visible=given.visible)


def _each(given: Inputs) -> int:
    return int(given.q.shape[1] * given.k.shape[2])


def scale_of(scale: object, q: Any) -> float:
    got = array("scale", np.shape(q)[-1] ** -0.5 if scale is None else scale)
    if got.ndim or got.dtype.kind not in "fiu" or not np.isfinite(got):
        raise ValueError(f"scale must be a finite number, got {scale!r}")
    return float(got)


def fraction(name: str, value: object) -> float:
    got = array(name, value)
    if got.ndim or got.dtype.kind not in "fiu" or not 0 <= got <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(got)
