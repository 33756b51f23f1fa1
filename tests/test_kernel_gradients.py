"""The kernels' gradients against the oracle's, element by element; their bits; how they are run."""

import threading

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.problem import problem
from sparse_ref.reference import softmax
from tests.test_layouts import FAMILIES

numba = pytest.importorskip("numba")
kernels = pytest.importorskip("sparse_ref.kernels")
from sparse_ref.kernels import backward, row_gradients, tile_gradients  # noqa: E402
from tests.test_kernels import KINDS, LARGE, OPTIONS, arithmetic_of, force, in_a_process  # noqa: E402

NAMES = ("dq", "dk", "dv", "dbias", "dsink_logits")
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def draw(m=67, n=131, *, b=2, h=4, g=2, d=13, e=11, dtype=np.float32, seed=0):
    """q, k, v, dout and dlse."""
    rng = np.random.default_rng(seed)
    shapes = ((b, h, m, d), (b, g, n, d), (b, g, n, e), (b, h, m, e), (b, h, m))
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """Every test that asks for it runs by tiles alone and by rows alone."""
    force(monkeypatch, request.param)
    return request.param


def size_of(x):
    """Absolute values; 0 for what is not finite, which is compared for itself."""
    return np.where(np.isfinite(x), np.abs(x), 0)


def sizes(q, k, v, pattern, dout, dlse, options):
    """The oracle's formula with every term's absolute value in its place: what a rounding scales.

    A weight is off by its score's and its lse's error, so their sizes multiply it.
    """
    given = problem(q, k, v, pattern, **options)
    total = sr.attention_vjp(q, k, v, pattern, dout, dlse=dlse, **options)
    total = [None if x is None else np.zeros(x.shape) for x in total]
    dbias, dsink = total[3:]
    dout, dlse = (
        size_of(np.asarray(x, dtype=np.float64)).reshape(given.q.shape[0], *x.shape[-s:])
        for x, s in ((dout, 3), (dlse, 2))
    )
    like = (given.q, given.k, given.v)
    dq, dk, dv = (x.reshape(y.shape) for x, y in zip(total[:3], like, strict=True))
    for head in given.heads():
        at, group = (head.batch, head.head), (head.batch, head.group)
        pairs = next(head.pairs(), None)  # all at once: the cases are small
        if pairs is None:
            continue
        p, lse = softmax(head, pairs)
        p, lse = size_of(p.toarray()), size_of(lse)
        size_q, size_k, size_v = (size_of(x) for x in (head.q, head.k, head.v))
        added = np.zeros(p.shape)
        added[pairs.row, pairs.key] = size_of(head.added(pairs))
        scale = abs(given.scale)
        spread = 1 + scale * size_q @ size_k.T + added + lse[:, None]
        weight = p * spread
        dp = dout[at] @ size_v.T
        mean = (weight * dp).sum(axis=1) + dlse[at]
        change = weight * (dp + mean[:, None])
        dq[at] += scale * change @ size_k
        dk[group] += scale * change.T @ size_q
        dv[group] += weight.T @ dout[at]
        if dbias is not None:
            place = head.bias_index(pairs)
            np.add.at(dbias.reshape(-1), place, change[pairs.row, pairs.key])
        if dsink is not None and np.isfinite(head.sink):
            share = 1 + abs(head.sink) + lse  # P_sink is at most 1
            dsink[head.head] += (share * mean).sum()
    return total


