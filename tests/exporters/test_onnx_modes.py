"""The modes "standard" and "microsoft": they say the pattern, or refuse with a reason."""

from itertools import pairwise

import numpy as np
import onnx
import pytest

import sparse_ref as sr

ort = pytest.importorskip("onnxruntime")

from exporters.onnx.aligned import block_size, sees_itself  # noqa: E402
from exporters.onnx.modes import MODES, convert  # noqa: E402
from exporters.onnx.request import Request  # noqa: E402
from exporters.onnx.running import CPU  # noqa: E402
from exporters.onnx.validate import validate_onnx  # noqa: E402
from exporters.onnx.windows import window_of  # noqa: E402

WINDOW = sr.SlidingWindow(20, 0)
PHI3 = sr.recipes.phi3_small(heads=4, block_size=16, local_blocks=2, vert_stride=5)
SHAPES = [(2, 1, 1), (2, 7, 7), (2, 53, 53), (1, 1, 53), (1, 7, 53)]  # batch, queries, keys


def made(pattern, mode, **options):
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 8} | options
    return convert(Request(pattern, **sizes), mode=mode)


def fed(model, b, m, n, **more):
    """Inputs of these lengths for every input of the model."""
    rng = np.random.default_rng(b * m + n)
    lengths = {"batch": b, "q_len": m, "kv_len": n, "max_len": n + 11, "positions": n}
    feed = {}
    for one in model.graph.input:
        tensor = one.type.tensor_type
        shape = [lengths.get(d.dim_param, d.dim_value) for d in tensor.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feed[one.name] = rng.standard_normal(shape).astype(kind)
    if "total_sequence_length" in feed:
        feed["total_sequence_length"] = np.array([n], np.int32)
    return feed | more


def agrees(model, shapes=SHAPES, **more):
    report = validate_onnx(model, cases=[fed(model, *one, **more) for one in shapes],
                           providers=[CPU])  # fmt: skip
    assert report.ok, str(report)
    return report


STANDARD = {
    "all": (sr.Full(), {}, 23),
    "causal": (sr.Causal(), {}, 23),
    "window": (WINDOW, {}, 25),
    "window both ways": (sr.SlidingWindow(3, 9), {"softcap": 1.5}, 25),
    "window at 23": (WINDOW, {"opset": 23}, 23),
    "causal at 24": (sr.Causal(), {"opset": 24}, 24),
    "causal at 24, half": (sr.Causal(), {"opset": 24, "dtype": "float16"}, 24),
    "causal at 25": (sr.Causal(), {"opset": 25}, 25),
    "strided": (sr.Causal() & (WINDOW | sr.Strided(7)), {"softcap": 1.5}, 23),
    "heads differ": (sr.PerHead([WINDOW, sr.Causal() & sr.Strided(5), sr.Full()]), {}, 23),
    "most rows empty": (sr.Keys([17]) & sr.Rows(range(7, 12)), {}, 23),
    "multiset": (sr.Multi([sr.Causal(), WINDOW, sr.Keys([0])]), {"softcap": 1.5}, 23),
    "half": (WINDOW, {"dtype": "float16", "opset": 23}, 23),
    "half, windows": (WINDOW, {"dtype": "float16"}, 25),
    "double": (WINDOW, {"dtype": "float64", "value_dim": 3}, 25),
}


@pytest.mark.parametrize("name", STANDARD)
def test_standard_is_the_pattern(name):
    pattern, options, opset = STANDARD[name]
    model = made(pattern, "standard", **options)
    assert model.opset_import[0].version == opset
    assert model.graph.node[-1].op_type == "Attention"
    agrees(model, [*SHAPES, (1, 53, 7)])


def test_standard_says_how_queries_are_aligned_and_what_nan_does():
    windowed, masked = (made(one, "standard").graph.node[-1] for one in (WINDOW, sr.Causal()))
    said = [{x.key: x.value for x in one.metadata_props} for one in (windowed, masked)]
    assert "ONNX's windows, aligned by key lengths." in said[0]["sparse_ref.sentence"]
    assert "A mask in the graph." in said[1]["sparse_ref.sentence"]
    assert all("0 x NaN" in one["sparse_ref.sentence"] for one in said)
    assert windowed.input[6]  # nonpad_kv_seqlen: query i stands at S - L + i
    assert not any(one.name == "is_causal" for one in masked.attribute)  # it aligns to the first


def test_sinks_are_one_more_key_in_standard():
    sinks = np.array([0.5, -np.inf, 3, -2], np.float32)
    for pattern in (WINDOW, sr.Keys([17])):
        agrees(made(pattern, "standard", sinks=True, softcap=1.5), sinks=sinks)


def test_key_lengths_and_starts_in_standard():
    model = made(WINDOW, "standard", key_length=True, q_start=True)
    lengths, starts = np.array([0, 9]), np.array([5, 0])
    agrees(model, [(2, 7, 53), (2, 53, 53)], key_length=lengths, q_start=starts)
    alone = made(WINDOW, "standard", key_length=True)
    agrees(alone, [(2, 53, 53)], key_length=np.array([11, 53]))
    refused = validate_onnx(
        alone, cases=[fed(alone, 2, 7, 53, key_length=np.array([11, 53]))], providers=[CPU]
    )
    assert "q_start must be" in refused.verdicts[0].wrong


@pytest.mark.parametrize(
    ("pattern", "more"),
    [
        (sr.Causal() & sr.Document(sr.Runtime("ids")), {"ids": np.array([[0] * 20 + [1] * 30])}),
        (WINDOW | sr.Global(sr.Runtime("seen")), {"seen": np.arange(50)[None] % 7 == 2}),
        (sr.PrefixLM(sr.Runtime("prefix")), {"prefix": np.array([3, 0])}),
    ],
)
def test_run_time_inputs_of_standard(pattern, more):
    agrees(made(pattern, "standard"), [(2, 50, 50)], **more)


def test_batch_rows_of_their_own_in_standard():
    agrees(made(sr.PerBatch([sr.Causal(), WINDOW]), "standard"), [(2, 53, 53), (2, 7, 53)])


def test_a_pattern_with_a_length_in_standard():
    pattern = sr.Neighborhood(53, 7)
    agrees(made(pattern, "standard"))
    agrees(made(pattern, "standard", dynamic=False), [(2, 53, 53)])


MICROSOFT = {
    "causal": (sr.Causal(), {}, "GroupQueryAttention"),
    "window": (WINDOW, {"softcap": 1.5}, "GroupQueryAttention"),
    "the query alone": (sr.SlidingWindow(0, 0), {}, "GroupQueryAttention"),
    "window, written twice": (sr.Causal() & sr.SlidingWindow(3, 5), {}, "GroupQueryAttention"),
    "window in half": (WINDOW, {"dtype": "float16"}, "GroupQueryAttention"),
    "phi 3": (PHI3, {}, "SparseAttention"),
    "chunks": (sr.Causal() & sr.Chunked(16), {}, "SparseAttention"),
    "chunks in half": (sr.Causal() & sr.Chunked(16), {"dtype": "float16"}, "SparseAttention"),
    "sinks and blocks": (
        sr.Causal() & (sr.Sink(16) | sr.Blocked(sr.SlidingWindow(1, 0), 16)), {}, "SparseAttention",
    ),
    "three layouts for four heads": (
        sr.Causal() & sr.PerHead([sr.Chunked(16), sr.Chunked(32), sr.Full()]), {},
        "SparseAttention",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MICROSOFT)
def test_microsoft_is_the_pattern(name):
    pattern, options, operator = MICROSOFT[name]
    model = made(pattern, "microsoft", **options)
    assert [one.op_type for one in model.graph.node if one.domain] == [operator]
    agrees(model)


def test_sinks_of_group_query_attention():
    sinks = np.array([0.5, -np.inf, 3, -2], np.float32)
    agrees(made(WINDOW, "microsoft", sinks=True), sinks=sinks)


@pytest.mark.parametrize(
    ("pattern", "options", "reason"),
    [
        (sr.SlidingWindow(3, 3), {}, "needs a causal window, or a causal pattern of blocks"),
        (sr.Causal() & sr.Strided(4), {}, "needs a causal window, or a causal pattern of blocks"),
        (sr.Causal() & sr.Chunked(24), {}, "needs a causal window, or a causal pattern of blocks"),
        (sr.Chunked(16), {}, "needs a causal window, or a causal pattern of blocks"),
        (WINDOW & sr.Neighborhood(9, 3), {}, "needs a causal window, or a causal pattern of"),
        (sr.Causal() & sr.Sink(16), {}, "needs every query to see its own block"),
        (sr.Causal() & sr.Chunked(16, -1 + 2, -1), {}, "needs every query to see its own block"),
        (sr.Causal() & sr.Chunked(16), {"softcap": 2.0}, "has no softcap and no sinks in Sparse"),
        (sr.Causal() & sr.Chunked(16), {"sinks": True}, "has no softcap and no sinks in Sparse"),
        (WINDOW, {"key_length": True}, "has no key_length"),
        (WINDOW, {"q_start": True}, "has no q_start"),
        (WINDOW, {"dtype": "float64"}, "is for float32 and float16, got float64"),
        (WINDOW, {"value_dim": 16}, "needs value_dim = head_dim = 8, got 16"),
        (WINDOW, {"head_dim": 12}, "needs a head_dim that is a multiple of 8, got 12"),
        (sr.Multi([WINDOW, WINDOW]), {}, "has one set of keys for all batch rows"),
        (sr.PerBatch([WINDOW, sr.Causal()]), {}, "has one set of keys for all batch rows"),
    ],
)
def test_microsoft_refuses_with_the_reason_and_a_mode_that_works(pattern, options, reason):
    with pytest.raises(NotImplementedError) as refused:
        made(pattern, "microsoft", **options)
    said = str(refused.value)
    assert said.startswith(f"mode 'microsoft' {reason}")
    assert said.endswith("; mode 'custom' says any pattern, mode 'standard' all but bfloat16")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("pattern", "options", "reason"),
    [
        (WINDOW, {"dtype": "bfloat16"}, "is for float32, float16 and float64"),
        (WINDOW, {"opset": 22}, "needs opset >= 23, where Attention begins, got 22"),
        (sr.Multi([WINDOW]), {"dtype": "float16"}, "adds the log of a multiset's counts"),
    ],
)
def test_standard_refuses_with_the_reason_and_a_mode_that_works(pattern, options, reason):
    with pytest.raises(NotImplementedError, match=f"^mode 'standard' {reason}.*mode 'custom'"):
        made(pattern, "standard", **options)


def test_the_three_wrong_answers_of_sparse_attention_cannot_be_written():
    """Blocks above the diagonal, rows without a block, batches of unequal lengths."""
    model = made(sr.Causal() & sr.PerHead([sr.Chunked(16, ahead=1), sr.Full()]), "microsoft")
    node = next(one for one in model.graph.node if one.op_type == "SparseAttention")
    before = list(model.graph.node)[: list(model.graph.node).index(node)]
    names = [node.input[i] for i in (5, 6, 8)]
    infos = [onnx.helper.make_tensor_value_info(x, onnx.TensorProto.INT32, None) for x in names]
    layout = onnx.helper.make_graph(before, "layout", model.graph.input, infos)
    alone = onnx.helper.make_model(layout, opset_imports=model.opset_import, ir_version=10)
    rows, columns, lengths = ort.InferenceSession(alone.SerializeToString()).run(
        None, fed(model, 2, 53, 53)
    )
    assert len(rows) == 2
    for ends, blocks in zip(rows, columns, strict=True):
        for row, (start, stop) in enumerate(pairwise(ends)):
            assert stop > start
            assert blocks[start:stop].max() <= row
    assert lengths.tolist() == [53, 53]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 7, 53), "batch_size must be 1"),
        ((1, 53, 7), "same sequence length"),
        ((0, 3, 3), "there must be a batch row"),
    ],
)
def test_what_group_query_attention_cannot_run_is_an_error_of_the_run(shape, said):
    """An empty batch would be a division by zero in ONNX Runtime, which ends the process."""
    model = made(WINDOW, "microsoft")
    with pytest.raises(Exception, match=said):
        ort.InferenceSession(model.SerializeToString()).run(None, fed(model, *shape))


