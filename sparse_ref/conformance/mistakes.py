"""A known mistake: what it makes of a call, and how far off that may be computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_ref.arithmetic import PRESETS, Arithmetic
from sparse_ref.results import Attention

from .case import Call

Outcome = tuple[Attention, Attention]  # what comes out, and how far it may be off


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


def right(call: Call) -> Outcome:
    """The oracle's answer and its bound, in the type of the call."""
    kind = call.q.dtype.name
    return call.oracle(), call.bound(kind if kind in PRESETS else "float32", kind)


def changed(change: Callable[[Call], Call | None]) -> Callable[[Call], Outcome | None]:
    """The mistake of answering another question than was asked."""

    def outcome(call: Call) -> Outcome | None:
        other = change(call)
        return None if other is None else right(other)

    return outcome


def finished(
    finish: Callable[[Call, Attention], Attention | None],
) -> Callable[[Call], Outcome | None]:
    """The mistake of spoiling a right answer; applied to the bound as well, in size."""

    def outcome(call: Call) -> Outcome | None:
        answer, bound = right(call)
        spoilt = finish(call, answer)
        return None if spoilt is None else (spoilt, finish(call, bound) or bound)

    return outcome


def rounded(arithmetic: Arithmetic) -> Callable[[Call], Outcome | None]:
    """The mistake of computing in fewer bits than the type of the call promises."""

    def outcome(call: Call) -> Outcome:
        given = Arithmetic(**{**vars(arithmetic), "output": call.q.dtype.name})
        return call.oracle(), call.bound(given, given.output)  # type: ignore[arg-type]

    return outcome


def repeated(x: Any, heads: int) -> Any:
    """Key/value heads as query heads read them."""
    return np.repeat(x, heads // x.shape[1], axis=1)
