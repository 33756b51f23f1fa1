"""Mode "standard": one ai.onnx Attention node, dense, with the pattern as its mask or windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import checker, defs, helper

import sparse_ref as sr

from . import interface
from .graph import Graph, Symbol
from .lookups import Tables
from .observed import as_attribute, runtime_names, say, scale_in_file
from .pattern_model import checked_start
from .predicates import counted, evaluate
from .request import Request
from .windows import window_of
from .words import sentence

MASKED, LENGTHS, WINDOWED = 23, 24, 25  # opsets of Attention: the first, then with key lengths, ...
NAN = "A NaN or infinity in a value that is not seen reaches the output (0 x NaN), as ONNX says."


def convert(request: Request) -> Any:
    """The request as an onnx.ModelProto with one Attention node of ai.onnx.

    Windows become attributes from opset 25 on, and causality from 24 on, where key lengths align
    the last query to the last key as we do; anything else becomes a mask, computed in the graph.

    Raises
    ------
    NotImplementedError
        With the mode that would do it, if ONNX cannot say the request exactly.

    Examples
    --------
    >>> made = convert(Request(sr.Causal() & sr.Strided(4), heads=2, head_dim=8))
    >>> made.graph.node[-1].op_type, made.opset_import[0].version
    ('Attention', 23)
    """
    window = None if _moved(request) else window_of(request.pattern)
    opset = _opset(request, window)
    _check(request)
    g = Graph(helper.tensor_dtype_to_np_dtype(interface.element_type(request)))
    given = {one.name: g.symbol(one.name) for one in interface.inputs(request)}
    tables = {name: given[name].int64 for name in interface.runtime(request)}
    g.tables = Tables(g, tables)
    q, k, v = (given[name] for name in "qkv")
    attributes: dict[str, Any] = {"scale": request.scale, "softcap": request.softcap or 0.0}
    if request.dtype == "float64":  # the attribute has float32's precision only
        q, attributes["scale"] = q * request.scale, 1.0
    inputs: list[Symbol | None] = [q, k, v]
    how = "Nothing is masked."
    sides = {} if window is None else _sides(window, opset)
    if sides:
        inputs, how = [*inputs, *_aligned(q, k)], "ONNX's windows, aligned by key lengths."
        attributes |= sides
    elif window != (None, None):
        mask = _mask(g, request, given)
        inputs, how = [q, *_with_sinks(g, request, given, k, v, mask)], "A mask in the graph."
    names = ["" if one is None else one.name for one in inputs]
    node = helper.make_node("Attention", names, ["y"], name="y.Attention", **attributes)
    say(
        node, request.pattern, f"{sentence(request.pattern)} {how} {NAN}",
        query="q", key="k", value="v", output="y", softcap=as_attribute(request.softcap),
        scale=scale_in_file(request.scale, request.dtype),
        **{name: name for name in ("sinks", "key_length", "q_start") if getattr(request, name)},
    )  # fmt: skip
    graph = helper.make_graph(
        [*g.scopes[0], node], "attention", interface.inputs(request), interface.outputs(request)
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=11)
    checker.check_model(model, full_check=True)
    return model


def _moved(request: Request) -> bool:
    """Whether queries may stand elsewhere than at the end of the keys, or keys be missing."""
    return request.q_start or request.key_length or request.sinks


def _opset(request: Request, window: Any) -> int:
    """The opset that was asked for, or the first that says the pattern."""
    plain = window in (None, (None, None), (None, 0)) or defs.onnx_opset_version() < WINDOWED
    first = MASKED if plain else WINDOWED
    opset = first if request.opset is None else request.opset
    if opset < MASKED:
        raise NotImplementedError(
            f"mode 'standard' needs opset >= {MASKED}, where Attention begins, got {opset}; "
            "mode 'custom' runs from 18 on"
        )
    return opset


def _check(request: Request) -> None:
    """Refuse what Attention cannot say exactly."""
    if request.dtype == "bfloat16":
        raise NotImplementedError(
            "mode 'standard' is for float32, float16 and float64, as ONNX Runtime's CPU has no "
            "Attention in bfloat16; mode 'custom' has"
        )
    if request.dtype == "float16" and request.pattern.multiset:
        raise NotImplementedError(
            "mode 'standard' adds the log of a multiset's counts in float16, which "
            "rounds it; mode 'custom' counts exactly"
        )


def _aligned(q: Symbol, k: Symbol) -> list[Symbol | None]:
    """attn_mask, past_key, past_value (none), and nonpad_kv_seqlen = S for every batch row.

    With it query i stands at S - L + i, where ours stand; without it at i.
    """
    return [None, None, None, k.size(2).op("Expand", q.size(0))]


def _sides(window: tuple[int | None, int | None], opset: int) -> dict[str, int]:
    """The attributes that say a window, where this opset has any."""
    if window == (None, None) or opset < LENGTHS:
        return {}
    if window == (None, 0):
        return {"is_causal": 1}
    left, right = (-1 if side is None else side for side in window)
    return {"left_window_size": left, "right_window_size": right} if opset >= WINDOWED else {}


def _mask(g: Graph, request: Request, given: dict[str, Symbol]) -> Symbol:
    """What each query sees: bool, or int32 counts of a multiset, [rows, heads or 1, L, S]."""
    pattern, q, k = request.pattern, given["q"], given["k"]
    m, n = q.size(2), k.size(2)
    start = given["q_start"] if request.q_start else n - m
    start = checked_start(g, request, m, n, start)
    positions = start.reshape(-1, 1, 1, 1) + g.range(m).reshape(1, 1, -1, 1)
    keys = g.range(n).reshape(1, 1, 1, -1)
    g.tables.row = g.range(q.size(0)).reshape(-1, 1, 1, 1)
    write = counted if pattern.multiset else evaluate

    apart = request.q_start or bool(runtime_names(pattern))  # batch rows see different keys
    rows = [pattern.for_batch(i) for i in range(pattern.batches or 1)]
    heads = range(1 if all(row.heads == 1 for row in rows) else request.heads)
    shape = g.vector(q.size(0) if apart else 1, 1, m, n)

    def seen(row: sr.Pattern) -> Symbol:
        each = [write(g, row.at(head % row.heads), positions, keys) for head in heads]
        return _joined(g, [one.op("Expand", shape) for one in each], 1)

    masks = [seen(row) for row in rows]
    if apart and len(masks) > 1:  # of every batch row's mask its own row
        masks = [mask.cut(i, i + 1, axis=0) for i, mask in enumerate(masks)]
    mask = _joined(g, masks, 0)
    if request.key_length:
        within = keys < given["key_length"].reshape(-1, 1, 1, 1)
        zero = np.int32(0)
        mask = within.where(mask, g.lift(zero)) if pattern.multiset else mask & within
    return mask


def _joined(g: Graph, several: list[Symbol], axis: int) -> Symbol:
    """Side by side."""
    return several[0] if len(several) == 1 else g.op("Concat", *several, axis=axis)


def _with_sinks(
    g: Graph, request: Request, given: dict[str, Symbol], k: Symbol, v: Symbol, mask: Symbol
) -> list[Symbol]:
    """k, v and the mask; a sink is one more key of zeros, whose score is what the mask adds."""
    if not request.pattern.multiset and not request.sinks:
        return [k, v, mask]
    kind = interface.element_type(request)
    times = mask.cast(kind)
    log = times.op("Log") if request.pattern.multiset else (times > 0.0).where(0.0, -np.inf)
    if not request.sinks:
        return [k, v, log]
    q = given["q"]
    b, h, m = (q.size(axis) for axis in range(3))
    log = log.op("Expand", g.vector(b, h, m, k.size(2)))
    sink = given["sinks"].reshape(1, -1, 1, 1).op("Expand", g.vector(b, h, m, 1))
    ends = (x.op("Pad", [0, 0, 0, 0, 0, 0, 1, 0], 0.0) for x in (k, v))
    return [*ends, g.op("Concat", log, sink, axis=3)]
