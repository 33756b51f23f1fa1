"""The operator's compute function: what ONNX Runtime calls, without Python and without its lock.

Inputs are checked to the last index, memory comes from the session's allocator, workers run on the
session's threads. Whatever is wrong is answered with a status; nothing is raised.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# mypy: disable-error-code="call-arg,attr-defined,var-annotated"
from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, types

from sparse_ref.kernels.scratch import scratch_size
from sparse_ref.kernels.threads import SMALL
from sparse_ref.kernels.vectors import width

from . import abi
from ._jit import kernel
from .calls import call, pointer, words
from .checks import fault
from .job import (
    ATTEND,
    BFLOAT16,
    DOUBLE,
    FLOAT16,
    JOB,
    NARROW,
    NODE,
    TENSOR,
    WIDEN,
    numbers,
    record,
    share,
)
from .layout import lay, memory

INPUTS = 9
INPUT_API, SHAPE_API = abi.INPUT, abi.TYPE_AND_SHAPE
RANK_API, DIMENSIONS_API = abi.DIMENSION_COUNT, abi.DIMENSIONS
RELEASE_API, DATA_API = abi.RELEASE_TYPE_AND_SHAPE, abi.TENSOR_DATA
OUTPUT_API, OUTPUTS_API = abi.OUTPUT, abi.OUTPUT_COUNT
ALLOC_API, FREE_API = abi.ALLOCATOR_ALLOC, abi.ALLOCATOR_FREE
PARALLEL_API, STATUS_API = abi.PARALLEL_FOR, abi.CREATE_STATUS
WRONG = abi.INVALID_ARGUMENT
TENSOR_SIZE, JOB_SIZE = TENSOR.itemsize, JOB.itemsize
STACK = (TENSOR_SIZE * INPUTS + JOB_SIZE) // 8 + 4
WORDS = 160
assert STACK <= WORDS


@kernel
def given(api, context, i, tensor, spare):
    """Read where input i is and its shape; a status, 0 if all is well."""
    word, at = numbers(spare, 1, np.int64), record(tensor, TENSOR)
    status = call(api[INPUT_API], (context, i, spare))
    if status:
        return status
    value = word[0]
    status = call(api[SHAPE_API], (value, spare))
    if status:
        return status
    info = word[0]
    status = call(api[RANK_API], (info, spare))
    at.rank = word[0]
    if status == 0 and at.rank <= 4:
        status = call(api[DIMENSIONS_API], (info, tensor + 16, at.rank))
    call(api[RELEASE_API], (info,))
    if status == 0:
        status = call(api[DATA_API], (value, spare))
        at.data = word[0]
    return status


@kernel
def output(api, context, i, shape, rank, spare):
    """The address of a new output; 0 if there is none."""
    word = numbers(spare, 1, np.int64)
    if call(api[OUTPUT_API], (context, i, shape, rank, spare)) or word[0] == 0:
        return 0
    if call(api[DATA_API], (word[0], spare)):
        return 0
    return word[0]


@kernel
def compute(node_at, context, kind):
    """The whole of one call; a status, 0 if all is well."""
    node = record(node_at, NODE)
    api = numbers(node.api, 300, np.int64)
    stack = words(160)
    spare, job_at = stack + TENSOR_SIZE * INPUTS + JOB_SIZE, stack + TENSOR_SIZE * INPUTS
    for i in range(INPUTS):
        status = given(api, context, i, stack + i * TENSOR_SIZE, spare)
        if status:
            return status
    tensors = carray(pointer(stack), (INPUTS,), TENSOR)
    job = record(job_at, JOB)
    wrong = fault(tensors, node, job)
    if wrong:
        return call(api[STATUS_API], (WRONG, node.messages[wrong]))
    word = numbers(spare, 4, np.int64)
    shape = numbers(spare + 8, 3, np.int64)
    shape[0], shape[1], shape[2] = job.b, job.h, job.m
    dims = tensors[0].shape
    last = dims[3]
    dims[3] = job.e
    job.raw_out = output(api, context, 0, stack + 16, 4, spare)
    dims[3] = last
    outputs = call(api[OUTPUTS_API], (context, spare)) == 0 and word[0] > 1
    job.lse = output(api, context, 1, spare + 8, 3, spare) if outputs else 0
    job.own = job.lse == 0
    if job.b * job.h * job.m == 0:
        return 0
    job.workers = min(node.workers, job.b * job.h * job.rows)
    if products(job) <= SMALL:
        job.workers = 1
    w = width(numbers(job.raw_q, 0, kind))
    job.panels = (job.bq + w - 1) // w
    half = job.type in (FLOAT16, BFLOAT16)
    itemsize = 8 if job.type == DOUBLE else 4
    size = scratch_size(job.panels, job.bk, 0, job.d, job.e, w) * itemsize
    needed = memory(job, 0, w, itemsize, size, half)
    status = call(api[ALLOC_API], (node.allocator, needed, spare))
    if status:
        return status
    block = word[0]
    memory(job, block, w, itemsize, size, half)
    lay(job, tensors, node, w)
    if half:
        run(api, context, node, job_at, job, WIDEN)
    parts = tensors[3].shape[0] if job.b > 1 else 1
    for part in range(parts):
        job.first, job.count = (part, 1) if parts > 1 else (0, job.b)
        if part:
            of = numbers(job.layout_of, job.h, np.int64)
            for head in range(job.h):
                of[head] += job.layouts // parts
        run(api, context, node, job_at, job, ATTEND)
    if half:
        run(api, context, node, job_at, job, NARROW)
    return call(api[FREE_API], (node.allocator, block))


@kernel
def products(job):
    """About how many multiply-adds a job is."""
    queries, layouts = min(job.m, job.bq), max(1, job.layouts)
    return job.b * job.h / layouts * job.entries * queries * job.bk * (job.d + job.e)


@kernel
def run(api, context, node, job_at, job, phase):
    """One phase of a job on the session's threads."""
    job.phase = phase
    counters = numbers(job.counters, 3 * job.workers, np.int64)
    for i in range(3 * job.workers):
        counters[i] = i % job.workers
    if job.workers == 1:
        call(node.task, (job_at, 0))
    else:
        call(api[PARALLEL_API], (context, node.task, job.workers, 0, job_at))


def functions(kind: Any) -> tuple[Any, Any]:
    """The compute function and the worker of one element type, as C functions."""

    @cfunc(types.intp(types.intp, types.intp))
    def entry(node, context):
        return compute(node, context, kind)

    @cfunc(types.intp(types.intp, types.intp))
    def task(job, worker):
        share(record(job, JOB), worker, kind)
        return 0

    return entry, task
