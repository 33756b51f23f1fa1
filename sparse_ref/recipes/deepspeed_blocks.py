"""What DeepSpeed's layouts are made of, on block indices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparse_ref._arrays import integer
from sparse_ref.patterns import (
    Blocked,
    Chunked,
    Global,
    Keys,
    KeyStride,
    Pattern,
    PerHead,
    RandomKeys,
    Rows,
    RowStride,
    SlidingWindow,
)


def blocks_of(length: int, block_size: int) -> int:
    """The number of blocks of a sequence that must be whole blocks."""
    size, n = integer("block_size", block_size, 1), integer("length", length, 1)
    if n % size:
        raise ValueError(f"length must be a multiple of block_size = {size}, got {n}")
    return n // size


def flag(name: str, value: bool) -> bool:
    """A bool that is one."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def directions(causal: bool, horizontal: bool) -> None:
    """Refuse rows that see all in a causal layout."""
    if flag("horizontal", horizontal) and flag("causal", causal):
        raise ValueError("horizontal must be False where causal is True, got True")


def blocked(layouts: Sequence[Pattern], block_size: int) -> Pattern:
    """One layout for all heads, or one a head, written out in tokens."""
    return Blocked(layouts[0] if len(layouts) == 1 else PerHead(layouts), block_size)


def around(window_blocks: int) -> Pattern:
    """A window as DeepSpeed counts: half its blocks, rounded down, on each side."""
    half = integer("window_blocks", window_blocks, 1) // 2
    return SlidingWindow(half, half)


def repeated(
    window: int, residues: range, end: int | None, causal: bool, horizontal: bool
) -> Pattern:
    """The same blocks of every window (below block `end`), seen by all, or by all that follow."""
    keys: Pattern = KeyStride(window, residues)
    rows: Pattern = RowStride(window, residues)
    if end is not None:
        keys, rows = keys & Keys(range(end)), rows & Rows(range(end))
    if causal:
        keys = keys & Chunked(window, back=None, ahead=0, origin=residues.start)
    return keys | rows if horizontal else keys


def columns(group: range, causal: bool, horizontal: bool) -> Pattern:
    """One group of blocks seen by all, or by all that follow."""
    if horizontal:
        return Global(group)
    return Keys(group) - Rows(range(group.start)) if causal else Keys(group)


def groups(first: Iterable[int], ends: Sequence[int] | None, blocks: int) -> list[range]:
    """The ranges of global blocks, cut to the blocks there are."""
    starts = [integer(f"global_blocks[{i}]", start) for i, start in enumerate(first)]
    if ends is None:
        ends = [start + 1 for start in starts]
    if len(ends) != len(starts):
        raise ValueError(
            f"global_ends must be as many as the {len(starts)} global_blocks, got {len(ends)}"
        )
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        integer(f"global_ends[{i}]", end, start + 1)
    return [
        range(start, min(end, blocks))
        for start, end in zip(starts, ends, strict=True)
        if start < blocks
    ]


def drawn(
    layout: Pattern, count: int, seed: int, blocks: int, heads: int, *, causal: bool
) -> list[Pattern]:
    """The layout with random blocks: one for all heads if there are none, else one a head."""
    several, first = integer("heads", heads, 1), integer("seed", seed, 0, 2**63)
    if not integer("random_blocks", count):
        return [layout]
    random = [RandomKeys(count, first + head, blocks, causal=causal) for head in range(several)]
    return [layout | keys for keys in random]
