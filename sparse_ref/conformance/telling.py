"""Mistakes of precision told apart, by bits that are read from outside.

Each of them is a bound, and a loose one holds whatever a tight one holds: wrong answers alone do
not say which step lost its bits. `read_precision` does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from sparse_ref.arithmetic import FORMATS

from .calling import Implementation
from .case import dtype_named
from .catalogue.rounding import ARITHMETICS
from .diagnosis import Diagnosis
from .precision import Precision, read_precision

WIDTHS = np.array([8, 11, 24])


def told(found: list[Diagnosis], fn: Implementation, kinds: Collection[str]) -> list[Diagnosis]:
    """Of mistakes of precision, all made in one type, those that show the bits that are read."""
    names = [name for one in found for name in one.ids if name in ARITHMETICS]
    read = read_in(fn, *kinds) if len(names) > 1 and len(kinds) == 1 else None
    if read is None:
        return found
    kept = fitting(names, read, *kinds)
    left = []
    for one in found:
        if not set(one.ids) <= set(ARITHMETICS):
            left.append(one)
        elif ids := [name for name in one.ids if name in kept]:
            left.append(one.only(ids, str(read)))
    return left


def read_in(fn: Implementation, dtype: str) -> Precision | None:
    """The bits that are kept of inputs of a type; None where that cannot be read."""
    kind = dtype_named(dtype)

    def narrow(q: Any, k: Any, v: Any, pattern: Any) -> Any:
        return fn(*(x.astype(kind) for x in (q, k, v)), pattern)

    try:
        with np.errstate(all="ignore"):
            return read_precision(narrow)
    except Exception:  # whatever it does not do, it need not say why
        return None


def shown_by(name: str, dtype: str) -> tuple[int, int | None, int]:
    """Bits of scores, weights (None: any) and sums that a mistake of precision would show.

    >>> shown_by("float16-scores", "float32"), shown_by("float16-sums", "float16")
    ((11, 24, 24), (11, 11, 11))
    """
    made = ARITHMETICS[name]
    sums = FORMATS[made.accumulate].bits
    # TF32 cuts what is multiplied, and a score of the probe is the sum of two short products
    scores = 24 if made.score == "tf32" else min(FORMATS[made.score].bits, sums)
    steps = (made.exp, made.weight, dtype)
    weights = None if made.exp_ulps > 2 else min(FORMATS[step].bits for step in steps)
    return scores, weights, sums


def fitting(names: Sequence[str], read: Precision, dtype: str) -> list[str]:
    """Those of some mistakes of precision that show what was read; all where none does."""

    def width(bits: int) -> int:
        return int(WIDTHS[np.argmin(np.abs(WIDTHS - bits))])

    def fits(name: str) -> bool:
        scores, weights, sums = shown_by(name, dtype)
        if (width(read.scores), width(read.sums)) != (scores, sums):
            return False
        if weights is None:  # an exponential, which leaves the values as they are
            return width(read.values) == FORMATS[dtype].bits
        return width(read.weights) == weights

    return [name for name in names if fits(name)] or list(names)
