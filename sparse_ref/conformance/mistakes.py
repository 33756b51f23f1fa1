"""A known mistake: what it makes of a call, and how far off that may be computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ref.arithmetic import PRESETS, Arithmetic
from sparse_ref.results import Attention, Gradients

from .case import Call

# What comes out, and how far it may be off: of attention, or of its gradients.
Outcome = tuple[Any, Any]


@dataclass(frozen=True)
class Mistake:
    """One entry of the catalogue.

    Parameters
    ----------
    id : str
        Permanent.
    story : str
        What is done wrong, in one line.
    link : str
        A public bug of this kind; empty where none is known.
    outcome : callable
        Of a Call: what the mistake makes of it; None where it makes no difference to what is asked.
    """

    id: str
    story: str
    link: str
    outcome: Callable[[Call], Outcome | None]


KEPT = 64  # calls whose right answer is kept, as many mistakes start from it
_kept: dict[int, tuple[Call, Outcome]] = {}  # by id, which the call in it keeps from being reused


def right(call: Call) -> Outcome:
    """The oracle's answer and its bound, in the type of the call."""
    if id(call) not in _kept:
        kind = call.q.dtype.name
        while len(_kept) >= KEPT:
            _kept.pop(next(iter(_kept)))
        bound = call.bound(kind if kind in PRESETS else "float32", kind)
        _kept[id(call)] = call, (call.oracle(), bound)
    return _kept[id(call)][1]


def changed(
    change: Callable[[Call], Call | None],
    back: Callable[[Call, Gradients], Gradients] | None = None,
) -> Callable[[Call], Outcome | None]:
    """The mistake of answering another question than was asked.

    `back` brings gradients by the changed q, k and v to those that were given.
    """

    def outcome(call: Call) -> Outcome | None:
        other = change(call)
        if other is None or call.dout is None or back is None:
            return None if other is None else right(other)
        answer, bound = right(other)
        return back(call, answer), back(call, bound)

    return outcome


def finished(
    finish: Callable[[Call, Attention], Attention | None],
) -> Callable[[Call], Outcome | None]:
    """The mistake of spoiling a right answer; applied to the bound as well, in size."""

    def outcome(call: Call) -> Outcome | None:
        answer, bound = right(call)
        wrong = finish(call, answer)
        return None if wrong is None else (wrong, finish(call, bound) or bound)

    return outcome


def spoilt(
    spoil: Callable[[Call, Gradients], Gradients | None],
) -> Callable[[Call], Outcome | None]:
    """The mistake of spoiling right gradients; applied to the bound as well, in size."""

    def outcome(call: Call) -> Outcome | None:
        if call.dout is None:
            return None
        answer, bound = right(call)
        wrong = spoil(call, answer)
        return None if wrong is None else (wrong, spoil(call, bound))

    return outcome


def rounded(arithmetic: Arithmetic) -> Callable[[Call], Outcome | None]:
    """The mistake of computing in fewer bits than the type of the call promises."""

    def outcome(call: Call) -> Outcome:
        given = Arithmetic(**{**vars(arithmetic), "output": call.q.dtype.name})
        return right(call)[0], call.bound(given, given.output)

    return outcome


def repeated(x: Any, heads: int) -> Any:
    """Key/value heads as query heads read them."""
    return np.repeat(x, heads // x.shape[1], axis=1)
