"""JAX: the masks of splash attention, and `jax.nn.dot_product_attention`."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, by_loops, inputs

jax = pytest.importorskip("jax", reason="jax is not installed")
pytestmark = pytest.mark.witness
SHAPES = [(13, 13), (7, 19), (1, 17), (19, 7)]
SIDES = [(4, 2), (0, 0), (None, 0), (3, None), (None, None), (0, 5)]


@pytest.fixture
def splash():
    return pytest.importorskip(
        "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask",
        reason="this jax has no splash attention",
        exc_type=ImportError,
    )


def same(theirs, pattern, m, n, start=None):
    assert (np.asarray(theirs[:, :]) == pattern.mask(m, n, q_start=start)[0]).all(), pattern


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_local_masks(splash, sides, m, n):
    pattern = sr.conventions.splash(*sides)

    same(splash.LocalMask((m, n), sides, 0), pattern, m, n, start=0)
    same(splash.LocalMask((m, n), sides, n - m), pattern, m, n)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_causal_masks_are_aligned_to_the_first_key_unless_offset(splash, m, n):
    same(splash.CausalMask((m, n)), sr.Causal(), m, n, start=0)
    same(splash.CausalMask((m, n), n - m), sr.Causal(), m, n)
    same(splash.CausalMask((m, n), -3), sr.Causal(), m, n, start=-3)


@pytest.mark.parametrize("chunk", [1, 5, 17, 23])
def test_chunked_masks(splash, chunk):
    same(splash.ChunkedCausalMask((17, 17), chunk), sr.conventions.llama4(chunk), 17, 17)


def test_masks_of_masks(splash):
    """The algebra of both: and, or, heads."""
    window, causal = splash.LocalMask((11, 11), (3, 1), 0), splash.CausalMask((11, 11))

    same(window & causal, sr.SlidingWindow(3, 1) & sr.Causal(), 11, 11)
    same(window | causal, sr.SlidingWindow(3, 1) | sr.Causal(), 11, 11)
    heads = splash.MultiHeadMask([window, causal, window & causal])
    pattern = sr.PerHead(
        [sr.SlidingWindow(3, 1), sr.Causal(), sr.SlidingWindow(3, 1) & sr.Causal()]
    )  # fmt: skip
    assert (np.asarray(heads[:, :, :]) == pattern.mask(11, 11)).all()


def attend(q, k, v, **options):
    """out and lse of `jax.nn.dot_product_attention`, whose heads are after the tokens."""
    swapped = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    out, lse = jax.nn.dot_product_attention(*swapped, return_residual=True, **options)
    return np.asarray(out).transpose(0, 2, 1, 3), np.asarray(lse).transpose(0, 2, 1)


@pytest.mark.parametrize(("m", "n"), [(13, 13), (7, 19), (19, 7)])
@pytest.mark.parametrize("window", [(4, 2), (0, 3), 5, 0], ids=str)
def test_local_windows_are_besides_the_query(window, m, n):
    """An int is both sides; queries are aligned to the first key."""
    q, k, v = inputs(m=m, n=n, e=5)
    left, right = (window, window) if isinstance(window, int) else window
    pattern = sr.SlidingWindow(left, right)
    sees = pattern.mask(m, n, q_start=0)[0].any(axis=1)

    out, lse = attend(q, k, v, local_window_size=window)
    agrees(out[:, :, sees], q[:, :, sees], k, v, pattern, lse=lse[:, :, sees], q_start=0)
    out, lse = attend(q, k, v, local_window_size=window, is_causal=True)
    pattern &= sr.Causal()
    agrees(out[:, :, sees], q[:, :, sees], k, v, pattern, lse=lse[:, :, sees], q_start=0)


@pytest.mark.parametrize(
    "pattern",
    [sr.Causal() & sr.Strided(3), sr.Global([2, 11]), sr.PerHead([sr.Chunked(5), sr.Xor([0, 1])])],
    ids=repr,
)
def test_masks_and_biases(pattern):
    q, k, v = inputs(e=5)
    mask = pattern.mask(13, 19, heads=6)[None]
    bias = np.random.default_rng(1).integers(-64, 65, (6, 13, 19)) / 32
    seen = pattern.mask(13, 19, heads=6).any(axis=2).all()

    out, lse = attend(q, k, v, mask=mask, bias=bias[None].astype(np.float32), scale=0.5)
    assert seen
    agrees(out, q, k, v, pattern, lse=lse, bias=bias, scale=0.5)


def test_key_lengths():
    q, k, v = inputs(e=5)
    lengths = np.array([17, 5])
    out, lse = attend(q, k, v, key_value_seq_lengths=lengths, is_causal=True)

    agrees(out, q, k, v, sr.Causal(), lse=lse, kv_lengths=lengths, q_start=0)


def test_a_query_that_sees_no_key_gets_the_mean_there_and_zero_here():
    """Its scores are all the same large negative number, whose softmax is uniform."""
    q, k, v = inputs(g=6, e=5)
    pattern = sr.RowStride(2, [0])
    mask = pattern.mask(13, 19)
    out, _ = attend(q, k, v, mask=mask[None])
    empty = ~mask[0].any(axis=1)
    right = by_loops(q[0], k[0], v[0], np.repeat(mask, 6, axis=0))

    assert empty.nonzero()[0].tolist() == [1, 3, 5, 7, 9, 11]
    mean = np.broadcast_to(v.mean(axis=2, keepdims=True), out[:, :, empty].shape)
    np.testing.assert_allclose(out[:, :, empty], mean, atol=1e-6)
    assert (right[:, empty] == 0).all()
    assert (sr.attention(q, k, v, pattern).out[:, :, empty] == 0).all()
    agrees(out[:, :, ~empty], *(q[:, :, ~empty], k, v), sr.Full())
