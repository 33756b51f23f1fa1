"""Writing ONNX nodes as arithmetic: every operator on a `Symbol` records a node.

A function body has no initializers, so constants are nodes; a subgraph sees what its surroundings
have computed, so one `Symbol` serves at every depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Graph:
    """The nodes written so far, innermost subgraph last, and names that nobody has used.

    Parameters
    ----------
    real : numpy dtype
        What a Python float becomes; ints become int64 and bools stay.
    """

    def __init__(self, real: Any):
        self.real = np.dtype(real)
        self.scopes: list[list[Any]] = [[]]
        self.known: list[dict[Any, Symbol]] = [{}]  # constants of each scope
        self.used = 0

    def symbol(self, name: str) -> Symbol:
        """A value that the graph is given."""
        return Symbol(self, name)

    def fresh(self, stem: str) -> str:
        """A new name."""
        self.used += 1
        return f"{stem}_{self.used}"

    def op(self, kind: str, *args: Any, called: str = "", **attributes: Any) -> Symbol:
        """The value of one node with one output, which may be named."""
        inputs = [self.lift(x).name for x in args]
        name = called or self.fresh(kind.lower())
        self.scopes[-1].append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return Symbol(self, name)

    def lift(self, x: Any) -> Symbol:
        """A Symbol as it is; a number, list or array as a constant."""
        if isinstance(x, Symbol):
            return x
        value = np.asarray(x)
        if isinstance(x, (int, float, list)) and value.dtype != bool:
            value = value.astype(self.real if value.dtype.kind == "f" else np.int64)
        key = value.dtype.str, value.shape, value.tobytes()
        for scope in self.known:
            if key in scope:
                return scope[key]
        self.known[-1][key] = self.op("Constant", value=numpy_helper.from_array(value))
        return self.known[-1][key]

    def vector(self, *parts: Any) -> Symbol:
        """Ints and tensors of one element as one int64 vector."""
        if not any(isinstance(x, Symbol) for x in parts):
            return self.lift(list(parts))
        return self.op("Concat", *(x if isinstance(x, Symbol) else [x] for x in parts), axis=0)

    def attribute(self, name: str, kind: Any) -> Symbol:
        """The value of an attribute of the function that this graph is the body of."""
        one = self.op("Constant")
        field = "value_int" if kind == onnx.AttributeProto.INT else "value_float"
        self.scopes[-1][-1].attribute.append(
            onnx.AttributeProto(name=field, type=kind, ref_attr_name=name)
        )
        return one

    @contextmanager
    def inside(self) -> Iterator[list[Any]]:
        """Nodes written in this context land in the list it gives: the body of an If or a Loop."""
        self.scopes.append([])
        self.known.append({})
        try:
            yield self.scopes[-1]
        finally:
            self.scopes.pop()
            self.known.pop()

    def choose(self, condition: Symbol, then: Any, otherwise: Any) -> Symbol:
        """`then()` where the scalar `condition` holds, else `otherwise()`; only one is computed."""
        branches = {}
        for key, branch in (("then_branch", then), ("else_branch", otherwise)):
            with self.inside() as nodes:
                result = branch().op("Identity")
            branches[key] = helper.make_graph(nodes, key, [], [_untyped(result)])
        return self.op("If", condition, **branches)

    def each(self, count: Symbol, body: Any) -> list[Symbol]:
        """`body(i)` for i in range(count), a tuple of Symbols; each stacked along a new axis 0.

        ONNX's ReferenceEvaluator concatenates along axis 0 where the standard says stack: reshape.
        """
        i, go = self.symbol(self.fresh("i")), self.symbol(self.fresh("go"))
        with self.inside() as nodes:
            results = [go.op("Identity"), *(x.op("Identity") for x in body(i))]
        given = [
            helper.make_tensor_value_info(i.name, onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info(go.name, onnx.TensorProto.BOOL, []),
        ]
        loop = helper.make_graph(nodes, "each", given, [_untyped(x) for x in results])
        names = [self.fresh("each") for _ in results[1:]]
        inputs = [count.name, self.lift(np.asarray(True)).name]
        self.scopes[-1].append(helper.make_node("Loop", inputs, names, name=names[0], body=loop))
        return [Symbol(self, name) for name in names]


def _untyped(symbol: Symbol) -> Any:
    """A subgraph's output whose type follows the function's inputs."""
    return onnx.ValueInfoProto(name=symbol.name)


class Symbol:
    """A value in a graph; `+ - * / // @ < > & ~` and the methods below record what is done to it.

    It has no truth value and `//` is for non-negative integers.
    """

    def __init__(self, graph: Graph, name: str):
        self.graph, self.name = graph, name

    def op(self, kind: str, *args: Any, **attributes: Any) -> Symbol:
        """A node whose first input is this value."""
        return self.graph.op(kind, self, *args, **attributes)

    def __bool__(self) -> bool:
        raise TypeError("a Symbol has no truth value: use & and ~, or Graph.choose")

    def __add__(self, other: Any) -> Symbol:
        return self.op("Add", other)

    def __sub__(self, other: Any) -> Symbol:
        return self.op("Sub", other)

    def __mul__(self, other: Any) -> Symbol:
        return self.op("Mul", other)

    def __truediv__(self, other: Any) -> Symbol:
        return self.op("Div", other)

    __floordiv__ = __truediv__

    def __matmul__(self, other: Any) -> Symbol:
        return self.op("MatMul", other)

    def __lt__(self, other: Any) -> Symbol:
        return self.op("Less", other)

    def __gt__(self, other: Any) -> Symbol:
        return self.op("Greater", other)

    def __and__(self, other: Any) -> Symbol:
        return self.op("And", other)

    def __invert__(self) -> Symbol:
        return self.op("Not")

    def where(self, then: Any, otherwise: Any) -> Symbol:
        """Elementwise choice; this value is the condition."""
        return self.op("Where", then, otherwise)

    def cast(self, dtype: int) -> Symbol:
        """As another element type, an onnx.TensorProto constant."""
        return self.op("Cast", to=dtype)

    def size(self, axis: int) -> Symbol:
        """One length of the shape, as a tensor of one element."""
        return self.op("Shape", start=axis, end=axis + 1)

    def reshape(self, *sizes: Any) -> Symbol:
        """Sizes are ints or tensors of one element; one may be -1."""
        return self.op("Reshape", self.graph.vector(*sizes), allowzero=1)

    def swap(self, *axes: int) -> Symbol:
        """With the axes in this order."""
        return self.op("Transpose", perm=list(axes))

    def cut(self, start: Any, stop: Any, axis: int) -> Symbol:
        """A slice along one axis."""
        return self.op("Slice", self.graph.vector(start), self.graph.vector(stop), [axis])
