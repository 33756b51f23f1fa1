"""ONNX: the operator `sparse_ref.SparseAttention`, its body in standard operators, its nodes."""

from .body import loop_body
from .nodes import attention_node, finish
from .reference_op import SparseAttention
from .schema import DOMAIN, OP, VERSION, register
from .tensors import block_tensors

__all__ = [
    "DOMAIN", "OP", "VERSION", "SparseAttention", "attention_node", "block_tensors", "finish",
    "loop_body", "register",
]  # fmt: skip
