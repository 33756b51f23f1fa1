"""The demo's task: digits as sequences of 64 grey levels, and a small model that learns them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import sparse_ref as sr
from exporters.pytorch import SparseTransformer

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
    """A model trained for some steps: the same one every time on the same machine.

    As in the paper: Adam with weight decay 0.01, warm-up, cosine decay, gradients clipped at 1. Not
    in the paper: grey levels jitter by one, which tells the model that 7 and 8 look alike.
    """
    torch.set_num_threads(1)  # faster than two for a model of this size, and repeatable
    torch.manual_seed(seed)
    model = SparseTransformer(
        GREYS, CLASSES, (SIDE, SIDE), patterns(), blocks=2, dim=32, heads=4, init="code"
    )
    optimiser = torch.optim.AdamW(model.parameters(), PEAK, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, steps + 1, pct_start=0.1)
    tokens, labels = torch.from_numpy(digits.tokens), torch.from_numpy(digits.labels)
    bar = tqdm(total=steps, desc="training", unit="step", disable=None)
    mean = 0.0
    for step, chosen in zip(range(1, steps + 1), _batches(len(labels)), strict=False):
        loss = nn.functional.cross_entropy(model(_jitter(tokens[chosen])), labels[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step, 50)
        bar.update()
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        if bar.disable and step * 4 // steps > (step - 1) * 4 // steps:
            print(f"training: step {step} of {steps}, loss {mean:.3f}", file=sys.stderr)
    bar.close()
    return model.eval()


def _batches(count: int) -> Iterator[Tensor]:
    """Whole batches, in a new order each time around."""
    while True:
        yield from torch.randperm(count)[: count // BATCH * BATCH].view(-1, BATCH)


def _jitter(tokens: Tensor) -> Tensor:
    """Every grey level moved by -1, 0 or 1: the model cannot know that 7 and 8 look alike."""
    return (tokens + torch.randint(-1, 2, tokens.shape)).clamp(0, GREYS - 1)
