"""The lengths that the function body computes with, from the shapes of its inputs."""

from __future__ import annotations

from typing import NamedTuple

import onnx

from .graph import Graph, Symbol


class Sizes(NamedTuple):
    """Tensors of one element, in the letters of the schema."""

    B: Symbol
    H: Symbol
    G: Symbol
    L: Symbol
    S: Symbol
    E: Symbol
    Ev: Symbol
    bq: Symbol
    bk: Symbol
    rows: Symbol  # of query blocks
    columns: Symbol  # of key blocks
    listing: Symbol  # heads that gather for themselves: G if all heads share lists, else H
    sharing: Symbol  # query heads of each of them

    @classmethod
    def of(cls, g: Graph, x: dict[str, Symbol]) -> Sizes:
        """From the function's inputs and attributes."""
        q, k, count = x["query"], x["key"], x["block_count"]
        B, H, L, E = (q.size(axis) for axis in range(4))
        G, S, Ev = k.size(1), k.size(2), x["value"].size(3)
        bq, bk = (
            g.attribute(f"{side}_block_size", onnx.AttributeProto.INT).reshape(1) for side in "qk"
        )
        rows = count.size(2)
        # where there are no keys one block of padding: gathering from nothing is an error
        columns = ((S + bk - 1) // bk).op("Max", [1])
        listing = (count.size(1) > 1).where(H, G)
        return cls(B, H, G, L, S, E, Ev, bq, bk, rows, columns, listing, H // listing)
