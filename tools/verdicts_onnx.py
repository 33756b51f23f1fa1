"""ONNX's Attention, in ONNX Runtime and in others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref.conformance import Case
from sparse_ref.conformance.operators import Attention, Feeds, Runner, in_onnxruntime

from .verdicts_peers import Peer, needed, suite


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
        last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise NotImplementedError(f"it refuses: {last[:160]}") from None
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(network, "CPU", settings)
    found = compiled([feeds[one.any_name] for one in compiled.inputs])
    return [np.array(found[0])]


def attention(run: Runner, version: int) -> Callable[[], Callable[..., Any]]:
    """ai.onnx Attention: is_causal or windows where they say the same, else a mask."""
    return lambda: sr.Candidate(Attention(version, run), spell=f"onnx{version}")


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
            f"ONNX Runtime, Attention-{version}", ORT, words, attention(in_onnxruntime, version),
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
        attention(in_openvino, 23), lambda: suite("float32"),
    ),
    Peer(
        "OpenVINO, Attention-25", "openvino", "an ONNX file: is_causal, or windows",
        attention(in_openvino, 25), windows,
    ),
)  # fmt: skip
