"""Hugging Face transformers: mask functions, and the sinks of gpt-oss."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, by_loops, inputs

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.witness
SHAPES = [(13, 13), (5, 17), (1, 19)]


@pytest.fixture
def hf():
    from transformers import masking_utils

    return masking_utils


def mask_of(hf, m, n, function, batch=1, **options):
    """(batch, m, n); the queries are the last positions."""
    mask = hf.sdpa_mask(
        batch, m, n, q_offset=n - m, mask_function=function, allow_is_causal_skip=False, **options
    )
    return mask.numpy()[:, 0]


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("w", [1, 2, 4, 17, 40])
def test_windows(hf, w, m, n):
    causal = hf.sliding_window_causal_mask_function(w)
    both = hf.sliding_window_bidirectional_mask_function(w)

    assert (mask_of(hf, m, n, causal) == sr.conventions.hf(w).mask(m, n)).all()
    assert (mask_of(hf, m, n, both) == sr.conventions.hf_bidirectional(w).mask(m, n)).all()


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_causal_and_full(hf, m, n):
    assert (mask_of(hf, m, n, hf.causal_mask_function) == sr.Causal().mask(m, n)).all()
    assert (mask_of(hf, m, n, hf.bidirectional_mask_function) == sr.Full().mask(m, n)).all()


def test_a_window_of_zero_shows_no_key(hf):
    assert not mask_of(hf, 7, 7, hf.sliding_window_causal_mask_function(0)).any()
    with pytest.raises(ValueError, match="with 0 Hugging Face's mask shows no key"):
        sr.conventions.hf(0)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("chunk", [1, 5, 23])
def test_chunks_begin_at_the_first_token_that_is_not_padding(hf, chunk, m, n):
    """Left padding: the chunks of each row are moved, and the padding is no key."""
    pads = torch.tensor([0, 3, 11])
    present = torch.arange(n) >= pads[:, None]
    function = hf.chunked_causal_mask_function(chunk, pads)
    got = mask_of(hf, m, n, function, batch=3, attention_mask=present)

    for row, pad in enumerate(pads.tolist()):
        positions = np.where(np.arange(n) >= pad, np.arange(n), -1)
        pattern = sr.Causal() & sr.Chunked(chunk, origin=pad)
        want = pattern.mask(m, n, kv_positions=positions)[0]
        assert (got[row] == want).all()
        moved = np.where(np.arange(n) >= pad, np.arange(n) - pad, -1)  # or move the positions
        want = sr.recipes.llama4(chunk).mask(m, n, q_start=n - m - pad, kv_positions=moved)[0]
        assert (got[row] == want).all()


def test_attention_with_left_padding(hf):
    """One call for the batch: per-row patterns and positions; padded queries see nothing."""
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = inputs(b=3, n=13)
    pads = torch.tensor([0, 3, 11])
    function = hf.chunked_causal_mask_function(5, pads)
    mask = hf.sdpa_mask(
        3, 13, 13, mask_function=function, attention_mask=torch.arange(13) >= pads[:, None],
        allow_is_causal_skip=False,
    )  # fmt: skip
    got = scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), attn_mask=mask, enable_gqa=True
    )

    slots = np.arange(13) - pads.numpy()[:, None]
    agrees(got, q, k, v, sr.recipes.llama4(5), q_start=-pads.numpy(), kv_positions=slots)
    kept = np.where(slots >= 0, np.arange(13), -1)
    rows = sr.PerBatch([sr.Causal() & sr.Chunked(5, origin=pad) for pad in pads.tolist()])
    agrees(got, q, k, v, rows, kv_positions=kept)


IDS = torch.tensor([[0] * 5 + [1] + [2] * 10 + [3] * 3])


@pytest.mark.parametrize(("m", "n"), [(19, 19), (7, 19)])
def test_packed_sequences(hf, m, n):
    packed = hf.packed_sequence_mask_function(IDS)
    causal = hf.and_masks(hf.causal_mask_function, packed)
    window = hf.and_masks(hf.sliding_window_causal_mask_function(4), packed)
    document = sr.Document(IDS[0])

    assert (mask_of(hf, m, n, packed) == document.mask(m, n)).all()
    assert (mask_of(hf, m, n, causal) == (sr.Causal() & document).mask(m, n)).all()
    want = sr.conventions.hf(4) & document
    assert (mask_of(hf, m, n, window) == want.mask(m, n)).all()


def test_chunks_within_packed_sequences(hf):
    """Chunks count from the first token of each sequence, by its position ids."""
    places = torch.cat([torch.arange(size) for size in (5, 1, 10, 3)])[None]
    chunked = hf.chunked_causal_mask_function(3, torch.tensor([0]))
    inner = hf.remap_positions_for_packed_sequence(chunked, places)
    function = hf.and_masks(inner, hf.packed_sequence_mask_function(IDS))

    want = sr.WithinDocument(sr.recipes.llama4(3), IDS[0])
    assert (mask_of(hf, 19, 19, function) == want.mask(19, 19)).all()


IMAGES = torch.tensor([[-1, -1, 0, 0, 0, -1, 1, 1, -1, 2, 2, 2, 2]])


@pytest.mark.parametrize(("m", "n"), [(13, 13), (5, 13)])
def test_images_inside_a_causal_sequence(hf, m, n):
    """Blocks laid over causality; -1 is text. In Gemma 3's local layers, within the window."""
    overlay = hf.blockwise_overlay(IMAGES)
    images = sr.Causal() | sr.Document(IMAGES[0])
    function = hf.or_masks(hf.causal_mask_function, overlay)
    local = hf.and_masks(hf.sliding_window_overlay(3), function)

    assert (mask_of(hf, m, n, function) == images.mask(m, n)).all()
    want = sr.SlidingWindow(2, None) & images
    assert (mask_of(hf, m, n, local) == want.mask(m, n)).all()


