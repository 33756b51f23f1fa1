"""Block lists computed inside a graph, against the dense mask of the same pattern."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparse_ref as sr

pytest.importorskip("onnxruntime")

import onnxruntime
from onnx import TensorProto, helper, shape_inference
from onnx.reference import ReferenceEvaluator

from exporters.onnx.graph import Graph
from exporters.onnx.interface import runtime
from exporters.onnx.layouts import layout
from exporters.onnx.lookups import Tables
from exporters.onnx.observed import with_values
from exporters.onnx.request import Request
from tests.strategies import patterns
from tests.test_layouts import FAMILIES, N

WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)
FREE = {  # of any length
    "full": sr.Full(),
    "nothing": ~sr.Full(),
    "window": WINDOW,
    "both ways": sr.SlidingWindow(9, 30),
    "streaming": sr.recipes.streaming_llm(sinks=4, window=30),
    "strided": sr.recipes.sparse_transformer_strided(16),
    "fixed": sr.recipes.sparse_transformer_fixed(16, 3),
    "a stride that fits no block": sr.Causal() & (sr.Strided(23) | sr.Sink(2)),
    "longformer": sr.recipes.longformer(20, [0, 77]),
    "strides that differ": (sr.Causal() & sr.Strided(2)) | (sr.Strided(4) - sr.Causal()),
    "chunks": sr.Causal() & sr.Chunked(48, back=1, origin=5),
    "prefix": sr.PrefixLM(70),
    "butterfly": sr.recipes.butterfly(4, 8),
    "longnet": sr.recipes.longnet([16, 64], [1, 4], heads=1),
    "blocks of strides": sr.Blocked(sr.Causal() & (sr.Strided(3) | sr.Rows([2])), 10),
    "phi": sr.recipes.phi3_small(heads=2, block_size=16, local_blocks=2, vert_stride=3),
}
IDS = np.sort(np.random.default_rng(0).integers(-1, 5, (3, 90)), axis=1)
TOKENS = np.random.default_rng(1).random((3, 90)) < 0.05
RUNTIME = {
    "documents": (sr.Causal() & sr.Document(sr.Runtime("ids")), {"ids": IDS}),
    "globals": (sr.SlidingWindow(9, 9) | sr.Global(sr.Runtime("tokens")), {"tokens": TOKENS}),
    "queries and keys": (sr.Rows(sr.Runtime("a")) - sr.Keys(sr.Runtime("b")),
                         {"a": TOKENS, "b": TOKENS[:, ::-1]}),
    "prefixes": (sr.PrefixLM(sr.Runtime("prefix")), {"prefix": np.array([0, 5, 70])}),
    "both": (
        sr.Document(sr.Runtime("ids"), sr.Runtime("key_ids")) & sr.RandomKeys(9, 0, 90),
        {"ids": IDS, "key_ids": IDS[::-1]},
    ),
    "blocks of tokens": (sr.Blocked(sr.Keys(sr.Runtime("tokens")), 4), {"tokens": TOKENS}),
}  # fmt: skip


def layout_model(several: list[sr.Pattern], size: int, given: Any = ()) -> Any:
    """Layouts of some patterns from the shapes of q and k, the input q_start and others."""
    g = Graph(np.float32)
    asked = {name: info for one in several for name, info in runtime(request(one)).items()}
    g.tables = Tables(g, {name: g.symbol(name).int64 for name in asked})
    m, n = (g.symbol(name).size(0) for name in "qk")
    made = layout(g, several, size, m, n, g.symbol("q_start"))
    info = helper.make_tensor_value_info
    inputs = [
        *(info(name, TensorProto.FLOAT, [length]) for name, length in zip("qk", "mn", strict=True)),
        info("q_start", TensorProto.INT64, ["b"]),
        *(info(name, kind, ["b", *axes]) for name, (kind, axes) in asked.items()),
    ]
    kinds = TensorProto.INT32, TensorProto.INT32, TensorProto.INT32, TensorProto.UINT8
    outputs = [info(one.name, kind, None) for one, kind in zip(made, kinds, strict=True)]
    graph = helper.make_graph(g.scopes[0], "layout", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return model


def request(pattern: sr.Pattern) -> Request:
    return Request(pattern, heads=1, head_dim=1)


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def counts(runs: Any, m: int, n: int, q_start: Any, given: Any = (), check: Any = None) -> Any:
    """Multiplicities (rows, layouts, m, n) that the lists of a run say."""
    feed = {"q": np.zeros(m, np.float32), "k": np.zeros(n, np.float32)}
    indices, count, ids, tiles = runs.run(None, feed | {"q_start": np.array(q_start)} | dict(given))
    (rows, layouts, height, _), size = indices.shape, tiles.shape[1]
    width = max(-(-n // size), 1)
    assert height == -(-m // size)
    assert (tiles[0] == 1).all()
    dense = np.zeros((rows, layouts, height, width, size, size), dtype=np.uint8)
    for at in np.ndindex(rows, layouts, height):
        listed = indices[at][: count[at]]
        assert (np.diff(listed) > 0).all()
        assert (indices[at][count[at] :] == -1).all()
        dense[at][listed] = tiles[ids[at][: count[at]]]
    dense = dense.swapaxes(3, 4).reshape(rows, layouts, height * size, width * size)
    return dense[:, :, :m, :n]


def test_a_window_of_three_in_blocks_of_two():
    runs = session(layout_model([sr.Causal() & sr.SlidingWindow(2, 0)], 2))
    indices, count, ids, tiles = runs.run(
        None, {"q": np.zeros(5, np.float32), "k": np.zeros(5, np.float32), "q_start": np.array([0])}
    )
    assert indices[0, 0].tolist() == [[0, -1], [0, 1], [1, 2]]
    assert count[0, 0].tolist() == [1, 2, 2]
    named = tiles[ids[0, 0]].tolist()
    diagonal, edge = [[1, 0], [1, 1]], [[1, 1], [0, 1]]
    assert [named[0][0], *named[1], *named[2]] == [diagonal, edge, diagonal, edge, diagonal]
    assert len(tiles) == 3


@pytest.mark.parametrize("pattern", FAMILIES, ids=repr)
def test_every_pattern_equals_its_dense_mask(pattern):
    runs = session(layout_model([pattern.at(head) for head in range(pattern.heads)], 3))
    for m, n in ((1, 1), (7, 7), (13, 11), (N, N), (1, N - 1), (17, 19), (9, 0), (0, 5)):
        starts = [n - m, 3, -9]
        got = counts(runs, m, n, starts)
        for row, start in enumerate(starts):
            np.testing.assert_array_equal(got[row], pattern.counts(m, n, q_start=start))


SHAPES = [(1, 1), (7, 7), (33, 33), (100, 100), (257, 257), (1, 257), (70, 257), (257, 70)]


@pytest.mark.parametrize("name", FREE)
def test_lengths_are_free(name):
    pattern = FREE[name]
    runs = session(layout_model([pattern.at(head) for head in range(pattern.heads)], 64))
    for m, n in SHAPES:
        got = counts(runs, m, n, [n - m, 130])
        np.testing.assert_array_equal(got[0], pattern.counts(m, n))
        np.testing.assert_array_equal(got[1], pattern.counts(m, n, q_start=130))


@pytest.mark.parametrize("name", RUNTIME)
def test_run_time_inputs_move_the_layout(name):
    pattern, given = RUNTIME[name]
    runs = session(layout_model([pattern], 8))
    for m, n in ((90, 90), (33, 33), (1, 90), (40, 77), (50, 30)):
        cut = {key: x[:, :n] if x.ndim == 2 else x for key, x in given.items()}
        for fed in (cut, {key: x[:1] for key, x in cut.items()}):
            rows = len(next(iter(fed.values())))
            got = counts(runs, m, n, [n - m] * rows, fed)[:, 0]
            want = with_values(pattern, fed, rows)
            for row in range(rows):
                np.testing.assert_array_equal(got[row], want.counts(m, n, batch=row)[0])


@pytest.mark.parametrize("name", ["window", "longnet", "longformer"])
def test_the_evaluator_of_onnx_agrees(name):
    pattern = FREE[name]
    runs = ReferenceEvaluator(layout_model([pattern], 16))
    for m, n in ((1, 1), (33, 33), (10, 70), (70, 10)):
        np.testing.assert_array_equal(counts(runs, m, n, [n - m])[0], pattern.counts(m, n))


@settings(max_examples=25)
@given(pattern=patterns(covers=40), size=st.integers(1, 9), data=st.data())
def test_any_pattern_equals_its_dense_mask(pattern, size, data):
    some_layouts_are_right(pattern, size, data)


@pytest.mark.slow
@settings(max_examples=400)
@given(pattern=patterns(covers=40), size=st.integers(1, 9), data=st.data())
def test_very_many_patterns_equal_their_dense_mask(pattern, size, data):
    some_layouts_are_right(pattern, size, data)


def some_layouts_are_right(pattern, size, data):
    runs = session(layout_model([pattern.at(head) for head in range(pattern.heads)], size))
    for _ in range(3):
        m, n = (data.draw(st.integers(0, 40)) for _ in "mn")
        starts = [n - m, data.draw(st.integers(-20, 20))]
        got = counts(runs, m, n, starts)
        for row, start in enumerate(starts):
            np.testing.assert_array_equal(got[row], pattern.counts(m, n, q_start=start))


TIGHT = {  # kinds of partial tiles in blocks of 64, and those told apart without need
    "causal": (sr.Causal(), 1, 0),
    "window": (sr.Causal() & sr.SlidingWindow(511, 0), 2, 0),
    "strided": (sr.Causal() & (sr.SlidingWindow(511, 0) | sr.Strided(64)), 3, 0),
    "sinks": (sr.Causal() & (sr.SlidingWindow(100, 0) | sr.Sink(4)), 6, 1),
    "globals": (sr.SlidingWindow(64, 64) | sr.Global(range(64)), 2, 0),
    "chunks": (sr.Causal() & sr.Chunked(96), 4, 0),
    "tokens": (sr.Causal() & (sr.SlidingWindow(511, 511) | sr.Keys([5, 70, 777])), 8, 1),
}


@pytest.mark.parametrize("name", TIGHT)
def test_the_lists_are_those_of_to_blocks_and_one_tile_of_a_kind_is_evaluated(name):
    pattern, distinct, more = TIGHT[name]
    runs = session(layout_model([pattern], 64))
    for n in (2000, 4096):
        q = np.zeros(n, np.float32)
        indices, count, _, tiles = runs.run(None, {"q": q, "k": q, "q_start": np.array([0])})
        blocks = sr.to_blocks(pattern, n, n)
        assert indices[0, 0][indices[0, 0] >= 0].tolist() == blocks.indices.tolist()
        assert count[0, 0].tolist() == np.diff(blocks.indptr[0]).tolist()
        assert len(blocks.tile_masks) == 1 + distinct
        assert len(tiles) == 1 + distinct + more


def test_positions_may_be_far_away():
    """A decode step deep in a stream; arithmetic is in int64."""
    pattern = sr.Causal() & (sr.SlidingWindow(20, 0) | sr.Strided(1000, 7) | sr.Chunked(3000))
    runs, start = session(layout_model([pattern], 16)), 2**31 - 50
    np.testing.assert_array_equal(
        counts(runs, 40, 33, [start])[0], pattern.counts(40, 33, q_start=start)
    )
