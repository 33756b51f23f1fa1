"""attention-gym: its mask and score functions; one of them is wrong, and is shown to be."""

import itertools

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, by_loops, inputs, picture

torch = pytest.importorskip("torch", reason="torch is not installed")
masks = pytest.importorskip("attn_gym.masks", reason="attn-gym is not installed")
mods = pytest.importorskip("attn_gym.mods", reason="attn-gym is not installed")
pytestmark = pytest.mark.witness


def grid(mask_mod, m, n, h=0):
    """A mask function on all pairs; its indices count from the first query and the first key."""
    i, j = torch.arange(m)[:, None], torch.arange(n)[None]
    return np.broadcast_to(mask_mod(torch.tensor(0), torch.tensor(h), i, j).numpy(), (m, n))


def same(mask_mod, pattern, m, n, start=0):
    assert (grid(mask_mod, m, n) == pattern.mask(m, n, q_start=start)[0]).all(), pattern


@pytest.mark.parametrize(("m", "n"), [(17, 17), (7, 19), (19, 7)])
def test_windows_and_prefixes(m, n):
    same(masks.causal_mask, sr.Causal(), m, n)
    for w in (0, 1, 4, 23):
        same(masks.generate_sliding_window(w), sr.conventions.attention_gym(w), m, n)
        same(masks.generate_prefix_lm_mask(w), sr.conventions.attention_gym_prefix(w), m, n)


@pytest.mark.parametrize(("w", "dilation"), [(6, 3), (7, 3), (2, 5), (4, 1)])
def test_a_dilated_window_is_given_by_distance(w, dilation):
    """So w // dilation keys on each side."""
    kept = w // dilation

    same(
        masks.generate_dilated_sliding_window(w, dilation),
        sr.SlidingWindow(kept, kept, dilation), 23, 23,
    )  # fmt: skip


def test_global_tokens():
    flags = torch.zeros(19, dtype=torch.bool)
    flags[[0, 5, 13]] = True

    same(masks.generate_global_sliding_window(2, flags), sr.recipes.longformer(4, flags), 19, 19)


@pytest.mark.parametrize(("n", "block"), [(15, 5), (14, 2), (7, 7), (11, 1)])
def test_block_diffusion(n, block):
    pattern = sr.recipes.block_diffusion(n, block)

    same(masks.generate_block_diffusion_mask(n, block), pattern, 2 * n, 2 * n)


LENGTHS = (5, 1, 10, 3)
IDS = np.repeat(range(4), LENGTHS)
OFFSETS = torch.tensor([0, 5, 6, 16, 19])


@pytest.mark.parametrize("inner", [sr.Causal(), sr.SlidingWindow(2, 0), sr.PrefixLM(2)], ids=repr)
def test_documents(inner):
    """The inner mask counts positions within each document."""
    mask_mod = masks.generate_doc_mask_mod(lambda b, h, i, j: inner(i, j), OFFSETS)

    same(mask_mod, sr.WithinDocument(inner, IDS), 19, 19)


def test_answers_that_share_a_prompt():
    """Documents 0 and 2 are prompts; 1 continues 0, 3 continues 2."""
    prompt = torch.tensor([0, 0, 2, 2])
    continued = np.array([-1, 0, -1, 2])[IDS]
    pattern = (sr.Causal() & sr.Document(IDS)) | sr.Document(continued, key_ids=IDS)

    same(masks.generate_shared_prefix_mask_mod(OFFSETS, prompt), pattern, 19, 19)


def test_text_that_looks_at_its_images():
    """Flamingo: 13 text tokens, 3 images of 4 tokens."""
    intervals = torch.tensor([[2, 5], [5, 11], [11, 12]])
    text = np.array([-1, -1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, -1])
    pattern = sr.Document(text, key_ids=np.repeat(range(3), 4))
    mask_mod = masks.generate_vision_cross_attention_mask_mod(intervals, 4)
    got = [
        mask_mod(0, 0, torch.tensor(i), torch.tensor(j)).item()
        for i, j in itertools.product(range(13), range(12))
    ]

    assert (np.reshape(got, (13, 12)) == pattern.mask(13, 12, q_start=0)[0]).all()


def test_trees_of_drafts():
    """A draft sees the prompt, its ancestors and itself."""
    ancestors = masks.build_tree_ancestor_matrix([-1, 0, 0, 1, 1, 2, 5], device="cpu")
    tree = np.zeros((12, 12), dtype=bool)
    tree[5:, 5:] = ancestors

    same(
        masks.generate_jetspec_tree_causal_mask_mod(5, ancestors),
        sr.Sink(5) | sr.Tokens(tree), 7, 12, start=5,
    )  # fmt: skip
    same(
        masks.generate_jetspec_training_mask_mod(5, 3),
        sr.Sink(5) | (sr.Causal() & sr.Chunked(3, origin=5)), 12, 17, start=5,
    )  # fmt: skip


def test_video_heads():
    """Sparse VideoGen: a band of tokens, and a band of the places within a frame."""
    spatial = masks.generate_spatial_head_mask_mod(3, 5, 7, width=2, round_width=4)
    same(spatial, sr.Global(range(3)) | sr.SlidingWindow(11, 11), 38, 38)
    temporal = masks.generate_temporal_head_mask_mod(7, 5, 7, width=2)
    frames = sr.Grid((6, 7), (sr.Full(), sr.SlidingWindow(1, 1)))
    same(temporal, sr.Global(range(7)) | frames, 42, 42)


