"""The decode kernel: few queries, long caches, against the oracle and within its bound."""

import numpy as np
import pytest

import sparse_ref as sr
from sparse_ref.layouts.csr import frame_csr
from sparse_ref.patterns import Frame
from sparse_ref.patterns.dense import frame_of
from sparse_ref.problem import problem
from sparse_ref.results import Attention
from tests.test_layouts import FAMILIES

numba = pytest.importorskip("numba")
pytest.importorskip("sparse_ref.kernels")
from sparse_ref.kernels import decode, lists, runs, threads  # noqa: E402
from sparse_ref.kernels.arguments import scores, tensors  # noqa: E402
from sparse_ref.kernels.lists import CHUNK  # noqa: E402

RNG = np.random.default_rng(11)
N = 2 * CHUNK + 67  # three chunks, the last one ragged


def draw(m, n, *, b=2, h=6, g=2, d=5, e=3, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((b, h, m, d), (b, g, n, d), (b, g, n, e))
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def attention(q, k, v, pattern, **options):
    """By the decode kernel alone, into buffers full of NaN."""
    given = problem(q, k, v, pattern, **options)
    (b, h, m, _), e, kind = given.q.shape, given.v.shape[-1], given.q.dtype
    out, lse = np.full((b, h, m, e), np.nan, kind), np.full((b, h, m), np.nan, kind)
    layout, slots = decode.of_problem(given)
    decode.attend(tensors(given, out, lse), layout, scores(given), slots, work=1e9)
    return Attention(given.shaped(out), given.shaped(lse))


def check(q, k, v, pattern, **options):
    """Within the bound wherever the oracle is finite, and elsewhere what the oracle says."""
    name = q.dtype.name
    got = attention(q, k, v, pattern, **options)
    want = sr.attention(q, k, v, pattern, **options)
    bound = sr.error_bound(q, k, v, pattern, arithmetic=name, output=name, **options)
    for ours, exact, limit in zip(got, want, bound, strict=True):
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(ours[~finite], exact[~finite])
        error = np.abs(ours[finite].astype(np.float64) - exact[finite])
        worst = np.max(error - limit[finite], initial=0)
        assert worst <= 0, f"error exceeds the bound by {worst}"
    return got


def expanded(found, n):
    """Runs as multiplicities (m, n)."""
    counts = np.zeros((len(found.indptr) - 1, n), dtype=np.int64)
    for i in range(len(counts)):
        for j in range(*found.indptr[i : i + 2]):
            assert found.start[j] < found.stop[j]
            assert (counts[i, found.start[j] :] == 0).all(), "runs must ascend"
            counts[i, found.start[j] : found.stop[j]] = found.times[j]
    return counts


def test_runs_of_a_picture():
    pattern = sr.Multi([sr.SlidingWindow(2, 0), sr.Sink(1)])
    found = runs.runs_of(pattern, frame_of(pattern, 3, 5))

    assert pattern.counts(3, 5)[0].tolist() == [[2, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 1, 1, 1]]
    assert found.indptr.tolist() == [0, 2, 3, 5]
    assert found.start.tolist() == [0, 1, 0, 0, 2]
    assert found.stop.tolist() == [1, 3, 4, 1, 5]
    assert found.times.tolist() == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_runs_are_the_mask(pattern):
    for m, n in ((17, 19), (1, 23), (3, 0), (0, 3), (16, 1)):
        for head in range(pattern.heads):
            one = pattern.for_batch(0).at(head)
            frame, want = frame_of(one, m, n), one.counts(m, n)[0]
            np.testing.assert_array_equal(expanded(runs.runs_of(one, frame), n), want)
            np.testing.assert_array_equal(expanded(runs.of_csr(frame_csr(one, frame)), n), want)


@pytest.mark.parametrize("n", [runs.SPAN, 3 * runs.SPAN - 1, 4 * runs.SPAN + 3])
def test_runs_over_spans_of_slots_in_any_order(n):
    spaces = {
        "plain": np.arange(n),
        "left padding": np.arange(n) - 700,
        "right padding": np.where(np.arange(n) < n - 600, np.arange(n), -1),
        "ring": np.roll(np.arange(n), 311),
        "shuffled": RNG.permutation(n),
        "empty": np.full(n, -1),
    }
    patterns = (
        sr.Causal(), sr.Full(), ~sr.Full(), sr.SlidingWindow(600, 0), sr.Strided(7),
        sr.Multi([sr.SlidingWindow(700, 3), sr.Sink(600), sr.Strided(2)]),
        sr.SlidingWindow(600, 0) | sr.Sink(3), sr.RandomKeys(5, 0, n),
    )  # fmt: skip
    for name, k in spaces.items():
        for pattern in patterns:
            frame = Frame(np.arange(n - 3, n), k)
            want = pattern.counts(3, n, q_start=n - 3, kv_positions=k)[0]
            got = expanded(runs.runs_of(pattern, frame), n)
            np.testing.assert_array_equal(got, want, err_msg=f"{pattern} {name}")


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_every_pattern(pattern):
    for m, n in ((1, 23), (3, 19)):
        check(*draw(m, n, h=4), pattern)


LARGE = {
    "full": sr.Full(),
    "causal": sr.Causal(),
    "window": sr.SlidingWindow(CHUNK + 9, 0),
    "sinks": sr.Causal() & (sr.SlidingWindow(70, 0) | sr.Sink(5)),
    "strided": sr.Causal() & sr.Strided(7),
    "random": sr.RandomKeys(7, 0, N),
    "multi": sr.Multi([sr.Causal(), sr.SlidingWindow(9, 9), sr.Strided(7)]),
    "heads": sr.PerHead([sr.Causal(), sr.Strided(31), ~sr.Full()]),
    "batches": sr.PerBatch([sr.PrefixLM(70), sr.SlidingWindow(100, 3)]),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("m", [1, 3, decode.MOST])
def test_many_chunks(name, m):
    check(*draw(m, N), LARGE[name])


OPTIONS = {
    "negative-scale": {"scale": -0.3},
    "softcap": {"softcap": 0.7},
    "bias": {"bias": RNG.standard_normal((2, 6, 3, N))},
    "bias-slots": {"bias": RNG.standard_normal(N).astype(np.float32)},
    "relative": {"bias": sr.RelativeBias(RNG.standard_normal((6, 37)), 20)},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0, 1.0, 0.01])},
    "sinks": {"sink_logits": np.array([0.1, -np.inf, 2.0, 30.0, 0.0, -5.0])},
    "lengths": {"kv_lengths": np.array([0, CHUNK + 3]), "q_start": np.array([5, CHUNK])},
    "left-padding": {
        "kv_positions": np.arange(N) - np.array([[13], [CHUNK + 1]]),
        "q_start": N - 3 - np.array([13, CHUNK + 1]),
    },
    "ring": {"kv_positions": np.stack([np.roll(np.arange(N), s) for s in (9, -CHUNK)])},
    "everything": {
        "scale": 0.9, "softcap": 2.0, "bias": RNG.standard_normal((3, N)),
        "alibi_slopes": np.linspace(0, 1, 6), "sink_logits": np.arange(6.0),
        "kv_lengths": N - 5, "q_start": np.array([N - 9, 20]),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name):
    q, k, v = draw(3, N)
    for pattern in (sr.Causal(), sr.Multi([sr.SlidingWindow(CHUNK, 0), sr.Strided(5)])):
        check(q, k, v, pattern, **OPTIONS[name])


