"""The fast selectors choose what the readable ones choose."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_ref as sr
from sparse_ref import selection

kernels = pytest.importorskip("sparse_ref.kernels", reason="Numba is not installed")

FAST = {
    "topk_keys": {"count": 5},
    "lightning_indexer": {"count": 5},
    "topk_blocks": {"count": 3, "block_size": 7},
    "moba": {"count": 3, "block_size": 16},
    "msa": {"count": 3, "block_size": 5, "local": 2},
}
VISIBLE = {
    "causal": sr.Causal(),
    "window": sr.Causal() & sr.SlidingWindow(20, 0),
    "full": sr.Full(),
    "documents": sr.Causal() & sr.Document(np.arange(400) // 37),
}


def drawn(name, m, n, seed=0, dtype=np.float32, spread=8):
    rng = np.random.default_rng(seed)
    shapes = [(2, 4, m, 8), (2, 2, n, 8)]
    if name in ("lightning_indexer", "msa"):
        shapes = [(2, 3, m, 8), (2, n, 8), (2, m, 3)][: 3 if name == "lightning_indexer" else 2]
    return [(rng.integers(-spread, spread + 1, s) / 8).astype(dtype) for s in shapes]


def both(name, *arrays, **options):
    """The indices by the readable selector and by the fast one."""
    options = {**FAST[name], **options}
    pair = [getattr(module, name)(*arrays, **options) for module in (selection, kernels)]
    for field in ("heads", "kv_heads", "key_block", "always", "counted", "visible"):
        assert getattr(pair[0], field) == getattr(pair[1], field)
    return [one.indices for one in pair]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (67, 67), (3, 301), (131, 97)])
def test_exact_scores_choose_exactly_the_same(name, visible, m, n):
    want, got = both(name, *drawn(name, m, n), visible=VISIBLE[visible])

    assert got.dtype == np.int32
    assert (got == want).all()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("spread", [0, 1])
def test_ties_go_to_the_smaller_index(name, spread):
    want, got = both(name, *drawn(name, 97, 97, spread=spread))

    assert (got == want).all()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(name, dtype):
    want, got = both(name, *drawn(name, 61, 61, dtype=dtype))

    assert (got == want).all()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_few_and_all(name, count):
    if (count, name) == (0, "moba"):
        pytest.skip("the block of the query itself is always chosen")
    more = {"count": count} | ({"local": min(count, 2)} if name == "msa" else {})
    want, got = both(name, *drawn(name, 45, 45), **more)

    assert got.shape == want.shape
    assert (got == want).all()


@pytest.mark.parametrize("name", FAST)
def test_padding_rings_and_holes(name):
    arrays, order = drawn(name, 41, 41), np.random.default_rng(0).permutation(41)
    padded = {"q_start": -4, "kv_positions": np.arange(41) - 4}
    ring = {"q_start": 0, "kv_positions": order}
    holes = {"q_start": 9, "kv_positions": np.where(order % 3 == 0, -1, order)}

    for where in (padded, ring, holes):
        want, got = both(name, *arrays, **where)
        assert (got == want).all()


@pytest.mark.parametrize("name", FAST)
def test_nan_inf_and_strides(name):
    arrays = drawn(name, 53, 53)
    arrays[1][..., 7, :], arrays[1][..., 11, 0], arrays[1][..., 13, 0] = np.nan, np.inf, -np.inf
    want, got = both(name, *(np.asfortranarray(x) for x in arrays))

    assert (got == want).all()


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("size", [1, 4, 64, 300, 1000])
def test_blocks_of_any_size(pool, size):
    want, got = both("topk_blocks", *drawn("topk_blocks", 330, 330), pool=pool, block_size=size)

    assert (got == want).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 90))
def test_what_rounding_costs_is_a_rounding(seed, count, n):
    """Any numbers: whatever is chosen instead has a score within the rounding of it."""
    rng = np.random.default_rng(seed)
    q, k = (rng.standard_normal((1, n, 16)).astype(np.float32) for _ in range(2))
    scores = np.einsum("md,nd->mn", q[0].astype(float), k[0].astype(float))
    bound = 16 * 2.0**-23 * np.abs(q[0]).astype(float) @ np.abs(k[0]).astype(float).T

    got = kernels.topk_keys(q, k, count=count).mask(n, n)[0]

    for t in range(n):
        kept, left = np.flatnonzero(got[t]), np.flatnonzero(~got[t, : t + 1])
        assert len(kept) == min(count, t + 1)
        for i, j in itertools.product(kept[np.argsort(scores[t, kept])][:1], left):
            assert scores[t, j] - scores[t, i] <= bound[t, i] + bound[t, j]


@pytest.mark.parametrize("block", [1, 5, 64, 128])
def test_attention_over_block_lists_of_any_size(block):
    """Neighbours that agree are computed in tiles, others row by row: the same answer."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, h, 150, 8)).astype(np.float32) for h in (4, 2, 2))
    agreeing = selection.topk_blocks(
        np.repeat(q[:, :, ::50], 50, axis=2), k, count=2, block_size=block
    )
    apart = selection.topk_blocks(q, k, count=2, block_size=block)

    for chosen in (agreeing, apart, agreeing & sr.SlidingWindow(90, 0)):
        want = sr.attention(q, k, v, chosen)
        bound = sr.error_bound(q, k, v, chosen)
        got = kernels.attention(q, k, v, chosen)
        assert (abs(got.out - want.out) <= bound.out).all()
        dout = np.ones_like(got.out)
        slow, fast = (f(q, k, v, chosen, dout) for f in (sr.attention_vjp, kernels.attention_vjp))
        limit = sr.error_bound_vjp(q, k, v, chosen, dout)
        assert (abs(slow.dk - fast.dk) <= limit.dk).all()
        assert (abs(slow.dq - fast.dq) <= limit.dq).all()


def test_tiles_are_used_where_queries_agree_and_rows_where_they_do_not():
    from sparse_ref.kernels import select_layouts
    from sparse_ref.kernels.room import Room
    from sparse_ref.problem import problem

    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal((1, 1, 640, 64)).astype(np.float32) for _ in range(2))
    same = selection.Selection(np.tile(np.arange(8), (1, 1, 640, 1)), key_block=64)
    apart = selection.topk_keys(q, k, count=3)

    for chosen, kernel in ((same, "tiles"), (apart, "rows")):
        given_ = problem(q, k, k, chosen)
        room, kind = Room(), np.dtype(np.float32)
        parts = list(select_layouts.parts(given_, 0, 640, kind, room, together=True))
        assert [part.kernel for part in parts] == [kernel]
        assert parts[0].pairs == chosen.mask(640, 640).sum()
