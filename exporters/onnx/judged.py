"""One attention of a run against the oracle: its output, its lse and its block lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr

from .observed import Observed, runtime_names, with_values
from .selections_judged import chosen

Array = NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """One thing that was compared in one case; `wrong` says what is wrong with it, if anything.

    `share` is the largest error over its bound: at most 1 where all is right.
    """

    node: str
    what: str
    case: str
    error: float
    share: float
    wrong: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.wrong is None


def judge(
    one: Observed, got: Mapping[str, Array], kinds: Mapping[str, str], case: str
) -> Iterator[Verdict]:
    """Compare with `sr.attention` and `sr.error_bound` on the values that reached the node.

    `got` holds the values by name, `kinds` the element types that they have in the model.
    """
    q, k, v = (got[name] for name in (one.query, one.key, one.value))
    if one.kv_len is not None:
        n = int(got[one.kv_len].reshape(-1)[0])
        k, v = k[:, :, :n], v[:, :, :n]
    b, m, n = len(q), q.shape[2], k.shape[2]
    given = {name: got[name] for name in runtime_names(one.pattern)}
    pattern = with_values(one.pattern, given, b)
    if one.choice is not None:  # then attention is over the keys that the file chose
        pattern, off, wrong = chosen(one.choice, got, one.lists, (b, q.shape[1], m, n))
        yield Verdict(one.name, "choice", case, float(off), np.inf if off else 0.0, wrong)
    start = _rows(got, one.q_start, b, n - m if one.choice is None else 0)  # lists count from 0
    length = np.clip(_rows(got, one.key_length, b, n), 0, n)
    options: dict[str, Any] = {
        "scale": one.scale, "softcap": one.softcap, "q_start": start, "kv_lengths": length,
        "sink_logits": None if one.sinks is None
        else np.broadcast_to(got[one.sinks], (q.shape[1],)),
    }  # fmt: skip
    want = sr.attention(q, k, v, pattern, **options)
    kind = kinds.get(one.output, got[one.output].dtype.name)
    bound = sr.error_bound(q, k, v, pattern, **options, **_arithmetic(one, kind))
    for what, name in (("out", one.output), ("lse", one.lse)):
        if name is not None:
            yield _compared(one, what, case, got[name], getattr(want, what), getattr(bound, what))
    if one.lists and one.choice is None:
        yield _listed(one, got, pattern, start, length, case)


def _rows(got: Mapping[str, Array], name: str | None, b: int, default: int) -> NDArray[np.int64]:
    """An integer for every batch row."""
    value = np.asarray(default) if name is None else got[name].reshape(-1)
    return np.broadcast_to(value, (b,)).astype(np.int64)


def _arithmetic(one: Observed, name: str) -> dict[str, Any]:
    """What the operator promises: ours sums in float32 at least, another's in what it may."""
    if one.ours or name in ("float32", "float64"):
        inside = "float64" if name == "float64" else "float32"
        return {"arithmetic": inside, "output": name}
    return {"arithmetic": sr.Arithmetic(name, "float32", name, "float32", name)}


def _compared(
    one: Observed, what: str, case: str, got: Array, want: Array, bound: Array
) -> Verdict:
    if got.shape != want.shape:
        said = f"{what} must have shape {want.shape}, got {got.shape}"
        return Verdict(one.name, what, case, np.inf, np.inf, said)
    got = got.astype(np.float64)
    # a value that is seen and infinite gives itself in the oracle, and NaN where weights are
    # multiplied: the operator's page allows both
    same = (got == want) | (np.isnan(got) & ~np.isfinite(want) & (what == "out" or np.isnan(want)))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(same, 0.0, np.abs(got - want))
        share = np.where(same, 0.0, error / bound)
    error, share = (np.where(np.isnan(x), np.inf, x) for x in (error, share))
    beyond = np.argwhere(share > 1)
    wrong = None
    if len(beyond):
        at = tuple(beyond[0].tolist())
        axes = zip(("batch", "head", "query", "column"), at, strict=False)
        where = ", ".join(f"{name} {i}" for name, i in axes)
        wrong = (
            f"{len(beyond)} of {share.size} numbers of {what} beyond the bound, the first at "
            f"{where}: want {want[at]:.6g}, got {got[at]:.6g}"
        )
    worst, most = (float(x.max(initial=0.0)) for x in (error, share))
    return Verdict(one.name, what, case, worst, most, wrong)


def _listed(
    one: Observed,
    got: Mapping[str, Array],
    pattern: sr.Pattern,
    start: NDArray[np.int64],
    length: NDArray[np.int64],
    case: str,
) -> Verdict:
    """Whether block lists and tiles say the pattern, pair by pair."""
    q, k = got[one.query], got[one.key]
    (b, h, m, _), n = q.shape, k.shape[2]
    off, first = 0, ""
    for i in range(b):
        keys = int(length[i])
        row = pattern if pattern.batches is None else pattern.for_batch(i)
        for head in range(h):
            alone = row.at(head % row.heads)
            want = alone.counts(m, n, q_start=int(start[i]))[0, :, :keys]
            said = _counts([got[name] for name in one.lists], i, head, m, n)[:, :keys]
            differ = np.argwhere(said != want)
            off += len(differ)
            if len(differ) and not first:
                at = tuple(differ[0].tolist())
                first = (
                    f"batch {i}, head {head}, query {at[0]}, key {at[1]} counts "
                    f"{want[at]} times, listed {said[at]}"
                )
    wrong = f"block lists differ from the pattern in {off} pairs: {first}" if off else None
    return Verdict(one.name, "lists", case, float(off), np.inf if off else 0.0, wrong)


def _counts(lists: list[Array], batch: int, head: int, m: int, n: int) -> Array:
    """How often the lists of one head show each key to each query, (m, n)."""
    indices, counts, ids, masks = lists
    at = batch % len(counts), head % counts.shape[1]
    _, bq, bk = masks.shape
    columns = -(-n // bk)
    dense = np.zeros((counts.shape[2], columns, bq, bk), dtype=np.int64)
    for row, count in enumerate(counts[at]):
        listed = indices[at][row, :count]
        if len(listed) and not 0 <= listed.min() <= listed.max() < columns:
            return np.full((m, n), -1)
        np.add.at(dense[row], listed, masks[ids[at][row, :count]])
    return dense.swapaxes(1, 2).reshape(-1, columns * bk)[:m, :n]
