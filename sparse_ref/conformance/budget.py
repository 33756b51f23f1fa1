"""Implementations that skip keys on purpose: not right, but held to what they may lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Floats
from sparse_ref.reference import weights

from .calling import Answer, Implementation, ask
from .case import Call


@dataclass(frozen=True)
class Budget:
    """What one that skips keys on purpose may lose, in every case.

    Parameters
    ----------
    error : float
        The largest |out - want| / |want|, Euclidean over the whole output.
    recall : float
        The least share of the attention that the keys it reads have by right, on average over the
        rows.

    >>> import sparse_ref as sr
    >>> def recent(q, k, v, pattern):  # of all keys that are seen the last 12
    ...     return sr.attention(q, k, v, pattern & sr.SlidingWindow(11, 0)).out
    >>> one = sr.cases(quick=True, only="causal/b1h6g2-13x13-d5e7/random", options=False)[:1]
    >>> sr.check(recent, one).counts, sr.check(recent, one, budget=Budget(0.5, 0.9)).counts
    ({'FAIL': 1}, {'APPROXIMATE': 1})
    """

    error: float = 0.1
    recall: float = 0.9

    def __post_init__(self) -> None:
        if not self.error >= 0:
            raise ValueError(f"error must be >= 0, got {self.error!r}")
        if not 0 <= self.recall <= 1:
            raise ValueError(f"recall must be between 0 and 1, got {self.recall!r}")


class Loss(NamedTuple):
    """What was lost: the relative error, and the share of the attention that was kept."""

    error: float
    recall: float | None  # None for gradients
    leaks: bool  # a key is read that nobody may see

    def within(self, budget: Budget) -> bool:
        """Whether that is within the budget; NaN is not."""
        kept = self.recall is None or self.recall >= budget.recall
        return self.error <= budget.error and kept and not self.leaks

    def __str__(self) -> str:
        kept = "" if self.recall is None else f", recall {self.recall:.4g}"
        leak = ", and it reads keys that are hidden" if self.leaks else ""
        return f"relative error {self.error:.3g}{kept}{leak}"


def measure(fn: Implementation, call: Call, answer: Any) -> Loss:
    """What an answer has lost; its weights are read by asking again with other values."""
    want = call.oracle()
    if not isinstance(answer, Answer):
        errors = [
            _error(got, right)
            for got, right in zip(answer, want, strict=True)
            if got is not None and right is not None
        ]
        return Loss(float(np.max(errors)), None, False)
    exact, read = _exact(call), _read(fn, call) > 0
    total = exact.sum(axis=-1)
    rows = total > 0
    kept = (exact * read).sum(axis=-1)[rows] / total[rows]
    leaks = bool((read & (exact == 0)).any())
    return Loss(_error(answer.out, want.out), float(kept.mean()) if kept.size else 1.0, leaks)


def _error(got: Any, want: Floats) -> float:
    off = float(np.linalg.norm(np.asarray(got, np.float64) - want))
    size = float(np.linalg.norm(want))
    return 0.0 if off == 0 else off / size if size else np.inf


def _exact(call: Call) -> Floats:
    """The right weights (b, h, m, n)."""
    b, h, m, _ = call.q.shape
    found = np.zeros((b, h, m, call.k.shape[2]))
    for i, j in np.ndindex(b, h):
        one = weights(call.q, call.k, call.pattern, **call.attributes, batch=i, head=j)
        found[i, j] = one.toarray()
    return found


def _read(fn: Implementation, call: Call) -> Floats:
    """The weights that fn gives each key (b, h, m, n): values are a unit matrix, in parts."""
    (b, h, m, _), (_, g, n, e) = call.q.shape, call.v.shape
    found = np.zeros((b, h, m, n))
    for start in range(0, n, e):
        stop = min(start + e, n)
        v = np.zeros((b, g, n, e), call.v.dtype)
        v[:, :, np.arange(start, stop), np.arange(stop - start)] = 1
        out = ask(fn, call.q, call.k, v, call.pattern, call.attributes).out
        found[..., start:stop] = out[..., : stop - start]
    return found
