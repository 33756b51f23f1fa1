"""What one worker of the tile kernel needs while it computes a block of queries."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from sparse_ref._arrays import Ints

from ._jit import inner, owner


class Scratch(NamedTuple):
    """Memory for a block of queries, one panel after another; lanes is panels * width."""

    q: NDArray[Any]  # (panels, d, width)
    s: NDArray[Any]  # (bk + 1, width)
    acc: NDArray[Any]  # (panels, e, width)
    m: NDArray[Any]  # (lanes,)
    l: NDArray[Any]  # noqa: E741
    shrink: NDArray[Any]
    k: NDArray[Any]  # (bk, d): keys that lie scattered,
    v: NDArray[Any]  # (bk, e): and their values
    key: Ints  # (bk,): which keys they are, -1 none
    rows: NDArray[Any]  # (lanes, d or e): queries or results, before or after they are lanes
    clean: NDArray[Any]  # (bk, e): a block of V without its non-finite entries
    poison: NDArray[Any]  # (panels, e, width): what they add


@inner
def scratch_size(panels, bk, near, d, e, w):
    """How many numbers a scratch holds, but for its `key`."""
    lanes = panels * w
    return lanes * (d + 2 * e + 3 + max(d, e)) + (bk + 1) * w + near * (d + e) + bk * e


@owner
def scratch(flat, key, panels, bk, near, d, e, w):
    """A scratch in memory that is given; `near` is bk where keys are gathered block by block."""
    lanes = panels * w
    q, to_s = lanes * d, lanes * d + (bk + 1) * w
    acc = to_s + lanes * e
    m, sums, shrink = acc + lanes, acc + 2 * lanes, acc + 3 * lanes
    k = shrink + near * d
    v = k + near * e
    rows = v + lanes * max(d, e)
    clean = rows + bk * e
    poison = clean + lanes * e
    flat[clean:poison] = 0
    return Scratch(
        flat[:q], flat[q:to_s], flat[to_s:acc], flat[acc:m], flat[m:sums], flat[sums:shrink],
        flat[shrink:k], flat[k:v], key, flat[v:rows], flat[rows:clean], flat[clean:poison],
    )  # fmt: skip
