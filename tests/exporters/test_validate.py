"""`validate_onnx`: what it finds, what it refuses to read, and what it says."""

import json
import math

import numpy as np
import onnx
import pytest

import sparse_ref as sr
from tests.exporters.one_node import Sizes, draw, model

pytest.importorskip("onnxruntime")


from onnx import TensorProto, helper, numpy_helper

from exporters.onnx import running
from exporters.onnx.judged import _compared
from exporters.onnx.modes import convert
from exporters.onnx.observed import observed
from exporters.onnx.request import Request
from exporters.onnx.running import CPU, CUDA
from exporters.onnx.validate import validate_onnx

WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)
SIZE = Sizes(2, 4, 2, 33, 33, 8, 5)
CASES = [draw(SIZE, seed=seed) for seed in (0, 1)]


def validated(made, cases=CASES, **options):
    return validate_onnx(made, cases=cases, providers=[CPU], **options)


@pytest.fixture(scope="module")
def good():
    return model(WINDOW, SIZE)


@pytest.fixture(scope="module")
def report(good):
    return validate_onnx(good, cases=CASES)


def test_a_good_file_is_ok_and_says_what_was_compared(report):
    assert report.ok
    assert {(one.node, one.what) for one in report.verdicts} == {
        ("y.SparseAttention", what + where)
        for what in ("out", "lse", "lists")
        for where in ("", ", evaluator")
    }
    assert all(0 <= one.share <= 1 for one in report.verdicts)
    assert max(one.share for one in report.verdicts if one.what == "out") > 0.001


def test_every_node_is_named_with_the_provider_that_ran_it(report):
    on_cpu, _, on_cuda = report.runs
    assert {one.provider for one in on_cpu.placed} == {CPU}
    assert len(on_cpu.placed) > 50
    assert any(one.operator == "Loop" and one.floating for one in on_cpu.placed)
    assert on_cpu.ways == {"y.SparseAttention": "standard operators"}
    assert on_cpu.cost.seconds > 0
    assert on_cpu.cost.peak_bytes > 2 * 4 * 33 * 5 * 4
    assert on_cuda.provider == CUDA


def test_the_registered_kernel_is_judged_beside_the_body_and_proved_to_have_run(report):
    body, kernel, _ = report.runs
    if kernel.skipped:
        pytest.skip(kernel.skipped)
    assert (body.provider, kernel.provider) == (CPU, CPU)
    assert (body.kernel, kernel.kernel) == (False, True)
    assert kernel.ways == {"y.SparseAttention": f"a kernel of {CPU}"}
    assert "SparseAttention" in {one.operator for one in kernel.placed}
    assert "Loop" not in {one.operator for one in kernel.placed}
    compared = [{(one.what, one.case) for one in run.verdicts} for run in (body, kernel)]
    assert compared[0] == compared[1]
    assert "CPUExecutionProvider, the registered kernel\n" in str(report)


def test_a_kernel_that_is_registered_but_does_not_run_is_a_problem(monkeypatch, good):
    """A registration that does nothing: the body runs, and agrees."""
    monkeypatch.setattr("exporters.onnx.running._register", lambda options: None)
    found = validated(good, CASES[:1])
    assert not found.ok
    (problem,) = found.problems
    assert problem == (
        "CPUExecutionProvider, the registered kernel: y.SparseAttention ran as standard operators "
        "although the kernel is registered"
    )


def test_where_there_is_no_kernel_the_report_says_why_and_is_ok(monkeypatch, good):
    def unable(options):
        raise running.UnavailableError("there is no C compiler")

    monkeypatch.setattr("exporters.onnx.running._register", unable)
    found = validated(good, CASES[:1])
    assert found.ok
    assert "the registered kernel: skipped, there is no C compiler" in str(found)


def test_a_wrong_answer_of_the_kernel_alone_is_found(monkeypatch, good):
    plain = running.run

    def off(ready, *arguments):
        got = plain(ready, *arguments)
        wrong = 1.001 if ready in registered else 1.0
        return got | {"y": got["y"] * np.float32(wrong)}

    registered, start = [], running.session

    def noted(*arguments, kernel=False):
        ready = start(*arguments, kernel=kernel)
        if kernel:
            registered.append(ready)
        return ready

    monkeypatch.setattr("exporters.onnx.validate.session", noted)
    monkeypatch.setattr("exporters.onnx.validate.run", off)
    found = validated(good, CASES[:1])
    body, kernel = found.runs
    assert kernel.skipped or ([one.ok for one in body.verdicts if one.what == "out"] == [True])
    assert kernel.skipped or ([one.ok for one in kernel.verdicts if one.what == "out"] == [False])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_seen_and_not_finite_may_give_nan_or_itself(good, bad):
    case = draw(SIZE)
    case["v"][:, :, 30] = bad
    assert validated(good, [case]).ok


