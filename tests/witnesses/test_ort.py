"""ONNX Runtime's own operators: GroupQueryAttention and SparseAttention, on the CPU."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, by_loops, inputs
from tests.witnesses.models import flat, in_ort, model, session, split

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.witness
GQA_INPUTS = [
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache", "position_ids", "attention_bias", "head_sink",
]  # fmt: skip


def grouped(q, k, v, *, past=0, lengths=None, bias=None, sinks=None, **attributes):
    """com.microsoft.GroupQueryAttention; the first `past` of the keys are its cache."""
    (b, h, *_), (_, g, n, _) = q.shape, k.shape
    last = np.full(b, n - 1) if lengths is None else np.asarray(lengths) - 1
    feeds = {
        "query": flat(q), "key": flat(k[:, :, past:]), "value": flat(v[:, :, past:]),
        "past_key": k[:, :, :past].copy(), "past_value": v[:, :, :past].copy(),
        "seqlens_k": last.astype(np.int32), "total_sequence_length": np.array([n], np.int32),
    }  # fmt: skip
    feeds |= {} if bias is None else {"attention_bias": bias}
    feeds |= {} if sinks is None else {"head_sink": sinks}
    names = [name if name in feeds else "" for name in GQA_INPUTS]
    while not names[-1]:
        names.pop()
    node = onnx.helper.make_node(
        "GroupQueryAttention", names, ["output", "present_key", "present_value"],
        domain="com.microsoft", num_heads=h, kv_num_heads=g, **attributes,
    )  # fmt: skip
    return split(in_ort(model(node, feeds, 18, "com.microsoft"), feeds)[0], h)


def square(m=13):
    return inputs(m=m, n=m, d=8, e=8)  # the head size must be a multiple of 8


SINKS = np.array([0.5, -1.0, 2.0, 0.0, 5.0, -9.0], np.float32)


@pytest.mark.parametrize("w", [1, 4, 13, 40, -1])
def test_a_local_window_counts_the_query(w):
    q, k, v = square()

    agrees(grouped(q, k, v, local_window_size=w), q, k, v, sr.conventions.ort_gqa(w))


def test_a_local_window_of_zero_shows_no_key():
    q, k, v = square()

    agrees(grouped(q, k, v, local_window_size=0), q, k, v, ~sr.Full())
    with pytest.raises(ValueError, match="with 0 ORT shows no key"):
        sr.conventions.ort_gqa(0)


@pytest.mark.parametrize(("b", "past"), [(2, 18), (1, 12), (1, 2)])
def test_decoding_from_a_cache(b, past):
    """The queries are the last positions; several at a time in a batch of one only."""
    q, k, v = inputs(b=b, m=19 - past, d=8, e=8)
    got = grouped(q, k, v, past=past, local_window_size=5, sinks=SINKS)

    agrees(got, q, k, v, sr.recipes.gpt_oss(5), sink_logits=SINKS)


def test_a_batch_of_prompts_padded_on_the_right():
    """Queries stand at their own index; those past a row's end are not compared."""
    q, k, v = square()
    lengths = np.array([13, 7])
    got = grouped(q, k, v, lengths=lengths, local_window_size=4)

    agrees(got[:1], q[:1], k[:1], v[:1], sr.recipes.mistral(4))
    short = [x[1:, :, :7] for x in (q, k, v)]
    agrees(got[1:, :, :7], *short, sr.recipes.mistral(4))


def test_softcap_sinks_and_smooth_softmax():
    q, k, v = square()
    pattern = sr.recipes.mistral(5)

    agrees(grouped(q, k, v, softcap=2.0), q, k, v, sr.Causal(), softcap=2.0)
    agrees(grouped(q, k, v, scale=0.5), q, k, v, sr.Causal(), scale=0.5)
    agrees(grouped(q, k, v, sinks=SINKS, local_window_size=5), q, k, v, pattern, sink_logits=SINKS)
    smooth = grouped(q, k, v, smooth_softmax=1)
    agrees(smooth, q, k, v, sr.Causal(), sink_logits=np.zeros(6))


