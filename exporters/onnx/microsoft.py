"""Mode "microsoft": ONNX Runtime's GroupQueryAttention or SparseAttention, where they say it.

Both see the past only and align the last query to the last key. Three configurations of their
SparseAttention answer wrongly without a word (blocks above the diagonal, rows without a block,
batches of unequal lengths); none of them can be written here.
"""

from __future__ import annotations

from typing import Any

from onnx import TensorProto, checker, helper

import sparse_ref as sr

from . import interface, words
from .aligned import SIZES, block_size, sees_itself
from .graph import Graph, Symbol
from .lookups import Tables
from .observed import as_attribute, say, scale_in_file
from .predicates import evaluate
from .request import Request
from .windows import window_of

OPSET = 18
DOMAIN = "com.microsoft"
NAN = "A NaN or infinity in a value that is not seen may reach the output (0 x NaN)."
OTHERS = "mode 'custom' says any pattern, mode 'standard' all but bfloat16"


def convert(request: Request) -> Any:
    """The request as an onnx.ModelProto with one node of com.microsoft.

    GroupQueryAttention takes causal windows of any width. It has k and v whole and splits them into
    past and new; ONNX Runtime wants as many queries as keys, or one, or a batch of one.

    SparseAttention takes causal patterns of blocks. Its cache is the caller's: k and v are the new
    keys, `past_key` and `past_value` [batch, kv_heads, max_len, head_dim] are buffers that must be
    bound again as `present_key` and `present_value`, `total_sequence_length` [1] is int32.

    Raises
    ------
    NotImplementedError
        With the reason and the mode that would do it, if neither can say the request exactly.

    Examples
    --------
    >>> convert(Request(sr.Causal(), heads=2, head_dim=8)).graph.node[-1].op_type
    'Reshape'
    >>> convert(Request(sr.Causal() & sr.Strided(3), heads=2, head_dim=8))
    Traceback (most recent call last):
    NotImplementedError: mode 'microsoft' needs a causal window, or a causal pattern of blocks ...
    """
    _check(request)
    window = window_of(request.pattern)
    if window is not None and window[1] == 0:
        return _grouped(request, window[0])
    return _sparse(request, _blocks(request))


def _refuse(reason: str) -> NotImplementedError:
    return NotImplementedError(f"mode 'microsoft' {reason}; {OTHERS}")


def _check(request: Request) -> None:
    """What neither operator says."""
    for name in ("key_length", "q_start"):
        if getattr(request, name):
            raise _refuse(f"has no {name}: queries are the last positions of equally long rows")
    if request.dtype not in ("float32", "float16"):
        raise _refuse(f"is for float32 and float16, got {request.dtype}")
    if request.value_dim != request.head_dim:
        raise _refuse(f"needs value_dim = head_dim = {request.head_dim}, got {request.value_dim}")
    if request.head_dim % 8:
        raise _refuse(f"needs a head_dim that is a multiple of 8, got {request.head_dim}")
    if request.pattern.multiset or request.pattern.batches is not None:
        raise _refuse("has one set of keys for all batch rows")


def _blocks(request: Request) -> int:
    """The block size of a pattern for SparseAttention, or the reason why it is none."""
    pattern = request.pattern
    size = block_size(pattern)
    if size is None:
        raise _refuse(
            "needs a causal window, or a causal pattern of blocks of "
            f"{', '.join(map(str, SIZES))} keys (Causal() & Blocked(...)), got {pattern!r}"
        )
    if not all(sees_itself(pattern.at(head)) for head in range(pattern.heads)):
        raise _refuse(
            "needs every query to see its own block, as SparseAttention answers a mean where a "
            f"row of blocks is empty; it is not certain of {pattern!r}"
        )
    if request.softcap is not None or request.sinks:
        raise _refuse("has no softcap and no sinks in SparseAttention")
    if interface.runtime(request):
        raise _refuse("has no run-time inputs in SparseAttention")
    return size


class _Writer:
    """The parts that both operators share: heads in the last axis, and the model around them."""

    def __init__(self, request: Request):
        self.request, self.kind = request, interface.element_type(request)
        self.g = Graph(helper.tensor_dtype_to_np_dtype(self.kind))
        self.g.tables = Tables(self.g, {})
        self.q, self.k, self.v = (self.g.symbol(name) for name in "qkv")
        b = self.q.size(0)
        self.batch = self.g.require((b >= 1).reshape(), b, "there must be a batch row")

    def flat(self, x: Symbol, heads: int) -> Symbol:
        """[B, H, L, E] as [B, L, H E]."""
        across = heads * self.request.head_dim
        return x.swap(0, 2, 1, 3).reshape(x.size(0), x.size(2), across)

    def node(
        self, operator: str, inputs: list[Symbol | None], present: list[str], **more: Any
    ) -> Any:
        """The operator's node, its three outputs named, and y with heads apart again."""
        r = self.request
        names = ["" if one is None else one.name for one in inputs]
        while not names[-1]:
            names.pop()
        node = helper.make_node(
            operator, names, ["heads_last", *present], name=f"y.{operator}", domain=DOMAIN,
            num_heads=r.heads, kv_num_heads=r.kv_heads, scale=r.scale, **more,
        )  # fmt: skip
        self.g.scopes[-1].append(node)
        shape = self.q.size(0), self.q.size(2), r.heads, r.head_dim
        apart = self.g.symbol("heads_last").reshape(*shape)
        apart.swap(0, 2, 1, 3).op("Reshape", self.q.op("Shape"), called="y")
        return node

    def said(self, node: Any, sentence: str, **values: Any) -> None:
        """The pattern in the node's metadata."""
        r = self.request
        said = {
            "query": "q",
            "key": "k",
            "value": "v",
            "output": "y",
            "softcap": as_attribute(r.softcap),
        }
        said |= {"scale": scale_in_file(r.scale, r.dtype), "only_past": True} | values
        text = f"{words.sentence(r.pattern)} {sentence} {NAN}"
        say(node, r.pattern, text, **said)

    def model(self, inputs: list[Any], outputs: list[Any]) -> Any:
        graph = helper.make_graph(self.g.scopes[0], "attention", inputs, outputs)
        opset = self.request.opset or OPSET
        imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        checker.check_model(model, full_check=True)
        return model


