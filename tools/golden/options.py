"""The attributes that cases give: values, or how they are drawn from the case's stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_ref.conformance.probes import Sizes

from .stream import Stream


def sinks(rng: Stream, s: Sizes) -> Any:
    return rng.integers(-4, 5, (s.h,)) / 2


def slopes(rng: Stream, s: Sizes) -> Any:
    return 2.0 ** -np.arange(1.0, s.h + 1)


def bias(rng: Stream, s: Sizes) -> Any:
    return rng.integers(-64, 65, (s.h, s.m, s.n)) / 32


def bias_keys(rng: Stream, s: Sizes) -> Any:
    return rng.integers(-64, 65, (s.b, 1, 1, s.n)) / 32


def bias_rows(rng: Stream, s: Sizes) -> Any:
    return rng.integers(-64, 65, (s.m, 1)) / 32


def lengths(rng: Stream, s: Sizes) -> Any:
    return [max(s.n - 3 * (i + 1), 0) for i in range(s.b)]


def starts(rng: Stream, s: Sizes) -> Any:
    return [s.n - s.m - 2 * i for i in range(s.b)]


def left_padded(rng: Stream, s: Sizes) -> Any:
    return [[j - 3 * (i + 1) for j in range(s.n)] for i in range(s.b)]


def padded_starts(rng: Stream, s: Sizes) -> Any:
    return [s.n - s.m - 3 * (i + 1) for i in range(s.b)]


def ring(rng: Stream, s: Sizes) -> Any:
    """Slot j of a ring of n holds the newest position that is j modulo n, of n + 4 written."""
    return [j + s.n if j < 4 else j for j in range(s.n)]


def holes(rng: Stream, s: Sizes) -> Any:
    return [-1 if j % 4 == 2 else j for j in range(s.n)]


Option = tuple[dict[str, Any], tuple[str, ...]]
OPTIONS: dict[str, Option] = {
    "scale": ({"scale": 0.75}, ("Scale",)),
    "scale-negative": ({"scale": -0.25}, ("Scale",)),
    "softcap": ({"softcap": 1.5}, ("Softcap",)),
    "bias": ({"bias": bias}, ("Bias",)),
    "bias-keys": ({"bias": bias_keys}, ("Bias",)),
    "bias-rows": ({"bias": bias_rows}, ("Bias",)),
    "alibi": ({"alibi_slopes": slopes}, ("Alibi",)),
    "sinks": ({"sink_logits": sinks}, ("SinkLogit",)),
    "start-0": ({"q_start": 0}, ("QStart",)),
    "start-4": ({"q_start": 4}, ("QStart",)),
    "starts": ({"q_start": starts}, ("QStart",)),
    "lengths": ({"kv_lengths": lengths, "q_start": 0}, ("KvLengths", "QStart")),
    "left-padded": (
        {"kv_positions": left_padded, "q_start": padded_starts}, ("KvPositions", "QStart"),
    ),
    "ring": ({"kv_positions": ring, "q_start": 9}, ("KvPositions", "QStart")),
    "holes": ({"kv_positions": holes}, ("KvPositions",)),
    "alibi-ring": (
        {"alibi_slopes": slopes, "kv_positions": ring, "q_start": 9}, ("Alibi", "KvPositions"),
    ),
    "all": (
        {"scale": 0.5, "softcap": 2.0, "bias": bias, "alibi_slopes": slopes, "sink_logits": sinks},
        ("Scale", "Softcap", "Bias", "Alibi", "SinkLogit"),
    ),
    "all-lengths": (
        {"softcap": 1.5, "bias": bias, "sink_logits": sinks, "kv_lengths": lengths, "q_start": 5},
        ("Softcap", "Bias", "SinkLogit", "KvLengths", "QStart"),
    ),
}  # fmt: skip
