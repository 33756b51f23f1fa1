"""Memory and functions by address, in compiled code."""

# mypy: allow-untyped-defs, allow-untyped-calls
# mypy: disable-error-code="call-arg"
from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic

LONG = ir.IntType(64)


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """An address as what `numba.carray` takes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.intp), codegen


@intrinsic
def call(typing: Any, function: Any, args: Any) -> Any:
    """Call the C function at an address with a tuple of words; its answer as a word."""

    def codegen(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        words = cgutils.unpack_tuple(builder, given[1], args.count)
        kind = ir.FunctionType(LONG, [LONG] * args.count)
        return builder.call(builder.inttoptr(given[0], kind.as_pointer()), words)

    return types.intp(types.intp, args), codegen


@intrinsic
def words(typing: Any, count: Any) -> Any:
    """The address of `count` (a literal) zeroed words on the stack of the calling function."""
    if not isinstance(count, types.IntegerLiteral):
        raise RequireLiteralValue("count must be a literal")
    block = ir.ArrayType(LONG, count.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            place = builder.alloca(block)
        builder.store(ir.Constant(block, None), place)
        return builder.ptrtoint(place, LONG)

    return types.intp(count), codegen
