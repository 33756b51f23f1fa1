"""The bias's gradient: where its sums stand, who adds to which, and how they come together.

Along the queries a sum belongs to one block of queries, which a worker owns. Where a bias is the
same for all queries (a table of distances, a bias of keys) every head of every batch row has its
own sums, in SEGMENTS, added up in the end. So no two workers add to one number, and the order is
the same for any number of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Ints
from sparse_ref.heads import Problem
from sparse_ref.relative_bias import RelativeBias

from .arguments import Slots

SEGMENTS = 16  # in which the blocks of a head are cut where a bias has no axis for queries


def shape_of_sums(given: Problem) -> tuple[int, ...]:
    """Batch, head, segment, query, and slot (or distance): 1 where sums are not kept apart."""
    (b, h), bias = given.q.shape[:2], given.bias
    if bias is None:
        return 0, 1, 1, 1, 1
    if isinstance(bias, RelativeBias):
        return b, h, SEGMENTS, 1, bias.table.shape[-1]
    own = (1,) * (3 - bias.ndim) + bias.shape
    if own[-2] == 1:
        return b, h, SEGMENTS, 1, own[-1]
    return b if math.prod(own[:-3]) != 1 else 1, own[-3], 1, own[-2], own[-1]


def strides(sums: NDArray[Any]) -> Ints:
    """In elements, of batch, head, query, slot and segment; 0 along an axis that is the same."""
    steps = np.where(np.array(sums.shape) > 1, sums.strides, 0) // sums.itemsize
    return steps[[0, 1, 3, 4, 2]].astype(np.int64)


def box(given: Problem, slots: Slots, heads: int, blocks: int) -> Ints:
    """Batch rows, heads and blocks of queries that one worker takes: no other adds there."""
    if given.bias is None:
        return np.array([1, 1, 1])
    batches, by_head, segments = shape_of_sums(given)[:3]
    return np.array([
        len(slots.batch) if batches == 1 else 1,
        heads if by_head == 1 else 1,
        max(-(-blocks // SEGMENTS), 1) if segments > 1 else 1,
    ])  # fmt: skip


def gathered_up(given: Problem, sums: NDArray[Any]) -> NDArray[Any] | None:
    """The gradient in the bias's own shape."""
    if given.bias is None:
        return None
    total = sums.sum(axis=2)
    if isinstance(given.bias, RelativeBias):
        by_head = total.sum(axis=(0, 2))
        return np.asarray(by_head if given.bias.table.ndim == 2 else by_head.sum(axis=0))
    lead = given.leading_shape
    whole = total.reshape((*(lead if len(total) != 1 else (1,) * len(lead)), *total.shape[1:]))
    own = (1,) * (whole.ndim - given.bias.ndim) + given.bias.shape
    same = tuple(i for i, size in enumerate(own) if size == 1)
    return np.asarray(whole.sum(axis=same, keepdims=True)).reshape(given.bias.shape)
