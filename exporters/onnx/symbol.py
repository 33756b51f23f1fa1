"""A value of an ONNX graph that looks enough like an array for formulas and patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

if TYPE_CHECKING:
    from .graph import Graph


class Symbol:
    """A value in a graph; operators and the methods below record what is done to it.

    `//` and `%` are those of Python, for positive divisors. It has no truth value. A pattern may be
    called on Symbols of integers, and on `Span`s of them.
    """

    __array_ufunc__ = None  # a NumPy scalar on the left leaves the operator to us
    __hash__ = None  # type: ignore[assignment]

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

    def __rsub__(self, other: Any) -> Symbol:
        return self.graph.lift(other) - self

    def __mul__(self, other: Any) -> Symbol:
        return self.op("Mul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Symbol:
        return self.op("Neg")

    def __abs__(self) -> Symbol:
        return self.op("Abs")

    def __truediv__(self, other: Any) -> Symbol:
        return self.op("Div", other)

    def __floordiv__(self, other: Any) -> Symbol:
        return self if _is_one(other) else (self - self % other).op("Div", other)

    def __mod__(self, other: Any) -> Symbol:
        return self.op("Mod", other)  # fmod = 0: the sign of the divisor

    def __matmul__(self, other: Any) -> Symbol:
        return self.op("MatMul", other)

    def __lt__(self, other: Any) -> Symbol:
        return self.op("Less", other)

    def __le__(self, other: Any) -> Symbol:
        return self.op("LessOrEqual", other)

    def __gt__(self, other: Any) -> Symbol:
        return self.op("Greater", other)

    def __ge__(self, other: Any) -> Symbol:
        return self.op("GreaterOrEqual", other)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return self.op("Equal", other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return ~(self == other)

    def __and__(self, other: Any) -> Any:
        return self._logical("And", other)

    def __or__(self, other: Any) -> Any:
        return self._logical("Or", other)

    __rand__, __ror__ = __and__, __or__

    def _logical(self, kind: str, other: Any) -> Any:
        """And, Or; a literal truth costs no node."""
        if not isinstance(other, (bool, np.bool_)):
            return self.op(kind, other)
        return self if bool(other) == (kind == "And") else np.bool_(other)

    def __invert__(self) -> Symbol:
        return self.op("Not")

    def constant(self, value: bool) -> Any:
        """A pattern's literal True or False: it stays one."""
        return np.bool_(value)

    def lookup(self, table: Any) -> Any:
        """The entries of a table at these positions."""
        return self.graph.tables[table].at(self)

    def extent_of(self, table: Any, hi: Symbol) -> tuple[Symbol, Symbol]:
        """The least and the greatest entry of a table over the positions from these to `hi`."""
        return self.graph.tables[table].extent(self, hi)  # type: ignore[no-any-return]

    def relate(self, relation: Any, keys: Symbol) -> Any:
        """Whether an explicit list has the pairs of these positions and `keys`."""
        return self.graph.tables[relation].has(self, keys)

    def where(self, then: Any, otherwise: Any) -> Symbol:
        """Elementwise choice; this value is the condition."""
        return self.op("Where", then, otherwise)

    pick = where  # as `Span` calls it

    def cast(self, dtype: int) -> Symbol:
        """As another element type, an onnx.TensorProto constant."""
        return self.op("Cast", to=dtype)

    @property
    def int64(self) -> Symbol:
        """As int64: truths become 0 and 1."""
        return self.cast(TensorProto.INT64)

    def size(self, axis: int) -> Symbol:
        """One length of the shape, as a tensor of one element."""
        end = {} if axis == -1 else {"end": axis + 1}
        return self.op("Shape", start=axis, **end)

    def reshape(self, *sizes: Any) -> Symbol:
        """Sizes are ints or tensors of one element; one may be -1; none for a scalar."""
        shape = self.graph.vector(*sizes) if sizes else np.zeros(0, dtype=np.int64)
        return self.op("Reshape", shape, allowzero=1)

    def swap(self, *axes: int) -> Symbol:
        """With the axes in this order."""
        return self.op("Transpose", perm=list(axes))

    def cut(self, start: Any, stop: Any, axis: int) -> Symbol:
        """A slice along one axis."""
        return self.op("Slice", self.graph.vector(start), self.graph.vector(stop), [axis])


def _is_one(divisor: Any) -> bool:
    return isinstance(divisor, int) and divisor == 1
