"""ONNX: the operator Attention 23, 24 and 25 in two runtimes."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, inputs
from tests.witnesses.models import in_ort, model

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.witness


def in_reference(made, feeds):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(made).run(None, feeds)


runtimes = pytest.mark.parametrize(
    "run", [in_ort, in_reference], ids=["onnxruntime", "ReferenceEvaluator"]
)
versions = pytest.mark.parametrize("version", [23, 24, 25])


def attention(run, version, feeds, **attributes):
    """Y of one Attention node; `feeds` are named as the inputs of the operator."""
    names = ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
    given = [name if name in feeds else "" for name in names]
    while not given[-1]:
        given.pop()
    outputs = ["Y", "present_key", "present_value"] if "past_key" in feeds else ["Y"]
    node = onnx.helper.make_node("Attention", given, outputs, **attributes)
    return run(model(node, feeds, version), feeds)[0]


def named(q, k, v, **others):
    return {"Q": q, "K": k, "V": v, **others}


PATTERNS = [
    sr.Causal() & sr.SlidingWindow(3, 0),
    ~sr.Full(),
    sr.Global([2]) | sr.Strided(3),
    sr.Keys([17]) & sr.Rows(range(7, 12)),  # most rows see no key
    sr.PerHead([sr.Chunked(5), sr.Xor([1, 2])]),
]


@runtimes
@versions
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_bool_mask(pattern, version, run):
    q, k, v = inputs()
    feeds = named(q, k, v, attn_mask=pattern.mask(13, 19, heads=6)[None])

    agrees(attention(run, version, feeds, softcap=1.5), q, k, v, pattern, softcap=1.5)


@runtimes
@versions
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_mask_of_minus_infinities_on_top_of_a_bias(pattern, version, run):
    q, k, v = inputs()
    bias = np.random.default_rng(1).integers(-64, 65, (6, 13, 19)) / 32
    added = np.where(pattern.mask(13, 19, heads=6), bias, -np.inf).astype(np.float32)
    got = attention(run, version, named(q, k, v, attn_mask=added[None]), scale=0.75)

    agrees(got, q, k, v, pattern, bias=bias, scale=0.75)


@runtimes
@versions
def test_float64_and_a_multiset(version, run):
    q, k, v = (x.astype(np.float64) for x in inputs())
    pattern = sr.Multi([sr.Causal(), sr.SlidingWindow(2, 2), sr.Sink(1), sr.Sink(5)])
    with np.errstate(divide="ignore"):
        log_counts = np.log(pattern.counts(13, 19))[None]
    got = attention(run, version, named(q, k, v, attn_mask=log_counts), scale=0.25)

    agrees(got, q, k, v, pattern, scale=0.25, arithmetic="float64")


@versions
def test_the_function_body_rounds_the_scale_to_float32_even_for_float64(version):
    """ORT expands it for doubles: q and k are each multiplied by sqrt(scale), in float32."""
    q, k, v = (x.astype(np.float64) for x in inputs())
    feeds = named(q, k, v)
    rounded = float(np.sqrt(np.float32(5**-0.5))) ** 2

    agrees(attention(in_reference, version, feeds), q, k, v, sr.Full(), arithmetic="float64")
    got = attention(in_ort, version, feeds)
    agrees(got, q, k, v, sr.Full(), scale=rounded, arithmetic="float64")
    assert 1e-8 < abs(got - sr.attention(q, k, v, sr.Full()).out).max() < 1e-6


@runtimes
@versions
def test_causality_is_aligned_to_the_first_key(version, run):
    q, k, v = inputs()
    got = attention(run, version, named(q, k, v), is_causal=1)

    agrees(got, q, k, v, sr.Causal(), q_start=0)


@runtimes
@versions
def test_causality_after_a_past_is_aligned_to_the_last_key(version, run):
    q, k, v = inputs()
    feeds = named(q, k[:, :, 6:], v[:, :, 6:], past_key=k[:, :, :6], past_value=v[:, :, :6])

    agrees(attention(run, version, feeds, is_causal=1), q, k, v, sr.Causal())


@runtimes
@versions
def test_heads_in_the_last_axis(version, run):
    """Three axes: head i is columns i d .. (i + 1) d."""
    q, k, v = inputs()
    flat = [x.transpose(0, 2, 1, 3).reshape(*x.shape[0::2], -1) for x in (q, k, v)]
    got = attention(run, version, named(*flat), q_num_heads=6, kv_num_heads=3, is_causal=1)

    got = got.reshape(2, 13, 6, 7).transpose(0, 2, 1, 3)
    agrees(got, q, k, v, sr.Causal(), q_start=0)


WINDOWS = [(3, 0), (0, 2), (-1, 1), (4, -1), (0, 0), (-1, -1), (40, 40)]


@runtimes
@pytest.mark.parametrize(("left", "right"), WINDOWS)
def test_windows_are_besides_the_query(left, right, run):
    q, k, v = inputs()
    sizes = {"left_window_size": left, "right_window_size": right}

    agrees(
        attention(run, 25, named(q, k, v), **sizes),
        q, k, v, sr.conventions.onnx25(left, right), q_start=0,
    )  # fmt: skip


@runtimes
@pytest.mark.parametrize(("left", "right"), WINDOWS)
def test_windows_with_causality_a_mask_and_a_past(left, right, run):
    q, k, v = inputs()
    other = sr.Strided(2) | sr.Sink(3)
    feeds = named(q, k[:, :, 6:], v[:, :, 6:], past_key=k[:, :, :6], past_value=v[:, :, :6])
    feeds["attn_mask"] = other.mask(13, 19)[0]
    got = attention(
        run, 25, feeds, is_causal=1, left_window_size=left, right_window_size=right
    )  # fmt: skip

    agrees(got, q, k, v, sr.conventions.onnx25(left, right) & other & sr.Causal())


@runtimes
@pytest.mark.parametrize("version", [24, 25])
@pytest.mark.parametrize("lengths", [(15, 19), (5, 13), (1, 0)], ids=str)
def test_causality_is_aligned_to_the_key_lengths(lengths, version, run):
    """Queries stand at the end of the valid keys; those before position 0 see none."""
    q, k, v = inputs()
    valid = np.array(lengths)
    got = attention(run, version, named(q, k, v, nonpad_kv_seqlen=valid), is_causal=1)

    agrees(got, q, k, v, sr.Causal(), kv_lengths=valid, q_start=valid - 13)


@runtimes
def test_windows_are_aligned_to_the_key_lengths(run):
    q, k, v = inputs()
    valid = np.array([7, 17])
    got = attention(
        run, 25, named(q, k, v, nonpad_kv_seqlen=valid), left_window_size=4, right_window_size=1
    )

    agrees(got, q, k, v, sr.conventions.onnx25(4, 1), kv_lengths=valid, q_start=valid - 13)


@runtimes
@pytest.mark.parametrize("version", [24, 25])
def test_key_lengths_alone(version, run):
    q, k, v = inputs()
    valid = np.array([3, 11])
    got = attention(run, version, named(q, k, v, nonpad_kv_seqlen=valid))

    agrees(got, q, k, v, sr.Full(), kv_lengths=valid, q_start=0)


@versions
def test_onnxruntime_lets_a_masked_nan_through_and_the_oracle_does_not(version):
    """0 x NaN, as in torch."""
    q, k, v = inputs(n=13)
    v[:, :, 7] = np.nan
    pattern = sr.SlidingWindow(1, 0)
    got = attention(in_ort, version, named(q, k, v, attn_mask=pattern.mask(13, 13)[0]))
    want = sr.attention(q, k, v, pattern).out

    assert np.isnan(want).any(axis=(0, 1, 3)).nonzero()[0].tolist() == [7, 8]
    assert np.isnan(got).any(axis=(0, 1, 3)).all()