def test_a_buffer_too_small_is_an_error_of_the_run():
    model = made(sr.Causal() & sr.Chunked(16), "microsoft")
    feed = fed(model, 2, 5, 20)
    feed |= {name: feed[name][:, :, :19] for name in ("past_key", "past_value")}
    found = validate_onnx(model, cases=[feed], providers=[CPU])
    assert "total_sequence_length must fit into past_key" in found.verdicts[0].wrong


@pytest.mark.parametrize("mode", ["custom", "inline"])
def test_our_own_modes_are_judged_like_the_others(mode):
    pattern = sr.PerHead([WINDOW, sr.Causal() & sr.Strided(5)])
    model = made(pattern, mode, q_start=True, value_dim=5)
    agrees(model, [(2, 53, 53), (2, 7, 53)], q_start=np.array([30, 0]))
    assert any(one.domain == "sparse_ref" for one in model.graph.node) == (mode == "custom")


def test_a_mode_that_is_none_is_refused():
    with pytest.raises(ValueError, match=f"^mode must be one of {', '.join(MODES)}, got 'onnx'"):
        made(WINDOW, "onnx")


def test_windows_are_read_by_proof():
    assert window_of(sr.Causal() & sr.SlidingWindow(3, 5)) == (3, 0)
    assert window_of(~(~sr.Causal() | ~sr.SlidingWindow(None, 4))) == (None, 0)
    assert window_of(sr.SlidingWindow(3, 0) - sr.Keys([10**6])) is None  # right up to a million
    assert window_of(WINDOW & sr.Document([0] * 9)) is None  # a length of its own
    assert window_of(sr.SlidingWindow(2, 2, dilation=2)) is None


