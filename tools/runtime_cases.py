"""What every runtime is asked: patterns, lengths and inputs, and how near the oracle it must be."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import sparse_ref as sr

HEADS, KV_HEADS, SIZE, WIDTH = 4, 2, 5, 3
FORMS = {  # as columns of the table: mode and body of `to_onnx`
    "local function, loop": ("custom", "loop"),
    "local function, gather": ("custom", "gather"),
    "inline, loop": ("inline", "loop"),
    "inline, gather": ("inline", "gather"),
    "standard": ("standard", "loop"),  # Attention of ai.onnx: opset 25 for windows, else 23
}
WINDOW = sr.Causal() & sr.SlidingWindow(20, 0)
PATTERNS = {
    "window": WINDOW,
    "strided": sr.recipes.sparse_transformer_strided(16),
    "longformer": sr.recipes.longformer(20, [0, 77]),
    "heads differ": sr.PerHead([WINDOW, sr.Causal() & sr.Strided(7), sr.Keys([0, 3])]),
    "rows without keys": sr.Keys([40]) & sr.Causal(),
    "documents": sr.Causal() & sr.Document(sr.Runtime("documents")),
    "neighborhood": sr.Neighborhood(300, 13),  # the one whose block lists stand in the file
}
# Queries and keys, one file for all of them in this order: growing, shrinking, and the same again.
LENGTHS = [
    (1, 1), (7, 7), (33, 33), (100, 100), (257, 257), (1, 257), (70, 257), (100, 33), (1, 1),
    (100, 100),
]  # fmt: skip

Feed = dict[str, NDArray[Any]]


class Case(NamedTuple):
    """One run: its lengths, its inputs, and the pattern with the run-time inputs in place."""

    label: str
    feed: Feed
    pattern: sr.Pattern


def cases(name: str) -> list[Case]:
    """The runs of a pattern, deterministic; without more queries than keys where it has a start."""
    pattern = PATTERNS[name]
    fitting = [(m, n) for m, n in LENGTHS if pattern.covers is None or m <= n]
    return [_case(pattern, m, n, 1 + i % 2) for i, (m, n) in enumerate(fitting)]


def model(name: str, form: str) -> Any:
    """The file of a pattern in one form, an onnx.ModelProto."""
    from exporters import to_onnx  # noqa: PLC0415

    mode, body = FORMS[form]
    return to_onnx(
        PATTERNS[name], heads=HEADS, kv_heads=KV_HEADS, head_dim=SIZE, value_dim=WIDTH, mode=mode,
        body=body,
    )  # fmt: skip


class Distance(NamedTuple):
    """From the oracle; both infinite for a NaN, a wrong shape or a wrong type.

    `share` is the largest error over its bound: at most 1 where all is right.
    """

    error: float
    share: float


def distance(case: Case, y: NDArray[Any]) -> Distance:
    """How far an output is from the oracle, and in shares of the error bound."""
    q, k, v = (case.feed[name] for name in "qkv")
    want = sr.attention(q, k, v, case.pattern).out
    bound = sr.error_bound(q, k, v, case.pattern, arithmetic="float32", output="float32").out
    if y.shape != want.shape or y.dtype != np.float32:
        return Distance(np.inf, np.inf)
    error = np.abs(y - want)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / bound)
    worst = (np.where(np.isnan(error), np.inf, x).max(initial=0.0) for x in (error, share))
    return Distance(*map(float, worst))


def _case(pattern: sr.Pattern, m: int, n: int, b: int) -> Case:
    rng = np.random.default_rng(1000 * m + n)
    shapes = {"q": (b, HEADS, m, SIZE), "k": (b, KV_HEADS, n, SIZE), "v": (b, KV_HEADS, n, WIDTH)}
    feed: Feed = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    if pattern == PATTERNS["documents"]:
        ids = np.sort(rng.integers(-1, 3, (b, n)), axis=1)  # -1 is in no document
        feed["documents"] = ids
        pattern = sr.PerBatch([sr.Causal() & sr.Document(row) for row in ids])
    return Case(f"{m} x {n}", feed, pattern)
