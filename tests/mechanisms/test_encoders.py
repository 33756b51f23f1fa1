"""LongNet, Longformer, LongT5's transient-global attention, Reformer."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_ref as sr
from sparse_ref import mechanisms as me
from tests.mechanisms import differences

RNG = np.random.default_rng(0)


def normal(*shape, seed=1):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def seen_of(f, n):
    """Which keys an attention of zeros gives weight: values are the keys themselves."""
    return (np.abs(f(np.eye(n)[None, None])[0, 0]) > 1e-12).astype(int)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("n", "h", "segments", "dilations"),
    [(13, 3, [4, 8, 16], [1, 2, 4]), (11, 2, [3, 6], [1, 3]), (7, 5, [4], [2])],
)
def test_longnets_branches_are_one_softmax_over_a_multiset(n, h, segments, dilations, causal):
    q, k, v = normal(2, h, n, 4), normal(2, h, n, 4, seed=2), normal(2, h, n, 3)
    pattern = sr.recipes.longnet(segments, dilations, h, causal=causal)
    got = me.longnet(q, k, v, segments, dilations, causal=causal, scale=0.7)
    want = sr.attention(q, k, v, pattern, scale=0.7)

    np.testing.assert_allclose(got.out, want.out, atol=1e-14)
    np.testing.assert_allclose(got.lse, want.lse, atol=1e-14)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n", "h"), [(13, 3), (11, 4), (3, 2)])
def test_longnet_by_cutting_out_segments(n, h, causal):
    """Each branch on its own short arrays, joined by shares: no pattern, no multiset."""
    segments, dilations = [4, 8, 16], [1, 2, 3]
    q, k, v = normal(h, n, 4), normal(h, n, 4, seed=2), normal(h, n, 3)
    total, weight = np.zeros((h, n, 3)), np.zeros((h, n))
    for (w, r), head in itertools.product(zip(segments, dilations, strict=True), range(h)):
        place = head // math.ceil(h / r)
        for start in range(0, n, w):
            tokens = np.arange(start, min(start + w, n))[place::r]
            scores = np.exp(q[head, tokens] @ k[head, tokens].T / 2)
            scores = np.tril(scores) if causal else scores
            weight[head, tokens] += scores.sum(axis=1)
            total[head, tokens] += scores @ v[head, tokens]
    got = me.longnet(q, k, v, segments, dilations, causal=causal)

    np.testing.assert_allclose(got.out, total / weight[..., None], atol=1e-14)
    np.testing.assert_allclose(got.lse, np.log(weight), atol=1e-14)


def test_longnets_gradients():
    q, k, v = normal(2, 3, 9, 4), normal(2, 3, 9, 4, seed=2), normal(2, 3, 9, 5)
    sizes = [4, 8], [1, 2]

    def forward(q, k, v):
        return me.longnet(q, k, v, *sizes).out

    differences(forward, lambda up, **x: me.longnet_vjp(**x, segments=sizes[0],
                dilations=sizes[1], dout=up), {"q": q, "k": k, "v": v})  # fmt: skip


def test_longnets_shares_as_constants():
    """What torchscale trains with: the same for v, and for q and k where one branch is all."""
    q, k, v, up = normal(1, 2, 9, 4), normal(1, 2, 9, 4, seed=2), normal(1, 2, 9, 5), normal(
        1, 2, 9, 5, seed=3
    )  # fmt: skip
    full = me.longnet_vjp(q, k, v, [4, 8], [1, 2], up)
    cut = me.longnet_vjp(q, k, v, [4, 8], [1, 2], up, through_shares=False)
    one = me.longnet_vjp(q, k, v, [8], [3], up, through_shares=False)  # leaves tokens out

    np.testing.assert_allclose(cut.dv, full.dv, atol=1e-14)
    assert np.abs(cut.dq - full.dq).max() > 0.01
    for a, b in zip(one[:3], me.longnet_vjp(q, k, v, [8], [3], up)[:3], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


def test_longformers_rows_read_one_set_of_projections_each():
    """Window 4, globals {1, 6} and {}; the second text has 7 tokens."""
    given = [normal(2, 3, 9, 4, seed=s) for s in range(6)]
    got = me.longformer(*given, window=4, global_tokens=[[1, 6], []], lengths=[9, 7])
    local = sr.attention(*given[:3], sr.SlidingWindow(2, 2) | sr.Keys({1, 6}))
    other = sr.attention(*given[3:], sr.Full())
    second = sr.attention(*given[:3], sr.SlidingWindow(2, 2), kv_lengths=7)
    rows = [0, 2, 3, 4, 5, 7, 8]

    np.testing.assert_allclose(got.out[0][:, rows], local.out[0][:, rows], atol=1e-14)
    np.testing.assert_allclose(got.lse[0][:, rows], local.lse[0][:, rows], atol=1e-14)
    np.testing.assert_allclose(got.out[0][:, [1, 6]], other.out[0][:, [1, 6]], atol=1e-14)
    np.testing.assert_allclose(got.out[1][:, :7], second.out[1][:, :7], atol=1e-14)
    assert not got.out[1][:, 7:].any()
    assert (got.lse[1][:, 7:] == -np.inf).all()


def test_longformers_gradients():
    names = ("q", "k", "v", "global_q", "global_k", "global_v")
    given = {name: normal(2, 3, 7, 4, seed=s) for s, name in enumerate(names)}
    options = {"window": 2, "global_tokens": [[3], [0, 5]], "lengths": [7, 6], "scale": 0.8}

    differences(
        lambda **x: me.longformer(**x, **options).out,
        lambda up, **x: me.longformer_vjp(**x, dout=up, **options),
        given,
    )


def tglobal(*, b=2, n=11, c=6, h=3, d=4, e=5):
    return {
        "x": normal(b, n, c), "query": normal(c, h, d) / 2, "key": normal(c, h, d, seed=2) / 2,
        "value": normal(c, h, e), "norm": normal(c),
    }  # fmt: skip


def test_longt5_by_loops():
    """Blocks of 3: 11 tokens make 3 full ones, tokens 9 and 10 join the last; 7 make 2."""
    given, near, far = tglobal(), normal(3, 5), normal(3, 4, seed=4)
    options = {
        "bias": sr.RelativeBias(near, 2), "global_bias": sr.RelativeBias(far, 1),
        "radius": 2, "global_block_size": 3, "lengths": (lengths := [11, 7]),
    }  # fmt: skip
    got = me.longt5_tglobal(**given, **options)
    x, query, key, value, norm = given.values()
    groups = [
        [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10]],
        [[0, 1, 2], [3, 4, 5, 6]],
    ]
    for i, blocks in enumerate(groups):
        sums = np.array([sum(x[i, t] for t in block) for block in blocks])
        summaries = sums * norm / np.sqrt((sums**2).mean(axis=1, keepdims=True) + 1e-6)
        for h in range(3):
            for own, block in enumerate(blocks):
                for t in block:
                    q = x[i, t] @ query[:, h]
                    tokens = [s for s in range(lengths[i]) if abs(s - t) <= 2]
                    scores = [q @ (x[i, s] @ key[:, h]) + near[h, s - t + 2] for s in tokens]
                    scores += [
                        q @ (y @ key[:, h]) + far[h, np.clip(g - own + 1, 0, 3)]
                        for g, y in enumerate(summaries)
                    ]
                    values = np.concatenate([x[i, tokens], summaries]) @ value[:, h]
                    p = np.exp(scores) / np.exp(scores).sum()
                    np.testing.assert_allclose(got.out[i, h, t], p @ values, atol=1e-12)
    assert not got.out[1, :, 7:].any()


def test_longt5_without_a_full_block_is_a_window():
    given = tglobal(n=5)
    got = me.longt5_tglobal(**given, radius=1, global_block_size=6)
    q, k, v = (np.einsum("bnc,chd->bhnd", given["x"], given[p]) for p in ("query", "key", "value"))

    np.testing.assert_allclose(
        got.out, sr.attention(q, k, v, sr.recipes.longt5(1), scale=1.0).out, atol=1e-13
    )


def test_longt5s_gradients():
    given = {**tglobal(), "bias": normal(3, 5), "global_bias": normal(3, 4, seed=4)}

    def options(x):
        near, far = sr.RelativeBias(x.pop("bias"), 2), sr.RelativeBias(x.pop("global_bias"), 1)
        sizes = {"radius": 2, "global_block_size": 3, "lengths": [11, 7]}
        return {**x, "bias": near, "global_bias": far, **sizes}

    differences(
        lambda **x: me.longt5_tglobal(**options(x)).out,
        lambda up, **x: me.longt5_tglobal_vjp(**options(x), dout=up),
        given,
    )
    bare = me.longt5_tglobal_vjp(**tglobal(), dout=normal(2, 3, 11, 5))
    assert (bare.dbias, bare.dglobal_bias) == (None, None)


def rounds_by_hand(buckets, chunk, before, after, *, causal):
    """How often every query of one head counts each key, from the sorted sequence itself."""
    n = buckets.shape[-1]
    sequence = [t for one in buckets for _, t in sorted((b, t) for t, b in enumerate(one))]
    chunks = [sequence[i : i + chunk] for i in range(0, len(sequence), chunk)]
    counts = np.zeros((n, n), dtype=int)
    for i, queries in enumerate(chunks):
        for step in range(-before, after + 1):
            for t in queries:
                for s in chunks[(i + step) % len(chunks)]:
                    counts[t, s] += s <= t or not causal
    others = counts * (1 - np.eye(n, dtype=int))
    alone = others.sum(axis=1) == 0
    return others + np.diag(alone.astype(int))


@given(
    seed=st.integers(0, 99), rounds=st.integers(1, 3), chunk=st.sampled_from([2, 3, 4]),
    before=st.integers(0, 2), after=st.integers(0, 1), causal=st.booleans(),
)  # fmt: skip
def test_reformer_is_attention_over_the_multiset_of_its_chunks(
    seed, rounds, chunk, before, after, causal
):
    rng = np.random.default_rng(seed)
    qk, v = rng.standard_normal((2, 2, 12, 3)), rng.standard_normal((2, 2, 12, 5))
    buckets = rng.integers(0, 4, (2, 2, rounds, 12))
    got = me.reformer(
        qk, v, buckets, chunk_length=chunk, chunks_before=before, chunks_after=after,
        causal=causal, eps=0,
    )  # fmt: skip
    for at in np.ndindex(2, 2):
        counts = rounds_by_hand(buckets[at], chunk, before, after, causal=causal)
        k = qk[at] / np.linalg.norm(qk[at], axis=-1, keepdims=True)
        w = counts * np.exp(qk[at] @ k.T)
        np.testing.assert_allclose(
            got.out[at], w @ v[at] / w.sum(axis=1, keepdims=True), atol=1e-12
        )
        np.testing.assert_allclose(got.lse[at], np.log(w.sum(axis=1)), atol=1e-12)


def test_reformer_looks_back_around_the_corner():
    """One round, two chunks of 2, buckets (0 1 0 1): sorted 0 2 | 1 3, and each sees both."""
    qk, buckets = np.zeros((1, 1, 4, 1)), np.array([[[[0, 1, 0, 1]]]])
    alone = seen_of(lambda v: me.reformer(qk, v, buckets, chunk_length=2, chunks_before=0).out, 4)
    around = seen_of(lambda v: me.reformer(qk, v, buckets, chunk_length=2).out, 4)
    causal = seen_of(lambda v: me.reformer(qk, v, buckets, chunk_length=2, causal=True).out, 4)

    assert alone.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert around.tolist() == (1 - np.eye(4, dtype=int)).tolist()
    assert causal.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]


def test_reformers_padding_and_short_texts():
    qk, v = normal(2, 1, 4, 3), normal(2, 1, 4, 2)
    rotations = normal(1, 3, 2, 2)
    short = me.reformer(qk, v, np.zeros((2, 1, 1, 4), dtype=int), lengths=[4, 3])
    buckets = me.lsh_buckets(qk, rotations, lengths=[4, 2])

    assert short.out.shape == v.shape
    np.testing.assert_allclose(  # the last of two: 0 and 1 are what is left of 3 tokens
        me.reformer(qk, v, buckets, lengths=2).out[0, 0, :2], v[0, 0, [1, 0]], atol=1e-12
    )
    assert (buckets[1, ..., 2:] == 4).all()
    assert buckets[0].max() < 4


def test_factorised_buckets_are_digits():
    qk, first, second = normal(2, 3, 8, 5), normal(3, 5, 2, 1), normal(3, 5, 2, 3)
    both = me.lsh_buckets(qk, [first, second])

    np.testing.assert_array_equal(both, me.lsh_buckets(qk, first) + 2 * me.lsh_buckets(qk, second))
    assert both.shape == (2, 3, 2, 8)


@pytest.mark.parametrize("causal", [True, False])
def test_reformers_gradients(causal):
    given = {"qk": normal(2, 2, 12, 3), "v": normal(2, 2, 12, 5)}
    options = {
        "buckets": RNG.integers(0, 4, (2, 2, 2, 12)), "chunk_length": 4, "causal": causal,
        "lengths": [12, 10],
    }  # fmt: skip

    differences(
        lambda **x: me.reformer(**x, **options).out,
        lambda up, **x: me.reformer_vjp(**x, dout=up, **options),
        given,
    )


@pytest.mark.parametrize(("b", "n"), [(0, 5), (2, 0)])
def test_empty_batches_and_texts_are_answered(b, n):
    x, w = np.zeros((b, 3, n, 4)), np.zeros((2, 3, 4))
    buckets = np.zeros((b, 3, 2, n), dtype=int)

    assert me.longnet(x, x, x, [2, 4], [1, 2]).out.shape == x.shape
    assert me.longformer(*[x] * 6, window=2).out.shape == x.shape
    assert me.reformer(x, x, buckets).out.shape == x.shape
    assert me.longt5_tglobal(np.zeros((b, n, 2)), w, w, w, np.ones(2)).out.shape == x.shape


X = normal(2, 3, 8, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: me.reformer(X, X, np.zeros((2, 3, 1, 8), dtype=int), chunk_length=3),
         "chunk_length must divide the length 8, got 3"),
        (lambda: me.reformer(X, X[:, :2], np.zeros((2, 3, 1, 8), dtype=int)),
         r"v must have shape \(b, h, n, e\) with b = 2, h = 3, n = 8, got \(2, 2, 8, 4\)"),
        (lambda: me.reformer(X, X, np.zeros((2, 3, 1, 7), dtype=int)), "buckets must have shape"),
        (lambda: me.longnet(X, X, X[..., :7, :], [4], [1]), "v must have shape"),
        (lambda: me.longnet(X, X, X, [4, 2], [1]), "dilations must be as many as the 2 segments"),
        (lambda: me.longformer(*[X] * 6, window=2, lengths=9), r"lengths must be in \[0, 8\]"),
        (lambda: me.longformer(*[X] * 6, window=2, lengths=[1, 2, 3]), "lengths must be one"),
        (lambda: me.longformer(*[X] * 6, window=2, global_tokens=[[1]]),
         "global_tokens must be one list or 2 of them, got 1"),
        (lambda: me.longformer(*[X] * 5, X[..., :2, :], window=2), "global_v must have shape"),
        (lambda: me.longt5_tglobal(**{**tglobal(), "norm": np.ones(5)}),
         r"norm must have shape \(c\) with c = 6, got \(5,\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
