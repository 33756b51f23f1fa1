"""Attention over selections by each kernel that may compute it: the oracle's answer, same bits."""

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.selection import Selection

numba = pytest.importorskip("numba")
kernels = pytest.importorskip("sparse_ref.kernels")
from sparse_ref.kernels import by_blocks, select_layouts, shared, threads  # noqa: E402
from sparse_ref.kernels.room import Room  # noqa: E402
from sparse_ref.problem import problem  # noqa: E402
from tests.test_kernels import arithmetic_of, check  # noqa: E402

RNG = np.random.default_rng(5)
SHAPES = {  # heads, key/value heads, queries, keys, d, e, keys of a block, blocks, lists
    "one list, one group": (6, 1, 37, 41, 5, 7, 1, 11, 1),
    "one list, groups": (6, 2, 29, 43, 7, 3, 1, 13, 1),
    "a list for each group": (6, 3, 31, 53, 5, 8, 5, 3, 3),
    "a list for each head": (3, 1, 67, 71, 8, 5, 3, 7, 3),
    "more heads than lanes": (37, 1, 11, 283, 3, 5, 1, 131, 1),
    "blocks that end past the keys": (4, 2, 97, 400, 8, 9, 128, 3, 2),
    "blocks longer than a product": (3, 1, 37, 331, 3, 7, 150, 2, 1),
    "several stretches": (131, 1, 17, 23, 3, 5, 2, 5, 1),
}
VISIBLE = {
    "causal": sr.Causal(),
    "full": sr.Full(),
    "window": sr.SlidingWindow(20, 3),
}


@pytest.fixture(params=["cheapest", "rows", "tiles", "shared", "by blocks"])
def way(request, monkeypatch):
    """The kernel that the costs choose, and each of them."""
    if request.param != "cheapest":
        costs, in_tiles = select_layouts.costs, select_layouts.in_tiles
        wanted = "rows" if request.param == "tiles" else request.param
        most = np.inf if request.param == "tiles" else -1.0

        def forced(*args):
            return {name: 1.0 * (name != wanted) for name in costs(*args)}

        def tiles(mine, visible, start, n, _, *args):
            return in_tiles(mine, visible, start, n, most, *args)

        monkeypatch.setattr(select_layouts, "costs", forced)
        monkeypatch.setattr(select_layouts, "in_tiles", tiles)
    return request.param


def drawn(name, *, visible="causal", query_block=1, dtype=np.float32):
    """q, k and v of two batch rows, and lists of all lengths, the empty one too."""
    h, g, m, n, d, e, size, most, lists = SHAPES[name]
    rows, blocks = -(-m // query_block), -(-n // size)
    table = np.full((2, lists, rows, most), -1)
    for at in np.ndindex(2, lists, rows):
        chosen = RNG.permutation(blocks)[: RNG.integers(0, most + 1)]
        table[at][: len(chosen)] = chosen
    table[:, :, min(2, rows - 1)] = -1
    chosen = Selection(
        table, heads=h, kv_heads=g, query_block=query_block, key_block=size,
        visible=VISIBLE[visible],
    )  # fmt: skip
    shapes = (2, h, m, d), (2, g, n, d), (2, g, n, e)
    return *(RNG.standard_normal(shape).astype(dtype) for shape in shapes), chosen


def kernels_of(q, k, v, chosen):
    kind = np.dtype(np.float64 if q.dtype == np.float64 else np.float32)
    made = select_layouts.parts(
        problem(q, k, v, chosen), 0, k.shape[2], kind, Room(), together=True
    )
    return [part.kernel for part in made]


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("name", SHAPES)
def test_lists_of_all_lengths(name, visible, way):
    check(*drawn(name, visible=visible))


@pytest.mark.parametrize("name", ["a list for each group", "blocks that end past the keys"])
def test_queries_that_share_a_row_of_the_table(name, way):
    check(*drawn(name, query_block=7))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(dtype, way):
    arithmetic = arithmetic_of(np.dtype(dtype).name)
    check(*drawn("a list for each group", dtype=dtype), arithmetic=arithmetic)


OPTIONS = {
    "softcap": {"softcap": 0.7, "scale": 0.3},
    "bias": {"bias": RNG.standard_normal((6, 31, 53))},
    "bias that hides": {"bias": np.where(RNG.random((2, 6, 31, 53)) < 0.5, -np.inf, 1.0)},
    "relative": {"bias": sr.RelativeBias(RNG.standard_normal((6, 37)), 20)},
    "alibi": {"alibi_slopes": RNG.random(6)},
    "sinks": {"sink_logits": np.array([-np.inf, 2.0, 0.5, -1.0, 0.0, -np.inf])},
    "lengths": {"kv_lengths": np.array([0, 30]), "q_start": 22},
    "left-padding": {
        "kv_positions": np.arange(53) - np.array([[0], [5]]), "q_start": np.array([22, 17]),
    },
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, way):
    check(*drawn("a list for each group"), **OPTIONS[option])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["one list, groups", "a list for each group"])
