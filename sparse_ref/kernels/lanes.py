"""LLVM IR in a form that can be read: vectors of the host's width, and loops."""

# mypy: allow-untyped-calls
from __future__ import annotations

import math
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
from llvmlite import ir
from numba.core import cgutils

FEATURES = llvmlite.binding.get_host_cpu_features()
BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16
VECTORS = 2  # in a row of a panel
DEGREE = {32: 7, 64: 15}  # of exp2's Taylor polynomial: the rest is below half an ulp
LOWEST = {32: -125.0, 64: -1021.0}  # exp2 is 0 below: subnormal weights slow products fivefold
INT, LONG = ir.IntType(32), ir.IntType(64)


class Lanes:
    """Instructions on one vector of `count` numbers."""

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.b, self.bits, self.count = builder, dtype.bitwidth, 8 * BYTES // dtype.bitwidth
        self.element = ir.FloatType() if self.bits == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.element, self.count)
        self.integers = ir.VectorType(ir.IntType(self.bits), self.count)
        self.row = VECTORS * self.count

    def all(self, x: float) -> Any:
        return ir.Constant(self.vector, [x] * self.count)

    def whole(self, x: int) -> Any:
        return ir.Constant(self.integers, [x] * self.count)

    def at(self, pointer: Any, *offset: Any) -> Any:
        """The pointer to the vector `offset` elements on (Python ints and IR values)."""
        for step in offset:
            pointer = self.b.gep(pointer, [LONG(step) if isinstance(step, int) else step])
        return self.b.bitcast(pointer, self.vector.as_pointer())

    def load(self, pointer: Any, *offset: Any) -> Any:
        return self.b.load(self.at(pointer, *offset), align=self.bits // 8)

    def store(self, value: Any, pointer: Any, *offset: Any) -> None:
        self.b.store(value, self.at(pointer, *offset), align=self.bits // 8)

    def splat(self, x: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.b.insert_element(undefined, x, INT(0))
        zeros = ir.Constant(ir.VectorType(INT, self.count), [0] * self.count)
        return self.b.shuffle_vector(one, undefined, zeros)

    def call(self, name: str, *args: Any) -> Any:
        kind = ir.FunctionType(self.vector, [self.vector] * len(args))
        full = f"llvm.{name}.v{self.count}f{self.bits}"
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, full), args)

    def larger(self, x: Any, y: Any) -> Any:
        """The larger one; y where one is NaN, which is what x86's max does."""
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def exp2(self, x: Any) -> Any:
        """2**x for x <= 0, within 2 ulps; 0 below `LOWEST`; NaN stays NaN."""
        b, low = self.b, self.all(LOWEST[self.bits])
        whole = self.call("roundeven", self.larger(x, low))
        power, degree = b.fsub(x, whole), DEGREE[self.bits]
        terms = [self.all(math.log(2) ** n / math.factorial(n)) for n in range(degree + 1)]
        while len(terms) > 1:  # neighbours in pairs (Estrin): half the latency of Horner's way
            pairs = zip(terms[::2], terms[1::2], strict=True)
            terms = [self.call("fma", power, odd, even) for even, odd in pairs]
            power = b.fmul(power, power)
        mantissa, offset = (23, 127) if self.bits == 32 else (52, 1023)
        exponent = b.add(b.fptosi(whole, self.integers), self.whole(offset))
        scale = b.bitcast(b.shl(exponent, self.whole(mantissa)), self.vector)
        return b.select(b.fcmp_ordered("<", x, low), self.all(0.0), b.fmul(terms[0], scale))


class Loop:
    """`for i in range(start, stop, step)` with vectors carried from one round to the next."""

    def __init__(self, builder: Any, start: Any, stop: Any, step: int, carried: list[Any]) -> None:
        self.b, self.step = builder, step
        before, self.head = builder.block, builder.append_basic_block("head")
        body, self.after = builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.branch(self.head)
        builder.position_at_end(self.head)
        self.i = builder.phi(LONG)
        self.i.add_incoming(start, before)
        self.carried = [builder.phi(value.type) for value in carried]
        for phi, value in zip(self.carried, carried, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", self.i, stop), body, self.after)
        builder.position_at_end(body)

    def end(self, carried: list[Any]) -> list[Any]:
        """Close the loop; what it carries out."""
        following = self.b.add(self.i, LONG(self.step))
        for phi, value in zip([self.i, *self.carried], [following, *carried], strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.branch(self.head)
        self.b.position_at_end(self.after)
        return self.carried


def pointer(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """The address of element `offset` of a flat array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])
