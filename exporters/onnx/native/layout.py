"""The memory of a job: where everything lies, and the operator's lists as the kernel reads them."""

# mypy: allow-untyped-defs, allow-untyped-calls
# mypy: disable-error-code="call-arg,attr-defined,var-annotated"
from __future__ import annotations

import numpy as np
from numba import carray

from sparse_ref.kernels.arguments import LOG2E
from sparse_ref.kernels.halves import from_float16

from ._jit import kernel
from .calls import pointer
from .checks import COUNT, IDS, INDICES, LENGTH, MASKS, SINKS
from .job import DOUBLE, FLOAT, FLOAT16, numbers

LINE = 64  # bytes: everything starts on a cache line


@kernel
def taken(end, size):
    """Where the next thing starts, after one of `size` bytes."""
    return (end + size + LINE - 1) // LINE * LINE


@kernel
def memory(job, base, w, itemsize, scratch, half):
    """Give everything its address, from `base` on; the bytes that takes."""
    b, h, g, m, n, d, e = job.b, job.h, job.g, job.m, job.n, job.d, job.e
    end = taken(base, 0)
    job.sinks, end = end, taken(end, 8 * h)
    job.lengths, end = end, taken(end, 8 * b)
    job.batch, end = end, taken(end, 8 * b)
    job.zeros, end = end, taken(end, 8 * max(b, 4))
    job.strides, end = end, taken(end, 8 * 17)
    job.heads, end = end, taken(end, 8 * h)
    job.layout_of, end = end, taken(end, 8 * h)
    job.logs, end = end, taken(end, 8 * 256)
    job.turn, end = end, taken(end, 8 * job.rows)
    job.indptr, end = end, taken(end, 8 * job.layouts * (job.rows + 1))
    job.indices, end = end, taken(end, 4 * job.entries)
    job.ids, end = end, taken(end, 4 * job.entries)
    job.masks, end = end, taken(end, job.tiles * job.panels * job.bk * w)
    job.spans, end = end, taken(end, 16 * job.tiles * job.panels)
    job.counted, end = end, taken(end, job.tiles)
    job.finite, end = end, taken(end, b * g * job.columns)
    job.counters, end = end, taken(end, 24 * job.workers)
    job.work, end = end, taken(end, scratch * job.workers)
    if job.own:  # nobody asked for the log-sum-exp
        job.lse, end = end, taken(end, itemsize * b * h * m)
    if half:
        job.q, end = end, taken(end, itemsize * b * h * m * d)
        job.k, end = end, taken(end, itemsize * b * g * n * d)
        job.v, end = end, taken(end, itemsize * b * g * n * e)
        job.out, end = end, taken(end, itemsize * b * h * m * e)
    else:
        job.q, job.k, job.v, job.out = job.raw_q, job.raw_k, job.raw_v, job.raw_out
    return end - base


@kernel
def lay(job, tensors, node, w):
    """Fill in what the workers read."""
    b, h, n = job.b, job.h, job.n
    zeros, batch = numbers(job.zeros, max(b, 4), np.int64), numbers(job.batch, b, np.int64)
    zeros[:] = 0
    lengths = numbers(job.lengths, b, np.int64)
    given = numbers(tensors[LENGTH].data, tensors[LENGTH].shape[0], np.int32)
    for i in range(b):
        batch[i], lengths[i] = i, max(min(given[i % len(given)], n), 0)
    lay_strides(job)
    heads, layout_of = numbers(job.heads, h, np.int64), numbers(job.layout_of, h, np.int64)
    listing = tensors[INDICES].shape[1]
    for head in range(h):
        heads[head], layout_of[head] = head, head % listing
    turn = numbers(job.turn, job.rows, np.int64)
    for row in range(job.rows):
        turn[row] = row
    finite = numbers(job.finite, b * job.g * job.columns, np.uint8)
    finite[:] = 0
    lay_sinks(job, tensors[SINKS].data, tensors[SINKS].shape[0])
    lay_lists(job, tensors)
    lay_tiles(job, tensors[MASKS].data, w)
    job.factor, job.softcap = node.scale * LOG2E, 0.0
    if node.softcap > 0:
        job.factor, job.softcap = 2 * job.factor / node.softcap, node.softcap * LOG2E


