"""The Numba kernels against the oracle, within its bound; their bits; how they are run."""

import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.problem import problem
from tests.test_layouts import FAMILIES

numba = pytest.importorskip("numba")
kernels = pytest.importorskip("sparse_ref.kernels")
from sparse_ref.kernels import _jit, amx, costs, forward, plans, rows, tiles, vectors  # noqa: E402

RNG = np.random.default_rng(5)
KINDS = ["tiles", "rows"]


def draw(m=67, n=131, *, b=2, h=4, g=2, d=13, e=11, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((b, h, m, d), (b, g, n, d), (b, g, n, e))
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """Every test that asks for it runs by tiles alone and by rows alone."""
    force(monkeypatch, request.param)
    return request.param


def force(monkeypatch, kind):
    rows = dict.fromkeys(
        ("listed product", "listed", "row"), 0.0 if kind == "rows" else 1000000000.0
    )
    monkeypatch.setattr(costs, "CONSTANTS", {**costs.CONSTANTS, **rows})
    plans._plans.clear()


def arithmetic_of(name):
    """What inputs of a type are computed in on this machine: AMX tiles take rounded weights."""
    if name in amx.NEEDS and not amx.refusal(name):
        return name
    return "float64" if name == "float64" else "float32"


def check(q, k, v, pattern, *, arithmetic="float32", **options):
    """Within the bound wherever the oracle is finite, and elsewhere what the oracle says."""
    got = kernels.attention(q, k, v, pattern, **options)
    want = sr.attention(q, k, v, pattern, **options)
    output = np.asarray(q).dtype.name
    bound = sr.error_bound(q, k, v, pattern, arithmetic=arithmetic, output=output, **options)

    assert got.out.dtype == np.asarray(q).dtype
    assert got.lse.dtype == (np.float64 if arithmetic == "float64" else np.float32)
    for ours, exact, limit in zip(got, want, bound, strict=True):
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(ours[~finite], exact[~finite])
        error = np.abs(ours[finite].astype(np.float64) - exact[finite])
        worst = np.max(error - limit[finite], initial=0)
        assert worst <= 0, f"error exceeds the bound by {worst}"
    return got


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_every_pattern(pattern, kind):
    for m, n in ((17, 19), (19, 17), (1, 23)):
        check(*draw(m, n, h=4), pattern)
    if pattern.covers is None:
        check(*draw(67, 131), pattern)
        check(*draw(131, 67), pattern)


LARGE = {
    "window": sr.SlidingWindow(70, 20),
    "causal": sr.Causal(),
    "documents": sr.WithinDocument(sr.Causal(), np.repeat(np.arange(9), 31)),
    "bigbird": sr.Causal() & (sr.Blocked(sr.SlidingWindow(1, 0), 16) | sr.Sink(5)),
    "random": sr.RandomKeys(7, 0, 271),
    "multi": sr.Multi([sr.Causal(), sr.SlidingWindow(9, 9), sr.Strided(7)]),
    "heads": sr.PerHead([sr.Causal(), sr.Strided(31), ~sr.Full()]),
    "batches": sr.PerBatch([sr.PrefixLM(70), sr.SlidingWindow(100, 3)]),
}


@pytest.mark.parametrize("name", LARGE)
def test_many_blocks(name, kind):
    check(*draw(211, 271, h=6), LARGE[name])


OPTIONS = {
    "scale": {"scale": 0.3},
    "negative-scale": {"scale": -0.3},
    "softcap": {"softcap": 0.7},
    "bias": {"bias": RNG.standard_normal((4, 67, 131))},
    "bias-batch": {"bias": RNG.standard_normal((2, 1, 1, 131))},
    "bias-query": {"bias": RNG.standard_normal((4, 67, 1)).astype(np.float32)},
    "relative": {"bias": sr.RelativeBias(RNG.standard_normal((4, 37)), 20)},
    "relative-shared": {"bias": sr.RelativeBias(RNG.standard_normal(37), 0)},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0])},
    "sinks": {"sink_logits": np.array([0.1, -np.inf, 2.0, 30.0])},
    "lengths": {"kv_lengths": np.array([0, 100]), "q_start": 40},
    "left-padding": {
        "kv_positions": np.arange(131) - np.array([[13], [70]]), "q_start": np.array([51, -6]),
    },
    "ring": {"kv_positions": np.stack([RNG.permutation(131), np.roll(np.arange(131), 9)])},
    "start": {"q_start": np.array([0, 2])},
    "everything": {
        "scale": 0.9, "softcap": 2.0, "bias": RNG.standard_normal((67, 131)),
        "alibi_slopes": np.array([0.5, 0.25, 0.125, 1.0]), "sink_logits": np.arange(4.0),
        "kv_lengths": 97, "q_start": np.array([1, 20]),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, kind):
    check(*draw(), sr.Causal() & (sr.SlidingWindow(50, 0) | sr.Sink(3)), **OPTIONS[name])
    check(*draw(), sr.Multi([sr.Causal(), sr.Strided(5)]), **OPTIONS[name])


