"""The oracle against three loops, against exact anchors, and against its own laws."""

import itertools
import tracemalloc

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import sparse_ref as sr
from tests import definition

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def draw_inputs(b=2, h=3, g=1, m=5, n=7, d=2, e=3, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(s) for s in ((b, h, m, d), (b, g, n, d), (b, g, n, e)))


PATTERNS = [
    sr.Full(),
    sr.Causal() & sr.SlidingWindow(2, 0),
    sr.Causal() - sr.SlidingWindow(1, 0),  # empty rows
    sr.PerHead([sr.Causal(), sr.Strided(2), ~sr.Full()]),
    sr.Multi([sr.Causal(), sr.SlidingWindow(1, 1)]),
    sr.PerBatch([sr.PrefixLM(3), sr.Document([0, 0, 1, 1, 1, 0, 0])]),
]
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 0.7},
    "bias": {"bias": np.random.default_rng(1).standard_normal((3, 5, 7))},
    "bias-broadcast": {"bias": np.random.default_rng(1).standard_normal((2, 1, 1, 7))},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125])},
    "sinks": {"sink_logits": np.array([0.1, -np.inf, 2.0])},
    "lengths": {"kv_lengths": np.array([4, 7]), "q_start": 2},
    "positions": {"kv_positions": np.array([[3, -1, 0, 1, 2, 4, 6], [0, 1, 2, 3, 4, 5, 6]])},
    "start": {"q_start": np.array([0, 2])},
    "everything": {
        "scale": 0.9, "softcap": 2.0, "bias": np.random.default_rng(2).standard_normal((5, 7)),
        "alibi_slopes": np.array([0.5, 0.25, 0.125]), "sink_logits": np.array([0.1, 1.0, 2.0]),
        "kv_lengths": 6, "q_start": np.array([1, 2]),
    },
}  # fmt: skip


