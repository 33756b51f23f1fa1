"""What is read from outside: masks, key/value heads, bits."""

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.conformance.masks import read_groups, read_weights
from tests import numpy_kernels
from tests.conformance.test_checking import candidate
from tests.test_bounds import F16, F32
from tests.test_layouts import FAMILIES


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_the_mask_that_is_read_is_the_one_applied(pattern):
    def fn(q, k, v, asked):
        return sr.attention(q, k, v, asked).out

    for m, n in ((17, 19), (1, 13)):
        if pattern.covers is None or pattern.covers >= n:
            heads = max(pattern.heads, 2)
            got = sr.read_mask(fn, m, n, pattern=pattern, heads=heads, kv_heads=1, head_dim=7)
            np.testing.assert_array_equal(got, pattern.mask(m, n, heads=heads))


def test_half_precision_shows_every_key_of_a_long_row():
    def half(q, k, v):
        out, _ = sr.attention(q, k, v, sr.Full())
        return out.astype(F16)

    got = sr.read_mask(sr.fixed(half), 1, 5_003, head_dim=1_251)
    assert got.all()


def test_a_finite_mask_hides_nothing():
    def soft(q, k, v):
        hidden = np.where(np.tri(5, dtype=bool), 0.0, -10.0)
        return sr.attention(q, k, v, sr.Full(), bias=hidden).out

    assert sr.read_mask(soft, 5, 5, head_dim=3).all()
    weights = read_weights(soft, 5, 5, head_dim=3)[0]
    np.testing.assert_allclose(weights[0, 1] / weights[0, 0], np.exp(-10), rtol=1e-9)


@pytest.mark.parametrize("order", [(0, 0, 1, 1), (0, 1, 0, 1), (1, 1, 0, 0)])
def test_the_heads_that_are_read(order):
    def fn(q, k, v):
        k, v = k[:, order], v[:, order]
        return sr.attention(q, k, v, sr.Causal() - sr.SlidingWindow(0, 0)).out

    got = read_groups(fn, 6, 6, heads=4, kv_heads=2, head_dim=3)
    assert tuple(got) == order


BITS = {  # how the kernel rounds: scores, weights, values
    "float32": ({}, (24, 24, 24)),
    "float16 weights": ({"weight": F16}, (24, 11, 11)),
    "float16 scores": ({"score": F16}, (11, 24, 24)),
}


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize(
    "kernel", [numpy_kernels.naive, numpy_kernels.online, numpy_kernels.blocked]
)
def test_the_bits_that_are_kept(kind, kernel):
    more, (scores, weights, values) = BITS[kind]
    got = sr.read_precision(candidate(kernel, **{"weight": F32, **more}))

    assert (got.scores, got.weights, got.values, got.sums) == (scores, weights, values, 24)
    assert not got.flushes


def test_bfloat16_scores_are_told_from_bfloat16_weights():
    kind = pytest.importorskip("ml_dtypes").bfloat16
    scores = sr.read_precision(candidate(numpy_kernels.naive, score=kind, weight=F32))
    weights = sr.read_precision(candidate(numpy_kernels.naive, weight=kind))

    assert (scores.scores, scores.weights, scores.values) == (8, 24, 24)
    assert (weights.scores, weights.weights, weights.values) == (24, 8, 8)


def test_sums_in_half_and_flushing_show():
    def half_sums(q, k, v, pattern):
        s = q[0, 0, 0].astype(F32) @ k[0, 0].T.astype(F32) * F32(0.125)
        w = np.exp(s - s.max())
        w[w < 2.0**-126] = 0
        total, acc = w.sum(), F16(0)
        for weight, value in zip(w, v[0, 0, :, 0], strict=True):
            acc = F16(acc + F16(weight) * F16(np.clip(value, -6e4, 6e4)))
        out = np.zeros((1, 1, 1, v.shape[3]), F32)
        out[..., 0] = F32(acc) / total
        return out

    got = sr.read_precision(half_sums)
    assert got.sums == 11
    assert got.flushes


@pytest.mark.witness
def test_what_torch_keeps():
    torch = pytest.importorskip("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    for dtype, bits in (("float32", 24), ("float16", 11), ("bfloat16", 8)):
        fn = sr.Candidate(attend, arrays="torch", dtype=dtype, spell="sdpa")
        got = sr.read_precision(fn)
        assert (got.scores, got.weights, got.values, got.sums) == (24, bits, bits, 24)
        mask = sr.read_mask(fn, 5, 7, pattern=sr.Causal(), heads=2, kv_heads=1, head_dim=8)
        np.testing.assert_array_equal(mask, sr.Causal().mask(5, 7, heads=2))
