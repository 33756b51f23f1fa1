"""Nodes of our operator in somebody's graph, and what makes the model whole."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import checker, helper, numpy_helper, shape_inference

import sparse_ref as sr

from .body import gather_body, loop_body
from .schema import DOMAIN, INPUTS, OP, VERSION, register
from .words import sentence

__all__ = ["attention_node", "finish", "sentence"]

UNLIMITED = "sparse_ref.key_length"  # neutral tensors, added to the graph by `finish`
NO_SINKS = "sparse_ref.sinks"
UNKNOWN = onnx.TensorProto.UNDEFINED
BODY = "sparse_ref.body"  # key of metadata: which body the file has, inlined or not


def attention_node(
    inputs: list[str],
    output: str,
    *,
    pattern: sr.Pattern,
    block_size: tuple[int, int],
    scale: float,
    softcap: float | None = None,
    lse: str | None = None,
) -> Any:
    """One node of `sparse_ref.SparseAttention`, an onnx.NodeProto.

    Parameters
    ----------
    inputs : list of str
        Names of query, key, value, block_indices, block_count, tile_ids, tile_masks, then maybe
        key_length and sinks. "", or nothing at the end, stands for none; `finish` fills it in.
    output : str
    pattern : Pattern
        What the lists say; it stands in the node's metadata and computes nothing.
    block_size : (int, int)
    scale : float > 0
        ONNX keeps it as float32.
    softcap : float > 0, optional
    lse : str, optional
        Name of the second output.

    Examples
    --------
    >>> node = attention_node(list("qkv") + ["indices", "count", "ids", "masks"], "y",
    ...                       pattern=sr.Causal(), block_size=(16, 16), scale=0.5)
    >>> node.metadata_props[0].value
    '{"kind":"Causal"}'
    """
    if not len(INPUTS) - 2 <= len(inputs) <= len(INPUTS):
        raise ValueError(f"inputs must be 7 to 9 names, got {len(inputs)}")
    node = helper.make_node(
        OP,
        inputs,
        [output] if lse is None else [output, lse],
        name=f"{output}.{OP}",
        domain=DOMAIN,
        q_block_size=int(block_size[0]),
        k_block_size=int(block_size[1]),
        scale=float(scale),
        softcap=float(softcap or 0.0),
    )
    for key, value in (
        ("sparse_ref.pattern", json.dumps(sr.to_dict(pattern), separators=(",", ":"))),
        ("sparse_ref.sentence", sentence(pattern)),
    ):
        node.metadata_props.add(key=key, value=value)
    return node


def finish(model: Any, opset: int, body: str = "loop") -> Any:
    """The model with all that our nodes need to run anywhere, checked.

    Adds neutral tensors for left-out inputs, the operator's opset import and its function body, in
    place of one that is there; then the full ONNX check with strict inference of types and shapes.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place, and returned. Nodes of ours stand in its main graph.
    opset : int >= 18
        The model's opset of standard operators.
    body : "loop" or "gather"
        The function that computes our nodes where no kernel of ours is registered.

    Raises
    ------
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError
        If the model is not valid ONNX, or a node of ours has a wrong input or attribute.
    ValueError
        If there is no node of ours, or lse is wanted where float64 nodes stand beside others.
    """
    register()
    ours = [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OP)]
    if not ours:
        raise ValueError(f"model must have a {DOMAIN}.{OP} node in its main graph, got none")
    if not any(one.domain == DOMAIN for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    model.ir_version = max(model.ir_version, 10)  # the first with metadata on nodes
    kinds = _query_types(model, ours)
    for node, kind in zip(ours, kinds, strict=True):
        _fill_in(model.graph, node, kind or onnx.TensorProto.FLOAT)
    double = onnx.TensorProto.DOUBLE in kinds
    lse = any(len(node.output) > 1 for node in ours)
    if double and lse and len(set(kinds)) > 1:
        raise ValueError("model must not ask for lse where float64 nodes stand beside others")
    for node in ours if lse else []:  # ONNX Runtime wants as many outputs as the function has
        if len(node.output) < 2:
            node.output.append(f"{node.output[0]}.lse")
    others = [one for one in model.functions if (one.domain, one.name) != (DOMAIN, OP)]
    del model.functions[:]
    accumulate = onnx.TensorProto.DOUBLE if double else onnx.TensorProto.FLOAT
    model.functions.extend([*others, _function(body, opset, lse, accumulate, set(kinds))])
    kept = {one.key: one.value for one in model.metadata_props} | {BODY: body}
    del model.metadata_props[:]
    for name, value in kept.items():
        model.metadata_props.add(key=name, value=value)
    checker.check_model(model, full_check=True)
    return model


def _function(body: str, opset: int, lse: bool, accumulate: int, kinds: set[int]) -> Any:
    bodies = {"loop": loop_body, "gather": gather_body}
    if body not in bodies:
        raise ValueError(f"body must be one of {', '.join(bodies)}, got {body!r}")
    return bodies[body](opset, lse, accumulate=accumulate, uniform=kinds == {accumulate})


def _query_types(model: Any, ours: list[Any]) -> list[int]:
    """The element type of the queries of every node of ours, `UNKNOWN` where nothing says it."""
    graph = shape_inference.infer_shapes(model).graph
    known = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    } | {tensor.name: tensor.data_type for tensor in graph.initializer}
    return [known.get(node.input[0], UNKNOWN) for node in ours]


def _fill_in(graph: Any, node: Any, kind: int) -> None:
    """Neutral tensors for the inputs that the node leaves out."""
    given = [*node.input, "", ""][: len(INPUTS)]
    sinks = f"{NO_SINKS}.{helper.tensor_dtype_to_string(kind).partition('.')[2].lower()}"
    real = helper.tensor_dtype_to_np_dtype(kind)
    for at, name, value in (
        (7, UNLIMITED, np.array([2**31 - 1], dtype=np.int32)),
        (8, sinks, np.array([-np.inf]).astype(real)),
    ):
        if not given[at]:
            given[at] = name
            if not any(one.name == name for one in graph.initializer):
                graph.initializer.append(numpy_helper.from_array(value, name))
    del node.input[:]
    node.input.extend(given)
