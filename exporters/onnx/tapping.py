"""Copies of a model for looking inside: more of its values answered, in types that NumPy has."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

Array = NDArray[Any]


def constants(model: Any) -> dict[str, Array]:
    """The initializers of the main graph, by name."""
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def element_types(model: Any) -> dict[str, str]:
    """NumPy's name of every value's element type, as far as inference knows it."""
    graph = shape_inference.infer_shapes(model).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    kinds = {one.name: one.type.tensor_type.elem_type for one in infos}
    return {
        name: helper.tensor_dtype_to_np_dtype(kind).name for name, kind in kinds.items() if kind
    }


def tapped(model: Any, names: list[str]) -> Any:
    """A copy of the model that also answers the values of these names, if it computes them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    computed = {name for node in copy.graph.node for name in node.output}
    answered = {one.name for one in copy.graph.output}
    known = {one.name: one for one in shape_inference.infer_shapes(copy).graph.value_info}
    for name in names:
        if name in computed - answered:
            copy.graph.output.append(known.get(name, onnx.ValueInfoProto(name=name)))
    return copy


def in_numpy_types(model: Any) -> Any:
    """A copy with float32 in place of bfloat16 at its inputs and outputs, which is exact.

    ONNX Runtime takes and gives NumPy arrays only, and NumPy has no bfloat16.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    own = {one.name for one in graph.initializer}
    for one in [one for one in graph.input if one.name not in own and _is_half(one)]:
        _renamed(graph, one.name, f"{one.name}.bfloat16")
        cast = helper.make_node(
            "Cast", [one.name], [f"{one.name}.bfloat16"], to=TensorProto.BFLOAT16
        )
        graph.node.insert(0, cast)
        one.type.tensor_type.elem_type = TensorProto.FLOAT
    for one in [one for one in graph.output if _is_half(one)]:
        _renamed(graph, one.name, f"{one.name}.bfloat16")
        graph.node.append(
            helper.make_node("Cast", [f"{one.name}.bfloat16"], [one.name], to=TensorProto.FLOAT)
        )
        one.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


def _is_half(info: Any) -> bool:
    return bool(info.type.tensor_type.elem_type == TensorProto.BFLOAT16)


def _renamed(graph: Any, old: str, new: str) -> None:
    """Another name for a value, in subgraphs too."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _renamed(attribute.g, old, new)
