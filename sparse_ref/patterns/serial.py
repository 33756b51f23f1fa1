"""Patterns as plain JSON, there and back: an exact round trip that never runs foreign code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

import numpy as np

from sparse_ref._arrays import LIMIT, Ints, integer

from .pattern import Pattern
from .relation import KeyRows, Relation
from .tables import IntegerSet, Runtime, Table

WIDEST = 2**27  # entries that a run-length table may decode to
DEEPEST = 100


def to_dict(pattern: Pattern) -> dict[str, Any]:
    """The pattern as a dict of JSON values; tables and lists are run-length coded.

    >>> from sparse_ref import Causal, SlidingWindow
    >>> to_dict(SlidingWindow(2, None))
    {'kind': 'SlidingWindow', 'left': 2, 'right': None, 'dilation': 1}
    >>> pattern = Causal() & ~SlidingWindow(2, 0)
    >>> from_dict(to_dict(pattern)) == pattern
    True
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a pattern, got {type(pattern).__name__}")
    values = [getattr(pattern, field.name) for field in fields(cast(Any, pattern))]
    named = zip(_parameters(type(pattern)), values, strict=True)
    return {"kind": type(pattern).__name__} | {name: _plain(value) for name, value in named}


def from_dict(d: Mapping[str, Any]) -> Pattern:
    """The pattern that `to_dict` wrote; anything else raises ValueError or TypeError.

    >>> from_dict({"kind": "Strided", "stride": 4, "phase": 0})
    Strided(stride=4, phase=0)
    """
    return _pattern(d, 0)


def _pattern(d: object, depth: int) -> Pattern:
    if not isinstance(d, Mapping) or not isinstance(d.get("kind"), str):
        raise ValueError(f"d must be a mapping with the 'kind' of a pattern, got {_short(d)}")
    if depth > DEEPEST:
        raise ValueError(f"d must nest at most {DEEPEST} patterns deep")
    kinds = {kind.__name__: kind for kind in _kinds(Pattern)}
    name = d["kind"]
    if name not in kinds:
        raise ValueError(f"kind must be one of {', '.join(sorted(kinds))}, got {name!r}")
    wanted, given = _parameters(kinds[name]), set(d) - {"kind"}
    if given != set(wanted):
        raise ValueError(f"{name} must have the fields {wanted}, got {sorted(given)}")
    values = {field: _value(d[field], depth) for field in wanted}
    return kinds[name](**values)


def _kinds(base: type[Pattern]) -> list[type[Pattern]]:
    found = [base] if not base.__name__.startswith("_") and base is not Pattern else []
    for kind in base.__subclasses__():
        if kind.__module__.startswith(__package__):
            found += _kinds(kind)
    return found


def _parameters(kind: Callable[..., Pattern]) -> list[str]:
    return list(inspect.signature(kind).parameters)


def _plain(value: object) -> Any:
    match value:
        case Pattern():
            return to_dict(value)
        case tuple():
            return [_plain(item) for item in value]
        case Table():
            return {"table": _runs(value.values), "fill": value.fill}
        case Runtime():
            return {"runtime": value.name}
        case IntegerSet():
            return {"set": _plain_set(value)}
        case Relation():
            rows = value.rows
            steps = np.diff(rows.indices, prepend=0)
            return {"rows": _runs(np.diff(rows.indptr)), "key_steps": _runs(steps)}
    return value


def _plain_set(members: IntegerSet) -> Any:
    """Half-open runs [start, stop, step] of equally spaced members."""
    if isinstance(members.values, range):
        return [[members.values.start, members.values.stop, members.values.step]]
    values = np.array(list(members), dtype=np.int64)
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 2) > 1)
    stops = np.append(starts[1:], len(values)) - 1
    return [[int(values[a]), int(values[b]) + 1, 1] for a, b in zip(starts, stops, strict=True)]


def _value(value: object, depth: int) -> Any:
    match value:
        case {"kind": _}:
            return _pattern(value, depth + 1)
        case {"table": runs, "fill": fill}:
            return Table(_unrun("table", runs), integer("fill", fill, None))
        case {"runtime": name}:
            return Runtime(name)
        case {"set": [*runs]}:
            return IntegerSet("set", _unset(runs), signed=True)
        case {"rows": lengths, "key_steps": steps}:
            counts, keys = _unrun("rows", lengths), np.cumsum(_unrun("key_steps", steps))
            return _relation(counts, keys)
        case [*items]:
            return tuple(_value(item, depth) for item in items)
        case None | bool() | int():
            return value
    raise ValueError(f"d must hold what to_dict writes, got {_short(value)}")


def _unset(runs: list[Any]) -> Ints:
    total, parts = 0, [np.zeros(0, dtype=np.int64)]
    for run in runs:
        if not isinstance(run, list) or len(run) != 3:
            raise ValueError(f"set must hold [start, stop, step] runs, got {_short(run)}")
        start, stop, step = (integer("set", x, None, LIMIT) for x in run)
        total += len(range(start, stop, max(step, 1)))
        if step < 1 or total > WIDEST:
            raise ValueError(f"set must hold at most 2**27 integers in forward runs, got {run}")
        parts.append(np.arange(start, stop, step, dtype=np.int64))
    return np.concatenate(parts)


def _relation(counts: Ints, keys: Ints) -> Relation:
    if (counts < 0).any() or counts.sum() != len(keys):
        raise ValueError(f"rows must count the {len(keys)} keys, got a sum of {counts.sum()}")
    rows = KeyRows(np.append(0, np.cumsum(counts)), keys)
    row = rows.row_of
    if (keys < 0).any() or (keys >= LIMIT).any():
        raise ValueError("key_steps must give keys in [0, 2**31)")
    if not (np.diff(keys) > 0)[np.diff(row) == 0].all():
        raise ValueError("key_steps must give ascending keys in every row")
    return Relation(rows)


def _runs(values: Ints) -> list[list[int]]:
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    lengths = np.diff(starts, append=len(values))
    return [[int(values[at]), int(n)] for at, n in zip(starts, lengths, strict=True)]


def _unrun(name: str, runs: object) -> Ints:
    if not isinstance(runs, list) or not all(isinstance(r, list) and len(r) == 2 for r in runs):
        raise ValueError(f"{name} must be a list of [value, length] runs, got {_short(runs)}")
    values = [integer(name, value, None) for value, _ in runs]
    lengths = [integer(f"{name} run length", length) for _, length in runs]
    if sum(lengths) > WIDEST:
        raise ValueError(f"{name} must decode to at most 2**27 entries, got {sum(lengths)}")
    return np.repeat(np.array(values, dtype=np.int64), lengths)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
