"""sparsemax, 1.5-entmax and alpha-entmax over a pattern: definition, laws, gradients, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_ref as sr
from sparse_ref import normalisers as nm
from sparse_ref.normalisers import maps
from tests.test_reference import draw_inputs

ALPHAS = [1.1, 1.5, 1.7, 2.0, 2.5, 4.0]
PATTERNS = [
    sr.Full(),
    sr.Causal() & (sr.SlidingWindow(2, 0) | sr.Sink(1)),
    sr.PerHead([sr.Causal(), sr.Strided(2), sr.Keys({1, 4})]),
    sr.PerBatch([sr.Causal(), sr.Keys({9})]),
]
OPTIONS = {
    "plain": {},
    "scale, softcap": {"scale": 1.7, "softcap": 2.5},
    "bias": {"bias": np.random.default_rng(3).standard_normal((3, 1, 7))},
    "alibi, cache": {"alibi_slopes": np.array([0.5, 0.0, 2.0]), "kv_lengths": [6, 4], "q_start": 1},
}
vectors = st.lists(st.floats(-30, 30), min_size=1, max_size=9).map(np.array)


@pytest.mark.parametrize("alpha", ALPHAS)
@given(z=vectors, seed=st.integers(0, 99))
def test_the_map_maximises_its_regularised_score_over_the_simplex(alpha, z, seed):
    """argmax p.z + H(p), H(p) = sum(p - p^alpha) / (alpha (alpha - 1)): no other point does."""

    def gain(p):
        return p @ z + np.sum(p - p**alpha) / (alpha * (alpha - 1))

    p = maps.entmax(z, alpha)
    others = np.random.default_rng(seed).dirichlet(np.full(len(z), 0.5), size=8)
    mixed = 0.99 * p + 0.01 * others

    assert p.min() >= 0
    assert p.sum() == pytest.approx(1, abs=1e-14)
    for other in (*others, *mixed):
        assert gain(other) <= gain(p) + 1e-12 * (1 + np.abs(z).max())


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@given(z=vectors)
def test_sorting_equals_bisection(alpha, z):
    np.testing.assert_allclose(maps.entmax(z, alpha), maps.bisected(z, alpha), atol=2e-14)


@given(z=vectors)
def test_towards_1_it_is_softmax(z):
    softmax = np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    np.testing.assert_allclose(maps.entmax(z, 1 + 1e-9), softmax, atol=1e-7)


def test_known_rows():
    """The example of the research notes, from the package: (1, 0.8, 0.1, -1)."""
    z = np.array([0.8, -1.0, 1.0, 0.1])
    close = {"abs": 1e-5}

    assert maps.sparsemax(z).tolist() == pytest.approx([0.4, 0, 0.6, 0], abs=1e-15)
    assert maps.entmax15(z).tolist() == pytest.approx([0.39375, 0, 0.52925, 0.077], **close)
    assert maps.sparsemax(np.zeros(3)).tolist() == pytest.approx([1 / 3] * 3)
    assert maps.entmax15(np.array([1e9, 0.0])).tolist() == [1, 0]
    assert maps.entmax(np.array([1e9, 0.0]), 1.2).tolist() == [1, 0]
    assert [maps.entmax(np.zeros(0), a).tolist() for a in (1.2, 1.5, 2)] == [[], [], []]


def by_loops(q, k, v, pattern, alpha, options):
    """Every row on its own, from a dense score matrix."""
    (b, h, m, d), (g, n) = q.shape, k.shape[1:3]
    out = np.zeros((b, h, m, v.shape[-1]))
    lengths = np.broadcast_to(options.get("kv_lengths", n), b)
    start = options.get("q_start", n - m)
    for i in range(b):
        slots = np.where(np.arange(n) < lengths[i], np.arange(n), -1)
        allowed = pattern.mask(
            m, n, heads=h, q_start=start, kv_positions=slots, batch=i if pattern.batches else 0
        )
        for j in range(h):
            s = options.get("scale", d**-0.5) * q[i, j] @ k[i, j // (h // g)].T
            if "softcap" in options:
                s = options["softcap"] * np.tanh(s / options["softcap"])
            s = s + np.broadcast_to(options.get("bias", 0.0), (h, m, n))[j]
            if "alibi_slopes" in options:
                s = s - options["alibi_slopes"][j] * np.abs(
                    np.arange(m)[:, None] + start - np.arange(n)
                )
            for row in range(m):
                keys = np.flatnonzero(allowed[j, row])
                order = np.broadcast_to(alpha, h)[j]
                if len(keys):
                    p = maps.bisected(s[row, keys], order)
                    out[i, j, row] = p @ v[i, j // (h // g)][keys]
    return out


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("alpha", [1.5, 2, np.array([1.3, 2.0, 1.5])], ids=str)
def test_attention_is_the_map_row_by_row(alpha, pattern, options):
    q, k, v = draw_inputs()
    got = nm.entmax_attention(q, k, v, pattern, alpha=alpha, **options)

    np.testing.assert_allclose(got, by_loops(q, k, v, pattern, alpha, options), atol=1e-13)


def test_the_weights_are_what_the_output_is_made_of():
    q, k, v = draw_inputs()
    pattern = sr.Causal() & sr.SlidingWindow(3, 0)
    out = nm.entmax_attention(q, k, v, pattern, alpha=1.5, scale=3.0)
    some = nm.entmax_weights(q, k, pattern, alpha=1.5, scale=3.0, head=2, batch=1)

    np.testing.assert_allclose(some @ v[1, 2 // (q.shape[1] // k.shape[1])], out[1, 2], atol=1e-15)
    assert some.nnz < sr.weights(q, k, pattern, scale=3.0, head=2, batch=1).nnz  # exact zeros


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pattern", PATTERNS[1:3], ids=repr)
@pytest.mark.parametrize("alpha", [1.5, 2.0, np.array([1.3, 2.0, 1.6])], ids=str)
def test_gradients_equal_finite_differences(alpha, pattern, options):
    q, k, v = draw_inputs()
    rng = np.random.default_rng(11)
    dout = rng.standard_normal((*q.shape[:3], v.shape[-1]))
    got = nm.entmax_attention_vjp(q, k, v, pattern, dout, alpha=alpha, **options)
    inputs = {"q": q, "k": k, "v": v, "alpha": np.asarray(alpha, dtype=np.float64)}
    inputs |= {"bias": options["bias"]} if "bias" in options else {}
    step = 1e-6
    for name, x in inputs.items():
        direction = rng.standard_normal(x.shape)
        ends = []
        for sign in (1, -1):
            moved = {**inputs, name: x + sign * step * direction}
            args = [moved.pop(one) for one in "qkv"]
            ends.append(np.sum(dout * nm.entmax_attention(*args, pattern, **{**options, **moved})))
        want = (ends[0] - ends[1]) / (2 * step)
        found = getattr(got, "d" + name)

        assert np.shape(found) == x.shape
        assert np.sum(found * direction) == pytest.approx(want, rel=1e-6, abs=1e-7)


def test_a_relative_bias_gets_the_gradient_of_its_table():
    q, k, v = draw_inputs()
    table = np.random.default_rng(0).standard_normal((3, 4))
    dout = np.ones((*q.shape[:3], v.shape[-1])) * np.arange(v.shape[-1])
    loss = lambda t: np.sum(  # noqa: E731
        dout * nm.entmax_attention(q, k, v, sr.Causal(), bias=sr.RelativeBias(t, 2))
    )
    got = nm.entmax_attention_vjp(q, k, v, sr.Causal(), dout, bias=sr.RelativeBias(table, 2)).dbias
    for at in np.ndindex(table.shape):
        one = np.zeros_like(table)
        one[at] = 1e-6
        want = (loss(table + one) - loss(table - one)) / 2e-6
        assert got[at] == pytest.approx(want, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_choosing_the_best_keys_loses_nothing_if_they_hold_the_support(alpha):
    """A Selection goes where a pattern goes; of 7 keys at most 4 have a probability here."""
    q, k, v = draw_inputs()
    few = sr.selection.topk_keys(q, k, count=4)
    most = max(
        np.diff(nm.entmax_weights(q, k, sr.Causal(), alpha=alpha, scale=6, head=h, batch=b).indptr)
        .max()
        for b in range(2)
        for h in range(3)
    )  # fmt: skip
    every = nm.entmax_attention(q, k, v, sr.Causal(), alpha=alpha, scale=6)

    assert 1 < most <= 4
    np.testing.assert_allclose(
        nm.entmax_attention(q, k, v, few, alpha=alpha, scale=6), every, atol=1e-13
    )


def test_rows_without_keys_and_hidden_keys():
    """Nothing allowed, or all scores -inf: 0. A NaN where nobody looks stays there."""
    q, k, v = (np.ones((1, 1, 3, 2)) for _ in range(3))
    v[..., 2, :] = np.nan
    bias = np.zeros((3, 3))
    bias[1] = -np.inf
    pattern = sr.Causal() - sr.Keys({2})
    out = nm.entmax_attention(q, k, v, pattern, bias=bias)
    back = nm.entmax_attention_vjp(q, k, v, pattern & sr.Rows({0, 1}), np.ones_like(q), bias=bias)

    assert out[0, 0].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert back.dv[0, 0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert np.isfinite(back.dq).all()
    assert nm.entmax_attention(q, k, v[..., :0], sr.Full()).shape == (1, 1, 3, 0)
    assert nm.entmax_attention(q[:, :, :0], k, v, sr.Full()).shape == (1, 1, 0, 2)
    assert not nm.entmax_attention(q, k[:, :, :0], v[:, :, :0], sr.Full()).any()
    assert nm.entmax_weights(q[:, :, :0], k, sr.Full()).shape == (0, 3)


def test_a_nan_or_inf_score_takes_its_row_only():
    q, k, v = (np.ones((1, 1, 3, 2)) for _ in range(3))
    bias = np.zeros((3, 3))
    bias[0, 1], bias[2, 2] = np.nan, np.inf
    out = nm.entmax_attention(q, k, v, sr.Full(), bias=bias)
    back = nm.entmax_attention_vjp(q, k, v, sr.Full(), np.ones_like(q), bias=bias)

    assert np.isnan(out[0, 0]).all(axis=1).tolist() == [True, False, True]
    assert np.isnan(back.dq[0, 0]).all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (1, ValueError, r"alpha must be finite and > 1 \(attention is alpha = 1\), got 1"),
        (np.nan, ValueError, "alpha must be finite and > 1"),
        (np.inf, ValueError, "alpha must be finite and > 1"),
        (np.full(2, 1.5), ValueError, r"alpha must be a number or one for each of 3 heads, got \("),
        ("1.5", TypeError, "alpha must hold real floating-point numbers"),
    ],
)
def test_wrong_orders_are_refused(alpha, error, message):
    with pytest.raises(error, match=message):
        nm.entmax_attention(*draw_inputs(), sr.Causal(), alpha=alpha)


def test_multisets_sinks_and_joining_are_refused():
    q, k, v = draw_inputs()
    twice = sr.Multi([sr.Causal(), sr.SlidingWindow(1, 0)])
    with pytest.raises(ValueError, match=r"entmax has no log c .*a key that counts 2 times"):
        nm.entmax_attention(q, k, v, twice)
    with pytest.raises(TypeError, match="sink_logits"):
        nm.entmax_attention(q, k, v, sr.Causal(), sink_logits=np.zeros(3))
    with pytest.raises(ValueError, match="must have out"):
        sr.merge(*(nm.entmax_attention(q, k, v, p) for p in (sr.Keys({1}), sr.Keys({2}))))
