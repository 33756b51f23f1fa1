"""One product on the CPU's AMX tiles, and numbers as the tiles read them, as LLVM IR.

A tile register holds 16 rows of 64 bytes: 16 float32, or 32 numbers in half precision. The right
factor of a product has the numbers of two rows side by side, as a pair of 32 bits.

The ABI gives nobody the tile configuration to keep: whatever is called may change it. So a product
is a function of its own that configures the tiles, calls nothing, and releases them; it names the
registers itself, so LLVM has none to spill. The configuration costs about 200 cycles; the product
of a panel takes several times that.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from sparse_ref._arrays import Ints

from .lanes import INT, LONG, Lanes, Loop, pointer
from .simd import I

ROWS, BYTES = 16, 64  # of a tile
DEPTH = 32  # numbers in half precision of a tile's row
TALL = 2  # rows of tiles that are computed together
BYTE, SHORT = ir.IntType(8), ir.IntType(16)
START = BYTE.as_pointer()


class Packed(NamedTuple):
    """K and V for the tiles, in the order of a layout's slots; the type says how to multiply."""

    k: NDArray[Any]  # flat (batch rows, g, blocks, bk, d up to a multiple of DEPTH)
    v: NDArray[Any]  # flat (batch rows, g, blocks, e up to a multiple of ROWS, bk), all finite
    state: NDArray[Any]  # flat (batch rows, g, blocks): what of a block is not in them
    blocks: Ints  # (1,)
    factor: float  # of the scores
    no_number: int  # the exponent of what is not finite, among the bits of a number
    least: int  # below these bits a number is taken for 0


class BFloat16(Packed):
    """Tiles of bfloat16."""

    tiles: ClassVar[str] = "llvm.x86."
    multiply: ClassVar[str] = "tdpbf16ps"

    @staticmethod
    def halves(lanes: Any, x: Any) -> Any:
        """The bits of the nearest, ties to even; those of a NaN do not matter: its sum is one."""
        b, bits = lanes.b, lanes.b.bitcast(x, lanes.integers)
        odd = b.and_(b.lshr(bits, lanes.whole(16)), lanes.whole(1))
        return b.lshr(b.add(bits, b.add(odd, lanes.whole(0x7FFF))), lanes.whole(16))


class Float16(Packed):
    """Tiles of float16."""

    tiles: ClassVar[str] = "llvm.x86."
    multiply: ClassVar[str] = "tdpfp16ps"

    @staticmethod
    def halves(lanes: Any, x: Any) -> Any:
        """The bits of the nearest, ties to even."""
        half = lanes.b.fptrunc(x, ir.VectorType(ir.HalfType(), lanes.count))
        short = lanes.b.bitcast(half, ir.VectorType(SHORT, lanes.count))
        return lanes.b.zext(short, lanes.integers)


