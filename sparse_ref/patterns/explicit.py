"""Patterns given by lists: seeded random keys and block masks."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ref._arrays import Bools, Ints, array, integer

from .pattern import Pattern, assign, pattern_field
from .relation import KeyRows, Relation, relation_of
from .tokens import Tokens

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class RandomKeys(Pattern):
    """Exactly min(count, candidates) random keys for every query, the same on every machine.

    Row p draws from [0, p] if `causal`, else from [0, length), minus what `exclude` allows. Its
    keys are the first `count` distinct candidates of `mix(mix(mix(seed) ^ p) + t) mod limit`,
    t = 0, 1, ..., with splitmix64 as mix; if 8 * count + 64 draws do not suffice, the `count`
    candidates least by `(mix(base + 2**32 + k), k)`. Rows depend on the absolute position only,
    so a decode step draws what the whole sequence drew. Different heads: `PerHead` over seeds.
    (Random attention of BigBird, arXiv:2007.14062, drawn per token.)

    >>> from sparse_ref import draw
    >>> print(draw(RandomKeys(2, seed=0, length=6), 6))
    . . . # . #
    . # # . . .
    . # # . . .
    . . # . . #
    # . . # . .
    . # . . # .
    """

    count: int
    seed: int
    length: int
    _: KW_ONLY
    exclude: Pattern | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        seed = integer("seed", self.seed, 0, 2**64 - 1)
        assign(self, count=integer("count", self.count), seed=seed)
        assign(self, length=integer("length", self.length))
        if not isinstance(self.causal, bool):
            raise TypeError(f"causal must be True or False, got {self.causal!r}")
        if self.exclude is not None:
            pattern_field(self, "exclude", sets_only=True)

    def __call__(self, q: Any, k: Any) -> Any:
        return self.relation[q, k]

    @property
    def covers(self) -> int | None:
        return self.length

    @property
    def explicit(self) -> bool:
        return True

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        return self.relation.slice(start, stop).over(max(stop, 0) if keys is None else keys)

    @cached_property
    def relation(self) -> Relation:
        """The keys of all `length` rows, drawn on first use."""
        step = max(1, 2**20 // (2 * self.count + 8))
        parts = [
            self._draw(np.arange(start, min(start + step, self.length)))
            for start in range(0, self.length, step)
        ]
        empty = [(np.zeros(0, np.int64),) * 2]
        row, key = (np.concatenate(side) for side in zip(*(parts or empty), strict=True))
        return Relation(KeyRows.of(row, key, self.length))

    def _draw(self, row: Ints) -> tuple[Ints, Ints]:
        """The (row, key) pairs of some rows: by few draws, then by more, then by listing all."""
        found: list[tuple[Ints, Ints]] = []
        for draws in (2 * self.count + 8, 8 * self.count + 64):
            if not len(row):
                break
            keys, chosen = self._first_distinct(row, draws)
            done = chosen.sum(axis=1) == self.count
            at, column = np.nonzero(chosen[done])
            found.append((row[done][at], keys[done][at, column]))
            row = row[~done]
        for p in row.tolist():
            keys = self._least(p)
            found.append((np.full(len(keys), p), keys))
        pairs = [np.concatenate(side) for side in zip(*found, strict=True)]
        order = np.lexsort(pairs[::-1])
        return pairs[0][order], pairs[1][order]

    def _first_distinct(self, row: Ints, draws: int) -> tuple[Ints, Bools]:
        """The first `draws` keys of each row's sequence, and which of them are chosen."""
        limit = (row + 1 if self.causal else np.full_like(row, self.length)).astype(np.uint64)
        words = mix(self._base(row)[:, None] + np.arange(draws).astype(np.uint64))
        keys = (words % limit[:, None]).astype(np.int64)
        order = np.argsort(keys, axis=1, kind="stable")
        ascending = np.take_along_axis(keys, order, axis=1)
        repeated = np.zeros(keys.shape, dtype=bool)
        np.put_along_axis(repeated, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], axis=1)
        chosen = ~repeated & self._candidate(row[:, None], keys)
        return keys, chosen & (np.cumsum(chosen, axis=1) <= self.count)

    def _least(self, p: int) -> Ints:
        keys = np.arange(p + 1 if self.causal else self.length)
        keys = keys[np.broadcast_to(self._candidate(np.full_like(keys, p), keys), keys.shape)]
        order = mix(self._base(np.array([p])) + np.uint64(2**32) + keys.astype(np.uint64))
        return keys[np.lexsort((keys, order))[: self.count]]

    def _base(self, row: Ints) -> Words:
        return mix(mix(np.array([self.seed], np.uint64)) ^ row.astype(np.uint64))

    def _candidate(self, row: Ints, keys: Ints) -> Bools:
        if self.exclude is None:
            return np.ones(keys.shape, dtype=bool)
        return ~np.broadcast_to(self.exclude(row, keys), keys.shape)


