"""Libraries of masks: JAX splash, attention-gym, local-attention, NATTEN."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, inputs

pytestmark = [
    pytest.mark.witness,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of packages they import
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_jax_splash_masks():
    splash = pytest.importorskip(
        "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask",
        reason="jax is not installed",
        exc_type=ImportError,
    )
    for m, n in ((13, 13), (7, 19)):
        offset = n - m
        pairs = [
            (splash.CausalMask((m, n), offset), sr.Causal()),
            (splash.LocalMask((m, n), (4, 2), offset), sr.conventions.splash(4, 2)),
            (splash.LocalMask((m, n), (None, 0), offset), sr.conventions.splash(-1, 0)),
        ]
        for mask, pattern in pairs:
            assert (np.asarray(mask[:, :]) == pattern.mask(m, n)[0]).all(), pattern
    chunked = splash.ChunkedCausalMask((17, 17), 5)
    assert (np.asarray(chunked[:, :]) == sr.recipes.llama4(5).mask(17, 17)[0]).all()


def gym(mask_mod, m, n):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    i, j = torch.arange(m)[:, None], torch.arange(n)[None]
    zero = torch.zeros((), dtype=torch.long)
    return np.broadcast_to(mask_mod(zero, zero, i, j).numpy(), (m, n))


def test_attention_gym_masks():
    masks = pytest.importorskip("attn_gym.masks", reason="attn-gym is not installed")
    pairs = [
        (masks.generate_sliding_window(4), sr.conventions.attention_gym(4)),
        (masks.generate_prefix_lm_mask(5), sr.PrefixLM(5)),
        (
            masks.generate_dilated_sliding_window(6, 3),
            sr.SlidingWindow(6 // 3, 6 // 3, dilation=3),
        ),
    ]
    for mask_mod, pattern in pairs:
        assert (gym(mask_mod, 17, 17) == pattern.mask(17, 17)[0]).all(), pattern


def test_attention_gym_natten_is_wrong_for_even_kernels():
    """It shows k + 1 keys; NATTEN shows k, and so do we (see the next test)."""
    masks = pytest.importorskip("attn_gym.masks", reason="attn-gym is not installed")
    got = gym(masks.generate_natten(6, 6, 4, 4), 36, 36)
    right = sr.recipes.natten((6, 6), 4).mask(36, 36)[0]

    assert set(right.sum(axis=1)) == {16}
    assert got.sum(axis=1).max() == 25
    odd = gym(masks.generate_natten(6, 6, 3, 3), 36, 36)
    assert (odd == sr.recipes.natten((6, 6), 3).mask(36, 36)[0]).all()


@pytest.mark.parametrize(
    ("kernel", "dilation", "stride", "causal"),
    [(3, 1, 1, False), (4, 1, 1, False), (5, 2, 1, False), (4, 2, 3, False), (5, 1, 2, True),
     (6, 3, 4, True)],
)  # fmt: skip
def test_natten_one_axis(kernel, dilation, stride, causal):
    functional = pytest.importorskip("natten.functional", reason="natten is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q, k, v = inputs(h=2, m=23, n=23, d=32, e=32)
    swapped = [torch.from_numpy(x.transpose(0, 2, 1, 3).copy()) for x in (q, k, v)]
    got = functional.na1d(
        *swapped, kernel_size=kernel, dilation=dilation, stride=stride, is_causal=causal,
        backend="flex-fna",
    )  # fmt: skip

    pattern = sr.Neighborhood(23, kernel, dilation, stride, causal)
    agrees(got.numpy().transpose(0, 2, 1, 3), q, k, v, pattern)


def test_natten_two_axes():
    functional = pytest.importorskip("natten.functional", reason="natten is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    height, width = 5, 7
    q, k, v = inputs(h=2, m=35, n=35, d=32, e=32)
    images = [
        torch.from_numpy(x.transpose(0, 2, 1, 3).reshape(2, height, width, 2, 32).copy())
        for x in (q, k, v)
    ]
    got = functional.na2d(*images, kernel_size=(3, 4), is_causal=(False, True), backend="flex-fna")

    pattern = sr.recipes.natten((height, width), (3, 4), causal=(False, True))
    agrees(got.numpy().reshape(2, 35, 2, 32).transpose(0, 2, 1, 3), q, k, v, pattern)


def test_local_attention_looks_one_chunk_back():
    package = pytest.importorskip("local_attention", reason="local-attention is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q, k, v = inputs(h=2, m=20, n=20)
    layer = package.LocalAttention(
        dim=8, window_size=5, causal=True, look_backward=1, use_rotary_pos_emb=False,
        scale=8**-0.5, autopad=False,
    )  # fmt: skip
    with torch.no_grad():
        got = layer(*map(torch.from_numpy, (q, k, v))).numpy()

    agrees(got, q, k, v, sr.Causal() & sr.Chunked(5, back=1))
