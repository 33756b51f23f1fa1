"""Formulas that differ in numbers alone, written into a graph once for all of them.

Heads of one pattern often do: each has its own residue, window or chunk. The nodes of every formula
are written on trial; where they are the same but for scalar constants, the first one's are written
for good with the constants of all side by side, and elementwise operators do the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from .graph import Graph, Symbol

ELEMENTWISE = {
    "Abs", "Add", "And", "Cast", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Sub", "Where",
}  # fmt: skip

Formula = Callable[[], tuple[Any, ...]]
Pick = Callable[[NDArray[Any], list[int]], Symbol]


class Trial(NamedTuple):
    """A formula's nodes, apart from their scalar constants."""

    nodes: list[Any]
    results: tuple[Any, ...]
    form: tuple[Any, ...]  # equal forms, equal formulas but for `numbers`
    numbers: list[NDArray[Any]]


def together(
    g: Graph, formulas: Sequence[Formula], pick: Pick
) -> Iterator[tuple[list[int], tuple[Any, ...]]]:
    """Which formulas were written together, and what they answer, several side by side.

    Parameters
    ----------
    g : Graph
    formulas : list of functions that write nodes and answer a tuple of Symbols or truths
    pick : function
        From an array with a number for each formula of a group, and which these are, to a Symbol
        that broadcasts as the group's results shall. What no number reaches stays as it was.
    """
    if len(formulas) == 1:
        yield [0], formulas[0]()
        return
    trials = [_tried(g, formula) for formula in formulas]
    groups: dict[Any, list[int]] = {}
    for i, trial in enumerate(trials):
        groups.setdefault(trial.form or i, []).append(i)
    for members in groups.values():
        if len(members) > 1 and (made := _joined(g, trials, members, pick)):
            yield members, made
        else:
            yield from (([i], formulas[i]()) for i in members)


def _tried(g: Graph, formula: Formula) -> Trial:
    with g.inside() as nodes:
        results = formula()
    place: dict[str, int] = {}
    form: list[Any] = []
    numbers: list[NDArray[Any]] = []

    def said(name: str) -> Any:
        if name in place:
            return place[name]
        value = g.constants.get(name)
        if value is None:
            return name  # of the graph around
        if value.ndim:
            return value.dtype.str, value.shape, value.tobytes()
        numbers.append(value)
        return value.dtype.str

    kept = [node for node in nodes if node.op_type != "Constant"]
    for node in kept:
        attributes = _attributes(node)
        if len(node.output) != 1 or any(one.HasField("g") for one in node.attribute):
            return Trial([], results, (), [])
        form.append((node.op_type, repr(attributes), *map(said, node.input)))
        place[node.output[0]] = len(place)
    form.append(tuple(said(x.name) if isinstance(x, Symbol) else repr(x) for x in results))
    return Trial(kept, results, tuple(form), numbers)


def _attributes(node: Any) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


class _Column(NamedTuple):
    """A scalar constant that is another number in every formula."""

    numbers: NDArray[Any]


def _joined(
    g: Graph, trials: list[Trial], members: list[int], pick: Pick
) -> tuple[Any, ...] | None:
    """The first member's nodes for all; None where a number would reach more than elements."""
    several = zip(*(trials[i].numbers for i in members), strict=True)
    slots = iter([np.stack(numbers) for numbers in several])
    first, own = trials[members[0]], set[str]()  # names of what differs from formula to formula
    made = {node.output[0]: g.symbol(node.output[0]) for node in first.nodes}

    def given(name: str) -> Any:
        value = None if name in made else g.constants.get(name)
        if value is None or value.ndim:
            return name if value is None else value
        numbers = next(slots)
        return numbers[0] if (numbers == numbers[0]).all() else _Column(numbers)

    plan = [(node, [given(name) for name in node.input]) for node in first.nodes]
    answers = [given(x.name) if isinstance(x, Symbol) else x for x in first.results]
    for node, inputs in plan:
        differ = [isinstance(x, _Column) or (isinstance(x, str) and x in own) for x in inputs]
        if any(differ):
            if node.op_type not in ELEMENTWISE and (node.op_type != "Gather" or differ[0]):
                return None
            own.add(node.output[0])

    def written(x: Any) -> Any:
        if isinstance(x, str):
            return made[x] if x in made else g.symbol(x)
        return pick(x.numbers, members) if isinstance(x, _Column) else x

    for node, inputs in plan:
        made[node.output[0]] = g.op(node.op_type, *map(written, inputs), **_attributes(node))
    return tuple(written(x) for x in answers)
