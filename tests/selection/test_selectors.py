"""Selectors: by hand, by a second derivation, and by the laws they all keep.

`sparse_ref.conformance.choosing` derives them a second time; here is what it leaves out.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_ref as sr
from sparse_ref import selection
from sparse_ref.selection.trained import importance

WITH_OPTIONS = {
    "topk_keys": {"count": 3},
    "topk_blocks": {"count": 2, "block_size": 4},
    "threshold": {"probability": 0.125},
    "top_p": {"mass": 0.5},
    "lightning_indexer": {"count": 3},
    "qsa": {"budget": 8},
    "msa": {"count": 3, "block_size": 4},
    "moba": {"count": 2, "block_size": 4},
    "nsa_blocks": {"count": 3, "block_size": 4, "window": 4, "stride": 2, "local": 1},
}
INDEXERS = ("lightning_indexer", "qsa", "msa")
every = pytest.mark.parametrize("name", WITH_OPTIONS)


def drawn(name, m, n, seed=0, batch=2, spread=8):
    """Dyadic arrays of a selector."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, 4, m, 4), (batch, 2, n, 4)]
    if name in INDEXERS:
        shapes = [(batch, 3, m, 4), (batch, n, 4), (batch, m, 3)][: 2 + (name == INDEXERS[0])]
    return [rng.integers(-spread, spread + 1, shape) / 8 for shape in shapes]


def ask(name, *arrays, **more):
    return getattr(selection, name)(*arrays, **{**WITH_OPTIONS[name], **more})


def cut(name, arrays, queries, keys):
    """Some of the queries, and some of the keys."""
    q, k, *weights = arrays
    return [q[:, :, queries], k[..., keys, :], *(w[:, queries] for w in weights)]


@every
def test_a_decoding_step_chooses_what_the_prompt_chose(name):
    """The last rows of a prompt, asked alone: nothing after a query has a say in it."""
    arrays = drawn(name, 23, 23)
    whole = ask(name, *arrays)

    for t in (0, 3, 7, 22):
        step = ask(name, *cut(name, arrays, slice(t, t + 1), slice(0, t + 1)))
        row = whole.indices[:, :, t]
        assert (step.indices[:, :, 0] == row[..., : step.indices.shape[-1]]).all()
        assert (row[..., step.indices.shape[-1] :] == -1).all()


@every
def test_left_padding_moves_nothing(name):
    arrays = drawn(name, 19, 19)
    pad = [np.pad(x, [(0, 0)] * (x.ndim - 2) + [(3, 0), (0, 0)]) for x in arrays]
    pad[1][..., :3, :] = np.nan

    got = ask(name, *pad, q_start=-3, kv_positions=np.arange(22) - 3)

    want = ask(name, *arrays)
    assert (got.indices[:, :, 3:] == want.indices).all()
    assert (got.indices[:, :, :3] == -1).all()


@every
def test_slots_may_be_in_any_order(name):
    """A ring cache: keys at their positions, wherever they are stored; a hole is no key."""
    arrays = drawn(name, 19, 19)
    order = np.random.default_rng(1).permutation(19)
    moved = [arrays[0], arrays[1][..., order, :], *arrays[2:]]

    got = ask(name, *moved, kv_positions=order, q_start=0)

    assert (got.indices == ask(name, *arrays).indices).all()


