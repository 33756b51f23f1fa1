"""What the benchmark races: every pattern, with the peers and the target of its case."""

from __future__ import annotations

import math

import numpy as np

import sparse_ref as sr

from .peers import flex, sdpa_causal, sdpa_dense, sdpa_folded, sdpa_grouped, sdpa_masked
from .peers_onnx import (
    attention_23,
    block_sparse,
    group_query_attention,
    loop_body,
    multi_head_attention,
    openvino,
    registered_kernel,
)
from .race import Race, kernels

FLEX = {"FlexAttention": flex, "SDPA, mask": sdpa_masked}
MASKED = {"SDPA, mask": sdpa_masked}
CAUSAL = {"SDPA, is_causal": sdpa_causal}
DENSE = {"SDPA": sdpa_dense}
OPENVINO = {"OpenVINO SDPA": openvino}
ORT = {
    "ORT GroupQueryAttention": group_query_attention,
    "ORT MultiHeadAttention": multi_head_attention,
    "ORT Attention-23": attention_23,
}


def causal_window(n: int) -> sr.Pattern:
    return sr.Causal() & sr.SlidingWindow(511, 0)


def window(n: int) -> sr.Pattern:
    return sr.SlidingWindow(256, 256)


def with_globals(n: int) -> sr.Pattern:
    return window(n) | sr.Global(range(64))


def causal(n: int) -> sr.Pattern:
    return sr.Causal()


def full(n: int) -> sr.Pattern:
    return sr.Full()


def documents(n: int) -> sr.Pattern:
    """Documents of 64 to 1,024 tokens, one after another, each causal."""
    lengths = np.random.default_rng(2).integers(64, 1025, n // 64 + 1)
    return sr.Causal() & sr.Document(np.repeat(np.arange(len(lengths)), lengths)[:n])


def neighborhood(n: int, kernel: int) -> sr.Pattern:
    """The nearest kernel x kernel pixels of a square picture of n."""
    side = math.isqrt(n)
    return sr.recipes.natten((side, side), min(kernel, side - 1 + side % 2))


PATTERNS = [
    Race("window", "window +-256", window, FLEX, 3.5, share=0.65),
    Race("causal-window", "causal window 512", causal_window, FLEX, 3.5),
    Race("bigbird", "BigBird (64; 3, 2, 3)", sr.recipes.bigbird, FLEX, 3.5),
    Race(
        "longformer", "Longformer (512, 64 globals)",
        lambda n: sr.recipes.longformer(512, range(64)), FLEX, 3.5,
    ),
    Race(
        "strided", "strided(64), merged head",
        lambda n: sr.recipes.sparse_transformer_strided(64), FLEX, 25,
    ),
    Race(
        "fixed", "fixed(64, 8), merged head",
        lambda n: sr.recipes.sparse_transformer_fixed(64, 8), FLEX, 25,
    ),
    Race(
        "dilated", "window of 64 + 1 + 64 keys, dilation 4",
        lambda n: sr.SlidingWindow(64, 64, dilation=4), FLEX, 3.0,
    ),
    Race(
        "random", "128 random keys a row",
        lambda n: sr.RandomKeys(min(128, n // 4), 0, n), FLEX, 3.0,
    ),
    Race("documents", "packed documents, causal", documents, FLEX, 3.0),
    Race(
        "neighborhood", "neighborhood 7 x 7 of 64 x 64",
        lambda n: neighborhood(n, 7), FLEX, 3.0,
    ),
    Race(
        "neighborhood-large", "neighborhood 21 x 21 of 64 x 64",
        lambda n: neighborhood(n, 21), FLEX, 3.0,
    ),
]  # fmt: skip

WHOLE = [
    Race(
        "causal", "causal", causal,
        CAUSAL | {"ORT GroupQueryAttention": group_query_attention}, 1.15,
    ),
    Race(
        "dense", "dense", full,
        DENSE | {"ORT MultiHeadAttention": multi_head_attention} | OPENVINO, 1.0, share=0.80,
    ),
    Race(
        "window-backward", "window +-256, forward and backward", window, MASKED, 7,
        gradients=True,
    ),
    Race(
        "causal-backward", "causal, forward and backward", causal, CAUSAL, gradients=True,
    ),
    Race(
        "decode", "1 query, 65,536 keys, 8 heads on 2", full,
        {"SDPA, enable_gqa": sdpa_grouped, "SDPA, heads folded": sdpa_folded}, 2.0,
        tokens=65_536, queries=1, kv_heads=2,
    ),
]  # fmt: skip

# Without AMX tiles torch is slow in these types, and the targets would ask nothing.
HALVES = [
    race
    for dtype in ("bfloat16", "float16")
    for race in (
        Race(
            f"window-{dtype}", f"window +-256, {dtype}", window, FLEX, 1.5, dtype=dtype,
            needs="amx_tile",
        ),
        Race(
            f"dense-{dtype}", f"dense, {dtype}", full, DENSE, 1.05, dtype=dtype,
            needs="amx_tile",
        ),
    )
]  # fmt: skip

GRAPHS = [
    Race(
        "runtimes", "causal window 512, other runtimes", causal_window,
        ORT | {"ONNX loop body": loop_body} | OPENVINO, 8.0,
    ),
    Race(
        "runtimes-blocks", "causal, 9 blocks of 64 a row",
        lambda n: sr.Causal() & sr.Blocked(sr.SlidingWindow(8, 0), 64),
        {"ORT SparseAttention": block_sparse},
    ),
    Race(
        "onnx-body", "window +-256, 64 globals: our ONNX loop body", with_globals,
        {"ORT Attention-23": attention_23}, 8.0, ours=loop_body,
    ),
    Race(
        "onnx-kernel", "window +-256, 64 globals: our kernel in ONNX Runtime", with_globals,
        {"ONNX loop body": loop_body, "ORT Attention-23": attention_23}, 2.2,
        ours=registered_kernel,
    ),
    Race(
        "onnx-overhead", "the same, against the kernel called from Python", with_globals,
        {"sr.kernels": kernels}, 1 / 1.1, ours=registered_kernel,
    ),
]  # fmt: skip

RACES = {race.name: race for race in [*PATTERNS, *WHOLE, *HALVES, *GRAPHS]}