def check(q, k, v, pattern, dout, dlse=None, plan=None, **options):
    """Every element within gamma times its size where the oracle is finite, else what it says.

    gamma is 1e-11 in float64; elsewhere the units of a sum of d + e + m + n terms, one after
    another, and one rounding into the type of the result.
    """
    got = kernels.attention_vjp(q, k, v, pattern, dout, dlse=dlse, plan=plan, **options)
    want = sr.attention_vjp(q, k, v, pattern, dout, dlse=dlse, **options)
    kind = "float64" if np.asarray(q).dtype == np.float64 else "float32"
    above = np.zeros(dout.shape[:-1]) if dlse is None else dlse
    size = sizes(q, k, v, pattern, dout, above, options)
    terms = q.shape[-1] + v.shape[-1] + q.shape[-2] + k.shape[-2] + 16
    gamma = 1e-11 if kind == "float64" else terms * UNIT[kind]
    types = [x.dtype for x in (q, k, v)] + [np.dtype(kind)] * 2
    for name, ours, exact, most, dtype in zip(NAMES, got, want, size, types, strict=True):
        assert (ours is None) == (exact is None), name
        if exact is None:
            continue
        assert ours.shape == exact.shape, name
        assert ours.dtype == dtype, name
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(ours[~finite], exact[~finite], err_msg=name)
        limit = gamma * most + UNIT[dtype.name] * np.abs(exact) + np.finfo(np.float32).tiny
        error = np.abs(ours[finite].astype(np.float64) - exact[finite])
        worst = np.max(error / limit[finite], initial=0)
        assert worst <= 1, f"{name} is off by {worst} of what is allowed"
    return got


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_every_pattern(pattern, kind):
    for m, n in ((17, 19), (19, 17), (1, 23)):
        check(*draw(m, n)[:3], pattern, *draw(m, n)[3:])
    if pattern.covers is None:
        for m, n in ((67, 131), (131, 67)):
            q, k, v, *above = draw(m, n, b=1)
            check(q, k, v, pattern, *above)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LARGE)
def test_many_blocks(name, dtype, kind):
    q, k, v, *above = draw(211, 271, h=6, dtype=dtype)
    check(q, k, v, LARGE[name], *above)


PARTS = {
    "strided": sr.Causal() & (sr.SlidingWindow(64, 0) | sr.Strided(64)),
    "heads": sr.PerHead([sr.Strided(64), sr.Causal() & (sr.SlidingWindow(31, 0) | sr.Strided(32))]),
    "permuted": sr.Permuted(sr.SlidingWindow(9, 9), np.random.default_rng(0).permutation(1100)),
    "listed": sr.from_mask(
        sr.Permuted(sr.Chunked(80), np.random.default_rng(0).permutation(1100)).mask(1100, 1100)[0]
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_and_orders(name):
    """What the planner takes apart and gathers: the parts of a head add up, empty slots or not."""
    m, n = 1009, 1091
    q, k, v, *above = draw(m, n, b=1, d=5, e=3, dtype=np.float64)
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 5, "dtype": "float64"}
    plan = kernels.plan(PARTS[name], m, n, **shape)
    k[0, 1, 500, 2] = np.nan
    with np.errstate(invalid="ignore"):
        check(q, k, v, PARTS[name], *above, plan=plan, sink_logits=np.arange(4.0))

    assert any(len(part.layout.queries) for part in plan.parts if part.kernel == "tiles")


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, kind):
    q, k, v, *above = draw(dtype=np.float64)
    few = sr.Causal() & (sr.SlidingWindow(50, 0) | sr.Sink(3))
    check(q, k, v, few, *above, **OPTIONS[name])
    check(q, k, v, sr.Multi([sr.Causal(), sr.Strided(5)]), above[0], **OPTIONS[name])
    q, k, v, *above = draw()
    check(q, k, v, few, *above, **OPTIONS[name])


