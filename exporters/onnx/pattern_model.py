"""A pattern as a whole ONNX model of one attention: inputs q, k, v, output y."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, inliner

import sparse_ref as sr

from . import interface
from .graph import Graph, Symbol
from .layouts import Layout, layout
from .lookups import Tables
from .nodes import attention_node, finish
from .request import Request
from .schema import DOMAIN
from .stored import cut, stored
from .words import sentence

OPSET, BLOCK = 18, 64


def pattern_to_onnx(
    pattern: sr.Pattern, *, heads: int, kv_heads: int | None = None, head_dim: int,
    value_dim: int | None = None, dtype: str = "float32", scale: float | None = None,
    softcap: float | None = None, sinks: bool = False, key_length: bool = False,
    q_start: bool = False, mode: str = "custom", body: str = "loop", opset: int | None = None,
    dynamic: bool = True, length: Any = None, max_bytes: int | None = None,
) -> Any:  # fmt: skip
    """Attention over a pattern as an onnx.ModelProto: inputs q, k, v, output y.

    One file serves any batch and, where the pattern carries no length, any lengths up to 131,072:
    the block lists are computed in the graph, once for all heads that share a pattern.

    Parameters
    ----------
    pattern : Pattern
        One that carries a length or a table serves lengths up to it; a run beyond fails at a node
        whose name says so. Every `Runtime` in it becomes an input: bool tokens and int64 ids
        [batch, positions], int64 prefixes [batch].
    heads, kv_heads, head_dim, value_dim : int
        q is [batch, heads, q_len, head_dim], k [batch, kv_heads, kv_len, head_dim], v [batch,
        kv_heads, kv_len, value_dim], y [batch, heads, q_len, value_dim]. `kv_heads` divides
        `heads`, its default; that of `value_dim` is head_dim.
    dtype : "float32", "float64", "float16" or "bfloat16"
    scale : float, default head_dim ** -0.5
    softcap : float > 0, optional
        With dtype float64 a number that float32 has, since ONNX keeps attributes so.
    sinks : bool
        Whether there is an input sinks [heads]: one more score each, in the denominator only.
    key_length : bool
        Whether there is an input key_length, int64 [batch]: keys at and past it are not seen. A
        run with fewer queries than keys then needs the input q_start too.
    q_start : bool
        Whether there is an input q_start, int64 [batch] or [1]: the absolute position of the first
        query. Without it the queries are the last positions, from kv_len - q_len on.
    mode : "custom", "inline", "standard" or "microsoft"
        Our operator with its function body; the body alone, in standard operators; the Attention
        of ai.onnx, dense; the contrib operators of ONNX Runtime.
    body : "loop" or "gather"
        How that function computes: by rows of blocks, in the least memory; or all blocks at once.
    opset : int, optional
        Of the standard operators; default 18, in mode "standard" 23, or 25 with windows.
    dynamic : bool
        False: the lengths are fixed, as many queries and keys as the pattern covers, so it must be
        one that carries a length.
    length : int or (q_len, kv_len), optional
        The model's metadata says the estimated peak memory of its body there, for one batch row:
        `estimated_peak`. Default: none is said; the pattern's own length if there is `max_bytes`.
    max_bytes : int, optional
        The most that this may be.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of this, or `max_bytes` is too little.
    NotImplementedError
        If the mode cannot say the pattern; the sentence names one that can.

    Examples
    --------
    >>> model = pattern_to_onnx(sr.Causal() & sr.SlidingWindow(255, 0), heads=8, head_dim=64)
    >>> [one.name for one in model.graph.input], model.ByteSize() < 65536
    (['q', 'k', 'v'], True)
    """
    from .modes import convert
    from .peak import reported

    request = Request(
        pattern, heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim,
        dtype=dtype, scale=scale, softcap=softcap, sinks=sinks, key_length=key_length,
        q_start=q_start, opset=opset, dynamic=dynamic,
    )  # fmt: skip
    made = convert(request, mode=mode, body=body)
    if length is None and max_bytes is not None:
        length = pattern.covers
        if length is None:
            raise ValueError(
                "length must be given with max_bytes for a pattern that carries no length"
            )
    return made if length is None else reported(made, length, max_bytes)


def pattern_model(request: Request, *, body: str = "loop", inline: bool = False) -> Any:
    """The operator over the block lists of the request's pattern, an onnx.ModelProto.

    `inline` replaces the operator by its function body, so that only standard ones are left.
    """
    opset = request.opset or OPSET
    g = Graph(np.float32)
    g.tables = Tables(g, _given(g, request))
    made = _stored(g, request) if _is_fixed(request) else _computed(g, request)
    scale = request.scale
    if request.dtype == "float64" and scale != float(np.float32(scale)):  # as attributes are
        made, scale = made._replace(query=made.query * np.array(scale)), 1.0
    optional = ["", "sinks" if request.sinks else ""]
    if request.key_length:
        clamped = g.symbol("key_length").op("Max", 0).op("Min", 2**31 - 1)
        optional[0] = clamped.cast(onnx.TensorProto.INT32).name
    node = attention_node(
        [made.query.name, "k", "v", *(one.name for one in made.lists), *optional],
        "y" if made.before is None else "y_from_block",
        pattern=request.pattern, block_size=(BLOCK, BLOCK), scale=scale, softcap=request.softcap,
    )  # fmt: skip
    g.scopes[0].append(node)
    if made.before is not None:
        stop = made.before + g.symbol("q").size(2)
        g.op("Slice", g.symbol(node.output[0]), made.before, stop, [2], called="y")
    graph = helper.make_graph(
        g.scopes[0],
        "sparse_attention",
        interface.inputs(request),
        interface.outputs(request),
        made.initializers,
        sentence(request.pattern),
    )
    imports = [helper.make_opsetid("", opset)]
    oldest = helper.find_min_ir_version_for(imports)  # so that older runtimes read the file
    model = helper.make_model(
        graph, opset_imports=imports, producer_name="sparse_ref", ir_version=oldest
    )
    model = finish(model, opset, body)
    return inlined(model) if inline else model


class _Made(NamedTuple):
    """What the operator reads, and where its output has the first query if that is not row 0."""

    lists: Layout
    query: Symbol
    initializers: Sequence[Any] = ()
    before: Symbol | None = None


def _is_fixed(request: Request) -> bool:
    """Whether the lists are known when the file is written."""
    moves = request.q_start or interface.runtime(request) or request.pattern.batches
    return request.pattern.covers is not None and not moves


def _stored(g: Graph, request: Request) -> _Made:
    """Lists from the file, for lengths up to that of the pattern."""
    pattern, q = request.pattern, g.symbol("q")
    whole = stored(g, pattern, request.heads, BLOCK)
    if not request.dynamic:
        return _Made(whole.lists, q, whole.initializers)
    q_len, kv_len = q.size(2), g.symbol("k").size(2)
    start = checked_start(g, request, q_len, kv_len, kv_len - q_len)
    start = g.require(
        (start >= 0).reshape(), start, "queries must not be more than keys: the pattern has a start"
    )
    part = cut(g, whole.lists, BLOCK, q, kv_len, start)
    return _Made(part.lists, part.query, whole.initializers, part.before)


def _computed(g: Graph, request: Request) -> _Made:
    """Lists from the lengths, computed once for all heads that have the same pattern."""
    pattern = request.pattern
    q_len, kv_len = (g.symbol(name).size(2) for name in "qk")
    start = checked_start(
        g, request, q_len, kv_len, g.symbol("q_start") if request.q_start else kv_len - q_len
    )
    rows = [start.size(0), *(values.size(0) for values in g.tables.given.values())]
    if len(rows) > 1:
        start = start.op("Expand", g.op("Max", *rows))
    table = [
        [pattern.for_batch(row).at(head) for head in range(request.heads)]
        for row in range(pattern.batches or 1)
    ]
    distinct = list(dict.fromkeys(one for row in table for one in row))
    which = np.array([[distinct.index(one) for one in row] for row in table])
    made = layout(g, distinct, BLOCK, q_len, kv_len, start)
    return _Made(_spread(g, made, which, start), g.symbol("q"))


def _given(g: Graph, request: Request) -> dict[str, Symbol]:
    """The run-time inputs of the pattern, as integers."""
    return {
        name: g.symbol(name).int64 if kind == onnx.TensorProto.BOOL else g.symbol(name)
        for name, (kind, _) in interface.runtime(request).items()
    }


def checked_start(
    g: Graph, request: Request, q_len: Symbol, kv_len: Symbol, start: Symbol
) -> Symbol:
    """`start`, in a graph that fails where the oracle would refuse the lengths."""
    if (covers := request.pattern.covers) is not None:
        end = (start + q_len).op("ReduceMax", keepdims=0).op("Min", kv_len)
        holds = end.reshape() <= covers
        start = g.require(holds, start, f"queries must be at positions below {covers}")
    if request.key_length and not request.q_start:
        holds = (q_len >= kv_len).reshape()
        start = g.require(holds, start, "q_start must be given where key_length is and m < n")
    return start


def _spread(g: Graph, made: Layout, which: Any, start: Symbol) -> Layout:
    """Layout which[row, head] for every head of every batch row; rows of one serve all."""
    if not which.any():
        return made
    if (which == which[:, :1]).all():  # heads alike: one list for all
        which = which[:, :1]
    tables, layouts = [], int(which.max()) + 1
    for one in made[:3]:
        if len(which) == 1:
            tables.append(one.op("Gather", which[0], axis=1))
            continue
        row = g.lift(np.arange(len(which))[:, None]).op("Min", start.size(0) - 1)
        shape = g.op("Concat", one.size(0) * layouts, one.op("Shape", start=2), axis=0)
        flat = one.op("Reshape", shape, allowzero=1)
        tables.append(flat.op("Gather", row * layouts + which))
    indices, count, ids = tables
    return Layout(indices, count, ids, made.tile_masks)


def inlined(model: Any) -> Any:
    """The model in standard operators alone."""
    model = inliner.inline_local_functions(model)
    kept = [one for one in model.opset_import if one.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    return model
