"""What is known of CUDA without a GPU: ONNX Runtime's kernel list, and what a stray node means."""

from itertools import pairwise

import onnx
import pytest

import sparse_ref as sr
from tests.exporters.one_node import Sizes, model

pytest.importorskip("onnxruntime")

from exporters.onnx.cuda import cuda_gaps
from exporters.onnx.cuda_ops import kernels
from exporters.onnx.modes import convert
from exporters.onnx.observed import observed
from exporters.onnx.request import Request
from exporters.onnx.running import CPU, CUDA, Placed
from exporters.onnx.validate import _Judge

WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)
SIZE = Sizes(2, 4, 2, 33, 33, 8, 5)


def test_the_kernel_list_is_read_as_it_is_written():
    table = kernels()
    assert [(one.first, one.last) for one in table["Reshape"]] == [
        (14, 18), (19, 20), (21, 22), (23, 23),
    ]  # fmt: skip
    assert "bool" not in table["Where"][0].types["T"]
    assert table["com.microsoft.SparseAttention"][0].types["T"] == {"bfloat16", "float16"}
    for several in table.values():
        assert all(a.last < b.first for a, b in pairwise(several))


def test_operators_without_a_kernel_are_named():
    where = """<ir_version: 8, opset_import: ["": 18]> g (bool[n] c, bool[n] x) => (bool[n] y)
               { y = Where (c, x, c) }"""
    (gap,) = cuda_gaps(onnx.parser.parse_model(where))
    assert str(gap) == "Where-16 of bool, 1 node(s)"
    assert not gap.floating


PATTERNS = [
    WINDOW,
    sr.Multi([WINDOW, sr.Sink(2)]),
    sr.Causal() & sr.Document(sr.Runtime("ids")),
    sr.PerHead([WINDOW | sr.Global([0, 70]), sr.RandomKeys(3, 0, 100)]),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=range(4))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_floating_operator_of_a_file_for_cuda_has_a_kernel_at_opset_18(pattern, dtype):
    made = convert(Request(pattern, heads=4, head_dim=8, dtype=dtype, sinks=True), body="gather")
    assert not [str(gap) for gap in cuda_gaps(made) if gap.floating]


def test_a_later_opset_has_operators_without_a_kernel():
    """A kernel of version 18 alone does not run ReduceMax of opset 20."""
    made = convert(Request(WINDOW, heads=4, head_dim=8, opset=20), body="gather")
    assert any(gap.floating and gap.operator == "ReduceMax" for gap in cuda_gaps(made))


def test_on_cuda_the_loop_body_and_strays_are_problems():
    good = model(WINDOW, SIZE)
    judge = _Judge(good, observed(good), [])
    placed = [
        Placed("a", "Shape", CPU, False),
        Placed("b", "Softmax", CPU, True),
        Placed("c", "MatMul", CUDA, True),
    ]
    assert judge.cuda_problems(placed) == [
        "CPUExecutionProvider ran the floating-point Softmax b",
        "the loop body launches every block by itself: export body='gather'",
    ]
