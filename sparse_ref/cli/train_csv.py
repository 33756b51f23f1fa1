"""`sparse-ref train csv`: the label of a text, from somebody's own file."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

import sparse_ref as sr
from exporters.pytorch import SparseTransformer
from exporters.pytorch.training import (
    BytePairs,
    Settings,
    Shuffled,
    accuracy,
    class_loss,
    fit,
    held_out,
    macro_f1,
)

from .command import Refusal
from .train_run import Trained

BATCH, PEAK, SHARE = 16, 2e-3, 0.2
LARGEST = 1 << 28  # characters of one field; csv's own limit is 131,072


def read(path: Path, text: str, label: str, delimiter: str = ",") -> tuple[list[str], list[str]]:
    """Texts and labels of a CSV file; rows without either are left out."""
    if len(delimiter) != 1:
        raise Refusal(f"--delimiter must be one character, got {delimiter!r}")
    csv.field_size_limit(LARGEST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=delimiter)
            columns = rows.fieldnames or []
            for name in (text, label):
                if name not in columns:
                    raise Refusal(f"{path} must have a column {name!r}, got {[*columns]}")
            pairs = [(row[text] or "", (row[label] or "").strip()) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refusal(f"{path} cannot be read: {error}") from None
    kept = [(a, b) for a, b in pairs if a.strip() and b]
    if len({b for _, b in kept}) < 2 or max(Counter(b for _, b in kept).values()) < 2:
        raise Refusal(
            f"column {label!r} must hold two labels or more, one of them twice, got "
            f"{len({b for _, b in kept})} in {len(kept)} rows with a text"
        )
    texts, labels = zip(*kept, strict=True)
    return list(texts), list(labels)


def run(arguments: argparse.Namespace, path: Path) -> Trained:
    """Train on four fifths of the file, with a checkpoint at `path`."""
    texts, named = read(arguments.file, arguments.text, arguments.label, arguments.delimiter)
    names = sorted(set(named))
    labels = torch.tensor([names.index(name) for name in named])
    learnt, held = held_out(labels, SHARE, arguments.seed)
    pairs = BytePairs.learn((texts[i] for i in learnt.tolist()), arguments.vocabulary)
    tokens, lengths = pairs.encode(texts, arguments.length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        model = network(pairs.vocabulary, len(names), arguments.length, arguments.window)
    order = Shuffled(len(learnt), BATCH, arguments.seed)

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = learnt[order(step)]
        return tokens[chosen], lengths[chosen], labels[chosen]

    def judge(model: nn.Module) -> dict[str, float]:
        found = torch.cat(
            [model(tokens[i], lengths[i]).argmax(-1) for i in torch.split(held, BATCH)]
        )
        right = labels[held]
        return {"accuracy": accuracy(right, found), "macro-F1": macro_f1(right, found)}

    sha = hashlib.sha256(json.dumps([texts, named]).encode()).hexdigest()
    shape = {"length": arguments.length, "window": arguments.window, "vocabulary": pairs.vocabulary}
    history = fit(
        model, batch, class_loss,
        Settings(steps=arguments.steps, peak=PEAK, seed=arguments.seed),
        judge=judge, judge_every=max(1, arguments.steps // 6), path=path,
        resume=arguments.resume, about={"data": sha, **shape}, quiet=arguments.quiet,
    )  # fmt: skip
    frequent = Counter(labels[held].tolist()).most_common(1)[0][1] / len(held)
    return Trained(
        title=f"{arguments.label} of {arguments.text}",
        model=model,
        history=history,
        example=(tokens[held[:2]], lengths[held[:2]]),
        inputs=("tokens", "key_length"),
        metrics=history.judged[-1][1],
        about={"file": arguments.file.name, "sha256": sha, "rows": len(texts), **shape,
               "labels": names, "held out": len(held)},
        notes=[f"for comparison: {frequent:.4g} are right who always say the most frequent label"],
        files={"tokenizer.json": pairs.written()},
    )  # fmt: skip


def network(vocabulary: int, classes: int, length: int, window: int) -> SparseTransformer:
    """The untrained model: neighbours on both sides, and a first token that all share."""
    pattern = sr.SlidingWindow(window, window) | sr.Global([0])
    return SparseTransformer(
        vocabulary, classes, (length,), [pattern], blocks=2, dim=64, heads=4, dropout=0.1
    )
