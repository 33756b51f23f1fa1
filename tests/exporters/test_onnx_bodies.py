"""The bodies of the ONNX operator on lists of any kind, each against the oracle's reading of them.

`test_onnx.py` has the meaning; here are laws over random lists, what a run refuses, what is hidden
and seen, and the types and opsets.
"""

import re

import numpy as np
import pytest
from hypothesis import given, settings

import sparse_ref as sr

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, checker, helper, inliner  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from exporters.onnx.cuda import cuda_gaps  # noqa: E402
from exporters.onnx.lists import IN_RANGE  # noqa: E402
from exporters.onnx.schema import DOMAIN, split_scale  # noqa: E402
from tests.exporters.any_lists import BODIES, feed_of, model, oracle, problems, run  # noqa: E402
from tests.exporters.test_onnx import assert_within_bound  # noqa: E402

WINDOW = sr.SlidingWindow(4, 4)
GLOBAL = WINDOW | sr.Global([0, 1, 40])
DENSE_HEAD = sr.PerHead([sr.Full(), WINDOW, WINDOW, WINDOW])
LISTS = ("block_indices", "block_count", "tile_ids")


@pytest.mark.parametrize("body", BODIES)
@given(problem=problems())
@settings(max_examples=60)
def test_a_body_is_attention_over_its_lists(body, problem):
    feed, block, cap = problem
    got = run(model(body, block, cap), feed)
    arguments, rest = oracle(feed, cap)
    with np.errstate(all="ignore"):
        assert_within_bound(got, *arguments, np.float32, **rest)


@given(problem=problems())
@settings(max_examples=15)
def test_onnx_own_evaluator_agrees(problem):
    feed, block, cap = problem
    for body in BODIES:
        with np.errstate(all="ignore"):
            slow = ReferenceEvaluator(model(body, block, cap)).run(None, feed)
        for ours, theirs in zip(run(model(body, block, cap), feed), slow, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("block_indices", (0, 0, 3, 0), -1),
        # a block past the first head's keys would be one of the second head's
        ("block_indices", (0, 0, 3, 1), 10),
        ("tile_ids", (0, 0, 2, 0), -1),
        ("tile_ids", (0, 0, 2, 0), 99),
        ("block_count", (0, 0, 3), -1),
        ("block_count", (0, 0, 3), 99),
    ],
)
def test_lists_that_point_out_of_range_are_an_error(body, name, at, value):
    feed = feed_of(WINDOW, 2, 3, 3, 29, 29)
    run(model(body), feed)
    feed[name] = feed[name].copy()
    feed[name][at] = value
    with pytest.raises(Exception, match=re.escape(IN_RANGE)):
        run(model(body), feed)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "name", ["block_indices", "block_count", "tile_ids", "key_length", "sinks"]
)
def test_lists_of_a_number_that_fits_nothing_are_an_error(body, name):
    feed = feed_of(DENSE_HEAD, 3, 4, 2, 7, 7)
    run(model(body), feed)
    if name in {"key_length", "sinks"}:
        feed[name] = np.concatenate([feed[name]] * 2)
    else:  # two batch rows of lists for three of queries
        feed[name] = np.concatenate([feed[name]] * 2)
        if name == "block_indices":
            feed |= {one: np.concatenate([feed[one]] * 2) for one in LISTS[1:]}
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        run(model(body), feed)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_hidden_changes_no_bit(body, name, bad):
    """Wherever it is: before, inside and behind what a tile shows, and past the length."""
    feed = feed_of(GLOBAL - sr.Keys([0, 7]), 1, 4, 2, 48, 48)
    feed["key_length"] = np.array([41], dtype=np.int32)
    hidden = [0, 7, 41, 47]
    clean = {**feed, name: feed[name].copy()}
    clean[name][:, :, hidden] = 1e30  # takes the same path without an infinity
    dirty = {**feed, name: feed[name].copy()}
    dirty[name][:, :, hidden] = bad
    for expected, actual in zip(
        run(model(body), clean if name == "key" else feed), run(model(body), dirty), strict=True
    ):
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_seen_spoils_its_entries_alone(body, bad):
    feed = feed_of(sr.SlidingWindow(1, 0) | sr.Rows([30]), 1, 1, 1, 33, 33)
    feed["value"][0, 0, 7, 1] = bad
    expected = np.zeros((33, 3), dtype=bool)
    expected[[7, 8, 30], 1] = True
    out, lse = run(model(body), feed)
    np.testing.assert_array_equal(np.isnan(out[0, 0]), expected)
    assert np.isfinite(lse).all()
    assert np.isfinite(out[0, 0][~expected]).all()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("opset", range(18, 24))