@pytest.mark.parametrize(
    ("want", "got", "fine"),
    [
        (math.inf, math.inf, True), (math.inf, math.nan, True), (-math.inf, math.nan, True),
        (math.inf, -math.inf, False), (math.inf, 1.0, False), (math.nan, math.nan, True),
        (math.nan, math.inf, False), (1.0, math.nan, False), (1.0, math.inf, False),
    ],
)  # fmt: skip
def test_what_stands_for_an_infinity(want, got, fine):
    one = observed(model(WINDOW, SIZE))[0]
    arrays = (np.full((1, 1, 1, 1), x) for x in (got, want, 1e-6))
    assert _compared(one, "out", "", *arrays).ok == fine


def test_without_a_gpu_cuda_is_skipped_and_never_claimed(report, good):
    if CUDA in running.onnxruntime.get_available_providers():
        pytest.skip("there is CUDA")
    assert "built without CUDAExecutionProvider" in report.runs[2].skipped
    assert not report.runs[2].verdicts
    asked = validate_onnx(good, cases=CASES[:1], providers=[CUDA])
    assert not asked.ok
    assert str(asked).rpartition("NOT RUN")[2].startswith("\nCUDAExecutionProvider: this ONNX")


def test_the_report_as_text_and_as_json(report):
    text, content = str(report), json.loads(report.to_json())
    assert "y.SparseAttention: sparse_ref.SparseAttention of Causal() & SlidingWindow" in text
    assert text.endswith(f"ok: {len(report.verdicts)} comparisons")
    assert content["ok"] is True
    assert content["runs"][0]["verdicts"][0]["node"] == "y.SparseAttention"
    assert content["runs"][0]["placed"][0]["provider"] == CPU
    assert content["gaps"]["source"].startswith("microsoft/onnxruntime")