def _grouped(request: Request, left: int | None) -> Any:
    """GroupQueryAttention: the keys before the first query are its past."""
    w = _Writer(request)
    m, n = w.q.size(2), w.k.size(2)
    past = n - m
    inputs: list[Symbol | None] = [w.flat(w.q, request.heads)]
    inputs += [w.flat(x.cut(past, n, axis=2), request.kv_heads) for x in (w.k, w.v)]
    inputs += [x.cut(0, past, axis=2) for x in (w.k, w.v)]
    last = (n - 1).op("Expand", w.batch).cast(TensorProto.INT32)
    inputs += [last, n.cast(TensorProto.INT32), *[None] * 4]
    inputs += [w.g.symbol("sinks") if request.sinks else None]
    node = w.node(
        "GroupQueryAttention", inputs, ["present_key", "present_value"],
        local_window_size=-1 if left is None else left + 1, softcap=request.softcap or 0.0,
    )  # fmt: skip
    w.said(node, "A window of GroupQueryAttention.", sinks="sinks" if request.sinks else None)
    return w.model(interface.inputs(request), interface.outputs(request))


def _sparse(request: Request, block: int) -> Any:
    """SparseAttention: its blocks are computed from the length of the cache's buffer."""
    w, r = _Writer(request), request
    g, total = w.g, w.g.symbol("total_sequence_length")
    past = [g.symbol(name) for name in ("past_key", "past_value")]
    blocks = (past[0].size(2) + (block - 1)) // block
    row, column = _layout(g, r.pattern, r.heads, blocks, block)
    inputs: list[Symbol | None] = [w.flat(w.q, r.heads)]
    inputs += [w.flat(x, r.kv_heads) for x in (w.k, w.v)]
    room = total.int64 <= past[0].size(2)
    total = g.require(room.reshape(), total, "total_sequence_length must fit into past_key")
    inputs += [*past, row, column, total, total.op("Expand", w.batch)]
    present = ["present_key", "present_value"]
    node = w.node("SparseAttention", inputs, present, sparse_block_size=block)
    w.said(
        node, f"Causal blocks of {block} keys of SparseAttention.", key="present_key",
        value="present_value", kv_len="total_sequence_length",
    )  # fmt: skip
    info, size = helper.make_tensor_value_info, r.head_dim
    new = [info(x, w.kind, ["batch", r.kv_heads, "q_len", size]) for x in "kv"]
    cache = ["batch", r.kv_heads, "max_len", size]
    given = [interface.inputs(r)[0], *new, *(info(one.name, w.kind, cache) for one in past)]
    given.append(info("total_sequence_length", TensorProto.INT32, [1]))
    return w.model(given, [*interface.outputs(r), *(info(x, w.kind, cache) for x in present)])


def _layout(
    g: Graph, pattern: sr.Pattern, heads: int, blocks: Symbol, size: int
) -> tuple[Symbol, Symbol]:
    """CSR of every layout: block_row_indices [l, blocks + 1], block_col_indices [l, most], int32.

    Head h uses layout h % l. The last query of a block and the first key of another speak for all;
    as the pattern is causal there is no block above the diagonal, which would bring back others.
    """
    i, j = (g.range(blocks).reshape(*shape) for shape in ((1, -1, 1), (1, 1, -1)))
    count = pattern.heads if heads % pattern.heads == 0 else heads
    shape = g.vector(1, blocks, blocks)
    several = [
        evaluate(g, pattern.at(head), i * size + (size - 1), j * size).op("Expand", shape)
        for head in range(count)
    ]
    seen = (g.op("Concat", *several, axis=0) if count > 1 else several[0]).int64
    counts = seen.op("ReduceSum", [2], keepdims=0)
    ends = counts.op("CumSum", 1)
    row = ends.op("Pad", [0, 1, 0, 0], 0)
    flat = seen.reshape(count, blocks * blocks)
    most = counts.op("ReduceSum", [1], keepdims=0).op("ReduceMax", keepdims=1)
    at = g.several("TopK", 2, flat * (blocks * blocks - g.range(blocks * blocks)), most, axis=1)[1]
    live = g.range(most).reshape(1, -1) < ends.cut(blocks - 1, blocks, axis=1)
    column = live.where(at % blocks, -1)
    return row.cast(TensorProto.INT32), column.cast(TensorProto.INT32)
