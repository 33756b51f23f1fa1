"""FlexAttention over a pattern: its BlockMask from our block layout, never from all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

import sparse_ref as sr
from sparse_ref.patterns.dense import frame_of
from sparse_ref.patterns.explicit import block_pair

from .mask_mods import cycle, distinct, mask_mod
from .verdicts import ALL, SOME, verdicts

BLOCK = 128  # FlexAttention's own
SIDE = 1024  # a BlockMask holds an id for every block of a row, seen or not: at most so many


def to_flex(
    pattern: sr.Pattern,
    q_len: int,
    kv_len: int,
    *,
    heads: int = 1,
    q_start: int | None = None,
    block_size: Any = None,
    device: Any = None,
) -> BlockMask:
    """The BlockMask of a pattern for `torch.nn.attention.flex_attention.flex_attention`.

    Equal to what `create_block_mask` makes of its `mask_mod`, list by list, without asking for
    every pair of a query and a key.

    Parameters
    ----------
    pattern : Pattern
        A set, the same for every batch row.
    q_len, kv_len : int >= 1
    heads : int
        Number of query heads; head h uses `pattern.at(h)`. Heads that are all alike share lists.
    q_start : int, optional
        Absolute position of the first query; default kv_len - q_len.
    block_size : int or (int, int), optional
        Queries and keys of a block. Default 128, and above 131,072 tokens the least power of two
        with at most 1,024 blocks a side: lists take (tokens / block_size)^2 numbers.
    device : optional
        Of the lists, and of the tables that `mask_mod` reads.

    Raises
    ------
    ValueError
        If the pattern is a multiset, differs by batch row, or holds a `Runtime`.

    Examples
    --------
    >>> mask = to_flex(sr.Causal() & sr.SlidingWindow(255, 0), 1000, 1000)
    >>> mask.BLOCK_SIZE, mask.kv_num_blocks[0, 0].tolist(), mask.full_kv_num_blocks[0, 0].tolist()
    ((128, 128), [1, 1, 2, 2, 2, 2, 2, 3], [0, 1, 1, 1, 1, 1, 1, 0])
    """
    if pattern.multiset:
        raise ValueError(f"pattern must be a set for a BlockMask, got the multiset {pattern!r}")
    return blocked(pattern, q_len, kv_len, heads, q_start, block_size, device)


def blocked(
    pattern: sr.Pattern,
    q_len: int,
    kv_len: int,
    heads: int,
    q_start: int | None,
    block_size: Any = None,
    device: Any = None,
) -> BlockMask:
    """`to_flex`, of multisets too: their mask_mod answers how often a key counts."""
    if pattern.batches is not None:
        raise ValueError(f"pattern must be one batch row's, as for_batch(0), got {pattern!r}")
    frame = frame_of(pattern, q_len, kv_len, q_start)
    start = kv_len - q_len if q_start is None else int(q_start)
    size = _block_size(block_size, max(q_len, kv_len))
    mod = mask_mod(pattern, heads, q_start=start, device=device)
    layouts = {one: verdicts(one, frame, size) for one in distinct(pattern, heads)}
    many = heads if len(layouts) > 1 else 1
    each = [layouts[pattern.at(h % cycle(pattern, heads))] for h in range(many)]
    partial, full = (np.stack([one == kind for one in each])[None] for kind in (SOME, ALL))
    lists: dict[str, Any] = {
        f"{whole}{side}_{part}": x
        for whole, listed in (("", partial), ("full_", full))
        for side, turned in (("kv", listed), ("q", listed.swapaxes(2, 3)))
        for part, x in zip(("num_blocks", "indices"), _lists(turned, device), strict=True)
    }
    return BlockMask((q_len, kv_len), **lists, BLOCK_SIZE=size, mask_mod=mod)


def _block_size(given: Any, longest: int) -> tuple[int, int]:
    if given is None:
        given = BLOCK
        while given * SIDE < longest:
            given *= 2
    return block_pair(given)


def _lists(listed: NDArray[np.bool_], device: Any) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and their columns, followed by all other columns."""
    count = torch.from_numpy(listed.sum(-1, dtype=np.int32))
    columns = np.argsort(~listed, axis=-1, kind="stable").astype(np.int32)
    return count.to(device), torch.from_numpy(columns).to(device)
