"""The precision of an implementation of one pattern, through the row of it that sees most keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparse_ref._arrays import Floats

from . import precision
from .attributes import Asked, Response
from .calling import ask

ALIKE = 64  # keys that the probe of sums takes
LOW = -(2.0**12)  # the score of keys that shall weigh nothing


def read_bits(
    asked: Asked, weights: Floats, response: Response, head: int
) -> dict[str, int | bool]:
    """Significant bits of scores, weights, values and sums, and flushing, of a head.

    `weights` (m, n) are those of equal scores. What a row of few keys cannot show is left out:
    sums take 64 keys, all else takes two; a softcap is in the way of most.
    """
    seen = np.where(np.isfinite(weights), weights, 0) > 0
    row = int(seen.sum(1).argmax())
    keys = np.flatnonzero(seen[row])
    if len(keys) < 2 or asked.head_dim < 3 or response.scale <= 0 or response.softcap is not None:
        return {}
    sizes = (1, asked.heads, asked.q_len), (1, asked.kv_heads, asked.kv_len)
    unit = 8 * 0.125 / response.scale  # of q, so that q . k times the scale is the score

    def answer(scores: Floats, values: Floats) -> float:
        """As in `precision`: a score is a power of two and a rest, in two entries."""
        used = keys[: len(scores)]
        high = np.copysign(2.0 ** (np.frexp(scores)[1] - 1), scores)
        q, k, v = (np.zeros((*size, asked.head_dim), np.float32) for size in (*sizes, sizes[1]))
        q[..., :2], q[..., 2] = unit, 8 * unit
        k[..., 2] = LOW / 8
        k[..., used, 0], k[..., used, 1], k[..., used, 2] = high, scores - high, 0
        v[..., used, 0] = values
        with np.errstate(all="ignore"):
            got: Any = ask(asked.fn, q, k, v, asked.pattern, {}).out
        return float(got[0, head, row, 0])

    read: dict[str, int | bool] = {
        "scores": _format(precision._scores(answer)), "weights": _weights(answer),
        "values": precision._values(answer), "flushes": precision._flushes(answer),
    }  # fmt: skip
    if len(keys) >= ALIKE:
        read["sums"] = precision._sums(answer)
    return read


def _weights(answer: Callable[[Floats, Floats], float]) -> int:
    """As `precision._weights` on a few weights: a file is slow to ask, and formats far apart."""
    worst = 0.0
    for x in np.arange(1, 200, 9) / 256:
        weight = np.exp(-x) / (1 + np.exp(-x))
        worst = max(worst, abs(answer(np.array([0.0, -x]), np.array([0.0, 1.0])) / weight - 1))
    bits = np.array([8, 11, 24])
    return int(bits[np.argmin(np.abs(bits + 0.5 + np.log2(max(worst, 2.0**-24))))])


def _format(bits: int) -> int:
    """The format of a score whose scale rounds too, which makes a bit or two of difference.

    float16 holds no key of 2**16, with which more than 16 bits would be asked for.
    """
    if bits == 16:
        return 24
    return next((full for full in (8, 11, 24) if full - 2 <= bits <= full + 1), bits)


def in_words(read: dict[str, int | bool]) -> str:
    """The bits as a line.

    >>> in_words({"scores": 24, "weights": 11, "values": 11, "flushes": False})
    'scores 24 bits, weights 11, values 11; small weights kept'
    """
    if not read:
        return "not read: a softcap, a sink or a bias is in the way, or no query sees two keys"
    steps = [name for name in ("scores", "weights", "values", "sums") if name in read]
    said = ", ".join(f"{name} {read[name]}" + " bits" * (not i) for i, name in enumerate(steps))
    return f"{said}; small weights {'flushed to 0' if read['flushes'] else 'kept'}"
