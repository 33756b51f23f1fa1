"""`to_onnx` of a pattern: one file against the oracle, at any length, in every spelling of it."""

import json
from typing import Any

import numpy as np
import pytest

import sparse_ref as sr

pytest.importorskip("onnxruntime")

import onnxruntime
from onnx.reference import ReferenceEvaluator

from exporters import to_onnx
from exporters.onnx.observed import with_values
from tests.exporters.one_node import Sizes, draw

WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)
HEADS = sr.PerHead([WINDOW, sr.Causal() & sr.Strided(7), sr.Keys([0, 3])])
RNG = np.random.default_rng(0)
FREE = {
    "window": WINDOW,
    "longformer": sr.recipes.longformer(20, [0, 77]),
    "strided": sr.recipes.sparse_transformer_strided(16),
    "heads": HEADS,
    "multiset": sr.Multi([WINDOW, sr.Sink(3)]),
    "some see nothing": sr.Keys([40]) & sr.Causal(),
}
BOUND = {  # to the positions below 150
    "random": sr.Causal() & (sr.RandomKeys(5, 0, 150, causal=True) | sr.SlidingWindow(3, 0)),
    "neighborhood": sr.Neighborhood(150, 13),
    "documents": sr.Causal() & sr.Document(np.arange(150) // 40),
    "a mask": sr.from_mask(RNG.random((150, 150)) < 0.3),
    "permuted": sr.Permuted(sr.SlidingWindow(2, 2), RNG.permutation(150)),
    "bigbird": sr.recipes.bigbird(150, block_size=10, heads=2),
    "multiset": sr.Multi([sr.RandomKeys(4, 1, 150), sr.SlidingWindow(2, 2)]),
}
SHAPES = [(1, 1), (7, 7), (33, 33), (100, 100), (257, 257), (1, 257), (70, 257), (100, 33)]
ASKED: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 5, "value_dim": 3}


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def feed(m: int, n: int, dtype: Any = np.float32, b: int = 2) -> dict[str, Any]:
    return draw(Sizes(b, 4, 2, m, n, 5, 3), dtype)


def assert_attention(y: Any, fed: Any, pattern: Any, arithmetic: str = "float32", **attributes):
    q, k, v = (fed[name] for name in "qkv")
    want = sr.attention(q, k, v, pattern, **attributes).out
    bound = sr.error_bound(
        q, k, v, pattern, arithmetic=arithmetic, output=q.dtype.name, **attributes
    ).out
    assert y.dtype == q.dtype
    assert y.shape == want.shape
    assert (np.abs(y.astype(np.float64) - want) <= bound).all()


@pytest.mark.parametrize("name", FREE)
def test_one_file_serves_all_lengths_and_stays_small(name):
    model = to_onnx(FREE[name], **ASKED)
    assert model.ByteSize() < 65_536
    runs = session(model)
    for i, (m, n) in enumerate(SHAPES):
        fed = feed(m, n, b=1 + i % 3)
        assert_attention(runs.run(None, fed)[0], fed, FREE[name])


@pytest.mark.parametrize("mode", ["custom", "inline"])
@pytest.mark.parametrize("body", ["loop", "gather"])
def test_both_bodies_and_without_our_domain(mode, body):
    model = to_onnx(HEADS, mode=mode, body=body, **ASKED)
    assert ("sparse_ref" in {one.domain for one in model.opset_import}) == (mode == "custom")
    assert bool(model.functions) == (mode == "custom")
    runs = session(model)
    for m, n in ((1, 1), (33, 33), (1, 100), (70, 100)):
        fed = feed(m, n)
        assert_attention(runs.run(None, fed)[0], fed, HEADS)


@pytest.mark.parametrize("mode", ["custom", "inline"])
@pytest.mark.parametrize("pattern", [WINDOW, BOUND["random"]])
def test_the_evaluator_of_onnx_agrees(mode, pattern):
    runs = ReferenceEvaluator(to_onnx(pattern, mode=mode, **ASKED))
    for m, n in ((7, 7), (33, 70)):
        fed = feed(m, n)
        with np.errstate(all="ignore"):
            assert_attention(runs.run(None, fed)[0], fed, pattern)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("pattern", [WINDOW, BOUND["neighborhood"]])
