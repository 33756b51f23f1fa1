"""DSA, NSA, DeepSeek-V4's CSA and HCA: by loops, by hand, and against finite differences."""

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref import mechanisms as me
from tests.mechanisms import differences


def normal(*shape, seed=1):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def softmax(s):
    w = np.exp(s - s.max())
    return w / w.sum()


def best(scores, count):
    """Indices of the greatest, of equal ones the first."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


# -- DSA ------------------------------------------------------------------------------------------


def dsa_inputs(b=2, h=4, g=2, m=5, n=11, d=3, e=2, heads=3, i=4):
    return {
        "q": normal(b, h, m, d), "k": normal(b, g, n, d), "v": normal(b, g, n, e),
        "index_q": normal(b, heads, m, i), "index_k": normal(b, n, i),
        "index_weights": normal(b, m, heads),
    }  # fmt: skip


def index_scores(x, b, t, n):
    """Sum over heads of weight times ReLU, of the keys up to query t's own."""
    own = x["index_k"].shape[1] - x["q"].shape[2] + t
    dots = np.maximum(x["index_q"][b, :, t] @ x["index_k"][b, : own + 1].T, 0)
    return x["index_weights"][b, t] @ dots


def test_dsa_by_loops():
    x = dsa_inputs()
    got = me.dsa(**x, count=3, scale=0.9)
    for b, h, t in np.ndindex(2, 4, 5):
        keys = best(index_scores(x, b, t, 11), 3)
        p = softmax(0.9 * x["k"][b, h // 2, keys] @ x["q"][b, h, t])
        np.testing.assert_allclose(got.out[b, h, t], p @ x["v"][b, h // 2, keys], atol=1e-13)


def test_dsa_with_enough_keys_is_attention():
    x = dsa_inputs()

    np.testing.assert_allclose(
        me.dsa(**x, count=11).out, sr.attention(x["q"], x["k"], x["v"], sr.Causal()).out
    )


def test_dsas_gradients():
    x = dsa_inputs()
    fixed = {name: x.pop(name) for name in list(x) if name.startswith("index")}

    differences(
        lambda **x: me.dsa(**x, **fixed, count=3).out,
        lambda up, **x: me.dsa_vjp(**x, **fixed, dout=up, count=3),
        x,
    )


@pytest.mark.parametrize("count", [None, 3])
def test_the_indexers_loss_is_a_divergence(count):
    x = dsa_inputs()
    del x["v"]
    got = me.dsa_indexer_loss(**x, count=count, scale=0.9)
    for b, t in np.ndindex(2, 5):
        scores = index_scores(x, b, t, 11)
        keys = best(scores, count or len(scores))
        p = [softmax(0.9 * x["k"][b, h // 2, keys] @ x["q"][b, h, t]) for h in range(4)]
        p, guess = np.mean(p, axis=0), softmax(scores[keys])
        assert got.loss[b, t] == pytest.approx(np.sum(p * np.log(p / guess)), abs=1e-13)


@pytest.mark.parametrize("count", [None, 3])
def test_the_indexers_gradients(count):
    x = dsa_inputs()
    fixed = {"q": x.pop("q"), "k": x.pop("k"), "count": count}
    del x["v"]

    def loss(**x):
        return me.dsa_indexer_loss(**x, **fixed).loss.sum()

    class Scaled:  # sum(dout * loss) for a number dout
        def __init__(self, up, back):
            self.__dict__ = {name: up * value for name, value in back._asdict().items()}

    differences(loss, lambda up, **x: Scaled(up, me.dsa_indexer_loss(**x, **fixed)), x)


def test_a_perfect_indexer_has_no_loss():
    """One head, and index scores that are the attention's own (all positive)."""
    q, k = abs(normal(1, 1, 4, 3)), abs(normal(1, 1, 4, 3, seed=2))
    got = me.dsa_indexer_loss(q, k, q, k[:, 0], np.ones((1, 4, 1)), scale=1)

    np.testing.assert_allclose(got.loss, 0, atol=1e-14)
    np.testing.assert_allclose(got.dindex_q, 0, atol=1e-14)


# -- DeepSeek-V4 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("series", [1, 2])
def test_compression_by_loops(series):
    b, n, d, r = 2, 11, 3, 4
    values, gates = normal(b, n, series * d), normal(b, n, series * d, seed=2)
    bias, norm = normal(r, series * d), normal(d)
    got = me.csa_compress(values, gates, bias, norm)
    assert got.shape == (b, 2, d)
    for i, w, c in np.ndindex(b, 2, d):
        slots = [(t, t - w * r, c + (series - 1) * d) for t in range(w * r, (w + 1) * r)]
        if series == 2 and w:
            slots += [(t, t - (w - 1) * r, c) for t in range((w - 1) * r, w * r)]
        p = softmax(np.array([gates[i, t, s] + bias[at, s] for t, at, s in slots]))
        pooled = p @ [values[i, t, s] for t, _, s in slots]
        others = got[i, w] / norm  # the norm divides all channels by one number
        root = np.sqrt(np.mean(_pooled(values, gates, bias, i, w, r, d, series) ** 2) + 1e-6)
        assert others[c] * root == pytest.approx(pooled, abs=1e-12)


def _pooled(values, gates, bias, i, w, r, d, series):
    """All channels of one entry before the norm, slots side by side."""
    own = slice(w * r, (w + 1) * r)
    v, z = values[i, own, -d:], (gates[i, own] + bias)[:, -d:]
    if series == 2 and w:
        before = slice((w - 1) * r, w * r)
        v = np.concatenate([values[i, before, :d], v])
        z = np.concatenate([(gates[i, before] + bias)[:, :d], z])
    p = np.exp(z)
    return (p / p.sum(axis=0) * v).sum(axis=0)


@pytest.mark.parametrize("series", [1, 2])
def test_compressions_gradients(series):
    given = {
        "values": normal(2, 11, series * 3), "gates": normal(2, 11, series * 3, seed=2),
        "position_bias": normal(4, series * 3), "norm": normal(3),
    }  # fmt: skip

    differences(
        me.csa_compress, lambda up, **x: me.csa_compress_vjp(**x, dout=up), given, step=1e-5
    )


def test_too_few_tokens_make_no_entry():
    x = normal(2, 3, 6)
    out = me.csa_compress(x, x, np.zeros((4, 6)), np.ones(3))
    back = me.csa_compress_vjp(x, x, np.zeros((4, 6)), np.ones(3), out)

    assert out.shape == (2, 0, 3)
    assert not back.dvalues.any()
    assert back.dvalues.shape == x.shape


def csa_inputs(b=2, h=3, m=13, n=13, d=4, ratio=3, heads=5, i=2):
    return {
        "q": normal(b, h, m, d), "kv": normal(b, n, d), "entries": normal(b, n // ratio, d),
        "index_q": normal(b, heads, m, i), "index_entries": normal(b, n // ratio, i),
        "index_weights": normal(b, m, heads),
    }  # fmt: skip


@pytest.mark.parametrize("m", [13, 1, 5])
def test_csa_by_loops(m):
    x, sinks = csa_inputs(m=m), np.array([0.5, -np.inf, 2.0])
    got = me.csa(**x, count=2, ratio=3, window=4, sink_logits=sinks)
    for b, h, row in np.ndindex(2, 3, m):
        t = 13 - m + row
        usable = (t + 1) // 3
        dots = np.maximum(x["index_q"][b, :, row] @ x["index_entries"][b, :usable].T, 0)
        chosen = best(x["index_weights"][b, row] @ dots, 2)
        keys = np.concatenate([x["kv"][b, max(0, t - 3) : t + 1], x["entries"][b, chosen]])
        w = np.exp(keys @ x["q"][b, h, row] / 2)
        want = w @ keys / (w.sum() + np.exp(sinks[h]))
        np.testing.assert_allclose(got.out[b, h, row], want, atol=1e-13)
        assert got.lse[b, h, row] == pytest.approx(np.log(w.sum() + np.exp(sinks[h])))


def test_which_entries_a_query_may_use():
    """Ratio 3: the group of tokens 0, 1, 2 is there for the query at 2, which completes it."""
    q, kv, entries = np.zeros((1, 1, 7, 1)), np.zeros((1, 7, 1)), np.ones((1, 2, 1))
    seen = me.hca(q, kv, entries, ratio=3, window=1).out[0, 0, :, 0]  # share of entries

    assert seen.round(3).tolist() == [0, 0, 0.5, 0.5, 0.5, 0.667, 0.667]


def test_csa_with_enough_entries_is_hca():
    x = csa_inputs()
    plain = {name: x[name] for name in ("q", "kv", "entries")}

    np.testing.assert_array_equal(
        me.csa(**x, count=4, ratio=3, window=2).out, me.hca(**plain, ratio=3, window=2).out
    )
    window = me.csa(**x, count=0, ratio=3, window=5)
    kv = x["kv"][:, None]
    want = sr.attention(x["q"], kv, kv, sr.Causal() & sr.SlidingWindow(4, 0))
    np.testing.assert_allclose(window.out, want.out, atol=1e-14)


@pytest.mark.parametrize("m", [13, 5])
def test_csas_gradients(m):
    x = csa_inputs(m=m)
    fixed = {name: x.pop(name) for name in list(x) if name.startswith("index")}
    fixed |= {"count": 2, "ratio": 3, "window": 4}
    x["sink_logits"] = np.array([0.5, 0.0, 2.0])

    differences(
        lambda **x: me.csa(**x, **fixed).out,
        lambda up, **x: me.csa_vjp(**x, **fixed, dout=up),
        x,
    )
    del x["sink_logits"]
    differences(
        lambda **x: me.hca(**x, ratio=3, window=4).out,
        lambda up, **x: me.hca_vjp(**x, dout=up, ratio=3, window=4),
        x,
    )


# -- NSA ------------------------------------------------------------------------------------------

SIZES = {
    "count": 3, "block_size": 4, "window": 4, "stride": 2, "initial": 1, "local": 1, "recent": 3,
}  # fmt: skip


def nsa_inputs(b=2, h=4, g=2, m=19, n=19, d=3, e=2, gates=4):
    return {
        "q": normal(b, h, m, d), "k": normal(b, g, n, d), "v": normal(b, g, n, e),
        "gates": normal(b, gates, m, 3),
    }  # fmt: skip


@pytest.mark.parametrize("m", [19, 1, 6])
def test_nsa_by_loops(m):
    """Windows of 4 tokens, every 2; blocks of 4, the first and the own among 3 a group."""
    x = nsa_inputs(m=m)
    got = me.nsa(**x, **SIZES)
    for b, h, row in np.ndindex(2, 4, m):
        t, g, scale = 19 - m + row, h // 2, 3**-0.5
        windows = [range(c, c + 4) for c in range(0, t - 2, 2)]  # whole by t
        means_k = np.array([x["k"][b, g, list(w)].mean(axis=0) for w in windows]).reshape(-1, 3)
        means_v = np.array([x["v"][b, g, list(w)].mean(axis=0) for w in windows]).reshape(-1, 2)
        importance = np.zeros(t // 4 + 1)
        for head in (2 * g, 2 * g + 1):  # of the group
            if windows:
                p = softmax(scale * means_k @ x["q"][b, head, row])
                for share, w in zip(p, windows, strict=True):
                    for half in (w[0] // 4, w[2] // 4):  # each of its two halves is in one block
                        if half < len(importance):
                            importance[half] += share
        importance[[0, t // 4]] = np.inf
        chosen = [s for s in range(t + 1) if s // 4 in best(importance, 3)]
        recent = range(max(0, t - 2), t + 1)
        branches = [(means_k, means_v)]
        branches += [(x["k"][b, g, list(s)], x["v"][b, g, list(s)]) for s in (chosen, recent)]
        want = np.zeros(2)
        for gate, (k, v) in zip(x["gates"][b, h, row], branches, strict=True):
            if len(k):
                want += gate * softmax(scale * k @ x["q"][b, h, row]) @ v
        np.testing.assert_allclose(got[b, h, row], want, atol=1e-13)


def test_early_queries_have_no_compressed_keys():
    x = nsa_inputs()
    x["gates"] = np.broadcast_to([1.0, 0.0, 0.0], (2, 1, 19, 3))
    got = me.nsa(**x, **SIZES)

    assert not got[:, :, :3].any()
    assert got[:, :, 3:].all()


@pytest.mark.parametrize("gates", [4, 1])
@pytest.mark.parametrize("m", [19, 6])
def test_nsas_gradients(m, gates):
    """Through means that it takes itself, and through trained compression."""
    x = nsa_inputs(m=m, gates=gates)

    differences(
        lambda **x: me.nsa(**x, **SIZES), lambda up, **x: me.nsa_vjp(**x, dout=up, **SIZES), x
    )
    x |= {"compressed_k": normal(2, 2, 8, 3), "compressed_v": normal(2, 2, 8, 2)}
    differences(
        lambda **x: me.nsa(**x, **SIZES), lambda up, **x: me.nsa_vjp(**x, dout=up, **SIZES), x
    )


def test_compressing_keys_by_a_weight():
    x, weight, position = normal(2, 3, 11, 4), normal(3, 5, 4, 2), normal(3, 5, 4)
    sizes = {"window": 5, "stride": 3}
    got = me.nsa_compress(x, weight, position, **sizes)
    for b, g, c in np.ndindex(2, 3, 3):
        tokens = x[b, g, 3 * c : 3 * c + 5] + position[g]
        want = sum(one @ matrix for one, matrix in zip(tokens, weight[g], strict=True))
        np.testing.assert_allclose(got[b, g, c], want, atol=1e-13)

    differences(
        lambda **x: me.nsa_compress(**x, **sizes),
        lambda up, **x: me.nsa_compress_vjp(**x, dout=up, **sizes),
        {"x": x, "weight": weight, "position": position},
    )
    assert me.nsa_compress(x[:, :, :4], **sizes).shape == (2, 3, 0, 4)


@pytest.mark.parametrize(("b", "n"), [(0, 5), (2, 0)])
def test_empty_batches_and_texts_are_answered(b, n):
    q, kv, index = np.zeros((b, 3, n, 4)), np.zeros((b, n, 4)), np.zeros((b, 3, n, 2))
    few, weights = np.zeros((b, n // 4, 4)), np.zeros((b, n, 3))

    assert me.nsa(q, q, q, np.zeros((b, 1, n, 3))).shape == q.shape
    assert me.dsa(q, q, q, index, kv[..., :2], weights).out.shape == q.shape
    assert me.csa(q, kv, few, index, few[..., :2], weights).out.shape == q.shape
    assert me.hca(q, kv, few[:, :0]).out.shape == q.shape


DSA, CSA, NSA = dsa_inputs(), csa_inputs(), nsa_inputs()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: me.dsa(**{**DSA, "index_q": DSA["index_q"][:, :, :4]}), "index_q must have shape"),
        (lambda: me.csa(**CSA, ratio=4), r"entries must have shape \(b, w, d\) with b = 2, w = 3"),
        (lambda: me.csa(**{**CSA, "kv": CSA["kv"][:, :12]}), "q must have at most kv's 12"),
        (lambda: me.csa(**CSA, ratio=3, window=0), "window must be >= 1, got 0"),
        (lambda: me.csa_compress(*[np.ones((1, 4, 3))] * 2, np.ones((2, 3)), np.ones(2)),
         "values must have once or twice norm's size 2"),
        (lambda: me.nsa(**{**NSA, "gates": NSA["gates"][:, :2]}, **SIZES),
         r"gates must have 1 or 4 heads and 3 branches, got \(2, 2, 19, 3\)"),
        (lambda: me.nsa(**{**NSA, "gates": NSA["gates"][..., :2]}, **SIZES), "and 3 branches"),
        (lambda: me.nsa(**NSA, compressed_k=normal(2, 2, 7, 3), **SIZES),
         r"compressed_k must have shape \(b, g, c, d\)"),
        (lambda: me.nsa(**NSA, **{**SIZES, "stride": 3}), "window must be a multiple of stride"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
