"""ONNX: Attention 23, 24 and 25 in two runtimes, and ONNX Runtime's own attention operators."""

import numpy as np
import pytest

import sparse_ref as sr
from tests.witnesses import agrees, inputs

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.witness
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def model(node, feeds, version, domain=""):
    types = {np.dtype(np.float32): FLOAT, np.dtype(bool): onnx.TensorProto.BOOL}
    types |= {
        np.dtype(np.int64): onnx.TensorProto.INT64,
        np.dtype(np.int32): onnx.TensorProto.INT32,
    }
    given = [
        helper.make_tensor_value_info(name, types[x.dtype], x.shape) for name, x in feeds.items()
    ]
    out = [helper.make_tensor_value_info(name, FLOAT, None) for name in node.output if name]
    opsets = [helper.make_opsetid("", version)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    graph = helper.make_graph([node], "attention", given, out)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def in_ort(made, feeds):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def in_reference(made, feeds):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(made).run(None, feeds)[0]


RUNTIMES = {"onnxruntime": in_ort, "reference": in_reference}


def attention(run, version, feeds, **attributes):
    names = ["q", "k", "v", "mask", "", "", "lengths"]
    node_inputs = [name if name in feeds else "" for name in names]
    while not node_inputs[-1]:
        node_inputs.pop()
    node = helper.make_node("Attention", node_inputs, ["y"], **attributes)
    return run(model(node, feeds, version), feeds)


@pytest.mark.parametrize("run", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize("version", [23, 24, 25])
@pytest.mark.parametrize(
    "pattern",
    [sr.Causal() & sr.SlidingWindow(3, 0), ~sr.Full(), sr.Global([2]) | sr.Strided(3)],
    ids=repr,
)
def test_attention_with_our_mask(pattern, version, run):
    q, k, v = inputs()
    feeds = {"q": q, "k": k, "v": v, "mask": pattern.mask(13, 19)[0]}

    agrees(attention(run, version, feeds, softcap=1.5), q, k, v, pattern, softcap=1.5)


@pytest.mark.parametrize("run", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize("version", [23, 24, 25])
def test_causal_attention_is_aligned_to_the_first_key(version, run):
    q, k, v = inputs()
    got = attention(run, version, {"q": q, "k": k, "v": v}, is_causal=1)

    agrees(got, q, k, v, sr.Causal(), q_start=0)


@pytest.mark.parametrize("run", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 2), (-1, 1), (4, -1), (0, 0)])
def test_attention_25_windows_are_besides_the_query(left, right, run):
    q, k, v = inputs()
    got = attention(
        run, 25, {"q": q, "k": k, "v": v}, left_window_size=left, right_window_size=right
    )

    agrees(got, q, k, v, sr.conventions.onnx25(left, right), q_start=0)


@pytest.mark.parametrize("run", RUNTIMES.values(), ids=RUNTIMES)
def test_attention_24_aligns_causality_to_the_key_lengths(run):
    q, k, v = inputs()
    lengths = np.array([15, 19])
    feeds = {"q": q, "k": k, "v": v, "lengths": lengths}
    got = attention(run, 24, feeds, is_causal=1)

    agrees(got, q, k, v, sr.Causal(), kv_lengths=lengths, q_start=lengths - 13)


def grouped(q, k, v, **attributes):
    """com.microsoft.GroupQueryAttention without a cache."""
    (b, h, m, d), g = q.shape, k.shape[1]
    sinks = attributes.pop("sinks", None)
    feeds = {
        name: np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(b, m, -1)
        for name, x in (("q", q), ("k", k), ("v", v))
    }
    feeds |= {"past_k": np.zeros((b, g, 0, d), np.float32)}
    feeds |= {"past_v": np.zeros((b, g, 0, d), np.float32)}
    feeds |= {"last": np.full(b, m - 1, np.int32), "total": np.array([m], np.int32)}
    names = ["q", "k", "v", "past_k", "past_v", "last", "total"]
    if sinks is not None:
        feeds["sinks"] = sinks
        names += ["", "", "", "", "sinks"]
    node = helper.make_node(
        "GroupQueryAttention", names, ["y", "key", "value"], domain="com.microsoft",
        num_heads=h, kv_num_heads=g, **attributes,
    )  # fmt: skip
    got = in_ort(model(node, feeds, 18, "com.microsoft"), feeds)
    return got.reshape(b, m, h, d).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("w", [1, 4, 13, 40])
def test_group_query_attention_counts_the_query_in_its_window(w):
    q, k, v = inputs(m=13, n=13)

    agrees(grouped(q, k, v, local_window_size=w), q, k, v, sr.conventions.ort_gqa(w))


def test_group_query_attention_softcap_sinks_and_window():
    q, k, v = inputs(m=13, n=13)
    sinks = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
    pattern = sr.recipes.mistral(5)

    agrees(grouped(q, k, v, softcap=2.0), q, k, v, sr.Causal(), softcap=2.0)
    agrees(grouped(q, k, v, sinks=sinks, local_window_size=5), q, k, v, pattern, sink_logits=sinks)
    smooth = grouped(q, k, v, smooth_softmax=1)
    agrees(smooth, q, k, v, sr.Causal(), sink_logits=np.zeros(4))
