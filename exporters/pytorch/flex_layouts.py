"""The blocks that one call of FlexAttention sees, from its BlockMask and its mask_mod."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

import sparse_ref as sr

from .flex_scores import Scores, reads, refuse

BLOCK = 64  # in place of FlexAttention's one block of 2**30 where there is no BlockMask
CHUNK = 1 << 22  # positions of tiles looked at in one go


class Layout(NamedTuple):
    """The blocks of every batch row (if rows differ) and head (if heads differ)."""

    blocks: sr.Blocks  # batch rows and heads in one axis
    batches: int


class Call(NamedTuple):
    """What FlexAttention was called with."""

    shape: tuple[Any, ...]  # b, h, m, n of the queries and keys; b may be a symbol
    scale: float
    block_size: tuple[int, int]
    partial: tuple[Tensor, Tensor]  # how many, which: (b or 1, h or 1, rows), (.., columns)
    full: tuple[Tensor, Tensor] | None
    mask_mod: fx.GraphModule
    mask_buffers: tuple[Any, ...]
    scores: Scores

    def seen(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Which keys are seen: for b and h (t,), q (t, bq), k (t, bk) a bool (t, bq, bk)."""

        def one(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            seen: Tensor = self.mask_mod(b, h, q, k, *self.mask_buffers)
            return seen & self.scores.seen(b, h, q, k) if self.scores.hide else seen

        by_key = torch.vmap(one, in_dims=(None, None, None, 0))
        by_query = torch.vmap(by_key, in_dims=(None, None, 0, None))
        return torch.vmap(by_query)(b, h, q, k)

    def reads(self, argument: int) -> bool:
        """Whether masks depend on the batch row (0) or the head (1)."""
        return reads(self.mask_mod, argument) or reads(self.scores.module, 1 + argument)


def layout(call: Call) -> Layout:
    """Lists and distinct tiles of a call; all zero tiles are dropped, all one tiles are full."""
    (b, h, m, n), lists = call.shape, call.partial[0].shape
    batches = b if call.reads(0) else lists[0]
    heads = h if call.reads(1) else lists[1]
    if not isinstance(batches, int):
        refuse("a mask_mod that differs by batch row needs a fixed batch: dynamic_shapes=None")
    bq, bk = call.block_size
    one_block = bq >= m and bk >= n
    if one_block:
        bq = bk = BLOCK
    rows, columns = -(-m // bq), -(-n // bk)
    listed = np.zeros((batches, heads, rows, columns), dtype=np.uint8)  # 1 partial, 2 full
    for kind, given in ((1, call.partial), (2, call.full)):
        if given is None:
            continue
        count, index = (x.numpy() for x in given)
        if one_block:
            listed[np.broadcast_to(count > 0, (batches, heads, 1))[..., 0]] = kind
            continue
        for i, j, row in np.ndindex(*count.shape):
            at = (
                slice(None) if count.shape[0] == 1 else i,
                slice(None) if count.shape[1] == 1 else j,
            )
            listed[(*at, row, index[i, j, row, : count[i, j, row]])] = kind
    entries = np.argwhere(listed)
    full = (listed[tuple(entries.T)] == 2) & ~np.bool_(call.scores.hide)
    ids, masks = _tiles(call, entries, full, (bq, bk))
    keep = ids >= 0
    owner = (entries[:, 0] * heads + entries[:, 1]) * rows + entries[:, 2]
    counts = np.bincount(owner[keep], minlength=batches * heads * rows).reshape(-1, rows)
    ends = counts.ravel().cumsum().reshape(-1, rows)
    indptr = np.concatenate([ends[:, :1] - counts[:, :1], ends], axis=1)
    return Layout(
        sr.Blocks(
            indptr=indptr,
            indices=entries[keep, 3].astype(np.int32),
            tile_ids=ids[keep].astype(np.int32),
            tile_masks=masks,
            head_layout=np.arange(batches * heads, dtype=np.int32),
            block_size=(bq, bk),
            q_len=m,
            kv_len=n,
            q_start=0,
        ),
        batches,
    )


def _tiles(call: Call, entries: Any, full: Any, block_size: tuple[int, int]) -> tuple[Any, Any]:
    """For every entry the number of its tile, -1 where it shows nothing; and the tiles."""
    (bq, bk), (_, _, m, n) = block_size, call.shape
    known = {np.ones((bq, bk), dtype=np.uint8).tobytes(): 0}
    ids = np.zeros(len(entries), dtype=np.int64)
    partial = np.flatnonzero(~full)
    size = max(1, CHUNK // (bq * bk))
    for some in np.split(partial, range(size, len(partial), size)):
        b, h, row, column = torch.from_numpy(entries[some].T.astype(np.int32))
        q = row[:, None] * bq + torch.arange(bq, dtype=torch.int32)
        k = column[:, None] * bk + torch.arange(bk, dtype=torch.int32)
        inside = (q < m)[:, :, None] & (k < n)[:, None]
        # a table has no entries past the ends
        seen = call.seen(b, h, q.clamp(max=m - 1), k.clamp(max=n - 1)) & inside
        whole = (seen == inside).flatten(1).all(1).numpy()
        for at, tile, all_seen in zip(some, seen.numpy().view(np.uint8), whole, strict=True):
            ids[at] = 0 if all_seen else known.setdefault(tile.tobytes(), len(known))
            if not tile.any():
                ids[at] = -1
    tiles = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(-1, bq, bk)
    return ids, tiles
