"""One call of the operator as records in memory that no Python sees."""

# mypy: allow-untyped-defs, allow-untyped-calls
# mypy: disable-error-code="call-arg,attr-defined,var-annotated"
from __future__ import annotations

import numpy as np
from numba import carray

from sparse_ref.kernels.arguments import Scores, Slots, Tensors
from sparse_ref.kernels.copies import Copies
from sparse_ref.kernels.halves import from_float16, to_float16
from sparse_ref.kernels.scratch import scratch, scratch_size
from sparse_ref.kernels.tile_layouts import Layout
from sparse_ref.kernels.tiles import attend_in
from sparse_ref.kernels.vectors import claim, width

from ._jit import kernel
from .calls import pointer

MESSAGES = 16  # what can be said of wrong inputs

# A node of a session: written when it is made, only read when it runs.
NODE = np.dtype(
    [
        *((name, "i8") for name in (
            "api", "allocator", "compute", "task", "workers", "type", "bq", "bk", "used",
        )),
        ("scale", "f8"), ("softcap", "f8"), ("messages", "i8", (MESSAGES,)),
    ]
)  # fmt: skip

# A tensor that ONNX Runtime gave: where it is, and its shape.
TENSOR = np.dtype([("data", "i8"), ("rank", "i8"), ("shape", "i8", (4,))])

# A call: sizes, and the addresses of everything its workers read and write.
JOB = np.dtype(
    [
        *((name, "i8") for name in (
            # sizes of the problem, and of its layouts
            "b", "h", "g", "m", "n", "d", "e", "bq", "bk", "rows", "columns", "tiles", "layouts",
            "entries", "panels", "workers", "type", "phase", "first", "count", "own", "shift",
            # what is read
            "q", "k", "v", "raw_q", "raw_k", "raw_v", "sinks", "lengths", "batch", "zeros",
            "indptr", "indices", "ids", "masks", "spans", "counted", "heads", "layout_of", "logs",
            "turn", "strides",
            # what is written
            "out", "raw_out", "lse", "finite", "counters", "work",
        )),
        ("factor", "f8"), ("softcap", "f8"),
    ]
)  # fmt: skip

ATTEND, WIDEN, NARROW = range(3)  # phases
FLOAT, FLOAT16, DOUBLE, BFLOAT16 = 1, 10, 11, 16  # element types of ONNX
PIECE = 2**16


@kernel
def record(address, kind):
    """The record at an address."""
    return carray(pointer(address), (1,), kind)[0]


@kernel
def numbers(address, size, kind):
    """Memory as a flat array."""
    return carray(pointer(address), (size,), kind)


@kernel
def share(job, worker, kind):
    """One worker's share of the phase that a job is in."""
    if job.phase == ATTEND:
        attend(job, worker, kind)
    elif job.phase == WIDEN:
        sizes = (job.b * job.h * job.m * job.d, job.b * job.g * job.n * job.d)
        widen(job, worker, job.raw_q, job.q, sizes[0], 0)
        widen(job, worker, job.raw_k, job.k, sizes[1], 1)
        widen(job, worker, job.raw_v, job.v, job.b * job.g * job.n * job.e, 2)
    else:
        narrow(job, worker, job.b * job.h * job.m * job.e)


@kernel
def widen(job, worker, source, target, size, which):
    """Half numbers to float32, a piece at a time."""
    x, y = numbers(source, size, np.uint16), numbers(target, size, np.uint32)
    counters = numbers(job.counters + 8 * which * job.workers, job.workers, np.int64)
    while True:
        first = claim(counters, worker) * PIECE
        if first >= size:
            break
        for i in range(first, min(first + PIECE, size)):
            y[i] = from_float16(x[i]) if job.type == FLOAT16 else np.uint32(x[i]) << 16


@kernel
def narrow(job, worker, size):
    """float32 to half numbers, each the nearest, ties to even."""
    x, y = numbers(job.out, size, np.uint32), numbers(job.raw_out, size, np.uint16)
    counters = numbers(job.counters, job.workers, np.int64)
    while True:
        first = claim(counters, worker) * PIECE
        if first >= size:
            break
        for i in range(first, min(first + PIECE, size)):
            y[i] = to_float16(x[i]) if job.type == FLOAT16 else to_bfloat16(x[i])


@kernel
def to_bfloat16(x):
    """One number's bits; a NaN stays one."""
    if x & 0x7FFFFFFF > 0x7F800000:
        return np.uint16(x >> 16 | 0x40)
    return np.uint16((np.int64(x) + 0x7FFF + (x >> 16 & 1)) >> 16)


@kernel
def attend(job, worker, kind):
    """The attention of a job by the tile kernel."""
    b, h, g, m, n, d, e = job.b, job.h, job.g, job.m, job.n, job.d, job.e
    q, panels, bk = numbers(job.q, b * h * m * d, kind), job.panels, job.bk
    w, none = width(q), numbers(job.zeros, 0, np.int64)
    floats, strides = numbers(job.zeros, 0, np.float64), numbers(job.strides, 17, np.int64)
    x = Tensors(
        q, numbers(job.k, b * g * n * d, kind), numbers(job.v, b * g * n * e, kind),
        strides[0:3], strides[3:6], strides[6:9],
        carray(pointer(job.out), (b, h, m, e), kind), carray(pointer(job.lse), (b, h, m), kind),
        strides[9:15],
    )  # fmt: skip
    how = Scores(
        job.factor, job.softcap, floats, numbers(job.sinks, h, np.float64), floats,
        numbers(job.zeros, 4, np.int64), np.int64(-1), np.int64(1),
    )  # fmt: skip
    layout = Layout(
        carray(pointer(job.indptr), (job.layouts, job.rows + 1), np.int64),
        numbers(job.indices, job.entries, np.int32), numbers(job.ids, job.entries, np.int32),
        strides[15:17], numbers(job.masks, job.tiles * panels * bk * w, np.uint8),
        carray(pointer(job.spans), (job.tiles, panels, 2), np.int64),
        numbers(job.counted, job.tiles, np.bool_), numbers(job.heads, h, np.int64),
        numbers(job.layout_of, h, np.int64), numbers(job.logs, 256, np.float64), none, none,
        numbers(job.turn, job.rows, np.int64),
    )  # fmt: skip
    slots = Slots(
        numbers(job.batch + 8 * job.first, job.count, np.int64),
        numbers(job.zeros, b, np.int64),
        numbers(job.lengths + 8 * job.first, job.count, np.int64), none, np.int64(0),
    )  # fmt: skip
    finite = carray(pointer(job.finite), (b, g, job.columns), np.uint8)
    size = scratch_size(panels, bk, 0, d, e, w)
    flat = numbers(job.work + worker * size * q.itemsize, size, kind)
    work = scratch(flat, none, panels, bk, 0, d, e, w)
    counters, copies = numbers(job.counters, job.workers, np.int64), Copies(flat[:0], flat[:0])
    attend_in(work, worker, counters, x, layout, how, slots, finite, copies, True)
