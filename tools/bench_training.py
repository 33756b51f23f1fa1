"""Measure a training step: a Sparse Transformer of bytes, against itself with other attentions.

  python tools/bench_training.py                   about four minutes on an idle machine
  python tools/bench_training.py --length 1024 --runs 2        a first impression
  python tools/bench_training.py --json training.json

Four layers of 256 with 4 heads read 4,096 bytes by fixed attention (stride 64, 8 summaries): loss,
gradients, one step of Adam. The rivals are the same model, weight for weight, whose attention is
SDPA with a dense mask, or the softmax of masked scores written out. `free` puts q + k + v in the
place of attention: what a step takes without any. Times are medians of alternating runs, on two
threads.

What is saved for backward is counted in bytes of distinct storages, parameters excluded. All ways
must agree on the loss and its gradients first: one that does not is an error (exit status 1), never
a ratio. A missed target is printed, not an error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

THREADS = 2
os.environ["NUMBA_NUM_THREADS"] = str(THREADS)  # read when it is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import sparse_ref as sr  # noqa: E402
from exporters.pytorch import SparseTransformer, attention, saved_bytes, sparse_attention  # noqa: E402
from exporters.pytorch.training import next_token_loss  # noqa: E402
from tools import measure  # noqa: E402

STRIDE, SUMMARY = 64, 8
AGREE = 1e-3  # of a gradient's largest entry
OURS = sparse_attention
Way = Callable[..., Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, pattern: sr.Pattern) -> Tensor:
    """PyTorch's own attention, with a mask."""
    mask = _mask(pattern, q.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def eager(q: Tensor, k: Tensor, v: Tensor, pattern: sr.Pattern) -> Tensor:
    """The softmax of masked scores, written out."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~_mask(pattern, q.shape[2]), -torch.inf).softmax(-1)
    return torch.matmul(weights, v)


def free(q: Tensor, k: Tensor, v: Tensor, pattern: sr.Pattern) -> Tensor:
    """No attention at all."""
    return q + k + v


@lru_cache(maxsize=4)
def _mask(pattern: sr.Pattern, n: int) -> Tensor:
    return torch.from_numpy(pattern.mask(n, n)[0])


WAYS: dict[str, Way] = {"ours": OURS, "sdpa": sdpa, "eager": eager, "free": free}


class Step:
    """A model with one way of attention, and its step of training."""

    def __init__(self, way: Way, length: int, *, recompute: bool = False):
        torch.manual_seed(0)
        pattern = sr.recipes.sparse_transformer_fixed(STRIDE, SUMMARY)
        shape = -(-length // STRIDE), STRIDE
        self.way = way
        self.model = SparseTransformer(
            256, None, shape, [pattern], blocks=4, dim=256, heads=4, recompute=recompute
        )
        torch.nn.init.normal_(self.model.classify.weight, 0.0, 0.02)
        self.optimiser = torch.optim.Adam(self.model.parameters(), 1e-4)
        text = torch.randint(256, (1, length + 1))
        self.batch = text[:, :-1], text[:, 1:]

    def loss(self) -> Tensor:
        """The loss, by this way."""
        attention.sparse_attention = self.way  # type: ignore[attr-defined]
        return next_token_loss(self.model, self.batch)

    def gradients(self) -> list[Tensor]:
        """Of all parameters."""
        found = torch.autograd.grad(self.loss(), list(self.model.parameters()))
        return list(found)

    def __call__(self) -> None:
        """One step of Adam."""
        loss = self.loss()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def saved(self) -> int:
        """Bytes of distinct storages that backward needs, parameters excluded."""
        return saved_bytes(self.loss, self.model.parameters())


def disagreement(length: int) -> dict[str, float]:
    """How far the gradients of each rival are from ours, in their largest entry."""
    ours = Step(OURS, length).gradients()
    largest = max(one.abs().max().item() for one in ours)
    found = {}
    for name in ("sdpa", "eager"):
        theirs = Step(WAYS[name], length).gradients()
        apart = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
        found[name] = apart / largest
    again = Step(OURS, length, recompute=True).gradients()
    equal = all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    return found | {"recompute": 0.0 if equal else 1.0}


def timed(length: int, runs: int) -> dict[str, float]:
    """Seconds of a step by every way, medians."""
    steps = {name: Step(way, length) for name, way in WAYS.items()}
    times = measure.in_turn(steps, runs)
    return {name: statistics.median(one) for name, one in times.items()}


def rows(length: int, runs: int) -> list[dict[str, Any]]:
    """Every target, what it is measured to be, and whether it is met."""
    bytes_ = {name: Step(way, length).saved() for name, way in WAYS.items()}
    bytes_["recompute"] = Step(OURS, length, recompute=True).saved()
    took = timed(length, runs)
    row = partial(_row, detail={"seconds": took, "bytes": bytes_})
    return [
        row("step, SDPA with a mask / ours", took["sdpa"] / took["ours"], at_least=2.7),
        row("step, SDPA with a mask / free: no attention can be faster",
            took["sdpa"] / took["free"]),
        row("attention's part of a step, SDPA with a mask / ours",
            (took["sdpa"] - took["free"]) / (took["ours"] - took["free"]), at_least=6.0),
        row("saved bytes, ours / SDPA with a mask", bytes_["ours"] / bytes_["sdpa"], at_most=0.6),
        row("saved bytes, ours / eager", bytes_["ours"] / bytes_["eager"], at_most=0.25),
        row("saved bytes, recomputing / not", bytes_["recompute"] / bytes_["ours"], at_most=0.15),
    ]  # fmt: skip


def _row(
    what: str,
    value: float,
    *,
    detail: dict[str, Any],
    at_least: float | None = None,
    at_most: float | None = None,
) -> dict[str, Any]:
    found: dict[str, Any] = {"what": what, "value": float(f"{value:.4g}")}
    if at_least is not None:
        found |= {"at_least": at_least, "met": value >= at_least}
    if at_most is not None:
        found |= {"at_most": at_most, "met": value <= at_most}
    return found | {"detail": detail}


def main(arguments: list[str] | None = None) -> int:
    """Check, measure and print; 0, or 1 if the ways compute different things."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=4096, metavar="N", help="bytes of the text")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each way")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    apart = disagreement(min(options.length, 1024))
    wrong = {name: value for name, value in apart.items() if not value <= AGREE}
    if wrong:
        print(f"these ways compute something else: {wrong}", file=sys.stderr)
        return 1
    found = rows(options.length, options.runs)
    for row in found:
        asked = next((f"{name.replace('_', ' ')} {row[name]}" for name in ("at_least", "at_most")
                      if name in row), "")  # fmt: skip
        met = {True: "met", False: "MISSED"}.get(row.get("met"), "")  # type: ignore[arg-type]
        print(f"{row['what']:62} {row['value']:8.3g}  {asked:14} {met}")
    detail = found[0]["detail"]
    print("ms of a step: ", {name: round(1e3 * one) for name, one in detail["seconds"].items()})
    print("MiB saved:    ", {name: round(one / 2**20) for name, one in detail["bytes"].items()})
    if options.json:
        content = {"length": options.length, "threads": THREADS, "rows": found}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