def mix(x: Words) -> Words:
    """splitmix64 (Steele, Lea, Flood 2014), on arrays of 64-bit words."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, init=False)
class BlockPattern(Pattern):
    """A block-level mask: `mask[q // block, k // block]` (BSR layouts, DeepSpeed, Phi-3).

    `mask`: bool (query blocks, key blocks), dense or SciPy-sparse; `block_size`: an int or a pair
    (query, key). Pairs outside the mask are not allowed. One mask a head: `PerHead`.

    >>> from sparse_ref import draw
    >>> print(draw(BlockPattern(np.eye(2, dtype=bool), 2), 4))
    # # . .
    # # . .
    . . # #
    . . # #
    """

    blocks: Relation  # not called mask: that is the method every pattern has
    block_size: tuple[int, int]

    def __init__(self, mask: Any, block_size: Any) -> None:
        blocks = mask if isinstance(mask, Relation) else relation_of("mask", mask)
        assign(self, blocks=blocks, block_size=block_pair(block_size))

    def __call__(self, q: Any, k: Any) -> Any:
        return self.blocks[q // self.block_size[0], k // self.block_size[1]]

    @property
    def covers(self) -> int | None:
        return len(self.blocks) * self.block_size[0]

    @property
    def explicit(self) -> bool:
        return True

    def rows(self, start: int, stop: int, keys: int | Ints | None = None) -> KeyRows:
        bq, bk = self.block_size
        first = start // bq
        found = self.blocks.slice(first, -(-stop // bq))
        expanded = spread(found, bk, np.arange(start, stop) // bq - first)
        return expanded.over(max(stop, 0) if keys is None else keys)


def spread(blocks: KeyRows, size: int, row: Ints) -> KeyRows:
    """Block rows picked by `row`, every block written out as its `size` keys."""
    starts, stops = blocks.indptr[row], blocks.indptr[row + 1]
    count = stops - starts
    row_of = np.repeat(np.arange(len(row)), count)
    at = np.arange(len(row_of)) - np.repeat(np.cumsum(count) - count, count) + starts[row_of]
    keys = blocks.indices[at][:, None] * size + np.arange(size)
    return KeyRows.of(np.repeat(row_of, size), keys.ravel(), len(row))


def block_pair(value: object, name: str = "block_size") -> tuple[int, int]:
    """A block size as a pair (query, key) of positive ints."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be an integer or a pair, got {value!r}")
        return integer(f"{name}[0]", value[0], 1), integer(f"{name}[1]", value[1], 1)
    size = integer(name, value, 1, also=" or a pair of them")
    return size, size


def from_mask(mask: object, block_size: object = None) -> Pattern:
    """The pattern of a bool mask (q_len, kv_len), token by token or block by block.

    With a `block_size` the mask is one of blocks: `BlockPattern(mask, block_size)`.

    >>> from sparse_ref import draw
    >>> print(draw(from_mask(np.tri(2, dtype=bool)), 2))
    # .
    # #
    """
    if block_size is not None:
        return BlockPattern(mask, block_size)
    dense: NDArray[Any] = array("mask", mask)
    if dense.dtype != bool or dense.ndim != 2:
        raise TypeError(
            f"mask must be bool of 2 dimensions, got {dense.dtype} of shape {dense.shape}"
        )
    return Tokens(dense)
