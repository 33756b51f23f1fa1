"""The registry of conventions: a form of window arguments, and how an API spells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparse_ref._arrays import integer
from sparse_ref.patterns import (
    Causal,
    Chunked,
    Neighborhood,
    Pattern,
    PrefixLM,
    Sink,
    SlidingWindow,
)


@dataclass(frozen=True)
class Form:
    """A mask in the terms of window arguments; None in left or right is unbounded.

    At most one of the others is set: the causal chunk (with
    chunks `back`), the kernel that shifts at the borders
    (of a sequence of `length`), the prefix all see, the sinks seen besides a causal window.
    """

    left: int | None = None
    right: int | None = None
    chunk: int | None = None
    back: int = 0
    kernel: int | None = None
    length: int = 0
    prefix: int | None = None
    sinks: int | None = None

    @property
    def window(self) -> bool:
        """Whether left and right say it all."""
        return self.chunk is self.kernel is self.prefix is self.sinks is None

    @property
    def pattern(self) -> Pattern:
        """The pattern of this form."""
        if self.chunk is not None:
            return Causal() & Chunked(self.chunk, self.back)
        if self.kernel is not None:
            return Neighborhood(self.length, self.kernel)
        if self.prefix is not None:
            return PrefixLM(self.prefix)
        window = SlidingWindow(self.left, self.right)
        return window if self.sinks is None else Causal() & (Sink(self.sinks) | window)


Spelling = Callable[[Form], str | None]


@dataclass(frozen=True)
class Convention:
    """One API: how its arguments become a pattern, and how a form is written in it.

    `first` says that it aligns the first query to the first key, not the last to the last.
    """

    api: str
    build: Callable[..., Pattern]
    spell: Spelling
    example: tuple[int, ...]
    first: bool


CONVENTIONS: dict[str, Convention] = {}


def convention(
    api: str, spell: Spelling, *example: int, first: bool = False
) -> Callable[[Callable[..., Pattern]], Callable[..., Pattern]]:
    """Register the decorated function under its name."""

    def register(build: Callable[..., Pattern]) -> Callable[..., Pattern]:
        CONVENTIONS[build.__name__] = Convention(api, build, spell, example, first)
        return build

    return register


def counted(name: str, unbounded: str | None = None, *, besides: int = 0) -> Spelling:
    """Causal windows of one number: all keys seen, or those besides the query (besides=1)."""

    def spell(f: Form) -> str | None:
        if not f.window or f.right != 0:
            return None
        value = unbounded if f.left is None else str(f.left + 1 - besides)
        return None if value is None else f"{name}={value}"

    return spell


def radius(name: str, factor: int = 1) -> Spelling:
    """Symmetric windows given by one side, or (factor=2) by both together, which is never 0."""

    def spell(f: Form) -> str | None:
        both = f.left if f.window and f.left == f.right else None
        return None if both is None or both < factor - 1 else f"{name}={factor * both}"

    return spell


def sides(text: str, unbounded: str | None) -> Spelling:
    """Windows given by both sides; `unbounded` is how the API writes that."""

    def spell(f: Form) -> str | None:
        values = [unbounded if side is None else side for side in (f.left, f.right)]
        return text.format(*values) if f.window and None not in values else None

    return spell


def chunked(name: str, back: int = 0) -> Spelling:
    """Causal chunks of one number, with as many chunks before the own one."""
    return lambda f: named(name, f.chunk) if f.back == back else None


def named(name: str, value: int | None) -> str | None:
    """`name=value`, if there is a value."""
    return None if value is None else f"{name}={value}"


def total(w: int | None, zero: str) -> Pattern:
    """A causal window of w keys, the query among them; `zero` is what the library does at 0."""
    if w is None:
        return Causal()
    got = integer("w", w, None, also=" or None")
    if got < 1:
        raise ValueError(f"w must be >= 1 (it counts the query itself; {zero}), got {got}")
    return SlidingWindow(got - 1, 0)


def halved(w: int) -> Pattern:
    """A symmetric window of w + 1 keys, half of w on each side."""
    if integer("w", w, 2) % 2:
        raise ValueError(f"w must be even (half of it on each side), got {w}")
    return SlidingWindow(w // 2, w // 2)


def side(name: str, value: int | None, below: str = "") -> int | None:
    """One side of a window: None or -1 is unbounded; `below` is what the library does below -1."""
    if value is None:
        return None
    got = integer(name, value, None, also=" or None")
    if got < -1:
        raise ValueError(f"{name} must be >= 0, or -1 for unbounded{below}, got {got}")
    return None if got == -1 else got