@every
def test_it_never_names_what_is_not_visible(name):
    """Documents and a window: whatever is listed holds a key that the query sees."""
    arrays = drawn(name, 23, 23, spread=1)
    visible = sr.Causal() & sr.SlidingWindow(9, 0) & sr.Document(np.arange(23) // 8)

    got = ask(name, *arrays, visible=visible)

    size, seen = got.key_block, visible.mask(23, 23)[0]
    blocks = np.add.reduceat(seen, np.arange(0, 23, size), axis=1) > 0
    for row in got.indices.reshape(-1, 23, got.indices.shape[-1]):
        for t, listed in enumerate(row):
            assert blocks[t, listed[listed >= 0]].all()


@every
def test_nan_where_nobody_looks_changes_nothing(name):
    arrays = drawn(name, 17, 17)
    want = ask(name, *arrays)
    later = [x.copy() for x in arrays]
    later[1][..., 12:, :] = np.nan

    got = ask(name, *later)

    width = min(got.indices.shape[-1], want.indices.shape[-1])
    assert (got.indices[:, :, :12, :width] == want.indices[:, :, :12, :width]).all()


@pytest.mark.parametrize("name", ["topk_keys", "topk_blocks", "lightning_indexer"])
def test_a_nan_that_is_seen_is_chosen(name):
    """It would be hidden otherwise: attention over the selection has to show it."""
    arrays = drawn(name, 17, 17)
    arrays[1][..., 5, :] = np.nan

    got = ask(name, *arrays, count=1)

    assert (got.indices[:, :, 5:, 0] == 5 // got.key_block).all()
    q, k = drawn("topk_keys", 17, 17)
    k[:, :, 5] = np.nan
    assert np.isnan(sr.attention(q, k, k, got).out[:, :, 5:]).any(axis=-1).all()


@every
def test_single_precision_and_any_strides_choose_the_same(name):
    arrays = drawn(name, 19, 19)
    want = ask(name, *arrays).indices

    single = [x.astype(np.float32) for x in arrays]
    strided = [np.repeat(x, 2, axis=-2)[..., ::2, :] for x in arrays]
    half = [np.asfortranarray(x.astype(np.float16)) for x in arrays]
    for other in (single, strided, half):
        assert (ask(name, *other).indices == want).all()


@every
@pytest.mark.parametrize(("batch", "m", "n"), [(0, 3, 3), (2, 0, 5), (2, 5, 0)])
def test_empty_inputs_are_answered(name, batch, m, n):
    got = ask(name, *drawn(name, m, n, batch=batch))

    assert got.indices.shape[0] == batch
    assert got.indices.shape[2] == m
    assert (got.indices == -1).all()


@every
def test_more_leading_axes_are_one_batch(name):
    arrays = drawn(name, 11, 11, batch=6)
    folded = [x.reshape(2, 3, *x.shape[1:]) for x in arrays]

    got = ask(name, *folded)

    assert (got.indices == ask(name, *arrays).indices).all()


@every
def test_lists_are_for_the_heads_they_say(name):
    heads = {"lightning_indexer": 1, "qsa": 1, "msa": 3, "nsa_blocks": 2}

    assert ask(name, *drawn(name, 11, 11)).indices.shape[1] == heads.get(name, 4)


def test_equal_keys_tie_whatever_their_numbers():
    """No dyadic luck: repeated tokens have the very same score, wherever they stand."""
    rng = np.random.default_rng(3)
    key = rng.standard_normal((1, 1, 1, 37))
    q, k = rng.standard_normal((1, 1, 41, 37)), np.repeat(key, 41, axis=2)

    got = selection.topk_keys(q, k, count=2)

    assert (got.indices[0, 0, 1:] == [0, 1]).all()


def test_threshold_is_strict_and_may_leave_nothing():
    q, k = np.zeros((1, 4, 1)), np.zeros((1, 4, 1))

    got = selection.threshold(q, k, probability=0.25)

    assert got.counts.tolist() == [[[1, 2, 3, 0]]]


@pytest.mark.parametrize("name", ["threshold", "top_p"])
def test_scales_are_heeded(name):
    q, k = drawn(name, 13, 13)
    p = np.exp(0.25 * np.einsum("bhmd,bhnd->bhmn", q, k.repeat(2, axis=1)))
    p = np.where(np.tri(13, dtype=bool), p, 0)
    p /= p.sum(axis=-1, keepdims=True)
    got = ask(name, q, k, scale=0.25)
    mask = np.stack([got.mask(13, 13, batch=b) for b in range(2)])

    if name == "threshold":
        assert (mask == (p > 0.125)).all()
        return
    kept = np.where(mask, p, 0)
    assert (kept.sum(axis=-1) >= 0.5 - 1e-12).all()
    least = np.where(mask, p, np.inf).min(axis=-1)
    assert (kept.sum(axis=-1) - least < 0.5 + 1e-12).all()
    assert (np.where(mask, 0, p).max(axis=-1) <= least + 1e-12).all()


def shares(q, k, keys, scale):
    """{key: probability} of one query, each a sum of exponentials of differences."""
    dots = {x: scale * sum(a * b for a, b in zip(q, k[x], strict=True)) for x in keys}
    return {x: 1 / sum(math.exp(dots[y] - dots[x]) for y in keys) for x in keys}


@pytest.mark.parametrize("name", ["threshold", "top_p"])
@pytest.mark.parametrize("visible", [sr.Causal(), sr.Causal() & sr.SlidingWindow(6, 0), sr.Full()])
def test_probabilities_by_another_formula(name, visible):
    """And what is kept by counting: which keys are sure to come before, and what they hold."""
    q, k = drawn(name, 11, 17, seed=5)
    k[:, :, 9] = k[:, :, 3]  # ties
    got = ask(name, q, k, visible=visible, scale=0.9).mask(11, 17, batch=1)
    kept = 0
    for head, t in np.ndindex(4, 11):
        keys = [x for x in range(17) if visible(6 + t, x)]
        p = shares(q[1, head, t].tolist(), k[1, head // 2].tolist(), keys, 0.9)
        if name == "threshold":
            want = {x for x in keys if p[x] > 0.125}
            apart = [abs(p[x] - 0.125) for x in keys]
        else:  # a key is kept if those that are greater, or equal and earlier, hold too little
            equal = {x: [y for y in keys if math.isclose(p[x], p[y], rel_tol=1e-12)] for x in keys}
            before = {
                x: sum(p[y] for y in keys if (y < x if y in equal[x] else p[y] > p[x]))
                for x in keys
            }
            want = {x for x in keys if before[x] < 0.5}
            apart = [abs(held - 0.5) for held in before.values()]
        assert min(apart) > 1e-9, "the case decides nothing"
        assert {*np.flatnonzero(got[head, t])} == want
        kept += len(want)
    assert 22 < kept < 44 * 7


def test_a_mass_of_one_keeps_all_and_of_none_nothing():
    q, k = np.full((1, 9, 1), 40.0), np.linspace(-20, 20, 9)[None, :, None]

    assert (selection.top_p(q, k, mass=1).mask(9, 9) == sr.Causal().mask(9, 9)).all()
    assert not selection.top_p(q, k, mass=0).mask(9, 9).any()


def test_importance_counts_the_pieces_a_window_shares_with_a_block():
    """l = 32, d = 16, l' = 64: window c covers pieces c and c + 1, block j pieces 4j .. 4j + 3."""
    p = np.eye(9)
    pieces = [{c, c + 1} for c in range(9)]
    blocks = [set(range(4 * j, 4 * j + 4)) for j in range(3)]
    want = [[len(window & block) for block in blocks] for window in pieces]

    assert importance(p, np.arange(3), 4, 2).tolist() == want


def test_importance_where_the_sizes_are_equal_is_the_probability():
    p = np.random.default_rng(0).random((2, 5))

    assert (importance(p, np.arange(5), 1, 1) == p).all()


def test_the_trained_compression_is_used():
    q, k = drawn("nsa_blocks", 29, 29)
    options = {**WITH_OPTIONS["nsa_blocks"], "count": 4}
    means = np.stack([k[:, :, s : s + 4].mean(axis=2) for s in range(0, 26, 2)], axis=2)

    given_ = selection.nsa_blocks(q, k, compressed=means, **options)
    other = selection.nsa_blocks(q, k, compressed=-means, **options)

    assert (given_.indices == selection.nsa_blocks(q, k, **options).indices).all()
    assert (other.indices != given_.indices).any()


def test_qsa_may_lose_the_query_itself():
    q, k = np.ones((1, 8, 1)), np.array([3.0, 3, 1, 1, 2, 2, 0, 0])[:, None]

    mask = selection.qsa(q, k, budget=2, ratio=2).mask(8, 8)[0]

    assert not mask[7, 7]
    assert mask[6, 6]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("topk_keys", {"count": -1}, "count must be >= 0, got -1"),
        ("topk_blocks", {"pool": "sum"}, "pool must be one of mean, max, got 'sum'"),
        ("topk_blocks", {"block_size": 0}, "block_size must be >= 1, got 0"),
        ("moba", {"count": 0}, "count must be >= 1, got 0"),
        ("msa", {"local": 4}, "local must be <= 3, got 4"),
        ("qsa", {"budget": 9}, "budget must be a multiple of ratio = 4, got 9"),
        ("nsa_blocks", {"window": 5}, "window must be a multiple of stride = 2, got 5"),
        ("nsa_blocks", {"initial": 3}, "local must be <= 0, got 1"),
        ("nsa_blocks", {"compressed": np.zeros((2, 2, 3))}, "compressed must have shape"),
        ("threshold", {"probability": 1.5}, r"probability must be a number in \[0, 1\], got 1.5"),
        ("top_p", {"mass": -1}, r"mass must be a number in \[0, 1\], got -1"),
        ("top_p", {"scale": np.nan}, "scale must be a finite number, got nan"),
        ("topk_keys", {"visible": sr.PerHead([sr.Full(), sr.Causal()])}, "alike for all heads"),
        ("topk_keys", {"kv_positions": [0] * 11}, "must hold a position once, got 0 twice"),
        ("topk_keys", {"kv_positions": [0] * 3}, "kv_positions must broadcast to"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        ask(name, *drawn(name, 11, 11), **options)


def test_shapes_that_do_not_fit_are_refused():
    q, k = drawn("topk_keys", 11, 11)
    index_q, index_k, weights = drawn("lightning_indexer", 11, 11)

    with pytest.raises(ValueError, match="k must have heads that divide q's 4, got 3"):
        selection.topk_keys(q, np.concatenate([k, k[:, :1]], axis=1), count=1)
    with pytest.raises(ValueError, match="index_k must have one head for all of index_q's, got 3"):
        selection.lightning_indexer(index_q, index_q, weights)
    with pytest.raises(ValueError, match=r"index_weights must have shape \(2, 11, 3\), got"):
        selection.lightning_indexer(index_q, index_k, weights[:, :10])
    with pytest.raises(TypeError, match="q must hold real floating-point numbers, got int64"):
        selection.topk_keys(np.ones((1, 3, 1), dtype=int), k[0, :1], count=1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 29))
def test_what_is_kept_is_never_worse_than_what_is_left(seed, count, n):
    """And of equal scores the smaller index is kept: the whole rule, on many ties."""
    rng = np.random.default_rng(seed)
    q, k = rng.integers(-1, 2, (1, n, 2)) / 2, rng.integers(-1, 2, (1, n, 2)) / 2
    mask = selection.topk_keys(q, k, count=count).mask(n, n)[0]
    scores = q[0] @ k[0].T

    for t in range(n):
        order = sorted(range(t + 1), key=lambda j: (-scores[t, j], j))
        assert set(np.flatnonzero(mask[t])) == set(order[:count])
