"""What a file needs at a length: its largest attention, and the lists that the graph computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import shape_inference

import sparse_ref as sr
from sparse_ref._arrays import integer

from .loading import load
from .memory import Sizes, peak_of_rows
from .nodes import BODY
from .observed import Observed, observed, runtime_names, with_values
from .schema import DOMAIN, OP, register
from .tapping import element_types

PEAK = "sparse_ref.estimated_peak"  # key of metadata
BLOCK = 64  # of a file whose operator is inlined; see pattern_model
GRID = 8  # bytes of a number for every block of the grid; measured are 10 of them, and
GRIDS, GRIDS_EACH = 10, 2  # 2 more for every layout


def estimated_peak(
    model: Any,
    q_len: int,
    kv_len: int | None = None,
    *,
    batch: int = 1,
    given: Mapping[str, NDArray[Any]] | None = None,
) -> int:
    """Bytes that the function bodies of a file need at these lengths, beside its inputs.

    That is the largest of its attentions, one after the other, or of the block lists that the graph
    computes for them. A registered kernel needs less.

    Parameters
    ----------
    model : str, path or onnx.ModelProto
        What `to_onnx` wrote in mode custom or inline.
    q_len, kv_len : int >= 0
        Queries and keys; default: as many keys as queries.
    batch : int >= 1
    given : dict of str to array, optional
        The values of the run-time inputs that the pattern reads, as a run gets them.

    Raises
    ------
    ValueError
        If a length is wrong, the pattern does not cover it, or `given` lacks a run-time input.
    NotImplementedError
        If an attention of the file is no body of ours.

    Examples
    --------
    >>> from exporters import to_onnx
    >>> model = to_onnx(sr.SlidingWindow(256, 256), heads=8, head_dim=64)
    >>> [estimated_peak(model, n) >> 20 for n in (4096, 8192)]
    [16, 32]
    """
    m = integer("q_len", q_len)
    n = m if kv_len is None else integer("kv_len", kv_len)
    loaded, rows = load(model), integer("batch", batch, 1)
    register()
    bodies = [one.value for one in loaded.metadata_props if one.key == BODY]
    attentions = observed(loaded)
    for one in attentions:
        if one.choice is not None:
            raise NotImplementedError("the memory of a file that chooses by content is not known")
        if not one.ours or not bodies:
            raise NotImplementedError(
                f"the memory of {one.operator} is not known: modes 'custom' and 'inline' are"
            )
    return max(_one(loaded, one, bodies[0], (m, n), rows, given or {}) for one in attentions)


def reported(model: Any, length: Any, max_bytes: int | None) -> Any:
    """The model with its estimated peak at `length` in its metadata, unless that is too much.

    Parameters
    ----------
    model : onnx.ModelProto
    length : int, or (q_len, kv_len)
    max_bytes : int or None
    """
    m, n = length if isinstance(length, tuple) else (length, length)
    needed = estimated_peak(model, m, n)
    if max_bytes is not None and needed > integer("max_bytes", max_bytes):
        body = next(one.value for one in model.metadata_props if one.key == BODY)
        raise ValueError(
            f"max_bytes must be >= {needed} for the {body} body at {m} queries and {n} keys, "
            f"got {max_bytes}"
        )
    said = {"batch": 1, "q_len": m, "kv_len": n, "bytes": needed}
    model.metadata_props.add(key=PEAK, value=json.dumps(said))
    return model


def _one(
    model: Any, one: Observed, body: str, lengths: tuple[int, int], batch: int,
    given: Mapping[str, NDArray[Any]],
) -> int:  # fmt: skip
    if lacking := sorted(set(runtime_names(one.pattern)) - set(given)):
        raise ValueError(
            f"given must hold the run-time input {lacking[0]!r}, on which the memory depends"
        )
    pattern = with_values(one.pattern, {name: np.asarray(x) for name, x in given.items()}, batch)
    dims = _dims(model)
    (_, h, _, d), (_, g, _, _), (_, _, _, e) = (dims[x] for x in (one.query, one.key, one.value))
    sizes = Sizes(batch, h, g, d, e, element_types(model).get(one.query, "float32"))
    block = _block_size(model, one)
    if pattern.batches is not None and pattern.batches != batch:
        raise ValueError(f"batch must be the pattern's {pattern.batches}, got {batch}")
    rows = [
        sr.to_blocks(pattern.for_batch(i), *lengths, block_size=block, heads=h)
        for i in range(pattern.batches or 1)
    ]
    computed = one.pattern.covers is None or bool(given)
    grid = -(-lengths[0] // block[0]) * -(-lengths[1] // block[1])
    layouts = max(len(one.indptr) for one in rows)
    lists = GRID * (GRIDS + GRIDS_EACH * layouts) * grid * len(rows) if computed else 0
    return max(peak_of_rows(rows, sizes, body), lists)


def _dims(model: Any) -> dict[str, list[int]]:
    """The lengths of every value of four axes; 0 where one is free."""
    graph = shape_inference.infer_shapes(model).graph
    return {
        one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in (*graph.input, *graph.value_info)
        if len(one.type.tensor_type.shape.dim) == 4
    }


def _block_size(model: Any, one: Observed) -> tuple[int, int]:
    for node in model.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, OP) and one.output in node.output:
            said = {x.name: x.i for x in node.attribute}
            return said["q_block_size"], said["k_block_size"]
    return BLOCK, BLOCK
