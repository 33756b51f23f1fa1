"""The operator in standard ONNX operators: the file runs where nothing of ours is registered.

Lists of blocks are cut into parts of at most max(8, twice the mean) blocks, each part is attended,
and those of one list are joined. `loop_body` takes the parts row by row and needs the least memory;
`gather_body` takes all at once, for accelerators and for runtimes without loops.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from .attend import Arrays, attend
from .graph import Graph, Symbol
from .join import joined
from .lists import Lists
from .parts import Cut, cut, evenest, longest
from .schema import ATTRIBUTES, DOMAIN, INPUTS, OP, OUTPUTS
from .sizes import Sizes

FLOAT = onnx.TensorProto.FLOAT


def loop_body(
    opset: int = 18, lse: bool = False, *, accumulate: int = FLOAT, uniform: bool = False
) -> Any:
    """The function `sparse_ref.SparseAttention` of a model, an onnx.FunctionProto.

    A Loop takes as many parts at a time as one row of query blocks has lists, longest parts first:
    the padding is less than one such row, whatever the lists, and memory follows the mean list.

    Parameters
    ----------
    opset : int >= 18
        Of the model that the function goes into; the ONNX checker wants them equal.
    lse : bool
        Whether there is a second output, the log-sum-exp of every query.
    accumulate : onnx.TensorProto.FLOAT or DOUBLE
        What scores and sums are computed in; DOUBLE where a node of the model is of float64.
    uniform : bool
        Whether every node of the model has just this type: then nothing is cast.

    The output has the query's type. A query that sees no key gets 0. A NaN or infinity in a key or
    value that is not seen reaches no output; in a value that is seen it makes that entry NaN. Lists
    that point out of range are an error of the run.

    Examples
    --------
    >>> loop_body(lse=True).output
    ['Y', 'lse']
    """

    def run(g: Graph, n: Sizes, a: Arrays, lists: Lists, sinks: Symbol) -> _Result:
        parts, pieces = cut(g, n, lists, sinks, longest(n, lists))
        p, step = parts.p, n.Bp * n.Hp
        _, order = g.several("TopK", 2, parts.blocks, p)  # longest first
        least = n.S.op("Min", [1])  # a reduction wants one block, a gather wants keys for it

        def some(i: Symbol) -> tuple[Symbol, Symbol]:
            at = (i * step + g.range(step)).op("Min", p - 1)
            few = parts.take(order.op("Gather", at), step)
            most = few.blocks.op("ReduceMax").op("Max", least)
            return attend(g, n, a, lists, few, most)

        times = (p + step - 1) / step
        out, sums = g.each(times.reshape(), some)
        place = order.op("ScatterElements", order, g.range(p))
        return pieces, place, times * step, out, sums

    return _function(run, opset, lse, accumulate, uniform)


def gather_body(
    opset: int = 18, lse: bool = False, *, accumulate: int = FLOAT, uniform: bool = False
) -> Any:
    """`loop_body` without a Loop: same parameters, same results, more memory.

    All parts are of one length, the one up to max(8, twice the mean) that pads the lists least, and
    attended by one batched product each for scores and values.

    Examples
    --------
    >>> gather_body().output
    ['Y']
    """

    def run(g: Graph, n: Sizes, a: Arrays, lists: Lists, sinks: Symbol) -> _Result:
        most = evenest(g, lists, longest(n, lists))
        parts, pieces = cut(g, n, lists, sinks, most)
        out, sums = attend(g, n, a, lists, parts, most * n.S.op("Min", [1]))
        return pieces, g.range(parts.p), parts.p, out, sums

    return _function(run, opset, lse, accumulate, uniform)


_Result = tuple[Cut, Symbol, Symbol, Symbol, Symbol]  # the middle one: how many places there are


def _function(run: Any, opset: int, lse: bool, kind: int, uniform: bool) -> Any:
    if opset < 18:
        raise ValueError(f"opset must be >= 18, got {opset}")
    g = Graph(helper.tensor_dtype_to_np_dtype(kind))
    x = {name: g.symbol(name) for name in INPUTS}
    n = Sizes.of(g, x)
    arrays, lists = Arrays.of(g, x, n, kind), Lists(g, x, n, kind)
    pieces, place, places, out, sums = run(g, n, arrays, lists, x["sinks"].cast(kind))
    width = n.batches * n.heads * n.bq
    out, sums = joined(
        g, n, pieces, place, out.reshape(places, width, n.Ev), sums.reshape(places, width)
    )
    if uniform:
        out.op("Identity", called="Y")
    else:
        out.op("CastLike", x["query"], called="Y")
    if lse:
        sums.op("Identity", called="lse")
    return helper.make_function(
        DOMAIN, OP, list(INPUTS), list(OUTPUTS)[: 1 + lse], g.scopes[0],
        [helper.make_opsetid("", opset)], list(ATTRIBUTES),
    )  # fmt: skip