@pytest.mark.parametrize("b", [0, 1, 2])
@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 7), (7, 0), (1, 1), (64, 64), (65, 1), (5, 129)])
def test_sizes_at_the_edge(b, m, n, kind):
    check(*draw(m, n, b=b, d=1, e=1), sr.Causal())


@pytest.mark.parametrize(("d", "e"), [(1, 9), (7, 1), (64, 64), (65, 6), (96, 33), (256, 3)])
def test_head_sizes(d, e, kind):
    check(*draw(d=d, e=e, h=2), sr.Causal())


@pytest.mark.parametrize("name", ["float64", "float16", "bfloat16"])
def test_types(name, kind):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)
    q, k, v = draw(dtype=dtype)
    got = kernels.attention(q, k, v, sr.Causal())
    want = sr.attention(q, k, v, sr.Causal())
    bound = sr.error_bound(q, k, v, sr.Causal(), arithmetic=arithmetic_of(name), output=name)

    assert got.out.dtype == dtype
    assert got.lse.dtype == (np.float64 if name == "float64" else np.float32)
    assert (np.abs(got.out.astype(np.float64) - want.out) <= bound.out).all()
    assert (np.abs(got.lse - want.lse) <= bound.lse).all()


def test_any_memory_layout_and_leading_axes():
    q, k, v = draw(b=6)
    want = kernels.attention(q, k, v, sr.Causal())
    split = kernels.attention(*(x.reshape(2, 3, *x.shape[1:]) for x in (q, k, v)), sr.Causal())
    layouts = {
        "length before heads": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
        "Fortran": np.asfortranarray,
        "reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
        "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
        "big-endian": lambda x: x.astype(">f4"),
        "unaligned": lambda x: np.frombuffer(b"0" + x.tobytes(), "f4", offset=1).reshape(x.shape),
    }
    np.testing.assert_array_equal(split.out.reshape(want.out.shape), want.out)
    for name, change in layouts.items():
        got = kernels.attention(*(change(x) for x in (q, k, v)), sr.Causal())
        np.testing.assert_array_equal(got.out, want.out, err_msg=name)
    shared = np.broadcast_to(q[:1], q.shape)
    np.testing.assert_array_equal(
        kernels.attention(shared, k, v, sr.Full()).out,
        kernels.attention(shared.copy(), k, v, sr.Full()).out,
    )


def test_every_element_is_written(kind):
    for pattern in (sr.Causal(), ~sr.Full(), sr.RandomKeys(3, 0, 131)):
        q, k, v = draw()
        given = problem(q, k, v, pattern)
        out, lse = np.full((2, 4, 67, 11), np.nan, "f4"), np.full((2, 4, 67), np.nan, "f4")
        forward.into(out, lse, given, list(forward.launches(given, out.dtype, None)))

        assert np.isfinite(out).all()
        assert not np.isnan(lse).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_rows_that_see_it_and_no_other(bad, kind):
    pattern = sr.SlidingWindow(40, 3)
    q, k, v = draw()
    v[0, 0, [3, 70, 71], 2], v[0, 1, 128] = bad, bad
    check(q, k, v, pattern)
    k[1, 0, 77], q[1, 3, 11] = bad, bad
    with np.errstate(invalid="ignore"):
        check(q, k, v, pattern)


def test_scores_that_are_not_finite(kind):
    q, k, v = draw()
    bias = np.zeros((67, 131))
    bias[:, ::3], bias[5], bias[7, 20], bias[9, 21] = -np.inf, -np.inf, np.inf, np.nan
    v[:, :, ::3] = np.nan  # at keys not seen, as their score is -inf
    got = check(q, k, v, sr.SlidingWindow(100, 3), bias=bias)

    assert np.isnan(got.out[0, 0]).any(axis=-1).nonzero()[0].tolist() == [7, 9]
    assert (got.lse[:, :, 5] == -np.inf).all()


def test_a_weight_too_small_for_its_type_is_zero_and_keys_far_below_do_no_harm(kind):
    q, k, v = draw(h=2, g=1)
    check(30 * q, 30 * k, v, sr.Causal())
    check(300 * q, 300 * k, v, sr.Causal())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_depend_on_neither_threads_nor_batch(dtype, kind, monkeypatch):
    from sparse_ref.kernels import threads

    q, k, v = draw(b=5, dtype=dtype)
    options = {"alibi_slopes": np.ones(4), "sink_logits": np.zeros(4)}
    monkeypatch.setattr(threads, "SMALL", 0)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", count)
        results.append(kernels.attention(q, k, v, sr.Causal(), **options))
    parts = [
        kernels.attention(q[s], k[s], v[s], sr.Causal(), **options) for s in (np.s_[:2], np.s_[2:])
    ]
    results.append([np.concatenate(side) for side in zip(*parts, strict=True)])
    for out, lse in results[1:]:
        np.testing.assert_array_equal(out, results[0].out)
        np.testing.assert_array_equal(lse, results[0].lse)


