"""Hugging Face transformers: mask functions, and the attention of Longformer and BigBird."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, inputs

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [
    pytest.mark.witness,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of packages it imports
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def hf_mask(m, n, function):
    from transformers import masking_utils

    mask = masking_utils.sdpa_mask(
        batch_size=1, q_length=m, kv_length=n, q_offset=n - m, mask_function=function,
        allow_is_causal_skip=False,
    )  # fmt: skip
    return mask.numpy()[0, 0]


@pytest.mark.parametrize(("m", "n"), [(13, 13), (5, 17), (1, 19)])
def test_mask_functions(m, n):
    from transformers import masking_utils as hf

    pairs = [
        (hf.causal_mask_function, sr.Causal()),
        (hf.sliding_window_causal_mask_function(4), sr.conventions.hf(4)),
        (hf.sliding_window_bidirectional_mask_function(3), sr.conventions.hf_bidirectional(3)),
        (
            hf.chunked_causal_mask_function(5, torch.tensor([2])),
            sr.Causal() & sr.Chunked(5, origin=2),
        ),
        (hf.chunked_causal_mask_function(5, torch.tensor([0])), sr.recipes.llama4(5)),
    ]
    for function, pattern in pairs:
        assert (hf_mask(m, n, function) == pattern.mask(m, n)[0]).all(), pattern


def test_packed_sequences():
    from transformers import masking_utils as hf

    ids = torch.tensor([[0] * 5 + [1] * 3 + [2] * 9])
    function = hf.and_masks(hf.causal_mask_function, hf.packed_sequence_mask_function(ids))

    want = sr.Causal() & sr.Document(ids[0])
    assert (hf_mask(17, 17, function) == want.mask(17, 17)[0]).all()


def test_image_blocks_inside_a_causal_sequence():
    from transformers import masking_utils as hf

    ids = torch.tensor([[-1, -1, 0, 0, 0, -1, 1, 1, -1, -1, -1]])
    function = hf.or_masks(hf.causal_mask_function, hf.blockwise_overlay(ids))

    want = sr.Causal() | sr.Document(ids[0])
    assert (hf_mask(11, 11, function) == want.mask(11, 11)[0]).all()


def test_longformer_with_its_global_projections():
    """Local rows read the local projections everywhere, global rows the global ones."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    n, window, h, d = 24, 4, 2, 3
    config = LongformerConfig(
        hidden_size=h * d, num_attention_heads=h, attention_window=[window],
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    layer = LongformerSelfAttention(config, 0).eval()
    x = torch.randn(1, n, h * d)
    flags = torch.zeros(1, n)
    flags[0, [0, 5]] = 10000.0
    with torch.no_grad():
        got = layer(
            x, attention_mask=flags, is_index_masked=flags < 0, is_index_global_attn=flags > 0,
            is_global_attn=True,
        )[0]  # fmt: skip

    def heads(name):
        with torch.no_grad():
            y = getattr(layer, name)(x)
        return y.view(1, n, h, d).transpose(1, 2).numpy()

    pattern = sr.recipes.longformer(window, [0, 5])
    local = sr.attention(heads("query"), heads("key"), heads("value"), pattern).out
    everywhere = sr.attention(
        heads("query_global"), heads("key_global"), heads("value_global"), sr.Full()
    ).out
    local[:, :, [0, 5]] = everywhere[:, :, [0, 5]]
    want = local.transpose(0, 2, 1, 3).reshape(1, n, h * d)
    np.testing.assert_allclose(got.numpy(), want, atol=2e-6)


def test_bigbird_counts_block_zero_again_in_eval_mode():
    """In eval() every random block is block 0: a multiset, and not what the paper says."""
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import (
        BigBirdBlockSparseAttention,
        BigBirdModel,
    )

    torch.manual_seed(0)
    block, blocks, h, d, random = 4, 11, 2, 8, 3
    n = block * blocks
    config = BigBirdConfig(
        hidden_size=h * d, num_attention_heads=h, block_size=block, num_random_blocks=random,
        attention_type="block_sparse", attention_probs_dropout_prob=0.0, use_bias=True,
    )  # fmt: skip
    layer = BigBirdBlockSparseAttention(config, seed=0).eval()
    x = torch.randn(1, n, h * d)
    blocked, band, rows, keys = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones(1, n), block
    )
    with torch.no_grad():
        got = layer(x, band, rows, keys, blocked, blocked)[0].numpy()
        q, k, v = (
            getattr(layer, name)(x).view(1, n, h, d).transpose(1, 2).numpy()
            for name in ("query", "key", "value")
        )

    fixed = sr.Blocked(sr.SlidingWindow(1, 1) | sr.Global({0, blocks - 1}), block)
    inner = sr.Blocked(sr.Keys([0]) & sr.Rows(range(1, blocks - 1)), block)
    multiset = sr.Multi([fixed] + [inner] * random)
    want = sr.attention(q, k, v, multiset).out.transpose(0, 2, 1, 3).reshape(1, n, h * d)
    as_published = sr.attention(q, k, v, fixed).out.transpose(0, 2, 1, 3).reshape(1, n, h * d)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.abs(got - as_published).max() > 0.05


def test_longt5_local_mask():
    from transformers.models.longt5.modeling_longt5 import _get_local_attention_mask

    radius, n = 3, 16
    mask = _get_local_attention_mask(torch.ones(1, n), radius + 1, "cpu")[0, 0].numpy()
    got = np.zeros((n, n + 2 * (radius + 1)), dtype=bool)
    for row in range(n):
        start = row // (radius + 1) * (radius + 1)
        got[row, start : start + 3 * (radius + 1)] = mask[row // (radius + 1), row % (radius + 1)]

    want = sr.recipes.longt5(radius).mask(n, n)[0]
    assert (got[:, radius + 1 : radius + 1 + n] == want).all()


def test_swin_shifted_windows():
    from transformers import SwinConfig
    from transformers.models.swin import modeling_swin as swin

    height, width, window, shift = 8, 12, 4, 2
    layer = swin.SwinLayer(
        SwinConfig(window_size=window), dim=8, input_resolution=(height, width), num_heads=2,
        shift_size=shift,
    )  # fmt: skip
    inside = layer.get_attn_mask(height, width, torch.float32, "cpu").numpy() == 0
    order = torch.arange(height * width).view(1, height, width, 1)
    rolled = torch.roll(order, (-shift, -shift), dims=(1, 2))
    tokens = swin.window_partition(rolled, window).view(-1, window * window).numpy()
    got = np.zeros((height * width,) * 2, dtype=bool)
    for ids, mask in zip(tokens, inside, strict=True):
        got[np.ix_(ids, ids)] = mask

    want = sr.recipes.swin((height, width), window, shift)
    assert (got == want.mask(height * width, height * width)[0]).all()


def test_gpt_oss_sink_logits_are_in_the_denominator_only():
    from types import SimpleNamespace

    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    q, k, v = inputs(m=13, n=13)
    sinks = np.array([0.5, -1.0, 2.0, 0.0], dtype=np.float32)
    pattern = sr.recipes.gpt_oss(5, layer=0)
    mask = np.where(pattern.mask(13, 13), 0, np.finfo(np.float32).min).astype(np.float32)[None]
    module = SimpleNamespace(num_key_value_groups=2, sinks=torch.from_numpy(sinks), training=False)
    got, _ = eager_attention_forward(
        module, *map(torch.from_numpy, (q, k, v, mask)), scaling=8**-0.5, dropout=0.0
    )

    agrees(got.numpy().transpose(0, 2, 1, 3), q, k, v, pattern, sink_logits=sinks)
