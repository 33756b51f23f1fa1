"""One attention of a model as a function of q, k and v: the graph is cut where these enter it.

What makes its mask stays, and is fed by the model's own inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .attentions import Attention
from .running import CPU, session
from .tapping import constants, in_numpy_types, tapped
from .walking import Graph

Array = NDArray[Any]
TYPES = {
    "tensor(float)": TensorProto.FLOAT, "tensor(float16)": TensorProto.FLOAT16,
    "tensor(double)": TensorProto.DOUBLE, "tensor(bfloat16)": TensorProto.BFLOAT16,
}  # fmt: skip


def graph_of(model: Any, feeds: Mapping[str, Array]) -> Graph:
    """The main graph with the shape of every value in a run on `feeds`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    own = constants(copy)
    single = (node for node in copy.graph.node if "Sequence" not in node.op_type)
    names = [name for node in single for name in node.output if name]
    del copy.graph.output[:]
    for name in names:
        copy.graph.node.append(helper.make_node("Shape", [name], [f"xray.shape.{name}"]))
        copy.graph.output.append(
            helper.make_tensor_value_info(f"xray.shape.{name}", TensorProto.INT64, [None])
        )
    ready = session(in_numpy_types(copy), CPU)
    got = ready.run(None, dict(feeds))
    shapes = {name: tuple(x.tolist()) for name, x in zip(names, got, strict=True)}
    shapes |= {name: x.shape for name, x in (*own.items(), *feeds.items())}
    constant = set(own)
    for node in model.graph.node:
        if all(name in constant for name in node.input):  # constants, and what is made of them
            constant |= set(node.output)
    return Graph(list(model.graph.node), constant, shapes)


class Cut:
    """An attention of a model as f(q, k, v) of float arrays (1, h, m, d), as the X-ray wants it."""

    def __init__(self, model: Any, attention: Attention, feeds: Mapping[str, Array]):
        self.attention = attention
        self._names = {x: p.value or f"xray.{x}" for x, p in attention.places.items()}
        copy = _cut(model, attention, self._names)
        self._ready = session(in_numpy_types(copy), CPU)
        self._kinds = {one.name: _numpy(one.type) for one in self._ready.get_inputs()}
        self._feeds = {name: x for name, x in feeds.items() if name in self._kinds}

    def __call__(self, q: Array, k: Array, v: Array) -> Array:
        """Columns of v go through in pieces of the size that the model's values have."""
        width, pieces = self.attention.value_dim, []
        for start in range(0, v.shape[3], width):
            piece = v[..., start : start + width]
            padded = np.pad(piece, [(0, 0)] * 3 + [(0, width - piece.shape[3])])
            pieces.append(self._run(q, k, padded)[..., : piece.shape[3]])
        return np.concatenate(pieces, axis=3)

    def _run(self, q: Array, k: Array, v: Array) -> Array:
        a, feed = self.attention, dict(self._feeds)
        values = {"q": q, "k": k[:, :, a.past :], "v": v[:, :, a.past :]}
        values |= {"past k": k[:, :, : a.past], "past v": v[:, :, : a.past]}
        for x, place in a.places.items():
            name = self._names[x]
            full = np.broadcast_to(values[x], (a.batch, *values[x].shape[1:]))
            feed[name] = np.ascontiguousarray(_laid(full, place.axes)).astype(self._kinds[name])
        (out,) = self._ready.run(None, feed)
        return _unlaid(out, a)[:1].astype(out.dtype)


def _laid(x: Array, axes: str) -> Array:
    """(b, h, s, d) in the order of `axes`."""
    b, h, s, d = x.shape
    match axes:
        case "bshd":
            return x.swapaxes(1, 2)
        case "bhds":
            return x.swapaxes(2, 3)
        case "bsD":
            return x.swapaxes(1, 2).reshape(b, s, h * d)
        case "Bsd":
            return x.reshape(b * h, s, d)
        case "Bds":
            return x.reshape(b * h, s, d).swapaxes(1, 2)
    return x


def _unlaid(out: Array, a: Attention) -> Array:
    if a.axes == "bsD":
        return out.reshape(a.batch, a.q_len, a.heads, a.value_dim).swapaxes(1, 2)
    return out.reshape(a.batch, a.heads, a.q_len, a.value_dim)


def _numpy(kind: str) -> str:
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def _cut(model: Any, attention: Attention, names: Mapping[str, str]) -> Any:
    """A copy whose inputs are q, k, v and what its mask is made of, and that answers no more."""
    places = attention.places
    at = {x: p.value or model.graph.node[p.node].input[p.slot] for x, p in places.items()}
    kinds = _kinds(model, [*at.values()])
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for x, place in places.items():
        if not place.value:
            graph.node[place.node].input[place.slot] = names[x]
    for node in graph.node:
        if attention.output in node.output:
            _clear(node, attention.cleared)
    needed = _needed(graph, attention.output)
    kept = [node for i, node in enumerate(graph.node) if i in needed]
    used = {name for node in kept for name in _read_by(node)} | {attention.output}
    inputs = [one for one in graph.input if one.name in used - set(names.values())]
    inputs += [helper.make_tensor_value_info(names[x], kinds[at[x]], None) for x in places]
    output = helper.make_tensor_value_info(attention.output, kinds[at["v"]], None)
    cut = helper.make_graph(
        kept, "attention", inputs, [output],
        initializer=[one for one in graph.initializer if one.name in used],
        sparse_initializer=[one for one in graph.sparse_initializer if one.values.name in used],
    )  # fmt: skip
    copy.graph.CopyFrom(cut)
    return copy


def _kinds(model: Any, names: list[str]) -> dict[str, int]:
    """The element types of values, as ONNX Runtime infers them."""
    given = {one.name: one.type.tensor_type.elem_type for one in model.graph.input}
    given |= {one.name: one.data_type for one in model.graph.initializer}
    ready = session(tapped(model, names), CPU)
    answered = {one.name: TYPES.get(one.type, TensorProto.FLOAT) for one in ready.get_outputs()}
    return {name: given.get(name, answered.get(name, TensorProto.FLOAT)) for name in names}


def _clear(node: Any, names: tuple[str, ...]) -> None:
    for one in node.attribute:
        if one.name in names:
            one.i = 0


def _needed(graph: Any, output: str) -> set[int]:
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    queue, needed = [output], set()
    while queue:
        at = made.get(queue.pop())
        if at is not None and at not in needed:
            needed.add(at)
            queue += _read_by(graph.node[at])
    return needed


def _read_by(node: Any) -> Iterator[str]:
    """The names a node reads, those of its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for one in inner.node:
                yield from _read_by(one)
            yield from (one.name for one in inner.output)
