"""Reformer: attention among tokens that hash alike, in several rounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Floats, Ints, floats, integer
from sparse_ref.gradients import attention_vjp
from sparse_ref.reference import attention
from sparse_ref.results import Attention
from sparse_ref.selection.hashing import but_itself, chunk_counts, chunk_of

from ._border import Counted, Extents, lengths_of


class ReformerGradients(NamedTuple):
    """Gradients of the shared queries and keys, and of the values.

    >>> ReformerGradients([0.0], [1.0]).dv
    [1.0]
    """

    dqk: Any
    dv: Any


def lsh_buckets(qk: Any, rotations: Any, *, lengths: Any = None) -> Ints:
    """The bucket of every token in every round: argmax of [x R, -x R].

    Parameters
    ----------
    qk : (b, h, n, d) floats
    rotations : (h, d, rounds, r) floats, or a sequence of them
        Random normal numbers; r is half the number of buckets. Several: the bucket is the number
        whose digits are their argmaxes, the first the lowest (transformers' factorised form).
    lengths : int or (b,) ints, default n
        Padding gets one more bucket of its own, the last, if there is any in the batch.

    Returns
    -------
    (b, h, rounds, n) int64; equal maxima: the smaller. Comparing is all that is done with them, so
    only rounding can make two implementations differ. Time O(rounds n d r).

    Published code draws the rotations itself (transformers from `hash_seed`), and puts padding into
    a bucket of its own, as here. Its default number of buckets is 2^floor(log2(2 n / chunk)).

    Source: Kitaev, Kaiser & Levskaya 2020 (arXiv:2001.04451); Andoni et al. 2015
    (arXiv:1509.02897). Witness: transformers, `LSHSelfAttention`, which answers its buckets.

    >>> lsh_buckets(np.array([[[[1.0], [-2.0]]]]), np.ones((1, 1, 1, 1)))[0, 0, 0]
    array([0, 1])
    """
    sizes = Extents()
    x = sizes.floats("qk", qk, "b h n d")
    factors = list(rotations) if np.ndim(rotations[0]) == 4 else [rotations]
    bucket, buckets = np.zeros((1, 1, 1, 1), dtype=np.int64), 1
    for i, factor in enumerate(factors):
        name = f"rotations[{i}]" if len(factors) > 1 else "rotations"
        turned = np.einsum(
            "bhnd,hdtr->bhtnr", x, sizes.floats(name, factor, f"h d rounds r{i}")
        )  # fmt: skip
        digit = np.argmax(np.concatenate([turned, -turned], axis=-1), axis=-1)
        bucket, buckets = bucket + buckets * digit, buckets * 2 * turned.shape[-1]
    valid = np.arange(sizes["n"]) < lengths_of(lengths, sizes["b"], sizes["n"])[:, None]
    return np.where(valid[:, None, None], bucket, buckets)


def reformer(
    qk: Any,
    v: Any,
    buckets: Any,
    *,
    chunk_length: int = 64,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool = False,
    lengths: Any = None,
    eps: float = 1e-6,
) -> Attention:
    """LSH attention with shared queries and keys, every round at once.

    1. Queries x, keys x / sqrt(|x|^2 + d eps): their direction.
    2. Every round sorts the positions by bucket, equal ones by position. The sorted rounds stand
       one after another and are cut into chunks; a chunk sees itself and its neighbours,
       *cyclically*: the first chunk of a round looks back at the last of the round before, the
       first of all at the last of all.
    3. A key that is after its query (causal) or padding is not seen. A token sees itself only if
       no round shows it anything else.
    4. One softmax of q.k, with no 1 / sqrt(d); a key that t chunks show counts t times. That is
       what joining the rounds by their log-sum-exps gives.

    n at most chunk_length: everybody sees everybody, once. Time O(rounds n chunk_length).

    What published code does otherwise. The paper divides by how often a key is seen and hides
    other buckets within a chunk; transformers and trax do neither, as here, and lucidrains'
    package has a switch for each. lucidrains also divides by sqrt(d). All give a token itself a
    finite score (-1e5) in place of step 3: in float32 a round that shows a token nothing but
    itself then has a log-sum-exp known to 0.008 only, and where *all* rounds do - some of the
    first rows, causal - the shares of the rounds do not sum to 1. In float64 nothing is left of it.

    Parameters
    ----------
    qk : (b, h, n, d) floats
    v : (b, h, n, e) floats
    buckets : (b, h, rounds, n) ints
        From `lsh_buckets`, or any; compared only within a round.
    chunk_length : int >= 1, divides n if smaller
    chunks_before, chunks_after : int >= 0
    causal : bool
    lengths : int or (b,) ints, default n
    eps : float

    Returns
    -------
    Attention(out, lse), float64. Where a token sees itself only, lse is that score's.

    Source: Kitaev, Kaiser & Levskaya 2020 (arXiv:2001.04451). Witness: transformers,
    `LSHSelfAttention`, to 1e-11 in float64.

    >>> x = np.array([[[[1.0], [1.0], [-1.0], [1.0]]]])
    >>> buckets = lsh_buckets(x, np.ones((1, 1, 1, 1)))
    >>> reformer(x, np.eye(4)[None, None], buckets, chunk_length=2, chunks_before=0).out[0, 0]
    array([[0., 1., 0., 0.],
           [1., 0., 0., 0.],
           [0., 0., 0., 1.],
           [0., 0., 1., 0.]])
    """
    given = _Reformer(
        qk, v, buckets, chunk_length, chunks_before, chunks_after, causal, lengths, eps
    )  # fmt: skip
    return attention(given.qk, given.k, given.v, Counted(given.counts), scale=1.0, q_start=0)


def reformer_vjp(
    qk: Any,
    v: Any,
    buckets: Any,
    dout: Any,
    *,
    chunk_length: int = 64,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool = False,
    lengths: Any = None,
    eps: float = 1e-6,
) -> ReformerGradients:
    """Gradients of `sum(out * dout)` for `reformer`; buckets are constants.

    dqk is the sum of the queries' and, through their norm, the keys' gradients.

    >>> x = np.array([[[[1.0], [1.0], [-1.0], [1.0]]]])
    >>> up = np.ones((1, 1, 4, 1))
    >>> reformer_vjp(x, x, np.zeros((1, 1, 1, 4), dtype=int), up, eps=0).dv[0, 0, :, 0].round(3)
    array([1.27, 1.27, 0.19, 1.27])
    """
    given = _Reformer(
        qk, v, buckets, chunk_length, chunks_before, chunks_after, causal, lengths, eps
    )  # fmt: skip
    back = attention_vjp(
        given.qk, given.k, given.v, Counted(given.counts), dout, scale=1.0, q_start=0
    )  # fmt: skip
    along = np.sum(given.k * back.dk, axis=-1, keepdims=True)
    return ReformerGradients(back.dq + (back.dk - given.k * along) / given.root, back.dv)


class _Reformer:
    """The checked arguments, the keys, and how often each query counts each."""

    def __init__(
        self, qk: Any, v: Any, buckets: Any, chunk: int, before: int, after: int,
        causal: bool, lengths: Any, eps: float,
    ) -> None:  # fmt: skip
        sizes = Extents()
        self.qk: Floats = sizes.floats("qk", qk, "b h n d")
        self.v = sizes.floats("v", v, "b h n e")
        rounds = sizes.integers("buckets", buckets, "b h rounds n")
        b, _, n, d = self.qk.shape
        chunk = chunk_of(chunk, n)
        before = integer("chunks_before", before)
        after = integer("chunks_after", after)
        if not isinstance(causal, bool):
            raise TypeError(f"causal must be True or False, got {causal!r}")
        eps = float(floats("eps", float(eps)))
        self.root = np.sqrt(np.sum(self.qk**2, axis=-1, keepdims=True) + d * eps)
        # a token of zeros has no direction: its key is 0, as with any eps
        self.root = np.where(self.root == 0, 1.0, self.root)
        self.k = self.qk / self.root
        valid = np.arange(n) < lengths_of(lengths, b, n)[:, None]
        allowed = valid[:, None, None, :] & (np.tri(n, dtype=bool) if causal else True)
        self.counts = but_itself(chunk_counts(rounds, chunk, before, after) * allowed)
