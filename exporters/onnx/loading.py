"""A model from a file or from memory, whole: no byte of it comes from outside its own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model

LARGEST = 2**31 - 1  # bytes of one protobuf message


def load(model: Any) -> Any:
    """The model as an onnx.ModelProto that refers to no file.

    Parameters
    ----------
    model : str, path or onnx.ModelProto
        A ModelProto is copied. Weights beside the file are read into the model.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no ONNX model, or refers to data outside its own folder: by an absolute
        path, by `..`, or through a link.
    """
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if outside := [one for one in tensors(copy) if _external(one)]:
            raise ValueError(
                f"model must hold its own data or be given as a path, got {outside[0].name!r} "
                "with data in a file"
            )
        return copy
    path = Path(model)
    try:
        loaded: Any = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf has several
        raise ValueError(f"model must be an ONNX file, got {path.name}: {error}") from None
    folder = path.resolve().parent
    for tensor in tensors(loaded):
        if _external(tensor):
            _check_inside(tensor, folder)
    load_external_data_for_model(loaded, str(folder))
    if loaded.ByteSize() > LARGEST:
        raise ValueError(f"model must be below 2 GiB to be copied, got {loaded.ByteSize()} bytes")
    return loaded


def tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model: initializers and attributes, those of subgraphs and functions too.

    >>> from onnx import parser
    >>> [one.name for one in tensors(parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
    ... g () => (float[1] y) <float[1] w = {1}> { y = Neg (w) }'''))]
    ['w']
    """
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _of_graph(graph)


def _external(tensor: Any) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _check_inside(tensor: Any, folder: Path) -> None:
    """Refuse data that is not a plain file within the model's folder."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    target = folder / location
    inside = target.resolve().is_relative_to(folder) and not Path(location).is_absolute()
    linked = target.is_file() and target.stat().st_nlink > 1  # resolving sees other links only
    if not location or not inside or linked:
        raise ValueError(
            f"model must keep its data in plain files of its own folder, got {location!r} "
            f"for {tensor.name!r}"
        )
