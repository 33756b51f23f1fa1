"""Heads that differ in a number share their nodes; what is shared computes the same."""

import numpy as np
import pytest

import sparse_ref as sr

onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from exporters import to_onnx  # noqa: E402
from exporters.onnx.alike import together  # noqa: E402
from exporters.onnx.graph import Graph  # noqa: E402
from exporters.onnx.running import CPU, session  # noqa: E402
from tests.exporters.catalogue import CATALOGUE  # noqa: E402
from tests.exporters.test_onnx_layouts import counts, layout_model  # noqa: E402
from tests.exporters.test_onnx_layouts import session as started  # noqa: E402

LIMIT = 65_536  # bytes of a file without weights
SEGMENTS, RATES = [2048, 4096, 8192, 16384, 32768], [1, 2, 4, 6, 12]


def written(formulas):
    """Groups, the nodes they took, and what the graph answers for x = 10, 20, 30."""
    g = Graph(np.float32)
    x = g.symbol("x")
    groups = list(
        together(g, [lambda f=f: (f(x),) for f in formulas], lambda n, _: g.lift(n.reshape(-1, 1)))
    )
    g.op("Concat", *(y.op("Identity").reshape(-1, 3) for _, (y,) in groups), axis=0, called="y")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.scopes[0], "g", [info("x", TensorProto.INT64, [3])], [info("y", TensorProto.INT64, None)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (y,) = session(model, CPU).run(None, {"x": np.array([10, 20, 30])})
    kinds = [node.op_type for node in graph.node]
    return [members for members, _ in groups], kinds, y.tolist()


def test_formulas_that_differ_in_numbers_are_one():
    groups, kinds, y = written([lambda x: (x + 1) % 7, lambda x: (x + 4) % 5])
    assert groups == [[0, 1]]
    assert (kinds.count("Add"), kinds.count("Mod")) == (1, 1)
    assert y == [[4, 0, 3], [4, 4, 4]]


def test_others_stay_apart_and_every_answer_is_at_its_place():
    groups, kinds, y = written([lambda x: x + 1, lambda x: x * 3, lambda x: x + 2])
    assert groups == [[0, 2], [1]]
    assert (kinds.count("Add"), kinds.count("Mul")) == (1, 1)
    assert y == [[11, 21, 31], [12, 22, 32], [30, 60, 90]]


def test_a_number_that_is_no_element_keeps_formulas_apart():
    """Summed up, numbers side by side would run into each other."""
    total = [lambda x, n=n: (x * n).op("ReduceSum", keepdims=1) + x for n in (2, 3)]
    groups, _, y = written(total)
    assert groups == [[0], [1]]
    assert y == [[130, 140, 150], [190, 200, 210]]


WINDOWS = [sr.Causal() & sr.SlidingWindow(w, 0) for w in (3, 20, 70)]
STRIDES = [sr.Causal() & sr.Strided(s, s - 2) for s in (5, 9)]
INTERLEAVED = sr.PerHead([WINDOWS[0], STRIDES[0], WINDOWS[1], STRIDES[1], sr.Full(), WINDOWS[2]])


@pytest.mark.parametrize(
    "pattern",
    [
        INTERLEAVED,
        sr.PerHead([sr.Chunked(c, back=b, origin=o) for c, b, o in ((7, 0, 2), (9, 1, 4))]),
        sr.PerHead([sr.KeyStride(7, range(i, 7, 3)) & sr.Chunked(5 + i) for i in range(3)]),
        sr.recipes.longnet([16, 48], [1, 3], heads=6),
    ],
)
@pytest.mark.parametrize("size", [3, 16])
def test_lists_of_heads_written_together_are_those_of_the_pattern(pattern, size):
    runs = started(layout_model([pattern.at(head) for head in range(pattern.heads)], size))
    for m, n in ((1, 1), (67, 67), (1, 131), (35, 131), (131, 67)):
        got = counts(runs, m, n, [n - m, 5])
        np.testing.assert_array_equal(got[0], pattern.counts(m, n))
        np.testing.assert_array_equal(got[1], pattern.counts(m, n, q_start=5))


def test_eight_heads_of_a_kind_cost_one():
    def nodes(pattern):
        return len(to_onnx(pattern, heads=8, head_dim=8).graph.node)

    several = sr.PerHead([sr.Causal() & sr.SlidingWindow(10 * i + 9, 0) for i in range(8)])
    assert nodes(several) < nodes(several.at(0)) + 30


FREE = {name: one for name, one in CATALOGUE.items() if one.covers is None} | {
    "longnet of the paper": sr.recipes.longnet(SEGMENTS, RATES, heads=8),
    "phi3_small of the model": sr.recipes.phi3_small(),
}


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize(
    ("mode", "body"),
    [
        ("custom", "loop"),
        pytest.param("custom", "gather", marks=pytest.mark.slow),
        pytest.param("inline", "loop", marks=pytest.mark.slow),
        pytest.param("inline", "gather", marks=pytest.mark.slow),
    ],
)
def test_a_file_without_weights_is_below_64_kib(mode, body, name):
    heads = max(8, FREE[name].heads)
    model = to_onnx(FREE[name], heads=heads, head_dim=64, mode=mode, body=body)
    assert model.ByteSize() < LIMIT
