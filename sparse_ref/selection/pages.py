"""Quest: pages of the cache by an upper bound of what any of their keys can score."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Ints, integer
from sparse_ref.patterns import Causal, Pattern

from .inputs import Row, inputs
from .picks import best
from .scores import Blocked
from .selection import Selection


def quest(
    q: Any,
    k: Any,
    *,
    count: int,
    page_size: int = 16,
    visible: Pattern = Causal(),  # noqa: B008 - a value, like a number
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """The `count` pages of keys with the greatest upper bound of q . k, for every query head.

    Steps, for every query:

    1. Bound of a page: the sum over channels c of the greatest q[c] k[c] of its visible keys, which
       is max(q[c] min k[c], q[c] max k[c]). It is at least the page's best score, never less.
    2. Keep the min(count, visible) pages with the greatest bound, of equal ones the smaller. No
       page is forced, the query's own neither. Inside, only visible keys are attended to.

    O(n / page_size d) time a query with minima and maxima kept, O(n d) as written here. Keys are
    rotated before. The released evaluation code does this in decoding only (one query; prefill and
    the first two layers are dense), keys repeated for grouped heads first, and has
    count = max(3, budget // page_size); its last page may be incomplete and competes with the
    others, as here. Its kernels keep the current page always, by another way [not checked]. The
    default page of 16 is the paper's.

    Parameters
    ----------
    q : (..., h, m, d) floats
    k : (..., g, n, d) floats; g divides h
    count : int >= 0
    page_size : int >= 1
    visible, q_start, kv_positions : as `topk_keys` takes them

    Returns
    -------
    Selection of blocks, one list a query head.

    Source: Tang et al. 2024 (arXiv:2406.10774). Witness: none that installs; the released
    evaluation code (mit-han-lab/Quest 01c1623, `quest_attention.py`) chose the same when it was run
    once, and its trick - keys times the query's signs, their maximum, a product - is the second
    derivation in the tests.

    >>> q, k = np.ones((1, 1, 2)), np.array([[[3.0, 0.0], [0.0, 3.0], [2.0, 2.0], [2.0, 2.0]]])
    >>> quest(q, k, count=1, page_size=2).indices[0, 0].tolist()  # 6 beats 4, though no key is 6
    [[0]]
    """
    given = inputs(q, k, visible, q_start, kv_positions)
    count, size = integer("count", count), integer("page_size", page_size, 1)
    _, h, _, d = given.q.shape
    g, n = given.k.shape[1:3]

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        pages, seen = Blocked(row.keys, size), row.seen(cut)
        if not len(pages.starts):
            return np.broadcast_to(seen, (h, *seen.shape)), row.keys
        keys = np.repeat(row.k, h // g, axis=0)
        with np.errstate(invalid="ignore", over="ignore"):
            terms = row.q[:, cut][:, :, None] * keys[:, None]
            terms = np.where(seen[:, :, None], terms, -np.inf)
            bounds = np.maximum.reduceat(terms, pages.starts, axis=2).sum(axis=-1)
        return best(bounds, pages.any(seen), count), pages.numbers

    indices = given.table(rule, each=h * n * d)
    return Selection(indices, heads=h, kv_heads=g, key_block=size, visible=visible)
