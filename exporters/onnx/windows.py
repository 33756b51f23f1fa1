"""Whether a pattern is a plain window, at every position and so for every length."""

from __future__ import annotations

import re

import sparse_ref as sr


def window_of(pattern: sr.Pattern) -> tuple[int | None, int | None] | None:
    """(left, right) of the SlidingWindow that the pattern equals; None if it equals none.

    None in place of a side is unbounded. `sr.conventions.describe` finds it by intervals that hold
    all positions, so the answer is a proof; a pattern that carries a length is none for every
    length.

    >>> window_of(sr.Causal() & sr.SlidingWindow(3, 5)), window_of(sr.Full())
    ((3, 0), (None, None))
    >>> window_of(sr.Causal() & sr.Strided(2)) is None
    True
    """
    if pattern.covers is not None:
        return None
    text = sr.conventions.describe(pattern)["onnx25"]
    if text is None:
        return None
    left, right = (int(side) for side in re.findall(r"-?\d+", text.replace("_size", "")))
    return (None if left < 0 else left), (None if right < 0 else right)
