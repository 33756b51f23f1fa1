"""A PyTorch model to ONNX: every `sparse_ref::attention` becomes our ONNX node with its blocks.

torch.onnx translates one operator at a time and knows nothing of block lists, so it writes a
placeholder that still says the pattern; placeholders become nodes once the graph stands.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import sparse_ref as sr

from .op import unspelled

PLACEHOLDER = "AttentionOverPattern"


def module_to_onnx(
    module: nn.Module, example_inputs: tuple[Tensor, ...], *, block_size: int = 16, opset: int = 18
) -> Any:
    """The module as an onnx.ModelProto with a free batch axis and the lengths of the example.

    Parameters
    ----------
    module : nn.Module
        Its attention is `SparseAttention` or calls of `sparse_attention`.
    example_inputs : tuple of tensors, each (b, ...)
    block_size : int
        Queries and keys of a block in the exported lists.
    opset : int

    Every attention node comes with the function body that computes it in standard operators.
    """
    if opset < 18:
        raise ValueError(f"opset must be >= 18, got {opset}")
    with _quiet():
        program = torch.onnx.export(
            copy.deepcopy(module).eval(),
            example_inputs,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in example_inputs),
            custom_translation_table={torch.ops.sparse_ref.attention.default: _translation()},
            verbose=False,
        )
    assert program is not None
    return _with_nodes(program.model_proto, block_size, opset)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch says of itself: that torchvision is missing, that it will change."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _with_nodes(model: Any, block_size: int, opset: int) -> Any:
    """The model with every placeholder replaced; layers of one pattern share their lists."""
    from onnx import helper, numpy_helper

    import exporters

    lists: dict[tuple[Any, ...], list[str]] = {}
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == PLACEHOLDER]:
        said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        pattern = unspelled(said["pattern"].decode())
        key = said["pattern"], said["heads"], said["q_len"], said["kv_len"]
        if key not in lists:
            blocks = sr.to_blocks(pattern, *key[2:], block_size=block_size, heads=said["heads"])
            tensors = exporters.block_tensors(blocks)
            lists[key] = [f"pattern_{len(lists)}.{name}" for name in tensors]
            graph.initializer.extend(
                numpy_helper.from_array(tensor, name)
                for name, tensor in zip(lists[key], tensors.values(), strict=True)
            )
        node.CopyFrom(
            exporters.attention_node(
                [*node.input, *lists[key]], node.output[0], pattern=pattern,
                block_size=(block_size, block_size), scale=said["scale"],
            )
        )  # fmt: skip
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, graph):
        kept = [one for one in item.metadata_props if one.key.startswith("sparse_ref.")]
        del item.metadata_props[:]  # stack traces: half the file, with this machine's paths
        item.metadata_props.extend(kept)
    return exporters.finish(model, opset)


def _translation() -> Any:
    """What torch.onnx calls for each of our operators: it answers the placeholder."""
    from onnx.defs import OpSchema
    from onnxscript import values

    attributes = {
        "pattern": "STRING",
        "scale": "FLOAT",
        "heads": "INT",
        "q_len": "INT",
        "kv_len": "INT",
    }
    schema = OpSchema(
        PLACEHOLDER,
        "sparse_ref",
        1,
        inputs=[OpSchema.FormalParameter(name, "T") for name in ("q", "k", "v")],
        outputs=[OpSchema.FormalParameter("out", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(double)"], "")],
        attributes=[
            OpSchema.Attribute(name, getattr(OpSchema.AttrType, kind), "", required=True)
            for name, kind in attributes.items()
        ],
    )
    placeholder = values.Op(values.Opset("sparse_ref", 1), PLACEHOLDER, schema)

    def translate(q: Any, k: Any, v: Any, pattern: str, scale: float) -> Any:
        sizes = {"heads": q.shape[1], "q_len": q.shape[2], "kv_len": k.shape[2]}
        return placeholder(q, k, v, pattern=pattern, scale=scale, **sizes)

    return translate
