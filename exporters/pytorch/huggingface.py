"""Models of transformers on our operator: `attn_implementation="sparse_ref"`.

transformers lets an attention and the masks it wants be registered under one name. Ours wants no
mask: a layer is handed the pattern and, for padded batches and caches, the positions that go with
it, a few integers a batch row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sparse_ref as sr

from .hf_masks import as_pattern
from .op import sparse_attention
from .placeholders import translations

NAME = "sparse_ref"
UNSAID = "position_bias", "head_mask", "cu_seq_lens_q", "block_table"


def register_huggingface() -> str:
    """Make our operator an attention of transformers, and of its exporter; again is harmless.

    Returns
    -------
    str
        What `attn_implementation` must be, "sparse_ref".

    A model so loaded runs its windows, chunks and sinks on `sparse_attention`, with any padding
    and cache, and builds no mask of queries by keys. A model that asks for more than the operator
    can say (packed sequences, images inside a text, biases, dropout) is refused when it runs.

    Examples
    --------
    >>> import transformers
    >>> config = transformers.MistralConfig(
    ...     vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...     num_attention_heads=2, num_key_value_heads=1, sliding_window=3,
    ...     attn_implementation=register_huggingface(),
    ... )
    >>> model = transformers.MistralModel(config)
    >>> model(torch.zeros(1, 5, dtype=torch.int64)).last_hidden_state.shape
    torch.Size([1, 5, 8])
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, seen)
    try:  # private: without it torch.onnx.export still works, and the exporter says what it misses
        from transformers.exporters.exporter_onnx import _ONNX_TRANSLATION_TABLE
    except ImportError:
        return NAME
    _ONNX_TRANSLATION_TABLE.update(translations())
    return NAME


class Seen(NamedTuple):
    """What a layer hands to its attention in place of a mask: None where a default will do."""

    pattern: sr.Pattern
    q_start: Tensor | None = None
    key_start: Tensor | None = None
    key_length: Tensor | None = None
    order: Tensor | None = None  # (b, n): keys to read, so that padding comes last


def seen(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    device: Any = None,
    **_: Any,
) -> Seen:
    """What transformers calls for a mask.

    `attention_mask` (b, positions) says which tokens are no padding; between the first and the
    last of them there must be no hole. Query i is token q_offset + i, slot j of the cache is token
    kv_offset + j.
    """
    from transformers.masking_utils import causal_mask_function

    pattern = as_pattern(mask_function or causal_mask_function)
    anchored = _anchored(pattern) and not _known(kv_offset == 0)  # key 0 is not always the first
    first = q_offset - kv_offset  # slot of the first query
    if attention_mask is None or _known(attention_mask.all()):
        start = origin = None
        if anchored:
            origin = _filled(batch_size, kv_offset, device)
        if origin is not None or isinstance(first, Tensor) or first != kv_length - q_length:
            start = _filled(batch_size, q_offset if origin is not None else first, device)
        return Seen(pattern, start, origin)
    missing = kv_offset + kv_length - attention_mask.shape[-1]
    if not isinstance(missing, int) or missing > 0:  # slots of a static cache not yet written
        attention_mask = nn.functional.pad(attention_mask, (0, missing))
    here = attention_mask[:, kv_offset : kv_offset + kv_length]
    padding, length = _leading(here), here.sum(-1)
    if not torch.compiler.is_compiling():
        _refuse_holes(here, padding, length)
    origin = (kv_offset - _leading(attention_mask)).clamp(min=0) if anchored else None
    start = first - padding if origin is None else first - padding + origin
    slots = torch.arange(kv_length, device=padding.device)
    order = (
        None
        if _known((padding == 0).all())
        else (slots + padding[:, None]).clamp(max=kv_length - 1)
    )
    return Seen(pattern, start, origin, length, order)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Seen | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for an attention: out (b, m, h, e), and no probabilities."""
    if dropout:
        raise NotImplementedError(f"attention_dropout must be 0, got {dropout}")
    for name in UNSAID:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"{type(module).__name__} wants {name}, which has no place")
    if attention_mask is None:  # the model asked for none
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        attention_mask = Seen(sr.Causal() if causal else sr.Full())
    if not isinstance(attention_mask, Seen):
        raise NotImplementedError("attention_mask must be (b, positions), got a mask of pairs")
    pattern, q_start, key_start, key_length, order = attention_mask
    if order is not None:
        key, value = (
            x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
            for x in (key, value)
        )
    out = sparse_attention(
        query, key, value, pattern, scale=scaling, softcap=softcap, sink_logits=s_aux,
        q_start=q_start, key_start=key_start, key_length=key_length,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def _anchored(pattern: sr.Pattern) -> bool:
    """Whether moving queries and keys together changes anything."""
    return isinstance(pattern, sr.Chunked) or any(map(_anchored, pattern.children))


def _known(condition: Any) -> bool:
    """Whether it holds; while a graph is traced nothing of a tensor is known."""
    if isinstance(condition, Tensor) and torch.compiler.is_compiling():
        return False
    return bool(condition)


def _filled(batch: int, value: Any, device: Any) -> Tensor:
    filled: Tensor = torch.zeros(batch, dtype=torch.int64, device=device) + value
    return filled


def _leading(here: Tensor) -> Tensor:
    """How many positions come before the first token of each row; all where there is none."""
    count: Tensor = (here.cumsum(-1) == 0).sum(-1)
    return count


def _refuse_holes(here: Tensor, padding: Tensor, length: Tensor) -> None:
    slots = torch.arange(here.shape[-1], device=here.device)
    block = (slots >= padding[:, None]) & (slots < (padding + length)[:, None])
    if not torch.equal(block, here):
        raise NotImplementedError("attention_mask must have no padding between tokens of a row")
