"""The registry of conventions: a form of window arguments, and how an API spells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparse_ref._arrays import integer
from sparse_ref.patterns import Pattern, SlidingWindow


@dataclass(frozen=True)
class Form:
    """A mask in the terms of window arguments; None in left or right is unbounded."""

    left: int | None = None
    right: int | None = None
    chunk: int | None = None
    kernel: int | None = None

    @property
    def window(self) -> bool:
        """Whether left and right say it all."""
        return self.chunk is None and self.kernel is None


@dataclass(frozen=True)
class Convention:
    """One API: how its arguments become a pattern, and how a form is written in it."""

    api: str
    build: Callable[..., Pattern]
    spell: Callable[[Form], str | None]
    example: tuple[int, ...]


CONVENTIONS: dict[str, Convention] = {}


def convention(
    api: str, spell: Callable[[Form], str | None], *example: int
) -> Callable[[Callable[..., Pattern]], Callable[..., Pattern]]:
    def register(build: Callable[..., Pattern]) -> Callable[..., Pattern]:
        CONVENTIONS[build.__name__] = Convention(api, build, spell, example)
        return build

    return register


def counted(name: str) -> Callable[[Form], str | None]:
    """Causal windows that count the query: w keys."""
    return lambda f: f"{name}={f.left + 1}" if _causal(f) and f.left is not None else None


def besides(name: str) -> Callable[[Form], str | None]:
    """Causal windows that count the keys before the query: w + 1 keys."""
    return lambda f: f"{name}={f.left}" if _causal(f) and f.left is not None else None


def radius(name: str, factor: int = 1) -> Callable[[Form], str | None]:
    """Symmetric windows given by `factor` times one side."""

    def spell(f: Form) -> str | None:
        both = f.left if f.window and f.left == f.right else None
        return None if both is None else f"{name}={factor * both}"

    return spell


def sides(text: str) -> Callable[[Form], str | None]:
    """Windows given by both sides, -1 for unbounded."""

    def spell(f: Form) -> str | None:
        sides = (-1 if side is None else side for side in (f.left, f.right))
        return text.format(*sides) if f.window else None

    return spell


def named(name: str, value: int | None) -> str | None:
    return None if value is None else f"{name}={value}"


def _causal(f: Form) -> bool:
    return f.window and f.right == 0


def total(w: int, library: str) -> Pattern:
    """A causal window of w keys, the query among them."""
    if isinstance(w, (int, np.integer)) and w < 1:
        raise ValueError(f"w must be >= 1 ({library} counts the query itself), got {w}")
    return SlidingWindow(integer("w", w, 1) - 1, 0)


def side(name: str, value: int) -> int | None:
    value = integer(name, value, -1)
    return None if value == -1 else value
