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
MULTISETS = [p for p in FAMILIES if p.multiset]


def tensors(*arrays):
    return [torch.from_numpy(x) for x in arrays]


@pytest.mark.parametrize("pattern", SETS, ids=repr)
def test_sdpa_with_our_mask(pattern):
    q, k, v = inputs()
    mask = torch.from_numpy(pattern.mask(13, 19, heads=6))
    got = functional.scaled_dot_product_attention(
        *tensors(q, k, v), attn_mask=mask, enable_gqa=True
    )

    agrees(got, q, k, v, pattern)


@pytest.mark.parametrize("pattern", SETS, ids=repr)
def test_sdpa_with_more_queries_than_keys(pattern):
    """The first queries stand before position 0: a causal one sees nothing."""
    q, k, v = inputs(m=17, n=11, d=7, e=5)
    mask = torch.from_numpy(pattern.mask(17, 11, heads=6))
    got = functional.scaled_dot_product_attention(
        *tensors(q, k, v), attn_mask=mask, enable_gqa=True
    )

    agrees(got, q, k, v, pattern)


@pytest.mark.parametrize("pattern", MULTISETS, ids=repr)
def test_sdpa_with_the_logarithm_of_multiplicities(pattern):
    """In float64: the logarithm is a rounded bias to SDPA, a count to us."""
    q, k, v = (x.astype(np.float64) for x in inputs())
    with np.errstate(divide="ignore"):
        log_counts = np.log(pattern.counts(13, 19, heads=6))
    got = functional.scaled_dot_product_attention(*tensors(q, k, v, log_counts), enable_gqa=True)

    agrees(got, q, k, v, pattern, arithmetic="float64")


def test_sdpa_is_causal_is_aligned_to_the_first_key():
    q, k, v = inputs(h=3)
    got = functional.scaled_dot_product_attention(*tensors(q, k, v), is_causal=True)

    agrees(got, q, k, v, sr.conventions.sdpa(), q_start=0)


@pytest.mark.parametrize(("m", "n"), [(13, 19), (1, 17), (7, 7)])
def test_causal_lower_right_is_aligned_to_the_last_key(m, n):
    from torch.nn.attention.bias import causal_lower_right

    q, k, v = inputs(h=3, m=m, n=n)
    got = functional.scaled_dot_product_attention(
        *tensors(q, k, v), attn_mask=causal_lower_right(m, n)
    )

    agrees(got, q, k, v, sr.Causal())


def test_sdpa_lets_a_masked_nan_through_and_the_oracle_does_not():
    """0 x NaN: the witness multiplies where the definition selects."""
    q, k, v = inputs(h=3, m=19)
    v[:, :, 7] = np.nan
    mask = torch.from_numpy(sr.SlidingWindow(1, 0).mask(19, 19))
    got = functional.scaled_dot_product_attention(*tensors(q, k, v), attn_mask=mask).numpy()
    want = sr.attention(q, k, v, sr.SlidingWindow(1, 0)).out

    assert np.isnan(want).any(axis=(0, 1, 3)).nonzero()[0].tolist() == [7, 8]
    assert np.isnan(got).any(axis=(0, 1, 3)).all()


FLEX = [
    sr.Causal() & (sr.SlidingWindow(3, 0) | sr.Sink(2)),
    sr.SlidingWindow(4, 2, dilation=2),
    ~(sr.Chunked(5) & sr.Strided(2)),
    sr.Xor([0, 1, 4]),
    sr.Causal() - sr.SlidingWindow(8, 0),  # rows without a key
    sr.Neighborhood(19, 5),
    sr.KeyStride(5, [3, 4]) | sr.Global(range(2)),
    sr.Grid((3, 7), (sr.Neighborhood(3, 2), sr.SlidingWindow(2, 1))),
    sr.PerHead([sr.PrefixLM(5), sr.Blocked(sr.SlidingWindow(1, 0), 4), sr.Offsets([0, 2, 7])]),
]


