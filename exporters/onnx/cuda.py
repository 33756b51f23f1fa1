"""What can be said of a file on CUDA without a GPU: which of its nodes have a kernel there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import onnx
from onnx import defs, helper, inliner, shape_inference

from .cuda_ops import Kernel, kernels
from .schema import DOMAIN, register

FREE = {"Constant"}  # ONNX Runtime turns them into initializers
ALIASES = {"CastLike": "Cast"}  # functions of one node, which ONNX Runtime expands
FLOATS = {"bfloat16", "double", "float", "float16"}


class Gap(NamedTuple):
    """Nodes that ONNX Runtime would run elsewhere; `floating`: they hold floating-point numbers."""

    operator: str
    version: int
    types: tuple[str, ...]
    floating: bool
    nodes: int

    def __str__(self) -> str:
        of = f" of {', '.join(self.types)}" if self.types else ""
        return f"{self.operator}-{self.version}{of}, {self.nodes} node(s)"


def cuda_gaps(model: Any) -> list[Gap]:
    """The operators of a model that have no kernel in ONNX Runtime's documented CUDA list.

    Parameters
    ----------
    model : onnx.ModelProto
        Its functions are looked into; it is not changed.

    Returns
    -------
    list of Gap
        Those with `floating` matter. Integers on their way to a shape stay on the CPU anyway.

    Examples
    --------
    >>> from onnx import parser
    >>> cuda_gaps(parser.parse_model('''<ir_version: 8, opset_import: ["": 20]>
    ... g (float[n] x) => (float[1] y) { y = ReduceMax (x) }'''))[0]
    Gap(operator='ReduceMax', version=20, types=('float',), floating=True, nodes=1)
    """
    register()
    plain = shape_inference.infer_shapes(inliner.inline_local_functions(model))
    opsets = {one.domain: one.version for one in plain.opset_import}
    known, found = kernels(), dict[tuple[str, int, tuple[str, ...], bool], int]()
    for node, types in _typed_nodes(plain.graph, {}):
        name = ALIASES.get(node.op_type, node.op_type)
        if (node.domain, name) in {("", one) for one in FREE} or node.domain == DOMAIN:
            continue
        at = name, opsets[node.domain], node.domain
        schema = defs.get_schema(*at) if defs.has(*at) else None
        version = schema.since_version if schema else opsets[node.domain]
        full = f"{node.domain}.{name}" if node.domain else name
        if not _covered(known.get(full, []), version, node, schema, types):
            held = tuple(sorted({types[x] for x in (*node.input, *node.output) if x in types}))
            key = full, version, held, bool(FLOATS & set(held))
            found[key] = found.get(key, 0) + 1
    return [Gap(*key, nodes) for key, nodes in found.items()]


def _covered(
    several: list[Kernel], version: int, node: Any, schema: Any, types: dict[str, str]
) -> bool:
    """Whether one of the kernels is for this version and for all types that are known."""
    letters = _letters(node, schema, types)
    return any(
        kernel.first <= version <= kernel.last
        and all(got in kernel.types.get(letter, {got}) for letter, got in letters)
        for kernel in several
    )


def _letters(node: Any, schema: Any, types: dict[str, str]) -> list[tuple[str, str]]:
    """The element types of a node's inputs and outputs beside the letters of its schema."""
    if schema is None:
        return []
    pairs = []
    for formal, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for i, name in enumerate(names):
            letter = formal[min(i, len(formal) - 1)].type_str  # the last may be variadic
            if name in types:
                pairs.append((letter, types[name]))
    return pairs


def _typed_nodes(graph: Any, outer: dict[str, str]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Every node, subgraphs' too, and the element types of the values it can see."""
    types = outer | {one.name: _element(one.data_type) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if kind := value.type.tensor_type.elem_type:
            types[value.name] = _element(kind)
    for node in graph.node:
        yield node, types
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _typed_nodes(attribute.g, types)


def _element(kind: int) -> str:
    """As in `tensor(float)`: the name that schemas and kernel lists use."""
    name = helper.tensor_dtype_to_string(kind).partition(".")[2].lower()
    return str(name)