def test_many_python_threads_may_call():
    q, k, v = draw(257, 257, h=4)
    want, got = kernels.attention(q, k, v, sr.Causal()).out, [None] * 4

    def call(i):
        got[i] = kernels.attention(q, k, v, sr.Causal()).out

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    for out in got:
        np.testing.assert_array_equal(out, want)


def test_a_plan_says_what_it_does_and_serves_any_batch():
    pattern = sr.PerHead([sr.SlidingWindow(64, 64), sr.RandomKeys(40, 0, 640)])
    q, k, v = draw(640, 640, b=1, d=8)
    plan = kernels.plan(pattern, 640, 640, heads=4, kv_heads=2, head_dim=8, dtype=q.dtype)

    assert [part.kernel for part in plan.parts] == KINDS
    assert [part.heads for part in plan.parts] == [(0, 2), (1, 3)]
    assert repr(plan).splitlines()[0] == "<Plan 640 x 640, heads 4:"
    assert "heads 1, 3: rows (25600 pairs; " in repr(plan)
    want = kernels.attention(q, k, v, pattern).out
    np.testing.assert_array_equal(kernels.attention(q, k, v, pattern, plan=plan).out, want)
    two = [np.concatenate([x, x]) for x in (q, k, v)]
    np.testing.assert_array_equal(kernels.attention(*two, pattern, plan=plan).out[1:], want)


def test_plans_are_kept_and_bounded():
    plans._plans.clear()
    q, k, v = draw()
    for left in range(plans.KEPT + 5):
        kernels.attention(q, k, v, sr.SlidingWindow(left, 0))
    last = plans._plans[next(reversed(plans._plans))]
    kernels.attention(q, k, v, sr.SlidingWindow(plans.KEPT + 4, 0))

    assert len(plans._plans) == plans.KEPT
    assert plans._plans[next(reversed(plans._plans))] is last


def test_what_does_not_fit_is_refused():
    q, k, v = draw()
    plan = kernels.plan(sr.Causal(), 67, 131, heads=4, kv_heads=2, head_dim=13, dtype="float32")
    with pytest.raises(ValueError, match="plan must be for pattern Full"):
        kernels.attention(q, k, v, sr.Full(), plan=plan)
    with pytest.raises(ValueError, match="plan must be for q_len 66, got one for 67"):
        kernels.attention(q[:, :, 1:], k, v, sr.Causal(), plan=plan)
    with pytest.raises(TypeError, match="plan must be a Plan, got 3"):
        kernels.attention(q, k, v, sr.Causal(), plan=3)
    with pytest.raises(ValueError, match="pattern must be one batch row's"):
        kernels.plan(LARGE["batches"], 3, 3, heads=1, kv_heads=1, head_dim=1, dtype="float32")
    with pytest.raises(ValueError, match=r"max_bytes must be more than the \d+ needed, got 1000"):
        kernels.attention(q, k, v, sr.Causal(), max_bytes=1000)
    kernels.attention(q, k, v, sr.Causal(), max_bytes=10**6)
    with pytest.raises(ValueError, match="q must have at least 3 axes"):
        kernels.attention(q[0, 0], k, v, sr.Causal())


def test_arguments_have_one_type_whatever_they_are():
    """Each kernel is compiled once for float32 and once for float64: seconds each."""
    for module in (tiles, rows):
        assert len(module.attend.signatures) <= 2


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
def test_an_inner_function_that_returns_an_array_is_refused():
    """References are not counted there: its caller would free what is still in use."""

    def tail(x):
        return x[1:]

    lent, owned = _jit.inner(tail), _jit.owner(tail)

    assert numba.njit(lambda x: owned(x).sum())(np.arange(4.0)) == 6
    with pytest.raises(numba.TypingError, match="tail must be an `owner`"):
        numba.njit(lambda x: lent(x).sum())(np.arange(4.0))


