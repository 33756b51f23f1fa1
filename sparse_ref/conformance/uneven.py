"""What it means that keys with equal scores weigh unequally: a soft mask, a count, a bias."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparse_ref._arrays import Bools, Floats

TIMES = 64  # the most often a key is taken to count
SOFT = -2.0  # log weight from which on keys that weigh less are taken to be meant as hidden


class Uneven(NamedTuple):
    """The keys a head means to show (m, n), and in words why they weigh unequally, if they do.

    `leak` is the log of the weight that hidden keys keep, `times` the most often a key counts.
    """

    seen: Bools
    words: str | None = None
    leak: float | None = None
    times: int = 1


def read_uneven(weights: Floats, bits: int = 24) -> Uneven:
    """The weights (m, n) of equal scores, taken apart; answers keep `bits` significant bits.

    >>> read_uneven(np.exp([[0, -10], [0, 0]])).words
    'hidden keys keep weight e^-10'
    >>> read_uneven(np.array([[0.25, 0.75], [0.5, 0.5]])).words
    'keys count up to 3 times'
    >>> read_uneven(np.exp(-0.5 * np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]]))).words
    'a bias that falls by 0.5 a key (ALiBi)'
    """
    seen = np.where(np.isfinite(weights), weights, 0) > 0
    rows = seen.any(1)
    if not rows.any():
        return Uneven(seen)
    slack = 2.0 ** (4 - bits)
    most = np.where(seen, weights, 0).max(1, initial=0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(seen, np.log(weights / most), 0.0)
    if np.abs(below).max() <= slack:
        return Uneven(seen)
    times = _counts(weights, seen, slack)
    if times is not None:
        return Uneven(seen, f"keys count up to {times} times", times=times)
    low = below < SOFT
    levels = below[low]
    if low.any() and np.abs(below[~low]).max() <= slack and np.ptp(levels) <= 0.02 * -levels.max():
        leak = tidy(float(np.median(levels)), slack * 4)
        return Uneven(seen & ~low, f"hidden keys keep weight e^{leak:.4g}", leak=leak)
    slope = _slope(below, seen, slack)
    if slope is not None:
        return Uneven(seen, f"a bias that falls by {slope:.4g} a key (ALiBi)")
    least = float(below.min())
    return Uneven(seen, f"a bias: keys weigh from 1 down to e^{least:.3g} of the heaviest")


def _counts(weights: Floats, seen: Bools, slack: float) -> int | None:
    """The most often a key counts, if the weights of each row are as small whole numbers."""
    least = np.where(seen, weights, np.inf).min(1, keepdims=True)
    ratio = np.where(seen, weights / least, 1.0)
    most, left = 0, np.ones(len(ratio), dtype=bool)
    for unit in (1, 2, 3, 4):  # how often the key counts that counts least
        times = unit * ratio[left]
        whole = (np.abs(times - np.rint(times)) <= slack * times).all(1) & (times < TIMES).all(1)
        most = max(most, int(np.rint(times[whole].max(initial=0))))
        left[np.flatnonzero(left)[whole]] = False
    return None if left.any() or slack > 0.01 else most


def _slope(below: Floats, seen: Bools, slack: float) -> float | None:
    """By how much the log weight falls with every key of distance, if it does so everywhere."""
    both = seen[:, 1:] & seen[:, :-1]
    steps = np.abs(np.diff(below, axis=1))[both]
    if len(steps) < 2 or np.abs(steps - np.median(steps)).max() > 0.01 * np.median(steps) + slack:
        return None
    turns = np.diff(np.sign(np.diff(below, axis=1)), axis=1)[both[:, 1:] & both[:, :-1]]
    return tidy(float(np.median(steps)), 2 * slack) if (turns <= 0).all() else None


def tidy(number: float, error: float) -> float:
    """The number of fewest digits within a relative error.

    >>> tidy(0.29999997, 1e-6), tidy(0.35355340, 1e-6)
    (0.3, 0.3535534)
    """
    for digits in range(1, 17):
        short = float(f"{number:.{digits}g}")
        if abs(short - number) <= error * abs(number):
            return short
    return number