BIASES = [
    (131,), (67, 131), (67, 1), (1, 1), (1, 131), (6, 1, 1), (6, 67, 1), (6, 1, 131), (1, 67, 131),
    (3, 1, 1, 1), (3, 6, 67, 131), (3, 1, 67, 1), (1, 6, 1, 131), (2, 1, 1, 67, 131),
    (2, 1, 6, 1, 1), (1, 3, 1, 1, 131), (1, 3, 6, 67, 1), (2, 3, 1, 1, 1), (1, 1, 1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", BIASES, ids=str)
def test_every_shape_of_a_bias(shape, kind):
    """A batch of 2 x 3, two patterns, so that several parts add to the same numbers."""
    q, k, v, dout, dlse = (
        x.reshape(2, 3, *x.shape[1:]) for x in draw(b=6, h=6, d=3, e=2, dtype=np.float64)
    )
    bias = np.random.default_rng(1).standard_normal(shape)
    pattern = sr.PerHead([sr.SlidingWindow(9, 9), sr.Strided(3), sr.Causal()])
    check(q, k, v, pattern, dout, dlse, bias=bias, q_start=np.array([[64, 0, 64], [64, 64, 0]]))


@pytest.mark.parametrize("b", [0, 2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 7), (7, 0), (1, 1), (64, 64), (65, 1), (5, 129)])
def test_sizes_at_the_edge(b, m, n, kind):
    q, k, v, *above = draw(m, n, b=b, d=1, e=1)
    check(q, k, v, sr.Causal(), *above, sink_logits=np.arange(4.0))
    check(q, k, v, sr.Causal(), *above, bias=np.ones((m, 1)))
    check(q, k, v, sr.Causal(), *above, bias=sr.RelativeBias(np.ones(3), 2))


@pytest.mark.parametrize(("d", "e"), [(1, 9), (7, 1), (64, 64), (65, 6), (96, 33), (256, 3)])
def test_head_sizes(d, e, kind):
    q, k, v, *above = draw(d=d, e=e, h=2)
    check(q, k, v, sr.Causal(), *above)


@pytest.mark.parametrize("name", ["float64", "float16", "bfloat16"])
def test_types(name, kind):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)
    q, k, v, *above = draw(dtype=dtype)
    check(q, k, v, sr.Causal(), *above, bias=np.ones((67, 1)), sink_logits=np.zeros(4))


def test_one_float64_makes_all_sums_float64():
    q, k, v, dout, dlse = draw()
    got = kernels.attention_vjp(
        q, k, v, sr.Causal(), dout.astype(np.float64), dlse=dlse, sink_logits=np.zeros(4)
    )
    want = sr.attention_vjp(q, k, v, sr.Causal(), dout, dlse=dlse, sink_logits=np.zeros(4))

    assert [x.dtype for x in got[:3]] == [np.float32] * 3
    np.testing.assert_allclose(got.dsink_logits, want.dsink_logits, rtol=1e-12)


