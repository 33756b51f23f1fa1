"""Runtimes that take ONNX files, each as one function: a file and inputs in, outputs back."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .runtime_cases import Feed

WEB = Path(__file__).resolve().parent.parent / "tests" / "runtimes" / "run_web.mjs"
WEB_SECONDS = 300  # for one file; it takes a few

Outputs = list[NDArray[Any]]


class MissingError(RuntimeError):
    """A runtime that is not installed here."""


class RefusedError(RuntimeError):
    """What a runtime says of a file that it does not take, or does not run, in one line."""


class Runtime(NamedTuple):
    """A runtime: its version, or MissingError, and its first outputs, or RefusedError."""

    name: str
    version: Callable[[], str]
    run: Callable[[Any, list[Feed]], Outputs]


def evaluator(model: Any, feeds: list[Feed]) -> Outputs:
    """The ReferenceEvaluator of onnx."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    with np.errstate(all="ignore"):
        ready = ReferenceEvaluator(model)
        outputs: Outputs = [ready.run(None, feed)[0] for feed in feeds]  # type: ignore[index]
    return outputs


def onnxruntime(model: Any, feeds: list[Feed]) -> Outputs:
    """ONNX Runtime on the CPU."""
    from exporters.onnx.running import CPU, session  # noqa: PLC0415

    try:
        ready = session(model, CPU)
        return [ready.run(None, feed)[0] for feed in feeds]
    except Exception as error:  # ONNX Runtime has a type for every status
        raise RefusedError(_line(str(error))) from None


def web(model: Any, feeds: list[Feed]) -> Outputs:
    """ONNX Runtime as WebAssembly, under node."""
    sent = {
        "model": _text(model.SerializeToString()),
        "feeds": [{name: _tensor(x) for name, x in feed.items()} for feed in feeds],
    }
    answer = _asked(sent)
    if "refused" in answer:
        raise RefusedError(_line(answer["refused"]))
    outputs = []
    for one in answer["outputs"]:
        if "error" in one:
            raise RefusedError(_line(one["error"]))
        outputs.append(
            np.frombuffer(base64.b64decode(one["data"]), np.float32).reshape(one["dims"])
        )
    return outputs


def openvino(model: Any, feeds: list[Feed]) -> Outputs:
    """OpenVINO's CPU plugin, told to keep to float32."""
    core = import_module("openvino").Core()
    try:
        read = core.read_model(model.SerializeToString(), b"")
        ready = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return [np.array(ready(feed)[0]) for feed in feeds]
    except RuntimeError as error:
        rule = re.search(r"No conversion rule found for operations: .*", str(error))
        raise RefusedError(rule[0] if rule else _line(str(error))) from None


def tract(model: Any, feeds: list[Feed]) -> Outputs:
    """Tract, which wants every length when it loads: the same file is loaded for each input."""
    return [_by_tract(model, feed) for feed in feeds]


def folded_tract(model: Any, feeds: list[Feed]) -> Outputs:
    """Tract on what is left of the file once ONNX Runtime has folded it at the given lengths."""
    return [_by_tract(_folded(model, feed), feed) for feed in feeds]


def _by_tract(model: Any, feed: Feed) -> NDArray[Any]:
    library = import_module("tract")
    names = [one.name for one in model.graph.input]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            loaded = library.onnx().load(str(path))
            for i, name in enumerate(names):
                kind = {"f": "f32", "i": "i64"}[feed[name].dtype.kind]
                loaded.set_input_fact(i, ",".join(map(str, [*feed[name].shape, kind])))
            ready = loaded.into_model().into_runnable()
            return np.array(ready.run([feed[name] for name in names])[0].to_numpy())
        except library.TractError as error:
            said = str(error).partition("Stack backtrace")[0]
            causes = [line.strip() for line in said.splitlines() if line.strip()]
            if lacking := re.search(r"Unimplemented\((\w+)\)", said):
                raise RefusedError(f"no {lacking[1]}") from None
            operator, last = causes[0].split()[-1], re.sub(r"^\d+: ", "", causes[-1])
            raise RefusedError(f"{operator}: {last}") from None


def _folded(model: Any, feed: Feed) -> Any:
    import onnx  # noqa: PLC0415
    import onnxruntime as ort  # noqa: PLC0415

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for one in fixed.graph.input:
        for dim, size in zip(one.type.tensor_type.shape.dim, feed[one.name].shape, strict=True):
            dim.dim_value = size
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        ort.InferenceSession(fixed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _asked(sent: dict[str, Any]) -> dict[str, Any]:
    """What the node script answers."""
    node = shutil.which("node")
    if node is None:
        raise MissingError("node is not installed")
    done = subprocess.run(
        [node, str(WEB)], input=json.dumps(sent), capture_output=True, text=True, check=False,
        timeout=WEB_SECONDS,
    )  # fmt: skip
    if "Cannot find module" in done.stderr:
        raise MissingError("onnxruntime-web is not installed: npm ci in tests/runtimes")
    if done.returncode:
        raise RefusedError(_line(done.stderr))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _tensor(x: NDArray[Any]) -> dict[str, Any]:
    return {"type": x.dtype.name, "dims": x.shape, "data": _text(np.ascontiguousarray(x).data)}


def _text(content: Any) -> str:
    return base64.b64encode(content).decode()


def _line(said: str) -> str:
    """The last line of a complaint that says something, without its place in somebody's source."""
    lines = [line for line in said.splitlines() if line.strip()]
    text = lines[-1].strip() if lines else "no reason given"
    return re.sub(r".*ERROR_MESSAGE: |.*\.cc:\d+ .*\) (?=[A-Z])", "", text)[-300:]


def _of_package(name: str) -> Callable[[], str]:
    def found() -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            raise MissingError(f"{name} is not installed") from None

    return found


RUNTIMES = {
    one.name: one
    for one in (
        Runtime("onnx ReferenceEvaluator", _of_package("onnx"), evaluator),
        Runtime("ONNX Runtime", _of_package("onnxruntime"), onnxruntime),
        Runtime("ONNX Runtime Web", lambda: str(_asked({})["version"]), web),
        Runtime("OpenVINO", _of_package("openvino"), openvino),
        Runtime("tract", _of_package("tract"), tract),
        Runtime("tract, folded by ONNX Runtime", _of_package("tract"), folded_tract),
    )
}
