"""A PyTorch model to ONNX: every attention over a pattern becomes our ONNX node with its blocks."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .flex_export import flex_to_blocks
from .flex_layouts import Layout
from .nodes import replace_placeholders
from .placeholders import translations


def module_to_onnx(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    block_size: int = 16,
    opset: int = 18,
    dynamic_shapes: Any = "batch",
    kwargs: dict[str, Tensor] | None = None,
) -> Any:
    """The module as an onnx.ModelProto; the batch is free, lengths are those of the example.

    Parameters
    ----------
    module : nn.Module
        Its attention is `SparseAttention`, calls of `sparse_attention` or of FlexAttention, or
        that of a model of transformers after `register_huggingface`.
    example_inputs : tuple of tensors, each (b, ...)
        An example of one row is traced as two alike: torch.export takes an axis of 1 to be fixed.
    block_size : int
        Queries and keys of a block in stored lists; a BlockMask keeps its own.
    opset : int
    dynamic_shapes : optional
        Which lengths are free, as `torch.export.export` takes it; default the first axis of every
        input, None none. Where attention is over free lengths, its lists are computed in the graph.
    kwargs : dict of tensors, optional
        Example inputs that the module takes by name.

    Every attention node comes with the function body that computes it in standard operators.

    Raises
    ------
    ValueError
        If examples differ in their batch or have no row, or have less than 2 along a free axis that
        `dynamic_shapes` names.
    NotImplementedError
        If a FlexAttention of the module cannot be said by our operator.
    """
    if opset < 18:
        raise ValueError(f"opset must be >= 18, got {opset}")
    if dynamic_shapes == "batch":
        example_inputs, kwargs = _rows(example_inputs, kwargs)
        batch = {0: torch.export.Dim("batch")}
        dynamic_shapes = (batch,) * (len(example_inputs) + len(kwargs or {}))
    else:
        _refuse_ones(example_inputs, dynamic_shapes)
    with _quiet():
        program = torch.export.export(
            copy.deepcopy(module).eval(), example_inputs, kwargs, dynamic_shapes=dynamic_shapes
        )
        program, layouts = flex_to_blocks(program)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            custom_translation_table=translations(),
            verbose=False,
        )
    assert exported is not None
    return with_attention_nodes(exported, layouts=layouts, block_size=block_size)


def _rows(
    inputs: tuple[Tensor, ...], named: dict[str, Tensor] | None
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Examples of at least two rows."""
    named = named or {}
    found = sorted({len(x) if x.dim() else 0 for x in (*inputs, *named.values())})
    if len(found) != 1 or not found[0]:
        raise ValueError(
            f"example_inputs must share a first axis >= 1, the batch, got {found or 'none'}"
        )
    times = 2 if found == [1] else 1
    return (
        tuple(torch.cat([x] * times) for x in inputs),
        {name: torch.cat([x] * times) for name, x in named.items()},
    )


def _refuse_ones(inputs: tuple[Tensor, ...], dynamic_shapes: Any) -> None:
    """An axis of 1 would be fixed whatever is said of it, and some say nothing when it is."""
    if not isinstance(dynamic_shapes, (tuple, list)):
        return
    for i, (x, axes) in enumerate(zip(inputs, dynamic_shapes, strict=False)):
        pairs = axes.items() if isinstance(axes, dict) else enumerate(axes or ())
        for axis, free in pairs:
            if free is not None and not isinstance(free, int) and x.shape[axis] < 2:
                raise ValueError(
                    f"example_inputs must have 2 or more along a free axis, got {x.shape[axis]} "
                    f"on axis {axis} of input {i}"
                )


def with_attention_nodes(
    exported: Any, *, layouts: dict[str, Layout] | None = None, block_size: int = 16
) -> Any:
    """What torch.onnx or the exporter of transformers made, with our nodes, as onnx.ModelProto.

    Parameters
    ----------
    exported : onnx.ModelProto, torch.onnx.ONNXProgram or onnx_ir.Model
        From `torch.onnx.export(..., custom_translation_table=translations())`, or the `program` of
        what `transformers.exporters.OnnxExporter` exported after `register_huggingface`.
    layouts : dict, optional
        Of FlexAttention, from `flex_to_blocks`.
    block_size : int
        Queries and keys of a block in stored lists.

    Raises
    ------
    ValueError
        If there is none of our operators in it, or its opset is below 18.
    """
    model = _proto(exported)
    opset = next(one.version for one in model.opset_import if one.domain == "")
    if opset < 18:
        raise ValueError(f"opset must be >= 18, got {opset}")
    replace_placeholders(model, layouts or {}, block_size, opset)
    return _finished(model, opset)


def _proto(exported: Any) -> Any:
    """A copy that may be changed, all its weights inside."""
    import onnx
    import onnx_ir

    if isinstance(exported, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(exported)
        return model
    return onnx_ir.to_proto(getattr(exported, "model", exported))


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


def _finished(model: Any, opset: int) -> Any:
    """The checked model, without what says nothing of it."""
    import exporters

    graph = model.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, graph):
        kept = [one for one in item.metadata_props if one.key.startswith("sparse_ref.")]
        del item.metadata_props[:]  # stack traces: half the file, with this machine's paths
        item.metadata_props.extend(kept)
    return exporters.finish(model, opset)
