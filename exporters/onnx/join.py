"""From what the parts of a list gave to what its queries get, in the order of the queries."""

from __future__ import annotations

import numpy as np

from .attend import divided
from .graph import Graph, Symbol
from .parts import Cut
from .sizes import Sizes


def joined(
    g: Graph, n: Sizes, pieces: Cut, place: Symbol, out: Symbol, lse: Symbol
) -> tuple[Symbol, Symbol]:
    """Output [B, H, L, Ev] and log-sum-exp [B, H, L].

    Parameters
    ----------
    g : Graph
    n : Sizes
    pieces : Cut
    place : [p]
        Where every part stands in `out` and `lse`.
    out : [places, batches * heads * bq, Ev]
    lse : [places, batches * heads * bq]
    """
    width = n.batches * n.heads * n.bq
    lone = place.op("Gather", pieces.first)
    # lists of several parts get a place of their own, behind all others
    several = pieces.parts > 1
    behind = several.int64.op("CumSum", 0) - 1 + out.size(0)
    row = several.where(behind, lone).reshape(n.Bp, n.Hp, n.Lq)
    token = g.range(n.L)
    row = row.op("Gather", token / n.bq, axis=2) * width + token % n.bq
    row = row + (g.range(n.batches * n.heads) * n.bq).reshape(n.batches, n.heads, 1)

    lists = several.op("NonZero").reshape(-1)
    ordinal = g.range(pieces.most)
    live = ordinal < pieces.parts.op("Gather", lists).op("Unsqueeze", [1])
    part = live.where(pieces.first.op("Gather", lists).op("Unsqueeze", [1]) + ordinal, 0)
    at = place.op("Gather", part)
    live = live.op("Unsqueeze", [2])
    scores = live.where(lse.op("Gather", at), -np.inf)
    peak = scores.op("ReduceMax", [1])
    shift = (peak > -np.inf).where(peak, 0.0)
    weights = (scores - shift).op("Exp")
    shares = live.op("Unsqueeze", [3]).where(out.op("Gather", at), 0.0)
    sums = (shares * weights.op("Unsqueeze", [3])).op("ReduceSum", [1], keepdims=0)
    total = weights.op("ReduceSum", [1], keepdims=0)
    more, more_lse = divided(sums, total, shift.op("Squeeze", [1]))

    def placed(one: Symbol, other: Symbol, *sizes: Symbol) -> Symbol:
        def ordered(x: Symbol) -> Symbol:
            return x.reshape(-1, *sizes).op("Gather", row)

        return g.choose(
            pieces.most > 1, lambda: ordered(one.op("Concat", other, axis=0)), lambda: ordered(one)
        ).reshape(n.B, n.H, n.L, *sizes)

    return placed(out, more, n.Ev), placed(lse, more_lse)
