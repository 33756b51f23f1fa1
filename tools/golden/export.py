"""The same cases for tools that know neither manifest nor safetensors: .npy and ONNX folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparse_ref.golden import GoldenCase, load


def main(golden: Path, only: str, *, onnx: Path | None, npy: Path | None) -> int:
    """Write the folders of the chosen cases, and say how many."""
    cases = [case for case in load(golden) if only in case.id]
    for name, out, write in (("npy", npy, npy_folder), ("onnx", onnx, onnx_folder)):
        if out is None:
            continue
        refused = []
        for case in cases:
            try:
                write(case, out / folder(case))
            except NotImplementedError as sentence:
                refused.append(f"{case.id}: {sentence}")
        print("\n".join(refused))
        print(f"{out}: {len(cases) - len(refused)} {name} folders, {len(refused)} left out")
    return 0 if cases else 1


def folder(case: GoldenCase) -> str:
    """A name that every file system takes."""
    return "test_" + case.id.replace("/", "__").replace("-", "_").replace("+", "_plus_")


def npy_folder(case: GoldenCase, out: Path) -> None:
    """One .npy for each tensor, and counts.npy: how often each key counts."""
    out.mkdir(parents=True, exist_ok=True)
    for name, x in (case.tensors | {"counts": case.counts}).items():
        np.save(out / f"{name}.npy", x, allow_pickle=False)


def onnx_folder(case: GoldenCase, out: Path) -> None:
    """model.onnx, in standard operators, and test_data_set_0: what onnx_test_runner takes.

    Raises NotImplementedError where the model has no input for what the case gives.
    """
    import onnx  # noqa: PLC0415 - only who asks for it needs it
    from onnx import numpy_helper  # noqa: PLC0415

    import exporters  # noqa: PLC0415

    s, given = case.sizes, dict(case.attributes)
    inputs = {name: np.asarray(case.tensors[name], np.float32) for name in "qkv"}
    if 0 in (s.b, s.m, s.n) or case.pattern.batches:
        raise NotImplementedError("nothing to compute, or a pattern for each batch row")
    if "kv_lengths" in given:
        inputs["key_length"] = _rows(given.pop("kv_lengths"), s.b)
    if "q_start" in given:
        inputs["q_start"] = _rows(given.pop("q_start"), s.b)
    if "sink_logits" in given:
        inputs["sinks"] = given.pop("sink_logits").astype(np.float32)
    numbers = {name: given.pop(name) for name in ("scale", "softcap") if name in given}
    if given:
        raise NotImplementedError(f"a model has no {', '.join(given)}")
    model = exporters.to_onnx(
        case.pattern, heads=s.h, kv_heads=s.g, head_dim=s.d, value_dim=s.e, mode="inline",
        **numbers, **{name: name in inputs for name in ("key_length", "q_start", "sinks")},
    )  # fmt: skip
    data = out / "test_data_set_0"
    data.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out / "model.onnx")
    for i, put in enumerate(model.graph.input):
        tensor = numpy_helper.from_array(inputs[put.name], put.name)
        (data / f"input_{i}.pb").write_bytes(tensor.SerializeToString())
    name = model.graph.output[0].name
    answer = numpy_helper.from_array(case.want.out.astype(np.float32), name)
    (data / "output_0.pb").write_bytes(answer.SerializeToString())


def _rows(value: object, b: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, np.int64), (b,)).copy()
