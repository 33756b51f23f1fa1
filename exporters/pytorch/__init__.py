"""PyTorch: the operator `sparse_ref::attention`, modules on it, and what torch.onnx needs."""

from .attention import SparseAttention
from .export import module_to_onnx
from .model import SparseTransformer
from .op import sparse_attention

__all__ = ["SparseAttention", "SparseTransformer", "module_to_onnx", "sparse_attention"]