def test_any_pattern_as_a_bias():
    q, k, v = square()
    pattern = sr.SlidingWindow(2, 3) | sr.Global([7])
    bias = np.where(pattern.mask(13, 13), 0, -np.inf).astype(np.float32)[None]

    agrees(grouped(q, k, v, bias=bias, causal=0), q, k, v, pattern)


def test_a_row_hidden_by_its_bias_is_nan_there_and_zero_here():
    q, k, v = square()
    pattern = sr.RowStride(3, [0, 1])
    bias = np.where(pattern.mask(13, 13), 0, -np.inf).astype(np.float32)[None]
    got = grouped(q, k, v, bias=bias, causal=0)
    defined = by_loops(q[0], k[0], v[0], pattern.mask(13, 13, heads=6))
    rows = np.arange(13) % 3 == 2

    assert np.isnan(got[:, :, rows]).all()
    assert not np.isnan(got[:, :, ~rows]).any()
    assert (defined[:, rows] == 0).all()
    assert (sr.attention(q, k, v, pattern).out[:, :, rows] == 0).all()


def block_sparse(q, k, v, layout, block, *, past=0, lengths=None):
    """com.microsoft.SparseAttention; its cache is one buffer, bound as past and as present.

    `layout` (l, blocks, blocks) of bools: head h uses layout h % l.
    """
    (b, h, *_), (_, g, n, d) = q.shape, k.shape
    cache = [np.zeros((b, g, layout.shape[1] * block, d), np.float32) for _ in "kv"]
    for buffer, x in zip(cache, (k, v), strict=True):
        buffer[:, :, :past] = x[:, :, :past]
    columns = [np.nonzero(one)[1] for one in layout]
    width = max(map(len, columns))
    padded = [np.pad(c, (0, width - len(c)), constant_values=-1) for c in columns]
    rows = [np.append(0, np.cumsum(one.sum(axis=1))) for one in layout]
    feeds = {
        "query": flat(q), "key": flat(k[:, :, past:]), "value": flat(v[:, :, past:]),
        "past_key": cache[0], "past_value": cache[1],
        "block_row_indices": np.array(rows, np.int32),
        "block_col_indices": np.array(padded, np.int32),
        "total_sequence_length": np.array([n], np.int32),
        "key_total_sequence_lengths": np.array(lengths or [n] * b, np.int32),
    }  # fmt: skip
    outputs = ["output", "present_key", "present_value"]
    node = onnx.helper.make_node(
        "SparseAttention", list(feeds), outputs, domain="com.microsoft", num_heads=h,
        kv_num_heads=g, sparse_block_size=block,
    )  # fmt: skip
    ready = session(model(node, feeds, 18, "com.microsoft"))
    binding = ready.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(x) for name, x in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("output")
    binding.bind_ortvalue_output("present_key", values["past_key"])
    binding.bind_ortvalue_output("present_value", values["past_value"])
    ready.run_with_iobinding(binding)
    return split(binding.copy_outputs_to_cpu()[0], h)


LOCAL, STRIDE = 2, 12
PHI3 = sr.recipes.phi3_small(heads=6, block_size=8, local_blocks=LOCAL, vert_stride=STRIDE)