def initializer(made, name, change):
    tensor = next(one for one in made.graph.initializer if one.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def wrong_tile(made):
    def flip(tiles):
        tiles[1, 3, 5] = 1 - tiles[1, 3, 5]

    initializer(made, "tile_masks", flip)


def lost_block(made):
    def drop(counts):
        counts[0, 0, 2] -= 1

    initializer(made, "block_count", drop)


def block_beyond(made):
    def move(indices):
        indices[0, 0, 2, 0] = 3

    initializer(made, "block_indices", move)


def other_pattern(made):
    entry = next(x for x in made.graph.node[0].metadata_props if x.key == "sparse_ref.pattern")
    entry.value = json.dumps(sr.to_dict(sr.Causal() & sr.SlidingWindow(21, 0)))


@pytest.mark.parametrize("spoil", [wrong_tile, lost_block, block_beyond, other_pattern])
def test_lists_that_do_not_say_the_pattern_are_found(good, spoil):
    made = onnx.ModelProto.FromString(good.SerializeToString())
    spoil(made)
    found = validated(made)
    assert not found.ok
    wrong = {one.what for one in found.runs[0].verdicts if not one.ok}
    assert wrong >= {"out", "lists"}
    lists = next(one.wrong for one in found.verdicts if one.what == "lists")
    assert lists.startswith("block lists differ from the pattern in ")


def test_a_first_wrong_pair_is_named(good):
    made = onnx.ModelProto.FromString(good.SerializeToString())
    initializer(made, "tile_masks", lambda tiles: tiles.__setitem__((1, 3, 5), 1))
    found = validated(made)
    (first,) = {one.wrong for one in found.runs[0].verdicts if one.what == "lists"}
    assert "batch 0, head 0, query 3, key 5 counts 0 times, listed 1" in first
    assert "MISMATCH" in str(found)


@pytest.mark.parametrize(
    ("attribute", "value"), [("scale", 0.5001), ("softcap", 40.0), ("q_block_size", 8)]
)
def test_a_wrong_attribute_is_found(good, attribute, value):
    """What the file computes is compared with what its attributes say: a body that ignores one."""
    made = onnx.ModelProto.FromString(good.SerializeToString())
    body = made.functions[0]
    constant = next(
        node for node in body.node
        for one in node.attribute if one.ref_attr_name == attribute
    )  # fmt: skip
    del constant.attribute[:]
    constant.attribute.append(
        helper.make_attribute("value_int" if attribute == "q_block_size" else "value_float", value)
    )
    assert not validated(made).ok


def lost_window():
    made = convert(Request(WINDOW, heads=4, kv_heads=2, head_dim=8), mode="microsoft")
    node = next(one for one in made.graph.node if one.op_type == "GroupQueryAttention")
    next(one for one in node.attribute if one.name == "local_window_size").i = -1
    return made


def window_of_one_more():
    made = convert(Request(WINDOW, heads=4, kv_heads=2, head_dim=8, opset=25), mode="standard")
    node = next(one for one in made.graph.node if one.op_type == "Attention")
    next(one for one in node.attribute if one.name == "left_window_size").i = 21
    return made


def aligned_to_the_first_key():
    made = convert(Request(WINDOW, heads=4, kv_heads=2, head_dim=8, opset=25), mode="standard")
    node = next(one for one in made.graph.node if one.op_type == "Attention")
    del node.input[3:]
    return made


@pytest.mark.parametrize("spoilt", [lost_window, window_of_one_more, aligned_to_the_first_key])
def test_a_window_that_got_lost_is_found(spoilt):
    """With the drawn cases: short ones are right, what is longer than the window is not."""
    found = validated(spoilt(), cases=None)
    wrong = {one.case for one in found.runs[0].verdicts if not one.ok}
    assert wrong
    assert wrong <= {"33 x 33", "100 x 100", "257 x 257", "1 x 100", "7 x 33", "33 x 7"}


def test_a_nan_is_no_agreement(good):
    made = onnx.ModelProto.FromString(good.SerializeToString())
    node = made.graph.node[0]
    node.output[0] = "clean"
    made.graph.node.extend(
        [
            helper.make_node("Constant", [], ["nan"], value_float=math.nan),
            helper.make_node("Add", ["clean", "nan"], ["y"], name="spoil"),
        ]
    )
    node.metadata_props.add(key="sparse_ref.values", value=json.dumps({"output": "y"}))
    (out,) = {one.share for one in validated(made).runs[0].verdicts if one.what == "out"}
    assert out == math.inf


def test_a_run_that_fails_is_a_mismatch_with_its_reason(good):
    found = validated(good, cases=[draw(SIZE._replace(m=7, n=7))])
    assert not found.ok
    assert found.verdicts[0].wrong.startswith("ONNX Runtime failed at the node")


def network(spoilt=0.0):
    """x -> three projections -> attention -> sum with x -> projection, in float32."""
    rng = np.random.default_rng(0)
    made = model(WINDOW, SIZE._replace(e=8), lse=None)
    graph = made.graph
    names = {"q": (16, 32), "k": (16, 16), "v": (16, 16)}
    heads = {"q": 4, "k": 2, "v": 2}
    nodes = []
    for name, shape in names.items():
        weight = rng.standard_normal(shape).astype(np.float32) / 4
        graph.initializer.append(numpy_helper.from_array(weight, f"{name}.weight"))
        graph.initializer.append(
            numpy_helper.from_array(np.array([0, 33, heads[name], 8]), f"{name}.shape")
        )
        nodes += [
            helper.make_node("MatMul", ["x", f"{name}.weight"], [f"{name}.flat"]),
            helper.make_node("Reshape", [f"{name}.flat", f"{name}.shape"], [f"{name}.apart"]),
            helper.make_node("Transpose", [f"{name}.apart"], [name], perm=[0, 2, 1, 3]),
        ]
    graph.initializer.append(numpy_helper.from_array(np.float32(1 + spoilt), "gain"))
    node = graph.node[0]
    after = [
        helper.make_node("ReduceSum", ["y"], ["pooled"], keepdims=0),
        helper.make_node("Mul", ["pooled", "gain"], ["logit"]),
    ]
    info = helper.make_tensor_value_info
    again = helper.make_graph(
        [*nodes, node, *after], "network", [info("x", TensorProto.FLOAT, ["b", 33, 16])],
        [info("logit", TensorProto.FLOAT, [])], graph.initializer,
    )  # fmt: skip
    made.graph.CopyFrom(again)
    onnx.checker.check_model(made, full_check=True)
    return made


def test_a_network_is_judged_node_by_node_and_end_to_end():
    found = validate_onnx(network(), providers=[CPU])
    assert found.ok, str(found)
    assert {"out", "lists", "out, evaluator", "end to end"} <= {one.what for one in found.verdicts}


def test_what_a_runtime_does_wrong_outside_of_attention_is_found(monkeypatch):
    """A runtime that scales the logit by 1.001, which no attention node shows."""
    plain = running.run

    def off(*arguments):
        got = plain(*arguments)
        return got | ({"logit": got["logit"] * np.float32(1.001)} if "logit" in got else {})

    monkeypatch.setattr("exporters.onnx.validate.run", off)
    wrong = [one for one in validate_onnx(network(), providers=[CPU]).verdicts if not one.ok]
    assert {one.what for one in wrong} == {"end to end"}
    assert wrong[0].wrong.startswith("logit is off by ")
