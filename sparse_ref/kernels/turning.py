"""Rows into vector lanes and back, in squares of as many rows as a vector has lanes: LLVM IR."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from ._jit import inner
from .lanes import INT, LONG, VECTORS, Lanes, Loop, pointer
from .simd import I, width


@intrinsic
def squares_to_lanes(typing: Any, panel: Any, po: Any, rows: Any, ro: Any, size: Any) -> Any:
    """The columns of `to_lanes` that fill whole squares."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, source = (
            pointer(context, builder, signature.args[i], args[i], args[i + 1]) for i in (0, 2)
        )
        function, b = _function(builder.module, "to_lanes", panel.dtype)
        if b is not None:
            lanes, (target, rows_, apart, _) = Lanes(b, panel.dtype), function.args
            for across, first in _squares(lanes, apart):
                square = [
                    lanes.load(rows_, b.mul(apart, LONG(first + i)), across.i)
                    for i in range(lanes.count)
                ]
                here = b.gep(target, [b.mul(across.i, LONG(lanes.row))])
                for i, column in enumerate(_transposed(lanes, square)):
                    lanes.store(column, here, i * lanes.row + first)
            b.ret_void()
        builder.call(function, [to, source, args[4], to])
        return context.get_dummy_value()

    return types.void(panel, I, rows, I, I), codegen


@intrinsic
def squares_to_rows(
    typing: Any, rows: Any, ro: Any, panel: Any, po: Any, size: Any, factor: Any, fo: Any
) -> Any:
    """The columns of `to_rows` that fill whole squares."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, source, times = (
            pointer(context, builder, signature.args[i], args[i], args[o])
            for i, o in ((0, 1), (2, 3), (5, 6))
        )
        function, b = _function(builder.module, "to_rows", rows.dtype)
        if b is not None:
            lanes, (target, panel_, apart, shares) = Lanes(b, rows.dtype), function.args
            for across, first in _squares(lanes, apart):
                here = b.gep(panel_, [b.mul(across.i, LONG(lanes.row))])
                share = lanes.load(shares, first)
                square = [
                    b.fmul(lanes.load(here, i * lanes.row + first), share)
                    for i in range(lanes.count)
                ]
                for i, row in enumerate(_transposed(lanes, square)):
                    lanes.store(row, target, b.mul(apart, LONG(first + i)), across.i)
            b.ret_void()
        builder.call(function, [to, source, args[4], times])
        return context.get_dummy_value()

    return types.void(rows, I, panel, I, I, factor, I), codegen


def _function(module: Any, name: str, dtype: Any) -> tuple[Any, Any]:
    """An LLVM function of two arrays, a size and one more array; its builder if it is new."""
    name = f"sparse_ref.{name}.{dtype}"
    if name in module.globals:
        return module.globals[name], None
    element = (ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [element, element, LONG, element])
    function = ir.Function(module, kind, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    return function, ir.IRBuilder(function.append_basic_block("entry"))


def _squares(lanes: Lanes, size: Any) -> Any:
    """Loops over the columns, a square at a time, for each vector of a panel's lanes."""
    whole = lanes.b.and_(size, LONG(-lanes.count))
    for n in range(VECTORS):
        across = Loop(lanes.b, LONG(0), whole, lanes.count, [])
        yield across, n * lanes.count
        across.end([])


def _transposed(lanes: Lanes, square: list[Any]) -> list[Any]:
    """The columns of a square of rows, by exchanging ever larger blocks."""
    n, step = lanes.count, 1
    while step < n:
        low = [k if not k & step else n + k - step for k in range(n)]
        high = [k + step if not k & step else n + k for k in range(n)]
        masks = [ir.Constant(ir.VectorType(INT, n), mask) for mask in (low, high)]
        for i in range(n):
            if not i & step:
                pair = square[i], square[i + step]
                square[i], square[i + step] = (lanes.b.shuffle_vector(*pair, x) for x in masks)
        step *= 2
    return square


@inner
def to_lanes(panel, po, rows, ro, size):
    """A panel: number c of row r, at rows[ro + r size + c], goes to panel[po + c width + r]."""
    w = width(panel)  # type: ignore[call-arg,var-annotated]
    squares_to_lanes(panel, po, rows, ro, size)
    for c in range(size - size % (w // VECTORS), size):
        for r in range(w):
            panel[po + c * w + r] = rows[ro + r * size + c]


@inner
def to_rows(rows, ro, panel, po, size, factor, fo):
    """The same back, lane r times factor[fo + r]."""
    w = width(panel)  # type: ignore[call-arg,var-annotated]
    squares_to_rows(rows, ro, panel, po, size, factor, fo)
    for c in range(size - size % (w // VECTORS), size):
        for r in range(w):
            rows[ro + r * size + c] = panel[po + c * w + r] * factor[fo + r]
