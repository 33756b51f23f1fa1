"""`sparse-ref train digits`: images as sequences, by strided attention."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from . import digits
from .train_run import Trained


def run(arguments: argparse.Namespace, path: Path) -> Trained:
    """Train on the digits, with a checkpoint at `path`."""
    data = digits.load()
    model, history = digits.trained(
        data, seed=arguments.seed, steps=arguments.steps, path=path, resume=arguments.resume,
        quiet=arguments.quiet,
    )  # fmt: skip
    return Trained(
        title="A Sparse Transformer that reads digits",
        model=model,
        history=history,
        example=(torch.from_numpy(data.held_tokens[:2]),),
        inputs=("tokens",),
        metrics=history.judged[-1][1],
        about={"data": digits.CREDIT, "held out": len(data.held_labels)},
    )
