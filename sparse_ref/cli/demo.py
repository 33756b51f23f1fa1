"""`sparse-ref demo`: train, export, run the saved file, and check all of it against the oracle."""

from __future__ import annotations

import time
from pathlib import Path

import onnxscript  # noqa: F401  torch.onnx needs it: better missed now than after the training
import torch
from rich.console import Console
from rich.table import Table

import exporters
from exporters.files import write_atomically
from exporters.pytorch import SparseTransformer

from . import STEPS, digits, figure
from .checks import Check, agree, attention_values, learnt, run_all, within_bound
from .digits import Digits
from .network import Array

NAMES = ("itself and 7 before", "up its own column")


def run(out: Path, *, seed: int, steps: int) -> int:
    """The whole demo; 0 if every check holds, else 1."""
    console, started = Console(), time.perf_counter()
    data = digits.load()
    console.print(
        f"Training a Sparse Transformer on {len(data.labels)} digits of 64 tokens: "
        f"{steps} steps, seed {seed}."
    )
    model = digits.train(data, seed=seed, steps=steps)
    size = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{size:,} parameters trained in {time.perf_counter() - started:.0f} s.")
    path = out / "digits.onnx"
    save(model, path, data.held_tokens[:2])
    checks = check(model, path, data, judged=steps >= STEPS)
    picture = out / "attention.png"
    draw(model, path, picture, data)
    console.print(table(checks))
    console.print(f"Written: {path} ({path.stat().st_size / 1024:.0f} KiB), {picture}")
    failed = [one.name for one in checks if one.holds is False]
    console.print(
        f"FAILED: {'; '.join(failed)}" if failed else "Every check holds.", highlight=False
    )
    return 1 if failed else 0


def save(model: SparseTransformer, path: Path, example: Array) -> None:
    """Export the model to an ONNX file."""
    exported = exporters.to_onnx(model, (torch.from_numpy(example),))
    write_atomically(path, exported.SerializeToString())


def check(model: SparseTransformer, path: Path, data: Digits, *, judged: bool) -> list[Check]:
    """Every check, on the held-out digits; `judged`: whether the model must have learnt."""
    runs = run_all(model, path, data.held_tokens)
    return [
        *learnt(runs.onnx.argmax(-1), data.held_labels, judged=judged),
        *within_bound(path, model.patterns, data.held_tokens),
        *agree(runs),
    ]


def draw(model: SparseTransformer, path: Path, picture: Path, data: Digits) -> None:
    """Save the picture of the first held-out digit, from the file's own queries and keys."""
    tokens = data.held_tokens[:1]
    layers = [
        figure.Layer(name, pattern, figure.averaged(q[0], k[0], pattern))
        for name, pattern, (q, k, _, _) in zip(
            NAMES, model.patterns, attention_values(path, tokens), strict=True
        )
    ]
    with torch.no_grad():
        answer = int(model(torch.from_numpy(tokens)).argmax())
    png = figure.draw(tokens[0], int(data.held_labels[0]), answer, layers, digits.CREDIT)
    write_atomically(picture, png)


def table(checks: list[Check]) -> Table:
    """Check, what was measured, what is allowed, and the verdict."""
    verdicts = {True: "[green]holds[/]", False: "[bold red]FAILS[/]", None: "not judged"}
    rows = Table(title="What was checked", title_justify="left", title_style="bold")
    rows.add_column("check")
    for name in ("measured", "limit"):
        rows.add_column(name, justify="right", no_wrap=True)
    rows.add_column("verdict", no_wrap=True)
    for one in checks:
        rows.add_row(one.name, one.measured, one.limit, verdicts[one.holds])
    return rows
