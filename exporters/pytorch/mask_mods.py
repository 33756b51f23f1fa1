"""mask_mods of FlexAttention: a pattern's predicate as one plain function of torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sparse_ref as sr

from .standalone import listed, look
from .terms import Function

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
SIGNATURE = "def mask_mod(b, h, q, k):"


def mask_mod(pattern: sr.Pattern, heads: int, *, q_start: int = 0, device: Any = None) -> MaskMod:
    """(b, h, q, k) -> whether query q, counted from q_start, of head h sees key k.

    Of a multiset it answers how often. Tables are tensors on `device`.
    """
    function, lines = written(pattern, heads, q_start=q_start)
    text = "\n    ".join([SIGNATURE, *lines])
    tables = {name: placed(table, device) for name, table in function.tables.items()}
    scope: dict[str, Any] = {"torch": torch, "look": look, "listed": listed, **tables}
    exec(compile(text, f"<mask_mod of {pattern!r:.60}>", "exec"), scope)
    made: MaskMod = scope["mask_mod"]
    made.__doc__ = f"{pattern!r}\n\n{text}"
    return made


def written(
    pattern: sr.Pattern, heads: int, *, q_start: int | str = 0, function: Function | None = None
) -> tuple[Function, list[str]]:
    """The lines of the body of a mask_mod; `q_start` may be the name of a number."""
    function = Function() if function is None else function
    h, q, k = (function.argument(name) for name in "hqk")
    start = function.argument(q_start) if isinstance(q_start, str) else q_start
    same = {one: [i for i in range(cycle(pattern, heads)) if pattern.at(i) == one]
            for one in distinct(pattern, heads)}  # fmt: skip
    answers = [_answer(one, q + start, k) for one in same]
    result = answers[-1]
    for answer, of in zip(answers[-2::-1], list(same.values())[-2::-1], strict=True):
        chosen = sr.Offsets(of).offsets[h % cycle(pattern, heads)]
        result = chosen.pick(*(_lifted(x, k) for x in (answer, result)))
    return function, list(function.lines(_lifted(result, k)))


def cycle(pattern: sr.Pattern, heads: int) -> int:
    """After how many heads patterns come again."""
    return min(pattern.heads, heads)


def distinct(pattern: sr.Pattern, heads: int) -> list[sr.Pattern]:
    """The different patterns of the heads, in order."""
    return list(dict.fromkeys(pattern.at(i) for i in range(cycle(pattern, heads))))


def placed(table: Any, device: Any) -> Any:
    """Arrays as tensors on a device."""
    if isinstance(table, tuple):
        return tuple(placed(one, device) for one in table)
    return torch.tensor(table, device=device) if isinstance(table, np.ndarray) else table


def _answer(pattern: sr.Pattern, q: Any, k: Any) -> Any:
    if not pattern.multiset:
        return pattern(q, k)
    total: Any = 0
    for part in pattern.parts:
        total = _lifted(part(q, k), k).op(".int()") + total
    return total


def _lifted(answer: Any, k: Any) -> Any:
    """A literal truth as a tensor."""
    if not isinstance(answer, (bool, np.bool_)):
        return answer
    return k.op("==" if answer else "!=", k)
