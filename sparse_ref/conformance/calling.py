"""Calling an implementation: one form for every judge.

An implementation is `fn(q, k, v, pattern, **attributes)`, answering out or (out, lse). Arrays are
NumPy's, q (b, h, m, d), k (b, g, n, d), v (b, g, n, e). Attributes (`scale=`, `softcap=`,
`q_start=`, ...) are passed only where a case uses them, and NotImplementedError means that it
cannot do what is asked. One with gradients has `fn.vjp(q, k, v, pattern, dout, **attributes)`,
answering (dq, dk, dv) or more of `Gradients`; `dlse=` is an attribute like the others.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref.results import Gradients

Implementation = Callable[..., Any]
PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class AnswerError(Exception):
    """An answer that is no attention at all: a shape, a type, an input written over."""


class Answer(NamedTuple):
    """What an implementation gave: out (b, h, m, e), and lse (b, h, m) if it has one."""

    out: NDArray[Any]
    lse: NDArray[Any] | None


class Signed:
    """`__signature__` of what wraps a function: which options may be passed on is told from it."""

    def __get__(self, one: Any, kind: type) -> inspect.Signature:
        if one is None:  # a class has the signature of its __init__
            raise AttributeError("__signature__")
        return one.signature()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Fixed:
    """An implementation of one pattern, which is not told which: see `fixed`."""

    f: Callable[..., Any]
    __signature__ = Signed()

    def __call__(self, q: Any, k: Any, v: Any, pattern: Any = None, **attributes: Any) -> Any:
        return self.f(q, k, v, **attributes)

    @property
    def vjp(self) -> Callable[..., Any]:
        """f.vjp(q, k, v, dout), if f has it."""
        vjp = self.f.vjp  # type: ignore[attr-defined]
        return lambda q, k, v, pattern, dout, **attributes: vjp(q, k, v, dout, **attributes)

    def signature(self) -> inspect.Signature:
        """That of f, with a pattern that it is not given."""
        signature = inspect.signature(self.f)
        parameters = [*signature.parameters.values()]
        parameters.insert(3, inspect.Parameter("pattern", inspect.Parameter.POSITIONAL_ONLY))
        parameters[:3] = [x.replace(kind=PLAIN[0]) for x in parameters[:3]]
        return signature.replace(parameters=parameters)


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


def named(name: str) -> Any:
    """What "module:function" names.

    >>> named("math:sqrt")(9.0)
    3.0
    """
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def has_gradients(fn: Implementation) -> bool:
    """Whether it offers `fn.vjp`.

    >>> has_gradients(print)
    False
    """
    return callable(getattr(fn, "vjp", None))


def ask(
    fn: Implementation, q: Any, k: Any, v: Any, pattern: Any, attributes: dict[str, Any]
) -> Answer:
    """Its answer to copies of the inputs, once it has the right form.

    Raises
    ------
    AnswerError
        In one sentence: what must hold, and what was got.
    """
    got = _called(fn, {"q": q, "k": k, "v": v}, pattern, attributes, {})
    return _answer(got, q, v)


def ask_gradients(
    fn: Implementation, q: Any, k: Any, v: Any, pattern: Any, attributes: dict[str, Any], dout: Any
) -> Gradients:
    """Its gradients, as `ask` its answer; NotImplementedError if it offers none."""
    if not has_gradients(fn):
        raise NotImplementedError("it offers no gradients: it has no vjp")
    called = fn.vjp  # type: ignore[attr-defined]
    return _gradients(
        _called(called, {"q": q, "k": k, "v": v}, pattern, attributes, {"dout": dout}), q, k, v
    )


def _called(
    called: Implementation,
    first: dict[str, Any],
    pattern: Any,
    attributes: dict[str, Any],
    last: dict[str, Any],
) -> Any:
    """What a function answers to copies of everything, which it must leave as they are."""
    arrays = {name: x for name, x in attributes.items() if isinstance(x, np.ndarray)}
    arrays |= first | last
    given = {name: x.copy() for name, x in arrays.items()}
    between = [] if pattern is None else [copy.deepcopy(pattern)]
    more = {name: given.get(name, x) for name, x in attributes.items()}
    _refuse(called, more)
    _poison(first["q"].shape[:3] + first["v"].shape[3:], first["q"].dtype)
    got = called(*(given[name] for name in first), *between, *(given[x] for x in last), **more)
    for name, mine in arrays.items():
        if mine.tobytes() != given[name].tobytes():
            raise AnswerError(f"{name} must not be written to, and was")
    return got


def _answer(got: Any, q: Any, v: Any) -> Answer:
    out, lse = got if isinstance(got, tuple) and len(got) == 2 else (got, None)
    shape = (*q.shape[:3], v.shape[3])
    return Answer(_array("out", out, shape), None if lse is None else _array("lse", lse, shape[:3]))


def _gradients(got: Any, q: Any, k: Any, v: Any) -> Gradients:
    if not isinstance(got, tuple) or not 3 <= len(got) <= 5:
        raise AnswerError(f"vjp must answer (dq, dk, dv) or more, got {type(got).__name__}")
    wanted = zip(("dq", "dk", "dv"), (q, k, v), strict=True)
    found: list[Any] = [
        _array(name, x, like.shape) for (name, like), x in zip(wanted, got, strict=False)
    ]
    found += [None if x is None else _array("a gradient", x, None) for x in got[3:]]
    return Gradients(*found, *[None] * (5 - len(found)))


def _array(name: str, given: Any, shape: tuple[int, ...] | None) -> NDArray[Any]:
    array = np.asarray(given)
    if shape is not None and array.shape != shape:
        raise AnswerError(f"{name} must have shape {shape}, got {array.shape}")
    if array.dtype.kind != "f" and array.dtype.name not in ("bfloat16", "float8_e4m3fn"):
        raise AnswerError(f"{name} must hold floats, got {array.dtype}")
    return array


def _refuse(called: Implementation, attributes: dict[str, Any]) -> None:
    """A function without an argument of an option's name cannot do it."""
    known = options_of(called)
    for name in attributes:
        if known is not None and name not in known:
            raise NotImplementedError(f"it takes no {name}=")


def options_of(called: Implementation) -> set[str] | None:
    """The names of what it takes; None if that is anything, or it does not say.

    >>> options_of(fixed(lambda q, k, v, scale=None: q)) >= {"scale"}
    True
    """
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):  # a built-in says nothing of its arguments
        return None
    if any(x.kind is x.VAR_KEYWORD for x in parameters):
        return None
    return {x.name for x in parameters if x.kind is not x.POSITIONAL_ONLY}


def _poison(shape: tuple[int, ...], dtype: Any) -> None:
    """NaN in the memory that a new array of this shape is likely to get.

    An output that is never written must not hold what was computed before.
    """
    kept = [np.full(shape, np.nan, dtype) for _ in range(2)]
    kept += [np.full(shape, np.nan, np.float32) for _ in range(2)]
    del kept
