"""Sparse encoders in transformers: Longformer, BigBird, LongT5, Swin."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import by_loops

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.witness
# A layer rounds its projections, which we read from it: no a-priori bound for the whole.
CLOSE = {"rtol": 0, "atol": 2e-6}


def heads(layer, name, x, h):
    """What a projection of a layer makes of x (b, n, h d): (b, h, n, d)."""
    with torch.no_grad():
        y = getattr(layer, name)(x)
    return y.view(*x.shape[:2], h, -1).transpose(1, 2).numpy()


def joined(x):
    """(b, h, n, d) as (b, n, h d)."""
    b, h, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, h * d)


@pytest.mark.parametrize("window", [6, 10])
def test_longformer_with_padding_and_its_global_projections(window):
    """Local rows read the local projections everywhere, global rows the global ones."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    n, h, d, length = 30, 2, 5, 23
    config = LongformerConfig(
        hidden_size=h * d, num_attention_heads=h, attention_window=[window],
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    layer = LongformerSelfAttention(config, 0).eval()
    x = torch.randn(3, n, h * d)
    flags = torch.zeros(3, n)
    chosen = [[0, 5], [17], [0, 11, 22]]
    for row, tokens in enumerate(chosen):
        flags[row, tokens] = 10000.0
    flags[:, length:] = -10000.0
    with torch.no_grad():
        got = layer(
            x, attention_mask=flags, is_index_masked=flags < 0, is_index_global_attn=flags > 0,
            is_global_attn=True,
        )[0].numpy()  # fmt: skip

    pattern = sr.PerBatch([sr.recipes.longformer(window, tokens) for tokens in chosen])
    one, other = (
        sr.attention(
            *(heads(layer, name + suffix, x, h) for name in ("query", "key", "value")),
            pattern, kv_lengths=length,
        ).out
        for suffix in ("", "_global")
    )  # fmt: skip
    for row, tokens in enumerate(chosen):
        one[row][:, tokens] = other[row][:, tokens]
    one[:, :, length:] = 0  # padded queries are zeroed there
    np.testing.assert_allclose(got, joined(one), **CLOSE)


BLOCK, BLOCKS, H, D, RANDOM = 4, 13, 3, 5, 2


def bigbird(x, *, train):
    """BigBird's attention of x, and what it attended with: (out, plan, q, k, v)."""
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import (
        BigBirdBlockSparseAttention,
        BigBirdModel,
    )

    config = BigBirdConfig(
        hidden_size=H * D, num_attention_heads=H, block_size=BLOCK, num_random_blocks=RANDOM,
        attention_type="block_sparse", attention_probs_dropout_prob=0.0, use_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    layer = BigBirdBlockSparseAttention(config, seed=7).train(train)
    plans = []
    draw = layer._bigbird_block_rand_mask_with_head
    layer._bigbird_block_rand_mask_with_head = lambda **a: plans.append(draw(**a)) or plans[-1]
    blocked, band, rows, keys = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones(x.shape[:2]), BLOCK
    )
    with torch.no_grad():
        out = layer(x, band, rows, keys, blocked, blocked)[0].numpy()
    return out, plans[0], *(heads(layer, name, x, H) for name in ("query", "key", "value"))


def band():
    return sr.SlidingWindow(1, 1) | sr.Global({0, BLOCKS - 1})


def test_bigbird_with_the_blocks_it_draws_in_training():
    x = torch.randn(2, BLOCK * BLOCKS, H * D, generator=torch.Generator().manual_seed(1))
    got, plan, q, k, v = bigbird(x, train=True)
    drawn = np.zeros((H, BLOCKS, BLOCKS), dtype=bool)
    for head, rows in enumerate(plan):
        np.put_along_axis(drawn[head, 1:-1], rows, values=True, axis=1)
    pattern = sr.Blocked(
        sr.PerHead([band() | sr.BlockPattern(one, (1, 1)) for one in drawn]), BLOCK
    )  # fmt: skip

    assert not (drawn & band().mask(BLOCKS, BLOCKS)).any()  # each counts once
    assert drawn[:, 1:-1].sum(axis=2).tolist() == [[RANDOM] * (BLOCKS - 2)] * H
    assert (drawn[0] != drawn[1]).any()
    np.testing.assert_allclose(got, joined(sr.attention(q, k, v, pattern).out), **CLOSE)


def test_our_bigbird_draws_as_many_blocks():
    """Other ones: its generator is NumPy's global one."""
    ours = sr.recipes.bigbird(BLOCK * BLOCKS, BLOCK, random=RANDOM, seed=7, heads=H)
    counts = ours.mask(BLOCK * BLOCKS, BLOCK * BLOCKS)[:, ::BLOCK, ::BLOCK].sum(axis=2)
    base = band().mask(BLOCKS, BLOCKS)[0].sum(axis=1)

    assert (counts[:, 1:-1] == base[1:-1] + RANDOM).all()
    assert (counts[:, [0, -1]] == BLOCKS).all()


def test_bigbird_counts_block_zero_again_in_evaluation():
    """There every random block is block 0: a multiset, and not what the paper says."""
    x = torch.randn(2, BLOCK * BLOCKS, H * D, generator=torch.Generator().manual_seed(1))
    got, plan, q, k, v = bigbird(x, train=False)
    again = sr.Keys([0]) & sr.Rows(range(1, BLOCKS - 1))
    multiset = sr.Multi([sr.Blocked(p, BLOCK) for p in [band(), *[again] * RANDOM]])
    published = sr.Blocked(band(), BLOCK)

    assert not np.any(plan)
    np.testing.assert_allclose(got, joined(sr.attention(q, k, v, multiset).out), **CLOSE)
    blocks = np.arange(BLOCK * BLOCKS) // BLOCK
    near = abs(blocks[:, None] - blocks) <= 1
    counts = near | np.isin(blocks, (0, BLOCKS - 1)) | np.isin(blocks, (0, BLOCKS - 1))[:, None]
    loops = by_loops(q[0], k[0], v[0], np.repeat(counts[None], H, axis=0))
    np.testing.assert_allclose(sr.attention(q, k, v, published).out[0], loops, atol=1e-12)
    assert np.abs(got[0] - joined(loops[None])[0]).max() > 0.05


@pytest.mark.parametrize(("radius", "n"), [(1, 13), (3, 19), (4, 17), (6, 23), (30, 11)])
def test_longt5_local_mask(radius, n):
    """Each block of radius + 1 queries sees three blocks of keys, its own in the middle."""
    from transformers.models.longt5.modeling_longt5 import _get_local_attention_mask

    size = radius + 1
    blocks = _get_local_attention_mask(torch.ones(1, n), size, "cpu")[0, 0].numpy()
    got = np.zeros((n, n), dtype=bool)
    for row in range(n):
        block = row // size
        for column, seen in enumerate(blocks[block, row % size]):
            key = (block - 1) * size + column
            if 0 <= key < n:
                got[row, key] = seen
            else:
                assert not seen

    assert (got == sr.conventions.longt5(radius).mask(n, n)[0]).all()
    assert (got == sr.recipes.longt5(radius).mask(n, n)[0]).all()


@pytest.mark.parametrize(("radius", "n"), [(3, 19), (4, 17), (6, 23)])
def test_longt5_with_its_relative_bias(radius, n):
    """Blocks of radius + 1 and a strict `<`; the scores have no scale."""
    from transformers import LongT5Config
    from transformers.models.longt5.modeling_longt5 import (
        LongT5LocalAttention,
        _get_local_attention_mask,
    )

    torch.manual_seed(0)
    h, d = 3, 5
    config = LongT5Config(
        d_model=h * d, d_kv=d, num_heads=h, local_radius=radius, dropout_rate=0.0,
        relative_attention_num_buckets=8, relative_attention_max_distance=6,
    )  # fmt: skip
    layer = LongT5LocalAttention(config, has_relative_attention_bias=True).eval()
    layer.o = torch.nn.Identity()
    x = torch.randn(2, n, h * d)
    mask = _get_local_attention_mask(torch.ones(2, n), radius + 1, "cpu")
    with torch.no_grad():
        got = layer(x, mask)[0].numpy()
        # row 0 of a block sees distances -(radius + 1) .. 2 radius + 1 of its three blocks
        table = layer.compute_bias(radius + 1)[0, 0, :, 0].numpy()
    q, k, v = (heads(layer, name, x, h) for name in "qkv")

    bias = sr.RelativeBias(table, left=radius + 1)
    want = sr.attention(q, k, v, sr.recipes.longt5(radius), bias=bias, scale=1.0).out
    np.testing.assert_allclose(got, joined(want), **CLOSE)


@pytest.mark.parametrize(("height", "width", "window", "shift"), [(9, 15, 3, 1), (10, 15, 5, 2)])
def test_swin_shifted_windows(height, width, window, shift):
    from transformers import SwinConfig
    from transformers.models.swin import modeling_swin as swin

    layer = swin.SwinLayer(
        SwinConfig(window_size=window), dim=8, input_resolution=(height, width), num_heads=2,
        shift_size=shift,
    )  # fmt: skip
    inside = layer.get_attn_mask(height, width, torch.float32, "cpu").numpy() == 0
    order = torch.arange(height * width).view(1, height, width, 1)
    tokens = swin.window_partition(layer.cyclic_shift(order), window).view(-1, window**2).numpy()
    got = np.zeros((height * width,) * 2, dtype=bool)
    for ids, mask in zip(tokens, inside, strict=True):
        got[np.ix_(ids, ids)] = mask

    want = sr.recipes.swin((height, width), window, shift)
    assert (got == want.mask(height * width, height * width)[0]).all()


@pytest.mark.parametrize(("height", "width"), [(5, 11), (7, 3)])
def test_swin_windows_are_no_larger_than_the_image(height, width):
    """Then there is no shift either."""
    from transformers import SwinConfig
    from transformers.models.swin import modeling_swin as swin

    layer = swin.SwinLayer(
        SwinConfig(window_size=7), dim=8, input_resolution=(height, width), num_heads=2,
        shift_size=3,
    )  # fmt: skip
    layer.set_shift_and_window_size((height, width))
    side = min(height, width)

    assert (layer.window_size, layer.shift_size) == (side, 0)
    cells = np.indices((height, width)).reshape(2, -1) // side
    want = (cells[:, :, None] == cells[:, None]).all(axis=0)
    n = height * width
    assert (sr.recipes.swin((height, width), 7, 3).mask(n, n)[0] == want).all()