def by_loops(q, k, v, pattern, **options):
    """`definition.attention` for every batch row and head."""
    (b, h, m, d), (g, n) = q.shape, k.shape[1:3]
    out, lse = np.zeros((b, h, m, v.shape[-1])), np.zeros((b, h, m))
    starts = np.broadcast_to(options.get("q_start", n - m), b)
    slots = np.broadcast_to(options.get("kv_positions", np.arange(n)), (b, n))
    lengths = np.broadcast_to(options.get("kv_lengths", n), b)
    bias = options.get("bias")
    for i, head in itertools.product(range(b), range(h)):
        t = np.where(np.arange(n) < lengths[i], slots[i], -1)
        one = pattern.for_batch(i).at(head)
        p = [int(starts[i]) + r for r in range(m)]
        parts = [
            [[int(slot >= 0 and part(row, int(slot))) for slot in t] for row in p]
            for part in one.parts
        ]
        allowed = np.sum(parts, axis=0).tolist()
        out[i, head], lse[i, head] = definition.attention(
            q[i, head].tolist(), k[i, head // (h // g)].tolist(), v[i, head // (h // g)].tolist(),
            allowed, scale=options.get("scale", d**-0.5), softcap=options.get("softcap"),
            bias=None if bias is None else np.broadcast_to(bias, (b, h, m, n))[i, head].tolist(),
            slope=options["alibi_slopes"][head] if "alibi_slopes" in options else None,
            sink=options["sink_logits"][head] if "sink_logits" in options else None,
            p=p, t=t.tolist(),
        )  # fmt: skip
    return out, lse


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_equals_three_loops(pattern, options):
    q, k, v = draw_inputs()

    got = sr.attention(q, k, v, pattern, **options)

    out, lse = by_loops(q, k, v, pattern, **options)
    np.testing.assert_allclose(got.out, out, **CLOSE)
    np.testing.assert_allclose(got.lse, lse, **CLOSE)


def test_relative_bias_is_the_dense_bias_of_its_distances():
    q, k, v = draw_inputs()
    table = np.random.default_rng(3).standard_normal((3, 6))
    distance = np.arange(7) - (np.arange(5)[:, None] + 2)
    dense = table[:, np.clip(distance + 2, 0, 5)]

    got = sr.attention(q, k, v, sr.Causal(), bias=sr.RelativeBias(table, left=2))

    np.testing.assert_array_equal(got.out, sr.attention(q, k, v, sr.Causal(), bias=dense).out)


def test_fifty_digits_agree():
    q, k, v = draw_inputs(b=1, h=1, m=3, n=5)
    got = sr.attention(q, k, v, sr.Causal(), softcap=1.5, sink_logits=np.array([0.3]))

    with mpmath.workdps(50):
        for i in range(3):
            dots = [mpmath.fdot(q[0, 0, i], k[0, 0, j]) for j in range(i + 3)]
            s = [mpmath.mpf("1.5") * mpmath.tanh(x / mpmath.sqrt(2) / 1.5) for x in dots]
            total = mpmath.fsum(map(mpmath.exp, s)) + mpmath.exp(mpmath.mpf(0.3))
            for c in range(3):
                want = mpmath.fsum(mpmath.exp(x) * v[0, 0, j, c] for j, x in enumerate(s)) / total
                assert abs(got.out[0, 0, i, c] - want) < 1e-15
            assert abs(got.lse[0, 0, i] - mpmath.log(total)) < 1e-15


def test_exact_rationals_stay_exact():
    """q = 0: the output is the mean of the allowed values, here of powers of two."""
    v = 2.0 ** np.arange(4)[None, :, None]
    out = sr.attention(np.zeros((1, 4, 1)), np.ones((1, 4, 1)), v, sr.SlidingWindow(1, 0)).out

    assert out[0, :, 0].tolist() == [1.0, 1.5, 3.0, 6.0]


def test_a_masked_nan_is_never_read_and_an_allowed_one_poisons_its_rows():
    q, k, v = draw_inputs(m=7)
    clean = sr.attention(q, k, v, sr.SlidingWindow(1, 0)).out
    k[:, :, 3], v[:, :, 5] = np.nan, np.inf
    got = sr.attention(q, k, v, sr.SlidingWindow(1, 0))

    rows = np.isfinite(got.out).all(axis=-1)
    assert rows.tolist() == [[[True, True, True, False, False, False, False]] * 3] * 2
    np.testing.assert_array_equal(got.out[rows], clean[rows])
    assert np.isnan(got.lse[..., 3:5]).all()
    assert np.isfinite(got.lse[..., 5:]).all()


def test_a_score_of_minus_infinity_is_a_key_not_seen():
    q, k, v = draw_inputs(b=1, h=1, m=2, n=3)
    bias = np.array([[0.0, -np.inf, 0.0], [-np.inf, -np.inf, -np.inf]])
    v[0, 0, 1] = np.nan
    got = sr.attention(q, k, v, sr.Full(), bias=bias)
    want = sr.attention(q[:, :, :1], k, v, sr.Keys([0, 2]))

    np.testing.assert_array_equal(got.out[0, 0, 0], want.out[0, 0, 0])
    assert (got.out[0, 0, 1] == 0).all()
    assert got.lse[0, 0, 1] == -np.inf


def test_a_score_of_plus_infinity_is_nan_in_its_row_only():
    q, k, v = draw_inputs(b=1, h=1, m=2, n=3)
    got = sr.attention(q, k, v, sr.Full(), bias=np.array([[np.inf, 0, 0], [0, 0, 0]]))

    assert np.isnan(got.out[0, 0]).all(axis=-1).tolist() == [True, False]
    assert np.isnan(got.lse[0, 0]).tolist() == [True, False]


def test_an_empty_row_is_zero_and_a_sink_is_its_lse():
    q, k, v = draw_inputs(b=1)
    bare = sr.attention(q, k, v, ~sr.Full())
    sink = sr.attention(q, k, v, ~sr.Full(), sink_logits=np.array([1.0, -np.inf, 0.5]))

    assert not bare.out.any()
    assert (bare.lse == -np.inf).all()
    assert not sink.out.any()
    assert sink.lse[0, :, 0].tolist() == [1.0, -np.inf, 0.5]


@pytest.mark.parametrize("shape", [(2, 3, 0, 7), (2, 3, 5, 0), (0, 3, 5, 7), (2, 3, 0, 0)])
def test_nothing_is_answered_with_nothing(shape):
    b, h, m, n = shape
    got = sr.attention(*draw_inputs(b=b, h=h, m=m, n=n), sr.Causal())

    assert got.out.shape == (b, h, m, 3)
    assert (got.lse == -np.inf).all()


def test_any_memory_layout_and_leading_axes_are_accepted():
    q, k, v = draw_inputs(b=6)
    want = sr.attention(q, k, v, sr.Causal())
    split = [x.reshape(2, 3, *x.shape[1:]) for x in (q, k, v)]
    odd = [np.asfortranarray(x)[:, :, ::-1][:, :, ::-1] for x in (q, k, v)]
    for x in odd:
        x.setflags(write=False)

    np.testing.assert_array_equal(
        sr.attention(*split, sr.Causal()).out.reshape(want.out.shape), want.out
    )
    np.testing.assert_array_equal(sr.attention(*odd, sr.Causal()).out, want.out)


def test_a_decode_step_is_the_last_row_and_padding_is_an_offset():
    q, k, v = draw_inputs(m=7)
    pattern = sr.Causal() & (sr.SlidingWindow(2, 0) | sr.Sink(1))
    whole = sr.attention(q, k, v, pattern)
    last = sr.attention(q[:, :, -1:], k, v, pattern)
    pad = [np.pad(x, ((0, 0), (0, 0), (3, 0), (0, 0)), constant_values=np.nan) for x in (q, k, v)]
    left = sr.attention(*pad, pattern, kv_positions=np.arange(10) - 3, q_start=-3)

    np.testing.assert_array_equal(last.out[:, :, 0], whole.out[:, :, -1])
    np.testing.assert_array_equal(left.out[:, :, 3:], whole.out)


def test_a_ring_cache_is_a_permutation_of_its_keys():
    q, k, v = draw_inputs(m=1)
    order = np.array([4, 5, 6, 0, 1, 2, 3])
    pattern = sr.Causal() & sr.SlidingWindow(4, 0)
    ring = sr.attention(q, k[:, :, order], v[:, :, order], pattern, kv_positions=order)

    np.testing.assert_allclose(ring.out, sr.attention(q, k, v, pattern).out, **CLOSE)


@given(cut=st.integers(0, 7), seed=st.integers(0, 9))
def test_splitting_the_keys_and_merging_by_lse_changes_nothing(cut, seed):
    q, k, v = draw_inputs(seed=seed)
    pattern = sr.Causal() - sr.Strided(3)
    whole = sr.attention(q, k, v, pattern)
    parts = [
        sr.attention(q, k, v, pattern & sr.Keys(range(*r))) for r in ((0, cut), (cut, 7), (7, 9))
    ]
    merged = sr.merge(*parts)
    nested = sr.merge(sr.merge(parts[0], parts[1]), parts[2])

    for got in (merged, nested):
        np.testing.assert_allclose(got.out, whole.out, **CLOSE)
        np.testing.assert_allclose(got.lse, whole.lse, **CLOSE)


def test_a_multiset_is_the_merge_of_its_parts():
    q, k, v = draw_inputs()
    parts = [sr.Causal(), sr.SlidingWindow(1, 1), sr.Sink(2)]
    whole = sr.attention(q, k, v, sr.Multi(parts))
    merged = sr.merge(*(sr.attention(q, k, v, part) for part in parts))

    np.testing.assert_allclose(merged.out, whole.out, **CLOSE)
    np.testing.assert_allclose(merged.lse, whole.lse, **CLOSE)


def test_packed_documents_are_separate_sequences():
    q, k, v = draw_inputs(m=7)
    packed = sr.attention(q, k, v, sr.WithinDocument(sr.Causal(), [0, 0, 0, 1, 1, 1, 1]))
    alone = [
        sr.attention(q[:, :, s], k[:, :, s], v[:, :, s], sr.Causal())
        for s in (np.s_[:3], np.s_[3:])
    ]

    np.testing.assert_array_equal(packed.out, np.concatenate([a.out for a in alone], axis=2))


class Chosen:
    """Keys chosen for each batch row and head by something that is no pattern."""

    def __init__(self, masks):
        self.masks = masks

    def row_csr(self, frame, batch, head):
        return sparse.csr_array(self.masks[batch, head].astype(np.int32))


@pytest.mark.parametrize("module", ["sparse_ref", "sparse_ref.kernels"])
def test_what_names_the_keys_need_not_be_a_pattern(module):
    attention = pytest.importorskip(module).attention
    q, k, v = draw_inputs()
    masks = np.random.default_rng(4).random((2, 3, 5, 7)) < 0.4
    got = attention(q, k, v, Chosen(masks), q_start=0)
    heads = [sr.PerHead([sr.from_mask(mask) for mask in row]) for row in masks]

    want = sr.attention(q, k, v, sr.PerBatch(heads), q_start=0)
    np.testing.assert_allclose(got.out, want.out, **CLOSE)
    np.testing.assert_allclose(got.lse, want.lse, **CLOSE)


def test_weights_are_the_probabilities():
    q, k, v = draw_inputs()
    pattern, sinks = sr.Causal(), np.array([0.5, 0.0, -np.inf])
    p = sr.weights(q, k, pattern, head=1, batch=1, sink_logits=sinks)

    out = sr.attention(q, k, v, pattern, sink_logits=sinks).out
    np.testing.assert_allclose(p @ v[1, 0], out[1, 1], **CLOSE)
    assert (p.sum(axis=1) < 1).all()


def test_memory_follows_the_pairs():
    """65,536 tokens, a window of 256: a dense float64 mask alone would be 32 GiB."""
    n = 65_536
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, n, 8)) for _ in range(3))
    tracemalloc.start()
    out = sr.attention(q, k, v, sr.Causal() & sr.SlidingWindow(255, 0)).out
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    tail = np.exp(k[0, -256:] @ q[0, -1] * 8**-0.5)
    np.testing.assert_allclose(out[0, -1], tail @ v[0, -256:] / tail.sum(), **CLOSE)
    assert peak < 2 * 2**30


