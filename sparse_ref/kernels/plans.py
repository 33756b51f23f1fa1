"""Which kernel computes which heads, and the layouts they need: made once, used for many calls.

A plan depends on pattern, lengths, head sizes and type, never on batch, threads or clock, so that
the bits of a result do not either.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from scipy import sparse

from sparse_ref._arrays import Ints, integer
from sparse_ref.layouts import Blocks, to_blocks
from sparse_ref.layouts.csr import frame_csr
from sparse_ref.patterns import Pattern
from sparse_ref.patterns.dense import frame_of
from sparse_ref.patterns.pattern import checked

from . import rows, tiles
from .vectors import lanes_of

BLOCK = 64
# Time of a pair in a listed block (3.4 ns) over that of a listed pair of a row (34 ns), measured on
# dense, window and random patterns (n 4096, d 64, AVX2): below this fill rows are faster.
TILE_OVER_ROW = 0.1
DENSEST = 2**26  # entries of distinct tiles a plan may hold: past it, rows
KEPT = 32  # plans that `cached` keeps


@dataclass(frozen=True, eq=False)
class Part:
    """Some query heads, the kernel that computes them, and why that one."""

    kernel: str  # "tiles" or "rows"
    heads: tuple[int, ...]
    reason: str
    layout: Any
    pairs: int  # allowed pairs of one batch row, all heads

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.layout if isinstance(x, np.ndarray))


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """How `attention` computes a pattern: for each head a kernel and its layout.

    >>> from sparse_ref import Causal
    >>> plan(Causal(), 128, 128, heads=2, kv_heads=1, head_dim=64, dtype="float32")
    <Plan 128 x 128, heads 2:
      heads 0-1: tiles (fill 0.67, at least 0.1; 3 blocks of 64 x 64)>
    """

    pattern: Pattern
    q_len: int
    kv_len: int
    q_start: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: np.dtype[Any]
    parts: tuple[Part, ...]

    def __repr__(self) -> str:
        lines = [f"heads {_ranges(p.heads)}: {p.kernel} ({p.reason})" for p in self.parts]
        return (
            "\n  ".join([f"<Plan {self.q_len} x {self.kv_len}, heads {self.heads}:", *lines]) + ">"
        )

    @property
    def nbytes(self) -> int:
        """Memory of the layouts."""
        return sum(part.nbytes for part in self.parts)


def plan(
    pattern: Pattern,
    q_len: int,
    kv_len: int,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: Any,
    q_start: int | None = None,
) -> Plan:
    """Choose a kernel for every head of a pattern, and lay its keys out for it.

    Parameters
    ----------
    pattern : Pattern
        Of one batch row: for a `PerBatch`, plan `pattern.for_batch(i)`.
    q_len, kv_len : int >= 0
    heads, kv_heads, head_dim : int
        The shape of q and k.
    dtype : of the computation: float64, or anything narrower for float32
    q_start : int, optional
        Absolute position of the first query; default kv_len - q_len.

    Returns
    -------
    Plan, which `attention` takes for any batch of these shapes.
    """
    if checked(pattern).batches is not None:
        raise ValueError(f"pattern must be one batch row's, as for_batch(0), got {pattern!r}")
    m, n = integer("q_len", q_len), integer("kv_len", kv_len)
    h, g = integer("heads", heads, 1), integer("kv_heads", kv_heads, 1)
    d = integer("head_dim", head_dim, 1)
    start = n - m if q_start is None else integer("q_start", q_start, None)
    kind = working(dtype)
    same: OrderedDict[Pattern, list[int]] = OrderedDict()
    for head in range(h):
        same.setdefault(pattern.at(head), []).append(head)
    chosen = [_part(one, m, n, start, tuple(of), kind) for one, of in same.items()]
    return Plan(pattern, m, n, start, h, g, d, kind, tuple(chosen))


def working(*dtypes: Any) -> np.dtype[Any]:
    """What the kernels compute in: float64 if any input is, else float32."""
    return np.dtype(np.float64 if any(np.dtype(x) == np.float64 for x in dtypes) else np.float32)


_plans: OrderedDict[Any, Plan] = OrderedDict()
_lock = Lock()


def cached(pattern: Pattern, *shape: Any) -> Plan:
    """`plan` for (m, n, heads, kv_heads, head_dim, dtype, q_start); the last few are kept."""
    key = pattern, *shape
    with _lock:
        if key in _plans:
            _plans.move_to_end(key)
            return _plans[key]
    m, n, h, g, d, kind, start = shape
    new = plan(pattern, m, n, heads=h, kv_heads=g, head_dim=d, dtype=kind, q_start=start)
    with _lock:
        _plans[key] = new
        while len(_plans) > KEPT:
            _plans.popitem(last=False)
    return new


def _part(
    one: Pattern, m: int, n: int, start: int, heads: tuple[int, ...], kind: np.dtype[Any]
) -> Part:
    """Tiles where blocks are filled well enough, else rows."""
    if one.explicit:  # a list of pairs may touch many blocks, each with a tile of its own
        csr = frame_csr(one, frame_of(one, m, n, start))
        row = np.repeat(np.arange(m) // BLOCK, np.diff(csr.indptr))
        code = row * (-(-n // BLOCK)) + csr.indices // BLOCK
        blocks = len(np.unique(code))
        if csr.nnz < TILE_OVER_ROW * blocks * BLOCK**2 or blocks * BLOCK**2 > DENSEST:
            return _by_rows(csr, heads, csr.nnz / max(blocks * BLOCK**2, 1))
    blocks_ = to_blocks(one, m, n, block_size=BLOCK, q_start=start)
    if blocks_.fill < TILE_OVER_ROW and blocks_.nnz:
        return _by_rows(frame_csr(one, frame_of(one, m, n, start)), heads, blocks_.fill)
    reason = (
        f"fill {blocks_.fill:.2f}, at least {TILE_OVER_ROW}; "
        f"{len(blocks_.indices)} blocks of {BLOCK} x {BLOCK}"
    )
    layout = tile_layout(blocks_, heads, lanes_of(8 * kind.itemsize))
    return Part("tiles", heads, reason, layout, blocks_.nnz * len(heads))


def _by_rows(csr: sparse.csr_array[Any], heads: tuple[int, ...], fill: float) -> Part:
    reason = f"fill {fill:.2f}, below {TILE_OVER_ROW}; {csr.nnz} pairs"
    return Part(
        "rows", heads, reason, row_layout([csr], heads, [0] * len(heads)), csr.nnz * len(heads)
    )


def tile_layout(blocks: Blocks, heads: tuple[int, ...], lanes: int) -> tiles.Layout:
    """The blocks of one pattern, with queries in the lanes of its tiles."""
    masks = blocks.tile_masks.reshape(-1, BLOCK // lanes, lanes, BLOCK).swapaxes(2, 3)
    panels = np.asarray(masks.any(axis=3)).swapaxes(1, 2)
    first = panels.argmax(axis=1)
    last = BLOCK - panels[:, ::-1].argmax(axis=1)
    last = np.where(panels.any(axis=1), last, first)
    return tiles.Layout(
        blocks.indptr,
        blocks.indices,
        blocks.tile_ids,
        np.array(blocks.block_size),
        np.ascontiguousarray(masks).ravel(),
        np.stack([first, last], axis=2).astype(np.int64),
        np.asarray((masks > 1).any(axis=(1, 2, 3))),
        np.array(heads, dtype=np.int64),
        np.zeros(len(heads), dtype=np.int64),
        np.log2(np.maximum(np.arange(256), 1)),
    )


def row_layout(
    several: list[sparse.csr_array[Any]], heads: tuple[int, ...], layout_of: list[int]
) -> rows.Layout:
    """CSR arrays, one after another, as the row kernel reads them."""
    starts = np.cumsum([0, *(csr.nnz for csr in several)])
    indptr: Ints = np.stack(
        [csr.indptr.astype(np.int64) + s for csr, s in zip(several, starts, strict=False)]
    )
    return rows.Layout(
        indptr,
        np.concatenate([csr.indices for csr in several]).astype(np.int32),
        np.concatenate([csr.data for csr in several]).astype(np.int32),
        np.array(heads, dtype=np.int64),
        np.array(layout_of, dtype=np.int64),
        int(np.diff(indptr, axis=1).max(initial=0)),
    )


def _ranges(heads: tuple[int, ...]) -> str:
    """0, 1, 2, 5 as 0-2, 5."""
    runs: list[list[int]] = []
    for head in heads:
        if runs and runs[-1][-1] == head - 1:
            runs[-1][1:] = [head]
        else:
            runs.append([head])
    return ", ".join("-".join(map(str, run)) for run in runs)
