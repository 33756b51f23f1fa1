"""What follows every training: the ONNX file, its validation, a picture, and what to say of it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxscript  # noqa: F401  torch.onnx needs it: better missed now than after the training
from torch import Tensor, nn

import exporters
from exporters.files import write_atomically
from exporters.pytorch.training import History, curves

from .command import OK, WRONG, Refusal, to_json

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Trained:
    """A trained model, and what it was judged by."""

    title: str
    model: nn.Module
    history: History
    example: tuple[Tensor, ...]  # real inputs, to export and to validate with
    inputs: tuple[str, ...]  # their names
    metrics: dict[str, float]  # on what was held out
    about: dict[str, Any]  # plain data: what they were measured on
    notes: Sequence[str] = field(default=())  # for people
    files: dict[str, str] = field(default_factory=dict)  # more of them, by name


def finished(
    arguments: argparse.Namespace, run: Callable[[argparse.Namespace, Path], Trained]
) -> int:
    """Train, export, validate, draw, and say it; 0, or 1 if the file is not the oracle's."""
    started = time.perf_counter()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        trained = run(arguments, arguments.out / CHECKPOINT)
        seconds = time.perf_counter() - started
        path = arguments.out / f"{arguments.task}.onnx"
        model = exporters.to_onnx(trained.model, trained.example)
        write_atomically(path, model.SerializeToString(deterministic=True))
        report = validated(path, trained)
        found = {
            "task": arguments.task, "steps": arguments.steps, "seed": arguments.seed,
            "parameters": sum(one.numel() for one in trained.model.parameters()),
            "held out": trained.metrics, "about": trained.about, "seconds": round(seconds, 1),
            "valid": report.ok, "file": str(path), "bytes": path.stat().st_size,
        }  # fmt: skip
        curve = {"losses": trained.history.losses, "judged": trained.history.judged}
        write_atomically(arguments.out / "training.json", to_json(found | curve).encode())
        write_atomically(arguments.out / "training.png", curves(trained.history, trained.title))
        for name, text in trained.files.items():
            write_atomically(arguments.out / name, text.encode())
    except (OSError, ValueError, FloatingPointError) as error:
        raise Refusal(error) from None
    if arguments.json:
        print(json.dumps(found, allow_nan=False))
    elif not arguments.quiet:
        print("\n".join(_said(found, trained, report)))
    return OK if report.ok else WRONG


def validated(path: Path, trained: Trained) -> Any:
    """The report of `validate_onnx` on the inputs that the file was exported with."""
    arrays = (one.numpy() for one in trained.example)
    case = dict(zip(trained.inputs, arrays, strict=True))
    return exporters.validate_onnx(path, providers=["CPUExecutionProvider"], cases=[case])


def _said(found: dict[str, Any], trained: Trained, report: Any) -> list[str]:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in trained.metrics.items())
    lines = [
        (
            f"{trained.title}: {found['parameters']:,} parameters, {found['steps']} steps, "
            f"{found['seconds']:.0f} s"
        ),
        f"held out: {metrics}",
        *trained.notes,
        f"Written: {found['file']} ({found['bytes'] / 1024:.0f} KiB), and beside it training.png,",
        f"training.json and {CHECKPOINT}",
    ]
    if report.ok:
        return [*lines, f"Validated: {len(report.attentions)} attentions agree with the oracle."]
    return [*lines, str(report), "FAILED: the file does not agree with the oracle"]
