"""What a pattern costs: pairs, blocks, multiplications, bytes of keys and values, layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import sparse_ref as sr

FARTHEST = 2048  # tokens whose reach is computed: it takes a matrix of them
LISTED = 2**24  # pairs whose rows are counted
HALF = 2  # bytes of float16 and bfloat16, in which caches are kept


@dataclass(frozen=True)
class Statistics:
    """Over all heads; FLOPs are those of the two products, 2 for a multiply-add."""

    q_len: int
    kv_len: int
    heads: int
    kv_heads: int
    head_dim: int
    nnz: int
    density: float
    fewest: int | None  # keys of a query
    most: int | None
    block: int
    blocks: int
    full_blocks: int
    block_share: float
    fill: float
    flops: int
    dense_flops: int
    block_flops: int
    cache_bytes: int
    step_bytes: int  # what the last query reads of it
    reach: int | None  # layers until all is connected; 0 where there is nothing to connect
    reachable: bool | None  # None: not computed

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Names and values, for people."""
        yield "pairs", f"{self.nnz:,} of {self.heads * self.q_len * self.kv_len:,}"
        yield "density", f"{100 * self.density:.4g} %"
        if self.fewest is not None:
            fewest, most = f"{self.fewest:,}", f"{self.most:,}"
            span = fewest if fewest == most else f"{fewest} to {most}"
            yield "keys of a query", f"{span}{'' if self.fewest else ' (some see nothing)'}"
        share = self.flops / self.dense_flops if self.dense_flops else 0.0
        sizes = f"{self.heads} head{'s' * (self.heads > 1)} of {self.head_dim}"
        yield f"FLOPs, {sizes}", f"{_large(self.flops)} ({100 * share:.3g} % of full attention's)"
        if self.q_len > self.block or self.kv_len > self.block:
            some = f"{self.blocks:,} touched ({100 * self.block_share:.3g} %)"
            yield f"blocks of {self.block}", f"{some}, {self.full_blocks:,} full"
            yield "  filled", f"{100 * self.fill:.4g} %: FLOPs by blocks {_large(self.block_flops)}"
        read = f"{_bytes(self.step_bytes)} read by the last query"
        yield "K and V in 16 bit", f"{_bytes(self.cache_bytes)} kept, {read}"
        yield "reach", self._reach()

    def _reach(self) -> str:
        if self.reachable is None:
            return f"not computed: needs as many queries as keys, at most {FARTHEST:,}"
        if not self.reachable:
            return "never: no number of layers connects all tokens"
        words = "layer connects" if self.reach == 1 else "layers connect"
        return f"{self.reach} {words} all tokens"


def statistics(
    pattern: sr.Pattern,
    q_len: int,
    kv_len: int,
    heads: int,
    kv_heads: int,
    *,
    head_dim: int,
    block: int,
) -> Statistics:
    """The statistics of attention over a pattern; no mask is built."""
    stored = sr.to_blocks(pattern, q_len, kv_len, block_size=block, heads=heads)
    per_layout = np.diff(stored.indptr[:, [0, -1]], axis=1)[:, 0]
    full = np.array([stored.full[row[0] : row[-1]].sum() for row in stored.indptr])
    blocks = int(per_layout[stored.head_layout].sum())
    grid = heads * -(-q_len // block) * -(-kv_len // block)
    rows = _row_lengths(pattern, stored) if 0 < stored.nnz <= LISTED or not stored.nnz else None
    layers, reachable = _reach_of(pattern, q_len, kv_len)
    each = 4 * head_dim  # q . k and p v
    row_bytes = 2 * head_dim * HALF
    return Statistics(
        q_len, kv_len, heads, kv_heads, head_dim,
        nnz=stored.nnz, density=stored.density,
        fewest=None if rows is None else int(rows.min(initial=kv_len)),
        most=None if rows is None else int(rows.max(initial=0)),
        block=block, blocks=blocks, full_blocks=int(full[stored.head_layout].sum()),
        block_share=blocks / grid if grid else 0.0, fill=stored.fill,
        flops=each * stored.nnz, dense_flops=each * heads * q_len * kv_len,
        block_flops=each * blocks * block * block,
        cache_bytes=kv_heads * kv_len * row_bytes,
        step_bytes=_last_keys(pattern, kv_len, heads, kv_heads) * row_bytes if q_len else 0,
        reach=layers, reachable=reachable,
    )  # fmt: skip


def _row_lengths(pattern: sr.Pattern, stored: sr.Blocks) -> np.ndarray[Any, Any]:
    """How many distinct keys the queries of each distinct head see."""
    _, first = np.unique(stored.head_layout, return_index=True)
    m, n = stored.q_len, stored.kv_len
    lengths = [np.diff(sr.to_csr(pattern, m, n, head=int(head)).indptr) for head in first]
    return np.concatenate(lengths)


def _last_keys(pattern: sr.Pattern, kv_len: int, heads: int, kv_heads: int) -> int:
    """How many keys the last query reads, over all key/value heads; a group reads a key once."""
    if not kv_len:
        return 0
    seen = pattern.mask(1, kv_len, heads=heads).reshape(kv_heads, -1, kv_len)
    return int(seen.any(axis=1).sum())


def _reach_of(pattern: sr.Pattern, q_len: int, kv_len: int) -> tuple[int | None, bool | None]:
    if q_len != kv_len or q_len > FARTHEST:
        return None, None
    layers = sr.reach(pattern, q_len)
    return layers, layers is not None


def _large(number: int) -> str:
    """1,234,567 as 1.23 M."""
    value, unit = float(number), ""
    for unit in ("", " k", " M", " G", " T", " P", " E"):  # noqa: B007 - the last one stays
        if value < 1000:
            break
        value /= 1000
    return f"{value:.3g}{unit}"


def _bytes(number: int) -> str:
    value, unit = float(number), ""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):  # noqa: B007 - as above
        if value < 1024:
            break
        value /= 1024
    return f"{value:.4g} {unit}"
