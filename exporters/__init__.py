"""Patterns and models on their way out of NumPy: to PyTorch and to ONNX.

`import exporters` loads neither torch nor onnx; each name below loads its own wing when asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

_HOME = {
    "SparseAttention": "exporters.pytorch",
    "SparseTransformer": "exporters.pytorch",
    "sparse_attention": "exporters.pytorch",
    "to_flex": "exporters.pytorch",
    "to_torch": "exporters.pytorch",
    "emit": "exporters.pytorch",
    "swap_attention": "exporters.pytorch",
    "attention_maps": "exporters.pytorch",
    "saved_bytes": "exporters.pytorch",
    "Longformer": "exporters.pytorch",
    "GlobalAttention": "exporters.pytorch",
    "KeyValueCache": "exporters.pytorch",
    "LocalAttention": "exporters.pytorch",
    "LongformerAttention": "exporters.pytorch",
    "RandomAttention": "exporters.pytorch",
    "Rotary": "exporters.pytorch",
    "SparseEncoderDecoder": "exporters.pytorch",
    "SparseTransformerBlock": "exporters.pytorch",
    "factorised": "exporters.pytorch",
    "BigBird": "exporters.pytorch",
    "register_huggingface": "exporters.pytorch",
    "translations": "exporters.pytorch",
    "with_attention_nodes": "exporters.pytorch",
    "attention_node": "exporters.onnx",
    "block_tensors": "exporters.onnx",
    "estimated_peak": "exporters.onnx",
    "finish": "exporters.onnx",
    "pattern_to_onnx": "exporters.onnx",
    "selection_to_onnx": "exporters.onnx",
    "validate_onnx": "exporters.onnx",
    "xray_onnx": "exporters.onnx.xray",
    "register_kernels": "exporters.onnx.native",
}

__all__ = ["to_onnx", *_HOME]  # noqa: PLE0604


def to_onnx(pattern: Any, *example_inputs: Any, **options: Any) -> Any:
    """A pattern, or a PyTorch model that holds some, as an onnx.ModelProto.

    Parameters
    ----------
    pattern : Pattern or torch.nn.Module
        A pattern becomes a model of one attention over it, with the inputs q, k, v and the output
        y: `exporters.onnx.pattern_to_onnx`. A module becomes itself, with its attention as our
        operator; that is `SparseAttention` or calls of `sparse_attention`:
        `exporters.pytorch.module_to_onnx`.
    example_inputs : tuple of tensors, each (b, ...)
        Of a module only. Their lengths are the file's; the batch axis is free.
    options
        Passed on. Of a pattern: heads, kv_heads=None, head_dim, value_dim=None, dtype="float32",
        scale=None, softcap=None, sinks=False, key_length=False, q_start=False, mode="custom",
        body="loop", opset=None, dynamic=True, length=None, max_bytes=None.

    Raises
    ------
    TypeError
        If the first argument is neither, or an option is not one of these.
    ValueError, NotImplementedError
        If an option is wrong, or the mode cannot say the pattern; the sentence says what would.

    Examples
    --------
    >>> import sparse_ref as sr
    >>> model = to_onnx(sr.Causal() & sr.SlidingWindow(255, 0), heads=8, kv_heads=2, head_dim=64)
    >>> [one.name for one in model.graph.input], model.graph.node[-1].op_type
    (['q', 'k', 'v'], 'SparseAttention')
    """
    import sparse_ref as sr

    if isinstance(pattern, sr.Pattern):
        return import_module("exporters.onnx").pattern_to_onnx(pattern, *example_inputs, **options)
    torch = sys.modules.get("torch")  # where it was never imported, nobody has a module of it
    if torch is None or not isinstance(pattern, torch.nn.Module):
        kind = type(pattern).__name__
        raise TypeError(f"pattern must be a pattern or a torch.nn.Module, got {kind}")
    return import_module("exporters.pytorch").module_to_onnx(pattern, *example_inputs, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
