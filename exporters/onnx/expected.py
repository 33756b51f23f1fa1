"""What a Hugging Face config says of each layer's attention, against what a file computes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import sparse_ref as sr
from sparse_ref.conformance.findings import HeadReading, Xray
from sparse_ref.conformance.seen import seen_in

from .xray import Reading

CLOSE = 1e-3  # relative: half types read a scale to three digits
SLIDING, FULL, CHUNKED = "sliding_attention", "full_attention", "chunked_attention"
EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}  # layer without a window


@dataclass(frozen=True)
class Layer:
    """What one layer should compute; `said` is where that stands in the config."""

    pattern: sr.Pattern
    said: str
    reach: int  # keys from which on the pattern can be told from plain causal attention


def compare_with_config(readings: Sequence[Reading], config: Mapping[str, Any]) -> list[str]:
    """The differences between the attentions of a file and its config, a sentence each.

    Parameters
    ----------
    readings : list of Reading
        What `xray_onnx` read, one for each layer.
    config : mapping
        The content of a Hugging Face config.json of a decoder. Looked at are `layer_types`,
        `sliding_window`, `attention_chunk_size`, `num_hidden_layers`, `num_attention_heads`,
        `num_key_value_heads`, `attn_logit_softcapping`, `query_pre_attn_scalar`,
        `attention_multiplier` and `head_dim`; of a multimodal model those of `text_config`.

    Returns
    -------
    list of str, empty if all agrees. An attention that was not read, and a window that is longer
    than the sequences of the reading, are differences too.

    Raises
    ------
    ValueError
        If the config is not of a causal decoder, or has a layer type that is not known.
    """
    text: Mapping[str, Any] = config.get("text_config") or config
    layers = _layers(text, len(readings))
    found = []
    if len(layers) != len(readings):
        found.append(f"the config has {len(layers)} layers, the file {len(readings)} attentions")
    for i, (reading, layer) in enumerate(zip(readings, layers, strict=False)):
        if reading.xray is None:
            found.append(f"layer {i} ({reading.name}) was not read: {reading.unread}")
        else:
            found += [f"layer {i}: {one}" for one in _of_layer(reading.xray, layer, text)]
    return found


def longest(config: Mapping[str, Any]) -> int:
    """The sequence length from which on every window and chunk of a config shows.

    >>> longest({"sliding_window": 7}), longest({})
    (15, 0)
    """
    text: Mapping[str, Any] = config.get("text_config") or config
    count = len(text.get("layer_types") or ()) or int(text.get("num_hidden_layers") or 1)
    reach = max((layer.reach for layer in _layers(text, count)), default=0)
    return reach + 8 if reach else 0


def _layers(config: Mapping[str, Any], count: int) -> list[Layer]:
    """The layers of a config; as many as there are readings if it does not say how many."""
    kind = str(config.get("model_type", ""))
    if "bert" in kind or config.get("use_bidirectional_attention"):
        raise ValueError(f"config must be of a causal decoder, got {kind or 'a bidirectional one'}")
    count = int(config.get("num_hidden_layers") or count)
    window = config.get("sliding_window")
    if config.get("use_sliding_window") is False:
        window = None
    types = config.get("layer_types")
    if types is None:
        types = [_type(config, window, i) for i in range(count)]
    return [_layer(config, window, kind, i) for i, kind in enumerate(types)]


def _type(config: Mapping[str, Any], window: int | None, layer: int) -> str:
    """The kind of a layer in configs older than `layer_types`."""
    if window is None:
        chunks = config.get("attention_chunk_size")
        rope = (config.get("no_rope_layers") or [1] * (layer + 1))[layer]
        return CHUNKED if chunks and rope else FULL
    every = config.get("sliding_window_pattern") or EVERY.get(str(config.get("model_type")))
    return FULL if every and (layer + 1) % int(every) == 0 else SLIDING


def _layer(config: Mapping[str, Any], window: int | None, kind: str, layer: int) -> Layer:
    match kind:
        case "full_attention":
            return Layer(sr.Causal(), FULL, 0)
        case "sliding_attention":
            if window is None:
                raise ValueError(f"config must have sliding_window, as layer {layer} slides")
            return Layer(sr.conventions.hf(window), f"sliding_window={window}", window)
        case "chunked_attention":
            size = int(config["attention_chunk_size"])
            return Layer(sr.conventions.llama4(size), f"attention_chunk_size={size}", size)
    raise ValueError(
        f"layer_types must hold {FULL}, {SLIDING} and {CHUNKED}, got {kind!r} for layer {layer}"
    )


def _of_layer(got: Xray, layer: Layer, config: Mapping[str, Any]) -> Iterator[str]:
    if layer.reach >= got.kv_len:
        yield (
            f"{layer.said} cannot be seen with {got.kv_len} keys: "
            f"read it with {layer.reach + 1} or more"
        )
    yield from _masks(got, layer)
    yield from _heads(got, config)
    cap, scale = config.get("attn_logit_softcapping"), _scale(got, config)
    for what, want, where in (("softcap", cap, "attn_logit_softcapping"), ("scale", *scale)):
        for i, one in _first_off(got, what, want):
            which = "" if len(got.heads) == 1 else f" of head {i}"
            said = "none" if want is None else f"{want:.6g}"
            read = getattr(one, what)
            yield (
                f"{where} makes the {what} {said}, the file's{which} is "
                f"{'none' if read is None else f'{read:.6g}'}"
            )


def _masks(got: Xray, layer: Layer) -> Iterator[str]:
    want = layer.pattern.mask(got.q_len, got.kv_len)[0]
    off = [i for i, one in enumerate(got.heads) if not np.array_equal(one.mask, want)]
    if off:
        first = got.heads[off[0]]
        which = "every head" if len(off) == len(got.heads) else f"head {', '.join(map(str, off))}"
        at = ", ".join(str(x) for x in np.argwhere(first.mask != want)[0])
        yield (
            f"config says {layer.said} ({seen_in(want).words}), {which} has: {first.seen.words}; "
            f"the first difference is at (query, key) = ({at})"
        )
    for i, one in enumerate(got.heads):
        if one.uneven or one.lost or "mean" in (one.empty or ""):
            yield f"head {i}: {one.uneven or one.empty or 'weights do not add up to 1'}"


def _heads(got: Xray, config: Mapping[str, Any]) -> Iterator[str]:
    heads = config.get("num_attention_heads")
    groups = config.get("num_key_value_heads") or heads
    for name, want, read in (("num_attention_heads", heads, len(got.heads)),
                             ("num_key_value_heads", groups, got.kv_heads)):  # fmt: skip
        if want is not None and want != read:
            yield f"config says {name}={want}, the file has {read}"
    h, g = len(got.heads), got.kv_heads
    off = np.flatnonzero(got.key_heads != np.arange(h) * g // h)
    if len(off):
        i = int(off[0])
        yield f"query head {i} must read key/value head {i * g // h}, got {got.key_heads[i]}"


def _scale(got: Xray, config: Mapping[str, Any]) -> tuple[float, str]:
    """The scale that the config says, and where."""
    if config.get("attention_multiplier") is not None:
        return float(config["attention_multiplier"]), "attention_multiplier"
    if config.get("query_pre_attn_scalar") is not None:
        return float(config["query_pre_attn_scalar"]) ** -0.5, "query_pre_attn_scalar"
    return float(config.get("head_dim") or got.head_dim) ** -0.5, "head_dim"


def _first_off(got: Xray, what: str, want: float | None) -> Iterator[tuple[int, HeadReading]]:
    """The first head whose number differs."""
    for i, one in enumerate(got.heads):
        read = getattr(one, what)
        if what == "scale" and read is None:  # no query sees two keys
            continue
        same = (
            read is want
            if read is None or want is None
            else math.isclose(read, want, rel_tol=CLOSE)
        )
        if not same:
            yield i, one
            return
