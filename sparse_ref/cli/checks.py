"""What the demo asks of a trained model and of the file it was saved to.

Three runs of the same weights: PyTorch, ONNX Runtime from the file, NumPy with the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.metrics import f1_score

import sparse_ref as sr
from exporters.pytorch import SparseTransformer

from . import network
from .network import Array

LEARNT = 0.94
ROUNDING = 4.0  # times the error that float32 costs NumPy itself


@dataclass(frozen=True)
class Check:
    """One row of the closing table; `holds` is None where the number is only reported."""

    name: str
    measured: str
    limit: str
    holds: bool | None


@dataclass(frozen=True)
class Runs:
    """Logits (b, 10) of the same tokens by four runs of the same weights."""

    torch: Array
    onnx: Array
    float32: Array
    float64: Array


def run_all(model: SparseTransformer, path: Path, tokens: Array) -> Runs:
    """PyTorch, the saved file, and NumPy in float32 and in float64."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    heads = model.heads
    with torch.no_grad():
        by_torch = model(torch.from_numpy(tokens)).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (by_onnx,) = session.run(None, {session.get_inputs()[0].name: tokens})
    exact = {name: value.astype(np.float64) for name, value in state.items()}
    return Runs(
        torch=by_torch,
        onnx=by_onnx,
        float32=network.logits(state, tokens, model.patterns, heads, network.dense),
        float64=network.logits(exact, tokens, model.patterns, heads, network.oracle),
    )


def learnt(predictions: Array, labels: Array, *, judged: bool) -> Iterator[Check]:
    """Accuracy and macro-F1 on digits that were not trained on."""
    limit = f">= {LEARNT}" if judged else "more steps"
    accuracy = float((predictions == labels).mean())
    macro = float(f1_score(labels, predictions, average="macro"))
    for name, value in (("accuracy", accuracy), ("macro-F1", macro)):
        verdict = value >= LEARNT if judged else None
        yield Check(f"{name}, {len(labels)} held-out digits", f"{value:.4f}", limit, verdict)


def agree(runs: Runs) -> Iterator[Check]:
    """Logits no further from float64 than float32 explains, and the same answers."""
    limit = ROUNDING * float(np.abs(runs.float32 - runs.float64).max())
    for name, got in (("PyTorch", runs.torch), ("ONNX Runtime", runs.onnx)):
        error = float(np.abs(got - runs.float64).max())
        yield Check(f"logits, {name} to oracle", f"{error:.1e}", f"<= {limit:.1e}", error <= limit)
    answers = np.stack([x.argmax(-1) for x in (runs.torch, runs.onnx, runs.float64)])
    same, count = int((answers == answers[0]).all(0).sum()), answers.shape[1]
    yield Check("predictions equal, all three", str(same), f"= {count}", same == count)


def within_bound(path: Path, patterns: list[sr.Pattern], tokens: Array) -> Iterator[Check]:
    """Each attention node of the file within the error bound on the inputs that reached it."""
    nodes = attention_values(path, tokens)
    name = "attention nodes in the file"
    yield Check(name, str(len(nodes)), f"= {len(patterns)}", len(nodes) == len(patterns))
    for i, ((q, k, v, out), pattern) in enumerate(zip(nodes, patterns, strict=False), start=1):
        want = sr.attention(q, k, v, pattern).out
        bound = sr.error_bound(q, k, v, pattern, arithmetic="float32", output="float32").out
        ratio = share_of_bound(out, want, bound)
        yield Check(
            f"attention {i}, max error {np.abs(out - want).max():.1e}",
            f"{ratio:.3f} of bound",
            "<= 1",
            ratio <= 1,
        )


def share_of_bound(got: Array, want: Array, bound: Array) -> float:
    """The largest error over its bound: NaN if anything is NaN, inf where exact zeros are not."""
    error = np.abs(got - want)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(error == 0, 0.0, error / bound).max(initial=0.0))


def attention_values(path: Path, tokens: Array) -> list[tuple[Array, ...]]:
    """q, k, v and output of every attention node, from a copy of the file that shows them."""
    model: Any = onnx.load(path)
    taps = [
        (*node.input[:3], node.output[0])
        for node in model.graph.node
        if node.domain == "sparse_ref"
    ]
    names = list(dict.fromkeys(name for tap in taps for name in tap))
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in known
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    got = dict(zip(names, session.run(names, {session.get_inputs()[0].name: tokens}), strict=True))
    return [tuple(got[name] for name in tap) for tap in taps]
