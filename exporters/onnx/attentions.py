"""The attentions of anybody's ONNX model: where q, k and v enter each, and where it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnx import helper

from .observed import observed
from .schema import DOMAIN, OP
from .walking import Graph, Place, UnreadError

ORT = "com.microsoft"


@dataclass(frozen=True)
class Attention:
    """One attention: where its inputs enter, the value it answers, and the sizes of a real run."""

    name: str
    operator: str
    places: dict[str, Place]
    output: str
    axes: str
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    batch: int
    past: int = 0
    cleared: tuple[str, ...] = ()  # attributes set to 0 for the reading: rotary embeddings
    notes: tuple[str, ...] = ()


def attentions(graph: Graph) -> Iterator[Attention | tuple[str, str, str]]:
    """Every attention of the main graph; or its name, its operator and why it cannot be read."""
    for at, node in enumerate(graph.nodes):
        kind = node.domain, node.op_type
        known = OPERATORS.get(kind)
        name = node.name or node.output[0]
        try:
            if known is not None:
                yield known(graph, at, name)
            elif kind == ("", "Softmax") and (found := _decomposed(graph, at, name)) is not None:
                yield found
        except UnreadError as error:
            yield name, "Softmax" if known is None else node.op_type, str(error)


def _decomposed(graph: Graph, at: int, name: str) -> Attention | None:
    """Softmax between two products."""
    before, after = graph.product_before(at), graph.product_after(at)
    if before is None or after is None:
        return None
    product, slot = after
    scores = graph.shape(graph.nodes[before].output[0])
    out = graph.nodes[product].output[0]
    if graph.nodes[before].op_type == "Einsum" or slot != 0:
        raise UnreadError("its products are written in a form that is not known")
    places = {
        "q": graph.entry(before, 0, turned=False), "k": graph.entry(before, 1, turned=True),
        "v": graph.entry(product, 1, turned=False),
    }  # fmt: skip
    sizes = {name: _sizes(graph.shape(graph.nodes[p.node].input[p.slot]), p.axes)
             for name, p in places.items()}  # fmt: skip
    (b, h, m, d), (_, g, n, _), (_, _, _, e) = (sizes[name] for name in "qkv")
    if scores[-2:] != (m, n):
        raise UnreadError(f"its scores {scores} are not those of {m} queries and {n} keys")
    axes = "bhsd" if len(graph.shape(out)) == 4 else "Bsd"
    return Attention(name, "Softmax", places, out, axes, h, g, m, n, d, e, b)


def inlined(model: Any, graph: Graph) -> Iterator[Attention]:
    """An attention of ours whose operator was inlined: the metadata says where its values are."""
    try:
        found = observed(model)
    except ValueError:
        return
    for one in found:
        values = one.query, one.key, one.value
        (b, h, m, d), (_, g, n, _), (_, _, _, e) = (graph.shape(value) for value in values)
        places = {x: Place(-1, 0, "bhsd", value) for x, value in zip("qkv", values, strict=True)}
        yield Attention(one.name, one.operator, places, one.output, "bhsd", h, g, m, n, d, e, b)


def _sizes(shape: tuple[int, ...], axes: str) -> tuple[int, int, int, int]:
    """Batch, heads, tokens, size; where batch and heads are one axis the batch is taken for 1."""
    named = dict(zip(axes, shape, strict=True))
    return named.get("b", 1), named.get("h", named.get("B", 1)), named["s"], named["d"]


def _attributes(node: Any) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _given(node: Any, slot: int) -> str:
    return node.input[slot] if len(node.input) > slot else ""


def _ours(graph: Graph, at: int, name: str) -> Attention:
    """sparse_ref.SparseAttention."""
    node = graph.nodes[at]
    (b, h, m, d), (_, g, n, _) = (graph.shape(one) for one in node.input[:2])
    e = graph.shape(node.input[2])[3]
    places = {x: Place(at, slot, "bhsd") for slot, x in enumerate("qkv")}
    return Attention(name, f"{DOMAIN}.{OP}", places, node.output[0], "bhsd", h, g, m, n, d, e, b)


def _standard(graph: Graph, at: int, name: str) -> Attention:
    """ai.onnx Attention 23, 24, 25."""
    node = graph.nodes[at]
    said = _attributes(node)
    shapes = [graph.shape(one) for one in node.input[:3]]
    if len(shapes[0]) == 4:
        axes, (b, h, m, d), (_, g, n, _), e = "bhsd", shapes[0], shapes[1], shapes[2][3]
    else:
        (b, m, wide), (_, n, _), h, g = *shapes[:2], said["q_num_heads"], said["kv_num_heads"]
        axes, d, e = "bsD", wide // h, shapes[2][2] // g
    past = graph.shape(_given(node, 4))[2] if _given(node, 4) else 0
    return _with_past(graph, at, name, "Attention", axes, (b, h, g, m, n, d, e), past, 4)


def _with_past(
    graph: Graph, at: int, name: str, operator: str, axes: str, sizes: tuple[int, ...], past: int,
    slot: int, **more: Any,
) -> Attention:  # fmt: skip
    """An operator whose inputs are its own; keys of a past come first."""
    b, h, g, m, n, d, e = sizes
    places = {x: Place(at, i, axes) for i, x in enumerate("qkv")}
    if past:
        places |= {"past k": Place(at, slot, "bhsd"), "past v": Place(at, slot + 1, "bhsd")}
    out = graph.nodes[at].output[0]
    return Attention(name, operator, places, out, axes, h, g, m, past + n, d, e, b, past, **more)


def _grouped(graph: Graph, at: int, name: str) -> Attention:
    """GroupQueryAttention of ONNX Runtime."""
    node = graph.nodes[at]
    said = _attributes(node)
    h, g = said["num_heads"], said["kv_num_heads"]
    if not _given(node, 1):
        raise UnreadError("its query, key and value are packed into one input")
    (b, m, wide), (_, n, _) = (graph.shape(one) for one in node.input[:2])
    past = graph.shape(_given(node, 3))[2] if _given(node, 3) else 0
    rotary = ("do_rotary",) if said.get("do_rotary") else ()
    notes = ("its rotary embedding is turned off for the reading",) * bool(rotary)
    d = wide // h
    sizes = (b, h, g, m, n, d, d)
    return _with_past(graph, at, name, f"{ORT}.GroupQueryAttention", "bsD", sizes, past, 3,
                      cleared=rotary, notes=notes)  # fmt: skip


def _multi(graph: Graph, at: int, name: str) -> Attention:
    """MultiHeadAttention of ONNX Runtime."""
    node = graph.nodes[at]
    h = _attributes(node)["num_heads"]
    shapes = [graph.shape(_given(node, slot)) for slot in range(3)]
    if any(len(one) != 3 for one in shapes):
        raise UnreadError("its query, key and value are packed, or laid out as a cache")
    (b, m, wide), (_, n, _) = shapes[:2]
    past = graph.shape(_given(node, 6))[2] if _given(node, 6) else 0
    sizes = (b, h, h, m, n, wide // h, shapes[2][2] // h)
    return _with_past(graph, at, name, f"{ORT}.MultiHeadAttention", "bsD", sizes, past, 6)


OPERATORS = {
    ("", "Attention"): _standard,
    (ORT, "GroupQueryAttention"): _grouped,
    (ORT, "MultiHeadAttention"): _multi,
    (DOMAIN, OP): _ours,
}
