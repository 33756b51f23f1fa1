"""How the kernels' plans take a pattern apart: every pair once, in any order, in the same bits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparse_ref as sr
from tests.strategies import patterns
from tests.test_layouts import FAMILIES

numba = pytest.importorskip("numba")
kernels = pytest.importorskip("sparse_ref.kernels")
from sparse_ref.kernels import choices, costs, gathered, groups, plans, threads, ways  # noqa: E402
from sparse_ref.kernels.orders import BLOCK, deal  # noqa: E402
from sparse_ref.kernels.progressions import Progression, periods  # noqa: E402
from sparse_ref.kernels.splits import disjoint  # noqa: E402
from tests.test_kernels import LARGE, check, draw, in_a_process  # noqa: E402

RNG = np.random.default_rng(7)
GROUPED = {
    "strided": sr.recipes.sparse_transformer_strided(16),
    "fixed": sr.recipes.sparse_transformer_fixed(16, 3),
    "dilated": sr.SlidingWindow(30, 9, dilation=5),
    "residues": sr.RowStride(7, [1, 2]) & sr.KeyStride(5, [0]),
    "globals": sr.SlidingWindow(20, 20) | sr.Global(range(0, 331, 29)),
    "axial": sr.Grid((12, 28), (sr.Full(), sr.SlidingWindow(0, 0))),
    "permuted": sr.Permuted(sr.SlidingWindow(40, 3), RNG.permutation(336)),
    "listed": sr.Causal() & (sr.SlidingWindow(20, 0) | sr.RandomKeys(5, 0, 336)),
    "multi": sr.Multi([sr.Causal(), sr.SlidingWindow(40, 40), sr.Strided(9, 4)]),
    "listed-strided": sr.from_mask((sr.Causal() & sr.Strided(16)).mask(336, 336)[0]),
    "listed-permuted": sr.from_mask(
        sr.Permuted(sr.SlidingWindow(30, 30), RNG.permutation(336)).mask(336, 336)[0]
    ),
    "listed-blocks": sr.Causal() & sr.BlockPattern(RNG.random((48, 48)) < 0.2, 7),
    "listed-alike": sr.Tokens(
        np.repeat(RNG.random((6, 336)) < 0.1, [1, 90, 130, 64, 0, 51], axis=0)
    ),
    "heads": sr.PerHead([sr.Causal() & sr.Strided(13), sr.Xor([0, 1, 2, 64])]),
}  # fmt: skip


def plan_of(pattern, m, n, *, heads=None, start=None):
    heads = heads or pattern.heads
    return kernels.plan(
        pattern, m, n, heads=heads, kv_heads=1, head_dim=16, dtype="float32", q_start=start
    )


def counts_of(part, m, n):
    """The multiplicities of one head of a part, put back where queries and keys came from."""
    counts, layout = np.zeros((m + 1, n + 1), dtype=int), part.layout
    if part.kernel == "rows":
        for i, (a, b) in enumerate(itertools.pairwise(layout.indptr[0])):
            counts[i, layout.indices[a:b]] += layout.times[a:b]
        return counts[:-1, :-1]
    panels, lanes = layout.spans.shape[1], BLOCK // layout.spans.shape[1]
    masks = layout.masks.reshape(-1, panels, BLOCK, lanes).swapaxes(2, 3).reshape(-1, BLOCK, BLOCK)
    queries, keys = (
        (index if len(index) else np.arange(size)).copy()
        for index, size in (
            (layout.queries, BLOCK * (m // BLOCK + 1)), (layout.keys, BLOCK * (n // BLOCK + 1))
        )
    )  # fmt: skip
    queries[(queries < 0) | (queries > m)], keys[(keys < 0) | (keys > n)] = m, n
    for row, (a, b) in enumerate(itertools.pairwise(layout.indptr[0])):
        q = queries[row * BLOCK : (row + 1) * BLOCK]
        for column, tile in zip(layout.indices[a:b], layout.tile_ids[a:b], strict=True):
            k = keys[column * BLOCK : (column + 1) * BLOCK]
            counts[np.ix_(q, k)] += masks[tile]
            counts[m], counts[:, n] = 0, 0
    return counts[:-1, :-1]


def exact(pattern, m, n, start=None):
    """The parts of a plan hold every allowed pair once, with its multiplicity."""
    want = pattern.counts(m, n, q_start=start)
    total, pairs = np.zeros_like(want), 0
    for part in plan_of(pattern, m, n, start=start).parts:
        counts = counts_of(part, m, n)
        total[list(part.heads)] += counts
        assert part.pairs == (counts > 0).sum() * len(part.heads)
        pairs += part.pairs
    np.testing.assert_array_equal(total, want)


@pytest.fixture(params=["cheapest", "apart", "gathered", "dealt", "alike"])
def way(request, monkeypatch):
    """Plans as the cost model makes them, and as it would with other constants."""
    plans._plans.clear()
    force(monkeypatch, request.param)
    yield request.param
    plans._plans.clear()


def force(monkeypatch, way):
    """Make a kind of plan the cheapest wherever it is possible at all."""
    if way == "cheapest":
        return
    by_tiles, by_rows, choose = choices.Choice.by_tiles, choices.Choice.by_rows, choices.choose
    named = {"apart": "in order", "alike": "alike rows"}.get(way, way)

    def tiles(self, order, *args):
        found = by_tiles(self, order, *args)
        return found._replace(seconds=found.seconds * (1e-6 if named in order else 1))

    def rows(self, pairs):
        return by_rows(self, pairs)._replace(seconds=1e3)

    def apart(pattern, shape, room):
        sets = list(pattern.parts)
        if len(sets) == 1 and shape.q_len and shape.kv_len:
            sets = disjoint(pattern, shape.queries, shape.keys)
        if len(sets) == 1:
            return choose(pattern, shape, room)
        return [way for one in sets for way in apart(one, shape, room)]

    monkeypatch.setattr(choices.Choice, "by_tiles", tiles)
    monkeypatch.setattr(choices.Choice, "by_rows", rows)
    monkeypatch.setattr(plans, "choose", apart)


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_every_pair_is_in_one_part(pattern, way):
    for (m, n), start in itertools.product([(17, 19), (19, 17), (1, 23), (0, 3)], [None, 0, 2]):
        if pattern.covers is None or not start or m + start <= pattern.covers:
            exact(pattern, m, n, start)


@pytest.mark.parametrize("name", GROUPED)
def test_every_pair_of_many_blocks_is_in_one_part(name, way):
    exact(GROUPED[name], 331, 331)
    exact(GROUPED[name], 131, 333)
    exact(GROUPED[name], 203, 67, start=40)


ANY = patterns(covers=90), st.integers(0, 90), st.integers(0, 90), st.none() | st.integers(-9, 0)


@settings(max_examples=60, deadline=None)
@given(*ANY)
def test_any_plan_is_exact(pattern, m, n, start):
    exact(pattern, m, n, start)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(*ANY)
def test_many_more_plans_are_exact(pattern, m, n, start):
    exact(pattern, m, n, start)


@pytest.mark.parametrize("name", GROUPED)
def test_parts_together_are_the_oracle(name, way):
    check(*draw(203, 331, b=1, h=2, g=1), GROUPED[name])


@pytest.mark.parametrize("name", LARGE)
def test_other_patterns_taken_apart_are_the_oracle(name, way):
    check(*draw(211, 271, h=6, g=2), LARGE[name])


OPTIONS = {
    "softcap": {"softcap": 0.7},
    "bias": {"bias": RNG.standard_normal((2, 203, 331))},
    "relative": {"bias": sr.RelativeBias(RNG.standard_normal((2, 37)), 20)},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25])},
    "sinks": {"sink_logits": np.array([-np.inf, 2.0])},
    "lengths": {"kv_lengths": np.array([0, 190]), "q_start": 128},
    "left-padding": {
        "kv_positions": np.arange(331) - np.array([[0], [70]]), "q_start": np.array([128, 58]),
    },
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_options_reach_every_part(option, way):
    for name in ("fixed", "multi") if way in {"cheapest", "gathered"} else ("strided", "permuted"):
        check(*draw(203, 331, h=2, g=1), GROUPED[name], **OPTIONS[option])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_passes_from_part_to_part(bad, way):
    for name in ("strided", "fixed", "listed"):
        q, k, v = draw(203, 331, h=2, g=1)
        v[0, 0, [3, 150, 290, 291], 2], v[1, 0, 128] = bad, bad
        check(q, k, v, GROUPED[name])
        k[1, 0, 277], q[0, 1, 11] = bad, bad
        with np.errstate(invalid="ignore"):
            check(q, k, v, GROUPED[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_depend_on_neither_threads_nor_batch(dtype, way, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", 0)
    q, k, v = draw(203, 331, b=3, dtype=dtype)
    for name in ("strided", "fixed", "globals"):
        results = []
        for count in (1, 2, 3):
            monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", count)
            results.append(kernels.attention(q, k, v, GROUPED[name]))
        parts = [kernels.attention(q[s], k[s], v[s], GROUPED[name]) for s in (np.s_[:1], np.s_[1:])]
        results.append([np.concatenate(side) for side in zip(*parts, strict=True)])
        for out, lse in results[1:]:
            np.testing.assert_array_equal(out, results[0].out)
            np.testing.assert_array_equal(lse, results[0].lse)


def test_plans_are_deterministic_and_say_why():
    first, second = (plan_of(GROUPED["strided"], 4096, 4096) for _ in range(2))

    assert repr(first) == repr(second)
    assert [part.reason.split(",")[0] for part in first.parts] == ["in order", "dealt by 16"]
    assert "undivided" in first.parts[0].reason
    for a, b in zip(first.parts, second.parts, strict=True):
        for x, y in zip(a.layout, b.layout, strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_pattern_is_taken_apart_by_what_its_members_want():
    x = np.arange(512)
    window, far = sr.SlidingWindow(63, 0), sr.Causal() & sr.Strided(64)

    assert disjoint(window | far, x, x) == [window, far & ~window]
    assert disjoint(sr.Causal() & (window | sr.Sink(4)), x, x) == [
        sr.Causal() & (window | sr.Sink(4))
    ]
    assert len(disjoint(window | sr.Global(range(0, 512, 60)), x, x)) == 3


def test_dealing_puts_a_residue_in_each_class():
    order = deal(np.arange(7), 10 + np.arange(7), 3)

    assert order.holds[:, :4].tolist() == [[2, 5, -1, -1], [0, 3, 6, -1], [1, 4, -1, -1]]
    assert order.place[:, :4].tolist() == [[12, 15, 15, 15], [10, 13, 16, 16], [11, 14, 14, 14]]
    assert order.filled.tolist() == [2, 3, 2]


def test_a_long_strided_sequence_has_few_tiles():
    """Stride 256 over 65,536: a class of 256 in 4 blocks, 10 tiles under the diagonal."""
    plan = plan_of(sr.recipes.sparse_transformer_strided(256), 1 << 16, 1 << 16)

    assert [len(part.layout.indices) for part in plan.parts][1] == 256 * 10


@settings(max_examples=100, deadline=None)
@given(
    patterns(covers=60, heads=False, multisets=False),
    st.lists(st.tuples(st.integers(-15, 40), st.integers(1, 9), st.integers(1, 6)), min_size=2),
)
def test_progressions_are_sound(pattern, drawn):
    """What a progression says must hold for all pairs does; what it says may not, never does."""
    lo, step, count = np.array(drawn).T
    step = np.where(count == 1, 0, step)
    which = np.stack(np.meshgrid(*[np.arange(len(lo))] * 2)).reshape(2, -1)
    spans = [Progression(lo[i], lo[i] + step[i] * (count[i] - 1), step[i]) for i in which]
    verdict = pattern(*spans)
    must, may = (np.broadcast_to(x, which.shape[1:]) for x in (verdict.must, verdict.may))
    for (i, j), all_, some in zip(which.T, must, may, strict=True):
        q, k = (lo[x] + step[x] * np.arange(count[x]) for x in (i, j))
        truth = np.broadcast_to(pattern(q[:, None], k), (len(q), len(k)))

        assert truth.all() or not all_
        assert some or not truth.any()


def test_progressions_see_through_remainders():
    q = Progression(3, 3 + 64 * 9, 64)
    verdict = (q - Progression(np.array([0, 3, 67]), np.array([640, 643, 67]), 64)) % 64 == 0

    assert verdict.must.tolist() == verdict.may.tolist() == [False, True, True]
    assert periods(sr.Strided(6) | sr.KeyStride(4, [1])) == {6: 1, 4: 1}


def test_counts_of_an_estimate_are_near_those_of_the_layout():
    choice = choices.Choice(
        sr.Causal() & sr.Strided(16), ways.Shape(1024, 1024, 0, (0,), 64, 4, 16)
    )
    order = deal(np.arange(1024), np.arange(1024), 16)
    found = gathered.gathered(choice.pattern, order, order, np.inf)
    work, pairs = found.estimate(16)
    layout, counted = found.layout((0,), 16)

    assert pairs == counted
    assert work == costs.work_of(layout)


ALIKE = {
    "strided": (sr.Strided(16), 1.0),
    "permuted": (sr.Permuted(sr.SlidingWindow(64, 64), RNG.permutation(1024)), 0.5),
    "documents": (sr.Permuted(sr.Chunked(50), RNG.permutation(1024)), 0.7),
}


@pytest.mark.parametrize("name", ALIKE)
def test_listed_rows_that_share_keys_are_put_together(name):
    """The pairs that tiles compute are not many more than those that are listed."""
    pattern, fill = ALIKE[name]
    plan = plan_of(sr.from_mask(pattern.mask(1024, 1024)[0]), 1024, 1024, heads=1)
    [part] = plan.parts

    assert "tiles (alike rows, " in repr(plan)
    assert fill * costs.work_of(part.layout).pairs <= part.pairs


def test_random_rows_are_left_apart_and_blocks_in_order():
    assert "rows (" in repr(plan_of(sr.RandomKeys(64, 0, 1024), 1024, 1024))
    blocks = sr.BlockPattern(np.random.default_rng(0).random((16, 16)) < 0.2, 64)
    assert "tiles (in order, " in repr(plan_of(blocks, 1024, 1024))


def test_bundles_end_where_rows_differ_unless_several_fit():
    csr = sr.to_csr(GROUPED["listed-alike"], 336, 336)
    one, two = groups.bundled(csr, 8)
    for bundles in (one, two):
        sizes = np.diff(bundles.start)
        assert sorted(bundles.rows.tolist()) == list(range(336))
        assert len(sizes) == 7  # 90 and 130 rows fill three, their ends and the others four
        assert bundles.estimate[0] == costs.work_of(bundles.layout((0,))[0])
        assert bundles.placed.full.all() == (bundles.estimate[1] == 0)


def test_an_estimate_from_some_bundles_is_near_the_whole():
    csr = sr.to_csr(sr.Permuted(sr.SlidingWindow(64, 64), RNG.permutation(4096)), 4096, 4096)
    for bundles in groups.bundled(csr, 8):
        work, _ = bundles.estimate
        for name, about, exact_ in zip(work._fields, work, bundles.placed.work()[0], strict=True):
            assert about == pytest.approx(exact_, rel=0.2), name


def test_keys_own_their_gradients_in_bundles_of_their_own():
    pattern = sr.from_mask(ALIKE["permuted"][0].mask(1024, 1024)[0])
    [part] = plan_of(pattern, 1024, 1024, heads=1).parts
    by_keys = groups.by_keys(part.layout, 1024)
    mine = by_keys._replace(queries=by_keys.keys, keys=by_keys.queries)
    counts = counts_of(plans.Part("tiles", (0,), "", mine, 0), 1024, 1024)

    owned = by_keys.keys[by_keys.keys >= 0]
    assert len(np.unique(owned)) == len(owned)
    np.testing.assert_array_equal(counts.T, pattern.mask(1024, 1024)[0])


def test_parts_run_without_compiling():
    """Python checks every index, which compiled code does not."""
    code = """
    import numpy as np, sparse_ref as sr
    from tests.test_kernel_plans import GROUPED, force
    from tests.test_kernels import check, draw
    class Patch:
        setattr = staticmethod(setattr)
    force(Patch, "dealt")
    for pattern in (sr.recipes.sparse_transformer_strided(9), GROUPED["multi"]):
        q, k, v = draw(67, 71, b=1, h=2, g=1, d=2, e=1)
        check(q, k, v, pattern, bias=np.ones((67, 1)))
        v[0, 0, 30] = np.nan
        check(q, k, v, pattern)
    """
    in_a_process(code, NUMBA_DISABLE_JIT="1")
