"""What a call of the operator must be, checked to the last index before anything is computed."""

# mypy: allow-untyped-defs, allow-untyped-calls
# mypy: disable-error-code="call-arg"
from __future__ import annotations

import numpy as np

from ._jit import kernel
from .job import numbers

QUERY, KEY, VALUE, INDICES, COUNT, IDS, MASKS, LENGTH, SINKS = range(9)
RANKS = (4, 4, 4, 4, 3, 4, 3, 1, 1)

SENTENCES = (
    "",
    "query, key, value, block_indices and tile_ids must have rank 4, block_count and tile_masks 3",
    "key and value must have the query's batch size, heads that divide the query's, and one length",
    "query and key must have one head size >= 1",
    "block_indices must be [1 or B, 1 or H, ceil(L / q_block_size), KB >= 1]",
    "block_count and tile_ids must have the shape of block_indices",
    "tile_masks must be [M >= 1, q_block_size, k_block_size]",
    "key_length must hold 1 or B lengths, sinks 1 or H numbers",
    "block_count must lie in 0..KB",
    "block_indices must lie in 0..ceil(S / k_block_size) - 1",
    "tile_ids must lie in 0..M - 1",
)


@kernel
def fault(tensors, node, job):
    """The number of the sentence that says what is wrong, 0 if nothing is; fills in the sizes."""
    for i in range(len(RANKS)):
        if tensors[i].rank != RANKS[i]:
            return 1
    q, k, v = tensors[QUERY].shape, tensors[KEY].shape, tensors[VALUE].shape
    job.type, job.bq, job.bk = node.type, node.bq, node.bk
    job.b, job.h, job.m, job.d = q[0], q[1], q[2], q[3]
    job.g, job.n, job.e = k[1], k[2], v[3]
    if k[0] != job.b or v[0] != job.b or v[1] != job.g or v[2] != job.n:
        return 2
    if job.g < 1 or job.h % job.g:
        return 2
    if k[3] != job.d or job.d < 1:
        return 3
    job.rows = (job.m + job.bq - 1) // job.bq
    job.columns = (job.n + job.bk - 1) // job.bk
    lists, count, ids = tensors[INDICES].shape, tensors[COUNT].shape, tensors[IDS].shape
    if lists[0] not in (1, job.b) or lists[1] not in (1, job.h) or lists[2] != job.rows:
        return 4
    if lists[3] < 1:
        return 4
    for axis in range(4):
        if ids[axis] != lists[axis] or (axis < 3 and count[axis] != lists[axis]):
            return 5
    masks = tensors[MASKS].shape
    if masks[0] < 1 or masks[1] != job.bq or masks[2] != job.bk:
        return 6
    job.tiles, job.layouts = masks[0], lists[0] * lists[1]
    job.raw_q, job.raw_k, job.raw_v = (
        tensors[QUERY].data, tensors[KEY].data, tensors[VALUE].data,
    )  # fmt: skip
    return entries_fault(tensors, job, lists[3])


@kernel
def entries_fault(tensors, job, most):
    """The same for what the index tensors hold; counts the entries."""
    other = np.uint8(0)
    for x in numbers(tensors[MASKS].data, job.bq * job.bk, np.uint8):
        other |= x ^ np.uint8(1)
    job.shift = 1 if other else 0  # of tile numbers: 0 is full to the kernel, another moves up
    job.tiles += job.shift
    if tensors[LENGTH].shape[0] not in (1, job.b) or tensors[SINKS].shape[0] not in (1, job.h):
        return 7
    lists = job.layouts * job.rows
    count = numbers(tensors[COUNT].data, lists, np.int32)
    indices = numbers(tensors[INDICES].data, lists * most, np.int32)
    ids = numbers(tensors[IDS].data, lists * most, np.int32)
    job.entries = 0
    for i in range(lists):
        if count[i] < 0 or count[i] > most:
            return 8
        for at in range(i * most, i * most + count[i]):
            if indices[at] < 0 or indices[at] >= job.columns:
                return 9
            if ids[at] < 0 or ids[at] >= job.tiles - job.shift:
                return 10
        job.entries += count[i]
    return 0
