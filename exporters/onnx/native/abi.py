"""What ONNX Runtime's C interface looks like from Python: no headers, no compiler.

`OrtApi` is a published table of function pointers to which releases only append, so an index never
moves; `OrtCustomOp` is a struct that starts with the version its author knew. Both are asked for as
of version 17 (ONNX Runtime 1.17), which later releases keep.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_uint32, c_void_p
from typing import Any

VERSION = 17
INVALID_ARGUMENT = 2  # an OrtErrorCode

# Indices into OrtApi.
CREATE_STATUS = 0
CREATE_CUSTOM_OP_DOMAIN, CUSTOM_OP_DOMAIN_ADD, ADD_CUSTOM_OP_DOMAIN = 26, 27, 28
TENSOR_DATA, DIMENSION_COUNT, DIMENSIONS, TYPE_AND_SHAPE = 51, 61, 62, 65
ALLOCATOR_ALLOC, ALLOCATOR_FREE = 75, 76
ATTRIBUTE_FLOAT, ATTRIBUTE_INT = 85, 86
OUTPUT_COUNT, INPUT, OUTPUT = 89, 90, 91
RELEASE_TYPE_AND_SHAPE, RELEASE_ALLOCATOR = 99, 132
PARALLEL_FOR, KERNEL_ALLOCATOR = 274, 278


class ApiBase(ctypes.Structure):
    """OrtApiBase: how a library gets at the table."""

    _fields_ = [
        ("GetApi", CFUNCTYPE(c_void_p, c_uint32)),
        ("GetVersionString", CFUNCTYPE(c_char_p)),
    ]


class CustomOp(ctypes.Structure):
    """OrtCustomOp: what a custom operator of one type is made of."""

    _fields_ = [
        ("version", c_uint32),
        *(
            (name, c_void_p)
            for name in (
                "CreateKernel", "GetName", "GetExecutionProviderType", "GetInputType",
                "GetInputTypeCount", "GetOutputType", "GetOutputTypeCount", "KernelCompute",
                "KernelDestroy", "GetInputCharacteristic", "GetOutputCharacteristic",
                "GetInputMemoryType", "GetVariadicInputMinArity", "GetVariadicInputHomogeneity",
                "GetVariadicOutputMinArity", "GetVariadicOutputHomogeneity", "CreateKernelV2",
                "KernelComputeV2", "InferOutputShapeFn", "GetStartVersion", "GetEndVersion",
                "GetMayInplace", "ReleaseMayInplace", "GetAliasMap", "ReleaseAliasMap",
            )
        ),
    ]  # fmt: skip


def function(api: int, index: int, *arguments: Any) -> Any:
    """A function of the table that answers a status (None: all is well)."""
    table = ctypes.cast(api, POINTER(c_void_p))
    return CFUNCTYPE(c_void_p, *arguments)(table[index])
