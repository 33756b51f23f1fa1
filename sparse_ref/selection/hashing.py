"""Reformer: keys whose hash is near the query's in the sorted order of a round."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Ints, integer, integers
from sparse_ref.patterns import Causal, Pattern

from .inputs import Row, inputs
from .selection import Selection


def lsh(
    qk: Any,
    buckets: Any,
    *,
    chunk_length: int = 64,
    chunks_before: int = 1,
    chunks_after: int = 0,
    visible: Pattern = Causal(),  # noqa: B008 - a value, like a number
) -> Selection:
    """The keys that any round of locality-sensitive hashing shows a query.

    Steps, for every head:

    1. Every round sorts the positions by bucket, equal ones by position; the sorted rounds stand
       one after another and are cut into chunks. A chunk sees itself and its neighbours,
       cyclically over all rounds.
    2. Keep, for every query, the visible keys that some round shows it. Not itself, unless there is
       nothing else.

    As a set this is the paper, which divides by how often a key is seen. Released code counts a
    key once for every time it is shown: `mechanisms.reformer`, where all disagreements stand and
    which has one rule with this. For one round both are the same but at a round's ends. The
    paper's masking of other buckets within a chunk is done by neither.

    O(rounds n chunk_length) pairs, O(n^2) memory as written here. Defaults are transformers':
    chunks of 64, one before, none after.

    Parameters
    ----------
    qk : (..., h, n, d) floats
        Queries and keys at once; only their number counts here.
    buckets : (..., h, rounds, n) ints
        From `mechanisms.lsh_buckets`, or any.
    chunk_length : int >= 1, divides n if smaller
    chunks_before, chunks_after : int >= 0
    visible : Pattern

    Returns
    -------
    Selection of keys, one list a head.

    Source: Kitaev, Kaiser & Levskaya 2020 (arXiv:2001.04451). Witness: transformers,
    `LSHSelfAttention`, through `mechanisms.reformer`.

    >>> buckets = np.array([[[0, 1, 0, 1]]])
    >>> lsh(np.zeros((1, 4, 1)), buckets, chunk_length=2, chunks_before=0).indices[0, 0].tolist()
    [[0], [1], [0], [1]]
    """
    given = inputs(qk, qk, visible, None, None)
    b, h, n, _ = given.q.shape
    rounds = integers("buckets", buckets, ndim=np.ndim(qk))
    if rounds.shape[:-2] != np.shape(qk)[:-2] or rounds.shape[-1] != n:
        raise ValueError(
            f"buckets must have shape {(*np.shape(qk)[:-2], 'rounds', n)}, got {rounds.shape}"
        )
    chunk = chunk_of(chunk_length, n)
    before = integer("chunks_before", chunks_before)
    after = integer("chunks_after", chunks_after)
    counts = chunk_counts(rounds.reshape(b, h, rounds.shape[-2], n), chunk, before, after)

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        return but_itself(counts[row.batch] * row.seen(slice(None)))[:, cut] > 0, row.keys

    return Selection(given.table(rule, each=1), heads=h, kv_heads=h, visible=visible)


def chunk_of(chunk_length: object, n: int) -> int:
    """The chunk length, checked."""
    chunk = integer("chunk_length", chunk_length, 1)
    if n > chunk and n % chunk:
        raise ValueError(f"chunk_length must divide the length {n}, got {chunk}")
    return chunk


def chunk_counts(rounds: Ints, chunk: int, before: int, after: int) -> Ints:
    """How many times each query's chunks hold each key, (b, h, n, n), from (b, h, rounds, n)."""
    b, h, _, n = rounds.shape
    counts = np.zeros((b, h, n, n), dtype=np.int64)
    if n <= chunk:
        return counts + 1
    order = np.argsort(rounds, axis=-1, kind="stable").reshape(b, h, -1, chunk)
    shifts = range(-before, after + 1)
    near = np.concatenate([np.roll(order, -shift, axis=2) for shift in shifts], axis=3)
    for at in np.ndindex(b, h):
        np.add.at(counts[at], (order[at][:, :, None], near[at][:, None, :]), 1)
    return counts


def but_itself(counts: Ints) -> Ints:
    """Without the query itself, but where there is nothing else: then it alone, once."""
    itself = np.eye(counts.shape[-1], dtype=bool)
    others: Ints = np.where(itself, 0, counts)
    alone = ~others.any(axis=-1, keepdims=True) & (counts > 0)
    return np.where(alone, 1, others)
