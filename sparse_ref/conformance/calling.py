"""Calling an implementation: one form for every judge.

An implementation is `fn(q, k, v, pattern, **attributes)`, answering out or (out, lse). Arrays are
NumPy's, q (b, h, m, d), k (b, g, n, d), v (b, g, n, e). Attributes (`scale=`, `softcap=`,
`q_start=`, ...) are passed only where a case uses them, and NotImplementedError means that it
cannot do what is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Implementation = Callable[..., Any]


class AnswerError(Exception):
    """An answer that is no attention at all: a shape, a type, an input written over."""


class Answer(NamedTuple):
    """What an implementation gave: out (b, h, m, e), and lse (b, h, m) if it has one."""

    out: NDArray[Any]
    lse: NDArray[Any] | None


@dataclass(frozen=True)
class Fixed:
    """An implementation of one pattern, which is not told which: see `fixed`."""

    f: Callable[..., Any]

    def __call__(self, q: Any, k: Any, v: Any, pattern: Any = None, **attributes: Any) -> Any:
        return self.f(q, k, v, **attributes)


def fixed(f: Callable[..., Any]) -> Fixed:
    """f(q, k, v) -> out as an implementation of whatever it is asked for.

    For a kernel whose pattern is built in: `check(fixed(f), pattern=...)`. Attributes that a case
    uses are passed on by name.

    >>> import sparse_ref as sr
    >>> causal = fixed(lambda q, k, v: sr.attention(q, k, v, sr.Causal()).out)
    >>> print(sr.draw(sr.read_mask(causal, 3, 3)[0], 3))
    # . .
    # # .
    # # #
    """
    return Fixed(f)


def ask(
    fn: Implementation, q: Any, k: Any, v: Any, pattern: Any, attributes: dict[str, Any]
) -> Answer:
    """Its answer to copies of the inputs, once it has the right form.

    Raises
    ------
    AnswerError
        In one sentence: what must hold, and what was got.
    """
    given = [x.copy() for x in (q, k, v)]
    got = fn(*given, **attributes) if pattern is None else fn(*given, pattern, **attributes)
    for name, mine, theirs in zip("qkv", (q, k, v), given, strict=True):
        if mine.tobytes() != theirs.tobytes():
            raise AnswerError(f"{name} must not be written to, and was")
    out, lse = got if isinstance(got, tuple) and len(got) == 2 else (got, None)
    shape = (*q.shape[:3], v.shape[3])
    return Answer(_array("out", out, shape), None if lse is None else _array("lse", lse, shape[:3]))


def _array(name: str, given: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.asarray(given)
    if array.shape != shape:
        raise AnswerError(f"{name} must have shape {shape}, got {array.shape}")
    if array.dtype.kind != "f" and array.dtype.name not in ("bfloat16", "float8_e4m3fn"):
        raise AnswerError(f"{name} must hold floats, got {array.dtype}")
    return array
