"""From a pattern, or a mask read from an implementation, back to everybody's spelling."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import LIMIT, Bools, Ints, array
from sparse_ref.patterns import (
    And,
    Causal,
    Neighborhood,
    Or,
    Pattern,
    PrefixLM,
    Sink,
    SlidingWindow,
)
from sparse_ref.patterns.drift import Drift
from sparse_ref.patterns.spans import Span

from .forms import CONVENTIONS, Form, Spelling

LONGEST = 2**16  # the longest period that is read
WIDEST = 2**11  # positions of a table that are read


def describe(pattern: Pattern | object) -> dict[str, str | None]:
    """How each library would be told to attend like this; None where it cannot be.

    Parameters
    ----------
    pattern : Pattern, or bool mask (q_len, kv_len) read from an implementation
        A pattern is described for as many queries as keys, and by what equals it at all
        positions. A mask is described by what gives this very mask, under each API's own
        alignment of fewer queries than keys; where it does not show the end of a window, the
        unbounded spelling comes first.

    >>> found = describe(SlidingWindow(127, 0))
    >>> found["hf"], found["flash_attn"], found["longt5"]
    ('sliding_window=128', 'window_size=(127, 0)', None)
    >>> describe(np.tri(2, 4, dtype=bool))["sdpa"], describe(np.tri(2, 4, k=2, dtype=bool))["sdpa"]
    ('is_causal=True', None)
    """
    if isinstance(pattern, Pattern):
        last = first = forms_of(pattern)
    else:
        got: NDArray[np.bool_] = array("mask", pattern)
        if got.dtype != bool or got.ndim != 2 or 0 in got.shape:
            raise ValueError(
                f"mask must be bool (q_len, kv_len), both >= 1, got {got.dtype} {got.shape}"
            )
        last, first = _of_mask(got, got.shape[1] - got.shape[0]), _of_mask(got, 0)
    return {name: _spelled(c.spell, first if c.first else last) for name, c in CONVENTIONS.items()}


def _spelled(spell: Spelling, forms: list[Form]) -> str | None:
    texts = (spell(form) for form in forms)
    return next((text for text in texts if text is not None), None)


def _of_mask(mask: Bools, start: int) -> list[Form]:
    """Every form that gives this mask if the first query is at position `start`."""
    m, n = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return []
    q = start + rows
    low, high = mask[rows].argmax(axis=1), n - 1 - mask[rows, ::-1].argmax(axis=1)
    left, right = int((q - low).max()), int((high - q).max())
    # a side that no pair of the mask exceeds may be anything from there on
    lefts = [left] if left < start + m - 1 else [None, right, left]
    rights = [right] if right < n - 1 - start else [None, 0, left, right]
    forms = [Form(a, b) for a in lefts for b in rights]
    forms += [Form(chunk=math.gcd(*low.tolist()), back=back) for back in (0, 1)]
    if right > 0:
        forms.append(Form(prefix=int(high[high > q].max()) + 1))
    ends = np.flatnonzero(np.diff(mask[-1], prepend=False, append=False))  # of runs, and starts
    if len(ends) >= 4 and ends[0] == 0:
        forms.append(Form(left=start + m - 1 - int(ends[-2]), right=0, sinks=int(ends[1])))
    if m == n and start == 0:
        forms.append(Form(kernel=int(mask[0].sum()), length=n))
    return [form for form in dict.fromkeys(forms) if _gives(form, mask, start)]


def _gives(form: Form, mask: Bools, start: int) -> bool:
    """Whether the form is one, and its mask this one."""
    backwards = any(side is not None and side < 0 for side in (form.left, form.right))
    if backwards or 0 in (form.chunk, form.kernel):
        return False
    return np.array_equal(form.pattern.mask(*mask.shape, q_start=start)[0], mask)


def forms_of(pattern: Pattern) -> list[Form]:
    """Every form that equals this pattern at all positions it is defined for."""
    if pattern.heads > 1 or pattern.batches or pattern.multiset:
        return []
    if isinstance(pattern, Neighborhood):
        plain = pattern.dilation == pattern.stride == 1 and not pattern.causal
        return [Form(kernel=pattern.kernel, length=pattern.length)] if plain else []
    if pattern.covers is not None:
        size = pattern.covers
        return _of_mask(pattern.mask(size, size)[0], 0) if 0 < size <= WIDEST else []
    period = pattern(Drift(), Drift()).every
    if period == 0:
        return _anchored(pattern)
    return _periodic(pattern, np.arange(period)) if period <= LONGEST else []


def _anchored(pattern: Pattern) -> list[Form]:
    """Prefixes and sinks, as one writes them."""
    members = set(pattern.patterns) if isinstance(pattern, (And, Or)) else set()
    others = [*(members - {Causal()})]
    match pattern, others:
        case PrefixLM(prefix=int()), _:
            return [Form(prefix=pattern.prefix)]
        case Or(), [Sink() as sink] if len(members) == 2:
            return [Form(prefix=sink.count)]
        case And(), [Or(patterns=(Sink() as sink, SlidingWindow(dilation=1) as window))]:
            known = len(members) == 2 and window.left is not None
            return [Form(left=window.left, right=0, sinks=sink.count)] if known else []
    return []


def _periodic(pattern: Pattern, q: Ints) -> list[Form]:
    """Windows and chunks, from what the queries of one period see of all keys."""
    if (ends := _runs(pattern, q)) is None:
        return []
    low, high = ends
    lefts, rights = _side(q - low, low == -LIMIT), _side(high - q, high == LIMIT)
    forms = [Form(left, right) for left in lefts for right in rights]
    size = int((low == low[0]).sum())
    if len(q) % size == 0 and (high == q).all():
        blocks = ((b, (q // size - b) * size) for b in (0, 1))
        forms += [Form(chunk=size, back=b) for b, start in blocks if (low == start).all()]
    return forms


def _side(distance: Ints, unbounded: Bools) -> list[int | None]:
    """How far every query sees on one side, if that is the same."""
    if unbounded.all():
        return [None]
    alike = not unbounded.any() and distance[0] >= 0 and (distance == distance[0]).all()
    return [int(distance[0])] if alike else []


def _runs(pattern: Pattern, q: Ints) -> tuple[Ints, Ints] | None:
    """The first and the last key of each query, if it sees all between them and no other.

    Exact on all of [-2**31, 2**31]: spans of keys are halved until each is seen whole or not.
    """
    row = np.arange(len(q))
    low, high = np.full(len(q), -LIMIT), np.full(len(q), LIMIT)
    first, last, seen = high + 1, low - 1, np.zeros(len(q), dtype=np.int64)
    while 0 < len(row) <= 64 * len(q):
        verdict = pattern(Span(q[row], q[row]), Span(low, high))
        must, may = (np.broadcast_to(v, row.shape) for v in (verdict.must, verdict.may))
        whole, part = must & may, may & ~must & (low < high)
        np.minimum.at(first, row[whole], low[whole])
        np.maximum.at(last, row[whole], high[whole])
        np.add.at(seen, row[whole], (high - low + 1)[whole])
        row, low, high = row[part], low[part], high[part]
        middle = (low + high) // 2
        row, low = np.tile(row, 2), np.append(low, middle + 1)
        high = np.append(middle, high)
    found = not len(row) and (seen == last - first + 1).all()
    return (first, last) if found else None
