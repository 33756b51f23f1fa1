"""Caches that evict: what every query of a text sees while the cache is kept small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints, integer
from sparse_ref.patterns import Causal

from .inputs import Inputs, Row, inputs
from .mass import scale_of
from .picks import best
from .scores import probabilities, products
from .selection import Selection


def tova(q: Any, k: Any, *, count: int, prompt: int = 1, scale: float | None = None) -> Selection:
    """What each query sees when the key with the least attention leaves a full cache.

    Steps, one query after the other; the first `prompt` are one step, with everything before seen:

    1. A query sees the cache and itself.
    2. If that is more than `count` keys, the `count` with the greatest attention of this query stay
       (of the last one, after the prompt), averaged over all heads: one cache for all heads. Of
       equal ones the smaller position stays.

    O(n count d) time a head after the prompt. Keys keep the positions they were rotated at. The new
    key may be the one that leaves, as in the released code; kvpress keeps it always, and evicts
    once, after the prompt. Released code sorts what stays by position, which changes nothing here.

    Parameters
    ----------
    q : (..., h, n, d) floats
    k : (..., g, n, d) floats; g divides h
    count : int >= 1
    prompt : int >= 1
    scale : float, default d ** -0.5

    Returns
    -------
    Selection of keys, one list for all heads: at most count + 1 a query after the prompt.

    Source: Oren et al. 2024 (arXiv:2401.06104), and schwartz-lab-NLP/TOVA, `tova_cache.py`.
    Witness: kvpress 0.5.5, `TOVAPress.score`, for what stays after a prompt; the released cache
    kept the same at every step when it was run once.

    >>> q, k = np.ones((1, 4, 1)), np.array([[[3.0], [1.0], [2.0], [0.0]]])
    >>> tova(q, k, count=2).indices[0, 0].tolist()
    [[0, -1, -1], [0, 1, -1], [0, 1, 2], [0, 2, 3]]
    """
    given, count, prompt = text(q, k), integer("count", count, 1), integer("prompt", prompt, 1)
    factor = scale_of(scale, q)

    def run(row: Row) -> Bools:
        n = len(row.keys)
        rows, cache = np.tri(n, dtype=bool)[None], np.zeros(n, dtype=bool)
        for t in range(min(prompt, n) - 1, n):
            if t >= prompt:
                cache[t] = True
                rows[0, t] = cache
            p = _attention(row, t, rows[:, t], factor).mean(axis=0, keepdims=True)
            cache = best(p, rows[:, t], count)[0]
        return rows

    return _selection(given, run)


def h2o(
    q: Any, k: Any, *, heavy: int, recent: int, prompt: int = 1, scale: float | None = None
) -> Selection:
    """What each query sees when the cache keeps heavy hitters and the last keys: real eviction.

    Steps, one query after the other for every head; the first `prompt` are one step, with
    everything before seen:

    1. A query sees the cache and itself; every key gets its attention added to its score.
    2. If that is more than heavy + recent keys: the last `recent` of them stay, and of the others
       the `heavy` with the greatest score. Of equal ones the smaller position stays. What leaves
       never comes back.

    O(n (heavy + recent) d) time a head after the prompt. This is `H2OKVCache_LayerWise` as released
    (FMInference/H2O ac75c2a, `utils_real_drop`), for one batch row: it adds up the scores of a
    batch. Its rotation by place in the cache is not modelled. `utils_hh` of the same repository
    hides keys in place of evicting, and counts the coming key among the recent: one key fewer.
    Its `utils_lm_eval` is another rule, `h2o_masked`; for Llama what stands there now takes the
    hitters from all queries at once, later ones included. kvpress's ObservedAttentionPress divides
    a key's score by the number of queries that saw it, averages groups, and evicts once.

    Parameters
    ----------
    q : (..., h, n, d) floats
    k : (..., g, n, d) floats; g divides h
    heavy, recent : int >= 0
    prompt : int >= 1
    scale : float, default d ** -0.5

    Returns
    -------
    Selection of keys, one list a query head: at most heavy + recent + 1 a query after the prompt.

    Source: Zhang et al. 2023 (arXiv:2306.14048). Witness: none that installs; the released class
    kept the same when it was run once, and the tests derive it again.

    >>> q, k = np.ones((1, 4, 1)), np.array([[[3.0], [1.0], [2.0], [0.0]]])
    >>> h2o(q, k, heavy=1, recent=1).indices[0, 0].tolist()
    [[0, -1, -1], [0, 1, -1], [0, 1, 2], [0, 2, 3]]
    """
    given, prompt = text(q, k), integer("prompt", prompt, 1)
    heavy, recent, factor = integer("heavy", heavy), integer("recent", recent), scale_of(scale, q)

    def run(row: Row) -> Bools:
        h, n = row.q.shape[:2]
        rows = np.repeat(np.tri(n, dtype=bool)[None], h, axis=0)
        score, cache = np.zeros((h, n)), np.zeros((h, n), dtype=bool)
        for t in range(n):
            if t >= prompt:
                cache[:, t] = True
                rows[:, t] = cache
            seen = rows[:, t]
            score += _attention(row, t, seen, factor)
            from_end = np.cumsum(seen[:, ::-1], axis=1)[:, ::-1]
            late = seen & (from_end <= recent)
            cache = late | best(score, seen & ~late, heavy)
        return rows

    return _selection(given, run)


def h2o_masked(q: Any, k: Any, *, heavy: int, recent: int, scale: float | None = None) -> Selection:
    """What each query sees in H2O's simulation by a mask, which most published numbers come from.

    Steps, for every head, with P the attention of a query over *all* keys before it:

    1. The first `heavy` queries see everything before; keys' scores are the sums of their P.
    2. Query t keeps the heavy - 1 keys with the greatest score, of equal ones the smaller position,
       and itself. P of t is added to the scores, then all scores but those of the kept keys become
       0, for good.
    3. It sees the kept keys and the last recent + 1, itself among them - also keys that step 2 has
       dropped.

    O(n^2 d) time a head. This is `local_heavy_hitter_mask` of FMInference/H2O ac75c2a
    (`utils_lm_eval`, OPT and GPT-NeoX; for Llama it is commented out). Unlike `h2o`, what a key
    scores does not depend on what was evicted, and recent keys compete with heavy ones. Sizes
    have no defaults: in the paper each is a tenth of the text.

    Parameters
    ----------
    q, k, scale : as `h2o` takes them
    heavy, recent : int >= 1 and >= 0

    Returns
    -------
    Selection of keys, one list a query head: at most heavy + recent + 1 a query.

    Source: Zhang et al. 2023 (arXiv:2306.14048). Witness: none that installs; the released function
    made the same mask when it was run once, and the tests derive it again.

    >>> q, k = np.ones((1, 4, 1)), np.array([[[3.0], [1.0], [2.0], [0.0]]])
    >>> h2o_masked(q, k, heavy=2, recent=0).indices[0, 0].tolist()
    [[0, -1], [0, 1], [0, 2], [0, 3]]
    """
    given, heavy = text(q, k), integer("heavy", heavy, 1)
    recent, factor = integer("recent", recent), scale_of(scale, q)

    def run(row: Row) -> Bools:
        h, n = row.q.shape[:2]
        causal = np.tri(n, dtype=bool)
        rows, score = np.repeat(causal[None], h, axis=0), np.zeros((h, n))
        for t in range(n):
            p = _attention(row, t, causal[t], factor)
            if t < heavy:
                score += p
                continue
            kept = best(score, causal[t - 1], heavy - 1)
            kept[:, t] = True
            score = np.where(kept, score + p, 0.0)
            rows[:, t] = kept | (causal[t] & (np.arange(n) >= t - recent))
        return rows

    return _selection(given, run)


def text(q: Any, k: Any) -> Inputs:
    """The arrays of a whole text, checked: one query for every key."""
    given = inputs(q, k, Causal(), None, None)
    if given.q.shape[2] != given.k.shape[2]:
        raise ValueError(
            f"q must have one query for each of the {given.k.shape[2]} keys, got {given.q.shape[2]}"
        )
    return given


def _attention(row: Row, t: int, seen: Bools, factor: float) -> Floats:
    """The probabilities of one query in every head, (h, n)."""
    return probabilities(factor * products(row.q[:, t : t + 1], row.k)[:, 0], seen)


def _selection(given: Inputs, run: Callable[[Row], Bools]) -> Selection:
    """What `run` answers for every batch row, (1 or h, n, n)."""

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        return run(row)[:, cut], row.keys

    h, g = given.q.shape[1], given.k.shape[1]
    return Selection(given.table(rule, each=1), heads=h, kv_heads=g)
