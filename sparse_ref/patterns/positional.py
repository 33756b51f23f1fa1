"""Patterns of positions alone: windows, chunks, strides, prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparse_ref._arrays import LIMIT, integer

from .pattern import Pattern, assign
from .tables import IntegerSet, Runtime


def _unbounded(owner: Pattern, name: str, low: int | None = 0) -> None:
    """Check an integer field for which None means unbounded."""
    value = getattr(owner, name)
    if value is not None:
        assign(owner, **{name: integer(name, value, low, also=" or None")})


@dataclass(frozen=True)
class Full(Pattern):
    """Every query sees every key (Vaswani et al. 2017, arXiv:1706.03762).

    >>> from sparse_ref import draw
    >>> print(draw(Full(), 2, 3))
    # # #
    # # #
    """

    def __call__(self, q: Any, k: Any) -> Any:
        return True


@dataclass(frozen=True)
class Causal(Pattern):
    """Keys up to and including the query's own position, `k <= q` (arXiv:1706.03762).

    With fewer queries than keys the queries are the last positions, unless `q_start` says else.

    >>> from sparse_ref import draw
    >>> print(draw(Causal(), 2, 4))
    # # # .
    # # # #
    """

    def __call__(self, q: Any, k: Any) -> Any:
        return k <= q


@dataclass(frozen=True)
class SlidingWindow(Pattern):
    """At most `left` keys before and `right` after the query, both besides the query itself.

    Local attention (Longformer, arXiv:2004.05150; Mistral, arXiv:2310.06825). None = unbounded.
    With a `dilation` every dilation-th key is kept, and left and right count kept keys.

    >>> from sparse_ref import draw
    >>> print(draw(SlidingWindow(left=2, right=0), 5))
    # . . . .
    # # . . .
    # # # . .
    . # # # .
    . . # # #
    >>> print(draw(SlidingWindow(1, 1, dilation=2), 5))
    # . # . .
    . # . # .
    # . # . #
    . # . # .
    . . # . #
    """

    left: int | None
    right: int | None
    dilation: int = 1

    def __post_init__(self) -> None:
        _unbounded(self, "left")
        _unbounded(self, "right")
        assign(self, dilation=integer("dilation", self.dilation, 1))
        for name in ("left", "right"):
            if (getattr(self, name) or 0) * self.dilation >= LIMIT:
                raise ValueError(
                    f"{name} * dilation must be below 2**31 (use None for unbounded), "
                    f"got {getattr(self, name)} * {self.dilation}"
                )

    def __call__(self, q: Any, k: Any) -> Any:
        allowed: Any = True
        for sign, reach in self._sides:
            allowed = allowed & ((q - k) * sign <= reach)
        for step in self._steps:
            allowed = allowed & ((q - k) % step == 0)
        return allowed

    @property
    def _sides(self) -> tuple[tuple[int, int], ...]:
        sides = ((1, self.left), (-1, self.right))
        return tuple((sign, reach * self.dilation) for sign, reach in sides if reach is not None)

    @property
    def _steps(self) -> tuple[int, ...]:
        return (self.dilation,) if self.dilation > 1 else ()


@dataclass(frozen=True)
class Chunked(Pattern):
    """Keys whose chunk is at most `back` before and `ahead` after the query's own.

    `-ahead <= chunk(q) - chunk(k) <= back` with `chunk(x) = (x - origin) // size`; None =
    unbounded; negative values are allowed while -ahead <= back (back=None, ahead=-1: strictly
    earlier chunks). Block-local attention (Llama 4's iRoPE layers; chunk look-back of Reformer's
    local layers, arXiv:2001.04451; block-causal diffusion, arXiv:2503.09573).

    >>> from sparse_ref import draw
    >>> print(draw(Chunked(2), 5))
    # # . . .
    # # . . .
    . . # # .
    . . # # .
    . . . . #
    """

    size: int
    back: int | None = 0
    ahead: int | None = 0
    origin: int = 0

    def __post_init__(self) -> None:
        assign(
            self, size=integer("size", self.size, 1), origin=integer("origin", self.origin, None)
        )
        _unbounded(self, "back", None)
        _unbounded(self, "ahead", None)
        if self.back is not None and self.ahead is not None and -self.ahead > self.back:
            raise ValueError(f"back must be >= -ahead = {-self.ahead}, got {self.back}")

    def __call__(self, q: Any, k: Any) -> Any:
        behind = (q - self.origin) // self.size - (k - self.origin) // self.size
        allowed: Any = True
        for sign, reach in self._sides:
            allowed = allowed & (behind * sign <= reach)
        return allowed

    @property
    def _sides(self) -> tuple[tuple[int, int], ...]:
        sides = ((1, self.back), (-1, self.ahead))
        return tuple((sign, reach) for sign, reach in sides if reach is not None)


@dataclass(frozen=True)
class Strided(Pattern):
    """Every `stride`-th key counted from the query, `(q - k) % stride == phase` (arXiv:1904.10509).

    >>> from sparse_ref import draw
    >>> print(draw(Causal() & Strided(2), 4))
    # . . .
    . # . .
    # . # .
    . # . #
    """

    stride: int
    phase: int = 0

    def __post_init__(self) -> None:
        stride = integer("stride", self.stride, 1)
        assign(self, stride=stride, phase=integer("phase", self.phase, 0, stride - 1))

    def __call__(self, q: Any, k: Any) -> Any:
        return (q - k) % self.stride == self.phase


@dataclass(frozen=True)
class Offsets(Pattern):
    """Keys at the given distances before the query, `q - k in offsets` (negative: after it).

    Slashes (MInference, arXiv:2407.02490), LogSparse (arXiv:1907.00235). Any collection of ints.

    >>> from sparse_ref import draw
    >>> print(draw(Offsets([0, 1, 3]), 4))
    # . . .
    # # . .
    . # # .
    # . # #
    """

    offsets: Any

    def __post_init__(self) -> None:
        assign(self, offsets=IntegerSet("offsets", self.offsets, signed=True))

    def __call__(self, q: Any, k: Any) -> Any:
        return self.offsets[q - k]


@dataclass(frozen=True)
class PrefixLM(Pattern):
    """Causal, and the first `prefix` keys are seen by all (UniLM, arXiv:1905.03197).

    >>> from sparse_ref import draw
    >>> print(draw(PrefixLM(2), 4))
    # # . .
    # # . .
    # # # .
    # # # #
    """

    prefix: Any

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, Runtime):
            assign(self, prefix=integer("prefix", self.prefix, also=" or a Runtime"))

    def __call__(self, q: Any, k: Any) -> Any:
        return (k <= q) | (k < self.prefix)


@dataclass(frozen=True)
class Sink(Pattern):
    """The first `count` keys, seen by all (StreamingLLM, arXiv:2309.17453); not a sink *logit*.

    >>> from sparse_ref import draw
    >>> print(draw(Causal() & (Sink(1) | SlidingWindow(1, 0)), 4))
    # . . .
    # # . .
    # # # .
    # . # #
    """

    count: int

    def __post_init__(self) -> None:
        assign(self, count=integer("count", self.count))

    def __call__(self, q: Any, k: Any) -> Any:
        return k < self.count
