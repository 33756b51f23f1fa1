"""PyTorch: the operator `sparse_ref::attention`, modules on it, and what torch.onnx needs."""

from .attention import SparseAttention
from .bigbird import BigBird
from .export import module_to_onnx, with_attention_nodes
from .huggingface import register_huggingface
from .longformer import Longformer
from .model import SparseTransformer
from .op import sparse_attention
from .placeholders import translations

__all__ = [
    "BigBird", "Longformer", "SparseAttention", "SparseTransformer", "module_to_onnx",
    "register_huggingface", "sparse_attention", "translations", "with_attention_nodes",
]  # fmt: skip
