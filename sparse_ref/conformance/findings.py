"""What was read of an implementation, as data and as a report in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Ints
from sparse_ref.patterns import Comparison, draw

from .bits import in_words
from .seen import Seen

DRAWN = 24  # queries and keys of the largest mask that is drawn
WRITTEN = 128  # and of the largest that is written into JSON


@dataclass(frozen=True)
class HeadReading:
    """What one query head computes; None in scale, softcap or sink: it has, or shows, none.

    `empty` is what queries that see no key get: "0", "NaN", "the mean of V", several of these, or
    None if there is no such query. `lost` says that weights of hidden keys go missing after the
    softmax, so that those of the others do not add up to 1.
    """

    mask: Bools = field(compare=False)
    seen: Seen
    key_head: int
    scale: float | None
    softcap: float | None
    sink: float | None
    empty: str | None
    uneven: str | None
    leak: float | None
    times: int
    lost: bool

    @property
    def plain(self) -> bool:
        """Whether weights are a softmax of the scores of the keys seen, and nothing else."""
        return self.sink is None and self.uneven is None and not self.lost


@dataclass(frozen=True)
class Xray:
    """What an implementation computes, head by head; str() is the report, in words."""

    q_len: int
    kv_len: int
    head_dim: int
    kv_heads: int
    heads: tuple[HeadReading, ...]
    precision: dict[str, int | bool]
    difference: Comparison | None = None

    @property
    def ok(self) -> bool:
        """Whether the mask is that of the pattern asked for, if one was."""
        return self.difference is None or self.difference.equal

    @property
    def mask(self) -> Bools:
        """The masks of all heads (h, q_len, kv_len)."""
        return np.stack([one.mask for one in self.heads])

    @property
    def key_heads(self) -> Ints:
        """The key/value head that each query head reads, -1 where that is none alone."""
        return np.array([one.key_head for one in self.heads])

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"read with {_count(self.q_len, 'query', 'queries')} and {_count(self.kv_len, 'key')}"
        groups = self._alike()
        for numbers, one in groups:
            lead = "" if len(groups) == 1 else f"{_heads(numbers)}: "
            yield f"{lead}{one.seen}"
            yield from (f"  {line}" for line in self._of_head(one, numbers))
            if max(one.mask.shape) <= DRAWN:
                yield from (f"    {line}" for line in draw(one.mask, *one.mask.shape).split("\n"))
        yield f"key/value heads: {self._map()}"
        yield f"precision: {in_words(self.precision)}"
        if self.difference is not None:
            told = "as asked for" if self.ok else f"not as asked for\n{self.difference}"
            yield f"mask: {told}"

    def _of_head(self, one: HeadReading, numbers: list[int]) -> Iterator[str]:
        if one.seen.alignment:
            yield one.seen.alignment
        if one.scale is not None:
            default = self.head_dim**-0.5
            usual = f" = 1 / sqrt({self.head_dim})" if one.scale == default else ""
            cap = "no softcap" if one.softcap is None else f"softcap {one.softcap:.6g}"
            yield f"scale {one.scale:.6g}{usual}, {cap}"
        sinks = [self.heads[i].sink for i in numbers]
        if any(sink is not None for sink in sinks):
            said = ", ".join("none" if sink is None else f"{sink:.5g}" for sink in sinks)
            yield f"sink logit {said}"
        if one.uneven:
            yield one.uneven
        if one.lost:
            yield "weights do not add up to 1: keys are hidden after the softmax"
        if one.empty:
            yield f"queries that see no key get {one.empty}"

    def _alike(self) -> list[tuple[list[int], HeadReading]]:
        """Heads that compute the same, apart from sinks and what they read."""
        groups: dict[Any, list[int]] = {}
        for i, one in enumerate(self.heads):
            plain = replace(one, key_head=0, sink=None, seen=one.seen._replace(spelled={}))
            key = one.mask.tobytes(), repr(replace(plain, mask=np.zeros(0, dtype=bool)))
            groups.setdefault(key, []).append(i)
        return [(numbers, self.heads[numbers[0]]) for numbers in groups.values()]

    def _map(self) -> str:
        h, g, read = len(self.heads), self.kv_heads, self.key_heads
        if (read < 0).all():
            return "cannot be told"
        if h == g and (read == np.arange(h)).all():
            return "each query head has its own"
        if g == 1 and (read == 0).all():
            return "all query heads read the only one"
        if h % g == 0 and (read == np.arange(h) // (h // g)).all():
            return f"{h // g} query heads in a row share each of {g}"
        if h % g == 0 and (read == np.arange(h) % g).all():
            return f"query head h reads h mod {g}: tiled, where grouped-query attention repeats"
        return " ".join("?" if one < 0 else str(one) for one in read)

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON; masks of up to 128 queries and keys as rows of # and dots."""
        heads = []
        for one in self.heads:
            said = {
                "mask": one.seen.words, "alignment": one.seen.alignment,
                "spelled": {name: text for name, text in one.seen.spelled.items() if text},
                "key_head": one.key_head, "scale": one.scale, "softcap": one.softcap,
                "sink": one.sink, "empty": one.empty, "uneven": one.uneven, "leak": one.leak,
                "times": one.times, "lost": one.lost,
                "rows": _rows(one.mask),
            }  # fmt: skip
            heads.append(said)
        return {
            "q_len": self.q_len, "kv_len": self.kv_len, "head_dim": self.head_dim,
            "kv_heads": self.kv_heads, "ok": self.ok, "precision": dict(self.precision),
            "heads": heads,
        }  # fmt: skip


def _rows(mask: Bools) -> list[str] | None:
    if max(mask.shape) > WRITTEN:
        return None
    return ["".join(row) for row in np.where(mask, "#", ".")]


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _heads(numbers: list[int]) -> str:
    """Numbers of heads, runs of them short."""
    runs: list[list[int]] = []
    for i in numbers:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    said = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ("head " if len(numbers) == 1 else "heads ") + ", ".join(said)
