"""`sparse-ref train bytes`: a language model of Python's documentation, by fixed attention."""

from __future__ import annotations

import argparse
import hashlib
import lzma
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sparse_ref as sr
from exporters.pytorch import SparseTransformer
from exporters.pytorch.training import Settings, Windows, bits, fit, next_token_loss, perplexity

from .command import Refusal
from .train_run import Trained

LENGTH, STRIDE, SUMMARY = 1024, 16, 4
BATCH, PEAK = 2, 4e-3


def corpus() -> bytes:
    """All topics of `pydoc_data`, in alphabetic order."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise Refusal("this Python has no pydoc_data.topics: install its documentation") from None
    return "".join(topics[name] for name in sorted(topics)).encode()


def patterns() -> list[sr.Pattern]:
    """Fixed attention, its near part alone in the first block: it learns from neighbours first."""
    fixed = sr.recipes.sparse_transformer_fixed
    return [fixed(STRIDE, SUMMARY, heads="local"), fixed(STRIDE, SUMMARY)]


def network(*, blocks: int = 2, dim: int = 64, heads: int = 4) -> SparseTransformer:
    """The untrained model; its positions are rows and columns of a grid of `STRIDE` columns."""
    shape = LENGTH // STRIDE, STRIDE
    return SparseTransformer(256, None, shape, patterns(), blocks=blocks, dim=dim, heads=heads)


def run(arguments: argparse.Namespace, path: Path) -> Trained:
    """Train on nine tenths of the documentation, with a checkpoint at `path`."""
    torch.set_num_threads(1)  # hardly slower than two for a model of this size, and repeatable
    text = corpus()
    tokens = torch.tensor(list(text))
    cut = len(tokens) * 9 // 10
    learnt, held = Windows(tokens[:cut], LENGTH, BATCH), Windows(tokens[cut:], LENGTH, BATCH)
    sha = hashlib.sha256(text).hexdigest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        model = network()
    history = fit(
        model, learnt, next_token_loss,
        Settings(steps=arguments.steps, peak=PEAK, seed=arguments.seed),
        judge=judge(held), judge_every=max(1, arguments.steps // 6), path=path,
        resume=arguments.resume, about={"data": sha}, quiet=arguments.quiet,
    )  # fmt: skip
    metrics = history.judged[-1][1]
    read, _ = next(held.pieces())
    return Trained(
        title="A Sparse Transformer that writes Python's documentation",
        model=model,
        history=history,
        example=(read[:1],),
        inputs=("tokens",),
        metrics=metrics,
        about={
            "data": "pydoc_data.topics, PSF licence", "sha256": sha, "bytes": len(text),
            "python": platform.python_version(), "held out": len(text) - cut,
        },
        notes=[
            (f"for comparison: {unigram(text[:cut], text[cut:]):.3f} bits per byte by how frequent "
            f"bytes are, {packed(text[:cut], text[cut:]):.3f} by xz, which has the text before it"),
            f"it goes on: {written(model, read[:1, :256])!r}",
        ],
    )  # fmt: skip


def judge(held: Windows) -> Callable[[nn.Module], dict[str, float]]:
    """What `fit` asks: bits per byte and perplexity of a text, piece by piece."""

    def judged(model: nn.Module) -> dict[str, float]:
        losses: list[float] = []
        for piece in held.pieces():
            losses += [next_token_loss(model, piece).item()] * len(piece[0])
        mean = float(np.mean(losses))
        return {"bits per byte": bits(mean), "perplexity": perplexity(mean)}

    return judged


def written(model: SparseTransformer, prompt: Tensor, count: int = 120) -> str:
    """What the model writes after a prompt."""
    generator = torch.Generator().manual_seed(0)
    said = model.generate(prompt, count, temperature=0.7, generator=generator)
    return bytes(said[0].tolist()).decode(errors="replace")


def unigram(learnt: bytes, held: bytes) -> float:
    """Bits per byte of a model that knows how frequent each byte is, and nothing else."""
    counts = np.bincount(np.frombuffer(learnt, dtype=np.uint8), minlength=256) + 1.0
    chances = counts / counts.sum()
    return float(-np.log2(chances[np.frombuffer(held, dtype=np.uint8)]).mean())


def packed(learnt: bytes, held: bytes) -> float:
    """Bits per byte that xz needs for `held` behind `learnt`."""
    sizes = (len(lzma.compress(text, preset=9)) for text in (learnt + held, learnt))
    whole, before = sizes
    return 8 * (whole - before) / len(held)
