"""Masks of any size as a few signs: one for each pair, or for each square of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr

Signs = NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Cells:
    """One head, or several that are alike.

    Attributes
    ----------
    signs : (rows, columns) of characters
        `#` all pairs of the square, `o` some, `.` none; of two masks `-` the first has more there,
        `+` the second, `x` each has pairs that the other has not.
    size : int
        Queries and keys of a square.
    heads : list of int
    grid : int
        Squares between two lines of a grid; 0 for no lines.
    """

    signs: Signs
    size: int
    heads: list[int]
    grid: int = 0

    def __str__(self) -> str:
        rows = [" ".join(self._lined(list(row), "|")) for row in self.signs]
        width = len(self._lined(list(self.signs[0]), "|")) if rows else 0
        return "\n".join(self._lined(rows, " ".join("=" * width)))

    def _lined(self, items: list[str], line: str) -> list[str]:
        """The items with a line before every grid-th."""
        if not self.grid:
            return items
        out = []
        for i, item in enumerate(items):
            out += [line] * (i > 0 and i % self.grid == 0) + [item]
        return out


def square(q_len: int, kv_len: int, most: int, block: int | None, *, lined: bool = True) -> int:
    """How many queries and keys a sign must stand for, so that no side has more than `most`.

    With blocks a sign is a pair or whole blocks where lines between them take room (`lined`), else
    it may also be a part of a block.
    """
    longest = max(q_len, kv_len, 1)
    needed = -(-longest // most)
    if block is None:
        return int(2 ** np.ceil(np.log2(needed)))
    if needed == 1 and (not lined or longest + longest // block <= most):
        return 1
    parts = [] if lined else [n for n in range(needed, block) if block % n == 0]
    return parts[0] if parts else block * -(-needed // block)


def of_pattern(
    pattern: sr.Pattern, q_len: int, kv_len: int, *, size: int, heads: int, block: int | None = None
) -> list[Cells]:
    """The squares of a pattern, one picture for all heads that are alike; never a dense mask."""
    stored = sr.to_blocks(pattern, q_len, kv_len, block_size=size, heads=heads)
    rows, columns = -(-q_len // size), -(-kv_len // size)
    found = []
    for layout, ends in enumerate(stored.indptr):
        entries = slice(int(ends[0]), int(ends[-1]))
        signs = np.full((rows, columns), ".")
        row = np.repeat(np.arange(rows), np.diff(ends))
        signs[row, stored.indices[entries]] = np.where(stored.full[entries], "#", "o")
        alike = np.flatnonzero(stored.head_layout == layout).tolist()
        found.append(Cells(signs, size, alike, _grid(size, block, columns)))
    return found


def of_two(
    a: NDArray[np.bool_], b: NDArray[np.bool_], *, size: int, block: int | None = None
) -> list[Cells]:
    """Where two masks (heads, q_len, kv_len) differ, one picture for all heads that are alike."""
    found: list[Cells] = []
    for head, (one, other) in enumerate(zip(a, b, strict=True)):
        more, less = _any(one & ~other, size), _any(other & ~one, size)
        some, whole = _any(one | other, size), ~_any(~(one & other), size)
        signs = np.where(whole, "#", np.where(some, "o", "."))
        signs = np.where(more & less, "x", np.where(more, "-", np.where(less, "+", signs)))
        for i, known in enumerate(found):
            if np.array_equal(known.signs, signs):
                found[i] = replace(known, heads=[*known.heads, head])
                break
        else:
            found.append(Cells(signs, size, [head], _grid(size, block, signs.shape[1])))
    return found


def _any(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """For every square whether a pair of it is set; squares at the ends may be cut."""
    if 0 in mask.shape:
        return np.zeros([-(-n // size) for n in mask.shape], dtype=bool)
    down = np.logical_or.reduceat(mask, np.arange(0, mask.shape[0], size), axis=0)
    across = np.logical_or.reduceat(down, np.arange(0, mask.shape[1], size), axis=1)
    return np.asarray(across, dtype=bool)


def _grid(size: int, block: int | None, columns: int) -> int:
    """Squares between two lines: where a sign is one pair, and there is more than one block."""
    return block if block is not None and size == 1 and 1 < block < columns else 0
