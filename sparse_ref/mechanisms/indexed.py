"""DeepSeek sparse attention: an indexer chooses keys, attention reads them, a loss trains both."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparse_ref._arrays import Floats
from sparse_ref.gradients import attention_vjp
from sparse_ref.patterns import Causal, Pattern
from sparse_ref.reference import attention
from sparse_ref.results import Attention, Gradients
from sparse_ref.selection import Selection, lightning_indexer
from sparse_ref.selection.scores import probabilities

from ._border import Extents


class IndexerLoss(NamedTuple):
    """The loss of every query, (b, m), and the gradients of its sum, in the indexer's shapes.

    >>> IndexerLoss([[0.5]], [0.0], [0.0], [0.0]).loss
    [[0.5]]
    """

    loss: Any
    dindex_q: Any
    dindex_k: Any
    dindex_weights: Any


def dsa(
    q: Any,
    k: Any,
    v: Any,
    index_q: Any,
    index_k: Any,
    index_weights: Any,
    *,
    count: int = 2048,
    scale: Any = None,
    visible: Pattern = Causal(),  # noqa: B008 - a value, like a number
) -> Attention:
    """Attention over the `count` keys that the lightning indexer chooses, the same for all heads.

    1. Every query chooses keys: `selection.lightning_indexer`, where ties and short rows are said.
    2. All heads attend to those, each with its own softmax.

    In the model q, k and v are those of multi-head latent attention, k and v expanded from the
    latent or absorbed into q (then k is the latent with the rotated part, shared by all heads, and
    v the latent): the same numbers. Time O(m n H d_I) to choose, O(m count (d + e)) a head.

    transformers adds the smallest float, not -inf, at keys that were not chosen: a query with
    nothing to see - padding - attends to all keys alike there, and to none here.

    Parameters
    ----------
    q, k, v : (b, h, m, d), (b, g, n, d), (b, g, n, e) floats; the queries are the last m
    index_q, index_k, index_weights : (b, H, m, i), (b, n, i), (b, m, H) floats
    count : int >= 0
    scale : float, default d ** -0.5
    visible : Pattern

    Returns
    -------
    Attention(out, lse), float64.

    Source: DeepSeek-V3.2 (arXiv:2512.02556). Witnesses: transformers 5.23,
    `DeepseekV32Attention`; fla-core 0.6.0, `naive_dsa`.

    >>> q, k, v = np.zeros((1, 1, 3, 1)), np.zeros((1, 1, 3, 1)), np.eye(3)[None, None]
    >>> index_k, one = np.array([[[2.0], [1.0], [3.0]]]), np.ones((1, 3, 1))
    >>> dsa(q, k, v, one[:, None], index_k, one, count=2).out[0, 0]
    array([[1. , 0. , 0. ],
           [0.5, 0.5, 0. ],
           [0.5, 0. , 0.5]])
    """
    _checked(q, k, v, index_q, index_k, index_weights)
    chosen = lightning_indexer(index_q, index_k, index_weights, count=count, visible=visible)
    return attention(q, k, v, chosen, scale=scale)


def dsa_vjp(
    q: Any,
    k: Any,
    v: Any,
    index_q: Any,
    index_k: Any,
    index_weights: Any,
    dout: Any,
    *,
    count: int = 2048,
    scale: Any = None,
    visible: Pattern = Causal(),  # noqa: B008
    dlse: Any = None,
) -> Gradients:
    """Gradients of `sum(out * dout) + sum(lse * dlse)` for q, k and v.

    The choice is a constant: the indexer gets no gradient from the output, only from
    `dsa_indexer_loss`, in the paper too.

    >>> one = np.ones((1, 3, 1))
    >>> q = k = v = one[:, None]
    >>> dsa_vjp(q, k, v, q, one, one, q, count=1).dv[0, 0, :, 0]
    array([3., 0., 0.])
    """
    _checked(q, k, v, index_q, index_k, index_weights)
    chosen = lightning_indexer(index_q, index_k, index_weights, count=count, visible=visible)
    return attention_vjp(q, k, v, chosen, dout, scale=scale, dlse=dlse)


def dsa_indexer_loss(
    q: Any,
    k: Any,
    index_q: Any,
    index_k: Any,
    index_weights: Any,
    *,
    count: int | None = None,
    scale: Any = None,
    visible: Pattern = Causal(),  # noqa: B008
) -> IndexerLoss:
    """How far the indexer is from the attention it stands for, and what to do about it.

    1. Target, a constant: the main attention's probabilities summed over all heads, divided by
       their sum. With count=None over all visible keys (the paper's warm-up), else over the keys
       chosen with this count (its sparse stage).
    2. Index scores I = sum over index heads of index_weights * ReLU(index_q . index_k), as they
       are: released code has d_I ** -0.5 and H ** -0.5 in the weights, which this softmax feels.
    3. Loss of a query: KL(target || softmax(I)) over the same keys; 0 if it sees none.

    Time O(m n (h d + H d_I)): the target needs the probabilities of all heads.

    What is left open in the paper's text, and here: the heads are added before they are normalised,
    so all weigh alike; the target is normalised over the keys of its stage, not over all; keys with
    a target of 0 add nothing. In the sparse stage the choice is a constant.

    Source: DeepSeek-V3.2 (arXiv:2512.02556), as quoted in public write-ups; no training code was
    released. No runnable witness, two derivations: the tests add the loss up in loops, and compare
    the gradients with finite differences.

    >>> one = np.ones((1, 1, 2, 1))
    >>> index_k, weights = np.array([[[0.0], [1.0]]]), np.ones((1, 2, 1))
    >>> dsa_indexer_loss(one, one, one, index_k, weights).loss.round(4)
    array([[0.    , 0.1201]])
    """
    sizes, q, k, iq, ik, iw = _checked(q, k, k, index_q, index_k, index_weights)
    h, g, m, n = (sizes[a] for a in "hgmn")
    chosen = lightning_indexer(iq, ik, iw, count=n if count is None else count, visible=visible)
    factor = sizes["d"] ** -0.5 if scale is None else float(scale)
    loss = np.zeros((sizes["b"], m))
    back = IndexerLoss(loss, np.zeros_like(iq), np.zeros_like(ik), np.zeros_like(iw))
    for b in range(sizes["b"]):
        seen = _seen(chosen, m, n, b)
        scores = factor * q[b] @ np.repeat(k[b], h // g, axis=0).swapaxes(-1, -2)
        target = probabilities(scores, seen).sum(axis=0) / h
        dots = np.maximum(iq[b] @ ik[b].T, 0.0)  # (H, m, n)
        index = np.einsum("hmn,mh->mn", dots, iw[b])
        guess = probabilities(index, seen)
        some = target > 0
        logs = np.log(np.where(some, target, 1.0)) - np.log(np.where(some, guess, 1.0))
        loss[b] = np.sum(np.where(some, target * logs, 0.0), axis=-1)
        dindex = guess - target
        back.dindex_weights[b] = np.einsum("mn,hmn->mh", dindex, dots)
        ddots = np.einsum("mn,mh->hmn", dindex, iw[b]) * (dots > 0)
        back.dindex_q[b] = ddots @ ik[b]
        back.dindex_k[b] = np.einsum("hmn,hmd->nd", ddots, iq[b])
    return back


def _checked(
    q: Any, k: Any, v: Any, index_q: Any, index_k: Any, index_weights: Any
) -> tuple[Extents, Floats, Floats, Floats, Floats, Floats]:
    """The sizes, and the arrays without v."""
    sizes = Extents()
    q, k = sizes.floats("q", q, "b h m d"), sizes.floats("k", k, "b g n d")
    sizes.floats("v", v, "b g n e")
    iq = sizes.floats("index_q", index_q, "b H m i")
    ik = sizes.floats("index_k", index_k, "b n i")
    return sizes, q, k, iq, ik, sizes.floats("index_weights", index_weights, "b m H")


def _seen(chosen: Selection, m: int, n: int, batch: int) -> Any:
    """The keys of every query of one batch row, (m, n)."""
    return chosen.mask(m, n, batch=min(batch, chosen.indices.shape[0] - 1))[0]