GIVEN = {  # patterns of tiles, rows, gathered parts, several batch rows
    "causal": (sr.Causal(), {}),
    "parts": (PARTS["heads"], {"sink_logits": np.arange(4.0), "bias": np.ones((67, 1))}),
    "lengths": (sr.SlidingWindow(9, 9), {"kv_lengths": np.array([0, 100]), "q_start": 40}),
    "cap": (LARGE["random"], {"softcap": 0.7, "alibi_slopes": np.ones(4)}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", GIVEN)
def test_a_forward_pass_that_is_given_changes_no_bit(name, dtype, kind):
    pattern, options = GIVEN[name]
    n = 271 if name == "cap" else 131
    q, k, v, dout, dlse = draw(n=n, dtype=dtype)
    answer = kernels.attention(q, k, v, pattern, **options)
    for x in answer:
        x.flags.writeable = False
    want = kernels.attention_vjp(q, k, v, pattern, dout, dlse=dlse, **options)
    got = kernels.attention_vjp(q, k, v, pattern, dout, dlse=dlse, forward=answer, **options)

    for ours, same in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, same)


def test_a_forward_pass_that_is_given_is_used():
    q, k, v, dout, _ = draw()
    out, lse = kernels.attention(q, k, v, sr.Causal())
    want = kernels.attention_vjp(q, k, v, sr.Causal(), dout)
    got = kernels.attention_vjp(q, k, v, sr.Causal(), dout, forward=sr.Attention(out, lse + 1))

    np.testing.assert_allclose(got.dv, want.dv / np.e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_forward_pass_that_was_rounded_keeps_gradients_within_their_bound(name):
    """D = dout . out of a rounded out; the decode kernel's forward; scores of every size."""
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)
    pattern = sr.Causal() & sr.SlidingWindow(60, 0)
    for m, n, size in ((67, 67, 1), (67, 67, 5), (131, 131, 0.01), (3, 4099, 2)):
        q, k, v, dout, dlse = (size * x for x in draw(m, n, b=1))
        q, k, v, dout, dlse = (x.astype(dtype) for x in (q, k, v + 3, dout, dlse))
        options = {"dlse": dlse, "sink_logits": np.arange(4.0)}
        answer = kernels.attention(q, k, v, pattern, sink_logits=options["sink_logits"])
        got = kernels.attention_vjp(q, k, v, pattern, dout, forward=answer, **options)
        want = sr.attention_vjp(q, k, v, pattern, dout, **options)
        most = sr.error_bound_vjp(
            q, k, v, pattern, dout, arithmetic=arithmetic_of(name), output=name, **options
        )
        for which, ours, exact, limit in zip(NAMES, got, want, most, strict=True):
            if exact is not None:
                error = np.abs(ours.astype(np.float64) - exact)
                assert (error <= limit).all(), (which, m, n, size)


def test_a_forward_pass_of_other_arguments_is_refused():
    q, k, v, dout, _ = draw()
    out, lse = kernels.attention(q, k, v, sr.Causal())
    sentence = r"forward.out must be float32 of shape \(2, 4, 67, 11\), as attention .*, got "
    for wrong in (out[:1], out.astype(np.float64), q):
        with pytest.raises(ValueError, match=sentence + wrong.dtype.name):
            kernels.attention_vjp(q, k, v, sr.Causal(), dout, forward=sr.Attention(wrong, lse))
    with pytest.raises(ValueError, match=r"forward.lse must be float64 of shape \(2, 4, 67\), as"):
        kernels.attention_vjp(
            q, k, v, sr.Causal(), dout.astype(np.float64), forward=sr.Attention(out, lse)
        )
    with pytest.raises(TypeError, match=r"forward must be an Attention\(out, lse\), got tuple"):
        kernels.attention_vjp(q, k, v, sr.Causal(), dout, forward=(out, lse))


def test_any_memory_layout_and_leading_axes():
    arrays = draw(b=6)
    q, k, v, dout, _ = arrays
    want = kernels.attention_vjp(q, k, v, sr.Causal(), dout)
    split = (x.reshape(2, 3, *x.shape[1:]) for x in arrays[:4])
    q2, k2, v2, dout2 = split
    got = kernels.attention_vjp(q2, k2, v2, sr.Causal(), dout2)
    for ours, same in zip(got[:3], want[:3], strict=True):
        np.testing.assert_array_equal(ours.reshape(same.shape), same)
    turned = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)[..., ::-1] for x in arrays[:4]]
    q3, k3, v3, dout3 = (x[..., ::-1] for x in turned)
    got = kernels.attention_vjp(q3, k3, v3, sr.Causal(), np.asfortranarray(dout3))
    for ours, same in zip(got[:3], want[:3], strict=True):
        np.testing.assert_array_equal(ours, same)


def test_rows_and_keys_without_pairs_have_gradient_zero(kind):
    q, k, v, dout, dlse = draw(70, 67)
    hidden = sr.Causal() - sr.SlidingWindow(1, 0)
    k[:, :, 65:], v[:, :, 65:], dout[:, :, :5] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        got = check(q, k, v, hidden, dout, dlse, sink_logits=np.zeros(4))

    assert not got.dq[:, :, :5].any()
    assert not got.dk[:, :, 65:].any()
    assert not got.dv[:, :, 65:].any()
    assert all(np.isfinite(x).all() for x in (*got[:3], got.dsink_logits))


