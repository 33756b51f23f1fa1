"""BlockMasks from block layouts: those of create_block_mask, without asking for every pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparse_ref as sr
from tests.strategies import patterns

torch = pytest.importorskip("torch")

from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: E402

from exporters import to_flex  # noqa: E402
from exporters.pytorch import verdicts  # noqa: E402

R, N = sr.recipes, 331
IDS = np.repeat([0, 1, -1, 2], [100, 90, 40, 101])
PATTERNS = {
    "everything": sr.Full(),
    "nothing": sr.Causal() - sr.Causal(),
    "longformer": R.longformer(64, [0, 7]),
    "bigbird": R.bigbird(N, 16, heads=3),
    "strided": R.sparse_transformer_strided(17, heads=4),
    "fixed": R.sparse_transformer_fixed(16, 3),
    "streaming": R.streaming_llm(4, 50),
    "mistral": R.mistral(100),
    "gemma3": R.gemma3(100),
    "gpt-oss": R.gpt_oss(20),
    "llama4": R.llama4(64),
    "phi3": R.phi3_small(8, 16, 4, 4),
    "longt5": R.longt5(30),
    "swin": R.swin((21, 16), 7, 3),
    "natten": R.natten((18, 19), (5, 3)),
    "axial": R.axial((18, 19), 1),
    "logsparse": R.logsparse(N),
    "butterfly": R.butterfly(3, 16),
    "longnet": sr.PerHead([sr.Chunked(64) & sr.Strided(3), sr.Causal()]),
    "tri shape": R.tri_shape(N, 10, 50, 20),
    "vertical and slash": R.vertical_slash([3, 77], [0, 50]),
    "block diffusion": R.block_diffusion(352, 32),
    "deepspeed": R.deepspeed_fixed(352, heads=4, horizontal=False, block_size=16),
    "random keys": sr.Causal() & sr.RandomKeys(8, 0, N),
    "random keys and a window": sr.RandomKeys(2, 0, N) | sr.SlidingWindow(3, 3),
    "random keys or a window, causal": sr.Causal()
    & (sr.RandomKeys(2, 0, N) | ~sr.SlidingWindow(40, 9) - sr.Keys(range(150, 331))),
    "blocks of random keys or a window": sr.Blocked(
        sr.RandomKeys(1, 0, 42) | sr.SlidingWindow(1, 0), 8
    ),
    "all but random keys": sr.Causal() - sr.RandomKeys(1, 0, N),
    "permuted": sr.Permuted(sr.SlidingWindow(9, 9), np.random.default_rng(0).permutation(N)),
    "documents": sr.Document(IDS) & sr.Causal(),
    "within documents": sr.WithinDocument(sr.SlidingWindow(5, 0), IDS),
    "tokens": sr.Global(range(0, 300, 2)) & ~sr.Keys(np.flatnonzero(np.arange(300) % 7 < 2)),
    "xor": sr.Xor([1, 8, 64]),
    "a single pair": sr.Keys([45]) & sr.Rows([77]),
}
LISTS = [f"{full}{side}_{part}" for full in ("", "full_") for side in ("kv", "q")
         for part in ("num_blocks", "indices")]  # fmt: skip
SIZES = {"128": (N, N, 128, 1), "32": (N, N, 32, 8), "last queries": (77, N, (16, 32), 8)}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_lists_and_predicate_are_create_block_masks_and_the_masks(pattern, sizes):
    q_len, kv_len, block, heads = sizes
    got = to_flex(pattern, q_len, kv_len, heads=heads, block_size=block)
    grid = np.ogrid[0:1, 0:heads, 0:q_len, 0:kv_len]
    seen = got.mask_mod(*map(torch.from_numpy, grid)).expand(1, heads, q_len, kv_len)[0]
    assert np.array_equal(seen, pattern.mask(q_len, kv_len, heads=heads))
    want = create_block_mask(
        got.mask_mod, None, got.shape[1], q_len, kv_len, device="cpu", BLOCK_SIZE=block
    )
    for name in LISTS:
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=0, atol=0)
    assert got.shape == want.shape
    assert got.shape[1] == (1 if pattern.heads == 1 or heads == 1 else heads)


@pytest.mark.parametrize("q_len", [N, 75, 77])  # from the first query, and from 256 and 254 on
def test_a_pattern_of_blocks_knows_which_of_them_an_end_cuts(q_len):
    pattern = sr.Blocked(sr.RandomKeys(1, 0, 42) | sr.Global([40, 41]), 8)
    got = to_flex(pattern, q_len, N, block_size=16)
    want = create_block_mask(got.mask_mod, None, 1, q_len, N, device="cpu", BLOCK_SIZE=16)
    for name in LISTS:
        assert torch.equal(getattr(got, name), getattr(want, name))


@settings(max_examples=40)
@given(patterns(multisets=False), st.integers(1, 23), st.integers(1, 23), st.integers(1, 9))
def test_every_pattern_is_written_down_as_it_is(pattern, q_len, kv_len, block):
    heads = pattern.heads
    got = to_flex(pattern, q_len, kv_len, heads=heads, block_size=block)
    grid = np.ogrid[0:1, 0:heads, 0:q_len, 0:kv_len]
    seen = got.mask_mod(*map(torch.from_numpy, grid)).expand(1, heads, q_len, kv_len)[0].numpy()
    assert np.array_equal(seen, pattern.mask(q_len, kv_len))
    rows, columns = -(-q_len // block), -(-kv_len // block)
    whole = np.zeros((heads, rows * block, columns * block), dtype=np.int64)
    whole[:, :q_len, :kv_len] = seen
    pairs = whole.reshape(heads, rows, block, columns, block).sum((2, 4))
    partial, full = (pairs > 0) & (pairs < block**2), pairs == block**2
    assert np.array_equal(got.kv_num_blocks[0].expand(heads, -1), partial.sum(2))
    assert np.array_equal(got.full_kv_num_blocks[0].expand(heads, -1), full.sum(2))


@pytest.mark.parametrize("name", ["phi3", "random keys", "documents", "nothing", "everything"])
def test_flex_attention_over_it_is_the_oracle(name):
    pattern, heads = PATTERNS[name], 8
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, m, 16) for m in (77, N, N))
    out = flex_attention(q, k, v, block_mask=to_flex(pattern, 77, N, heads=heads))
    arrays = [x.numpy() for x in (q, k, v)]
    error = np.abs(out.numpy() - sr.attention(*arrays, pattern).out)
    assert (error <= sr.error_bound(*arrays, pattern).out).all()


def test_where_the_first_query_stands():
    got = to_flex(sr.Causal(), 5, 9, q_start=0).mask_mod
    one = torch.tensor(0)
    assert [bool(got(one, one, one + 2, one + k)) for k in (2, 3)] == [True, False]


@pytest.mark.parametrize(("length", "size"), [(131_072, 128), (131_073, 256), (1 << 20, 1024)])
def test_blocks_grow_so_that_a_side_has_at_most_1024(length, size):
    mask = to_flex(sr.Causal() & sr.SlidingWindow(100, 0), length, length)
    assert set(mask.BLOCK_SIZE) == {size}
    assert mask.kv_num_blocks[0, 0, :3].tolist() == [1, 2, 2]
    assert mask.kv_num_blocks.sum() == 2 * -(-length // size) - 1


def test_no_more_pairs_are_looked_at_than_allowed(monkeypatch):
    """Then blocks that intervals leave open are listed as partial: slower, never wrong."""
    pattern = sr.Xor([3, 64]) & sr.Strided(5)
    exact = to_flex(pattern, N, N, block_size=16).to_dense()
    monkeypatch.setattr(verdicts, "LOOKS", 0)
    loose = to_flex(pattern, N, N, block_size=16)
    assert loose.full_kv_num_blocks.sum() == 0
    assert bool((loose.to_dense() >= exact).all())


@pytest.mark.parametrize("name", ["random keys or a window, causal", "all but random keys"])
def test_lists_of_pairs_may_narrow_down_where_to_look(name, monkeypatch):
    """So they do where there are very many blocks; the answer is the same."""
    exact = to_flex(PATTERNS[name], N, N, block_size=16)
    monkeypatch.setattr(verdicts, "MANY", 0)
    found = to_flex(PATTERNS[name], N, N, block_size=16)
    for one in LISTS:
        assert torch.equal(getattr(found, one), getattr(exact, one))


def test_a_mask_mod_says_what_it_is():
    text = to_flex(sr.Causal() & sr.SlidingWindow(5, 0, dilation=2), 9, 9).mask_mod.__doc__
    assert text.splitlines()[-3:] == [
        "def mask_mod(b, h, q, k):",
        "    x0 = q - k",
        "    return (k <= q) & ((x0 <= 10) & (k - q <= 0) & (x0 % 2 == 0))",
    ]


def test_what_a_block_mask_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="pattern must be a set for a BlockMask, got the multiset"):
        to_flex(sr.Multi([sr.Causal(), sr.Causal()]), 5, 5)
    with pytest.raises(ValueError, match="pattern must be one batch row's"):
        to_flex(sr.PerBatch([sr.Causal(), sr.Full()]), 5, 5)
    with pytest.raises(TypeError, match="ids is an input of an exported graph"):
        to_flex(sr.Document(sr.Runtime("ids")), 5, 5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("name", ["phi3", "random keys", "within documents", "everything"])
def test_compiled_flex_attention_is_the_oracle(name):
    """Tables and lists of pairs may be captured, and a constant pattern is lifted."""
    torch._dynamo.reset()
    pattern, heads = PATTERNS[name], 8
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, N, 16) for _ in range(3))
    mask = to_flex(pattern, N, N, heads=heads)
    out = torch.compile(flex_attention, fullgraph=True)(q, k, v, block_mask=mask)
    arrays = [x.numpy() for x in (q, k, v)]
    error = np.abs(out.numpy() - sr.attention(*arrays, pattern).out)
    assert (error <= sr.error_bound(*arrays, pattern).out).all()
