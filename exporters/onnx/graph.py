"""Writing ONNX nodes as arithmetic: every operator on a `Symbol` records a node.

A function body has no initializers, so constants are nodes; a subgraph sees what its surroundings
have computed, so one `Symbol` serves at every depth, and what a loop does not change is computed
before it. The same node is written once, and has a name
only where somebody gave it one: names would be a sixth of a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import sparse_ref as sr

from .symbol import Symbol

__all__ = ["Graph", "Symbol"]


class Graph:
    """The nodes written so far, innermost subgraph last, and names that nobody has used.

    Parameters
    ----------
    real : numpy dtype
        What a Python float becomes; ints become int64 and bools stay.
    tables : optional
        What a `Table` or `Runtime` that a pattern looks things up in is in this graph.
    """

    def __init__(self, real: Any, tables: Any = None):
        self.real = np.dtype(real)
        self.tables = tables
        self.scopes: list[list[Any]] = [[]]
        self.known: list[dict[Any, Symbol]] = [{}]  # what each scope has written
        self.loops = [False]  # whether each scope is the body of a Loop
        self.depth: dict[str, int] = {}  # of the scope that wrote a name
        self.constants: dict[str, NDArray[Any]] = {}  # by name
        self.used = 0

    def symbol(self, name: str) -> Symbol:
        """A value that the graph is given."""
        return Symbol(self, name)

    def fresh(self) -> str:
        """A new name, short: names would be a third of a file."""
        self.used += 1
        return f"_{np.base_repr(self.used, 36).lower()}"

    def op(self, kind: str, *args: Any, called: str = "", **attributes: Any) -> Symbol:
        """The value of one node with one output, which may be named."""
        if called or kind in {"Constant", "Identity"}:  # each of these is meant to be there
            return self._written(kind, [self.lift(x).name for x in args], called, attributes)
        args = tuple(self.constants.get(x.name, x) if isinstance(x, Symbol) else x for x in args)
        with self._at(self._home(args)):
            inputs = [self.lift(x).name for x in args]
            key = kind, *inputs, repr(sorted(attributes.items()))
            return self._once(key, lambda: self._written(kind, inputs, called, attributes))

    def _home(self, args: tuple[Any, ...]) -> int:
        """The outermost scope for a node: out of every loop that does not change its inputs."""
        known = [self.depth.get(x.name, 0) for x in args if isinstance(x, Symbol)]
        home, least = len(self.scopes) - 1, max(known, default=0)
        while home > least and self.loops[home]:
            home -= 1
        return home

    def several(self, kind: str, count: int, *args: Any, **attributes: Any) -> list[Symbol]:
        """The values of one node with `count` outputs."""
        inputs, names = [self.lift(x).name for x in args], [self.fresh()]
        names += [f"{names[0]}.{i}" for i in range(1, count)]
        self.depth |= dict.fromkeys(names, len(self.scopes) - 1)
        self.scopes[-1].append(helper.make_node(kind, inputs, names, **attributes))
        return [Symbol(self, name) for name in names]

    def _written(self, kind: str, inputs: list[str], called: str, attributes: Any) -> Symbol:
        name = called or self.fresh()
        self.scopes[-1].append(helper.make_node(kind, inputs, [name], name=called, **attributes))
        self.depth[name] = len(self.scopes) - 1
        return Symbol(self, name)

    def _once(self, key: Any, write: Any) -> Symbol:
        """What is known by this key in a scope that is seen from here, or else is written now."""
        for scope in self.known:
            if key in scope:
                return scope[key]
        self.known[-1][key] = made = write()
        return made  # type: ignore[no-any-return]

    def lift(self, x: Any) -> Symbol:
        """A Symbol as it is; a number, list or array as a constant."""
        if isinstance(x, Symbol):
            return x
        if isinstance(x, sr.Runtime):  # of one number
            return self.tables.number(x.name)  # type: ignore[no-any-return]
        value = np.asarray(x)
        if isinstance(x, (int, float, list)) and value.dtype != bool:
            value = value.astype(self.real if value.dtype.kind == "f" else np.int64)
        key = value.dtype.str, value.shape, value.tobytes()
        one = self._once(key, lambda: self.op("Constant", value=numpy_helper.from_array(value)))
        self.constants[one.name] = value
        return one

    def vector(self, *parts: Any) -> Symbol:
        """Ints and tensors of one element as one int64 vector."""
        if not any(isinstance(x, Symbol) for x in parts):
            return self.lift(list(parts))
        return self.op("Concat", *(x if isinstance(x, Symbol) else [x] for x in parts), axis=0)

    def range(self, count: Any) -> Symbol:
        """0, 1, ..., count - 1; a tensor of one element, or an int."""
        if isinstance(count, int):
            return self.lift(np.arange(count))
        return self.op("Range", 0, count.reshape(), 1)

    def attribute(self, name: str, kind: Any) -> Symbol:
        """The value of an attribute of the function that this graph is the body of."""
        one = self.op("Constant")
        field = "value_int" if kind == onnx.AttributeProto.INT else "value_float"
        self.scopes[-1][-1].attribute.append(
            onnx.AttributeProto(name=field, type=kind, ref_attr_name=name)
        )
        return one

    @contextmanager
    def inside(self, *, loop: bool = False) -> Iterator[list[Any]]:
        """Nodes written in this context land in the list it gives: the body of an If or a Loop.

        But for those that a loop does not change: they land around it.
        """
        nodes: list[Any] = []
        outer = self.scopes, self.known, self.loops
        self.scopes, self.known, self.loops = (
            [*self.scopes, nodes], [*self.known, {}], [*self.loops, loop],
        )  # fmt: skip
        try:
            yield nodes
        finally:
            self.scopes, self.known, self.loops = outer

    @contextmanager
    def _at(self, depth: int) -> Iterator[None]:
        """Nodes written in this context land in the scope of this depth."""
        outer = self.scopes, self.known
        self.scopes, self.known = self.scopes[: depth + 1], self.known[: depth + 1]
        try:
            yield
        finally:
            self.scopes, self.known = outer

    def outside(self) -> Any:
        """Nodes written in this context land in the main graph, where every subgraph sees them."""
        return self._at(0)

    def require(self, holds: Symbol, value: Symbol, sentence: str) -> Symbol:
        """`value`, a vector; a run in which the scalar `holds` is false fails at a node.

        ONNX cannot raise, so the node gathers past the end, and its name is the sentence.
        """
        broken = (~holds).int64.reshape(1)
        whole = value.op("Unsqueeze", [0])
        return whole.op("Gather", broken, axis=0, called=sentence).reshape(-1)

    def choose(self, condition: Symbol, then: Any, otherwise: Any) -> Symbol:
        """`then()` where the scalar `condition` holds, else `otherwise()`; only one is computed."""
        branches = {}
        for key, branch in (("then_branch", then), ("else_branch", otherwise)):
            with self.inside() as nodes:
                result = branch().op("Identity")
            branches[key] = helper.make_graph(nodes, key, [], [_untyped(result)])
        return self._written("If", [condition.name], "", branches)

    def each(self, count: Symbol, body: Any) -> list[Symbol]:
        """`body(i)` for i in range(count), a tuple of Symbols; each stacked along a new axis 0.

        ONNX's ReferenceEvaluator concatenates along axis 0 where the standard says stack: reshape.
        """
        i, go = self.symbol(self.fresh()), self.symbol(self.fresh())
        with self.inside(loop=True) as nodes:
            self.depth |= {i.name: len(self.scopes) - 1, go.name: len(self.scopes) - 1}
            results = [go.op("Identity"), *(x.op("Identity") for x in body(i))]
        given = [
            helper.make_tensor_value_info(i.name, onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info(go.name, onnx.TensorProto.BOOL, []),
        ]
        loop = helper.make_graph(nodes, "each", given, [_untyped(x) for x in results])
        names = [self.fresh() for _ in results[1:]]
        inputs = [count.name, self.lift(np.asarray(True)).name]
        self.depth |= dict.fromkeys(names, len(self.scopes) - 1)
        self.scopes[-1].append(helper.make_node("Loop", inputs, names, body=loop))
        return [Symbol(self, name) for name in names]


def _untyped(symbol: Symbol) -> Any:
    """A subgraph's output whose type follows the function's inputs."""
    return onnx.ValueInfoProto(name=symbol.name)
