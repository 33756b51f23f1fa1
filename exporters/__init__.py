"""Patterns and models on their way out of NumPy: to PyTorch and to ONNX.

`import exporters` loads neither torch nor onnx; each name below loads its own wing when asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "SparseAttention": "exporters.pytorch",
    "SparseTransformer": "exporters.pytorch",
    "sparse_attention": "exporters.pytorch",
    "attention_node": "exporters.onnx",
    "block_tensors": "exporters.onnx",
    "finish": "exporters.onnx",
}

__all__ = ["to_onnx", *_HOME]  # noqa: PLE0604


def to_onnx(module: Any, example_inputs: tuple[Any, ...], **options: Any) -> Any:
    """A PyTorch model whose attention is ours as an onnx.ModelProto: `module_to_onnx`.

    Parameters
    ----------
    module : nn.Module
        Its attention is `SparseAttention` or calls of `sparse_attention`.
    example_inputs : tuple of tensors, each (b, ...)
        Their lengths are the file's; the batch axis is free.
    options
        Passed on: `block_size`, `opset`.

    Raises
    ------
    TypeError
        If `module` is not a torch module.
    """
    from torch import nn

    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    return import_module("exporters.pytorch").module_to_onnx(module, example_inputs, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