def test_what_is_not_finite_reaches_who_sees_it(name, bad, way):
    q, k, v, chosen = drawn(name)
    v[0, 0, ::3, 2], v[1, 1, 5] = bad, bad
    check(q, k, v, chosen)
    hidden = np.where(np.arange(k.shape[2]) % 2, 0, -np.inf)
    check(q, k, v, chosen, bias=np.broadcast_to(hidden, (1, q.shape[2], k.shape[2])))
    k[1, 0, 3], q[0, 1, 11] = bad, bad
    with np.errstate(invalid="ignore"):
        check(q, k, v, chosen)


def test_what_nobody_chose_is_never_read(way):
    q, k, v, chosen = drawn("a list for each group")
    want = kernels.attention(q, k, v, chosen).out
    seen = np.stack([chosen.mask(31, 53, batch=b)[::2].any(axis=1) for b in range(2)])
    k[~seen], v[~seen] = np.nan, np.inf

    np.testing.assert_array_equal(kernels.attention(q, k, v, chosen).out, want)


@pytest.mark.parametrize("name", ["one list, groups", "several stretches"])
def test_bits_depend_on_neither_threads_nor_batch(name, way, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    q, k, v, chosen = drawn(name)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", count)
        results.append(kernels.attention(q, k, v, chosen))
    second = Selection(
        chosen.indices[1:], heads=chosen.heads, kv_heads=chosen.kv_heads,
        key_block=chosen.key_block, visible=chosen.visible,
    )  # fmt: skip
    alone = kernels.attention(q[1:], k[1:], v[1:], second)

    for other in results[1:]:
        np.testing.assert_array_equal(other.out, results[0].out)
        np.testing.assert_array_equal(other.lse, results[0].lse)
    np.testing.assert_array_equal(alone.out, results[0].out[1:])


def test_who_computes_what():
    """Many heads share single keys; few share blocks; neighbours agree; nobody shares anything."""

    def chosen(heads, groups, size, lists, alike=1):
        m, blocks = 640, 640 // size
        some = RNG.random((1, lists, m // alike, blocks)).argsort(axis=-1)[..., : blocks // 4]
        table = np.repeat(some, alike, axis=2)
        arrays = (np.zeros((1, h, m, 64), np.float32) for h in (heads, groups, groups))
        return *arrays, Selection(table, heads=heads, kv_heads=groups, key_block=size)

    assert kernels_of(*chosen(64, 1, 1, 1)) == ["shared"]
    assert kernels_of(*chosen(4, 2, 64, 2)) == ["by blocks"] * 2
    assert kernels_of(*chosen(4, 2, 64, 2, alike=64)) == ["tiles"] * 2
    assert kernels_of(*chosen(2, 2, 1, 2)) == ["rows"] * 2


def test_lists_of_blocks_are_not_written_out():
    """A selection of blocks takes a byte for each, and the masks of those partly seen."""
    m, size, count = 2048, 64, 8
    table = np.full((1, 2, m, count), -1)
    for t in range(m):
        chosen = RNG.permutation(t // size + 1)[:count]
        table[0, :, t, : len(chosen)] = chosen
    q, k = np.zeros((1, 8, m, 16), np.float32), np.zeros((1, 2, m, 16), np.float32)
    given = problem(q, k, k, Selection(table, heads=8, kv_heads=2, key_block=size))

    for part in select_layouts.parts(given, 0, m, np.dtype(np.float32), Room(), together=True):
        assert part.kernel == "by blocks"
        assert part.nbytes - part.layout.blocks.nbytes <= m * (count + size + 3 * 8)
        assert part.nbytes < part.pairs / 4


def test_the_work_is_counted_in_lanes():
    """Eight heads fill a quarter of 32 lanes, of one query; more of the queries of a block."""
    table = np.zeros((512, 1), dtype=np.int32)
    mine = select_layouts.listed(table, 64, sr.Full(), 0, 512, tuple(range(8)))

    assert shared.work_of(512 * 64.0, 512, 8, 32).pairs == 512 * 64 * 32 / 8
    assert by_blocks.work_of(mine, 8, 512, 32).pairs == 512 * 64
