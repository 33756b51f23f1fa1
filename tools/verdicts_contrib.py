"""ONNX Runtime's own operators: GroupQueryAttention, MultiHeadAttention, SparseAttention."""

from __future__ import annotations

from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref.conformance import Case, Sizes
from sparse_ref.conformance.operators import (
    REFUSALS,
    flat,
    group_query_attention,
    in_onnxruntime,
    model,
    session,
    split,
)
from sparse_ref.conformance.sessions import refused

from .verdicts_mistakes import BLOCK, BLOCK_PATTERNS, BLOCK_SPARSE, asked_of
from .verdicts_peers import Peer, fitted, needed, question, same_heads, suite

MULTIHEAD = ("query", "key", "value", "bias", "key_padding_mask", "attention_bias")
BLOCKED = (
    "query", "key", "value", "past_key", "past_value", "block_row_indices", "block_col_indices",
    "total_sequence_length", "key_total_sequence_lengths",
)  # fmt: skip
WITH_CACHE = ("output", "present_key", "present_value")


def grouped_by_bias(q: Any, k: Any, v: Any, pattern: Any, **attributes: Any) -> Any:
    """The same with any pattern as a bias of -inf."""
    asked = question(q, k, pattern, attributes)
    given = asked.rest(scale="scale", softcap="softcap", sink_logits="head_sink", bias="bias")
    bias = np.where(asked.mask(), given.pop("bias", 0.0), -np.inf)
    return group_query_attention(q, k, v, attention_bias=bias, causal=0, **given)


def multihead(q: Any, k: Any, v: Any, pattern: Any, **attributes: Any) -> Any:
    """com.microsoft.MultiHeadAttention with any pattern as a bias of -inf."""
    h = q.shape[1]
    asked = question(q, k, pattern, attributes)
    given = asked.rest(scale="scale", bias="bias")
    bias = np.where(asked.mask(), given.pop("bias", 0.0), -np.inf).astype(q.dtype)
    feeds = {"query": flat(q), "key": flat(k), "value": flat(v), "attention_bias": bias}
    made = model(
        "MultiHeadAttention", MULTIHEAD, ("output",), feeds, domain="com.microsoft", num_heads=h,
        **given,
    )  # fmt: skip
    return split(in_onnxruntime(made, feeds)[0], h)


def block_sparse(q: Any, k: Any, v: Any, pattern: Any, **attributes: Any) -> Any:
    """com.microsoft.SparseAttention: causal, by blocks; its cache is bound as past and present."""
    ort = needed("onnxruntime")
    (b, h, m, d), (_, g, n, _) = q.shape, k.shape
    layout, lengths = asked_of(pattern)
    past, given = n - m, question(q, k, pattern, attributes).rest(scale="scale")
    cache = [np.zeros((b, g, layout.shape[1] * BLOCK, d), np.float32) for _ in "kv"]
    for buffer, x in zip(cache, (k, v), strict=True):
        buffer[:, :, :past] = x[:, :, :past]
    columns = [np.nonzero(one)[1] for one in layout]
    width = max(map(len, columns))
    feeds = {
        "query": flat(q), "key": flat(k[:, :, past:]), "value": flat(v[:, :, past:]),
        "past_key": cache[0], "past_value": cache[1],
        "block_row_indices": np.array(
            [np.append(0, np.cumsum(one.sum(axis=1))) for one in layout], np.int32
        ),
        "block_col_indices": np.array(
            [np.pad(c, (0, width - len(c)), constant_values=-1) for c in columns], np.int32
        ),
        "total_sequence_length": np.array([n], np.int32),
        "key_total_sequence_lengths": np.array(lengths or [n] * b, np.int32),
    }  # fmt: skip
    ready = session(model(
        "SparseAttention", BLOCKED, WITH_CACHE, feeds, domain="com.microsoft", num_heads=h,
        kv_num_heads=g, sparse_block_size=BLOCK, **given,
    ))  # fmt: skip
    binding = ready.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(x) for name, x in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("output")
    binding.bind_ortvalue_output("present_key", values["past_key"])
    binding.bind_ortvalue_output("present_value", values["past_value"])
    refused(lambda: ready.run_with_iobinding(binding), *REFUSALS)
    out = split(binding.copy_outputs_to_cpu()[0], h).copy()
    for row, length in enumerate(lengths or ()):
        out[row, :, length:] = 0  # padding, of which nothing is asked
    return out


def blocks_cases() -> list[Case]:
    """Layouts of blocks of 8; the last ones are those it gets wrong."""
    prompt, some, step = (Sizes(2, 6, 3, m, n, 8, 8) for m, n in ((89, 89), (7, 71), (1, 83)))
    short, drawn = Sizes(1, 6, 3, 37, 37, 8, 8), Sizes(2, 6, 3, 43, 43, 8, 8)
    unequal = Sizes(2, 6, 3, 37, 37, 8, 8)
    asked = [
        ("phi-3", prompt), ("phi-3", some), ("phi-3", step), ("drawn blocks", drawn),
        ("empty block row", short), ("block above", short), ("unequal lengths", unequal),
    ]  # fmt: skip
    return [
        Case(name.replace(" ", "-"), BLOCK_PATTERNS[name], sizes, probe, {}, "float32", ("block",))
        for name, sizes in asked
        for probe in ("random", "even", "fingerprint", "low", "steps")
    ]


def by_eights() -> list[Case]:
    """One sequence, heads of a multiple of 8, values as wide as keys."""
    return fitted(
        suite("float32"), b=lambda s: min(s.b, 1), d=lambda s: -(-s.d // 8) * 8, e=lambda s: s.d
    )


ORT = "onnxruntime"
PEERS = (
    Peer(
        "ONNX Runtime, GroupQueryAttention", ORT, "local_window_size, its cache and sinks",
        lambda: sr.Candidate(group_query_attention, spell="ort_gqa"), by_eights,
    ),
    Peer(
        "ONNX Runtime, GroupQueryAttention, bias", ORT, "attention_bias of -inf, causal=0",
        lambda: grouped_by_bias, by_eights,
    ),
    Peer(
        "ONNX Runtime, MultiHeadAttention", ORT, "attention_bias of -inf", lambda: multihead,
        same_heads,
    ),
    Peer(
        "ONNX Runtime, SparseAttention", ORT, "block_row_indices, block_col_indices",
        lambda: block_sparse, blocks_cases, BLOCK_SPARSE,
    ),
)  # fmt: skip
