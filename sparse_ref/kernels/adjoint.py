"""What the gradient kernels take besides the forward's arguments, and how they share the work."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sparse_ref._arrays import Ints

from ._jit import inner, kernel
from .arguments import LOG2E
from .vectors import claim

TASK = 64  # rows of `means` claimed together


class Adjoint(NamedTuple):
    """What is known of the output, and where gradients are added up."""

    dout: NDArray[Any]  # flat
    dout_strides: Ints
    lse: NDArray[Any]  # (b, h, m), in units of log 2
    mean: NDArray[Any]  # (b, h, m): what is taken from dout . v
    scale: float
    dq: NDArray[Any]  # (b, h, m, d)
    dk: NDArray[Any]  # (b, g, n, d)
    dv: NDArray[Any]  # (b, g, n, e)
    dbias: NDArray[Any]  # flat; empty: not wanted
    dbias_strides: Ints  # of batch, head, query, slot, segment; of a table (.., .., 0, 1, ..)


@kernel
def means(worker, counters, x, dout, strides, dlse, lse, mean):
    """Mean <- dout . out - dlse, lse <- x.lse in units of log 2.

    Where a row of dout is not finite, so is dout . v for every key that it sees, and the gradient
    of every score there is NaN.
    """
    b, h, m, e = x.out.shape
    parts, most = (m + TASK - 1) // TASK, np.finfo(x.out.dtype).max
    while True:
        task = claim(counters, worker)
        if task >= b * h * parts:
            break
        batch, head, part = task // (h * parts), task // parts % h, task % parts
        for i in range(part * TASK, min((part + 1) * TASK, m)):
            at = batch * strides[0] + head * strides[1] + i * strides[2]
            up, out = dout[at : at + e], x.out[batch, head, i]
            total, fine = x.out.dtype.type(0), True
            for c in range(e):
                total += up[c] * out[c]
                fine &= abs(up[c]) <= most
            mean[batch, head, i] = (total if fine else np.nan) - dlse[batch, head, i]
            lse[batch, head, i] = x.lse[batch, head, i] * x.out.dtype.type(LOG2E)


@inner
def add_to_bias(how, y, batch, head, segment, i, slot, distance, change):
    """Add a change of the score of query i and the key in `slot` to the bias's gradient."""
    step = y.dbias_strides
    place = batch * step[0] + head * step[1] + segment * step[4]
    if how.bias_left >= 0:
        place += min(max(how.bias_left + distance, 0), how.bias_width - 1)
    else:
        place += i * step[2] + slot * step[3]
    y.dbias[place] += change


def flipped(
    indptr: Ints, indices: NDArray[np.int32], columns: int
) -> tuple[Ints, NDArray[np.int32], Ints]:
    """CSR layouts that stand one after another, by columns: indptr, rows, and where each was."""
    rows = indptr.shape[1] - 1
    starts, places, lists = [], [], []
    for one in indptr:
        cut = slice(one[0], one[-1])
        place = np.arange(one[0], one[-1])
        csr = sparse.csr_array((place, indices[cut], one - one[0]), shape=(rows, columns))
        csc = csr.tocsc()
        starts.append(csc.indptr.astype(np.int64) + one[0])
        places.append(csc.data)
        lists.append(csc.indices.astype(np.int32))
    return np.stack(starts), np.concatenate(lists), np.concatenate(places)
