"""torch: scaled_dot_product_attention with our mask, FlexAttention with our predicate."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.test_layouts import FAMILIES
from tests.witnesses import agrees, inputs

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.witness
functional = torch.nn.functional
SETS = [p for p in FAMILIES if not p.multiset]


@pytest.mark.parametrize("pattern", SETS, ids=repr)
def test_sdpa_with_our_mask(pattern):
    q, k, v = inputs()
    mask = torch.from_numpy(pattern.mask(13, 19, heads=4))
    got = functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), attn_mask=mask, enable_gqa=True
    )

    agrees(got, q, k, v, pattern)


def test_sdpa_is_causal_is_aligned_to_the_first_key():
    q, k, v = inputs(h=2)
    got = functional.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), is_causal=True)

    agrees(got, q, k, v, sr.Causal(), q_start=0)


def test_sdpa_lets_a_masked_nan_through_and_the_oracle_does_not():
    """0 x NaN: the witness multiplies where the definition selects."""
    q, k, v = inputs(h=2, m=19)
    v[:, :, 7] = np.nan
    mask = torch.from_numpy(sr.SlidingWindow(1, 0).mask(19, 19))
    got = functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), attn_mask=mask
    ).numpy()
    want = sr.attention(q, k, v, sr.SlidingWindow(1, 0)).out

    assert np.isnan(want).any(axis=(0, 1, 3)).nonzero()[0].tolist() == [7, 8]
    assert np.isnan(got).any(axis=(0, 1, 3)).all()


FLEX = [
    sr.Causal() & (sr.SlidingWindow(3, 0) | sr.Sink(2)),
    sr.SlidingWindow(4, 2, dilation=2),
    ~(sr.Chunked(5) & sr.Strided(2)),
    sr.Xor([0, 1, 4]),
    sr.Causal() - sr.SlidingWindow(1, 0),  # rows without a key
    sr.Neighborhood(19, 5),
    sr.KeyStride(5, [3, 4]) | sr.Global(range(2)),
]


@pytest.mark.parametrize("pattern", FLEX, ids=repr)
def test_flex_attention_runs_the_predicate_itself(pattern):
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    q, k, v = inputs()
    block_mask = create_block_mask(
        lambda b, h, i, j: pattern(i + 6, j), None, None, 13, 19, device="cpu", BLOCK_SIZE=16
    )
    got, aux = flex_attention(
        *map(torch.from_numpy, (q, k, v)),
        block_mask=block_mask,
        enable_gqa=True,
        return_aux=AuxRequest(lse=True),
    )

    agrees(got, q, k, v, pattern)
    want = sr.attention(q, k, v, pattern).lse
    np.testing.assert_allclose(aux.lse.numpy(), want, rtol=2e-6, atol=2e-6)


def test_gradients_of_sdpa():
    q, k, v = (x.astype(np.float64) for x in inputs(h=2))
    tensors = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    pattern = sr.Causal() & sr.SlidingWindow(4, 0)
    bias = np.random.default_rng(1).standard_normal((2, 13, 19))
    added = torch.from_numpy(bias).requires_grad_()
    mask = torch.where(torch.from_numpy(pattern.mask(13, 19)), added, -torch.inf)
    dout = np.random.default_rng(2).standard_normal((2, 2, 13, 8))
    out = functional.scaled_dot_product_attention(*tensors, attn_mask=mask)
    out.backward(torch.from_numpy(dout))
    got = sr.attention_vjp(q, k, v, pattern, dout, bias=bias)

    for tensor, ours in zip((*tensors, added), got, strict=False):
        np.testing.assert_allclose(tensor.grad.numpy(), ours, rtol=1e-10, atol=1e-12)
