"""Tensors of a layout, nodes, the whole model, and what the checker refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

import sparse_ref as sr

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, checker, helper, shape_inference  # noqa: E402

from exporters.onnx import DOMAIN, OP, attention_node, block_tensors, finish, loop_body, register  # noqa: E402
from exporters.onnx.graph import Graph  # noqa: E402
from tests.exporters.one_node import Sizes, by_evaluator, by_runtime, draw, model  # noqa: E402

SIZE = Sizes(1, 4, 2, 33, 33, 5, 3)
WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)


def counts_of(tensors, q_len, kv_len):
    """The multiplicities that the tensors say, read entry by entry."""
    indices, count, ids, masks = tensors.values()
    _, bq, bk = masks.shape
    heads, rows = count.shape[1:]
    columns = -(-kv_len // bk)
    dense = np.zeros((heads, rows * bq, columns * bk), dtype=int)
    for h, r in np.ndindex(heads, rows):
        for slot in range(count[0, h, r]):
            c = indices[0, h, r, slot]
            dense[h, r * bq : (r + 1) * bq, c * bk : (c + 1) * bk] = masks[ids[0, h, r, slot]]
    return dense[:, :q_len, :kv_len]


@pytest.mark.parametrize(
    ("pattern", "lists"),
    [
        (WINDOW, 1),
        (sr.Multi([WINDOW, sr.Keys([3])]), 1),
        (sr.Keys([]), 1),
        (sr.PerHead([WINDOW, sr.Causal() & sr.Strided(5)]), 4),
    ],
)
def test_the_tensors_say_the_pattern(pattern, lists):
    tensors = block_tensors(sr.to_blocks(pattern, 21, 33, block_size=(4, 8), heads=4))
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "block_indices": np.int32, "block_count": np.int32, "tile_ids": np.int32,
        "tile_masks": np.uint8,
    }  # fmt: skip
    assert tensors["block_indices"].shape[:3] == (1, lists, 6)
    said = np.broadcast_to(counts_of(tensors, 21, 33), (4, 21, 33))
    np.testing.assert_array_equal(said, pattern.counts(21, 33, heads=4))


def test_the_node_says_its_pattern():
    (node,) = model(WINDOW, SIZE).graph.node
    said = {one.key: one.value for one in node.metadata_props}
    assert sr.from_dict(json.loads(said["sparse_ref.pattern"])) == WINDOW
    assert said["sparse_ref.sentence"].startswith("A query sees the keys up to its own position")


def test_a_node_takes_seven_to_nine_inputs():
    with pytest.raises(ValueError, match=r"^inputs must be 7 to 9 names, got 6$"):
        attention_node(list("abcdef"), "y", pattern=WINDOW, block_size=(4, 4), scale=1.0)


def test_a_file_is_small_and_the_same_every_time():
    first, second = (model(WINDOW, SIZE).SerializeToString() for _ in range(2))
    assert first == second
    assert len(first) < 26_000


def test_finishing_again_changes_nothing():
    made = model(WINDOW, SIZE)
    assert finish(onnx.ModelProto.FromString(made.SerializeToString()), 18) == made


def test_a_model_without_a_node_of_ours_is_refused():
    graph = helper.make_graph([], "empty", [], [])
    with pytest.raises(ValueError, match=r"^model must have a sparse_ref.SparseAttention node"):
        finish(helper.make_model(graph), 18)


@pytest.mark.parametrize("run", [by_runtime, by_evaluator])
def test_one_node_may_ask_for_lse_and_another_not(run):
    made = two_nodes(TensorProto.FLOAT, TensorProto.FLOAT16, lse=True)
    feed = {f"{name}{i}": x for i, of in enumerate((np.float32, np.float16))
            for name, x in draw(SIZE, of).items()}  # fmt: skip
    *_, lse = run(made, feed)
    expected = sr.attention(*(feed[f"{name}0"] for name in "qkv"), WINDOW, scale=0.5).lse
    np.testing.assert_allclose(lse, expected, rtol=0, atol=1e-6)


def test_lse_of_float64_beside_others_is_refused():
    with pytest.raises(ValueError, match=r"^model must not ask for lse where float64 nodes"):
        two_nodes(TensorProto.FLOAT, TensorProto.DOUBLE, lse=True)


def test_the_body_needs_opset_18():
    with pytest.raises(ValueError, match=r"^opset must be >= 18, got 17$"):
        loop_body(17)


def test_types_of_one_model_may_differ():
    made = two_nodes(TensorProto.FLOAT16, TensorProto.DOUBLE)
    feed = {f"{name}{i}": x for i, of in enumerate((np.float16, np.float64))
            for name, x in draw(SIZE, of).items()}  # fmt: skip
    for got in (by_runtime(made, feed), by_evaluator(made, feed)):
        for i, out in enumerate(got):
            q, k, v = (feed[f"{name}{i}"] for name in "qkv")
            expected = sr.attention(q, k, v, WINDOW, scale=0.5).out
            assert out.dtype == q.dtype
            np.testing.assert_allclose(out, expected, rtol=0, atol=(1e-3, 1e-14)[i])


def test_bfloat16():
    size, info = SIZE, helper.make_tensor_value_info
    made = model(WINDOW, size, lse=None)
    graph = made.graph
    casts = [helper.make_node("Cast", [x], [x * 2], to=TensorProto.BFLOAT16) for x in "qkv"]
    node = graph.node[0]
    node.input[:3], node.output[0], node.input[8] = ["qq", "kk", "vv"], "yy", "none"
    sinks = helper.make_tensor("none", TensorProto.BFLOAT16, [1], [-np.inf])
    graph.initializer.append(sinks)
    back = helper.make_node("Cast", ["yy"], ["y"], to=TensorProto.FLOAT)
    nodes = [*casts, node, back]
    again = helper.make_graph(nodes, "g", graph.input, graph.output, graph.initializer)
    again.value_info.extend(info(x, TensorProto.BFLOAT16, None) for x in ("qq", "kk", "vv"))
    made.graph.CopyFrom(again)
    checker.check_model(made, full_check=True)
    feed = draw(size)
    expected = sr.attention(*feed.values(), WINDOW, scale=0.5).out
    np.testing.assert_allclose(by_runtime(made, feed)[0], expected, rtol=0, atol=0.06)


def two_nodes(*kinds, lse=False):
    """A model with one node for each element type; the first may have the second output."""
    tensors = block_tensors(sr.to_blocks(WINDOW, 33, 33, block_size=16))
    info, nodes, given, out = helper.make_tensor_value_info, [], [], []
    for i, kind in enumerate(kinds):
        names = [f"{name}{i}" for name in "qkv"]
        shapes = ["b", 4, 33, 5], ["b", 2, 33, 5], ["b", 2, 33, 3]
        given += [info(name, kind, shape) for name, shape in zip(names, shapes, strict=True)]
        out.append(info(f"y{i}", kind, ["b", 4, 33, 3]))
        nodes.append(
            attention_node(
                [*names, *tensors], f"y{i}", pattern=WINDOW, block_size=(16, 16), scale=0.5,
                lse="lse" if lse and i == 0 else None,
            )
        )  # fmt: skip
    if lse:
        out.append(info("lse", TensorProto.FLOAT, ["b", 4, 33]))
    lists = [onnx.numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    graph = helper.make_graph(nodes, "two", given, out, lists)
    return finish(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), 18)


def test_shapes_are_inferred():
    made = model(WINDOW, SIZE)
    del made.graph.output[:]
    end = helper.make_node("Identity", ["y"], ["z"])
    made.graph.node.append(end)
    register()
    inferred = shape_inference.infer_shapes(made, check_type=True, strict_mode=True)
    found = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    }
    assert found["y"] == found["z"] == ["b", 4, "m", 3]
    assert found["lse"] == ["b", 4, "m"]


def dims(model, name, *sizes):
    shape = next(one for one in model.graph.input if one.name == name).type.tensor_type.shape
    shape.CopyFrom(helper.make_tensor_type_proto(1, sizes).tensor_type.shape)


def attribute(model, name, value):
    kept = [one for one in model.graph.node[0].attribute if one.name != name]
    if value is not None:
        kept.append(helper.make_attribute(name, value))
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(kept)


def element(model, name, kind):
    one = next(one for one in model.graph.input if one.name == name)
    one.type.tensor_type.elem_type = kind


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda m: dims(m, "q", 1, 4, 5), "query must have rank 4, got 3"),
        (lambda m: dims(m, "k", 1, 2, 33, 6), "key must have 5 on axis 3, got 6"),
        (lambda m: dims(m, "k", 1, 3, 33, 5), "key must have heads that divide the query's 4"),
        (lambda m: dims(m, "v", 1, 1, 33, 3), "value must have 2 on axis 1, got 1"),
        (lambda m: element(m, "k", TensorProto.FLOAT16), "key must be float, got float16"),
        (lambda m: element(m, "q", TensorProto.INT32), "int32"),
        (lambda m: attribute(m, "q_block_size", 0), "q_block_size must be >= 1, got 0"),
        (lambda m: attribute(m, "k_block_size", 16), "tile_masks must have 16 on axis 2, got 8"),
        (lambda m: attribute(m, "scale", 0.0), "scale must be > 0, got 0.0"),
        (lambda m: attribute(m, "softcap", -1.0), "softcap must be >= 0, got -1.0"),
        (lambda m: attribute(m, "scale", None), "Required attribute 'scale' is missing"),
        (lambda m: attribute(m, "causal", 1), "Unrecognized attribute: causal"),
    ],
)
def test_the_checker_refuses(spoil, sentence):
    made = model(WINDOW, SIZE)
    checker.check_model(made, full_check=True)
    spoil(made)
    with pytest.raises((checker.ValidationError, shape_inference.InferenceError), match=sentence):
        checker.check_model(made, full_check=True)


def test_registering_twice_is_harmless():
    register()
    register()
    assert onnx.defs.get_schema(OP, 1, DOMAIN).has_type_and_shape_inference_function


def test_a_symbol_has_no_truth_value():
    with pytest.raises(TypeError, match="no truth value"):
        bool(Graph(np.float32).symbol("x"))


def test_the_face_loads_no_framework():
    script = (
        "import sys, exporters\n"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "assert exporters.block_tensors and 'torch' not in sys.modules\n"
        "try: exporters.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "module 'exporters' has no attribute 'nothing'\n"
