"""Patterns as people type them, `Causal() & SlidingWindow(20, 0)`, read without running any code.

The text is parsed, never evaluated: only constructors of patterns, recipes and conventions, the
operators & | ~ -, and literals mean anything.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
from collections.abc import Callable
from typing import Any

import sparse_ref as sr

LONGEST = 10_000  # characters
DEEPEST = 50  # nested calls and operators
WIDEST = 2**20  # numbers that a range may hold
SHELVES = {"recipes": sr.recipes, "conventions": sr.conventions}

Builder = Callable[..., Any]


def parse(text: str) -> sr.Pattern:
    """The pattern that an expression, or the JSON of `sr.to_dict`, says.

    Parameters
    ----------
    text : str
        Names may start with `sr.` or `sparse_ref.`. Arguments are numbers, True, False, None,
        strings, lists, tuples, `range(...)` and patterns.

    Raises
    ------
    ValueError
        If it says no pattern, with the place and what could stand there.

    Examples
    --------
    >>> parse("Causal() & ~SlidingWindow(left=2, right=0)")
    Causal() & ~SlidingWindow(left=2, right=0, dilation=1)
    >>> parse("recipes.longformer(512, global_tokens=[0])") == sr.recipes.longformer(512, [0])
    True
    >>> parse('{"kind": "Strided", "stride": 4, "phase": 0}')
    Strided(stride=4, phase=0)
    >>> parse("open('/etc/passwd')")
    Traceback (most recent call last):
    ValueError: pattern: there is no 'open', at column 1
    """
    if len(text) > LONGEST:
        raise ValueError(f"pattern must be at most {LONGEST} characters, got {len(text)}")
    if text.lstrip().startswith("{"):
        return _from_json(text)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        where = getattr(error, "offset", None)
        column = f", at column {where}" if where else ""
        raise ValueError(f"pattern: this is no expression{column}") from None
    try:
        got = _value(tree.body, 0)
    except RecursionError:
        raise ValueError(f"pattern: it must nest at most {DEEPEST} deep") from None
    if not isinstance(got, sr.Pattern):
        raise ValueError(f"pattern: the expression must be a pattern, got {got!r:.60}")
    return got


def _from_json(text: str) -> sr.Pattern:
    try:
        return sr.from_dict(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"pattern: this JSON is none of `to_dict`: {error}") from None


def _value(node: ast.expr, depth: int) -> Any:
    """What a node of the syntax tree says."""
    if depth > DEEPEST:
        raise _wrong(node, f"it must nest at most {DEEPEST} deep")
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, depth + 1) for item in items]
        case ast.Call():
            return _call(node, depth)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.UnaryOp(op=ast.Invert()):
            return ~_pattern(node.operand, "~", depth)
        case ast.BinOp(op=ast.BitAnd() | ast.BitOr() | ast.Sub()):
            return _combined(node, depth)
        case ast.Name() | ast.Attribute():
            name = _dotted(node)
            hint = f": {name}() makes one" if name and _found(name) else ""
            raise _wrong(node, f"{ast.unparse(node)!r} is no pattern{hint}")
        case ast.BoolOp() | ast.BinOp() | ast.UnaryOp():
            raise _wrong(node, "patterns combine with & | ~ and - only")
    raise _wrong(node, "expected a pattern, a number, a list or None")


def _combined(node: ast.BinOp, depth: int) -> sr.Pattern:
    """& | or - of two patterns."""
    sign = {ast.BitAnd: "&", ast.BitOr: "|", ast.Sub: "-"}[type(node.op)]
    left, right = (_pattern(side, sign, depth) for side in (node.left, node.right))
    try:
        return left & right if sign == "&" else left | right if sign == "|" else left - right
    except (TypeError, ValueError) as error:
        raise _wrong(node, str(error)) from None


def _pattern(node: ast.expr, sign: str, depth: int) -> sr.Pattern:
    got = _value(node, depth + 1)
    if not isinstance(got, sr.Pattern):
        raise _wrong(node, f"{sign} joins patterns, got {got!r:.60}")
    return got


def _call(node: ast.Call, depth: int) -> Any:
    """A constructor with its arguments."""
    name = _dotted(node.func)
    build = _found(name) if name else None
    if build is None:
        near = difflib.get_close_matches(name, _names(), n=1, cutoff=0.7) if name else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise _wrong(node, f"there is no {ast.unparse(node.func)[:60]!r}{hint}")
    arguments = [_value(argument, depth + 1) for argument in node.args]
    if any(keyword.arg is None for keyword in node.keywords):
        raise _wrong(node, "** is not for patterns")
    named = {str(one.arg): _value(one.value, depth + 1) for one in node.keywords}
    try:
        return build(*arguments, **named)
    except (TypeError, ValueError, OverflowError) as error:
        raise _wrong(node, f"{name}: {error}") from None


def _dotted(node: ast.expr) -> str:
    """`a.b` as it is written, without `sr.` in front; empty for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id="sr" | "sparse_ref"), attr=name):
            return name
        case ast.Attribute(value=inner, attr=name) if (before := _dotted(inner)) in SHELVES:
            return f"{before}.{name}"
    return ""


def _found(name: str) -> Builder | None:
    """What a name builds a pattern with, if it does."""
    if name == "range":
        return _range
    shelf, _, last = name.rpartition(".")
    module = SHELVES.get(shelf, sr)
    if last not in module.__all__ or (shelf and last in ("describe", "table")):
        return None
    builder = getattr(module, last)
    one = inspect.isclass(builder) and issubclass(builder, sr.Pattern) and builder is not sr.Pattern
    return builder if one or shelf or last in ("from_mask", "Runtime") else None


def _range(*ends: Any) -> range:
    got = range(*ends)
    if len(got) > WIDEST:
        raise ValueError(f"it must hold at most {WIDEST} numbers, got {len(got)}")
    return got


def _names() -> list[str]:
    shelves = [f"{shelf}.{name}" for shelf, module in SHELVES.items() for name in module.__all__]
    return [name for name in (*sr.__all__, *shelves) if _found(name)]


def _wrong(node: ast.expr, sentence: str) -> ValueError:
    return ValueError(f"pattern: {sentence}, at column {node.col_offset + 1}")
