"""Selectors once more, dense and one query at a time, and able to be wrong on purpose.

A second derivation: it shares no part with `sparse_ref.selection`, which the tests hold against it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Floats, Ints


class Asked(NamedTuple):
    """One query of one list: what it sees, in order of position, and where it is."""

    q: Floats  # (heads, d) of the list
    k: Floats  # (n, d)
    at: Ints  # (n,) positions of the keys
    seen: Ints  # which of them it sees
    p: int
    weights: Floats | None


def chosen(case: Any, **wrong: Any) -> Ints:
    """The indices (b, s, m, k), -1 padded, of a `SelectorCase`; `wrong` names what to do wrong."""
    q, k = (np.asarray(x, np.float64) for x in case.arrays[:2])
    k = k if k.ndim == q.ndim else k[:, None]
    (b, h, m, _), n, options = q.shape, k.shape[2], case.options
    weights = np.asarray(case.arrays[2], np.float64) if len(case.arrays) > 2 else None
    lists = {"lightning_indexer": 1, "qsa": 1, "nsa_blocks": k.shape[1]}.get(case.selector) or h
    at = np.asarray(options.get("kv_positions", np.arange(n)))
    start, each = options.get("q_start", n - m), h // lists
    rows: list[list[int]] = []
    for batch in range(b):
        for one in range(lists):
            keys = k[batch, one * each // (h // k.shape[1])][at >= 0]
            for t in range(m):
                asked = Asked(
                    q[batch, one * each : (one + 1) * each, t], keys, at[at >= 0],
                    np.flatnonzero(at[at >= 0] <= start + t), start + t,
                    None if weights is None else weights[batch, t],
                )  # fmt: skip
                rows.append(RULES[case.selector](asked, options, wrong))
    width = max(map(len, rows), default=0)
    table = np.array([row + [-1] * (width - len(row)) for row in rows], dtype=np.int64)
    return table.reshape(b, lists, m, width)


def rotated(mean: Any, position: Any) -> Floats:
    """A stand-in for norm and rotation: by an exact quarter turn a position, so ties stay ties."""
    x = np.sign(np.asarray(mean, np.float64)) * np.minimum(np.abs(mean), 1)
    turned = [x, np.roll(x, 1, axis=-1), -x, -np.roll(x, 1, axis=-1)]
    quarter = np.asarray(position) % 4
    return np.asarray(sum(np.where((quarter == i)[:, None], turned[i], 0.0) for i in range(4)))


def _ranked(scores: dict[int, float], count: int, forced: set[int], wrong: Any) -> list[int]:
    """The best of some candidates, the forced ones first."""
    sign = -1 if wrong.get("last") else 1
    order = sorted(scores, key=lambda i: (i not in forced, -scores[i], sign * i))
    return order[:count]


def _filled(best: list[int], count: int, every: list[int], wrong: Any) -> list[int]:
    """What sees-too-few rows are made of, if that is done wrong."""
    if wrong.get("dense") and count >= len(every):
        return every
    if wrong.get("fill"):
        best = best + [i for i in every if i not in best][: max(count - len(best), 0)]
    return best


def _keys(asked: Asked, options: Any, wrong: Any) -> list[int]:
    """topk_keys, and the lightning indexer where there are weights."""
    scores = {}
    for j in asked.seen:
        dots = asked.q @ asked.k[j]
        if asked.weights is not None:
            dots = np.maximum(dots, 0) if wrong.get("relu", True) else dots
            dots = dots * (asked.weights if wrong.get("weighted", True) else 1)
        scores[int(asked.at[j])] = float(dots.sum())
    best = _ranked(scores, options["count"], set(), wrong)
    return _filled(best, options["count"], asked.at.tolist(), wrong)


def _forced(asked: Asked, size: int, local: int, initial: int, wrong: Any) -> set[int]:
    own = asked.p // size
    local = (local + wrong.get("more", 0)) if wrong.get("local", True) else 0
    return set(range(own - local + 1, own + 1)) | set(range(initial))


def _blocks(asked: Asked, options: Any, wrong: Any, pool: str, local: int) -> list[int]:
    """Blocks by the pooled scores of their keys."""
    size, count, scores = options["block_size"], options["count"], {}
    if wrong.get("swap"):
        pool = {"mean": "max", "max": "mean"}[pool]
    for block in sorted({int(asked.at[j]) // size for j in asked.seen}):
        own = [j for j in range(len(asked.at)) if asked.at[j] // size == block]
        keys = own if wrong.get("pool_all") else [j for j in own if j in asked.seen]
        dots = [float(asked.q[0] @ asked.k[j]) for j in keys]
        scores[block] = max(dots) if pool == "max" else sum(dots) / len(dots)
    best = _ranked(scores, count, _forced(asked, size, local, 0, wrong), wrong)
    return _filled(best, count, np.unique(asked.at // size).tolist(), wrong)


def _topk_blocks(asked: Asked, options: Any, wrong: Any) -> list[int]:
    return _blocks(asked, options, wrong, options.get("pool", "mean"), 0)


def _moba(asked: Asked, options: Any, wrong: Any) -> list[int]:
    return _blocks(asked, options, wrong, "mean", 1)


def _msa(asked: Asked, options: Any, wrong: Any) -> list[int]:
    return _blocks(asked, options, wrong, "max", options["local"])


def _nsa(asked: Asked, options: Any, wrong: Any) -> list[int]:
    """Importance from compressed keys, by the formula counted out."""
    size, window, stride = (options[name] for name in ("block_size", "window", "stride"))
    end = int(asked.at[-1]) + 1 if len(asked.at) else 0
    starts = [c * stride for c in range((end - window) // stride + 1)] if end >= window else []
    q = asked.q.mean(axis=0, keepdims=True) if wrong.get("mean_q") else asked.q
    mine = [c for c, s in enumerate(starts) if s + window - 1 + wrong.get("late", 0) <= asked.p]
    p = np.zeros(len(starts))
    for head in q:
        dots = [head @ asked.k[starts[c] : starts[c] + window].mean(axis=0) for c in mine]
        weights = np.exp(np.array(dots) * len(head) ** -0.5)
        p[mine] += weights / weights.sum() if mine else 0
    up, down = wrong.get("signs", (1, -1))
    scores: dict[int, float] = {}
    for block in sorted({int(asked.at[j]) // size for j in asked.seen}):
        places = [
            size // stride * block + up * i + down * j
            for i in range(size // stride)
            for j in range(window // stride)
        ]
        scores[block] = round(sum(p[c] for c in places if 0 <= c < len(p)), 12)
    local, initial = options.get("local", 2), options.get("initial", 1)
    forced = _forced(asked, size, local, initial if wrong.get("initial", True) else 0, wrong)
    best = _ranked(scores, options["count"], forced, wrong)
    return _filled(best, options["count"], np.unique(asked.at // size).tolist(), wrong)


def _qsa(asked: Asked, options: Any, wrong: Any) -> list[int]:
    """Groups of visible keys, and the tail."""
    ratio, budget, prepare = options.get("ratio", 4), options["budget"], options["prepare"]
    whole = len(asked.seen) // ratio
    groups = [asked.seen[i * ratio : (i + 1) * ratio] for i in range(whole)]
    scores = {}
    for i, group in enumerate(groups):
        if wrong.get("early"):
            key = prepare(asked.k[group], asked.at[group]).mean(axis=0)
        else:
            key = prepare(asked.k[group].mean(axis=0)[None], asked.at[group[:1]])[0]
        dots = asked.q @ key
        scores[i] = float((np.maximum(dots, 0) if wrong.get("relu", True) else dots).sum())
    count = budget if wrong.get("groups") else budget // ratio
    best = _ranked(scores, count, set(), wrong)
    tail = asked.seen[whole * ratio :] if wrong.get("tail", True) else asked.seen[:0]
    return [int(asked.at[j]) for i in best for j in groups[i]] + [int(asked.at[j]) for j in tail]


RULES = {
    "topk_keys": _keys, "lightning_indexer": _keys, "topk_blocks": _topk_blocks, "moba": _moba,
    "msa": _msa, "nsa_blocks": _nsa, "qsa": _qsa,
}  # fmt: skip
