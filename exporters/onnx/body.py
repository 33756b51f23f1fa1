"""The operator in standard ONNX operators: the file runs where nothing of ours is registered.

A Loop over the rows of query blocks: each row gathers the key blocks it lists, as many as its own
count says, and takes one softmax over them. Memory follows the longest row, not the layout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from .graph import Graph, Symbol
from .lists import Lists
from .schema import ATTRIBUTES, DOMAIN, INPUTS, OP, OUTPUTS
from .sizes import Sizes

LARGEST = 1e38  # a sum of magnitudes below it holds no NaN, no infinity, and none can come of it


def loop_body(
    opset: int = 18, lse: bool = False, *, accumulate: int = onnx.TensorProto.FLOAT
) -> Any:
    """The function `sparse_ref.SparseAttention` of a model, an onnx.FunctionProto.

    Parameters
    ----------
    opset : int >= 18
        Of the model that the function goes into; the ONNX checker wants them equal.
    lse : bool
        Whether there is a second output, the log-sum-exp of every query.
    accumulate : onnx.TensorProto.FLOAT or DOUBLE
        What scores and sums are computed in; DOUBLE where a node of the model is of float64.

    The output has the query's type. A query that sees no key gets 0. A NaN or infinity in a key or
    value that is not seen reaches no output; in a value that is seen it makes that entry NaN.

    Examples
    --------
    >>> loop_body(lse=True).output
    ['Y', 'lse']
    """
    if opset < 18:
        raise ValueError(f"opset must be >= 18, got {opset}")
    g = Graph(helper.tensor_dtype_to_np_dtype(accumulate))
    x = {name: g.symbol(name) for name in INPUTS}
    n = Sizes.of(g, x)
    scale, softcap = (
        g.attribute(name, onnx.AttributeProto.FLOAT).cast(accumulate)
        for name in ("scale", "softcap")
    )
    q, k, v = (x[name].cast(accumulate) for name in ("query", "key", "value"))
    arrays = _Arrays(
        q=_padded(q * scale, n.rows * n.bq - n.L),
        k=_padded(k, n.columns * n.bk - n.S).reshape(-1, n.bk, n.E),
        v=_padded(v, n.columns * n.bk - n.S).reshape(-1, n.bk, n.Ev),
        sinks=x["sinks"].cast(accumulate).op("Expand", n.H).reshape(1, n.listing, n.sharing, 1, 1),
        softcap=softcap,
        finite=(_size(q * scale) * _size(k) + _size(v)) < LARGEST,
    )
    lists = Lists(g, x, n, accumulate)
    out, sums = g.each(n.rows.op("Squeeze"), lambda i: _row(g, n, arrays, lists, i))
    out = out.reshape(n.rows, n.B, n.H, n.bq, n.Ev).swap(1, 2, 0, 3, 4)
    out = out.reshape(n.B, n.H, n.rows * n.bq, n.Ev).cut(0, n.L, axis=2)
    out = out.reshape(n.B, n.H, n.L, n.Ev)  # an error where the lists end before the queries do
    out.op("CastLike", x["query"], called="Y")
    if lse:
        sums = sums.reshape(n.rows, n.B, n.H, n.bq).swap(1, 2, 0, 3)
        sums.reshape(n.B, n.H, n.rows * n.bq).cut(0, n.L, axis=2).op("Identity", called="lse")
    outputs = list(OUTPUTS)[: 1 + lse]
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function(
        DOMAIN, OP, list(INPUTS), outputs, g.scopes[0], imports, list(ATTRIBUTES)
    )


class _Arrays(NamedTuple):
    """What every row of blocks reads: q [B, H, rows * bq, E], k and v by block, ..."""

    q: Symbol
    k: Symbol
    v: Symbol
    sinks: Symbol
    softcap: Symbol
    finite: Symbol  # neither an input nor a score can be NaN or infinite


def _row(g: Graph, n: Sizes, a: _Arrays, lists: Lists, i: Symbol) -> tuple[Symbol, Symbol]:
    """Output [B, H, bq, Ev] and log-sum-exp [B, H, bq] of one row of query blocks.

    Scores are [B, listing, sharing, bq, keys], the two in the middle being the heads.
    """
    slots, bias = lists.row(i)
    keys = slots.size(2) * n.bk
    k, v = (
        x.op("Gather", slots).reshape(n.B, n.listing, keys, e) for x, e in ((a.k, n.E), (a.v, n.Ev))
    )
    q = a.q.cut(i.reshape(1) * n.bq, (i.reshape(1) + 1) * n.bq, axis=2)
    dots = q.reshape(n.B, n.listing, n.sharing * n.bq, n.E) @ k.swap(0, 1, 3, 2)
    capped = g.choose(
        a.softcap > 0.0,
        lambda: (dots / a.softcap).op("Tanh") * a.softcap,
        lambda: dots,
    ).reshape(n.B, n.listing, n.sharing, n.bq, keys)
    # -inf hides a finite score only: any other is selected away
    s = g.choose(
        a.finite,
        lambda: capped + bias,
        lambda: (bias > -np.inf).where(capped + bias, -np.inf),
    )
    peak = s.op("ReduceMax", [-1]).op("Max", a.sinks)
    shift = (peak > -np.inf).where(peak, 0.0)
    weights = (s - shift).op("Exp")
    total = weights.op("ReduceSum", [-1]) + (a.sinks - shift).op("Exp")
    empty = total.op("Equal", 0.0)
    nonzero = empty.where(1.0, total)

    def flat(y: Symbol) -> Symbol:
        return y.reshape(n.B, n.listing, n.sharing * n.bq, keys)

    def selected() -> Symbol:
        spoilt = ~(v.op("Abs") < np.inf)
        seen = (s > -np.inf).where(1.0, 0.0)
        hit = (flat(seen) @ spoilt.where(1.0, 0.0)) > 0.0
        return hit.where(np.nan, flat(weights) @ spoilt.where(0.0, v))

    sums = g.choose(a.finite, lambda: flat(weights) @ v, selected)
    out = sums.reshape(n.B, n.H, n.bq, n.Ev) / nonzero.reshape(n.B, n.H, n.bq, 1)
    lse = empty.where(-np.inf, nonzero.op("Log") + shift)
    return out, lse.reshape(n.B, n.H, n.bq)


def _padded(x: Symbol, more: Symbol) -> Symbol:
    """With `more` zeros at the end of axis 2."""
    return x.op("Pad", x.graph.vector(0, 0, 0, 0, 0, 0, more, 0), 0.0)


def _size(x: Symbol) -> Symbol:
    """The sum of magnitudes."""
    return x.op("Abs").op("ReduceSum", keepdims=0)