def test_a_row_without_keys_is_the_mean_in_eager_mode_and_zero_here(hf):
    """It adds the most negative float to every score, which leaves them all alike."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    q, k, v = inputs(g=6, n=13)
    present = torch.arange(13) >= 4
    mask = hf.eager_mask(2, 13, 13, attention_mask=present.repeat(2, 1), dtype=torch.float32)
    module = torch.nn.Module().eval()
    module.num_key_value_groups = 1
    got, _ = eager_attention_forward(
        module, *map(torch.from_numpy, (q, k, v)), mask, scaling=5**-0.5
    )
    got = got.transpose(1, 2).numpy()

    allowed = np.tril(np.ones((13, 13), dtype=bool)) & present.numpy()
    right = by_loops(q[0], k[0], v[0], np.repeat(allowed[None], 6, axis=0))
    mean = np.broadcast_to(v.mean(axis=2, keepdims=True), got[:, :, :4].shape)
    np.testing.assert_allclose(got[:, :, :4], mean, atol=1e-6)
    assert (right[:, :4] == 0).all()
    slots = np.where(present, np.arange(13), -1)
    assert (sr.attention(q, k, v, sr.Causal(), kv_positions=slots).out[:, :, :4] == 0).all()
    agrees(got[:, :, 4:], q[:, :, 4:], k, v, sr.Causal(), kv_positions=slots, q_start=4)


def gpt_oss(q, k, v, mask, sinks):
    """The eager attention of gpt-oss, on a module that holds what it reads."""
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    module = torch.nn.Module().eval()
    module.num_key_value_groups = q.shape[1] // k.shape[1]
    module.sinks = sinks
    out, _ = eager_attention_forward(module, q, k, v, mask, scaling=q.shape[-1] ** -0.5)
    return out.transpose(1, 2)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_sinks_of_gpt_oss(hf, m, n):
    q, k, v = inputs(m=m, n=n)
    sinks = np.array([0.5, -1.0, 2.0, 0.0, 5.0, -9.0], np.float32)
    mask = hf.eager_mask(
        2, m, n, q_offset=n - m, mask_function=hf.sliding_window_causal_mask_function(4),
        dtype=torch.float32,
    )  # fmt: skip
    tensors = map(torch.from_numpy, (q, k, v))

    got = gpt_oss(*tensors, mask, torch.from_numpy(sinks))
    agrees(got, q, k, v, sr.recipes.gpt_oss(4), sink_logits=sinks)


def test_gradients_of_sinks():
    q, k, v = (x.astype(np.float64) for x in inputs())
    sinks, pattern = np.array([0.5, -1.0, 2.0, 0.0, 5.0, -9.0]), sr.recipes.gpt_oss(4)
    leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v, sinks)]
    mask = torch.where(torch.from_numpy(pattern.mask(13, 19)), 0.0, -torch.inf).double()
    dout = np.random.default_rng(2).standard_normal((2, 6, 13, 7))
    gpt_oss(*leaves[:3], mask, leaves[3]).backward(torch.from_numpy(dout))

    got = sr.attention_vjp(q, k, v, pattern, dout, sink_logits=sinks)
    for leaf, ours in zip(leaves, (got.dq, got.dk, got.dv, got.dsink_logits), strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), ours, rtol=1e-10, atol=1e-12)