GOOD = {"q": np.zeros((1, 4, 3, 2)), "k": np.zeros((1, 2, 5, 2)), "v": np.zeros((1, 2, 5, 2))}
BAD = {
    "q must hold real floating-point numbers, got int64": {"q": np.zeros((1, 4, 3, 2), int)},
    "q must have at least 3 axes": {"q": np.zeros((3, 2))},
    "k must have q's leading axes": {"k": np.zeros((2, 2, 5, 2))},
    "q and k must have one head size >= 1, got 2 and 3": {"k": np.zeros((1, 2, 5, 3))},
    "v must have k's heads and length": {"v": np.zeros((1, 2, 6, 2))},
    "k must have a number of heads that divides q's 4, got 3": {
        "k": np.zeros((1, 3, 5, 2)), "v": np.zeros((1, 3, 5, 2))},
    "pattern must be a pattern, got 'causal'": {"pattern": "causal"},
    "pattern must be for a batch of 1, got one for 2": {"pattern": sr.PerBatch([sr.Full()] * 2)},
    "scale must be a finite number, got nan": {"scale": np.nan},
    "softcap must be > 0 or None, got 0": {"softcap": 0},
    "bias must broadcast to": {"bias": np.zeros((2, 3, 5))},
    "alibi_slopes must have one entry for each of 4 heads": {"alibi_slopes": np.zeros(3)},
    "sink_logits must have one entry for each of 4 heads": {"sink_logits": np.zeros((4, 1))},
    "q_start is needed with kv_lengths when m < n": {"kv_lengths": 4},
    "kv_lengths must be in [0, 5], got 6": {"kv_lengths": 6, "q_start": 0},
    "kv_lengths must hold integers, got float64": {"kv_lengths": np.nan, "q_start": 0},
    "kv_positions must broadcast to (1, 5), got (4,)": {"kv_positions": np.arange(4)},
    "q_start must broadcast to (1,), got (2,)": {"q_start": np.array([0, 1])},
    "covers, got a query at position 4": {"pattern": sr.Document([0, 0])},
    "document_ids is an input of an exported graph": {
        "pattern": sr.Document(sr.Runtime("document_ids"))},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(message):
    arguments = {**GOOD, "pattern": sr.Causal(), **BAD[message]}

    with pytest.raises((TypeError, ValueError)) as caught:
        sr.attention(**arguments)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
