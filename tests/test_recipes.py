"""Recipes against pictures, and against the formulas of their papers and released codes."""

import itertools

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref import recipes

N = 23
p, k = np.mgrid[:N, :N]
PAST = k <= p


def picture(text):
    """A picture as written by `draw`, without the indentation of a test."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


# Printed by deepspeed 0.18.9 (ops/sparse_attention/sparsity_config.py, make_layout) at block=1;
# on 2,292 more of its configurations the recipes were compared with that file.
DEEPSPEED = {
    "FixedSparsityConfig(num_different_global_patterns=2)": (
        recipes.deepspeed_fixed(7, heads=2, block_size=1, patterns=2),
        """
        head 0
        # # # # . . #
        # # # # . . #
        # # # # . . #
        # # # # . . #
        . . . # # # #
        . . . # # # #
        . . . # # # #
        head 1
        # # # # . . #
        # # # # . . #
        # # # # . . #
        # # # # . . #
        . . # . # # #
        . . # . # # #
        . . # . # # #
        """,
    ),
    "FixedSparsityConfig(num_global_blocks=2, attention='unidirectional')": (
        recipes.deepspeed_fixed(6, block_size=1, global_blocks=2, causal=True),
        """
        # . . . . .
        # # . . . .
        # # # # . .
        # # # # . .
        . . # # # #
        . . # # # #
        """,
    ),
    "FixedSparsityConfig(num_local_blocks=3, horizontal_global_attention=True)": (
        recipes.deepspeed_fixed(7, block_size=1, local_blocks=3, horizontal=True),
        """
        # # # . . # #
        # # # . . # #
        # # # # # # #
        . . # # # # #
        . . # # # # #
        # # # # # # #
        # # # # # # #
        """,
    ),
    "VariableSparsityConfig([1, 2], [1, 4], [2, 6], horizontal_global_attention=True)": (
        recipes.deepspeed_variable(
            7, 1, 1, 0, local_blocks=(1, 2), global_blocks=(1, 4), global_ends=(2, 6),
            horizontal=True,
        ),
        """
        # # . . # # .
        # # # # # # #
        . # # . # # .
        . # . # # # .
        # # # # # # #
        # # # # # # #
        . # . . # # #
        """,
    ),
    "VariableSparsityConfig([1, 2], [1, 4], [2, 6], attention='unidirectional')": (
        recipes.deepspeed_variable(
            7, 1, 1, 0, local_blocks=(1, 2), global_blocks=(1, 4), global_ends=(2, 6), causal=True
        ),
        """
        # . . . . . .
        . # . . . . .
        . # # . . . .
        . # . # . . .
        . # . # # # .
        . # . . # # .
        . # . . # # #
        """,
    ),
    "BigBirdSparsityConfig(0, 4, 2, attention='unidirectional')": (
        recipes.deepspeed_bigbird(
            7, 1, 1, random_blocks=0, window_blocks=4, global_blocks=2, causal=True
        ),
        """
        # . . . . . .
        # # . . . . .
        # # # . . . .
        # # # # . . .
        # # # # # . .
        # # . # # # .
        # # . . # # #
        """,
    ),
    "BSLongformerSparsityConfig(global_block_indices=[0, 3])": (
        recipes.deepspeed_bslongformer(7, block_size=1, global_blocks=[0, 3]),
        """
        # # # # # # #
        # # # # . . .
        # # # # . . .
        # # # # # # #
        # . . # # # .
        # . . # # # #
        # . . # . # #
        """,
    ),
    "LocalSlidingWindowSparsityConfig(2, 'bidirectional')": (
        recipes.deepspeed_sliding(5, block_size=1, window_blocks=2, causal=False),
        """
        # # . . .
        # # # . .
        . # # # .
        . . # # #
        . . . # #
        """,
    ),
    "LocalSlidingWindowSparsityConfig(5)": (
        recipes.deepspeed_sliding(5, block_size=1, window_blocks=5),
        """
        # . . . .
        # # . . .
        # # # . .
        . # # # .
        . . # # #
        """,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeed_layouts_are_what_its_code_prints(name):
    pattern, text = DEEPSPEED[name]
    blocks = sum("head" not in line for line in text.strip().splitlines()) // pattern.heads

    assert sr.draw(pattern, blocks) == picture(text)


def test_deepspeed_blocks_are_written_out_in_tokens():
    fine = recipes.deepspeed_fixed(7, block_size=1).mask(7, 7)[0]
    coarse = recipes.deepspeed_fixed(21, block_size=3).mask(21, 21)[0]

    assert (coarse == np.kron(fine, np.ones((3, 3), dtype=bool))).all()


def test_deepspeed_random_blocks_come_on_top():
    """The count is exact, heads differ; causal ones are drawn from the past, variable ones not."""
    fixed = recipes.deepspeed_bigbird(40, random_blocks=0, block_size=2).mask(40, 40)[0]
    drawn = recipes.deepspeed_bigbird(40, heads=2, random_blocks=3, block_size=2).mask(40, 40)
    causal = recipes.deepspeed_bigbird(20, random_blocks=5, block_size=1, causal=True)
    ahead = recipes.deepspeed_variable(20, random_blocks=5, block_size=1, causal=True)

    assert (drawn & fixed == fixed).all()
    assert (drawn[0] != drawn[1]).any()
    assert not np.triu(causal.mask(20, 20)[0], 1).any()
    assert (causal.mask(20, 20)[0, 10:].sum(axis=1) >= 5).all()
    assert np.triu(ahead.mask(20, 20)[0], 1).any()


@pytest.mark.parametrize("l", [1, 3, 7])
def test_sparse_transformer_strided_is_the_papers_two_sets(l):  # noqa: E741
    past = p - k
    local, strided = PAST & (past < l), PAST & (past % l == 0)
    paper = PAST & (past <= l)

    def mask(**options):
        return recipes.sparse_transformer_strided(l, **options).mask(N, N)

    assert (mask() == local | strided).all()
    assert (mask(heads="local") == local).all()
    assert (mask(heads="strided") == strided).all()
    assert (mask(heads="local", paper=True) == paper).all()
    assert (mask(paper=True) == mask()).all()
    assert (mask(heads=4) == np.stack([local, local, strided, strided])).all()


@pytest.mark.parametrize(("l", "c"), [(1, 1), (4, 1), (6, 2), (5, 3)])
def test_sparse_transformer_fixed_is_the_papers_two_sets(l, c):  # noqa: E741
    local, summary = PAST & (p // l == k // l), PAST & (k % l >= l - c)

    def mask(**options):
        return recipes.sparse_transformer_fixed(l, c, **options).mask(N, N)

    assert (mask() == local | summary).all()
    assert (mask(heads="local") == local).all()
    assert (mask(heads="summary") == summary).all()
    assert (mask(heads=2) == np.stack([local, summary])).all()


def test_summary_heads_take_sub_blocks_of_their_own():
    heads = recipes.sparse_transformer_fixed(6, 2, heads=8).mask(N, N)[4:]

    for head, (low, high) in zip(heads, [(4, 6), (2, 4), (0, 2), (4, 6)], strict=True):
        assert (head == PAST & (k % 6 >= low) & (k % 6 < high)).all()


def test_longformer_counts_half_the_window_on_each_side():
    flags = np.isin(np.arange(N), [0, 7])
    want = (abs(p - k) <= 3) | flags[:, None] | flags

    assert (recipes.longformer(6, [0, 7]).mask(N, N)[0] == want).all()
    assert recipes.longformer(6) == sr.SlidingWindow(3, 3)
    assert recipes.longformer(6, flags) == recipes.longformer(6, [7, 0])
    assert recipes.longformer(4, dilation=3) == sr.SlidingWindow(2, 2, dilation=3)
    assert "Runtime" in repr(recipes.longformer(6, sr.Runtime("global_tokens")))


@pytest.mark.parametrize("length", [1, 3, 40, 45])
def test_bigbird_has_its_blocks_and_as_many_random_ones(length):
    size, blocks = 3, -(-length // 3)
    pattern = recipes.bigbird(length, size, random=2, heads=2)
    coarse = pattern.mask(blocks * size, blocks * size)[:, ::size, ::size]
    q, k = np.mgrid[:blocks, :blocks]
    fixed = (abs(q - k) <= 1) | (q % (blocks - 1 or 1) == 0) | (k % (blocks - 1 or 1) == 0)

    assert (coarse & fixed == fixed).all()
    free = (~fixed).sum(axis=1)
    assert ((coarse & ~fixed).sum(axis=2) == np.minimum(free, 2)).all()
    assert pattern.heads == 2
    assert (pattern.at(1).mask(length, length) == pattern.mask(length, length)[1]).all()
    alone = recipes.bigbird(length, size, random=2, seed=1)
    assert alone == pattern.at(1)


def test_layer_schedules():
    full = sr.Causal()
    kinds = {
        recipes.gemma3: [False] * 5 + [True],
        recipes.gpt_oss: [False, True],
        recipes.llama4: [False] * 3 + [True],
        recipes.phi3_small: [False, True],
    }
    for recipe, dense in kinds.items():
        for layer in range(12):
            want = full if dense[layer % len(dense)] else recipe()
            assert recipe(layer=layer) == want
    assert recipes.mistral(3).mask(N, N).sum() == 3 * N - 3


@pytest.mark.parametrize("homo", [False, True])
@pytest.mark.parametrize(("heads", "v"), [(1, 4), (2, 8), (3, 4), (5, 3), (32, 8)])
def test_phi3_small_is_its_formula(heads, v, homo):
    size, local = 2, 2
    got = recipes.phi3_small(heads, size, local, v, homo).mask(3 * N, 3 * N, heads=heads)
    step = 0 if homo else max(1, v // heads)
    q, k = np.mgrid[: 3 * N, : 3 * N]
    for h in range(heads):
        near = q // size - k // size < local
        assert (got[h] == (k <= q) & (near | ((k // size + h * step + 1) % v == 0))).all()


def test_llama4_starts_anew_in_every_chunk():
    assert (recipes.llama4(5).mask(N, N)[0] == PAST & (p // 5 == k // 5)).all()


def test_streaming_llm_keeps_sinks_and_window():
    got = recipes.streaming_llm(3, 4).mask(N, N)[0]

    assert (got == PAST & ((k < 3) | (p - k < 4))).all()
    assert got[-1].sum() == 7


@pytest.mark.parametrize("last", [0, 2, 30])
def test_tri_shape_ends_in_dense_rows(last):
    got = recipes.tri_shape(N, 3, 4, last).mask(N, N)[0]

    assert (got == PAST & ((k < 3) | (p - k < 4) | (p >= N - last))).all()


def test_vertical_slash():
    got = recipes.vertical_slash([2, 9], [0, 5]).mask(N, N)[0]

    assert (got == PAST & (np.isin(k, [2, 9]) | np.isin(p - k, [0, 5]))).all()


def test_block_diffusion_is_the_released_mask():
    """`block_diff_mask` of kuleshov-group/bd3lms, in its own three pieces."""
    n, size = 12, 3
    q, k = np.mgrid[: 2 * n, : 2 * n]
    clean_q, clean_k = q >= n, k >= n
    block_q, block_k = (np.where(x >= n, (x - n) // size, x // size) for x in (q, k))
    diagonal = (block_q == block_k) & (clean_q == clean_k)
    offset = (block_q > block_k) & clean_k & ~clean_q
    causal = (block_q >= block_k) & clean_k & clean_q

    got = recipes.block_diffusion(n, size).mask(2 * n, 2 * n)[0]
    assert (got == diagonal | offset | causal).all()


@pytest.mark.parametrize("local", [1, 3])
def test_logsparse_doubles_its_distances(local):
    got = recipes.logsparse(N, local).mask(N, N)[0]

    far = [local - 1 + 2**i for i in range(6)]
    assert (got == PAST & ((p - k < local) | np.isin(p - k, far))).all()
    assert sr.reach(recipes.logsparse(N), N) <= 5


@pytest.mark.parametrize("factors", [0, 1, 3])
def test_butterfly_flips_one_bit(factors):
    got = recipes.butterfly(factors, 2, global_blocks=1).mask(N, N)[0]
    q, key = p // 2, k // 2

    flat = np.isin(q ^ key, [0, *(1 << i for i in range(factors))])
    assert (got == flat | (q < 1) | (key < 1)).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 5])
def test_longnet_counts_branches(heads, causal):
    """torchscale: segments w, places `h // ceil(H / r)` modulo r; the lse merge adds branches."""
    segments, dilations = [4, 8, 9], [1, 2, 4]
    got = recipes.longnet(segments, dilations, heads, causal).counts(N, N, heads=heads)
    for h in range(heads):
        want = np.zeros((N, N), dtype=int)
        for w, r in zip(segments, dilations, strict=True):
            place = h // -(-heads // r)
            same = (p // w == k // w) & (p % w % r == place) & (k % w % r == place)
            want += same & (PAST | (not causal))
        assert (got[h] == want).all()


@pytest.mark.parametrize(("shape", "window", "shift"), [
    ((8, 8), 4, 2), ((8, 12), 4, 0), ((6, 9), 3, 1), ((4, 9), 7, 3), ((5, 5), 5, 2), ((12,), 4, 3),
])  # fmt: skip
def test_swin_is_roll_partition_and_region_mask(shape, window, shift):
    """transformers' SwinLayer: roll by -shift, cut into windows, forbid across rolled regions."""
    if min(shape) <= window:
        window, shift = min(shape), 0
    place = np.indices(shape).reshape(len(shape), -1)
    same = np.ones((place.shape[1],) * 2, dtype=bool)
    for extent, x in zip(shape, place, strict=True):
        padded = -(-extent // window) * window
        rolled = (x - shift) % padded
        region = (rolled >= padded - window).astype(int) + (rolled >= padded - shift) * (shift > 0)
        for label in (rolled // window, region):
            same &= label[:, None] == label

    got = recipes.swin(shape, window, shift).mask(*same.shape)[0]
    assert (got == same).all()


def test_natten_and_axial_are_one_pattern_an_axis():
    shape = (3, 5)
    (qx, qy), (kx, ky) = (np.divmod(side, 5) for side in np.mgrid[:15, :15])
    rows = sr.Neighborhood(3, 2).mask(3, 3)[0]
    columns = sr.Neighborhood(5, 3, causal=True).mask(5, 5)[0]

    got = recipes.natten(shape, (2, 3), causal=(False, True)).mask(15, 15)[0]
    assert (got == rows[qx, kx] & columns[qy, ky]).all()
    assert (recipes.natten(shape, 2).mask(15, 15).sum(axis=2) == 4).all()
    assert recipes.natten(9, 3) == sr.Grid((9,), [sr.Neighborhood(9, 3)])
    assert (recipes.axial(shape, 0).mask(15, 15)[0] == (qy == ky)).all()
    assert (recipes.axial(shape, -1).mask(15, 15)[0] == (qx == kx)).all()


WRONG = {
    "window must be even": lambda: recipes.longformer(3),
    "window must be odd": lambda: recipes.bigbird(9, window=4),
    "random must be >= 0, got -1": lambda: recipes.bigbird(9, random=-1),
    "heads must be one of ['merged', 'local', 'strided'] or an even integer, got 'fixed'": (
        lambda: recipes.sparse_transformer_strided(4, heads="fixed")
    ),
    "heads must be even (half local, half summary), got 3": (
        lambda: recipes.sparse_transformer_fixed(4, 1, heads=3)
    ),
    "summary must be <= 4, got 5": lambda: recipes.sparse_transformer_fixed(4, 5),
    "window must be >= 1, got 0": lambda: recipes.mistral(0),
    "layer must be >= 0 or None, got -1": lambda: recipes.gemma3(layer=-1),
    "homo_head must be True or False, got 1": lambda: recipes.phi3_small(homo_head=1),
    "sinks must be >= 0, got -4": lambda: recipes.streaming_llm(-4),
    "length must be a multiple of block_size = 4, got 6": lambda: recipes.block_diffusion(6, 4),
    "length must be a multiple of block_size = 16, got 40": lambda: recipes.deepspeed_sliding(40),
    "global_blocks must divide local_blocks = 4, got 3": (
        lambda: recipes.deepspeed_fixed(64, global_blocks=3)
    ),
    "horizontal must be False where causal is True": (
        lambda: recipes.deepspeed_variable(64, causal=True, horizontal=True)
    ),
    "global_ends must be as many as the 1 global_blocks, got 2": (
        lambda: recipes.deepspeed_bslongformer(64, global_ends=[1, 2])
    ),
    "dilations must be as many as the 2 segments, got 1": (
        lambda: recipes.longnet([2, 4], [1], heads=1)
    ),
    "segments must hold at least one length": lambda: recipes.longnet([], [], heads=1),
    "shift[0] must be <= 3, got 4": lambda: recipes.swin((8, 8), 4, 4),
    "kernel must be one for each of the 2 axes, got 1": lambda: recipes.natten((8, 8), [3]),
    "axis must be <= 1, got 2": lambda: recipes.axial((8, 8), 2),
    "factors must be <= 30, got 31": lambda: recipes.butterfly(31, 1),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_refused_in_one_sentence(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        WRONG[message]()

    assert message in str(caught.value)


def test_recipes_are_values():
    """Equal, hashable, and the same after JSON."""
    made = [
        recipes.longformer(8, [0]), recipes.bigbird(64, 8, heads=2), recipes.phi3_small(),
        recipes.sparse_transformer_fixed(8, 2, heads=4), recipes.longnet([4, 8], [1, 2], 3),
        recipes.deepspeed_fixed(64), recipes.swin((8, 8), 4, 2), recipes.block_diffusion(8, 2),
        recipes.tri_shape(100), recipes.butterfly(3, 8), recipes.natten((5, 7), 3),
    ]  # fmt: skip
    for one, other in itertools.combinations(made, 2):
        assert one != other
    for pattern in made:
        again = sr.from_dict(sr.to_dict(pattern))
        assert again == pattern
        assert hash(again) == hash(pattern)
