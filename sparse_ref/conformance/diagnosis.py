"""Which known mistake gives the wrong answers that an implementation gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .catalogue import CATALOGUE, ROUNDING
from .judging import Result, ratios
from .mistakes import Mistake

MOST = 36  # failures that a mistake is held against,
PASSED = 12  # and right answers, which a mistake must not spoil


@dataclass(frozen=True)
class Diagnosis:
    """Mistakes that nothing which was asked tells apart, and how much they explain.

    >>> print(Diagnosis(("window-left+1",), ("one key more on the left",), ("",), 7, 7, 0.4))
    window-left+1: one key more on the left (explains 7 of 7 wrong answers, within 0.4 of its bound)
    """

    ids: tuple[str, ...]
    stories: tuple[str, ...]
    links: tuple[str, ...]
    explains: int
    of: int
    ratio: float
    read: str = ""  # bits that were read from outside, where they chose among mistakes of precision

    def __str__(self) -> str:
        evidence = f"explains {self.explains} of {self.of} wrong answers"
        lines = []
        for i, name in enumerate(self.ids):
            how = f"{evidence}, within {self.ratio:.2g} of its bound" if i == 0 else "so does this"
            lines.append(f"{name}: {self.stories[i]} ({how})")
            if self.links[i]:
                lines.append(f"  a public bug of this kind: {self.links[i]}")
        if self.read:
            apart = "" if len(self.ids) == 1 else ", which does not tell these apart"
            lines.append(f"  read from outside: {self.read}{apart}")
        elif len(self.ids) > 3:
            lines.append(f"  nothing that was asked tells these {len(self.ids)} apart")
        return "\n".join(lines)

    def only(self, ids: Sequence[str], read: str) -> Diagnosis:
        """The same of some of its mistakes, chosen by what was read."""
        kept = [self.ids.index(name) for name in ids]
        stories, links = (tuple(x[i] for i in kept) for x in (self.stories, self.links))
        return replace(self, ids=tuple(ids), stories=stories, links=links, read=read)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in vars(self).items()}


def diagnoses_of(failures: Sequence[Result], passes: Sequence[Result] = ()) -> list[Diagnosis]:
    """Known mistakes that give these wrong answers and spoil no right one, the likeliest first.

    A mistake that leaves more than one wrong answer in twenty unexplained is not named.
    """
    answered = spread([r for r in failures if r.answer is not None], MOST)
    right = spread([r for r in passes if r.answer is not None], PASSED)
    found: list[tuple[int, float, Mistake, tuple[bool, ...]]] = []
    for mistake in CATALOGUE:
        agreed = _agreements(mistake, answered)
        explained = [x for x in agreed if x is not None]
        if explained and all(_harmless(mistake, r) for r in right):
            agrees = tuple(x is not None for x in agreed)
            found.append((len(explained), max(explained), mistake, agrees))
    found.sort(key=lambda x: (-x[0], x[2] in ROUNDING))
    classes: dict[tuple[bool, ...], list[tuple[int, float, Mistake, tuple[bool, ...]]]] = {}
    for one in found:
        classes.setdefault(one[3], []).append(one)
    return [
        Diagnosis(
            tuple(m.id for *_, m, _ in alike), tuple(m.story for *_, m, _ in alike),
            tuple(m.link for *_, m, _ in alike), alike[0][0], len(answered), alike[0][1],
        )
        for alike in classes.values()
    ]  # fmt: skip


def spread(results: Sequence[Result], most: int) -> list[Result]:
    """At most so many results, small ones, of as many patterns and options as there are."""
    order: dict[tuple[str, ...], list[Result]] = {}
    for result in sorted(results, key=lambda r: r.case.sizes.m * r.case.sizes.n):
        order.setdefault((result.case.name, *result.case.options), []).append(result)
    chosen: list[Result] = []
    for turn in range(max(map(len, order.values()), default=0)):
        chosen += [same[turn] for same in order.values() if turn < len(same)]
    return chosen[:most]


def _agreements(mistake: Mistake, answered: Sequence[Result]) -> list[float | None]:
    """How well it explains each; nothing once it leaves too many unexplained."""
    found: list[float | None] = []
    for result in answered:
        found.append(_agreement(mistake, result))
        if 20 * found.count(None) > len(answered):
            return []
    return found


def _agreement(mistake: Mistake, result: Result) -> float | None:
    """The largest error against what the mistake gives, over its bound; None if past it."""
    with np.errstate(all="ignore"):
        outcome = mistake.outcome(result.call())
    if outcome is None or result.answer is None:
        return None
    ratio = 0.0
    for theirs, target, bound in zip(result.answer, *outcome, strict=True):
        if theirs is not None and target is not None:
            if theirs.shape != target.shape:
                return None
            ratio = max(ratio, float(ratios(theirs, target, bound).max(initial=0)))
    return ratio if ratio <= 1 else None


def _harmless(mistake: Mistake, result: Result) -> bool:
    """Whether a right answer is what an implementation with the mistake may give."""
    with np.errstate(all="ignore"):
        unspoilt = mistake.outcome(result.call()) is None
    return unspoilt or _agreement(mistake, result) is not None