@pytest.mark.parametrize(("h", "g"), [(1, 1), (7, 1), (5, 5), (36, 3)])
def test_heads_that_share_keys(h, g):
    for m in (1, 4, 5):
        check(*draw(m, 130, h=h, g=g, b=1), sr.PerHead([sr.Causal(), sr.SlidingWindow(9, 0)]))


@pytest.mark.parametrize(("d", "e"), [(1, 9), (7, 1), (64, 64), (65, 6), (33, 96)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_head_sizes(d, e, dtype):
    check(*draw(2, 131, d=d, e=e, dtype=dtype), sr.Causal())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_rows_that_see_it_and_no_other(bad):
    pattern = sr.PerHead([sr.SlidingWindow(40, 0), sr.Causal()])
    q, k, v = draw(3, N)
    clean = check(q, k, v, pattern)
    v[0, 0, [N - 43, N - 1], 2], v[0, 1, 128] = bad, bad
    with np.errstate(invalid="ignore"):
        got = check(q, k, v, pattern)
    unseen = np.isfinite(got.out).all(axis=-1)

    assert not unseen.all()
    np.testing.assert_array_equal(got.out[unseen], clean.out[unseen])
    np.testing.assert_array_equal(got.lse[unseen], clean.lse[unseen])
    k[1, 1, 7], q[1, 5, 1] = bad, bad
    with np.errstate(invalid="ignore"):
        check(q, k, v, pattern)


def test_scores_that_are_not_finite():
    q, k, v = draw(4, N)
    bias = np.zeros((4, N))
    bias[:, ::3], bias[0], bias[1, 20], bias[3, 21] = -np.inf, -np.inf, np.inf, np.nan
    v[:, :, ::3] = np.nan  # at keys not seen, as their score is -inf
    got = check(q, k, v, sr.Causal(), bias=bias)

    assert np.isnan(got.out[0, 0]).any(axis=-1).nonzero()[0].tolist() == [1, 3]
    assert (got.lse[:, :, 0] == -np.inf).all()


def test_weights_that_underflow_do_no_harm():
    q, k, v = draw(2, N)
    check(30 * q, 30 * k, v, sr.Causal())
    check(300 * q, 300 * k, v, sr.Causal())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_depend_on_neither_threads_nor_batch(dtype, monkeypatch):
    q, k, v = draw(3, N, b=3, dtype=dtype)
    starts, options = np.array([N - 3, 70, N - 9]), {"alibi_slopes": np.ones(6)}
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", count)
        monkeypatch.setattr(threads, "SMALL", 0)
        results.append(attention(q, k, v, sr.Causal(), q_start=starts, **options))
    parts = [
        attention(q[s], k[s], v[s], sr.Causal(), q_start=starts[s], **options)
        for s in (np.s_[:1], np.s_[1:])
    ]
    results.append([np.concatenate(side) for side in zip(*parts, strict=True)])
    for out, lse in results[1:]:
        np.testing.assert_array_equal(out, results[0].out)
        np.testing.assert_array_equal(lse, results[0].lse)


def test_a_layout_of_one_row_serves_many():
    """As a plan has it: the slots' positions are 0, 1, 2, ... from `first` on."""
    q, k, v = draw(3, N)
    pattern = sr.PerHead([sr.Causal(), sr.SlidingWindow(50, 0)])
    given = problem(q, k, v, pattern)
    want, got = attention(q, k, v, pattern), np.full((2, 6, 3, 3), np.nan, "f4")
    one = lists.layout([[pattern.at(h) for h in range(6)]], given.frames[:1], 2)
    slots = decode.of_problem(given)[1]
    x = tensors(given, got, np.empty((2, 6, 3), "f4"))
    decode.attend(x, one, scores(given), slots, work=0)

    np.testing.assert_array_equal(got, want.out)


def test_pairs_of_a_layout():
    pattern = sr.PerHead([sr.Causal(), sr.SlidingWindow(1, 0), ~sr.Full()])
    frames = [frame_of(pattern, 2, 5, start) for start in (3, 0)]
    found = lists.layout([[pattern.at(h) for h in range(6)]] * 2, frames, 3)

    assert lists.pairs(found, 2) == 2 * (4 + 5 + 2 + 2) + 2 * (1 + 2 + 1 + 2)


def test_its_kernels_are_compiled_once_for_each_type():
    for one in (decode.first_pass, decode.second_pass, decode.merge):
        assert len(one.signatures) <= 2