def function_of(module: Any, kind: type[BFloat16 | Float16], columns: int) -> Any:
    """The LLVM function C = A B: `columns` tiles of 16 lanes, any number of rows of tiles.

    Its arguments: C, a panel; A and the bytes between two of its rows; B, a panel of pairs; how
    many tiles C is high, and A is wide.
    """
    name = f"sparse_ref.{kind.tiles}{kind.multiply}.{columns}"
    if name in module.globals:
        return module.globals[name]
    signature = ir.FunctionType(ir.VoidType(), [START, START, LONG, START, LONG, LONG])
    function = ir.Function(module, signature, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    to, left, apart, right, high, wide = function.args
    row = LONG(columns * BYTES)
    whole = builder.and_(high, LONG(-TALL))

    def tile(name: str, *args: Any) -> None:
        args = tuple(ir.Constant(BYTE, x) if isinstance(x, int) else x for x in args)
        kind_of = ir.FunctionType(ir.VoidType(), [x.type for x in args])
        full = kind.tiles + name
        builder.call(cgutils.get_or_insert_function(module, kind_of, full), args)

    def place(base: Any, tiles: Any, more: int, step: Any, bytes_: int) -> Any:
        """Some rows of tiles further down, and some bytes to the right."""
        down = builder.mul(builder.add(tiles, LONG(more)), builder.mul(step, LONG(ROWS)))
        return builder.gep(base, [builder.add(down, LONG(bytes_))])

    tile("ldtilecfg", builder.bitcast(_configuration(module), START))
    for start, stop, tall in ((LONG(0), whole, TALL), (whole, high, 1)):
        cells = [(r, n, r * columns + n) for r in range(tall) for n in range(columns)]
        a = [TALL * columns + r for r in range(tall)]
        b = [TALL * columns + TALL + n for n in range(columns)]
        down = Loop(builder, start, stop, tall, [])
        for _, _, c in cells:
            tile("tilezero", c)
        along = Loop(builder, LONG(0), wide, 1, [])
        here = builder.gep(left, [builder.mul(along.i, LONG(BYTES))])
        for r in range(tall):
            tile("tileloadd64", a[r], place(here, down.i, r, apart, 0), apart)
        for n in range(columns):
            tile("tileloadd64", b[n], place(right, along.i, 0, row, n * BYTES), row)
        for r, n, c in cells:
            tile(kind.multiply, c, a[r], b[n])
        along.end([])
        for r, n, c in cells:
            tile("tilestored64", c, place(to, down.i, r, row, n * BYTES), row)
        down.end([])
    tile("tilerelease")
    builder.ret_void()
    return function


def _configuration(module: Any) -> Any:
    """Palette 1: eight tiles, every one of them of full size."""
    name, tiles = "sparse_ref.tiles", 8
    if name not in module.globals:
        sizes = bytes([1, *[0] * 15, *[BYTES, 0] * tiles, *[0] * 16, *[ROWS] * tiles, *[0] * 8])
        constant = ir.Constant(ir.ArrayType(BYTE, len(sizes)), bytearray(sizes))
        found = ir.GlobalVariable(module, constant.type, name)
        found.linkage, found.global_constant, found.initializer = "internal", True, constant
        found.align = BYTES
    return module.globals[name]


@intrinsic
def multiply(
    typing: Any, kind: Any, c: Any, co: Any, a: Any, ao: Any, row: Any, b: Any, bo: Any, high: Any,
    wide: Any,
) -> Any:  # fmt: skip
    """C = A B on tiles: C is a panel, rows of A are `row` numbers apart, B is a panel of pairs.

    C is `high` tiles high, A `wide` tiles wide; more than that is not read or written.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        to, left, right = (
            builder.bitcast(pointer(context, builder, kinds[i], args[i], args[i + 1]), START)
            for i in (1, 3, 6)
        )
        columns = Lanes(builder, c.dtype).row // ROWS
        function = function_of(builder.module, kind.instance_class, columns)
        apart = builder.mul(args[5], LONG(BYTES // DEPTH))
        builder.call(function, [to, left, apart, right, args[8], args[9]])
        return context.get_dummy_value()

    return types.void(kind, c, I, a, I, I, b, I, I, I), codegen


@intrinsic
def pairs(typing: Any, kind: Any, s: Any, so: Any, rows: Any, p: Any, po: Any) -> Any:
    """Round a panel of rows > 0, even, to half precision: each two rows become a row of pairs."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes, kinds = Lanes(builder, s.dtype), signature.args
        panel = pointer(context, builder, kinds[1], args[1], args[2])
        target = pointer(context, builder, kinds[4], args[4], args[5])
        loop = Loop(builder, LONG(0), args[3], 2, [])
        here = builder.gep(panel, [builder.mul(loop.i, LONG(lanes.row))])
        row = builder.mul(builder.lshr(loop.i, LONG(1)), LONG(lanes.row))
        there = builder.bitcast(builder.gep(target, [row]), INT.as_pointer())
        for n in range(0, lanes.row, lanes.count):
            low, high = (
                kind.instance_class.halves(lanes, lanes.load(here, r * lanes.row + n))
                for r in range(2)
            )
            pair = builder.or_(low, builder.shl(high, lanes.whole(16)))
            address = builder.bitcast(builder.gep(there, [LONG(n)]), lanes.integers.as_pointer())
            builder.store(pair, address, align=4)
        loop.end([])
        return context.get_dummy_value()

    return types.void(kind, s, I, I, p, I), codegen