def test_every_type_that_numpy_has(dtype, pattern):
    """The scale, 5 ** -0.5, is no float32; a float64 model keeps to it all the same."""
    wide = "float64" if dtype == np.float64 else "float32"
    runs = session(to_onnx(pattern, dtype=np.dtype(dtype).name, **ASKED))
    fed = feed(33, 100, dtype)
    assert_attention(runs.run(None, fed)[0], fed, pattern, wide)


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_opsets(opset):
    model = to_onnx(WINDOW, opset=opset, **ASKED)
    assert model.opset_import[0].version == opset
    fed = feed(33, 33)
    assert_attention(session(model).run(None, fed)[0], fed, WINDOW)


def test_what_is_switched_on():
    model = to_onnx(
        WINDOW, softcap=2.0, scale=0.3, sinks=True, key_length=True, q_start=True, **ASKED
    )
    assert [one.name for one in model.graph.input] == [*"qkv", "key_length", "q_start", "sinks"]
    assert [one.name for one in model.graph.output] == ["y"]
    lengths, sinks = np.array([30, 50]), np.array([0.5, -np.inf, 2, -1], np.float32)
    more = {"key_length": lengths, "q_start": lengths - 9, "sinks": sinks}
    fed = feed(9, 60)
    assert_attention(
        session(model).run(None, fed | more)[0], fed, WINDOW,
        softcap=2.0, scale=0.3, kv_lengths=lengths, q_start=lengths - 9, sink_logits=sinks,
    )  # fmt: skip


def test_one_start_serves_all_rows():
    runs, fed = session(to_onnx(WINDOW, q_start=True, **ASKED)), feed(9, 60)
    y = runs.run(None, fed | {"q_start": np.array([17])})[0]
    assert_attention(y, fed, WINDOW, q_start=17)


def test_key_lengths_never_move_the_queries():
    """As in the oracle: with fewer queries than keys somebody must say where they are."""
    runs, lengths = session(to_onnx(WINDOW, key_length=True, **ASKED)), np.array([4, 33])
    fed = feed(33, 33)
    y = runs.run(None, fed | {"key_length": lengths})[0]
    assert_attention(y, fed, WINDOW, kv_lengths=lengths)
    with pytest.raises(Exception, match="q_start must be given where key_length is and m < n"):
        runs.run(None, feed(9, 33) | {"key_length": lengths})


@pytest.mark.parametrize("name", BOUND)
def test_a_pattern_that_carries_a_length_serves_lengths_up_to_it(name):
    pattern = BOUND[name]
    runs = session(to_onnx(pattern, **ASKED))
    for m, n in ((1, 1), (7, 7), (100, 100), (150, 150), (1, 150), (70, 149), (64, 128)):
        fed = feed(m, n)
        assert_attention(runs.run(None, fed)[0], fed, pattern)
    with pytest.raises(Exception, match="queries must be at positions below 150"):
        runs.run(None, feed(151, 151))
    with pytest.raises(Exception, match="queries must not be more than keys"):
        runs.run(None, feed(9, 7))


@pytest.mark.parametrize("name", ["random", "documents"])
def test_such_a_pattern_is_evaluated_where_queries_move(name):
    pattern = BOUND[name]
    runs = session(to_onnx(pattern, q_start=True, **ASKED))
    fed, start = feed(30, 140), np.array([-7, 101])
    y = runs.run(None, fed | {"q_start": start})[0]
    assert_attention(y, fed, pattern, q_start=start)
    with pytest.raises(Exception, match="queries must be at positions below 150"):
        runs.run(None, feed(30, 200) | {"q_start": start + 20})


def test_a_fixed_file_takes_one_length():
    pattern = BOUND["neighborhood"]
    model = to_onnx(pattern, dynamic=False, **ASKED)
    assert [one.op_type for one in model.graph.node] == ["SparseAttention"]
    fed = feed(150, 150)
    assert_attention(session(model).run(None, fed)[0], fed, pattern)
    with pytest.raises(Exception, match="invalid dimensions"):
        session(model).run(None, feed(149, 149))


def test_few_random_keys_are_stored_as_pairs():
    """Not as their tiles, all different: 4,096 of 4 KiB each."""
    model = to_onnx(sr.RandomKeys(8, 0, 4096), heads=1, head_dim=8)
    stored = sum(len(one.raw_data) for one in model.graph.initializer)
    assert stored < 6 * 8 * 4096 + 2 * 4 * 64 * 64 + 65_536


