"""The operator's kernel inside ONNX Runtime: Numba's machine code behind its C interface."""

from .register import register_kernels

__all__ = ["register_kernels"]