@kernel
def lay_strides(job):
    """Strides of q, k and v, the sizes, and the block, as the kernels take them."""
    to = numbers(job.strides, 17, np.int64)
    for i, (heads, length, size) in enumerate((
        (job.h, job.m, job.d), (job.g, job.n, job.d), (job.g, job.n, job.e),
    )):  # fmt: skip
        to[3 * i], to[3 * i + 1], to[3 * i + 2] = heads * length * size, length * size, size
    to[9], to[10], to[11], to[12], to[13], to[14] = job.h, job.g, job.m, job.n, job.d, job.e
    to[15], to[16] = job.bq, job.bk


@kernel
def lay_sinks(job, data, size):
    """The sinks in float64, in units of log 2."""
    sinks = numbers(job.sinks, job.h, np.float64)
    for head in range(job.h):
        at = head % size
        if job.type == FLOAT:
            sinks[head] = numbers(data, size, np.float32)[at]
        elif job.type == DOUBLE:
            sinks[head] = numbers(data, size, np.float64)[at]
        else:
            bits = numbers(data, size, np.uint16)[at]
            wide = from_float16(bits) if job.type == FLOAT16 else np.uint32(bits) << 16
            sinks[head] = np.uint32(wide).view(np.float32)
        sinks[head] *= LOG2E


@kernel
def lay_lists(job, tensors):
    """The lists without their padding."""
    lists, most = job.layouts * job.rows, tensors[INDICES].shape[3]
    count = numbers(tensors[COUNT].data, lists, np.int32)
    given = numbers(tensors[INDICES].data, lists * most, np.int32)
    given_ids = numbers(tensors[IDS].data, lists * most, np.int32)
    indptr = carray(pointer(job.indptr), (job.layouts, job.rows + 1), np.int64)
    indices, ids = (
        numbers(job.indices, job.entries, np.int32),
        numbers(job.ids, job.entries, np.int32),
    )
    end = 0
    for layout in range(job.layouts):
        indptr[layout, 0] = end
        for row in range(job.rows):
            i = layout * job.rows + row
            for j in range(count[i]):
                indices[end], ids[end] = given[i * most + j], given_ids[i * most + j] + job.shift
                end += 1
            indptr[layout, row + 1] = end


@kernel
def lay_tiles(job, data, w):
    """The tiles with queries in the lanes, and which keys of each any lane sees."""
    bq, bk, panels = job.bq, job.bk, job.panels
    given = carray(pointer(data), (job.tiles - job.shift, bq, bk), np.uint8)
    masks = carray(pointer(job.masks), (job.tiles, panels, bk, w), np.uint8)
    spans = carray(pointer(job.spans), (job.tiles, panels, 2), np.int64)
    counted = numbers(job.counted, job.tiles, np.uint8)
    counted[0], spans[0, :, 0], spans[0, :, 1] = 0, 0, bk  # the first is full, its mask not read
    filled = min(panels, (job.m + w - 1) // w)  # a step of decoding has a query or few
    for tile in range(1, job.tiles):
        counted[tile] = 0
        for panel in range(filled, panels):
            spans[tile, panel, 0] = spans[tile, panel, 1] = 0
        for panel in range(filled):
            first, last = bk, 0
            for key in range(bk):
                for lane in range(w):
                    query = panel * w + lane
                    times = given[tile - job.shift, query, key] if query < bq else 0
                    masks[tile, panel, key, lane] = times
                    if times:
                        first, last = min(first, key), max(last, key + 1)
                    if times > 1:
                        counted[tile] = 1
            spans[tile, panel, 0], spans[tile, panel, 1] = min(first, last), last
    lay_logs(job, counted)


@kernel
def lay_logs(job, counted):
    """What multiplicities add to scores, if there are any."""
    several = False
    for tile in range(job.tiles):
        several = several or counted[tile] != 0
    if several:
        logs = numbers(job.logs, 256, np.float64)
        for times in range(256):
            logs[times] = np.log2(max(times, 1))