@pytest.mark.parametrize(
    ("softcap", "bad"),
    [
        (None, np.nan), (1.5, np.inf),
        *(pytest.param(*x, marks=pytest.mark.slow)
          for x in ((None, np.inf), (None, -np.inf), (1.5, np.nan), (1.5, -np.inf))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("which", ["q", "k", "v", "dout", "dlse"])
def test_what_is_not_finite_reaches_what_sees_it_and_nothing_else(which, bad, softcap, kind):
    arrays = dict(zip(("q", "k", "v", "dout", "dlse"), draw(dtype=np.float64), strict=True))
    at = {"k": (1, 0, 77), "v": (1, 1, 3), "dlse": (0, 1, 33)}.get(which, (0, 3, 21))
    arrays[which][at if which == "dlse" else (*at, 2)] = bad
    if which in {"v", "dout"}:
        arrays[which][0, 0, [5, 66], :2] = bad
    q, k, v, dout, dlse = arrays.values()
    with np.errstate(invalid="ignore"):
        got = check(q, k, v, sr.SlidingWindow(40, 3), dout, dlse, softcap=softcap)

    assert not all(np.isfinite(x).all() for x in got[:3])
    assert np.isfinite(got.dq).any()
    assert np.isfinite(got.dk).any()


def test_scores_that_are_not_finite(kind):
    q, k, v, *above = draw(dtype=np.float64)
    bias = np.zeros((67, 131))
    bias[:, ::3], bias[5], bias[7, 20], bias[9, 21] = -np.inf, -np.inf, np.inf, np.nan
    k[:, :, 60], v[:, :, ::3] = 7, np.nan  # at keys not seen, as their score is -inf
    with np.errstate(invalid="ignore"):
        got = check(q, k, v, sr.SlidingWindow(100, 3), *above, bias=bias)

    assert np.isnan(got.dq[0, 0]).any(axis=-1).nonzero()[0].tolist() == [7, 9]
    assert not got.dq[:, :, 5].any()
    assert not got.dbias[5].any()


def test_keys_far_below_do_no_harm(kind):
    q, k, v, *above = draw(h=2, g=1)
    check(30 * q, 30 * k, v, sr.Causal(), *above)
    check(300 * q, 300 * k, v, sr.Causal(), *above)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_depend_on_neither_threads_nor_batch(dtype, kind, monkeypatch):
    from sparse_ref.kernels import threads

    q, k, v, dout, dlse = draw(b=5, dtype=dtype)
    monkeypatch.setattr(threads, "SMALL", 0)

    def call(rows, **options):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", options.pop("threads", 1))
        return kernels.attention_vjp(
            q[rows], k[rows], v[rows], sr.Causal(), dout[rows], dlse=dlse[rows], **options
        )

    every = np.s_[:]
    for options in (
        {"alibi_slopes": np.ones(4), "sink_logits": np.zeros(4)}, {"bias": np.ones((67, 131))},
        {"bias": np.ones((4, 1, 131))}, {"bias": sr.RelativeBias(np.ones(9), 8)},
    ):  # fmt: skip
        want = call(every, **options)
        for count in (2, 3):
            got = call(every, threads=count, **options)
            for ours, same in zip(got, want, strict=True):
                np.testing.assert_array_equal(ours, same)
    halves = [call(rows, **options)[:3] for rows in (np.s_[:2], np.s_[2:])]
    for ours, same in zip(zip(*halves, strict=True), want[:3], strict=True):
        np.testing.assert_array_equal(np.concatenate(ours), same)


def test_many_python_threads_may_call():
    q, k, v, dout, _ = draw(257, 257, h=4)
    plan = kernels.plan(sr.Causal(), 257, 257, heads=4, kv_heads=2, head_dim=13, dtype="float32")
    want, got = kernels.attention_vjp(q, k, v, sr.Causal(), dout, plan=plan), [None] * 4

    def call(i):
        got[i] = kernels.attention_vjp(q, k, v, sr.Causal(), dout, plan=plan)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    for result in got:
        for ours, same in zip(result[:3], want[:3], strict=True):
            np.testing.assert_array_equal(ours, same)


def test_a_layout_is_transposed_once_and_goes_with_its_plan():
    q, k, v, dout, _ = draw()
    plan = kernels.plan(sr.Causal(), 67, 131, heads=4, kv_heads=2, head_dim=13, dtype="float32")
    before = len(backward._transposed)
    kernels.attention_vjp(q, k, v, sr.Causal(), dout, plan=plan)
    first = backward._transposed[plan.parts[0]]
    kernels.attention_vjp(q, k, v, sr.Causal(), dout, plan=plan)

    assert backward._transposed[plan.parts[0]] is first
    del plan
    assert len(backward._transposed) == before


def test_what_does_not_fit_is_refused():
    q, k, v, dout, dlse = draw()
    plan = kernels.plan(sr.Causal(), 67, 131, heads=4, kv_heads=2, head_dim=13, dtype="float32")
    with pytest.raises(ValueError, match="plan must be for pattern Full"):
        kernels.attention_vjp(q, k, v, sr.Full(), dout, plan=plan)
    with pytest.raises(ValueError, match=r"dout must have shape \(2, 4, 67, 11\), got \(2, 4"):
        kernels.attention_vjp(q, k, v, sr.Causal(), dlse)
    with pytest.raises(ValueError, match=r"dlse must have shape \(2, 4, 67\), got"):
        kernels.attention_vjp(q, k, v, sr.Causal(), dout, dlse=dout)
    with pytest.raises(TypeError, match="dout must hold real floating-point numbers, got int64"):
        kernels.attention_vjp(q, k, v, sr.Causal(), np.ones((2, 4, 67, 11), dtype=np.int64))
    with pytest.raises(ValueError, match=r"max_bytes must be more than the \d+ needed, got 1000"):
        kernels.attention_vjp(q, k, v, sr.Causal(), dout, max_bytes=1000)
    kernels.attention_vjp(q, k, v, sr.Causal(), dout, max_bytes=10**6)


def test_arguments_have_one_type_whatever_they_are():
    """Each kernel is compiled once for float32 and once for float64: seconds each."""
    for module in (tile_gradients, row_gradients):
        for kernel in (module.queries, module.keys):
            assert len(kernel.signatures) <= 2


SMALL_CASES = """
    import numpy as np, sparse_ref as sr
    from tests.test_kernels import force
    from tests.test_kernel_gradients import check, draw
    class Patch:
        setattr = staticmethod(setattr)
    for kind in ("tiles", "rows"):
        force(Patch, kind)
        for options in ({}, {"softcap": 0.7}, {"sink_logits": np.arange(4.0)},
                        {"bias": np.ones((5, 1)), "alibi_slopes": np.ones(4)},
                        {"bias": sr.RelativeBias(np.ones(3), 1)}):
            q, k, v, *above = draw(5, 7, b=1, d=3, e=2)
            check(q, k, v, sr.Multi([sr.Causal(), sr.Strided(2)]), *above, **options)
            v[0, 0, 3, 1], k[0, 1, 6], q[0, 3, 2, 1], above[0][0, 0, 1, 0] = np.nan, *[np.inf] * 3
            with np.errstate(invalid="ignore"):
                check(q, k, v, sr.Causal(), *above, **options)
        q, k, v, *above = draw(67, 71, b=1, h=2, d=2, e=1)
        check(q, k, v, sr.SlidingWindow(9, 9), *above)
    from sparse_ref.kernels import vectors
    print(vectors.product.__module__)
"""


def test_kernels_run_without_compiling():
    """Python checks every index, which compiled code does not."""
    printed = in_a_process(SMALL_CASES, NUMBA_DISABLE_JIT="1")

    assert printed == "sparse_ref.kernels.plain"


@pytest.mark.slow  # uncompiled they are run above
def test_plain_loops_do_what_the_vector_instructions_do():
    assert in_a_process(SMALL_CASES, SPARSE_REF_PLAIN="1") == "sparse_ref.kernels.plain"
