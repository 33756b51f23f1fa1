"""A case of the benchmark without a rival, and its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .race import Row, Settings


@dataclass(frozen=True)
class Limit:
    """A case that yields rows: what was measured, its value, and the most it may be."""

    name: str
    what: str
    rows: Callable[[Settings], Iterator[Row]]


def row(what: str, value: float, unit: str, at_most: float | None = None, **detail: Any) -> Row:
    met = {} if at_most is None else {"at_most": at_most, "met": bool(value <= at_most)}
    return {"what": what, "value": float(f"{value:.4g}"), "unit": unit, **met, "detail": detail}
