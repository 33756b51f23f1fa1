"""The lengths that the function bodies compute with, from the shapes of the inputs."""

from __future__ import annotations

from typing import NamedTuple

import onnx

from .graph import Graph, Symbol


class Sizes(NamedTuple):
    """Tensors of one element, in the letters of the schema.

    One list of blocks serves one batch row or all, and one head or all: its queries are
    `batches` x `heads`, and the `sharing` heads of each of its `kv_heads` read the same keys.
    """

    B: Symbol
    H: Symbol
    G: Symbol
    L: Symbol
    S: Symbol
    E: Symbol
    Ev: Symbol
    bq: Symbol
    bk: Symbol
    Bp: Symbol
    Hp: Symbol
    Lq: Symbol
    KB: Symbol
    batches: Symbol
    heads: Symbol
    kv_heads: Symbol
    sharing: Symbol

    @classmethod
    def of(cls, g: Graph, x: dict[str, Symbol]) -> Sizes:
        """From the function's inputs and attributes."""
        q, k, lists = x["query"], x["key"], x["block_indices"]
        B, H, L, E = (q.size(axis) for axis in range(4))
        G, S, Ev = k.size(1), k.size(2), x["value"].size(3)
        bq, bk = (
            g.attribute(f"{side}_block_size", onnx.AttributeProto.INT).reshape(1) for side in "qk"
        )
        bq = bq.op("Min", L).op("Max", [1])  # a step of decoding has less than a block of queries
        Bp, Hp, Lq, KB = (lists.size(axis) for axis in range(4))
        batches, heads, kv_heads = (
            (shared > 1).where(1, every) for shared, every in ((Bp, B), (Hp, H), (Hp, G))
        )
        sharing = heads.op("Div", kv_heads)
        return cls(
            B, H, G, L, S, E, Ev, bq, bk, Bp, Hp, Lq, KB, batches, heads, kv_heads, sharing
        )  # fmt: skip
