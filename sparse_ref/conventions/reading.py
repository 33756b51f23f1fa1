"""From a pattern, or a mask read from an implementation, back to everybody's spelling."""

from __future__ import annotations

import numpy as np

from sparse_ref._arrays import Bools, array
from sparse_ref.patterns import And, Causal, Chunked, Full, Neighborhood, Pattern, SlidingWindow
from sparse_ref.patterns.drift import Drift

from .forms import CONVENTIONS, Form

FAR = 2**18  # the largest window that `describe` tells from an unbounded one


def describe(pattern: Pattern | object) -> dict[str, str | None]:
    """How each library would be told to attend like this; None where it cannot be.

    Parameters
    ----------
    pattern : Pattern, or bool mask (q_len, kv_len) read from an implementation
        In a mask the queries are the last positions; a window is told from an unbounded one only
        where the mask is longer than it.

    >>> found = describe(SlidingWindow(127, 0))
    >>> found["hf"], found["flash_attn"], found["longt5"]
    ('sliding_window=128', 'window_size=(127, 0)', None)
    >>> describe(np.tri(4, dtype=bool))["sdpa"]
    'is_causal=True'
    """
    form = _of_pattern(pattern) if isinstance(pattern, Pattern) else _of_mask(pattern)
    return {n: None if form is None else c.spell(form) for n, c in CONVENTIONS.items()}


def table() -> str:
    """The conventions as a Markdown table, for people: an API, a value, what is seen.

    >>> print(table().splitlines()[2])
    | Hugging Face `sliding_window`, causal | `hf(128)` | `SlidingWindow(127, 0)` | 128 |
    """
    lines = ["| API | here | pattern | keys seen |", "|---|---|---|---|"]
    for name, convention in CONVENTIONS.items():
        pattern = convention.build(*convention.example)
        middle = 1000
        seen = "its past"
        if isinstance(pattern, SlidingWindow) and None not in (pattern.left, pattern.right):
            seen = str(int(pattern.mask(2 * middle, 2 * middle)[0, middle].sum()))
        text = repr(pattern).replace(", dilation=1", "").replace("left=", "").replace("right=", "")
        if isinstance(pattern, Neighborhood):
            text, seen = f"Neighborhood({pattern.length}, {pattern.kernel})", str(pattern.kernel)
        text = text.replace("size=", "").replace(", back=0, ahead=0, origin=0", "")
        call = f"{name}({', '.join(map(str, convention.example))})"
        lines.append(f"| {convention.api} | `{call}` | `{text}` | {seen} |")
    return "\n".join(lines)


def _of_pattern(pattern: Pattern) -> Form | None:
    match pattern:
        case Full():
            return Form(None, None)
        case Neighborhood(dilation=1, stride=1, causal=False):
            return Form(kernel=pattern.kernel)
        case And(patterns=(Causal(), Chunked(back=0, ahead=0, origin=0) as chunk)):
            return Form(chunk=chunk.size)
        case And(patterns=(Chunked(back=0, ahead=0, origin=0) as chunk, Causal())):
            return Form(chunk=chunk.size)
    if pattern.heads > 1 or pattern.batches or pattern.multiset or pattern.covers is not None:
        return None
    if pattern(Drift(), Drift()).every != 1:
        return None  # it depends on more than the distance
    distance = np.arange(-FAR, FAR + 1)  # of the key after the query
    seen = np.broadcast_to(pattern(np.zeros_like(distance), distance), distance.shape)
    return _window(seen)


def _window(seen: Bools) -> Form | None:
    """The form of what is seen at distances -n..n, if it is an interval around 0."""
    middle = len(seen) // 2
    found = np.flatnonzero(seen)
    if not seen[middle] or found[-1] - found[0] + 1 != len(found):
        return None
    left, right = middle - int(found[0]), int(found[-1]) - middle
    return Form(*(None if side == middle else side for side in (left, right)))


def _of_mask(mask: object) -> Form | None:
    got = array("mask", mask)
    if got.dtype != bool or got.ndim != 2 or 0 in got.shape:
        raise ValueError(f"mask must be bool (q_len, kv_len), got {got.dtype} {got.shape}")
    m, n = got.shape
    p, k = np.arange(n - m, n)[:, None], np.arange(n)
    distance = p - k
    if not got.any():
        return None
    left, right = int(distance[got].max()), int((-distance)[got].max())
    # a side that no pair exceeds is unbounded as far as this mask can tell
    form = Form(
        None if left == distance.max() else max(left, 0),
        None if right == (-distance).max() and right > 0 else max(right, 0),
    )
    chunk = 1 + int(max(distance[got].max(), 0))
    for candidate in (form, Form(chunk=chunk)):
        if np.array_equal(got, _pattern_of(candidate).mask(m, n)[0]):
            return candidate
    return None


def _pattern_of(form: Form) -> Pattern:
    if form.chunk is not None:
        return Causal() & Chunked(form.chunk)
    return SlidingWindow(form.left, form.right)
