"""ONNX: the operator `sparse_ref.SparseAttention`, its body in standard operators, its nodes."""

from .body import gather_body, loop_body
from .memory import body_peak
from .nodes import attention_node, finish
from .pattern_model import pattern_to_onnx
from .peak import estimated_peak
from .reference_op import SparseAttention
from .schema import DOMAIN, OP, VERSION, register
from .selections import selection_to_onnx
from .tensors import block_tensors
from .validate import validate_onnx

__all__ = [
    "DOMAIN", "OP", "VERSION", "SparseAttention", "attention_node", "block_tensors", "body_peak",
    "estimated_peak", "finish", "gather_body", "loop_body", "pattern_to_onnx", "register",
    "selection_to_onnx", "validate_onnx",
]  # fmt: skip
