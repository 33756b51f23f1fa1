"""What ONNX Runtime calls: the operator as its C interface has it, one for each element type."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import (
    CFUNCTYPE,
    POINTER,
    byref,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)
from functools import cache
from typing import Any

import numpy as np
from numba import cfunc, types

from exporters.onnx.schema import DOMAIN, OP

from . import abi
from .calls import call
from .checks import SENTENCES
from .compute import functions
from .job import BFLOAT16, DOUBLE, FLOAT, FLOAT16, MESSAGES, NODE, numbers, record

INT32, UINT8 = 6, 2  # element types, as FLOAT and the others
TYPES = (FLOAT, DOUBLE, FLOAT16, BFLOAT16)
KEPT: list[Any] = []  # ONNX Runtime may call these until the process ends
NODES: list[Any] = []
SENTENCE = [c_char_p(f"{DOMAIN}.{OP}: {text}".encode()) for text in SENTENCES]
assert len(SENTENCES) <= MESSAGES


@cfunc(types.intp(types.intp, types.intp))
def compute(node, context):  # type: ignore[no-untyped-def]
    """Go on to the function of the node's element type."""
    return call(record(node, NODE).compute, (node, context))  # type: ignore[call-arg]


@cfunc(types.void(types.intp))
def destroy(node):  # type: ignore[no-untyped-def]
    """A session ends, perhaps with the interpreter: no Python here."""
    one = record(node, NODE)
    api = numbers(one.api, 300, np.int64)
    call(api[abi.RELEASE_ALLOCATOR], (one.allocator,))  # type: ignore[call-arg]
    one.used = 0


@cache
def compiled(kind: int) -> tuple[Any, Any]:
    """The functions of one element type, compiled when the first node of that type is made."""
    found = functions(np.float64 if kind == DOUBLE else np.float32)
    KEPT.append(found)
    return found


def new_node(kind: int, api: int, info: int) -> int:
    """The address of a new node: its attributes, its allocator, its functions."""
    free = next((one for one in NODES if not one[0]["used"]), None)
    if free is None:
        free = np.zeros(1, NODE)
        NODES.append(free)
    node, (entry, task) = free[0], compiled(kind)
    node["used"], node["api"], node["type"] = 1, api, kind
    node["compute"], node["task"] = entry.address, task.address
    node["workers"] = os.cpu_count() or 1
    node["messages"][: len(SENTENCE)] = [ctypes.cast(x, c_void_p).value for x in SENTENCE]
    for name, field in (("q_block_size", "bq"), ("k_block_size", "bk")):
        whole = c_int64()
        get = abi.function(api, abi.ATTRIBUTE_INT, c_void_p, c_char_p, POINTER(c_int64))
        _fine(name, get(info, name.encode(), byref(whole)))
        node[field] = whole.value
    for name in ("scale", "softcap"):
        real = c_float()
        get = abi.function(api, abi.ATTRIBUTE_FLOAT, c_void_p, c_char_p, POINTER(c_float))
        _fine(name, get(info, name.encode(), byref(real)))
        node[name] = real.value
    if node["bq"] < 1 or node["bk"] < 1 or not node["scale"] > 0 or not node["softcap"] >= 0:
        raise ValueError("block sizes must be >= 1, scale > 0 and softcap >= 0")
    allocator = c_void_p()
    get = abi.function(api, abi.KERNEL_ALLOCATOR, c_void_p, c_int, POINTER(c_void_p))
    _fine("allocator", get(info, 0, byref(allocator)))
    node["allocator"] = allocator.value
    return int(free.ctypes.data)


def _fine(name: str, status: int | None) -> None:
    if status:
        raise ValueError(f"{name} must be given")


def _create(kind: int) -> Callable[..., Any]:
    def create(op: int, api: int, info: int, out: Any) -> int | None:
        try:
            out[0] = new_node(kind, api, info)
        except Exception as error:
            KEPT.append(text := c_char_p(f"{DOMAIN}.{OP}: {error}".encode()))
            status = abi.function(api, abi.CREATE_STATUS, c_int, c_char_p)
            return status(abi.INVALID_ARGUMENT, text)  # type: ignore[no-any-return]
        return None

    return create


def custom_op(kind: int) -> Any:
    """The operator for one element type."""
    into = (kind, kind, kind, INT32, INT32, INT32, UINT8, INT32, kind)
    sums = DOUBLE if kind == DOUBLE else FLOAT
    name = c_char_p(OP.encode())
    at: Any = ctypes.cast(name, c_void_p).value
    whole, size = CFUNCTYPE(c_int32, c_void_p, c_size_t), CFUNCTYPE(c_size_t, c_void_p)
    callbacks = {
        "CreateKernelV2": CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_void_p))(
            _create(kind)
        ),
        "GetName": CFUNCTYPE(c_void_p, c_void_p)(lambda op: at),
        "GetExecutionProviderType": CFUNCTYPE(c_void_p, c_void_p)(lambda op: None),
        "GetInputTypeCount": size(lambda op: len(into)),
        "GetInputType": whole(lambda op, i: into[i]),
        "GetOutputTypeCount": size(lambda op: 2),
        "GetOutputType": whole(lambda op, i: (kind, sums)[i]),
        "GetInputCharacteristic": whole(lambda op, i: 0),  # required
        "GetOutputCharacteristic": whole(lambda op, i: i),  # required, optional
        "GetInputMemoryType": whole(lambda op, i: 0),
    }
    op = abi.CustomOp(version=abi.VERSION)
    for field, callback in callbacks.items():
        setattr(op, field, ctypes.cast(callback, c_void_p).value)
    op.KernelComputeV2, op.KernelDestroy = compute.address, destroy.address
    KEPT.extend([op, name, callbacks])
    return op


@cache
def register_address() -> int:
    """The address of the function that the library's one export leads to."""
    ops = [custom_op(kind) for kind in TYPES]

    def register(options: int, base: int) -> int | None:
        api = ctypes.cast(base, POINTER(abi.ApiBase)).contents.GetApi(abi.VERSION)
        domain = c_void_p()
        new = abi.function(api, abi.CREATE_CUSTOM_OP_DOMAIN, c_char_p, POINTER(c_void_p))
        status = new(DOMAIN.encode(), byref(domain))
        add = abi.function(api, abi.CUSTOM_OP_DOMAIN_ADD, c_void_p, c_void_p)
        for op in ops:
            status = status or add(domain, ctypes.addressof(op))
        put = abi.function(api, abi.ADD_CUSTOM_OP_DOMAIN, c_void_p, c_void_p)
        return status or put(options, domain)  # type: ignore[no-any-return]

    callback = CFUNCTYPE(c_void_p, c_void_p, c_void_p)(register)
    KEPT.append(callback)
    address = ctypes.cast(callback, c_void_p).value
    assert address is not None
    return address
