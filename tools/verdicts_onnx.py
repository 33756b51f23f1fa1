"""ONNX's Attention and ONNX Runtime's own operators, in ONNX Runtime and in others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ref.conformance import Case

from .verdicts_mistakes import MASKED
from .verdicts_peers import Peer, needed, question, suite

Feeds = dict[str, NDArray[Any]]
Runner = Callable[[Any, Feeds], list[Any]]
Implementation = Callable[..., Any]
ATTENTION = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")


def model(
    operator: str, names: tuple[str, ...], outputs: tuple[str, ...], feeds: Feeds,
    version: int = 23, domain: str = "", **attributes: Any,
) -> Any:  # fmt: skip
    """A model of one operator; what is not fed is left out."""
    helper = needed("onnx").helper
    given = [name if name in feeds else "" for name in names]
    while not given[-1]:
        given.pop()
    node = helper.make_node(operator, given, outputs, domain=domain, **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feeds.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(next(iter(feeds.values())).dtype)
    answers = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    opsets = [helper.make_opsetid("", version)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    graph = helper.make_graph([node], "attention", values, answers)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(made: Any) -> Any:
    """In ONNX Runtime, on one thread; what it refuses to load is not supported."""
    ort = needed("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return or_refused(
        lambda: ort.InferenceSession(
            made.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    )


def in_ort(made: Any, feeds: Feeds) -> list[Any]:
    """The outputs."""
    ready = session(made)
    return list(or_refused(lambda: ready.run(None, feeds)))


def or_refused(call: Callable[[], Any]) -> Any:
    """Its result; NotImplementedError where ONNX Runtime says that it is asked too much."""
    states = needed("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        return call()
    except (states.InvalidArgument, states.NotImplemented, states.InvalidGraph) as refusal:
        raise NotImplementedError(f"it refuses: {_last_line(refusal)}") from None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rsplit("Status Message: ", 1)[-1].rsplit(" : ", 1)[-1][:160]


def in_reference(made: Any, feeds: Feeds) -> list[Any]:
    """The evaluator that onnx has itself."""
    return list(needed("onnx.reference").ReferenceEvaluator(made).run(None, feeds))


def in_openvino(made: Any, feeds: Feeds) -> list[Any]:
    """OpenVINO's reader of ONNX, in float32."""
    ov = needed("openvino")
    core = ov.Core()
    try:
        network = core.read_model(made.SerializeToString())
    except RuntimeError as error:
        raise NotImplementedError(f"it refuses: {_last_line(error)}") from None
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(network, "CPU", settings)
    found = compiled([feeds[one.any_name] for one in compiled.inputs])
    return [np.array(found[0])]


def attention(run: Runner, version: int) -> Callable[[], Implementation]:
    """ai.onnx Attention: is_causal or windows where they say the same, else a mask."""

    def attend(q: Any, k: Any, v: Any, pattern: Any, **attributes: Any) -> Any:
        m, n = q.shape[2], k.shape[2]
        asked = question(q, k, pattern, attributes)
        given = asked.rest(scale="scale", softcap="softcap", bias="bias")
        bias, feeds = given.pop("bias", None), {"Q": q, "K": k, "V": v}
        window = _window(q, k, pattern) if version >= 25 and bias is None else None
        first = not asked.starts.any() and "kv_lengths" not in attributes
        if window is not None and first:
            given |= window
        elif bias is None and (asked.mask() == np.tri(m, n, dtype=bool)).all():
            given["is_causal"] = 1
        elif bias is None:
            feeds["attn_mask"] = asked.mask()
        else:
            feeds["attn_mask"] = np.where(asked.mask(), bias, -np.inf).astype(q.dtype)
        made = model("Attention", ATTENTION, ("Y",), feeds, version, **given)
        return run(made, feeds)[0]

    return lambda: attend


def _window(q: Any, k: Any, pattern: Any) -> dict[str, int] | None:
    """The attributes that say a pattern which is a window and nothing else."""
    try:
        form = question(q, k, pattern, {}).form()
    except NotImplementedError:
        return None
    said = {} if form.left is None else {"left_window_size": form.left}
    if form.right == 0:
        return said | {"is_causal": 1}
    return said if form.right is None else said | {"right_window_size": form.right}


def windows() -> list[Case]:
    """Causal ones and windows, queries aligned to the first key."""
    found = [
        case for case in suite("float32")
        if case.name in ("causal", "full", "band", "lookahead") or case.name.startswith("window")
    ]  # fmt: skip
    first = [case for case in found if set(case.options) <= {"scale", "softcap", "bias", "q_start"}]
    return [case for case in first if case.sizes.m == case.sizes.n or "q_start" in case.options]


ORT = "onnxruntime"
PEERS = (
    *(
        Peer(
            f"ONNX Runtime, Attention-{version}", ORT, words, attention(in_ort, version),
            suite,
        )
        for version, words in (
            (23, "is_causal, or attn_mask"), (24, "is_causal, or attn_mask"),
            (25, "is_causal, windows, or attn_mask"),
        )
    ),
    Peer(
        "onnx ReferenceEvaluator, Attention-25", "onnx", "is_causal, windows, or attn_mask",
        attention(in_reference, 25), lambda: suite("float32"),
    ),
    Peer(
        "OpenVINO, Attention-23", "openvino", "an ONNX file: is_causal, or attn_mask",
        attention(in_openvino, 23), lambda: suite("float32"), MASKED,
    ),
    Peer(
        "OpenVINO, Attention-25", "openvino", "an ONNX file: is_causal, or windows",
        attention(in_openvino, 25), windows, MASKED,
    ),
)  # fmt: skip