def flex(q, k, v, pattern, **options):
    """FlexAttention on the predicate itself; queries are the last positions, as in the oracle."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    m, n = q.shape[2], k.shape[2]
    predicates = [pattern.at(head) for head in range(pattern.heads)]

    def mask_mod(b, h, i, j):
        seen = predicates[0](i + n - m, j)
        for head, predicate in enumerate(predicates[1:], 1):
            seen = torch.where(h % len(predicates) == head, predicate(i + n - m, j), seen)
        return seen

    block_mask = create_block_mask(mask_mod, None, q.shape[1], m, n, device="cpu", BLOCK_SIZE=16)
    out, aux = flex_attention(
        *tensors(q, k, v), block_mask=block_mask, enable_gqa=True,
        return_aux=AuxRequest(lse=True), **options,
    )  # fmt: skip
    return out.numpy(), aux.lse.numpy()


@pytest.mark.parametrize("pattern", FLEX, ids=repr)
def test_flex_attention_runs_the_predicate_itself(pattern):
    q, k, v = inputs()
    got, lse = flex(q, k, v, pattern)

    agrees(got, q, k, v, pattern, lse=lse)


def test_flex_attention_with_score_modifications():
    q, k, v = inputs()
    pattern = sr.Causal() & sr.SlidingWindow(6, 0)
    slopes = 2.0 ** -np.arange(1, 7)
    decline = torch.from_numpy(slopes).float()

    def softcap(score, b, h, i, j):
        return 1.5 * torch.tanh(score / 1.5)

    def alibi(score, b, h, i, j):
        return score - decline[h] * (i + 6 - j).abs()

    got, lse = flex(q, k, v, pattern, score_mod=softcap)
    agrees(got, q, k, v, pattern, lse=lse, softcap=1.5)
    got, lse = flex(q, k, v, pattern, score_mod=alibi)
    agrees(got, q, k, v, pattern, lse=lse, alibi_slopes=slopes)


def test_a_sink_logit_rescales_by_the_lse():
    """How FlexAttention users add sinks: out * sigmoid(lse - sink)."""
    q, k, v = inputs(n=13)
    sinks = np.array([0.5, -1.0, 2.0, 0.0, 3.5, -7.0])
    pattern = sr.Causal() - sr.SlidingWindow(1, 0)  # queries 0 and 1 see no key
    out, lse = (x.astype(np.float64) for x in flex(q, k, v, pattern))
    total = np.logaddexp(lse, sinks[:, None])
    want = sr.attention(q, k, v, pattern, sink_logits=sinks)

    assert (lse[:, :, :2] == -np.inf).all()
    np.testing.assert_allclose(out * np.exp(lse - total)[..., None], want.out, rtol=0, atol=1e-6)
    np.testing.assert_allclose(total, want.lse, rtol=0, atol=1e-6)


def test_gradients_of_sdpa():
    q, k, v = (x.astype(np.float64) for x in inputs(h=3))
    leaves = [x.requires_grad_() for x in tensors(q, k, v)]
    pattern = sr.Causal() & sr.SlidingWindow(4, 0)
    bias = np.random.default_rng(1).standard_normal((3, 13, 19))
    added = torch.from_numpy(bias).requires_grad_()
    mask = torch.where(torch.from_numpy(pattern.mask(13, 19)), added, -torch.inf)
    dout = np.random.default_rng(2).standard_normal((2, 3, 13, 7))
    out = functional.scaled_dot_product_attention(*leaves, attn_mask=mask)
    out.backward(torch.from_numpy(dout))
    got = sr.attention_vjp(q, k, v, pattern, dout, bias=bias)

    for tensor, ours in zip((*leaves, added), got, strict=False):
        np.testing.assert_allclose(tensor.grad.numpy(), ours, rtol=1e-10, atol=1e-12)
