"""Attention of some parts: gather the keys they list, add what hides them, one softmax each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from .graph import Graph, Symbol
from .lists import Gathered, Lists
from .parts import Parts
from .sizes import Sizes


class Arrays(NamedTuple):
    """What every part reads: rows of all batch rows and heads, and numbers."""

    q: Symbol  # [B * H * L, E]
    k: Symbol
    v: Symbol
    scale: Symbol
    softcap: Symbol
    kind: int  # what is computed in

    @classmethod
    def of(cls, g: Graph, x: dict[str, Symbol], n: Sizes, kind: int) -> Arrays:
        """From the function's inputs and attributes."""
        scale, softcap = (
            g.attribute(name, onnx.AttributeProto.FLOAT).cast(kind) for name in ("scale", "softcap")
        )
        q, k = (x[name].reshape(-1, n.E) for name in ("query", "key"))
        return cls(q, k, x["value"].reshape(-1, n.Ev), scale, softcap, kind)


def attend(
    g: Graph, n: Sizes, a: Arrays, lists: Lists, parts: Parts, most: Symbol
) -> tuple[Symbol, Symbol]:
    """Output [p, batches, heads, bq, Ev] and log-sum-exp [p, batches, heads, bq] of p parts.

    Hiding a key by adding -inf and a weight of 0 is right unless what it hides is NaN or infinite,
    and then the output is so too: only after that is it done again, by selection.
    """
    of, q = lists.gathered(parts, most), a.q.op("Gather", parts.queries).cast(a.kind) * a.scale
    task = _Task(g, n, a, lists, parts.sinks, of, q)
    out, lse = _softmax(task, select=False)
    finite = out.op("ReduceL1", keepdims=0) < np.inf

    def again() -> tuple[Symbol, Symbol]:
        # under names of its own, or whatever is made alike above would be kept for this branch
        of_own = Gathered._make([*(x.op("Identity") for x in of[:3]), of.p, of.keys])
        apart = task._replace(of=of_own, q=q.op("Identity"))
        return _softmax(apart, select=True)

    return _either(g, finite, lambda: (out, lse), again)


class _Task(NamedTuple):
    g: Graph
    n: Sizes
    a: Arrays
    lists: Lists
    sinks: Symbol
    of: Gathered
    q: Symbol


def _softmax(task: _Task, select: bool) -> tuple[Symbol, Symbol]:
    """As `attend`. With `select`, what a query does not see is never computed with.

    Scores are [p, batches, kv_heads, sharing, bq, keys]; matrices have sharing * bq rows.
    """
    g, n, a, lists, sinks, of, q = task
    p, keys = of.p, of.keys

    def matrix(x: Symbol, columns: Symbol) -> Symbol:
        return x.reshape(p, n.batches, n.kv_heads, n.sharing * n.bq, columns)

    def dots() -> Symbol:
        k = a.k.op("Gather", of.tokens).cast(a.kind).swap(0, 1, 2, 4, 3)
        products = matrix(q, n.E) @ k
        return products.reshape(p, n.batches, n.kv_heads, n.sharing, n.bq, keys)

    def capped() -> Symbol:
        return (dots() / a.softcap).op("Tanh") * a.softcap

    scores, bias = g.choose(a.softcap > 0.0, capped, dots), lists.bias(of)
    s = scores + bias
    if select:
        s = (bias > -np.inf).where(s, -np.inf)
    sinks = sinks.reshape(p, 1, n.kv_heads, n.sharing, 1, 1)
    peak = s.op("ReduceMax", [-1]).op("Max", sinks)
    shift = (peak > -np.inf).where(peak, 0.0)
    weights = (s - shift).op("Exp")
    total = weights.op("ReduceSum", [-1]) + (sinks - shift).op("Exp")
    weights, v = matrix(weights, keys), a.v.op("Gather", of.tokens).cast(a.kind)
    if select:
        spoilt, seen = ~(abs(v) < np.inf), matrix((s > -np.inf).where(1.0, 0.0), keys)
        hit = (seen @ spoilt.where(1.0, 0.0)) > 0.0
        sums = hit.where(np.nan, weights @ spoilt.where(0.0, v))
    else:
        sums = weights @ v
    sums = sums.reshape(p, n.batches, n.heads, n.bq, n.Ev)
    total, shift = (x.reshape(p, n.batches, n.heads, n.bq) for x in (total, shift))
    return divided(sums, total, shift)


def divided(sums: Symbol, total: Symbol, shift: Symbol) -> tuple[Symbol, Symbol]:
    """Output and log-sum-exp from sums [..., e], the sum of weights and what was taken off scores.

    Where there are no weights the output is 0 and the log-sum-exp -inf.
    """
    empty = total < 0.5  # it is 0, or at least the 1 of the greatest score
    total = empty.where(1.0, total)
    lse = empty.where(-np.inf, total.op("Log") + shift)
    return sums / total.op("Unsqueeze", [-1]), lse


def _either(g: Graph, condition: Symbol, then: Any, otherwise: Any) -> tuple[Symbol, Symbol]:
    """`Graph.choose` between pairs."""
    branches = {}
    for key, branch in (("then_branch", then), ("else_branch", otherwise)):
        with g.inside() as nodes:
            results = [x.op("Identity") for x in branch()]
        untyped = [onnx.ValueInfoProto(name=x.name) for x in results]
        branches[key] = helper.make_graph(nodes, key, [], untyped)
    first, second = g.several("If", 2, condition, **branches)
    return first, second