def test_every_opset_with_and_without_lse(body, lse, opset):
    feed = feed_of(GLOBAL, 2, 4, 2, 48, 48)
    expected = run(model(body), feed)[: 1 + lse]
    for actual, want in zip(run(model(body, opset=opset, lse=lse), feed), expected, strict=True):
        np.testing.assert_array_equal(actual, want)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_every_type_that_numpy_has(body, dtype):
    feed = feed_of(GLOBAL, 2, 4, 2, 48, 48, dtype=dtype)
    got = run(model(body, kind=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))), feed)
    arguments, rest = oracle(feed)
    assert_within_bound(got, *arguments, dtype, **rest)


@pytest.mark.parametrize("body", BODIES)
def test_bfloat16(body):
    """Through casts, since NumPy has no such type."""
    made = onnx.ModelProto.FromString(
        model(body, kind=TensorProto.BFLOAT16, lse=False).SerializeToString()
    )
    graph, real = made.graph, ("query", "key", "value", "sinks")
    casts = [helper.make_node("Cast", [f"{x}32"], [x], to=TensorProto.BFLOAT16) for x in real]
    for one in graph.input:
        if one.name in real:
            one.name, one.type.tensor_type.elem_type = f"{one.name}32", TensorProto.FLOAT
    nodes = [*casts, *graph.node, helper.make_node("Cast", ["Y"], ["Y32"], to=TensorProto.FLOAT)]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output[0].name, graph.output[0].type.tensor_type.elem_type = "Y32", TensorProto.FLOAT
    checker.check_model(made, full_check=True)
    feed = feed_of(GLOBAL, 1, 4, 2, 48, 48)
    for name in real:  # numbers that bfloat16 has
        feed[name] = (feed[name].view(np.uint32) & 0xFFFF0000).view(np.float32)
    (actual,) = run(made, {f"{name}32" if name in real else name: x for name, x in feed.items()})
    arguments, rest = oracle(feed)
    bound = sr.error_bound(*arguments, arithmetic="float32", output="bfloat16", **rest).out
    assert (np.abs(actual - sr.attention(*arguments, **rest).out) <= bound).all()


@pytest.mark.parametrize("body", BODIES)
def test_inlined_it_is_standard_onnx_and_the_same(body):
    feed = feed_of(GLOBAL, 2, 4, 2, 48, 48)
    made = inliner.inline_local_functions(model(body))
    kept = [one for one in made.opset_import if one.domain != DOMAIN]
    del made.opset_import[:]
    made.opset_import.extend(kept)
    checker.check_model(made, full_check=True)
    assert not made.functions
    for actual, expected in zip(run(made, feed), run(model(body), feed), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("body", BODIES)
def test_a_scale_that_float32_has_not_is_exact_in_float64(body):
    """The attribute is a float32, so the queries bring the rest: the recipe of OPERATOR.md."""
    feed = feed_of(GLOBAL, 1, 2, 1, 48, 48, dtype=np.float64)
    scale = 5**-0.5
    attribute, factor = split_scale(scale, np.float64)
    got = run(
        model(body, kind=TensorProto.DOUBLE, scale=attribute),
        feed | {"query": feed["query"] * factor},
    )
    arguments, rest = oracle(feed)
    assert_within_bound(got, *arguments, np.float64, **rest | {"scale": scale})


def test_the_gather_body_has_no_loop_and_a_kernel_on_cuda_for_every_node():
    made = model("gather")
    assert not cuda_gaps(made)
    assert "Loop" not in kinds_of(made.functions[0].node)
    assert not [gap for gap in cuda_gaps(model("gather", opset=19)) if gap.floating]


def kinds_of(nodes):
    inner = [attribute.g.node for node in nodes for attribute in node.attribute]
    return {node.op_type for node in nodes}.union(*map(kinds_of, inner))
