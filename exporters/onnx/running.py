"""Runs of a model in ONNX Runtime: its values, who ran each node, how long and how much memory."""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FLOATS = {"float", "float16", "double", "bfloat16"}  # as profiles write them
QUIET = 4  # of ONNX Runtime's log levels; what fails is raised anyway

Array = NDArray[Any]


class UnavailableError(RuntimeError):
    """A provider that cannot run here, with the reason."""


class Placed(NamedTuple):
    """A node as ONNX Runtime ran it, after its own rewriting of the graph."""

    name: str
    operator: str
    provider: str
    floating: bool  # whether it answers floating-point numbers


class Cost(NamedTuple):
    """Of one run: the least of several times, and the peak of ONNX Runtime's allocations."""

    seconds: float
    peak_bytes: int


def session(model: Any, provider: str, profile: Path | None = None, *, kernel: bool = False) -> Any:
    """A session for one provider; the CPU stands behind it, as integers belong there.

    `kernel` registers ours, which then runs the operator in place of its body.

    Raises
    ------
    UnavailableError
        If this ONNX Runtime, or this machine, has no such provider, or cannot have our kernel.
    """
    if provider not in onnxruntime.get_available_providers():
        version = onnxruntime.__version__
        raise UnavailableError(f"this ONNX Runtime {version} is built without {provider}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    if kernel:
        _register(options)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    chain = [provider] if provider == CPU else [provider, CPU]
    ready = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=chain)
    if provider not in ready.get_providers():
        ran = ", ".join(ready.get_providers())
        raise UnavailableError(
            f"{provider} is listed but cannot start here; ONNX Runtime chose {ran}"
        )
    return ready


def _register(options: Any) -> None:
    try:
        from .native import register_kernels
    except ModuleNotFoundError as missing:
        raise UnavailableError(f"{missing.name} is not installed") from None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not register_kernels(options):
            raise UnavailableError(str(said[-1].message))


def run(
    ready: Any, feed: Mapping[str, Array], names: list[str], shared: Mapping[str, str]
) -> dict[str, Array]:
    """Outputs by name; `shared` inputs and outputs are one buffer each, copied from the feed."""
    if not shared:
        return dict(zip(names, ready.run(names, dict(feed)), strict=True))
    binding = ready.io_binding()
    device = "cuda" if CUDA in ready.get_providers() else "cpu"  # where a cache must stay
    buffers = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(
            np.array(x), device if name in shared else "cpu"
        )
        for name, x in feed.items()
    }
    for name, value in buffers.items():
        binding.bind_ortvalue_input(name, value)
    behind = {after: buffers[before] for before, after in shared.items()}
    for name in names:
        if name in behind:
            binding.bind_ortvalue_output(name, behind[name])
        else:
            binding.bind_output(name)
    ready.run_with_iobinding(binding)
    return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))


def shared_buffers(model: Any) -> dict[str, str]:
    """The caches that com.microsoft.SparseAttention wants bound as past and as present at once."""
    given, answered = ({one.name for one in x} for x in (model.graph.input, model.graph.output))
    pairs = {
        before: after
        for node in model.graph.node
        if (node.domain, node.op_type) == ("com.microsoft", "SparseAttention")
        for before, after in zip(node.input[3:5], node.output[1:3], strict=True)
    }
    return {a: b for a, b in pairs.items() if a in given and b in answered}


def measured(
    model: Any, provider: str, feed: Mapping[str, Array], *, kernel: bool = False, times: int = 3
) -> tuple[Cost, list[Placed]]:
    """The model as it is: time without profiling, then memory and placement with it."""
    names, shared = [one.name for one in model.graph.output], shared_buffers(model)
    ready, seconds = session(model, provider, kernel=kernel), []
    for _ in range(times):
        start = time.perf_counter()
        run(ready, feed, names, shared)
        seconds.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        profiled = session(model, provider, Path(folder) / "run", kernel=kernel)
        run(profiled, feed, names, shared)
        events = json.loads(Path(profiled.end_profiling()).read_text())
    ran = [one for one in events if one.get("cat") == "Node" and "provider" in one["args"]]
    placed = {_placed(one): None for one in ran}
    peak = max((int(one["args"].get("mem_in_use_peak", 0)) for one in ran), default=0)
    return Cost(min(seconds), peak), list(placed)


def _placed(event: Any) -> Placed:
    said = event["args"]
    kinds = {kind for one in said.get("output_type_shape", []) for kind in one}
    name = event["name"].removesuffix("_kernel_time")
    return Placed(name, said["op_name"], said["provider"], bool(FLOATS & kinds))
