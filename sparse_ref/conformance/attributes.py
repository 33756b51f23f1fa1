"""Scale, softcap, sinks, key/value heads: numbers an implementation works with, read from outside.

Every reading makes the scores itself: q . k is a chosen number for each key, and the output tells
the weights of those keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints

from .calling import Implementation, ask

LARGEST = 300.0  # the softcap that is still told from none
HEIGHTS = np.arange(48.0, -65.0, -8.0)  # scores at which a sink is looked for
TIMES = 64  # how often a key may count


@dataclass
class Asked:
    """An implementation and the sizes it is asked in; remembers how fine its answers are."""

    fn: Implementation
    pattern: Any
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    bits: int = field(default=8, init=False)  # significant bits of the finest answer so far
    _known: dict[bytes, Floats] = field(default_factory=dict, init=False)

    def shares(self, levels: Floats, columns: Floats) -> Floats:
        """The output (h, m, c) where q . k is head_dim * levels (n,) and v is columns (n, c)."""
        key = levels.tobytes() + columns.tobytes()
        if key not in self._known:
            self._known[key] = self._asked(levels, columns)
        return self._known[key]

    def _asked(self, levels: Floats, columns: Floats) -> Floats:
        signs = np.random.default_rng(2).choice((-1.0, 1.0), self.head_dim)
        most = np.abs(levels).max(initial=0.0)
        high = 2.0 ** np.floor(np.log2(most) / 2) if most else 1.0
        q = np.zeros((1, self.heads, self.q_len, self.head_dim), np.float32)
        k = np.zeros((1, self.kv_heads, self.kv_len, self.head_dim), np.float32)
        v = np.zeros_like(k)
        q[:], k[:] = high * signs, (levels / high)[:, None] * signs
        v[..., : columns.shape[1]] = columns
        out = ask(self.fn, q, k, v, self.pattern, {}).out[0, :, :, : columns.shape[1]]
        self._measure(out)
        return out.astype(np.float64)

    def _measure(self, out: Any) -> None:
        full = out.astype(np.float64)
        mantissa = np.frexp(full[np.isfinite(full)])[0]
        for bits, finer in ((8, 11), (11, 24)):
            if (np.rint(mantissa * 2.0**bits) != mantissa * 2.0**bits).any():
                self.bits = max(self.bits, finer)


class Pair(NamedTuple):
    """Two keys of one query, whose weights tell their scores."""

    row: int
    first: int
    second: int
    base: float  # log of the first's weight over the second's where all scores are alike

    def apart(self, asked: Asked, first: float, second: float, head: int) -> float:
        """The difference of their scores at these levels, all other keys at level 0."""
        levels = np.zeros(asked.kv_len)
        levels[[self.first, self.second]] = first, second
        columns = np.zeros((asked.kv_len, 2))
        columns[[self.first, self.second], [0, 1]] = 2.0**11
        one, other = asked.shares(levels, columns)[head, self.row]
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.log(one) - np.log(other) - self.base)


def pair_of(weights: Floats) -> Pair | None:
    """The pair of the row that sees the fewest keys, but two, of weights (m, n)."""
    seen = np.where(np.isfinite(weights), weights, 0) > 0
    rows = np.flatnonzero(seen.sum(1) >= 2)
    if not len(rows):
        return None
    row = int(rows[np.argmin(seen[rows].sum(1))])
    first, second = (int(j) for j in np.sort(np.argsort(-weights[row], kind="stable")[:2]))
    return Pair(row, first, second, float(np.log(weights[row, first] / weights[row, second])))


class Response(NamedTuple):
    """How scores follow q . k: softcap * tanh(scale * q . k / softcap)."""

    scale: float
    softcap: float | None

    def score(self, product: float) -> float:
        """The score of q . k = product."""
        cap = self.softcap
        return self.scale * product if cap is None else cap * np.tanh(self.scale * product / cap)

    def product(self, score: float) -> float | None:
        """The q . k of a score; None where the cap is in the way."""
        if self.scale == 0 or (self.softcap is not None and abs(score) > 0.95 * self.softcap):
            return None
        if self.softcap is not None:
            score = float(self.softcap * np.arctanh(score / self.softcap))
        return score / self.scale


def read_response(asked: Asked, pair: Pair, head: int) -> Response:
    """The scale from small scores, the softcap (up to 300) from large ones."""

    def apart(first: float, second: float) -> float:
        return pair.apart(asked, first, second, head)

    found, before = [(0.0, 0.0)], 0.0
    for level in 2.0 ** np.arange(-14, 13):
        height = apart(level, -level) / 2
        if not np.isfinite(height):
            break
        found.append((level, height))
        if abs(height) > 2 or (abs(before) > 0.02 and abs(height) < 1.3 * abs(before)):
            break
        before = height
    level, height = found[-1]
    if abs(height) < 1e-3:
        return Response(0.0, None)
    cap = _softcap(apart, level, abs(height))
    if cap is not None:  # where tanh bends most of all that was measured
        level, height = min(found[1:], key=lambda one: abs(abs(one[1]) - cap / 2))
        height = float(cap * np.arctanh(np.clip(height / cap, -0.999, 0.999)))
    return Response(height / (level * asked.head_dim), cap)


def _softcap(apart: Callable[[float, float], float], level: float, height: float) -> float | None:
    """The height that scores end at, climbed in steps whose weights can be read."""
    top = 2048 * level
    if not abs(apart(top, top / 2)) < 20:  # NaN and infinity too
        return None
    step, end, top = level, level, 64 * top
    while end < top and height < 2 * LARGEST:
        gain = abs(apart(end + step, end))
        if not gain < 10 and step > level / 4:
            step /= 2
            continue
        height, end = height + gain, end + step
        step *= 2 if gain < 4 else 1
        if gain < 1e-7 * height and end > 64 * level:
            break
    return height


def read_sink(
    asked: Asked, weights: Floats, response: Response, head: int
) -> tuple[float | None, bool]:
    """The sink logit of a head, and whether weights of hidden keys are lost after the softmax.

    `weights` are those of equal scores. Keys of one value 1 answer how much weight they have
    together; where that is near a half the sink is as high as they are.
    """
    count = (np.nan_to_num(weights) > 0).sum(1)
    if not count.any():
        return None, False
    row = int(np.argmin(np.where(count > 0, count, np.inf)))  # where most would be lost
    own = weights[row][weights[row] > 0]
    ratio = own / own.min()
    counted = ratio.max() <= TIMES and np.allclose(
        ratio, np.rint(ratio), rtol=2.0 ** (3 - asked.bits)
    )
    keys = float(np.log(ratio.sum() if counted else (own / own.max()).sum()))
    found = []
    for height in HEIGHTS:
        product = 0.0 if height == 0 else response.product(float(height))
        if product is None:
            continue
        level = float(np.float16(product / asked.head_dim))  # what half types hold as well
        total = asked.shares(np.full(asked.kv_len, level), np.ones((asked.kv_len, 1)))[head, row, 0]
        found.append((abs(total - 0.5), total, response.score(level * asked.head_dim)))
    totals = np.array([total for _, total, _ in found])
    if np.ptp(totals) < 0.01 and len(totals) > 1:
        return None, bool(abs(totals - 1).max() > 0.01)
    _, total, score = min(found)
    if not 0 < total < 0.99:
        return None, False
    return float(keys + score + np.log((1 - total) / total)), False


def read_key_heads(asked: Asked, weights: Floats) -> Ints:
    """The key/value head that each query head reads, (h,); -1 where it is none of them alone.

    Values are the bits of the number of their head, and 1 to compare with.
    """
    width = max(asked.head_dim - 1, 1)
    places = max(int(asked.kv_heads - 1).bit_length(), 1)
    heads = np.zeros(asked.heads, dtype=np.int64)
    sizes = (1, asked.heads, asked.q_len, asked.head_dim)
    for start in range(0, places, width):
        bits = np.arange(start, min(start + width, places))
        v = np.zeros((1, asked.kv_heads, asked.kv_len, asked.head_dim), np.float32)
        v[..., : len(bits)] = ((np.arange(asked.kv_heads)[:, None] >> bits) & 1)[None, :, None]
        v[..., len(bits)] = 1
        out = ask(asked.fn, np.zeros(sizes, np.float32), np.zeros_like(v), v, asked.pattern, {}).out
        for head, rows in enumerate(out[0].astype(np.float64)):
            read = rows[np.isfinite(rows[:, 0]) & (rows[:, len(bits)] > 0)]
            share = read[:, : len(bits)] / read[:, len(bits) : len(bits) + 1]
            whole = np.rint(share).astype(np.int64)
            alike = len(share) and np.abs(share - whole).max() < 0.01 and (whole == whole[0]).all()
            if heads[head] >= 0:
                heads[head] = heads[head] + int(whole[0] @ (1 << bits)) if alike else -1
    return heads


def read_deaf(asked: Asked, response: Response) -> Bools:
    """The queries (h, m) whose weights no score changes, as a mask drowns all of them."""
    odd = np.arange(asked.kv_len) % 2 == 1
    product = response.product(min(2.0, (response.softcap or np.inf) / 2))
    if product is None:
        return np.zeros((asked.heads, asked.q_len), dtype=bool)
    level = 2.0 ** np.rint(np.log2(abs(product) / asked.head_dim))
    columns = np.stack([~odd, odd], axis=1).astype(np.float64)
    before = asked.shares(np.zeros(asked.kv_len), columns)
    after = asked.shares(np.where(odd, level, -level), columns)
    several = before.min(-1) > 0.01 * before.max(-1)  # both odd and even keys; not where NaN
    same = np.abs(after - before).max(-1) <= 2.0 ** (3 - asked.bits) * before.max(-1)
    return np.asarray(several & same)