def in_a_process(code, **environment):
    """Run code in a fresh interpreter; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SMALL_CASES = """
    import numpy as np, sparse_ref as sr
    from tests.test_kernels import LARGE, OPTIONS, check, draw, force, plans
    class Patch:
        setattr = staticmethod(setattr)
    for kind in ("tiles", "rows"):
        force(Patch, kind)
        for options in ({}, {"softcap": 0.7}, {"sink_logits": np.arange(4.0)},
                        {"bias": np.ones((5, 1)), "alibi_slopes": np.ones(4)}):
            q, k, v = draw(5, 7, b=1, d=3, e=2)
            check(q, k, v, sr.Multi([sr.Causal(), sr.Strided(2)]), **options)
            v[0, 0, 3, 1] = np.nan
            check(q, k, v, sr.Causal(), **options)
        check(*draw(67, 71, b=1, h=2, d=2, e=1), sr.SlidingWindow(9, 9))
    from sparse_ref.kernels import vectors
    print(vectors.product.__module__)
"""


def test_kernels_run_without_compiling():
    """Python checks every index, which compiled code does not."""
    printed = in_a_process(SMALL_CASES, NUMBA_DISABLE_JIT="1")

    assert printed == "sparse_ref.kernels.plain"


def test_plain_loops_do_what_the_vector_instructions_do():
    assert in_a_process(SMALL_CASES, SPARSE_REF_PLAIN="1") == "sparse_ref.kernels.plain"


@numba.njit
def four_rows(s, x, q, k, v, keys, sizes):
    d, e, row, count = sizes
    vectors.dots_4(s, 0, q, 0, count, k, 0, d, row, keys, 0, count)
    vectors.sums_4(x, 0, s, 0, count, v, 0, e, row, keys, 0, count)


@numba.njit
def one_row(s, x, q, k, v, keys, sizes):
    d, e, row, count = sizes
    vectors.dots_1(s, 0, q, 0, 0, k, 0, d, row, keys, 0, count)
    vectors.sums_1(x, 0, s, 0, 0, v, 0, e, row, keys, 0, count)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "products"), [(1, one_row), (4, four_rows)])
def test_products_with_scattered_rows_are_exact_on_small_integers(rows, products, dtype):
    """Sizes on and off the vectors' width; keys twice and backwards; nothing else is written."""
    rng = np.random.default_rng(3)
    for d, e, count, index in [
        (1, 3, 5, np.int32), (8, 19, 4, np.int64), (33, 16, 7, np.int32), (64, 131, 1, np.int64),
        (80, 64, 13, np.int32), (131, 128, 3, np.int64), (16, 1, 0, np.int32),
    ]:  # fmt: skip
        q, k, v = (rng.integers(-2, 3, shape).astype(dtype) for shape in
                   ((rows, d), (17, 137), (17, 137)))  # fmt: skip
        keys, x = rng.integers(0, 17, count).astype(index), rng.integers(-9, 9, (rows, e))
        s, got = np.zeros(rows * count + 3, dtype), np.append(x, [np.pi] * 7).astype(dtype)
        products(s, got, q.ravel(), k.ravel(), v.ravel(), keys, (d, e, 137, count))
        want = q @ k[keys, :d].T

        np.testing.assert_array_equal(s[: rows * count], want.ravel())
        np.testing.assert_array_equal(got[: rows * e], (x + want @ v[keys, :e]).ravel())
        assert (got[rows * e :] == dtype(np.pi)).all()


@numba.njit
def there_and_back(panel, rows, back, size, factor):
    vectors.to_lanes(panel, 3, rows, 5, size)
    vectors.to_rows(back, 7, panel, 3, size, factor, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_turned_into_lanes_and_back_are_the_same(dtype):
    w = vectors.lanes_of(8 * np.dtype(dtype).itemsize)
    for size in (1, 2, 7, 16, 33, 64, 67):
        values, factor = np.arange(w * size, dtype=dtype), np.full(w + 2, 2, dtype)
        rows, back = np.append(np.full(5, -1, dtype), values), np.full(w * size + 9, -1, dtype)
        panel = np.full(3 + w * size + 1, -1, dtype)
        factor[2] = 3  # of the first lane
        there_and_back(panel, rows, back, size, factor)
        want = values.reshape(w, size)

        np.testing.assert_array_equal(panel, [-1] * 3 + want.T.ravel().tolist() + [-1])
        times = np.where(np.arange(w) == 0, 3, 2)[:, None]
        np.testing.assert_array_equal(back, [-1] * 7 + (times * want).ravel().tolist() + [-1] * 2)


def test_a_forked_child_may_call_after_its_parent_has():
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    code = """
    import os, warnings, numpy as np, sparse_ref as sr
    from sparse_ref.kernels import attention, threads
    warnings.simplefilter("ignore")
    threads.SMALL = 0
    x = np.ones((2, 130, 8), np.float32)
    want = attention(x, x, x, sr.Causal()).out
    child = os.fork()
    if not child:
        os._exit(0 if (attention(x, x, x, sr.Causal()).out == want).all() else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert in_a_process(code) == "0"


def test_the_oracle_needs_no_kernels():
    assert in_a_process("import sparse_ref, sys; print('numba' in sys.modules)") == "False"
