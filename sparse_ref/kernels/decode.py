"""Few queries, many keys: the decode kernel.

The keys are split in chunks, whatever the number of workers, and a chunk's part of the softmax (its
maximum, its sum, its share of the output) goes to memory; the parts are merged in the order of
their keys, so the bits depend on nothing but the problem. A task is a chunk of one key/value head:
keys and values are read once for all queries of all heads that share them.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparse_ref.heads import Problem
from sparse_ref.patterns import Pattern
from sparse_ref.relative_bias import RelativeBias

from ._jit import kernel, owner
from .arguments import Scores, Slots, Tensors
from .chunks import Scratch, again, part
from .lists import CHUNK, Layout, layout, load_keys
from .threads import run
from .vectors import claim, width

LN2 = math.log(2)
MOST = 8  # queries: with 16 a tile has no empty lanes, and takes 0.65 of the time (AVX2)
ROWS = 32  # queries of all heads of a group that are taken together


class Parts(NamedTuple):
    """What the chunks leave to be merged."""

    acc: NDArray[Any]  # (b, h, m, chunks, e)
    peak: NDArray[Any]  # (b, h, m, chunks), in units of log 2
    total: NDArray[Any]
    spoilt: NDArray[np.bool_]  # (b, g, chunks): whether a sum is not finite


def suits(q_len: int, kv_len: int) -> bool:
    """Whether there are so few queries and so many keys that this is the kernel."""
    return 0 < q_len <= MOST and kv_len >= CHUNK


def of_problem(given: Problem) -> tuple[Layout, Slots]:
    """The layout of a whole problem, and where its keys are."""
    b, h, g, n = *given.q.shape[:2], *given.k.shape[1:3]
    rows = [_heads(given, batch, h) for batch in range(b)]
    far = given.alibi_slopes is not None or isinstance(given.bias, RelativeBias)
    mine, none = layout(rows, given.frames, g, far=far), np.zeros(b, dtype=np.int64)
    return mine, Slots(np.arange(b), none, none + n, mine.position[0], int(mine.q_start[0]))


def _heads(given: Problem, batch: int, h: int) -> list[Any]:
    """What each head of a batch row sees: a pattern, or a CSR array of a selection."""
    if isinstance(given.pattern, Pattern):
        one = given.pattern.for_batch(batch)
        return [one.at(head) for head in range(h)]
    return [given.head(batch, head).csr for head in range(h)]


def nbytes(b: int, h: int, m: int, n: int, e: int, itemsize: int) -> int:
    """The memory that `attend` takes."""
    return b * h * m * -(-n // CHUNK) * (e + 2) * itemsize


def attend(x: Tensors, layout: Layout, how: Scores, slots: Slots, *, work: float) -> None:
    """Compute all heads of the batch rows of `slots`; `work` is in multiply-adds."""
    h, g, m, n, _, e = (int(size) for size in x.sizes)
    b, count, kind = len(slots.batch), -(-n // CHUNK), x.out.dtype
    acc, peak = np.empty((b, h, m, count, e), kind), np.empty((b, h, m, count), kind)
    parts = Parts(acc, peak, np.empty_like(peak), np.zeros((b, g, count), dtype=bool))
    run(first_pass, x, layout, how, slots, parts, work=work)
    if parts.spoilt.any():
        run(second_pass, x, layout, how, slots, parts, work=work)
    run(merge, x, how, slots, parts, work=parts.acc.size)


@owner
def scratch(x):
    """What a worker needs."""
    d, e, w, kind = x.sizes[4], x.sizes[5], width(x.q), x.out.dtype
    rows = min((x.sizes[0] // x.sizes[1] * x.sizes[2] + 3) // 4 * 4, ROWS)
    return Scratch(
        np.empty(CHUNK, np.int64), np.zeros(rows * d, kind), np.zeros(rows * CHUNK, kind),
        np.empty(rows * e, kind), np.empty(w, kind), np.empty(w, kind), np.empty(w, kind),
    )  # fmt: skip


@kernel
def first_pass(worker, counters, x, layout, how, slots, parts):
    """Compute parts until none is left."""
    work, (b, g, count) = scratch(x), parts.spoilt.shape
    rows = x.sizes[0] // g * x.sizes[2]
    while True:
        task = claim(counters, worker)
        if task >= b * g * count:
            break
        at, group, chunk = task // (g * count), task // count % g, task % count
        seen = load_keys(layout, slots, work.keys, at, group, chunk)
        for first in range(0, rows, ROWS):
            some = min(ROWS, rows - first)
            part(x, layout, how, slots, parts, work, at, group, chunk, seen, first, some)


@kernel
def second_pass(worker, counters, x, layout, how, slots, parts):
    """Compute the parts that are spoilt again."""
    work, (b, g, count) = scratch(x), parts.spoilt.shape
    rows = x.sizes[0] // g * x.sizes[2]
    while True:
        task = claim(counters, worker)
        if task >= b * g * count:
            break
        at, group, chunk = task // (g * count), task // count % g, task % count
        if parts.spoilt[at, group, chunk]:
            seen = load_keys(layout, slots, work.keys, at, group, chunk)
            for first in range(0, rows, ROWS):
                some = min(ROWS, rows - first)
                again(x, layout, how, slots, parts, work, at, group, chunk, seen, first, some)


@kernel
def merge(worker, counters, x, how, slots, parts):
    """Join the parts of each row, in the order of their keys, and the sink."""
    h, m, count, kind = x.sizes[0], x.sizes[2], parts.peak.shape[3], x.out.dtype
    while True:
        task = claim(counters, worker)
        if task >= len(slots.batch) * h * m:
            break
        at, head, i = task // (h * m), task // m % h, task % m
        batch, sink = slots.batch[at], kind.type(how.sinks[head])
        peaks, totals, peak = parts.peak[at, head, i], parts.total[at, head, i], sink
        for chunk in range(count):
            peak = max(peak, peaks[chunk])
        shift = kind.type(0) if peak == -np.inf else peak
        total, out = kind.type(2 ** (sink - shift)), x.out[batch, head, i]
        out[:] = 0
        for chunk in range(count):
            if totals[chunk] != 0:
                factor = kind.type(2 ** (peaks[chunk] - shift))
                total += factor * totals[chunk]
                for c in range(len(out)):
                    out[c] += factor * parts.acc[at, head, i, chunk, c]
        share = total if total == 0 else 1 / total
        for c in range(len(out)):
            out[c] *= share
        x.lse[batch, head, i] = (peak + np.log2(total)) * LN2