def phi3_layout(blocks, heads=6):
    """The blocks by the formula of Phi-3-small's published code, not by our pattern."""
    step = max(1, STRIDE // heads)

    def sees(head, q, k):
        return k <= q and (q - k < LOCAL or (k + head * step + 1) % STRIDE == 0)

    every = range(blocks)
    return np.array([[[sees(h, q, k) for k in every] for q in every] for h in range(heads)])


@pytest.mark.parametrize(("m", "n"), [(89, 89), (1, 83), (7, 71)])
def test_the_blocks_of_phi_3(m, n):
    """Prompt, one token and several tokens after a past; lengths are no multiple of the block."""
    q, k, v = inputs(m=m, n=n, d=8, e=8)
    layout = phi3_layout(12)
    assert len(np.unique(layout, axis=0)) == 6  # every head its own

    agrees(block_sparse(q, k, v, layout, 8, past=n - m), q, k, v, PHI3)


def test_any_causal_block_pattern():
    """The layouts are cut by causality within their blocks."""
    q, k, v = inputs(m=43, n=43, d=8, e=8)
    drawn = np.random.default_rng(3).random((3, 6, 6)) < 0.4
    layout = np.tril(drawn) | np.eye(6, dtype=bool)
    pattern = sr.Causal() & sr.PerHead([sr.BlockPattern(one, 8) for one in layout])

    agrees(block_sparse(q, k, v, layout, 8), q, k, v, pattern)


def loops_over(q, k, v, pattern):
    m = q.shape[2]
    return by_loops(q[0], k[0], v[0], (sr.Causal() & pattern).mask(m, m, heads=len(q[0])))


def test_an_empty_block_row_is_a_mean_there_and_zero_here():
    q, k, v = inputs(b=1, m=37, n=37, d=8, e=8)
    layout = np.tril(np.ones((1, 5, 5), dtype=bool))
    layout[0, 2] = False
    got = block_sparse(q, k, v, layout, 8)
    pattern = sr.BlockPattern(layout[0], 8)
    empty = np.arange(37) // 8 == 2
    means = v.cumsum(axis=2) / np.arange(1, 38)[:, None]

    right = loops_over(q, k, v, pattern)
    assert (right[:, empty] == 0).all()
    assert (sr.attention(q, k, v, sr.Causal() & pattern).out[:, :, empty] == 0).all()
    np.testing.assert_allclose(got[0, ::2, empty], means[0][:, empty].swapaxes(0, 1), atol=1e-6)
    np.testing.assert_allclose(got[0, :, ~empty], right[:, ~empty].swapaxes(0, 1), atol=1e-6)


def test_a_block_above_the_diagonal_brings_a_removed_one_back():
    """A row with as many blocks as the causal row is called dense there, whichever they are."""
    q, k, v = inputs(b=1, m=37, n=37, d=8, e=8)
    layout = np.tril(np.ones((1, 5, 5), dtype=bool))
    layout[0, 3] = [True, False, True, True, True]  # four, as in the causal row
    got = block_sparse(q, k, v, layout, 8)
    pattern = sr.Causal() & sr.BlockPattern(layout[0], 8)

    right = loops_over(q, k, v, pattern)
    np.testing.assert_allclose(sr.attention(q, k, v, pattern).out[0], right, atol=1e-12)
    assert np.abs(got[0] - right).max() > 0.05
    agrees(got, q, k, v, sr.Causal())
    layout[0, 3, 4] = False  # what to do about it
    agrees(block_sparse(q, k, v, layout, 8), q, k, v, pattern)


def test_a_batch_of_unequal_lengths_is_wrong_there():
    """Scores are written at offsets by the longest length and read at offsets by the row's own."""
    q, k, v = inputs(m=37, n=37, d=8, e=8)
    got = block_sparse(q, k, v, phi3_layout(5), 8, lengths=[29, 37])
    short = [x[:1, :, :29] for x in (q, k, v)]

    right = by_loops(*(x[0] for x in short), PHI3.mask(29, 29, heads=6))
    np.testing.assert_allclose(sr.attention(*short, PHI3).out[0], right, atol=1e-12)
    agrees(got[1:], q[1:], k[1:], v[1:], PHI3)  # the longest is right
    agrees(got[:1, :1, :29], short[0][:, :1], *(x[:, :1] for x in short[1:]), PHI3.at(0))
    assert not (np.abs(got[0, 1:, :29] - right[1:]).max(axis=(1, 2)) < 0.05).any()