def test_block_sizes_are_read_by_structure():
    """Each answer holds on a mask: the pattern beside causality is constant on such blocks."""
    mask = np.random.default_rng(0).random((4, 4)) < 0.5
    for pattern, size in [
        (sr.Chunked(96), 32), (sr.Chunked(32, 1, 0, 16), 16), (sr.Chunked(32, origin=8), None),
        (sr.Sink(48) | sr.Keys(range(64, 128)), 16), (sr.Keys([*range(16), *range(32, 48)]), 16),
        (sr.Blocked(sr.Strided(3), 64) - sr.Rows(range(32, 96)), 32), (sr.Keys([3]), None),
        (sr.BlockPattern(mask, 32), 32), (sr.BlockPattern(mask, (16, 48)), 16),
        (sr.KeyStride(64, range(16, 32)), 16), (sr.KeyStride(64, [5]), None),
        (sr.Strided(16), None), (~sr.Chunked(16), 16),
    ]:  # fmt: skip
        assert block_size(sr.Causal() & pattern) == size
        if size:
            n = 64 if pattern.covers else 256
            seen = pattern.mask(n, n)[0].reshape(n // size, size, n // size, size)
            assert (seen.all(axis=(1, 3)) == seen.any(axis=(1, 3))).all()
    assert block_size(sr.Chunked(16)) is None  # it is not causal
    assert block_size(sr.Causal()) == 128


def test_seeing_itself_is_certain_or_it_is_not_said():
    for pattern, certain in [
        (WINDOW, True), (sr.Chunked(16), True), (sr.Sink(3) | WINDOW, True), (sr.Sink(3), False),
        (sr.Causal() & sr.Strided(4), True), (sr.Strided(4, 1), False), (~sr.Strided(4, 1), True),
        (sr.Blocked(sr.Sink(2) | sr.SlidingWindow(0, 0), 8), True), (WINDOW - sr.Keys([1]), False),
        (sr.KeyStride(5, [0, 1, 2, 3]), False), (sr.Neighborhood(9, 3), False),
    ]:  # fmt: skip
        assert sees_itself(pattern) == certain
        if certain:
            assert pattern.mask(50, 50)[0].diagonal().all()