RUNTIME = {
    "documents": (
        sr.Causal() & sr.Document(sr.Runtime("document_ids")),
        {"document_ids": np.sort(RNG.integers(-1, 4, (2, 90)), axis=1)},
    ),
    "globals": (
        sr.SlidingWindow(9, 9) | sr.Global(sr.Runtime("global_tokens")),
        {"global_tokens": RNG.random((2, 90)) < 0.05},
    ),
    "prefixes": (sr.PrefixLM(sr.Runtime("prefix")), {"prefix": np.array([5, 70])}),
}


@pytest.mark.parametrize("name", RUNTIME)
def test_run_time_inputs_are_inputs(name):
    pattern, given = RUNTIME[name]
    model = to_onnx(pattern, **ASKED)
    assert model.ByteSize() < 65_536
    assert [one.name for one in model.graph.input] == [*"qkv", *given]
    runs = session(model)
    for m, n in ((90, 90), (33, 33), (1, 90)):
        cut = {key: x[:, :n] if x.ndim == 2 else x for key, x in given.items()}
        for shared in (cut, {key: x[:1] for key, x in cut.items()}):
            fed = feed(m, n)
            y = runs.run(None, fed | shared)[0]
            assert_attention(y, fed, with_values(pattern, shared, 2))


def test_batch_rows_with_patterns_of_their_own():
    pattern = sr.PerBatch([WINDOW, sr.PerHead([sr.Causal(), sr.Chunked(9)])])
    runs = session(to_onnx(pattern, **ASKED))
    for m, n in ((33, 33), (10, 70)):
        fed = feed(m, n)
        assert_attention(runs.run(None, fed)[0], fed, pattern)


def test_heads_share_one_layout():
    def nodes(pattern: sr.Pattern) -> int:
        return len(to_onnx(pattern, **ASKED).graph.node)

    assert nodes(sr.PerHead([WINDOW, WINDOW])) == nodes(WINDOW)
    assert nodes(HEADS) < 2 * nodes(WINDOW)


def test_the_file_says_what_it_computes():
    model = to_onnx(WINDOW, **ASKED)
    node = model.graph.node[-1]
    said = {one.key: one.value for one in node.metadata_props}
    assert sr.from_dict(json.loads(said["sparse_ref.pattern"])) == WINDOW
    assert said["sparse_ref.sentence"] == model.graph.doc_string
    assert model.graph.doc_string == (
        "A query sees the keys up to its own position, and of these at most 20 before it and none "
        "after it."
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pattern": "causal"}, "pattern must be a pattern or a torch.nn.Module, got str"),
        ({"heads": 0}, "heads must be >= 1, got 0"),
        ({"kv_heads": 3}, "kv_heads must divide heads = 4, got 3"),
        ({"head_dim": 2.5}, "head_dim must be an integer, got 2.5"),
        ({"value_dim": 0}, "value_dim must be >= 1, got 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, float64, float16, bfloat16, got int8"),
        ({"scale": -1}, "scale must be > 0 and finite, or None, got -1"),
        ({"softcap": "x"}, "softcap must be a number > 0 or None, got 'x'"),
        (
            {"softcap": 0.3, "dtype": "float64"},
            (
                "softcap must be a float32 number where dtype is float64, as ONNX keeps "
                "attributes: give 0.30000001192092896, got 0.3"
            ),
        ),
        ({"sinks": 1}, "sinks must be True or False, got 1"),
        ({"opset": 17}, "opset must be >= 18, got 17"),
        ({"mode": "dense"}, "mode must be one of"),
        ({"body": "scan"}, "body must be one of loop, gather, got 'scan'"),
        ({"dynamic": False}, "dynamic must be True for a pattern that carries no length"),
        ({"pattern": BOUND["a mask"], "dynamic": False, "q_start": True}, "q_start must be False"),
        ({"pattern": sr.Document(sr.Runtime("q"))}, "Runtime must have a name of its own, got 'q'"),
        (
            {"pattern": sr.Keys(sr.Runtime("x")) & sr.Document(sr.Runtime("x"))},
            "Runtime must be one kind of input, got 'x' twice",
        ),
    ],
)
def test_bad_input_is_refused(asked, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        to_onnx(**{"pattern": WINDOW, **ASKED, **asked})

    assert message in str(caught.value)
