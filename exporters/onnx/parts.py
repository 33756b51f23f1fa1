"""Lists of blocks cut into parts of bounded length, so that one long list pads no other.

A part is the unit of work of the bodies. What its queries get from it alone is an attention with a
log-sum-exp, and those of one list are joined by it (`join.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .graph import Graph, Symbol
from .lists import Lists
from .sizes import Sizes


class Parts(NamedTuple):
    """One row a part, of the p of them."""

    first: Symbol  # [p] its first block, among all that are listed
    blocks: Symbol  # [p] how many it has
    batch: Symbol  # [p, batches]
    queries: Symbol  # [p, batches, heads, bq] which of all B * H * L
    keys: Symbol  # [p, batches, kv_heads] the first of its head's among all B * G * S
    sinks: Symbol  # [p, heads] in a list's first part alone
    p: Symbol

    def take(self, rows: Symbol, p: Symbol) -> Parts:
        """These rows, p of them."""
        return Parts._make([*(x.op("Gather", rows) for x in self[:6]), p])


class Cut(NamedTuple):
    """How many parts each list has, [lists], and where the first is, in the order of `Parts`."""

    parts: Symbol
    first: Symbol
    most: Symbol  # [1]


def cut(g: Graph, n: Sizes, lists: Lists, sinks: Symbol, most: Symbol) -> tuple[Parts, Cut]:
    """The parts of at most `most` blocks, list after list; a list without blocks has one, empty."""
    number = ((lists.counts + most - 1) / most).op("Max", 1)
    highest = number.op("ReduceMax", keepdims=0).op("Max", [1])
    there = g.range(highest) < number.op("Unsqueeze", [1])
    of, ordinal = (there.op("NonZero").op("Gather", i) for i in (0, 1))
    rows = n.Lq.op("Max", [1])  # a divisor, even where there are no queries
    above, row = of / rows, of % rows
    batch, head = above / n.Hp, above % n.Hp
    batch = batch.op("Unsqueeze", [1]) + g.range(n.batches)
    heads = head.op("Unsqueeze", [1]) + g.range(n.heads)
    kv_heads = (head * n.G / n.H).op("Unsqueeze", [1]) + g.range(n.kv_heads)
    token = (row * n.bq).op("Unsqueeze", [1]) + g.range(n.bq)
    of_query = batch.op("Unsqueeze", [2]) * n.H + heads.op("Unsqueeze", [1])
    of_key = batch.op("Unsqueeze", [2]) * n.G + kv_heads.op("Unsqueeze", [1])
    parts = Parts(
        first=of * lists.KB + ordinal * most,
        blocks=(lists.counts.op("Gather", of) - ordinal * most).op("Min", most),
        batch=batch,
        queries=(of_query * n.L).op("Unsqueeze", [3])
        + token.op("Min", n.L - 1).op("Unsqueeze", [1, 2]),
        keys=of_key * n.S,
        sinks=(ordinal.op("Unsqueeze", [1]) > 0).where(
            -np.inf, sinks.op("Expand", n.H).op("Gather", heads)
        ),
        p=of.size(0),
    )
    return parts, Cut(number, number.op("CumSum", 0) - number, highest)


def longest(n: Sizes, lists: Lists) -> Symbol:
    """max(8, twice the mean number of blocks): what no part exceeds."""
    mean_twice = (lists.counts.op("ReduceSum") * 2 + lists.total - 1) / lists.total.op("Max", [1])
    return mean_twice.op("Max", [8])


def evenest(g: Graph, lists: Lists, most: Symbol) -> Symbol:
    """The length up to `most` that pads least if every part has it; a part itself counts as one."""
    steps = 32
    lengths = (g.range(steps) + 1) * most + steps - 1
    lengths = (lengths / steps).op("Unsqueeze", [0])
    number = ((lists.counts.op("Unsqueeze", [1]) + lengths - 1) / lengths).op("Max", 1)
    cost = (number * (lengths + 1)).op("ReduceSum", [0])
    cheapest = cost <= cost.op("ReduceMin")
    return cheapest.where(lengths, 0).op("ReduceMax", [1]).reshape(1)
