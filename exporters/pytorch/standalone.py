"""What emitted files look patterns up with: their text is copied, so they need torch alone."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import torch
from torch import Tensor


def look(table: Tensor, at: Tensor) -> Tensor:
    """The entries of a table at positions; its first and last stand for all outside of it."""
    return table[(at + 1).clamp(0, table.shape[0] - 1)]


def extent(table: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest entry of a table over the positions lo..hi."""
    first, last = ((x + 1).clamp(0, table.shape[0] - 1) for x in (lo, hi))
    level = torch.frexp((last - first + 1).double())[1] - 1  # two windows of 2**level cover it
    least, most = torch.zeros_like(first), torch.zeros_like(first)
    low = high = table
    for j in range(int(level.max()) + 1):
        at = (first.clamp(max=len(low) - 1), (last - (1 << j) + 1).clamp(0, len(low) - 1))
        least = torch.where(level == j, torch.minimum(low[at[0]], low[at[1]]), least)
        most = torch.where(level == j, torch.maximum(high[at[0]], high[at[1]]), most)
        step = min(1 << j, len(low) - 1)
        low = torch.minimum(low[: len(low) - step], low[step:])
        high = torch.maximum(high[: len(high) - step], high[step:])
    return least, most


def listed(pairs: Any, q: Tensor, k: Tensor) -> Tensor:
    """Whether k is among the keys listed for q: where rows start and end, keys, halvings."""
    starts, ends, keys, halvings = pairs
    low, end = look(starts, q), look(ends, q)
    high = end
    for _ in range(halvings):
        middle = (low + high) // 2
        before = (keys[middle] < k) & (low < high)
        low, high = torch.where(before, middle + 1, low), torch.where(before, high, middle)
    found: Tensor = (low < end) & (keys[low] == k)
    return found


def cells_of(pairs: Any, most: int = 1024) -> tuple[int, Tensor, Tensor]:
    """Squares of queries and keys, at most so many a side, and sums over those before each.

    First of those that hold a pair, then of those that hold all of theirs.
    """
    first, last, keys = pairs[0][1:-1], pairs[1][1:-1], pairs[2][:-1]
    row = torch.repeat_interleave(torch.arange(len(first)), last - first)
    sizes, side = (len(first), int(keys.max()) + 1 if len(keys) else 1), 1
    while max(sizes) > side * most:
        side *= 2
    rows, columns = (-(-size // side) for size in sizes)
    code = row // side * columns + keys // side
    count = torch.bincount(code, minlength=rows * columns).view(rows, columns)
    sums = (
        torch.nn.functional.pad(x.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
        for x in (count > 0, count == side * side)
    )
    return side, *sums  # type: ignore[return-value]


def counted(cells: Any, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
    """0 or the area of a rectangle where squares tell that it holds no or every pair, else more."""
    side, some, every = cells
    up, down, left, right = q_lo // side, q_hi // side + 1, k_lo // side, k_hi // side + 1
    touched, area = (down - up) * (right - left), (q_hi - q_lo + 1) * (k_hi - k_lo + 1)
    up, down = (x.clamp(0, some.shape[0] - 1) for x in (up, down))
    left, right = (x.clamp(0, some.shape[1] - 1) for x in (left, right))
    none, all_ = (
        x[down, right] - x[up, right] - x[down, left] + x[up, left] for x in (some, every)
    )
    return torch.where(none == 0, 0, torch.where(all_ == touched, area, area + 1))


def unpacked(text: str) -> Tensor:
    """A table of int64 from its packed text."""
    content = bytearray(zlib.decompress(base64.b64decode(text)))
    return torch.frombuffer(content, dtype=torch.int64)