@pytest.mark.parametrize("kernel", [(4, 9), (6, 3), (2, 6), (8, 15)], ids=str)
def test_sliding_tiles(kernel):
    """A neighborhood of tiles, 2 x 3 tokens each, in the order of the tiles."""
    tiles = sr.recipes.natten((4, 5), (kernel[0] // 2, kernel[1] // 3))

    same(masks.generate_sta_mask_mod_2d((8, 15), kernel, (2, 3)), sr.Blocked(tiles, 6), 120, 120)


def test_sliding_tiles_in_time():
    tiles = sr.recipes.natten((2, 3, 5), (1, 2, 3))
    mask_mod = masks.generate_sta_mask_mod_3d((4, 3, 10), (2, 2, 6), (2, 1, 2))

    same(mask_mod, sr.Blocked(tiles, 4), 120, 120)


def test_tiled_neighborhoods():
    """The raster pattern, read in the order of the tiles."""
    order = np.arange(36).reshape(3, 2, 2, 3).swapaxes(1, 2).ravel()  # 6 x 6 in tiles of 2 x 3
    pattern = sr.Permuted(sr.recipes.natten((6, 6), 3), order)

    same(masks.generate_tiled_natten(6, 6, 3, 3, 3, 2), pattern, 36, 36)


def by_definition(shape, kernel):
    """NATTEN's definition: along an axis the window of k keys starts at x - k // 2, clamped."""

    def sees(x, y, n, k):
        start = min(max(x - k // 2, 0), n - k)
        return start <= y < start + k

    cells = list(itertools.product(*map(range, shape)))
    return np.array([[all(map(sees, p, t, shape, kernel)) for t in cells] for p in cells])


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_neighborhoods_are_right_for_odd_kernels_on_squares(kernel):
    pattern = sr.recipes.natten((7, 7), kernel)

    assert (pattern.mask(49, 49)[0] == by_definition((7, 7), (kernel,) * 2)).all()
    same(masks.generate_natten(7, 7, kernel, kernel), pattern, 49, 49)


# NATTEN 0.21 asks FlexAttention for the lse in the older of its two ways.
@pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((6, 6), (4, 4)),  # an even kernel gets k + 1 keys an axis
        ((4, 6), (3, 3)),  # rows are clamped by the width
        ((7, 7), (3, 5)),  # rows get the kernel's width
    ],
    ids=["even kernel", "oblong canvas", "oblong kernel"],
)
def test_neighborhoods_are_wrong_otherwise(shape, kernel):
    """We side with NATTEN itself and with its definition."""
    height, width = shape
    n = height * width
    pattern = sr.recipes.natten(shape, kernel)
    mine, right = pattern.mask(n, n)[0], by_definition(shape, kernel)
    theirs = grid(masks.generate_natten(width, height, kernel[1], kernel[0]), n, n)

    assert (mine == right).all()
    assert (theirs != right).any()
    natten = pytest.importorskip("natten.functional", reason="natten is not installed")
    q, k, v = inputs(m=n, n=n, d=8, e=8)
    images = [
        torch.from_numpy(x.transpose(0, 2, 1, 3).reshape(2, height, width, -1, 8).copy())
        for x in (q, k, v)
    ]
    out = natten.na2d(*images, kernel_size=kernel, backend="flex-fna")
    out = out.numpy().reshape(2, n, 6, 8).transpose(0, 2, 1, 3)
    agrees(out, q, k, v, pattern)
    loops = by_loops(q[0], k[0], v[0], np.repeat(theirs[None], 6, axis=0))
    assert np.abs(out[0] - loops).max() > 0.05


def test_an_even_kernel_has_one_key_more_there():
    """One column of height 6 is the smallest picture of it."""
    right = picture("""
        # # # # . .
        # # # # . .
        # # # # . .
        . # # # # .
        . . # # # #
        . . # # # #
    """)
    theirs = grid(masks.generate_natten(6, 6, 4, 4), 36, 36)[::6, ::6]

    assert (sr.Neighborhood(6, 4).mask(6, 6)[0] == right).all()
    assert set(right.sum(axis=1)) == {4}
    assert theirs.sum(axis=1).tolist() == [5, 5, 5, 5, 5, 5]


def test_alibi_and_softcap():
    """Its ALiBi grows with k - q on both sides; where k <= q that is -slope |q - k|."""
    i, j = torch.arange(13)[:, None], torch.arange(13)[None]
    q, k, v = inputs(n=13)
    slopes = 2.0 ** (-(np.arange(6) + 1) * 8 / 6)
    alibi = mods.generate_alibi_bias(6)
    bias = [alibi(torch.zeros(13, 13), 0, torch.tensor(h), i, j).numpy() for h in range(6)]
    want = sr.attention(q, k, v, sr.Causal(), alibi_slopes=slopes).out
    got = sr.attention(q, k, v, sr.Causal(), bias=np.array(bias)).out

    np.testing.assert_allclose(got, want, atol=1e-6)
    scores = np.linspace(-90, 90, 19)
    capped = mods.generate_tanh_softcap(20)(torch.from_numpy(scores), 0, 0, 0, 0).numpy()
    single = np.ones((1, 1, 1)), scores[None, :, None], np.zeros((1, 19, 1))
    lse = sr.attention(*single, sr.Full(), softcap=20.0, scale=1.0).lse
    np.testing.assert_allclose(lse[0, 0], np.log(np.exp(capped).sum()), rtol=1e-14)
