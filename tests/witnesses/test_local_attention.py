"""local-attention: buckets that look back and forward, and exact windows."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, by_loops, inputs

torch = pytest.importorskip("torch", reason="torch is not installed")
package = pytest.importorskip("local_attention", reason="local-attention is not installed")
pytestmark = pytest.mark.witness


def local(q, k, v, w, *, mask=None, **options):
    """`LocalAttention(window_size=w)` without its rotary positions."""
    scale = q.shape[-1] ** -0.5
    layer = package.LocalAttention(
        window_size=w, use_rotary_pos_emb=False, scale=scale, **options
    ).eval()
    with torch.no_grad():
        return layer(*map(torch.from_numpy, (q, k, v)), mask=mask).numpy()


def square(n=35):
    return inputs(h=3, m=n, n=n)


@pytest.mark.parametrize("back", [0, 1, 2])
@pytest.mark.parametrize("w", [5, 7])
def test_causal_buckets(w, back):
    q, k, v = square()

    got = local(q, k, v, w, causal=True, look_backward=back)
    agrees(got, q, k, v, sr.Causal() & sr.Chunked(w, back=back))
    if back == 1:  # the default
        agrees(got, q, k, v, sr.conventions.local_attention_buckets(w))


@pytest.mark.parametrize(("back", "ahead"), [(1, 1), (0, 1), (2, 0), (0, 0), (1, 3)])
def test_buckets_on_both_sides(back, ahead):
    q, k, v = square()

    got = local(q, k, v, 5, causal=False, look_backward=back, look_forward=ahead)
    agrees(got, q, k, v, sr.Chunked(5, back=back, ahead=ahead))


@pytest.mark.parametrize("back", [1, 2])
def test_exact_windows_see_one_key_more_than_their_size(back):
    q, k, v = square()

    got = local(q, k, v, 5, causal=True, look_backward=back, exact_windowsize=True)
    agrees(got, q, k, v, sr.conventions.local_attention(5 * back))
    got = local(
        q, k, v, 5, causal=False, look_backward=back, look_forward=1, exact_windowsize=True
    )  # fmt: skip
    agrees(got, q, k, v, sr.SlidingWindow(5 * back, 5))


def test_causal_padding_to_whole_buckets_is_not_seen():
    """37 tokens in buckets of 5."""
    q, k, v = square(37)

    got = local(q, k, v, 5, causal=True, autopad=True)
    agrees(got, q, k, v, sr.conventions.local_attention_buckets(5))


def test_padding_on_both_sides_is_attended_there():
    """Zero keys and values of the last bucket take part, unless a mask says otherwise."""
    q, k, v = square(37)
    pattern = sr.Chunked(5, back=1, ahead=1)
    got = local(q, k, v, 5, causal=False, autopad=True)
    right = by_loops(q[0], k[0], v[0], pattern.mask(37, 37, heads=3))
    padded = [np.pad(x, ((0, 0), (0, 0), (0, 3), (0, 0))) for x in (q, k, v)]

    np.testing.assert_allclose(sr.attention(q, k, v, pattern).out[0], right, atol=1e-12)
    assert np.abs(got[0, :, 30:] - right[:, 30:]).max() > 0.01
    np.testing.assert_allclose(got, sr.attention(*padded, pattern).out[:, :, :37], atol=1e-6)
    mask = torch.ones(2, 37, dtype=torch.bool)
    agrees(local(q, k, v, 5, causal=False, autopad=True, mask=mask), q, k, v, pattern)


def test_a_key_mask_is_kv_positions():
    q, k, v = square()
    mask = np.random.default_rng(0).random((2, 35)) < 0.7
    mask[:, ::5] = True  # every bucket keeps its first key
    got = local(q, k, v, 5, causal=True, mask=torch.from_numpy(mask))

    positions = np.where(mask, np.arange(35), -1)
    pattern = sr.conventions.local_attention_buckets(5)
    agrees(got, q, k, v, pattern, kv_positions=positions, q_start=0)
