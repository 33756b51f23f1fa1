"""Selectors of trained indexers, which score with queries and keys of their own: DSA, QSA, MSA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparse_ref._arrays import Bools, Floats, Ints, floats, integer
from sparse_ref.patterns import Causal, Chunked, Pattern

from .inputs import Row, inputs
from .picks import best, nearest
from .scores import Blocked, dots, lightning
from .selection import Selection

NAMES = ("index_q", "index_k")


def lightning_indexer(
    index_q: Any,
    index_k: Any,
    index_weights: Any,
    *,
    count: int = 2048,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """The `count` keys of DeepSeek Sparse Attention's lightning indexer, one list for all heads.

    Steps, for every query t (DeepSeek-V3.2, arXiv:2512.02556; GLM-5, Hunyuan-V4, ...):

    1. I[t, s] = sum over index heads j of index_weights[t, j] * ReLU(index_q[j, t] . index_k[s]).
       Weights may be negative. Positive factors (d ** -0.5, heads ** -0.5) do not change the order
       and are left out.
    2. Keep the min(count, visible) visible keys with the greatest I. ReLU makes exact zeros, so
       ties are common: the smaller position first.

    O(m n H d) time, for H index heads. Projections, LayerNorm and rotation (half-split in V3.2,
    interleaved in Mistral-Large-4) come before and are the caller's; the Hadamard rotation and
    FP8 of the released kernels change the rounding only.

    Published code disagrees on rows that see fewer than `count` keys: the released code and
    transformers return *future* indices there and rely on the mask that follows; fla-core
    and this return none. fla-core's `activation` is None by default: no ReLU, another selection.
    Layers that share a choice (GLM-5, Hunyuan-V4) reuse the one Selection. count is the model's.

    Parameters
    ----------
    index_q : (..., H, m, d) floats
    index_k : (..., n, d) or (..., 1, n, d) floats
    index_weights : (..., m, H) floats
    count : int >= 0
    visible, q_start, kv_positions : as `topk_keys` takes them

    Returns
    -------
    Selection of keys, one list for all heads.

    Witnesses: `DeepseekV32Indexer` and `GlmMoeDsaIndexer` of transformers 5.23, `naive_dsa_indexer`
    of fla-core 0.6.0 (sets equal but for the order of ties).

    >>> q, k = np.ones((2, 3, 1)), np.array([[2.0], [-1.0], [3.0]])
    >>> lightning_indexer(q, k, np.ones((3, 2)), count=2).indices.tolist()
    [[[[0, -1], [0, 1], [0, 2]]]]
    """
    given = inputs(index_q, index_k, visible, q_start, kv_positions, names=NAMES, shared=True)
    b, heads, m, _ = given.q.shape
    weights = floats("index_weights", index_weights)
    if weights.shape != (*np.shape(index_q)[:-3], m, heads):
        raise ValueError(
            f"index_weights must have shape {(*np.shape(index_q)[:-3], m, heads)}, "
            f"got {weights.shape}"
        )
    weights, count = weights.reshape(b, m, heads), integer("count", count)

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        scores = lightning(row.q[:, cut], row.k, np.asarray(weights[row.batch, cut], np.float64))
        return best(scores[None], row.seen(cut), count), row.keys

    return Selection(given.table(rule, each=given.k.shape[2]), visible=visible)


def msa(
    index_q: Any,
    index_k: Any,
    *,
    count: int = 16,
    block_size: int = 128,
    local: int = 1,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """The `count` blocks of MiniMax-M3's sparse attention, one list for each group of heads.

    Steps, for every query at position p of every index head:

    1. score[B] = greatest index_q . index_k over the *visible* keys of block B (unscaled).
    2. The query's own block p // block_size and the `local` - 1 before it come first, and count.
    3. Keep the min(count, visible) best blocks; of equal ones the smaller. Inside, only visible
       keys are attended to.

    O(m n H d) time. There is one index head for each key/value head, and one index key for all.
    Blocks are of positions: transformers blocks cache *slots* (and says so), which is another
    selection under left padding. Kernels of MSA take count 4, 8, 16 or 32 and block 128 only. Some
    also force first blocks, which the model's code does not. Defaults are the model's.

    Parameters
    ----------
    index_q : (..., g, m, d) floats
    index_k : (..., n, d) or (..., 1, n, d) floats
    count, block_size, local : int; local <= count
    visible, q_start, kv_positions : as `topk_keys` takes them

    Returns
    -------
    Selection of blocks, one list an index head.

    Source: MiniMax-M3, by transformers' `minimax_m3_vl`. Witness: `MiniMaxM3VLIndexer` of
    transformers 5.23.

    >>> q, k = np.ones((1, 5, 1)), np.array([[2.0], [-1.0], [1.0], [3.0], [0.0]])
    >>> msa(q, k, count=2, block_size=2).indices[0, 0].tolist()
    [[0, -1], [0, -1], [0, 1], [0, 1], [1, 2]]
    """
    given = inputs(index_q, index_k, visible, q_start, kv_positions, names=NAMES, shared=True)
    count, size = integer("count", count), integer("block_size", block_size, 1)
    local = integer("local", local, 0, count)

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        blocks, seen = Blocked(row.keys, size), row.seen(cut)
        forced = nearest(row.queries[cut], blocks.numbers, size, local)
        scores = blocks.max(dots(row, cut), seen)
        return best(scores, blocks.any(seen), count, forced), blocks.numbers

    indices = given.table(rule, each=given.q.shape[1] * given.k.shape[2])
    always = Chunked(size, back=local - 1) if local else None
    return Selection(
        indices, key_block=size, always=always, counted=always is not None, visible=visible
    )


def qsa(
    index_q: Any,
    index_k: Any,
    *,
    budget: int = 2048,
    ratio: int = 4,
    prepare: Callable[[Floats, Ints], Any] | None = None,
    visible: Pattern = Causal(),  # noqa: B008
    q_start: Any = None,
    kv_positions: Any = None,
) -> Selection:
    """The keys of Qwen4's query sparse attention: the best groups of `ratio` keys, and the tail.

    Steps, for every query:

    1. Its visible keys in order of position, cut into groups of `ratio`; what is left over at the
       end, fewer than `ratio` keys, is the tail.
    2. The key of a group is prepare(mean of its raw index keys, position of its first token): in
       the model RMSNorm, then rotation. Pooling comes first; rotating first is another method.
    3. score = sum over index heads of ReLU(index_q . group key).
    4. Keep the min(budget / ratio, groups) best groups, of equal ones the earlier, and the tail.

    O(m n (d + H d / ratio)) time as written here. A query whose own key completes a group may lose
    it: then it does not attend to itself. At most budget + ratio - 1 keys.

    Published code disagrees on what is grouped: transformers and ONNX Runtime's indexer group the
    query's *visible* tokens, as here; OpenVINO's groups absolute positions and refuses padding.
    GLM-5-Next pools likewise, with learned weights, and begins at the first token that is no
    padding: another method. Defaults are Qwen4's.

    Parameters
    ----------
    index_q : (..., H, m, d) floats, normalised and rotated
    index_k : (..., n, d) or (..., 1, n, d) floats, raw
    budget, ratio : int; ratio divides budget
    prepare : function of (c, d) float64 means and (c,) positions, default: the means
    visible, q_start, kv_positions : as `topk_keys` takes them

    Returns
    -------
    Selection of keys, one list for all heads, the tail among them.

    Source: Qwen4-Exp, by transformers' `qwen4_exp`. Witness: `Qwen4ExpTextQSAIndexer` of
    transformers 5.23.

    >>> q, k = np.ones((1, 5, 1)), np.array([[2.0], [2.0], [1.0], [1.0], [0.0]])
    >>> qsa(q, k, budget=2, ratio=2).mask(5, 5)[0].astype(int)
    array([[1, 0, 0, 0, 0],
           [1, 1, 0, 0, 0],
           [1, 1, 1, 0, 0],
           [1, 1, 0, 0, 0],
           [1, 1, 0, 0, 1]])
    """
    given = inputs(index_q, index_k, visible, q_start, kv_positions, names=NAMES, shared=True)
    ratio, budget = integer("ratio", ratio, 1), integer("budget", budget)
    if budget % ratio:
        raise ValueError(f"budget must be a multiple of ratio = {ratio}, got {budget}")

    def rule(row: Row, cut: slice) -> tuple[Bools, Ints]:
        seen = row.seen(cut)
        chosen = np.zeros((1, *seen.shape), dtype=bool)
        for i, one in enumerate(seen):
            mine = np.flatnonzero(one)
            whole = len(mine) // ratio * ratio
            groups = mine[:whole].reshape(-1, ratio)
            keys = row.k[0][groups].mean(axis=1)
            if prepare is not None:
                keys = np.asarray(prepare(keys, row.keys[groups[:, 0]]), np.float64)
            q = row.q[:, cut][:, i : i + 1]
            scores = lightning(q, keys[None], np.ones((1, len(q))))
            kept = best(scores, np.ones(scores.shape, dtype=bool), budget // ratio)[0]
            chosen[0, i, groups[kept]] = True
            chosen[0, i, mine[whole:]] = True
        return chosen, row.keys

    return Selection(given.table(rule, each=given.k.shape[2]), visible=visible)
