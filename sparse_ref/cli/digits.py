"""Digits as sequences of 64 grey levels, and a small model that learns them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import sparse_ref as sr
from exporters.pytorch import SparseTransformer
from exporters.pytorch.training import (
    History,
    Settings,
    Shuffled,
    accuracy,
    class_loss,
    fit,
    macro_f1,
)

SIDE, GREYS, CLASSES, BATCH, PEAK = 8, 17, 10, 32, 3e-3
CREDIT = "digits: UCI Optical Recognition of Handwritten Digits, via scikit-learn"


@dataclass(frozen=True)
class Digits:
    """Tokens int64 (count, 64) and labels int64 (count,), to learn from and to be judged on."""

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    held_tokens: NDArray[np.int64]
    held_labels: NDArray[np.int64]


def load() -> Digits:
    """All 1,797 digits; 360 of them, every class in proportion, are held out.

    The settings of `train` were chosen on another split than this one.
    """
    data = load_digits()
    tokens, labels = data.data.astype(np.int64), data.target.astype(np.int64)
    a, b, c, d = train_test_split(tokens, labels, test_size=360, random_state=1, stratify=labels)
    return Digits(tokens=a, labels=c, held_tokens=b, held_labels=d)


def patterns() -> list[sr.Pattern]:
    """The two halves of strided attention: along the row, and up the column."""
    return [
        sr.recipes.sparse_transformer_strided(SIDE, heads=part) for part in ("local", "strided")
    ]


def train(digits: Digits, *, seed: int, steps: int) -> SparseTransformer:
    """A model trained for some steps: the same one every time on the same machine."""
    return trained(digits, seed=seed, steps=steps)[0]


def trained(
    digits: Digits,
    *,
    seed: int,
    steps: int,
    path: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> tuple[SparseTransformer, History]:
    """The model, and how its training went.

    As in the paper: Adam with weight decay 0.01, warm-up, cosine decay, gradients clipped at 1. Not
    in the paper: grey levels jitter by one, which tells the model that 7 and 8 look alike.
    """
    torch.set_num_threads(1)  # faster than two for a model of this size, and repeatable
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SparseTransformer(
            GREYS, CLASSES, (SIDE, SIDE), patterns(), blocks=2, dim=32, heads=4, init="code"
        )
    tokens, labels = torch.from_numpy(digits.tokens), torch.from_numpy(digits.labels)
    order = Shuffled(len(labels), BATCH, seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = order(step)
        return _jitter(tokens[chosen]), labels[chosen]

    history = fit(
        model, batch, class_loss, Settings(steps=steps, peak=PEAK, seed=seed),
        judge=judge(digits), judge_every=max(1, steps // 8), path=path, resume=resume,
        about={"data": "digits", "held out": len(digits.held_labels)}, quiet=quiet,
    )  # fmt: skip
    return model, history


def judge(digits: Digits) -> Callable[[nn.Module], dict[str, float]]:
    """What `fit` asks: accuracy and macro-F1 on the digits that are held out."""

    def judged(model: nn.Module) -> dict[str, float]:
        found = model(torch.from_numpy(digits.held_tokens)).argmax(-1).numpy()
        labels = digits.held_labels
        return {"accuracy": accuracy(labels, found), "macro-F1": macro_f1(labels, found)}

    return judged


def _jitter(tokens: Tensor) -> Tensor:
    """Every grey level moved by -1, 0 or 1: the model cannot know that 7 and 8 look alike."""
    return (tokens + torch.randint(-1, 2, tokens.shape)).clamp(0, GREYS - 1)
